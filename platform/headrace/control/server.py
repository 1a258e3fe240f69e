"""`Control`: opens the store, listens for gateways and hosts, runs the loop. Lives in any asyncio loop."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import Awaitable, Sequence

import msgspec
from headrace_autoscaler.configs import DemandConfig, KeepConfig, LimitConfig
from headrace_autoscaler.spec import Config

from headrace import link as links
from headrace import wire
from headrace.config import Settings
from headrace.control import demand
from headrace.control.api.router import handle
from headrace.control.blobs import Blobs
from headrace.control.claims import Claims
from headrace.control.deploy import Deployer
from headrace.control.history import History
from headrace.control.hosts import Hosts
from headrace.control.keyring import FILE as KEY_FILE
from headrace.control.lifecycle import COLLECT_EVERY_S, Lifecycle
from headrace.control.memory import Memory
from headrace.control.model import Endpoint, Host, World
from headrace.control.parts import Parts
from headrace.control.pools import Pools
from headrace.control.ports import NodeManager
from headrace.control.reconcile import Reconciler
from headrace.control.recorder import Recorder
from headrace.control.routes import Routes
from headrace.control.specs import digest, slim
from headrace.control.store import EndpointRow, Store, open_store
from headrace.control.vault import Vault
from headrace.control.warm import Warm
from headrace.errors import RequestError
from headrace.nocore import forbid_core_dumps
from headrace.sdk.spec import EndpointSpec

log = logging.getLogger("headrace.control")
Answer = Awaitable[wire.AnyMessage | None] | wire.AnyMessage | None
TICK_S = 0.25
HOSTS_KEY = "hosts"
"""In the store: nodes whose hosts were alive last, so that a start knows whom to wait for."""
ADMIN_KEY_ID = "admin"


class Control:
    """The one that decides. ``admin_key_hash`` is the SHA-256 (hex) of the admin key."""

    def __init__(
        self,
        settings: Settings,
        *,
        token: str,
        admin_key_hash: str,
        nodes: NodeManager | None = None,
        config: Config | None = None,
    ) -> None:
        self.settings = settings
        self._token = token
        self._admin_key_hash = admin_key_hash
        self._nodes = nodes
        self._config = config or config_of(settings)
        self._store: Store | None = None
        self._parts: Parts | None = None
        self._servers: list[asyncio.Server] = []
        self._links: set[links.Link] = set()
        self._tasks: list[asyncio.Task[None]] = []
        self._stopped = asyncio.Event()
        self._expected: set[str] = set()
        self._adopt_until = 0.0
        self._known_nodes: list[str] = []
        self._collect_at = 0.0
        self._nodes_started = False

    # -- for users -------------------------------------------------------------------------

    async def start(self) -> None:
        """Take the lead. Raises `DataDirError`, or ``OSError`` when an address is taken."""
        forbid_core_dumps()
        data = self.settings.data
        self._store = store = await open_store(data / "control.db")
        try:
            epoch = await store.take_epoch()
            self._parts = parts = self._make(store, epoch)
            await self._load(parts)
            await parts.memory.load()
            await parts.deployer.resume()
            self.settings.control_socket.parent.mkdir(parents=True, exist_ok=True)
            addresses = [
                f"unix:{self.settings.control_socket}",
                f"tcp:127.0.0.1:{self.settings.control_port}",
            ]
            self._servers = await links.listen(
                addresses, token=self._token, epoch=epoch, on_link=self._on_link
            )
            parts.history.start()
            self._tasks.append(asyncio.create_task(self._tick(parts), name="headrace-control-tick"))
            if self._nodes is not None:
                self._nodes_started = True
                await self._nodes.start(self)
        except BaseException:
            await self.stop()
            raise
        log.info("control leads with epoch %d, %d endpoints", epoch, len(parts.world.endpoints))

    async def stop(self) -> None:
        """Close links, servers and the store. Hosts and gateways go on without control."""
        if self._nodes is not None and self._nodes_started:
            self._nodes_started = False
            with contextlib.suppress(Exception):
                await self._nodes.stop()
        await self._cut("control stops")
        if self._parts is not None:
            self._parts.reconciler.stop()
            await self._parts.deployer.stop()
            await self._parts.lifecycle.stop()
            await self._parts.history.stop()
            await self._parts.memory.stop()
        if self._store is not None:
            await self._store.close()
        self._stopped.set()

    async def abandon(self) -> None:
        """For tests: end as by SIGKILL, without a goodbye to anybody (files are closed)."""
        await self.stop()

    async def serve_until_stopped(self) -> None:
        """Return when `stop` is done."""
        await self._stopped.wait()

    async def check_health(self) -> None:
        """Raises ``RuntimeError`` when the loop has ended."""
        for task in self._tasks:
            if task.done():
                raise RuntimeError(f"{task.get_name()} has ended") from task.exception()

    @property
    def parts(self) -> Parts:
        """The parts, after `start`."""
        assert self._parts is not None, "control is not started"
        return self._parts

    @property
    def store(self) -> Store:
        """The store, after `start`."""
        assert self._store is not None, "control is not started"
        return self._store

    @property
    def port(self) -> int:
        """The TCP port it listens on."""
        return int(self._servers[-1].sockets[0].getsockname()[1])

    @property
    def address(self) -> str:
        """For gateways and hosts on this machine."""
        return f"unix:{self.settings.control_socket}"

    def hosts(self) -> Sequence[Host]:
        """All hosts, dead ones of the last minute included."""
        return list(self.parts.world.hosts.values())

    def drain_host(self, host_id: str, grace_s: float | None = None) -> None:
        """Take a host out of service: nothing new, its instances end within ``grace_s``."""
        host = self.parts.world.hosts.get(host_id)
        if host is not None and host.state in ("ready", "suspect"):
            self.parts.hosts.drain(host, self.settings.drain_grace if grace_s is None else grace_s)

    # -- start -----------------------------------------------------------------------------

    def _make(self, store: Store, epoch: int) -> Parts:
        settings = self.settings
        world = World()
        blobs = Blobs(settings.data / "blobs")
        history = History(settings.data / "history")
        routes = Routes(world, epoch)
        vault = Vault(store.secrets, settings.data / KEY_FILE, world)
        claims = Claims(world, epoch, vault)
        warm = Warm(world, claims, spares=settings.spares)
        grace = settings.drain_grace
        reconciler = Reconciler(world, claims, routes, Recorder(history), config=self._config, grace_s=grace)
        reconciler.on_start = lambda endpoint, version: _use(warm, endpoint, version)
        pools = Pools(world, warm, history, config=self._config)
        hosts = Hosts(world, claims, routes, reconciler, warm, pools=pools)
        return Parts(
            epoch=epoch,
            started_at=time.time(),
            world=world,
            store=store,
            vault=vault,
            blobs=blobs,
            history=history,
            routes=routes,
            claims=claims,
            warm=warm,
            reconciler=reconciler,
            hosts=hosts,
            pools=pools,
            memory=Memory(settings.data / "history", world),
            deployer=Deployer(world, store, routes, reconciler, warm),
            lifecycle=Lifecycle(
                world=world,
                store=store,
                blobs=blobs,
                routes=routes,
                reconciler=reconciler,
                warm=warm,
                grace_s=grace,
            ),
            nodes=self._nodes,
            python_image=settings.python_image,
        )

    async def _load(self, parts: Parts) -> None:
        store, world = parts.store, parts.world
        await parts.vault.load()
        key = wire.KeyRecord(id=ADMIN_KEY_ID, hash=self._admin_key_hash)
        await store.put_key(key)
        parts.routes.keys = await store.keys()
        versions: dict[str, list[int]] = {}
        for project, name, version in await store.version_numbers():
            versions.setdefault(f"{project}/{name}", []).append(version)
        seeds: list[tuple[EndpointSpec, int]] = []
        for row in await store.load_endpoints():
            if row.spec is None or row.current_version is None:
                # It never worked: its first version failed, or was being tried when control ended.
                spec = await _tried(store, row)
                endpoint = Endpoint(key=spec.key, spec=spec)
                endpoint.reason = "its first deployment did not finish: deploy it again."
            else:
                whole = msgspec.json.decode(row.spec, type=EndpointSpec)
                spec = slim(whole)
                endpoint = Endpoint(
                    key=spec.key, spec=spec, version=row.current_version, digest=digest(whole)
                )
                seeds.append((spec, row.current_version))
            endpoint.versions = tuple(versions.get(endpoint.key, ()))
            endpoint.min_override, endpoint.max_override = row.min_override, row.max_override
            endpoint.created_at = row.created_at
            parts.routes.derive(endpoint)
            world.endpoints[endpoint.key] = endpoint
            if endpoint.version is not None and endpoint.bounds[0] > 0:
                world.touch(endpoint)
        parts.warm.seed(seeds)
        self._expected = set(json.loads(await store.get_meta(HOSTS_KEY) or "[]"))
        self._known_nodes = sorted(self._expected)
        if self._expected:
            parts.reconciler.adopting = True
            parts.routes.hold()
            self._adopt_until = world.now() + wire.ADOPT_WINDOW_S
        self._collect_at = world.now() + TICK_S

    # -- links -----------------------------------------------------------------------------

    def _on_link(self, link: links.Link, hello: wire.Hello) -> None:
        if self._stopped.is_set() or not self._servers:
            link.close("control stops")
            return
        self._links.add(link)
        if hello.role == "gateway":
            link.start(self._from_gateway, self._gateway_closed)
            if link.is_open:
                self.parts.routes.add(link)
        else:
            link.start(self._from_host, self._host_closed)

    def _from_gateway(self, link: links.Link, message: wire.AnyMessage) -> Answer:
        parts = self.parts
        match message:
            case wire.Wake():
                received = parts.world.now()
                endpoint = demand.wake(parts.world, link, message)
                if endpoint is not None:
                    version = message.version
                    if version is not None and version != endpoint.version and version not in endpoint.pins:
                        parts.lifecycle.pin(endpoint, version, max(1, message.queued), received)
                    else:
                        parts.reconciler.wake(endpoint, version, received)
            case wire.Demand():
                demand.demand(parts.world, link, message)
                parts.reconciler.shortage.changed()
            case wire.ApiCall():
                return handle(parts, message)
            case wire.InstanceTrouble():
                log.info(
                    "gateway %s: instance %s: %s %s",
                    link.peer_id,
                    message.instance,
                    message.what,
                    message.detail,
                )
                parts.routes.doubt(message.instance)
            case wire.FetchBlob():
                return self._chunk(message)
            case _:
                log.debug("gateway %s sent %s", link.peer_id, type(message).__name__)
        return None

    def _from_host(self, link: links.Link, message: wire.AnyMessage) -> Answer:
        parts = self.parts
        if isinstance(message, wire.FetchBlob):
            return self._chunk(message)
        if isinstance(message, wire.HostHello):
            host = parts.hosts.hello(link, message)
            link.peer_id = host.id
            self._expected.discard(message.node)
            return None
        known = parts.world.hosts.get(link.peer_id)
        if known is None or known.link is not link:
            # Before its HostHello, or after it was declared dead: it says hello again on a new link.
            return None
        match message:
            case wire.Heartbeat():
                parts.hosts.heartbeat(known, message)
            case wire.InstanceEvent():
                parts.hosts.event(known, message.instance)
            case wire.WarmEvent():
                parts.hosts.warm_event(known, message.warm)
            case _:
                log.debug("host %s sent %s", link.peer_id, type(message).__name__)
        return None

    def _gateway_closed(self, link: links.Link, reason: str) -> None:
        self._links.discard(link)
        if self._parts is not None:
            self._parts.routes.remove(link)
            demand.forget(self._parts.world, link)

    def _host_closed(self, link: links.Link, reason: str) -> None:
        self._links.discard(link)
        if self._parts is None or self._stopped.is_set() or not self._servers:
            return
        host = self._parts.world.hosts.get(link.peer_id)
        if host is not None:
            self._parts.hosts.closed(host, link)

    async def _chunk(self, message: wire.FetchBlob) -> wire.AnyMessage:
        try:
            total, data = await self.parts.blobs.read(message.sha256, message.offset, wire.BLOB_CHUNK)
        except RequestError as error:
            return wire.Error(slug=error.type, detail=str(error))
        return wire.BlobChunk(total=total, offset=message.offset, data=data)

    async def _cut(self, reason: str) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()
        servers, self._servers = self._servers, []
        for server in servers:
            server.close()
        for link in list(self._links):
            link.close(reason)
        for server in servers:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1.0):
                    await server.wait_closed()

    # -- the loop --------------------------------------------------------------------------

    async def _tick(self, parts: Parts) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            try:
                self._adopt(parts)
                parts.hosts.check()
                await parts.reconciler.tick()
                parts.pools.tick()
                parts.memory.tick()
                await self._remember_nodes(parts)
                if parts.world.now() >= self._collect_at:
                    self._collect_at = parts.world.now() + COLLECT_EVERY_S
                    parts.lifecycle.collect_soon()
            except Exception:
                # One bad endpoint must not end the loop for all others.
                log.exception("a tick failed; the next one tries again")

    def _adopt(self, parts: Parts) -> None:
        if parts.reconciler.adopting and (not self._expected or parts.world.now() >= self._adopt_until):
            parts.reconciler.adopting = False
            log.info("hosts are adopted; not back: %s", ", ".join(sorted(self._expected)) or "none")
            self._expected.clear()
            parts.routes.release()

    async def _remember_nodes(self, parts: Parts) -> None:
        if parts.reconciler.adopting:
            return
        nodes = sorted({h.hello.node for h in parts.world.living_hosts()})
        if nodes != self._known_nodes:
            await parts.store.set_meta(HOSTS_KEY, json.dumps(nodes))
            self._known_nodes = nodes


async def _tried(store: Store, row: EndpointRow) -> EndpointSpec:
    """The newest spec of an endpoint that has no current one: what it was last tried with."""
    for version in await store.versions(row.project, row.name):
        data = await store.version_spec(row.project, row.name, version.version)
        if data is not None:
            return slim(msgspec.json.decode(data, type=EndpointSpec))
    return EndpointSpec(name=row.name, project=row.project, entry="unknown:unknown", handler="function")


def _use(warm: Warm, endpoint: Endpoint, version: int) -> None:
    spec = endpoint.spec_of(version)
    if spec is not None:
        warm.use(spec, version)


def config_of(settings: Settings) -> Config:
    """The autoscaler's parameters: what the platform's settings say, and else their defaults."""
    return Config(
        demand=DemandConfig(goal_s=settings.wait_goal),
        keep=KeepConfig(late_s=settings.late_s, share=settings.wait_share),
        limits=LimitConfig(budget=settings.budget),
    )
