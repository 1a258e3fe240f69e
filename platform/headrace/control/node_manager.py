"""Does what `headrace.control.nodes.plan` says: talks to providers, the store, the hosts and the cluster."""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import msgspec
from headrace_providers import registry
from headrace_providers.base import Provider
from headrace_providers.errors import InvalidRequest, ProviderError, UnknownProvider
from headrace_providers.offers import JoinInfo, Node, NodeRequest, Offer
from headrace_runtimes.trees import remove_tree

from headrace import wire
from headrace.control.nodes import Do, Known, State, plan
from headrace.control.store import Intent, NodeRow
from headrace.errors import BadRequest, Conflict, NoCapacity, NotFound, RequestError, ValidationFailed
from headrace.sdk.spec import parse_size

if TYPE_CHECKING:
    from headrace.control.server import Control

log = logging.getLogger("headrace.control.nodes")

PERIOD_S = 1.0
PROVIDER_TIMEOUT_S = 30.0
MAX_AT_ONCE = 100
OUR_LABELS = "headrace."


class ClusterNode(Protocol):
    """What is needed of a node as the cluster knows it."""

    @property
    def id(self) -> str:
        """The cluster's own id."""

    @property
    def name(self) -> str:
        """The platform's name of it: the id that the node was launched with."""

    @property
    def alive(self) -> bool:
        """Whether the cluster takes it for alive."""


class Cluster(Protocol):
    """What is needed of the cluster under control."""

    async def nodes(self) -> Sequence[ClusterNode]:
        """All nodes that the cluster knows."""

    async def drain_node(self, node_id: str, deadline_s: float) -> None:
        """Take no new work on the node."""


class LaunchBody(msgspec.Struct, forbid_unknown_fields=True):
    """Body of ``POST /nodes``."""

    provider: str = "local"
    count: int = 1
    cpu: float = 1.0
    memory: int | str = "1GiB"
    gpu: dict[str, int] = {}
    labels: dict[str, str] = {}
    region: str = "local"
    instance_type: str = "local"
    spot: bool = False


