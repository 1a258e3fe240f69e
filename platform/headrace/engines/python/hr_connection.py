"""One HTTP connection: requests one after another, their bodies within bounds, answers, streams, hang-ups."""

from __future__ import annotations

import asyncio
import hmac
import time
from typing import Any, Callable, List, Optional, Protocol, Set

import hr_http
from hr_http import BadHttp, Head
from hr_problem import CONTENT_TYPE, Problem

_LINGER_S = 1.0
"""After an answer that leaves a body unread, the client gets this long to read it."""
_MAX_BACKLOG = 256 << 10
"""Bytes kept of pipelined requests before reading pauses."""
_JOIN_BELOW = 64 << 10


class Feed(Protocol):
    """Who takes a connection over after an upgrade."""

    def feed(self, data: bytes) -> None:
        """Bytes arrived."""
        ...

    def lost(self) -> None:
        """The connection ended."""
        ...


class Keep(Protocol):
    """Who keeps answers."""

    def put(self, request_id: str, status: int, content_type: bytes, body: bytes, extra: bytes) -> None:
        """Keep one, or not."""
        ...


class Site(Protocol):
    """What a connection needs to know of its server."""

    token: bytes
    max_body: int
    draining: bool
    connections: Set["Connection"]

    def handle(self, x: "Exchange") -> None:
        """Answer one request, now or later."""
        ...

    def gone(self, connection: "Connection") -> None:
        """It has ended."""
        ...


class Exchange:
    """One request and its answer. Calls that come after the answer or after the client left do nothing."""

    __slots__ = (
        "body", "cancel", "cancelled", "conn", "deadline", "done", "head", "kept", "request_id", "slot",
        "started", "streaming",
    )  # fmt: skip

    def __init__(self, conn: "Connection", head: Head, body: bytes) -> None:
        self.conn = conn
        self.head = head
        self.body = body
        self.request_id = head.index.get(b"x-headrace-request-id", b"").decode("latin-1")
        self.started = time.monotonic()
        self.deadline = 0.0
        """On the monotonic clock; 0: none."""
        self.done = False
        """The answer is complete, or nobody waits for it."""
        self.cancelled = False
        self.streaming = False
        self.slot = False
        self.kept: Optional[Keep] = None
        """Keeps the answer for who asks for it again, also when nobody waits for it now."""
        self.cancel: Optional[Callable[[], None]] = None
        """Called when the work should end early; the slot is freed when it has."""

    def _timing(self) -> bytes:
        return b"X-Headrace-Timing: %.3f\r\n" % ((time.monotonic() - self.started) * 1000)

    def respond(self, status: int, content_type: bytes, body: bytes, extra: bytes = b"") -> None:
        """The whole answer; ``extra`` is further header lines, each with its line end."""
        if self.kept is not None and not self.streaming:
            self.kept.put(self.request_id, status, content_type, body, extra)
        if self.done or self.streaming:
            return
        conn = self.conn
        if conn.site.draining:
            self.head.keep_alive = False
        close = b"" if self.head.keep_alive else b"Connection: close\r\n"
        kind = b"Content-Type: " + content_type + b"\r\n" if content_type else b""
        size = b"" if status in (204, 304) else b"Content-Length: %d\r\n" % len(body)
        reason = hr_http.REASONS.get(status) or b"%d Unknown" % status
        start = b"".join((b"HTTP/1.1 ", reason, b"\r\n", kind, size, self._timing(), extra, close, b"\r\n"))
        if self.head.method == b"HEAD" or status in (204, 304):
            body = b""
        if len(body) < _JOIN_BELOW:
            conn.write(start + body)
        else:
            conn.write(start)
            conn.write(body)
        self._finish()

    def problem(self, problem: Problem, extra: bytes = b"") -> None:
        """A problem document as the answer."""
        if "allow" in problem.extra:
            extra += b"Allow: " + ", ".join(problem.extra["allow"]).encode() + b"\r\n"
        self.respond(problem.status, CONTENT_TYPE, problem.encode(self.request_id), extra)

    def begin(self, status: int, content_type: bytes, extra: bytes = b"", *, sized: bool = False) -> None:
        """Start a streamed answer: chunked, or as ``extra`` says when ``sized``."""
        if self.done or self.streaming:
            return
        if self.conn.site.draining or not (self.head.http11 or sized):
            self.head.keep_alive = False
        self.streaming = True
        self.conn.chunked = self.head.http11 and not sized
        lines = [b"HTTP/1.1 ", hr_http.REASONS.get(status) or b"%d Unknown" % status, b"\r\n"]
        if content_type:
            lines += [b"Content-Type: ", content_type, b"\r\nCache-Control: no-store\r\n"]
        lines += [self._timing(), extra]
        if self.conn.chunked:
            lines.append(b"Transfer-Encoding: chunked\r\n")
        if not self.head.keep_alive:
            lines.append(b"Connection: close\r\n")
        lines.append(b"\r\n")
        self.conn.write(b"".join(lines))

    def send(self, data: bytes) -> None:
        """A piece of a streamed answer."""
        if self.done or not data or self.head.method == b"HEAD":
            return
        self.conn.write(b"%x\r\n%b\r\n" % (len(data), data) if self.conn.chunked else data)

    def end(self) -> None:
        """The end of a streamed answer."""
        if self.done:
            return
        if self.conn.chunked and self.head.method != b"HEAD":
            self.conn.write(b"0\r\n\r\n")
        self._finish()

    def end_upgraded(self) -> None:
        """The end of what took the connection over."""
        if not self.done:
            self._finish()

    def abort(self) -> None:
        """Break the connection off: the client must not take what it has for a whole answer."""
        if not self.done:
            self.done = True
            self.conn.abort()

    def when_writable(self, call: Callable[[], None]) -> None:
        """Call when the client has taken enough of what was written; at once when it has, or has left."""
        if self.conn.paused and not self.done:
            self.conn.waiting.append(call)
        else:
            call()

    async def drain(self) -> None:
        """Wait until the client has taken enough of what was written."""
        if self.conn.paused and not self.done:
            waiter: asyncio.Future[None] = self.conn.loop.create_future()
            self.conn.waiting.append(lambda: None if waiter.done() else waiter.set_result(None))
            await waiter
        elif self.conn.ending:
            # Who only writes would keep the loop from telling that the client has left.
            await asyncio.sleep(0)

    def _finish(self) -> None:
        self.done = True
        self.conn.finished(self)


