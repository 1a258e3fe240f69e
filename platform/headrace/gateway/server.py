"""The gateway: accepts clients, asks who they are, and hands each request to the API it names."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import resource
import secrets
import socket
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from headrace import wire
from headrace.config import Settings
from headrace.errors import ControlAway, GatewayStopping, MethodNotAllowed, NotFound, RequestError
from headrace.gateway.api import cog, health, openai, plain, runpod
from headrace.gateway.api.admin import AdminApi
from headrace.gateway.api.jobs import JobsApi
from headrace.gateway.api.jobs import Route as JobsRoute
from headrace.gateway.api.metrics import MetricsApi
from headrace.gateway.api.metrics import Route as MetricsRoute
from headrace.gateway.api.native import NativeApi, Target
from headrace.gateway.auth import (
    KEYLESS,
    Keys,
    check_json,
    check_keyless,
    named_endpoint,
    require,
    require_endpoint,
)
from headrace.gateway.client import ClientConnection
from headrace.gateway.control_link import ControlLink
from headrace.gateway.dispatch import Dispatcher
from headrace.gateway.early import EarlyClients
from headrace.gateway.jobs.system import JobSystem
from headrace.gateway.listen import BACKLOG, bind
from headrace.gateway.peers import DIRECTORY, Peers
from headrace.gateway.request import ID_PREFIX, Request
from headrace.gateway.routing import Changes, RoutingTable
from headrace.gateway.spans import Spans
from headrace.gateway.sweep import sweep_all
from headrace.nocore import forbid_core_dumps
from headrace.observe.tracing import CURRENT, Tracing, open_tracing

log = logging.getLogger("headrace.gateway")

REPORT_PERIOD_S = 0.5
SWEEP_PERIOD_S = 1.0
FIRST_TABLE_S = 2.0
MAX_CLIENTS = 20_000
"""Open client connections; for one more the oldest goes on which nobody is known, or else the new one."""
LAST_WORDS_S = 1.0
"""For clients to take the error that they get when a gateway ends before their answer."""
_HEALTH_PATHS = (b"/healthz", b"/readyz", b"/")
_SAFE_METHODS = frozenset((b"GET", b"HEAD", b"OPTIONS", b"TRACE"))
"""They change nothing, so that running one again does no harm: their keys are not stored."""


class _Health(NamedTuple):
    """Marks a request for `health`."""


class _Admin(NamedTuple):
    record: wire.KeyRecord


_UNTRACED = (_Health, _Admin, MetricsRoute)


class Contract(Protocol):
    """An API that this gateway serves by itself."""

    def knows(self, path: Any, /) -> bool:
        """Whether a path (without its query) is of this API."""

    def admit(self, request: Request, record: wire.KeyRecord) -> int:
        """Check the head; gives the body's limit, sets ``request.target``. Raises `RequestError`."""

    def start(self, request: Request) -> None:
        """Answer a request that `admit` let in."""


