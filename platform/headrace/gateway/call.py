"""One request to an endpoint, from its place in the queue to its last byte, over all its attempts.

    queued -> connecting -> running -> answering -> done
       ^__________|____________|___(lost)___^   (never again after the first byte of an answer)

A request whose instance died, and that no other gets, is *lost*: its error waits a moment for the reason.
Everything is a callback: there is no task per request, only one per new connection.
"""

from __future__ import annotations

import errno
import itertools
import logging
import time
from functools import partial
from typing import TYPE_CHECKING, cast

from headrace.errors import DeadlineExceeded, RequestError
from headrace.gateway.answer import (
    HOST_LOST,
    Fate,
    answer_head,
    counts,
    error_tail,
    length_line,
    lost_error,
    server_timing,
)
from headrace.gateway.head import Answer, read_answer
from headrace.gateway.request import Request
from headrace.gateway.upstream import AddressRefused, Upstream, open_connection

if TYPE_CHECKING:
    from headrace.gateway.dispatch import Dispatcher, Trouble
    from headrace.gateway.endpoints import EndpointState, Instance

log = logging.getLogger("headrace.gateway")

QUEUED, CONNECTING, RUNNING, ANSWERING, LOST, DONE = range(6)
REASON_WAIT_S = 0.15
"""The host sees why an instance died and tells control, which tells us: so long an error waits for it."""
SMALL_ANSWER = 256 << 10
"""Answers up to this size are forwarded in one write."""


_order = itertools.count(1)


