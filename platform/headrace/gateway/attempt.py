"""One attempt of a request at one instance: connect, send, and pass on what comes back."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Literal, cast

from headrace.errors import RequestError
from headrace.gateway.answer import answer_head, error_tail, length_line, server_timing
from headrace.gateway.deaths import Loss
from headrace.gateway.head import Answer, is_encoded, read_answer
from headrace.gateway.spans import trace_line
from headrace.gateway.turns import ASK_AFTER_S, TURN_LINE, WAIT, Turn
from headrace.gateway.upstream import AddressRefused, Upstream, open_connection

if TYPE_CHECKING:
    from headrace.gateway.call import Call
    from headrace.gateway.endpoints import Instance
    from headrace.observe.tracing import SpanRef

ALONE_LINE = b"X-Headrace-Alone: 1\r\n"
"""To the instance: nothing else may run there beside this."""
SMALL_ANSWER = 256 << 10
"""Answers up to this size are forwarded in one write."""

Outcome = Literal[
    "", "answered", "refused", "not-accepted", "lost", "host-lost", "retried", "beaten", "failed", "cancelled"
]
"""How an attempt ended; empty while it runs. ``beaten``: the other of two copies answered first."""


class Attempt:
    """The `Receiver` of its instance. Times are monotonic seconds; 0.0: not yet."""

    __slots__ = (
        "_buffer",
        "_chunked",
        "_detour",
        "_last_byte",
        "_up",
        "answer",
        "call",
        "ended",
        "head_request",
        "instance",
        "loss",
        "number",
        "outcome",
        "sent_at",
        "span",
        "started",
        "status",
    )

    def __init__(self, call: Call, instance: Instance, number: int) -> None:
        self.call = call
        self.instance = instance
        self.number = number
        self.head_request = call.head_request
        self.started = time.monotonic()
        self.sent_at = 0.0
        self.ended = 0.0
        self.outcome: Outcome = ""
        self.span: SpanRef | None = None
        self.status = 0
        """Of the instance's answer; 0: none came."""
        self.loss: Loss = ""
        self.answer: Answer | None = None
        self._up: Upstream | None = None
        self._buffer: list[bytes] | None = None
        self._chunked = False
        self._detour = ""
        self._last_byte = b"\n"

    def begin(self) -> None:
        """Send the request over a kept connection, or over a new one."""
        up = self.instance.checkout()
        if up is not None:
            self._transmit(up)
        else:
            self.call.dispatcher.spawn(self._connect())

    def stop(self) -> None:
        """Close the connection: what runs over it is cancelled, and nobody is told."""
        up, self._up = self._up, None
        if up is not None:
            up.close()

    @property
    def began(self) -> bool:
        """Whether a byte of an answer for the client has come."""
        up = self._up
        return not self._detour and up is not None and (up.got_bytes or up.answering)

    def pause(self) -> None:
        """The client reads slowly: so do we."""
        if self._up is not None and not self._up.closed:
            self._up.transport.pause_reading()

    def resume(self) -> None:
        """The client has caught up."""
        if self._up is not None and not self._up.closed:
            self._up.transport.resume_reading()

    def write_error(self, error: RequestError) -> None:
        """Tell the client in the stream itself why it ends here."""
        call, answer = self.call, self.answer
        if answer is None or answer.content_length >= 0:
            return  # that it is short says enough
        tail = b""
        if not is_encoded(answer):
            tail = error_tail(answer.content_type.lower(), error, call.request.id, self._last_byte)
        if tail:
            call.request.client.write(b"%x\r\n%b\r\n" % (len(tail), tail) if self._chunked else tail)
        elif not self._chunked:
            call.request.silent = True

    # -- Receiver (the instance) ------------------------------------------------------------

    def on_head(self, up: Upstream) -> None:
        """First byte: from here on the request is never sent again (but for refusals)."""
        answer = self.answer = read_answer(up.headers)
        self.status = up.status
        self._detour = self.call.judge(self, up.status, answer)
        if self._detour:
            if answer.refused == WAIT and self.instance.asking is self and self._detour == "full":
                self._wait_for_turn(up)
            return
        self.call.answering(self)
        if self.head_request or up.status in (204, 304) or 0 <= answer.content_length <= SMALL_ANSWER:
            self._buffer = []
        else:
            self._begin_stream(up, answer)

    def on_body(self, data: bytes) -> None:
        """Pass on, or collect while the answer is small."""
        if self._detour:
            return
        if self._buffer is not None:
            self._buffer.append(data)
            return
        self._last_byte = data[-1:]
        client = self.call.request.client
        client.write(b"%x\r\n%b\r\n" % (len(data), data) if self._chunked else data)

    def on_complete(self, up: Upstream, reusable: bool) -> None:
        """The answer is complete: keep the connection, free the slot, answer the client."""
        call = self.call
        client, request = call.request.client, call.request
        self._up = None
        if reusable:
            if not client.writable:
                up.transport.resume_reading()
            self.instance.keep(up)
        else:
            up.close()
        if self._detour:
            call.turned_away(self, self._detour)
            return
        if self._buffer is not None:
            answer = cast(Answer, self.answer)
            head = self._head_bytes(up.status, length_line(up.status, answer, self.head_request))
            call.answered(self, ok=up.status < 500)
            client.reply(request, head if self.head_request else head + b"".join(self._buffer))
        else:
            if self._chunked:
                client.write(b"0\r\n\r\n")
            elif request.head.http10:
                request.close = True
            call.answered(self, ok=up.status < 500)
            client.end(request)
        call.told()

    def on_lost(self, up: Upstream, detail: str) -> None:
        """The connection broke before the answer was complete."""
        self._up = None
        if self._detour:
            self.call.turned_away(self, self._detour)
        else:
            self.call.lost(self, detail, why="reset", began=self.answer is not None or up.got_bytes)

    # -- inside -----------------------------------------------------------------------------

    async def _connect(self) -> None:
        try:
            up = cast(Upstream, await open_connection(self.instance.route.address))
        except (OSError, AddressRefused) as error:
            if not self.outcome:
                self.call.not_accepted(self, error)
            return
        if not self.outcome:
            self._transmit(up)
        else:
            self.instance.keep(up)

    def _transmit(self, up: Upstream) -> None:
        self._up = up
        self.call.sending(self)
        up.send(self, self._request_bytes())

    def _request_bytes(self, extra: bytes = b"") -> bytes:
        call = self.call
        now = self.sent_at = time.monotonic()
        request = call.request
        instance = self.instance
        extra = instance.token_line + extra
        if call.alone:
            extra += ALONE_LINE
        elif now < instance.contended_until and self._asks(now):
            instance.asking = self
            extra += TURN_LINE
        tracing = call.dispatcher.tracing
        if tracing is not None or request.head.traceparent:
            extra += trace_line(tracing, self)
        left_ms = max(1, int((call.deadline - now) * 1000))
        return request.forwarded(call.path, self.number, left_ms, extra)

    def _asks(self, now: float) -> bool:
        """Whether it asks a contended instance for a turn, should that be full."""
        since, instance = self.call.queued_at, self.instance
        return 0.0 < since <= now - ASK_AFTER_S and instance.asking is None and instance.turn is None

    def _wait_for_turn(self, up: Upstream) -> None:
        """The refusal has an end to wait for, but not by this request: it was not started."""
        self._up = None
        if not self.call.request.client.writable:
            up.transport.resume_reading()
        self.instance.turn = Turn(self.call.dispatcher, self.instance, up)
        self.call.turned_away(self, self._detour)

    def _begin_stream(self, up: Upstream, answer: Answer) -> None:
        call = self.call
        request, client = call.request, call.request.client
        client.release_body(request)
        if answer.content_length >= 0:
            framing = b"Content-Length: %d\r\n" % answer.content_length
        elif request.head.http10:
            framing = b""
        else:
            self._chunked = True
            framing = b"Transfer-Encoding: chunked\r\n"
        call.head_sent = True
        client.write(self._head_bytes(up.status, framing))
        if not client.writable:
            self.pause()

    def _head_bytes(self, status: int, framing: bytes) -> bytes:
        answer = cast(Answer, self.answer)
        call, instance = self.call, self.instance
        waited = bool(call.queued_at) and instance.since > call.queued_at
        return answer_head(
            status,
            answer,
            framing,
            request_id=call.request.id,
            timing=server_timing(
                call.started,
                self.sent_at,
                answer.timing,
                instance.route if waited else None,
                lost_s(call.attempts, self) if len(call.attempts) > 1 else 0.0,
            ),
            attempt=self.number,
            close=call.request.client.closes(call.request),
        )


def lost_s(attempts: list[Attempt], last: Attempt) -> float:
    """Seconds before ``last`` was sent in which another attempt ran to no avail."""
    lost, until = 0.0, 0.0
    for attempt in attempts:
        if attempt.outcome in ("lost", "host-lost", "retried", "beaten") and attempt.sent_at:
            end = min(attempt.ended, last.sent_at)
            lost += max(0.0, end - max(attempt.sent_at, until))
            until = max(until, end)
    return lost
