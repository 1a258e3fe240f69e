"""The client of a call under ``/v1``: errors in OpenAI's shape, and a stream that says that it waits.

`OpenAiClient` stands between a `Call` and the connection, and has the methods that a call uses of one.
Everything of the instance passes as it is; what the gateway adds are comment lines before the first event
(``: waking, 1.2 s``), which event streams ignore, and one last event when something goes wrong.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import msgspec

from headrace.errors import PROBLEM_CONTENT_TYPE, RequestError, from_problem
from headrace.gateway.call import Call
from headrace.gateway.client import ClientConnection
from headrace.gateway.openai_errors import error_event, error_object, error_of_body, openai_error
from headrace.gateway.request import Request
from headrace.gateway.respond import status_line

COMMENT_PERIOD_S = 1.0
"""A stream that waits says so after so long, and then as often."""
MAX_ERROR_BYTES = 64 << 10
_SSE = b"text/event-stream"
_PROBLEM = PROBLEM_CONTENT_TYPE.encode()


class OpenAiClient:
    """See the module. ``waits`` says why the request has no instance yet; empty: it has one."""

    def __init__(
        self, connection: ClientConnection, request: Request, waits: Callable[[], str] | None = None
    ) -> None:
        self._connection = connection
        self._request = request
        self._waits = waits
        self._began_at = time.monotonic()
        self._begun = False
        """We have sent a head of our own."""
        self._head_seen = False
        self._pass = False
        """Pieces come framed as the client expects them."""
        self._chunked = False
        """Whether the client gets chunks."""
        self._stream = False
        """The answer is an event stream."""
        self._last = b"\n\n"
        self._error_status = 0
        self._error_body = b""
        self._over = False
        self._timer: asyncio.TimerHandle | None = None
        if waits is not None:
            self._timer = asyncio.get_running_loop().call_later(COMMENT_PERIOD_S, self._comment)

    # -- what a Call uses ---------------------------------------------------------------------

    @property
    def writable(self) -> bool:
        """Whether the client keeps up."""
        return self._connection.writable

    @property
    def gone(self) -> bool:
        """Whether the client hung up."""
        return self._connection.gone

    def closes(self, request: Request) -> bool:
        """Whether the connection ends with this answer."""
        return self._connection.closes(request)

    def release_body(self, request: Request) -> None:
        """The body is not needed again."""
        self._connection.release_body(request)

    def take_over(self, request: Request, tunnel: object) -> tuple[asyncio.Transport, bytes]:
        """Upgrades are no part of this contract."""
        raise NotImplementedError("no tunnels under /v1")

    def reply(self, request: Request, data: bytes) -> None:
        """The whole answer."""
        self._stop_comments()
        head, _, body = data.partition(b"\r\n\r\n")
        if not self._begun:
            if _PROBLEM in _content_type(head):
                status = int(head[9:12])
                found = from_problem(status, _problem(body))
                retry_after = _header(head, b"retry-after:")
                if retry_after.isdigit():
                    found.extra["retry_after"] = int(retry_after)
                self._connection.reply(request, openai_error(found, request.id, close=self.closes(request)))
                return
            self._connection.reply(request, data)
            return
        status = int(head[9:12])
        if status == 200 and _SSE in _content_type(head):
            self._send(body)
            self._finish()
        else:
            self._fail_stream(_refused(status, body, head))

    def write(self, data: bytes) -> None:
        """The head first, then pieces of the body."""
        if self._over:
            return
        if not self._head_seen:
            self._head_seen = True
            self._stop_comments()
            head, _, rest = data.partition(b"\r\n\r\n")
            self._stream = _SSE in _content_type(head)
            framed = b"\r\ntransfer-encoding: chunked" in head.lower()
            if not self._begun:
                self._chunked = self._pass = framed
                self._connection.write(data)
                return
            self._pass = framed or not self._chunked
            status = int(head[9:12])
            if status != 200 or not self._stream:
                self._error_status = status
            data = rest
            if not data:
                return
        error = self._error()
        if error is not None and self._stream:
            # The call writes the end of a broken stream as it writes others: in our shape, it is `cut`'s.
            return
        if self._error_status:
            piece = data.partition(b"\r\n")[2][:-2] if self._pass and self._chunked else data
            self._error_body = (self._error_body + piece)[:MAX_ERROR_BYTES]
            return
        if self._pass:
            if self._chunked and data.startswith(b"0\r\n"):
                self._connection.write(data)
                return
            self._last = (self._last + (data[-4:-2] if self._chunked else data[-2:]))[-2:]
            self._connection.write(data)
        elif self._begun:
            self._send(data)
        else:
            self._last = (self._last + data[-2:])[-2:]
            self._connection.write(data)

    def end(self, request: Request) -> None:
        """The answer is complete."""
        if self._over:
            return
        if self._error_status:
            self._fail_stream(_refused(self._error_status, self._error_body, b""))
        elif self._begun and not self._pass:
            self._finish()
        else:
            self._connection.end(request)

    def fail(self, request: Request, error: RequestError, extra: bytes = b"") -> None:
        """There is no answer."""
        self._stop_comments()
        if self._begun:
            self._fail_stream(error_object(error))
            return
        head_only = request.head.method == b"HEAD"
        close = self.closes(request)
        self._connection.reply(
            request, openai_error(error, request.id, close=close, head_only=head_only, extra=extra)
        )

    def cut(self, request: Request) -> None:
        """The answer breaks off: an event says why, when there is room for one."""
        self._stop_comments()
        if self._over:
            return
        error = self._error() or RequestError("the answer broke off.")
        if self._stream and (self._chunked or self._begun or self._request.head.http10):
            self._fail_stream(error_object(error))
        else:
            self._connection.cut(request)

    # -- inside -------------------------------------------------------------------------------

    def _error(self) -> RequestError | None:
        exchange = self._request.exchange
        return exchange.error if isinstance(exchange, Call) else None

    def _stop_comments(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _comment(self) -> None:
        self._timer = None
        exchange = self._request.exchange
        if self.gone or self._waits is None or (isinstance(exchange, Call) and exchange.done):
            return
        self._timer = asyncio.get_running_loop().call_later(COMMENT_PERIOD_S, self._comment)
        why = self._waits()
        # With an instance there is an answer soon, and whoever only queues keeps a status of its own.
        if why != "waking" and not self._begun:
            return
        if not self._begun:
            self._begin()
        if self.writable:
            seconds = time.monotonic() - self._began_at
            self._send(b": %b, %.1f s\n\n" % ((why or "running").encode(), seconds))

    def _begin(self) -> None:
        request = self._request
        self._begun = self._stream = True
        self._chunked = not request.head.http10
        if not self._chunked:
            request.close = True
        self._connection.write(
            b"%bContent-Type: text/event-stream; charset=utf-8\r\nCache-Control: no-store\r\n"
            b"X-Content-Type-Options: nosniff\r\nX-Headrace-Request-Id: %b\r\nX-Request-Id: %b\r\n%b%b\r\n"
            % (
                status_line(200),
                request.id.encode(),
                request.id.encode(),
                b"Transfer-Encoding: chunked\r\n" if self._chunked else b"",
                b"Connection: close\r\n" if self.closes(request) else b"",
            )
        )

    def _send(self, data: bytes) -> None:
        if data:
            self._last = (self._last + data[-2:])[-2:]
            self._connection.write(b"%x\r\n%b\r\n" % (len(data), data) if self._chunked else data)

    def _fail_stream(self, found: dict[str, object]) -> None:
        self._stop_comments()
        # An event that was left unfinished must not run into the last one.
        self._send((b"" if self._last == b"\n\n" else b"\n\n") + error_event(found))
        self._finish()

    def _finish(self) -> None:
        self._stop_comments()
        self._over = True
        if self._chunked:
            self._connection.write(b"0\r\n\r\n")
        else:
            self._request.close = True
        self._connection.end(self._request)


def _refused(status: int, body: bytes, head: bytes) -> dict[str, object]:
    if status == 200:
        return error_object(
            RequestError(
                "the endpoint did not answer with an event stream.",
                hint="It must, when a request says stream=true.",
            )
        )
    return error_of_body(status, body)


def _problem(body: bytes) -> dict[str, object]:
    try:
        doc = msgspec.json.decode(body)
    except msgspec.DecodeError:
        return {}
    return doc if isinstance(doc, dict) else {}


def _header(head: bytes, name: bytes) -> bytes:
    """A header's value; ``name`` is in small letters and with its colon."""
    for line in head.split(b"\r\n")[1:]:
        if line[: len(name)].lower() == name:
            return line[len(name) :].strip()
    return b""


def _content_type(head: bytes) -> bytes:
    return _header(head, b"content-type:").lower()