class Call:
    """See the module. Is the `Exchange` of its client and the `Receiver` of its instance."""

    __slots__ = (
        "_answer",
        "_buffer",
        "_chunked",
        "_deadline",
        "_detour",
        "_dispatcher",
        "_fate",
        "_last_byte",
        "_path",
        "_serial",
        "_started",
        "_timer",
        "_up",
        "attempt",
        "avoid",
        "head_request",
        "head_sent",
        "instance",
        "order",
        "phase",
        "queued_at",
        "request",
        "retries_used",
        "sent_at",
        "size",
        "state",
        "version",
    )

    def __init__(  # noqa: PLR0917
        self,
        dispatcher: Dispatcher,
        request: Request,
        state: EndpointState,
        version: int | None,
        path: bytes,
        timeout_s: float,
    ) -> None:
        self._dispatcher = dispatcher
        self.request = request
        self.state = state
        self.version = version
        self.size = len(request.body)
        self.head_request = request.head.method == b"HEAD"
        self._path = path
        self.phase = QUEUED
        self.attempt = 1
        self.retries_used = 0
        self.avoid = ""
        self.order = next(_order)
        self.queued_at = 0.0
        self.sent_at = 0.0
        self.instance: Instance | None = None
        self._up: Upstream | None = None
        self._serial = 0
        self.head_sent = False
        self._answer: Answer | None = None
        self._buffer: list[bytes] | None = None
        self._chunked = False
        self._detour = ""
        self._last_byte = b"\n"
        self._fate: tuple[str, Fate] = ("", "began")
        self._started = time.monotonic()
        self._deadline = self._started + timeout_s
        request.exchange = self
        self._timer = dispatcher.loop.call_later(timeout_s, self._expired)

    # -- what the dispatcher asks -----------------------------------------------------------

    def run(self, instance: Instance) -> None:
        """A slot is ours: send the request there."""
        self.instance = instance
        self._serial += 1
        up = instance.checkout()
        if up is not None:
            self._transmit(up)
        else:
            self.phase = CONNECTING
            self._dispatcher.spawn(self._connect(instance, self._serial))

    def fail(self, error: RequestError) -> None:
        """Answer with a problem document, or cut an answer that has begun."""
        if self.phase == DONE:
            return
        self._close_upstream()
        if self.head_sent:
            self._cut(error)
            return
        self._done(ok=False)
        self.request.client.fail(self.request, error, self._attempt_line())

    def instance_dead(self, reason: str) -> None:
        """Control says that the instance is gone, and why: go elsewhere at once."""
        if self.phase == LOST:
            if self._fate[1] == "retries" and not counts(reason):
                self._resume()
            else:
                self._give_up(reason)
            return
        self._lose(reason or HOST_LOST, began=self._began(), count=counts(reason), known=True)

    # -- Exchange (the client) --------------------------------------------------------------

    def cancel(self) -> None:
        """The client hung up: closing the connection to the instance cancels the work there."""
        if self.phase != DONE:
            self._close_upstream()
            self._done(ok=True)

    def pause(self) -> None:
        """The client reads slowly: so do we."""
        if self._up is not None and not self._up.closed:
            self._up.transport.pause_reading()

    def resume(self) -> None:
        """The client has caught up."""
        if self._up is not None and not self._up.closed:
            self._up.transport.resume_reading()

    # -- Receiver (the instance) ------------------------------------------------------------

    def on_head(self, up: Upstream) -> None:
        """First byte: from here on the request is never sent again (but for refusals)."""
        self.phase = ANSWERING
        answer = self._answer = read_answer(up.headers)
        route = self.state.route
        if answer.refused and up.status == 503:
            self._detour = "draining" if answer.refused == b"draining" else "full"
        elif (
            answer.exception
            and up.status == 500
            and route.retry_on
            and self.retries_used < route.retries
            and answer.exception.decode("latin-1") in route.retry_on
        ):
            self._detour = "retry"
        elif self.head_request or up.status in (204, 304) or 0 <= answer.content_length <= SMALL_ANSWER:
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
        if self._chunked:
            self.request.client.write(b"%x\r\n%b\r\n" % (len(data), data))
        else:
            self.request.client.write(data)

    def on_complete(self, up: Upstream, reusable: bool) -> None:
        """The answer is complete: keep the connection, free the slot, answer the client."""
        instance = cast("Instance", self.instance)
        self._up = None
        if reusable:
            if not self.request.client.writable:
                up.transport.resume_reading()
            instance.keep(up)
        else:
            up.close()
        if self._detour:
            self._take_detour(instance)
            return
        client, request = self.request.client, self.request
        ok = up.status < 500
        if self._buffer is not None:
            answer = cast(Answer, self._answer)
            head = self._head_bytes(up.status, answer, length_line(up.status, answer, self.head_request))
            self._done(ok=ok)
            client.reply(request, head if self.head_request else head + b"".join(self._buffer))
            return
        if self._chunked:
            client.write(b"0\r\n\r\n")
        elif request.head.http10:
            request.close = True
        self._done(ok=ok)
        client.end(request)

    def on_lost(self, up: Upstream, detail: str) -> None:
        """The connection broke before the answer was complete."""
        self._up = None
        instance = cast("Instance", self.instance)
        self._dispatcher.trouble(instance, "reset", detail)
        self._lose(detail, began=self.phase == ANSWERING or up.got_bytes, count=True, known=False)

    # -- inside -----------------------------------------------------------------------------

    async def _connect(self, instance: Instance, serial: int) -> None:
        try:
            up = cast(Upstream, await open_connection(instance.route.address))
        except (OSError, AddressRefused) as error:
            if serial == self._serial and self.phase == CONNECTING:
                self._not_accepted(instance, error)
            return
        if serial == self._serial and self.phase == CONNECTING:
            self._transmit(up)
        else:
            instance.keep(up)

    def _not_accepted(self, instance: Instance, error: Exception) -> None:
        """Nothing was sent: any other instance may have it, however often."""
        if isinstance(error, OSError) and error.errno == errno.EAGAIN:
            self._dispatcher.full(instance)
        else:
            what: Trouble = "timeout" if isinstance(error, TimeoutError) else "refused"
            self._dispatcher.trouble(instance, what, str(error) or type(error).__name__)
        self._back_to_queue()

    def _transmit(self, up: Upstream) -> None:
        self._up = up
        self.phase = RUNNING
        up.send(self, self._request_bytes())

    def _request_bytes(self) -> bytes:
        now = self.sent_at = time.monotonic()
        instance = cast("Instance", self.instance)
        left_ms = max(1, int((self._deadline - now) * 1000))
        extra = instance.token_line + self._extra_lines()
        return self.request.forwarded(self._path, self.attempt, left_ms, extra)

    def _extra_lines(self) -> bytes:
        return b""

    def _begin_stream(self, up: Upstream, answer: Answer) -> None:
        request, client = self.request, self.request.client
        client.release_body(request)
        if answer.content_length >= 0:
            framing = b"Content-Length: %d\r\n" % answer.content_length
        elif request.head.http10:
            framing = b""
        else:
            self._chunked = True
            framing = b"Transfer-Encoding: chunked\r\n"
        self.head_sent = True
        client.write(self._head_bytes(up.status, answer, framing))
        if not client.writable:
            self.pause()

    def _head_bytes(self, status: int, answer: Answer, framing: bytes) -> bytes:
        instance = cast("Instance", self.instance)
        waited = bool(self.queued_at) and instance.since > self.queued_at
        return answer_head(
            status,
            answer,
            framing,
            request_id=self.request.id,
            timing=server_timing(
                self._started, self.sent_at, answer.timing, instance.route if waited else None
            ),
            attempt=self.attempt,
            close=self.request.client.closes(self.request),
        )

    def _attempt_line(self) -> bytes:
        return b"X-Headrace-Attempt: %d\r\n" % self.attempt if self.attempt > 1 else b""

    def _take_detour(self, instance: Instance) -> None:
        detour, self._detour = self._detour, ""
        self._answer = None
        if detour == "retry":
            self.retries_used += 1
            self.attempt += 1
            self.avoid = instance.route.id
            self._back_to_queue(answered=True)
            return
        if detour == "draining":
            self._dispatcher.drains(instance)
        else:
            self._dispatcher.full(instance)
        self._back_to_queue()

    def _began(self) -> bool:
        up = self._up
        return self.head_sent or (up is not None and (up.got_bytes or up.answering))

    def _lose(self, detail: str, *, began: bool, count: bool, known: bool) -> None:
        """The instance is lost under the request: send it elsewhere, or say why not.

        ``known``: all that control will say of its death is in the detail.
        """
        route = self.state.route
        fate: Fate
        if began:
            fate = "began"
        elif self.phase == RUNNING and not route.idempotent:
            fate = "once"
        elif count and self.retries_used >= route.retries:
            fate = "retries"
        else:
            self.retries_used += count
            self.attempt += self.phase == RUNNING
            self._close_upstream()
            self._back_to_queue()
            return
        self._fate = detail, fate
        if known:
            self._give_up(detail)
            return
        self._close_upstream()
        self.phase = LOST
        self._timer.cancel()
        self._timer = self._dispatcher.loop.call_later(REASON_WAIT_S, self._unexplained)

    def _unexplained(self, *, uncertain: bool = False) -> None:
        """Control has not said why in time; ``uncertain``: it could not know, see `Dispatcher.uncertain`."""
        left = self._deadline - time.monotonic()
        if left <= 0 or self._fate[1] != "retries":
            self._give_up("")
        elif self._dispatcher.uncertain(cast("Instance", self.instance)):
            again = partial(self._unexplained, uncertain=True)
            self._timer = self._dispatcher.loop.call_later(min(left, REASON_WAIT_S), again)
        elif uncertain:
            # It was the host, the machine or the platform that ended or stood still.
            self._resume()
        else:
            self._give_up("")

    def _resume(self) -> None:
        """It was the end of its host, which costs no retry."""
        self._timer.cancel()
        left = max(0.0, self._deadline - time.monotonic())
        self._timer = self._dispatcher.loop.call_later(left, self._expired)
        self.attempt += 1
        self._back_to_queue()

    def _give_up(self, reason: str) -> None:
        """No other instance gets it: tell the client why, as far as that is known."""
        detail, fate = self._fate
        self.fail(lost_error(reason or detail, fate, self.attempt))

    def _back_to_queue(self, *, answered: bool = False) -> None:
        instance, self.instance = self.instance, None
        self.phase = QUEUED
        self._serial += 1
        self._up = None
        self._buffer = None
        if instance is not None:
            self._dispatcher.release(self, instance, answered=answered, refill=False)
        self._dispatcher.requeue(self)

    def _done(self, *, ok: bool) -> None:
        """Free everything that the request holds; idempotent."""
        if self.phase == DONE:
            return
        was_queued = self.phase == QUEUED
        self.phase = DONE
        self._timer.cancel()
        self._serial += 1
        state = self.state
        if was_queued:
            self._dispatcher.remove(self)
        instance = self.instance
        if instance is not None:
            self.instance = None
            if self.sent_at:
                state.count(time.monotonic() - self.sent_at, ok)
            self._dispatcher.release(self, instance, answered=True)

    def _close_upstream(self) -> None:
        up, self._up = self._up, None
        if up is not None:
            up.close()

    def _cut(self, error: RequestError) -> None:
        """An answer that has begun cannot become an error: end it so that nobody takes it for whole."""
        client, request = self.request.client, self.request
        media = self._answer.content_type.lower() if self._answer is not None else b""
        tail = error_tail(media, error, request.id, self._last_byte)
        if tail:
            client.write(b"%x\r\n%b\r\n" % (len(tail), tail) if self._chunked else tail)
        self._done(ok=False)
        client.cut(request)

    def _expired(self) -> None:
        where = {
            QUEUED: self.state.why_waiting(self.version),
            CONNECTING: "connecting to an instance",
            RUNNING: "running in an instance",
            ANSWERING: "being answered by an instance",
        }.get(self.phase, "done")
        seconds = self._deadline - self._started
        self.fail(
            DeadlineExceeded(
                f"the deadline of {seconds:g} s passed while the request was {where}.", where=where.split()[0]
            )
        )