class Connection(asyncio.Protocol):
    """Parses requests and hands one at a time to the site; pipelined ones wait."""

    def __init__(self, site: Site, loop: asyncio.AbstractEventLoop) -> None:
        self.site = site
        self.loop = loop
        self.chunked = False
        self.paused = False
        self.waiting: List[Callable[[], None]] = []
        self.current: Optional[Exchange] = None
        self._transport: Any = None
        self._buffer = bytearray()
        self._head: Optional[Head] = None
        self._decoder: Optional[hr_http.ChunkedDecoder] = None
        self._advancing = False
        self._reading = True
        self._deaf = False
        """What arrives is dropped: the connection is ending."""
        self._upgraded: Optional[Feed] = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the loop."""
        self._transport = transport
        self.site.connections.add(self)

    def connection_lost(self, exc: Optional[Exception]) -> None:
        """Called by the loop: whatever runs for this connection is cancelled; who took it over sees to it."""
        self.site.gone(self)
        self._deaf = True
        x, self.current = self.current, None
        if x is not None and not x.done:
            x.done = x.cancelled = True
            if x.cancel is not None and self._upgraded is None:
                x.cancel()
        if self._upgraded is not None:
            self._upgraded.lost()
        self.resume_writing()

    def pause_writing(self) -> None:
        """Called by the loop: the client reads slower than we write."""
        self.paused = True

    def resume_writing(self) -> None:
        """Called by the loop."""
        self.paused = False
        waiting, self.waiting = self.waiting, []
        for call in waiting:
            call()

    def data_received(self, data: bytes) -> None:
        """Called by the loop."""
        if self._deaf:
            return
        if self._upgraded is not None:
            self._upgraded.feed(data)
            return
        self._buffer += data
        if self.current is None:
            self._advance()
        elif len(self._buffer) > _MAX_BACKLOG and self._reading:
            self._reading = False
            self._transport.pause_reading()

    def write(self, data: bytes) -> None:
        """To the client, unless it has left."""
        if not self._transport.is_closing():
            self._transport.write(data)

    def close(self) -> None:
        """End after what was written."""
        self._deaf = True
        self._transport.close()

    def abort(self) -> None:
        """End now."""
        self._deaf = True
        self._transport.abort()

    @property
    def ending(self) -> bool:
        """What is written now goes nowhere."""
        return bool(self._transport.is_closing())

    def unsent(self) -> int:
        """Bytes that the client has not taken yet."""
        return int(self._transport.get_write_buffer_size())

    def close_if_idle(self) -> None:
        """End a keep-alive connection on which nothing happens."""
        if self.current is None and not self._buffer and self._head is None:
            self.close()

    def upgrade(self, feed: Feed) -> None:
        """Hand all further bytes to ``feed``."""
        self._upgraded = feed
        if self._buffer:
            data = bytes(self._buffer)
            self._buffer.clear()
            feed.feed(data)

    def finished(self, x: Exchange) -> None:
        """The answer to the current request is complete."""
        self.current = None
        if not x.head.keep_alive:
            self._linger()
            return
        if not self._reading:
            self._reading = True
            self._transport.resume_reading()
        if self._buffer and not self._advancing:
            # Not at once: whoever answered may still have to give back the slot that the next one needs.
            self.loop.call_soon(self._advance)

    def _advance(self) -> None:
        self._advancing = True
        try:
            while self.current is None and not self._deaf and self._upgraded is None and self._step():
                pass
        except BadHttp as error:
            self._refuse(error)
        finally:
            self._advancing = False

    def _step(self) -> bool:
        """One head or body out of the buffer; False when more bytes are needed."""
        buffer = self._buffer
        head = self._head
        if head is None:
            while buffer.startswith(b"\r\n"):
                del buffer[:2]
            end = buffer.find(b"\r\n\r\n")
            if end > hr_http.MAX_HEAD or (end < 0 and len(buffer) > hr_http.MAX_HEAD):
                raise BadHttp("header-too-large", f"the header is above {hr_http.MAX_HEAD} bytes")
            if end < 0:
                return False
            head = hr_http.parse_head(bytes(buffer[:end]))
            del buffer[: end + 4]
            self._head = head
            self._admit(head)
        if head.length is None:
            if self._decoder is None:
                self._decoder = hr_http.ChunkedDecoder(self.site.max_body)
            data = bytes(buffer)
            buffer.clear()
            rest = self._decoder.feed(data)
            if rest is None:
                return False
            buffer += rest
            body = self._decoder.body()
            self._decoder = None
        elif len(buffer) < head.length:
            return False
        else:
            body = bytes(buffer[: head.length])
            del buffer[: head.length]
        self._head = None
        self.current = x = Exchange(self, head, body)
        self.site.handle(x)
        return True

    def _admit(self, head: Head) -> None:
        """Check what can be checked before the body arrives."""
        given = head.index.get(b"x-headrace-token", b"")
        if not hmac.compare_digest(given, self.site.token):
            raise BadHttp(
                "forbidden", "the instance's token is missing or wrong: requests go through the gateway"
            )
        if head.length is not None and head.length > self.site.max_body:
            raise BadHttp(
                "body-too-large", f"the body of {head.length} bytes is above {self.site.max_body} bytes"
            )
        expect = head.index.get(b"expect")
        if expect is not None and head.http11 and head.length != 0 and expect.lower() == b"100-continue":
            self.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def _refuse(self, error: BadHttp) -> None:
        head = self._head or Head(b"GET", b"/", True, [], {})
        head.keep_alive = False
        self._head = None
        self.current = x = Exchange(self, head, b"")
        x.problem(Problem(error.slug, str(error)))

    def _linger(self) -> None:
        # Closing with unread bytes resets the connection and may lose the answer: let the client read first.
        self._deaf = True
        self._buffer.clear()
        if self._transport.is_closing():
            return
        try:
            self._transport.write_eof()
        except (OSError, RuntimeError, NotImplementedError, AttributeError):
            self._transport.close()
            return
        self.loop.call_later(_LINGER_S, self._transport.close)