class Gateway:
    """One gateway. `port` is the real one after `start` (``settings.port`` may be 0).

    ``listener``: a socket that listens already (the supervisor's: it outlives a gateway that dies).
    """

    def __init__(
        self,
        settings: Settings,
        *,
        token: str,
        control_address: str,
        listener: socket.socket | None = None,
    ) -> None:
        self._settings = settings
        self._token = token
        self._listener = listener
        self._informed = asyncio.Event()
        self._leader = -1
        """The epoch of the leader that it spoke to last."""
        self._told = 0
        """The number of the link on which control has given its table last."""
        self.id = f"gw-{os.getpid()}-{secrets.token_hex(3)}"
        self.table = RoutingTable()
        self.draining = False
        self.port = settings.port
        self._keys = Keys()
        self._tracing: Tracing | None = None
        self._spans: Spans | None = None
        self._held = 0
        self._empty: asyncio.Future[None] | None = None
        self._clients: dict[ClientConnection, None] = {}
        self._early = EarlyClients()
        # Half of the descriptors are for the connections to instances.
        self._max_clients = min(MAX_CLIENTS, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2)
        self._server: asyncio.Server | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._unconfirmed: asyncio.TimerHandle | None = None
        self._control = ControlLink(
            control_address,
            token=token,
            id=self.id,
            min_epoch=lambda: self.table.epoch,
            on_message=self._heard,
            on_up=self._link_up,
        )

    @property
    def url(self) -> str:
        """Where this gateway answers."""
        host = self._settings.host
        if host in ("0.0.0.0", "::"):  # noqa: S104 - compared, not bound
            host = "127.0.0.1"
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"

    async def start(self) -> None:
        """Listen, and begin to connect to control. Raises `PortInUse` or `SetupError`."""
        forbid_core_dumps()
        loop = asyncio.get_running_loop()
        self.dispatcher = Dispatcher(self.table, self._control.send, self._uncertain)
        if (tracing := open_tracing(os.environ, self.id, health.VERSION)) is not None:
            self._tracing, self._spans = tracing, Spans(tracing)
            self.dispatcher.tracing, self.dispatcher.on_finish = tracing, self._spans.finished
        self._native = NativeApi(self.table, self.dispatcher)
        self._peers = Peers(self._settings.run / DIRECTORY, self._token, ID_PREFIX, self.id)
        self.jobs = JobSystem(self._settings, self.dispatcher, self.table, self.id, self._peers)
        self._admin = AdminApi(self._control, self.jobs.store_state)
        self._jobs_api = JobsApi(self.jobs.service, plain.PlainCalls(self.dispatcher, self.id, self._peers))
        runpod_api = runpod.RunpodApi(self.jobs.service)
        cog_api = cog.CogApi(self.jobs.service)
        openai_api = openai.OpenAiApi(self.table, self.dispatcher, self.jobs.sync)
        self._metrics = MetricsApi(self.id, self.dispatcher, self.jobs, self._control)
        self._metrics.gauges = {"clients": lambda: len(self._clients), "held": lambda: self._held}
        self._contracts: tuple[Contract, ...] = (self._metrics, runpod_api, cog_api, openai_api)
        self._by_target: dict[type, Contract] = {
            MetricsRoute: self._metrics,
            JobsRoute: self._jobs_api,
            runpod.Route: runpod_api,
            cog.Route: cog_api,
            openai.Route: openai_api,
        }
        sock = self._listener or bind(self._settings)
        sock.setblocking(False)
        self.port = sock.getsockname()[1]
        try:
            await self._peers.start()
            await self.jobs.start()
        except BaseException:
            sock.close()
            await self._peers.stop()
            raise
        self._control.start()
        if self._listener is not None:
            await self._first_table()
        self._server = await loop.create_server(lambda: ClientConnection(self), sock=sock, backlog=BACKLOG)
        self._tasks = [
            loop.create_task(self._every(REPORT_PERIOD_S, self.dispatcher.tick)),
            loop.create_task(self._every(SWEEP_PERIOD_S, self._sweep)),
        ]

    async def _first_table(self) -> None:
        """Leave clients in the backlog until there is a routing table: they come to a gateway that knows."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FIRST_TABLE_S):
                await self._informed.wait()

    async def stop(self, grace_s: float | None = None) -> None:
        """Accept nothing new, let what is in flight end within ``grace_s`` (``drain_grace``), close.

        Who waits for a job hears at once how it stands; who still waits at the end gets an error.
        """
        if self._server is None:
            return
        grace = self._settings.drain_grace if grace_s is None else grace_s
        loop = asyncio.get_running_loop()
        until = loop.time() + grace
        self.draining = True
        self._server.close()
        self._early.release()
        self.jobs.service.drain()
        for client in list(self._clients):
            client.shut()
        if self._clients:
            self._empty = loop.create_future()
            await asyncio.wait([self._empty], timeout=grace)
            await self._give_up(self._empty)
        self.dispatcher.reports.all()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._unconfirmed is not None:
            self._unconfirmed.cancel()
        await asyncio.sleep(0)
        await self.jobs.stop(max(0.0, until - loop.time()))
        await self.dispatcher.close()
        await self._peers.stop()
        if self._tracing is not None:
            await self._tracing.close()
        await self._control.stop()
        await self._server.wait_closed()
        self._server = None

    async def _give_up(self, empty: asyncio.Future[None]) -> None:
        for client in list(self._clients):
            client.give_up(
                GatewayStopping(
                    "the gateway stops before this is answered.",
                    hint="Send it again; what an instance was at work on may have run.",
                    retry_after=1,
                )
            )
        if self._clients:
            await asyncio.wait([empty], timeout=LAST_WORDS_S)
        for client in list(self._clients):
            client.abort()

    def not_ready(self) -> str:
        """Why this gateway is not ready; empty when it is."""
        if self.draining:
            return "the gateway is stopping"
        if not self.table.complete:
            return f"no routing table yet: control {self._control.why}"
        if not self._control.is_up:
            return f"no link to control: {self._control.why}"
        return ""

    # -- client.App -------------------------------------------------------------------------

    def admit(self, request: Request) -> int:
        """Who asks for what; gives the limit of the body. Raises `RequestError`."""
        try:
            return self._admit(request)
        except RequestError as error:
            self._metrics.refuse(error)
            raise

    def _admit(self, request: Request) -> int:
        head = request.head
        target = head.target
        if target[:3] == b"/e/":
            record = self._who(request)
            require(record, ("invoke",), "call endpoints")
            request.key = record.id
            if head.cookie:
                cookie = self._keys.clean_cookies(head.cookie)
                if cookie and b"\n" not in cookie and b"\r" not in cookie and b"\0" not in cookie:
                    head.forward += b"Cookie: %b\r\n" % cookie
            return self._native.admit(request, record.project, record.endpoints)
        path = target.partition(b"?")[0]
        if path in _HEALTH_PATHS:
            if path == b"/":
                self._who(request)
            if head.method not in (b"GET", b"HEAD"):
                raise MethodNotAllowed(f"{path.decode()} knows only GET and HEAD.", allow=["GET", "HEAD"])
            request.target = _Health()
            return 0
        if path.startswith(b"/api/v1/") or path == b"/api/openapi.json":
            record = self._who(request)
            if self._jobs_api.knows(path):
                check_json(head)
                return self._jobs_api.admit(request, record)
            require(record, ("deploy",), "manage the platform")
            check_json(head)
            request.target = _Admin(record)
            return self._admin.limit(request)
        text = path.decode("latin-1")
        for contract in self._contracts:
            if contract.knows(text):
                record = self._who(request)
                check_json(head)
                return contract.admit(request, record)
        raise NotFound(f"nothing at {path[:100].decode('latin-1')!r}.", hint="Endpoints are at /e/{name}.")

    def answer(self, request: Request) -> None:
        """Answer a complete request."""
        spans = self._spans
        if spans is None and not request.head.traceparent:
            self._answer(request)
            return
        token = (
            CURRENT.set(request.head.traceparent.decode("latin-1")) if spans is None else spans.enter(request)
        )
        try:
            self._answer(request)
        finally:
            CURRENT.reset(token)
        if spans is not None and not isinstance(request.target, _UNTRACED):
            spans.follow(request, getattr(request.exchange, "task", None))

    def _answer(self, request: Request) -> None:
        target = request.target
        try:
            if isinstance(target, _Health):
                request.client.reply(request, health.answer(request, self.not_ready()))
            elif isinstance(target, _Admin):
                self._admin.start(request, target.record)
            elif (contract := self._by_target.get(type(target))) is not None:
                contract.start(request)
            else:
                self._call(request, target)
        except RequestError as error:
            request.client.fail(request, error)
        except Exception as error:
            log.exception("request %s failed in the gateway", request.id)
            request.close = True
            request.client.fail(
                request, RequestError(f"{type(error).__name__} in the gateway: its log has more.")
            )

    def _call(self, request: Request, target: Target) -> None:
        """A call to an endpoint: as it is, as a job, or stored because its key makes it answerable once."""
        head = request.head
        if head.method not in _SAFE_METHODS and not target.upgrade:
            project = target.state.key.partition("/")[0]
            if head.method == b"POST" and self._jobs_api.wants_async(request):
                self._jobs_api.start_call(request, target, project)
                return
            if head.idempotency_key:
                key = head.idempotency_key.decode("latin-1")
                self.jobs.sync.start(request, target, project, key, self._native.start)
                return
        self._native.start(request)

    def hold(self, size: int) -> bool:
        """Take bytes of the budget for bodies."""
        if self._held + size > self._settings.gateway_body_bytes:
            return False
        self._held += size
        return True

    def unhold(self, size: int) -> None:
        """Give bytes back."""
        self._held -= size

    def opened(self, client: ClientConnection) -> None:
        """A connection came."""
        self._clients[client] = None
        if not self.table.complete and not self._settings.keyless:
            self._early.take(client)
        if len(self._clients) > self._max_clients:
            next((known for known in self._clients if known.stranger), client).abort()

    def closed(self, client: ClientConnection) -> None:
        """A connection went."""
        self._clients.pop(client, None)
        if self._empty is not None and not self._clients and not self._empty.done():
            self._empty.set_result(None)

    # -- inside -----------------------------------------------------------------------------

    def _sweep(self) -> None:
        sweep_all(self._clients, self._settings.gateway_body_bytes)

    def _who(self, request: Request) -> wire.KeyRecord:
        if not self._settings.keyless:
            if not self.table.complete:
                raise ControlAway(
                    "the gateway has just started and knows no keys yet.", hint="Try again.", retry_after=1
                )
            record = self._keys.who(request.head.authorization)
            if record.endpoints:
                path = request.head.target.partition(b"?")[0].decode("latin-1")
                if name := named_endpoint(path):
                    require_endpoint(record, name)
            return record
        check_keyless(request.head)
        return KEYLESS

    def _heard(self, msg: wire.AnyMessage) -> wire.AnyMessage | None:
        """Do what control says; gives the reply, if it asked."""
        if isinstance(msg, wire.AskDemand):
            self.dispatcher.reports.ask(msg.eager_s)
            return wire.Demand(items=[])
        if isinstance(msg, wire.RouteDelta):
            self._changed(self.table.apply_delta(msg))
        elif isinstance(msg, wire.Snapshot):
            self._told = self._control.links
            self._changed(self.table.apply_snapshot(msg))
        else:
            log.warning("control sent %s, which means nothing here", type(msg).__name__)
        return None

    def _changed(self, changes: Changes | None) -> None:
        if changes is None:
            log.warning("refused a routing message of an old leader")
            return
        if changes.keys:
            self._keys.replace(self.table.keys)
        self.dispatcher.apply(changes)
        if self.table.complete:
            self._informed.set()
            self._early.release()
        if self.table.unconfirmed and self._unconfirmed is None:
            loop = asyncio.get_running_loop()
            self._unconfirmed = loop.call_later(wire.ADOPT_WINDOW_S + 1.0, self._drop_unconfirmed)

    def _drop_unconfirmed(self) -> None:
        self._unconfirmed = None
        self.dispatcher.apply(self.table.drop_unconfirmed())

    def _link_up(self) -> None:
        self.dispatcher.announce_again(new_leader=self._control.epoch != self._leader)
        self._leader = self._control.epoch

    def _uncertain(self) -> bool:
        told = self._control.is_up and self._told == self._control.links
        return not told or bool(self.table.unconfirmed)

    async def _every(self, period_s: float, work: Callable[[], None]) -> None:
        while True:
            await asyncio.sleep(period_s)
            try:
                work()
            except Exception:
                log.exception("periodic work failed")
