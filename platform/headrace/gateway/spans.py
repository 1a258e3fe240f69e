"""The spans of a request: itself, its time in the queue, each attempt with its claim and its handler.

They are made when the request has ended, out of the times that were kept anyway; only the ids that travel
with it are made before.
"""

from __future__ import annotations

import asyncio
import time
from contextvars import Token
from typing import TYPE_CHECKING

from headrace.gateway.jobs.sink import JobClient
from headrace.gateway.telemetry import CLIENT_LEFT, count_call, status_of
from headrace.observe.tracing import CURRENT, Attributes, Kind, Span, SpanRef, Tracing, parse

if TYPE_CHECKING:
    from headrace.gateway.attempt import Attempt
    from headrace.gateway.call import Call
    from headrace.gateway.request import Request


def trace_line(tracing: Tracing | None, attempt: Attempt) -> bytes:
    """The header line that gives an instance the trace: the client's, or that of the attempt's own span."""
    request = attempt.call.request
    if tracing is None:
        return b"traceparent: %b\r\n" % request.head.traceparent
    attempt.span = tracing.child(_root(tracing, request))
    return b"traceparent: %b\r\n" % attempt.span.header().encode()


class Spans:
    """The spans of one gateway's requests."""

    def __init__(self, tracing: Tracing) -> None:
        self._tracing = tracing

    def enter(self, request: Request) -> Token[str]:
        """What is begun from now on belongs to the request's trace, until the token is reset."""
        return CURRENT.set(_root(self._tracing, request).header())

    def follow(self, request: Request, task: asyncio.Task[None] | None) -> None:
        """The request is answered by a task of the gateway: its span ends with it."""
        if task is None:
            return
        start = time.time_ns()
        exchange = request.exchange

        def answered(_: asyncio.Task[None]) -> None:
            # One that went on as a call tells its own story.
            if request.exchange is None or request.exchange is exchange:
                self._answered(request, start, getattr(exchange, "status", 0))

        task.add_done_callback(answered)

    def _answered(self, request: Request, start: int, status: int) -> None:
        root = _root(self._tracing, request)
        method = request.head.method.decode("latin-1")
        path = request.head.target.partition(b"?")[0].decode("latin-1")
        # Without ids: `/e/NAME`, `/v2/NAME/status`, `/api/v1/jobs`, `/v1/embeddings`.
        area = "/".join(path.split("/")[: 3 if path.startswith("/e/") else 4])[:100]
        about: dict[str, str | int | float | bool] = {
            "http.request.method": method,
            "http.route": area,
            "url.path": path[:200],
            "headrace.request_id": request.id,
        }
        if status:
            about["http.response.status_code"] = status
        error = f"answered {status}" if status >= 500 else ""
        parent = parse(request.head.traceparent)
        self._record(root, parent, f"{method} {area}", "server", start, time.time_ns(), about, error)

    def finished(self, call: Call) -> None:
        """The call has come to its end: count it, and tell its story."""
        count_call(call)
        request = call.request
        root = _root(self._tracing, request)
        job = isinstance(request.client, JobClient)
        if not root.sampled or (job and call.phase == "cancelled" and not call.attempts):
            return
        # Kept times are monotonic.
        shift = time.time_ns() - int(time.monotonic() * 1e9)
        status, name = status_of(call), call.state.key.partition("/")[2]
        about: dict[str, str | int | float | bool] = {
            "headrace.endpoint": call.state.key,
            "headrace.request_id": request.id,
            "headrace.attempts": len(call.attempts),
        }
        kind: Kind = "server"
        title = f"{request.head.method.decode('latin-1')} /e/{name}"
        if job:
            kind, title = "consumer", f"job {name}"
        else:
            about |= {"http.request.method": title.partition(" ")[0], "http.route": f"/e/{name}"}
        if status != CLIENT_LEFT:
            about["http.response.status_code"] = status
        error = ""
        if status >= 500:
            error = call.error.message if call.error is not None else f"the endpoint answered {status}"
        # A job has waited in the store before.
        begin, end = _ns(min(call.started, call.queued_at or call.started), shift), _ns(call.ended, shift)
        self._record(root, parse(request.head.traceparent), title, kind, begin, end, about, error)
        if call.queued_at:
            self._queue(call, root, shift)
        for attempt in call.attempts:
            self._attempt(call, attempt, root, shift)

    def _queue(self, call: Call, root: SpanRef, shift: int) -> None:
        about: dict[str, str | int | float | bool] = {}
        if call.attempts:
            instance = call.attempts[-1].instance
            if instance.since > call.queued_at:
                t = instance.route.timings
                about = {
                    "headrace.tier": instance.route.tier,
                    "headrace.start.claim_s": t.claim_s,
                    "headrace.start.boot_s": t.boot_s,
                    "headrace.start.import_s": t.import_s,
                    "headrace.start.load_s": t.load_s,
                }
        start = _ns(call.queued_at, shift)
        end = start + int(call.queued_s(call.ended) * 1e9)
        self._record(self._tracing.child(root), root, "queue", "internal", start, end, about)

    def _attempt(self, call: Call, attempt: Attempt, root: SpanRef, shift: int) -> None:
        child = self._tracing.child
        mine = attempt.span or child(root)
        start, end = _ns(attempt.started, shift), _ns(attempt.ended or call.ended, shift)
        route = attempt.instance.route
        about: dict[str, str | int | float | bool] = {
            "headrace.attempt": attempt.number,
            "headrace.outcome": attempt.outcome,
            "headrace.instance": route.id,
            "headrace.host": route.host,
            "headrace.version": route.version,
        }
        good = attempt.outcome in ("answered", "beaten", "cancelled", "refused")
        error = "" if good and attempt.status < 500 else f"{attempt.outcome} {attempt.status or ''}".strip()
        self._record(mine, root, "attempt", "client", start, end, about, error)
        sent = _ns(attempt.sent_at, shift) if attempt.sent_at else end
        self._record(child(mine), mine, "claim", "internal", start, sent, {})
        answer = attempt.answer
        if attempt.sent_at and answer is not None and answer.timing:
            try:
                took = int(float(answer.timing) * 1e6)
            except ValueError:
                return
            self._record(child(mine), mine, "handler", "internal", sent, min(end, sent + took), {})

    def _record(  # noqa: PLR0917
        self,
        ref: SpanRef,
        parent: SpanRef | None,
        name: str,
        kind: Kind,
        start: int,
        end: int,
        attributes: Attributes,
        error: str = "",
    ) -> None:
        self._tracing.record(Span(ref, parent, name, kind, start, end, attributes, error))


def _root(tracing: Tracing, request: Request) -> SpanRef:
    """The request's own span; made when it is asked for first."""
    if request.trace is None:
        request.trace = tracing.begin(parse(request.head.traceparent), "request")
    return request.trace


def _ns(monotonic: float, shift: int) -> int:
    return int(monotonic * 1e9) + shift