class Nodes:
    """The node manager (`headrace.control.ports.NodeManager`)."""

    def __init__(
        self,
        cluster: Cluster,
        *,
        cluster_id: str,
        join: Callable[[], JoinInfo],
        state_dir: Path,
        sweep: Callable[[str], bool] = lambda node: True,
    ) -> None:
        """``sweep`` removes what a dead host of a node left on this machine; False: one lives. It blocks."""
        self._cluster = cluster
        self._cluster_id = cluster_id
        self._join = join
        self._state_dir = state_dir
        self._providers: dict[str, Provider] = {}
        self._rows: dict[str, NodeRow] = {}
        self._sweep = sweep
        self._swept: set[str] = set()
        self._control: Control | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def control(self) -> Control:
        """Who started this."""
        assert self._control is not None
        return self._control

    async def start(self, control: Control) -> None:
        """Remember what was launched before, and begin to reconcile."""
        self._control = control
        self._rows = {row.id: row for row in await control.store.nodes()}
        for intent in await control.store.intents():
            if intent.kind == "launch" and intent.state == "written" and intent.id not in self._rows:
                await self._put(_row(intent))
        self._task = asyncio.create_task(self._run(), name="reconcile nodes")

    async def stop(self) -> None:
        """Stop reconciling; nodes stay."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    # -- API --------------------------------------------------------------------------------

    async def handle_api(self, call: wire.ApiCall) -> wire.ApiReply:
        """See `NodeManager.handle_api`."""
        _, what, *rest = call.path.split("/")
        match (call.method, what, rest):
            case ("GET", "providers", []):
                return _reply(200, {"items": await self._offers(), "next": None})
            case ("GET", "nodes", []):
                return _reply(200, {"items": self.all_nodes(), "next": None})
            case ("POST", "nodes", []):
                return _reply(202, {"items": await self.launch(call.body), "next": None})
            case ("GET", "nodes", [node_id]):
                return _reply(200, self._find(node_id))
            case ("DELETE", "nodes", [node_id]):
                return _reply(202, await self.remove(node_id))
        raise NotFound(f"no route {call.method} {call.path}.", hint="GET /api/openapi.json lists the routes.")

    def all_nodes(self) -> list[dict[str, Any]]:
        """All nodes: those launched here, and those that hosts reported by themselves."""
        hosts = {host.hello.node: host for host in self.control.hosts() if host.state != "dead"}
        items = [self._describe(row) for row in self._rows.values()]
        for name, host in hosts.items():
            if name not in self._rows:
                hello = host.hello
                items.append({
                    "id": name, "provider": hello.provider, "region": hello.region, "instance_type": "",
                    "kind": hello.kind, "spot": hello.spot, "price": hello.price, "state": host.state,
                    "host": hello.host, "managed": False, "detail": "", "created_at": None,
                    "cpu": hello.resources.cpu, "memory": hello.resources.memory,
                })  # fmt: skip
        return items

    async def launch(self, body: bytes) -> list[dict[str, Any]]:
        """Launch nodes. Their intents are in the store before a provider is asked."""
        ask = _parse(body)
        provider = self._provider(ask.provider)
        launched: list[dict[str, Any]] = []
        for _ in range(ask.count):
            request = NodeRequest(
                id=f"n-{secrets.token_hex(4)}", cluster=self._cluster_id, region=ask.region,
                instance_type=ask.instance_type, cpu=ask.cpu, memory=parse_size(ask.memory, "memory"),
                gpu=ask.gpu, spot=ask.spot, labels=ask.labels, join=self._join(),
            )  # fmt: skip
            now = time.time()
            spec = msgspec.to_builtins(msgspec.structs.replace(request, join=_NO_JOIN))
            intent = Intent(
                request.id, "default", ask.provider, "launch", spec, "written", now, now, request.id
            )
            await self.control.store.put_intent(intent)
            await self._put(_row(intent))
            try:
                async with asyncio.timeout(PROVIDER_TIMEOUT_S):
                    await provider.launch(request)
            except (ProviderError, TimeoutError) as error:
                await self.control.store.update_intent(request.id, "failed")
                await self._forget(request.id)
                message = f"{ask.provider} did not launch a node: {error or 'no answer in time'}."
                if isinstance(error, InvalidRequest):
                    raise ValidationFailed(message) from error
                raise NoCapacity(message, hint="GET /api/v1/providers lists what can be had.") from error
            await self.control.store.update_intent(request.id, "launched", request.id)
            launched.append(self._describe(self._rows[request.id]))
        return launched

    async def remove(self, node_id: str) -> dict[str, Any]:
        """Drain the node's host, then terminate the node; a lost or failed one is only forgotten."""
        item = self._find(node_id)
        if not item["managed"]:
            raise Conflict(
                f"node {node_id!r} was not launched here.", hint="Stop Ray on that machine instead."
            )
        row = self._rows[node_id]
        if row.state in ("lost", "failed"):
            await self._forget(node_id)
            return item | {"state": "removed"}
        if row.state != "draining":
            await self._move(node_id, "draining", "asked to remove it")
            for host in self.control.hosts():
                if host.hello.node == node_id:
                    self.control.drain_host(host.id)
        return self._describe(self._rows[node_id])

    async def _offers(self) -> list[dict[str, Any]]:
        items: list[dict[str, Any]] = []
        for name in sorted(registry.installed()):
            try:
                async with asyncio.timeout(PROVIDER_TIMEOUT_S):
                    offers: Sequence[Offer] = await self._provider(name).list_offers()
                items.append({"name": name, "offers": msgspec.to_builtins(offers), "error": None})
            except (ProviderError, RequestError, TimeoutError) as error:
                items.append({"name": name, "offers": [], "error": str(error) or "no answer in time"})
        return items

    def _describe(self, row: NodeRow) -> dict[str, Any]:
        host = next((h for h in self.control.hosts() if h.hello.node == row.id and h.state != "dead"), None)
        return {
            "id": row.id, "provider": row.provider, "region": row.spec.get("region", ""),
            "instance_type": row.spec.get("instance_type", ""),
            "kind": host.hello.kind if host else "generic",
            "spot": row.spec.get("spot", False), "price": host.hello.price if host else 0.0,
            "state": row.state,
            "host": host.id if host else None, "managed": True, "detail": row.detail,
            "created_at": row.created_at,
            "cpu": host.hello.resources.cpu if host else None,
            "memory": host.hello.resources.memory if host else None,
            "gpu": host.hello.resources.gpu if host else {},
        }  # fmt: skip

    def _find(self, node_id: str) -> dict[str, Any]:
        for item in self.all_nodes():
            if item["id"] == node_id:
                return item
        raise NotFound(f"no node {node_id!r}.", hint="`headrace nodes list` shows them.")

    def _provider(self, name: str) -> Provider:
        if name not in self._providers:
            try:
                self._providers[name] = registry.load(name, self._state_dir / name)
            except UnknownProvider as error:
                raise NotFound(str(error)) from error
        return self._providers[name]

    # -- reconciling ------------------------------------------------------------------------

    async def _run(self) -> None:
        while True:
            try:
                await self.reconcile()
            except Exception:
                log.exception("nodes could not be reconciled; tried again in %g s", PERIOD_S)
            await asyncio.sleep(PERIOD_S)

    async def reconcile(self) -> None:
        """One round. Providers are listed first: an intent is always older than its node."""
        owned: list[Node] = []
        asked: set[str] = set()
        for name in registry.installed():
            try:
                async with asyncio.timeout(PROVIDER_TIMEOUT_S):
                    owned += await self._provider(name).list_owned(self._cluster_id)
                asked.add(name)
            except (ProviderError, RequestError, TimeoutError) as error:
                log.warning("provider %s does not list its nodes: %s", name, error)
        known = [
            Known(id=r.id, provider=r.provider, state=_state(r), since=r.updated_at)
            for r in self._rows.values()
        ]
        alive = [h for h in self.control.hosts() if h.state in ("ready", "suspect", "draining")]
        joined = frozenset(h.hello.node for h in alive)
        busy = frozenset(h.hello.node for h in alive if any(i.alive for i in h.instances.values()))
        for todo in plan(time.time(), known, owned, joined=joined, busy=busy, asked=frozenset(asked)):
            await self._do(todo)
        for row in list(self._rows.values()):
            if row.state in ("lost", "failed") and row.id not in joined and row.id not in self._swept:
                await self._clean_up(row.id)

    async def _do(self, todo: Do) -> None:
        log.info("node %s: %s %s (%s)", todo.node, todo.what, todo.state or "", todo.reason)
        if todo.what == "move":
            assert todo.state is not None
            await self._move(todo.node, todo.state, todo.reason)
        elif todo.what == "forget":
            await self._forget(todo.node)
        else:
            await self._drain_in_cluster(todo.node)
            try:
                async with asyncio.timeout(PROVIDER_TIMEOUT_S):
                    await self._provider(todo.provider).terminate(todo.node)
            except (ProviderError, TimeoutError) as error:
                log.warning("node %s is not terminated yet: %s", todo.node, error)

    async def _drain_in_cluster(self, node_id: str) -> None:
        """So that the cluster takes this node's host away, and not another one's."""
        try:
            for node in await self._cluster.nodes():
                if node.name == node_id and node.alive:
                    await self._cluster.drain_node(node.id, DRAIN_DEADLINE_S)
        except (OSError, TimeoutError) as error:
            log.warning("node %s is not drained in the cluster: %s", node_id, error)

    async def _move(self, node_id: str, state: State, reason: str) -> None:
        row = self._rows.get(node_id)
        if row is not None:
            self._swept.discard(node_id)
            await self._put(msgspec.structs.replace(row, state=state, detail=reason, updated_at=time.time()))

    async def _put(self, row: NodeRow) -> None:
        self._rows[row.id] = row
        await self.control.store.put_node(row)

    async def _forget(self, node_id: str) -> None:
        self._rows.pop(node_id, None)
        await self.control.store.delete_node(node_id)
        await self.control.store.update_intent(node_id, "ended")
        await self._clean_up(node_id)
        self._swept.discard(node_id)
        # Logs of instances are read through their host, and its name is not used again.
        await asyncio.to_thread(remove_tree, self.control.settings.data / "hosts" / node_id)

    async def _clean_up(self, node_id: str) -> None:
        if await asyncio.to_thread(self._sweep, node_id):
            self._swept.add(node_id)


