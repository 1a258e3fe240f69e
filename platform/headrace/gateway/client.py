"""One client's connection: parses its requests (llhttp), answers them in their order.

Limits, timeouts, ``Expect``, pipelining, back pressure and hanging up are decided here; what a
request means is not.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from typing import cast

import httptools

from headrace.errors import BadRequest, QueueFull, RequestError
from headrace.gateway.head import MAX_HEAD_BYTES, Head, HeadTooLarge, read_head
from headrace.gateway.openai_errors import openai_error, speaks_openai
from headrace.gateway.overhead import Overhead
from headrace.gateway.request import NO_HEAD, App, Request, Tunnel, skippable, too_large
from headrace.gateway.respond import CONTINUE, problem, reset_at_close
from headrace.gateway.sweep import STALL_S, Unsent

log = logging.getLogger("headrace.gateway")

HEAD_TIMEOUT_S = 30.0
"""A request's head must be complete after so many seconds, and its body must make progress in them."""
IDLE_TIMEOUT_S = 75.0
LINGER_S = 2.0
LINGER_BYTES = 1 << 20
"""What is read and dropped after an answer that came before the end of the body."""
MAX_PIPELINED = 128


class ClientConnection(asyncio.Protocol):
    """See the module. Answers are given with `reply`, or `begin`, `write` and `end`."""

    __slots__ = (
        "_advancing",
        "_app",
        "_discard",
        "_expiry",
        "_head_open",
        "_head_size",
        "_headers",
        "_incoming",
        "_overhead",
        "_parser",
        "_paused",
        "_pending",
        "_stopped",
        "_tail",
        "_transport",
        "_tunnel",
        "_url",
        "current",
        "gone",
        "unsent",
        "writable",
    )

    def __init__(self, app: App) -> None:
        self._app = app
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport = cast(asyncio.Transport, None)
        self._pending: deque[Request] = deque()
        self._incoming: Request | None = None
        self._headers: list[tuple[bytes, bytes]] = []
        self._url = b""
        self._head_open = False
        self._head_size = 0
        self._overhead = Overhead()
        self._expiry = 0.0
        self._stopped = False
        self._discard = 0
        self._paused = False
        self._advancing = False
        self._tunnel: Tunnel | None = None
        self._tail = b""
        self.unsent = Unsent()
        self.current: Request | None = None
        self.gone = False
        self.writable = True

    # -- asyncio.Protocol -------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Part of ``asyncio.Protocol``."""
        self._transport = cast(asyncio.Transport, transport)
        self._expiry = time.monotonic() + HEAD_TIMEOUT_S
        self._app.opened(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """Part of ``asyncio.Protocol``."""
        self.gone = True
        self._app.closed(self)
        current, self.current = self.current, None
        if current is not None:
            if current.exchange is not None:
                current.exchange.cancel()
            self.release_body(current)
        for request in self._pending:
            self.release_body(request)
        self._pending.clear()
        self._incoming = None
        if self._tunnel is not None:
            self._tunnel.client_closed()

    def eof_received(self) -> bool:
        """The client hung up (a half-closed connection is taken for that, too)."""
        return False

    def data_received(self, data: bytes) -> None:
        """Part of ``asyncio.Protocol``."""
        if self._tunnel is not None:
            self._tunnel.from_client(data)
            return
        if self._stopped:
            self._drop(data)
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._stopped = True
            self._tail = data[upgrade.args[0] :]
            if self._pending:
                self._pending[-1].close = True
        except httptools.HttpParserError as error:
            if not self._stopped:
                self._refuse(BadRequest(f"not well-formed HTTP: {error}."))
        beside = self._overhead.add(len(data))
        if self._head_open and not self._stopped:
            if beside > MAX_HEAD_BYTES or self._head_size > MAX_HEAD_BYTES:
                self._refuse(HeadTooLarge(f"the request head is above {MAX_HEAD_BYTES >> 10} KiB."))
        elif beside > MAX_HEAD_BYTES and not self._stopped:
            self._refuse(HeadTooLarge(f"what comes beside the body is above {MAX_HEAD_BYTES >> 10} KiB."))
        self._advance()

    def pause_writing(self) -> None:
        """Part of ``asyncio.Protocol``."""
        self.writable = False
        if self.current is not None and self.current.exchange is not None:
            self.current.exchange.pause()

    def resume_writing(self) -> None:
        """Part of ``asyncio.Protocol``."""
        self.writable = True
        if self.current is not None and self.current.exchange is not None:
            self.current.exchange.resume()

    # -- httptools --------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """A request begins."""
        if self._stopped:
            return
        self._incoming = Request(self)
        self._headers = []
        self._url = b""
        self._head_open = True
        self._head_size = 0
        self._overhead.reset()
        if self.current is None:
            self._expiry = time.monotonic() + HEAD_TIMEOUT_S

    def on_url(self, url: bytes) -> None:
        """A piece of the request target."""
        self._url += url
        self._head_size += len(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header, or (after the head) one trailer, which is dropped."""
        if self._head_open:
            self._head_size += len(name) + len(value) + 4
            self._headers.append((name, value))

    def on_headers_complete(self) -> None:
        """The head is complete: check it, and learn how large the body may be."""
        request = self._incoming
        if self._stopped or request is None:
            return
        self._head_open = False
        self._overhead.reset()
        try:
            if self._head_size > MAX_HEAD_BYTES:
                raise HeadTooLarge(f"the request head is above {MAX_HEAD_BYTES >> 10} KiB.")
            parser = self._parser
            head = read_head(parser.get_method(), self._url, parser.get_http_version(), self._headers)
            request.head = head
            request.close = head.close
            if head.has_body and parser.should_upgrade():
                raise BadRequest(
                    "a request to upgrade cannot have a body.", hint="Leave the Upgrade header out."
                )
            request.limit = self._app.admit(request)
            if head.content_length > request.limit:
                raise too_large(request.limit)
        except RequestError as error:
            self._refuse(error, stop=not skippable(request.head))
            return
        if len(self._pending) >= MAX_PIPELINED:
            self._refuse(BadRequest(f"more than {MAX_PIPELINED} pipelined requests."))
            return
        self._pending.append(request)

    def on_body(self, body: bytes) -> None:
        """A piece of the body."""
        self._overhead.body(len(body))
        request = self._incoming
        if self._stopped or request is None or request.failure is not None:
            return
        if request.held + len(body) > request.limit:
            self._refuse(too_large(request.limit))
        elif not self._app.hold(len(body)):
            self._refuse(
                QueueFull("this gateway holds as many bytes of request bodies as it may.", retry_after=1)
            )
        else:
            request.held += len(body)
            request.parts.append(body)
            self._expiry = time.monotonic() + HEAD_TIMEOUT_S if self.current is None else 0.0

    def on_message_complete(self) -> None:
        """The request is complete."""
        self._overhead.reset()
        request, self._incoming = self._incoming, None
        if self._stopped or request is None or request.failure is not None:
            return
        parts = request.parts
        if parts:
            request.body = parts[0] if len(parts) == 1 else b"".join(parts)
            request.parts = []
        request.ready = True
        if request.close:
            self._stopped = True

    # -- for those who answer ---------------------------------------------------------------

    def reply(self, request: Request, data: bytes) -> None:
        """Give the whole answer. It must carry ``Connection: close`` when ``request.close``."""
        self._transport.write(data)
        self.end(request)

    def write(self, data: bytes) -> None:
        """Give a part of the answer."""
        self._transport.write(data)

    def fail(self, request: Request, error: RequestError, extra: bytes = b"") -> None:
        """Answer with a problem document, or with what the clients of that path expect."""
        request.close = request.close or self._app.draining
        head_only = request.head.method == b"HEAD"
        make = openai_error if speaks_openai(request.head.target) else problem
        self.reply(request, make(error, request.id, close=request.close, head_only=head_only, extra=extra))

    def end(self, request: Request) -> None:
        """The answer is complete."""
        if self.gone or self.current is not request:
            return
        self.current = None
        unread = not request.ready
        self.release_body(request)
        if request.close or self._app.draining:
            self._stopped = True
            self._hang_up(unread)
            return
        self._expiry = time.monotonic() + (HEAD_TIMEOUT_S if self._incoming is not None else IDLE_TIMEOUT_S)
        if self._pending or self._paused:
            self._advance()

    def cut(self, request: Request) -> None:
        """The answer cannot be completed: flush what was written and close without its end."""
        if not self.gone and self.current is request:
            self.current = None
            self.release_body(request)
            if request.silent:
                reset_at_close(self._transport)
            self._transport.close()

    def closes(self, request: Request) -> bool:
        """Whether the connection ends with this request's answer (``Connection: close`` is due)."""
        if self._app.draining:
            request.close = True
        return request.close

    def take_over(self, request: Request, tunnel: Tunnel) -> tuple[asyncio.Transport, bytes]:
        """Use the connection as a tunnel from now on; gives the transport and the bytes that came early."""
        self._tunnel = tunnel
        self._pending.clear()
        self._expiry = 0.0
        self.release_body(request)
        tail, self._tail = self._tail, b""
        if self._paused:
            self._paused = False
            self._transport.resume_reading()
        return self._transport, tail

    # -- for the server ---------------------------------------------------------------------

    def sweep(self, now: float) -> None:
        """Close when the client is too slow, or idle for too long."""
        unsent = 0 if self.gone else self._transport.get_write_buffer_size()
        busy = self.current is not None or self._tunnel is not None
        if self.unsent.look(unsent, now) > (STALL_S if busy else IDLE_TIMEOUT_S):
            self._transport.abort()
        elif self._expiry and now > self._expiry and self.current is None and self._tunnel is None:
            if self._discard or not (self._incoming or self._pending):
                self._transport.abort() if self._discard else self._transport.close()
            else:
                self._transport.abort()

    def shut(self) -> None:
        """The gateway drains: close as soon as nothing is in flight."""
        if self.current is None and not self._pending and self._incoming is None:
            self._transport.close()

    def give_up(self, error: RequestError) -> None:
        """The gateway ends: whoever waits for an answer here gets this one, and the connection closes."""
        current = self.current
        if current is not None:
            if current.exchange is not None:
                current.exchange.fail(error)
        elif self._tunnel is None and not self._stopped and (self._incoming is not None or self._pending):
            self._refuse(error)
            self._advance()
        if not self._discard:
            self._transport.close()

    def hold_back(self, early: Tunnel) -> None:
        """What comes goes to ``early``, until `go_on`."""
        self._tunnel = early

    def stop_reading(self) -> None:
        """Leave what comes in the socket."""
        self._transport.pause_reading()

    def go_on(self, data: bytes) -> None:
        """Begin, with what came while it was held back."""
        self._tunnel = None
        if self.gone or self._transport.is_closing():
            return
        self._expiry = time.monotonic() + HEAD_TIMEOUT_S
        if not self._transport.is_reading():
            self._transport.resume_reading()
        if data:
            self.data_received(data)

    @property
    def stranger(self) -> bool:
        """Whether nothing is asked here yet by anybody that was let in."""
        return self.current is None and not self._pending and self._tunnel is None

    def abort(self) -> None:
        """Close at once."""
        if self._transport is not None:
            self._transport.abort()

    # -- inside -----------------------------------------------------------------------------

    def _refuse(self, error: RequestError, *, stop: bool = True) -> None:
        """Answer the incoming request with ``error`` when its turn comes; with ``stop`` read no further."""
        request = self._incoming or Request(self)
        if request.head is NO_HEAD and self._incoming is not None and speaks_openai(self._url):
            # Its head is of no use, but what its client understands is known.
            request.head = Head(b"GET", self._url)
        if request not in self._pending:
            self._pending.append(request)
        self._head_open = False
        request.failure = error
        if stop:
            request.close = True
            self._stopped = True
        else:
            request.ready = True

    def _advance(self) -> None:
        if self._advancing:
            return
        self._advancing = True
        pending = self._pending
        while pending and self.current is None and not self.gone:
            request = pending[0]
            if request.failure is not None:
                pending.popleft()
                self.current = request
                self._expiry = 0.0
                self.fail(request, request.failure)
            elif request.ready:
                pending.popleft()
                self.current = request
                self._expiry = 0.0
                self._app.answer(request)
            else:
                if request.head.expect and not request.continued:
                    request.continued = True
                    self._transport.write(CONTINUE)
                break
        self._advancing = False
        if self.gone:
            return
        waiting = self.current is not None and bool(pending)
        if waiting != self._paused and not self._stopped:
            # While one request is answered, the bytes of those behind it wait in the socket.
            self._paused = waiting
            if waiting:
                self._transport.pause_reading()
            else:
                self._transport.resume_reading()

    def release_body(self, request: Request) -> None:
        """The body is not needed again: give its bytes back to the budget."""
        if request.held:
            self._app.unhold(request.held)
            request.held = 0
        request.body = b""
        request.parts = []

    def _hang_up(self, unread: bool) -> None:
        if not unread:
            self._transport.close()
            return
        # Closing a socket with unread bytes resets it, and the reset can overtake the answer:
        # read a little more first.
        self._discard = LINGER_BYTES
        self._expiry = time.monotonic() + LINGER_S
        if self._transport.can_write_eof():
            self._transport.write_eof()

    def _drop(self, data: bytes) -> None:
        if self._discard:
            self._discard -= len(data)
            if self._discard <= 0:
                self._transport.abort()
