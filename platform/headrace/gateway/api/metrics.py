"""``GET /metrics``: what this gateway has counted, what the job store holds, and what control knows."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from headrace import wire
from headrace.errors import MethodNotAllowed, RequestError
from headrace.gateway.api.exchange import TaskExchange
from headrace.gateway.api.health import VERSION
from headrace.gateway.auth import may_call, require
from headrace.gateway.request import Request
from headrace.gateway.respond import response
from headrace.jobs.state import JOB_MOVES
from headrace.observe.metrics import EndpointFacts, Facts, Meter, render

if TYPE_CHECKING:
    from headrace.gateway.control_link import ControlLink
    from headrace.gateway.dispatch import Dispatcher
    from headrace.gateway.endpoints import EndpointState
    from headrace.gateway.jobs.system import JobSystem

CONTROL_TIMEOUT_S = 1.0
STORE_TIMEOUT_S = 1.0
_ACCEPT = re.compile(rb"^accept:\s*([^\r\n]{0,500})", re.IGNORECASE | re.MULTILINE)
SLICE = 50
"""So many endpoints are copied before requests get their turn."""
MAX_STORED = 200
"""Endpoints whose jobs in the store are counted at a scrape."""


class Route(NamedTuple):
    """A scrape with this key."""

    record: wire.KeyRecord


class MetricsApi:
    """See the module. ``clients`` and ``held`` are told by the gateway at a scrape."""

    def __init__(self, id: str, dispatcher: Dispatcher, jobs: JobSystem, control: ControlLink) -> None:
        self._id = id
        self._dispatcher = dispatcher
        self._jobs = jobs
        self._rendering = asyncio.Lock()
        self._control = control
        self.refused: Counter[str] = Counter()
        self.gauges: Mapping[str, Any] = {}
        """Name -> function that gives its value: ``clients`` and ``held``."""

    @staticmethod
    def knows(path: str) -> bool:
        """Only ``/metrics``."""
        return path == "/metrics"

    def admit(self, request: Request, record: wire.KeyRecord) -> int:
        """Check key and method. Raises `RequestError`."""
        require(record, ("metrics",), "read metrics")
        if request.head.method not in (b"GET", b"HEAD"):
            raise MethodNotAllowed("/metrics knows only GET and HEAD.", allow=["GET", "HEAD"])
        request.target = Route(record)
        return 0

    def start(self, request: Request) -> None:
        """Answer a scrape."""
        TaskExchange(request, self._answer)

    def refuse(self, error: RequestError) -> None:
        """A request was refused before it reached an endpoint."""
        self.refused[error.type] += 1

    async def _answer(self, exchange: TaskExchange) -> bytes:
        request = exchange.request
        record: wire.KeyRecord = request.target.record
        (platform, use, checkpoints), stored = await asyncio.gather(
            self._platform(record), self._stored(record)
        )
        facts = Facts(
            gateway=self._id,
            version=VERSION,
            endpoints=await self._endpoints(record),
            clients=self.gauges["clients"](),
            body_bytes=self.gauges["held"](),
            refused={} if record.endpoints else dict(self.refused),
            webhooks={} if record.endpoints else dict(self._jobs.webhook_counts),
            jobs=stored,
            platform=platform,
            use=use,
            checkpoints=checkpoints,
        )
        accept = _ACCEPT.search(request.head.forward)
        prefers = accept[1].decode("latin-1") if accept else ""
        # In a thread, one at a time: a thousand endpoints are some fifty thousand lines.
        async with self._rendering:
            body, content_type = await asyncio.to_thread(render, facts, prefers)
        return response(
            200,
            body,
            content_type,
            request_id=request.id,
            close=request.client.closes(request),
            head_only=request.head.method == b"HEAD",
            extra=b"Cache-Control: no-store\r\n",
        )

    async def _endpoints(self, record: wire.KeyRecord) -> list[EndpointFacts]:
        found: list[EndpointFacts] = []
        for count, state in enumerate(self._dispatcher.states(), 1):
            if may_call(record, state.key.partition("/")[2]):
                found.append(_facts(state))
            if count % SLICE == 0:
                await asyncio.sleep(0)
        return found

    async def _platform(
        self, record: wire.KeyRecord
    ) -> tuple[dict[str, dict[str, int]] | None, list[dict[str, Any]], list[dict[str, Any]]]:
        """(instances and hosts by state, what instances use, what became of hosts' checkpoints)."""
        if record.endpoints:
            return None, [], []  # it counts instances of all endpoints
        try:
            call = wire.ApiCall(
                method="GET", path="/status", query={"use": "1"}, scopes=("deploy",), key_id="gateway"
            )
            reply = await self._control.call(call, CONTROL_TIMEOUT_S)
            if isinstance(reply, wire.ApiReply) and reply.status == 200:
                found = msgspec.json.decode(reply.body)
                states = {"instances": found["instance_states"], "hosts": found["host_states"]}
                return states, found.get("use", []), found.get("checkpoints", [])
        except (RequestError, TimeoutError, KeyError):
            pass
        return None, [], []

    async def _stored(self, record: wire.KeyRecord) -> dict[tuple[str, str, str], int]:
        found: dict[tuple[str, str, str], int] = {}
        with contextlib.suppress(RequestError, TimeoutError):
            async with asyncio.timeout(STORE_TIMEOUT_S):
                known = self._jobs.endpoints(MAX_STORED)
                for project, endpoint in [one for one in known if may_call(record, one[1])]:
                    counts = await self._jobs.service.counts(project, endpoint)
                    for state in JOB_MOVES:
                        found[project, endpoint, state] = getattr(counts, state)
        return found


def _facts(state: EndpointState) -> EndpointFacts:
    """A copy, so that a thread can read it."""
    project, _, name = state.key.partition("/")
    instances = {"ready": 0, "suspect": 0, "trouble": 0}
    for instance in state.instances.values():
        kind = "trouble" if not instance.usable else "suspect" if instance.route.suspect else "ready"
        instances[kind] += 1
    copy = Meter()
    copy.merge(state.meter)
    return EndpointFacts(
        project=project,
        name=name,
        meter=copy,
        in_flight=state.in_flight,
        waiting=len(state.queue),
        instances=instances,
        circuit_open=bool(state.circuit.open),
    )