DRAIN_DEADLINE_S = 5.0
_NO_JOIN = JoinInfo(address="", token_path="")


def _row(intent: Intent) -> NodeRow:
    return NodeRow(
        intent.id, intent.project, intent.provider, intent.spec, "launching", intent.created_at,
        intent.updated_at, intent.id,
    )  # fmt: skip


def _state(row: NodeRow) -> State:
    state: State = msgspec.convert(row.state, State)
    return state


def _parse(body: bytes) -> LaunchBody:
    try:
        ask = msgspec.json.decode(body or b"{}", type=LaunchBody)
    except msgspec.ValidationError as error:
        raise ValidationFailed(f"body: {error}.") from error
    except msgspec.DecodeError as error:
        raise BadRequest(f"the body is not JSON: {error}.") from error
    for label in ask.labels:
        if label.startswith(OUR_LABELS):
            raise ValidationFailed(
                f"label {label!r}: names that begin with {OUR_LABELS!r} are the platform's."
            )
    if not 1 <= ask.count <= MAX_AT_ONCE:
        raise ValidationFailed(f"count={ask.count}: use 1 to {MAX_AT_ONCE}.")
    return ask


def _reply(status: int, value: Any) -> wire.ApiReply:
    return wire.ApiReply(status=status, body=json.dumps(value).encode())
