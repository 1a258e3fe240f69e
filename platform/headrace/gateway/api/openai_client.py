"""The client of a call under ``/v1``: errors in OpenAI's shape, and a stream that says that it waits.

`OpenAiClient` stands between a `Call` and the connection, and has the methods that a call uses of one.
Everything of the instance passes as it is; what the gateway adds are comment lines before the first event
(``: waking, 1.2 s``), which event streams ignore, and one last event when something goes wrong.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import msgspec

from headrace.errors import PROBLEM_CONTENT_TYPE, TYPE_PREFIX, GatewayStopping, RequestError, from_problem
from headrace.gateway.call import Call
from headrace.gateway.client import ClientConnection
from headrace.gateway.jobs.sync import StoredProblem, SyncExchange
from headrace.gateway.openai_errors import (
    error_event,
    error_object,
    error_of_body,
    openai_error,
    status_of,
)
from headrace.gateway.request import Exchange, Request
from headrace.gateway.respond import status_line

COMMENT_PERIOD_S = 1.0
"""A stream that waits says so after so long, and then as often."""
MAX_ERROR_BYTES = 64 << 10
MAX_EVENT_BYTES = 64 << 10
"""An event that is not complete is held back up to so many bytes: clients fail over half a one."""
_SSE = b"text/event-stream"
_ERROR_EVENT = b"event: error\ndata: "
"""How an instance's engine begins the last event of a stream whose handler raised."""
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
        self._sized = False
        """Whether the client was told how long the answer is."""
        self._stream = False
        """The answer is an event stream."""
        self._last = b"\n\n"
        self._held = b""
        """The beginning of an event whose end has not come."""
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
        if status == 200 and _SSE in _content_type(head) and not _encoding(head):
            self._send(body)
            self._finish()
        else:
            self._fail_stream(_refused(status, body, _encoding(head)))

    def write(self, data: bytes) -> None:
        """The head first, then pieces of the body."""
        if self._over:
            return
        if not self._head_seen:
            self._head_seen = True
            self._stop_comments()
            head, _, rest = data.partition(b"\r\n\r\n")
            encoding = _encoding(head)
            self._stream = _SSE in _content_type(head) and not encoding
            framed = b"\r\ntransfer-encoding: chunked" in head.lower()
            if not self._begun:
                self._chunked = self._pass = framed
                self._sized = b"\r\ncontent-length:" in head.lower()
                self._connection.write(data)
                return
            self._pass = framed or not self._chunked
            status = int(head[9:12])
            if encoding:
                self._fail_stream(_refused(status, b"", encoding))
                if self._request.exchange is not None:
                    asyncio.get_running_loop().call_soon(self._request.exchange.cancel)
                return
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
        if self._stream:
            self._pass_events(data)
        elif self._pass or not self._begun:
            self._connection.write(data)
        else:
            self._send(data)

    def end(self, request: Request) -> None:
        """The answer is complete."""
        if self._over:
            return
        self._flush()
        if self._error_status:
            self._fail_stream(_refused(self._error_status, self._error_body))
        elif self._begun and not self._pass:
            self._finish()
        else:
            self._connection.end(request)

    def fail(self, request: Request, error: RequestError, extra: bytes = b"") -> None:
        """There is no answer."""
        self._stop_comments()
        found = None
        if isinstance(error, StoredProblem) and error.doc is not None:
            error, found = _stored(error.doc, error)
        if self._begun:
            self._fail_stream(error_object(error) if found is None else found)
            return
        call = call_of(request.exchange)
        if isinstance(error, GatewayStopping) and call is not None and call.attempts:
            # As when an instance dies: a client is not to send again by itself what may run only once.
            extra += b"" if call.state.route.idempotent else b"X-Should-Retry: false\r\n"
        data = openai_error(error, request.id, close=self.closes(request), extra=extra, found=found)
        self._connection.reply(request, data)

    def cut(self, request: Request) -> None:
        """The answer breaks off: an event says why, when there is room for one."""
        self._stop_comments()
        if self._over:
            return
        error = self._error() or RequestError("the answer broke off.")
        if self._stream and not self._sized:
            self._fail_stream(error_object(error))
        else:
            self._connection.cut(request)

    # -- inside -------------------------------------------------------------------------------

    def _error(self) -> RequestError | None:
        call = call_of(self._request.exchange)
        return call.error if call is not None else None

    def _pass_events(self, data: bytes) -> None:
        """Events as they are, each one once it is complete."""
        framed = self._pass and self._chunked
        if framed and data[:3] == b"0\r\n":
            self._flush()
            self._connection.write(data)
            return
        complete = data.endswith(b"\n\n\r\n" if framed else b"\n\n")
        if complete and not self._held and self._pass and _ERROR_EVENT not in data:
            self._last = b"\n\n"
            self._connection.write(data)
            return
        if framed:
            data = data.partition(b"\r\n")[2][:-2]
        piece, data = data, self._held + data
        if (at := data.rfind(_ERROR_EVENT)) >= 0 and (found := _engine_problem(data[at:])) is not None:
            # The engine sends it by itself: what was held back until now is half an event of the handler's.
            alone = piece.lstrip(b"\n").startswith(_ERROR_EVENT)
            self._send(b"" if alone else data[: events_end(data[:at])])
            self._fail_stream(error_object(found))
            return
        end = events_end(data)
        if len(data) - end > MAX_EVENT_BYTES:
            end = len(data)
        self._held = data[end:]
        self._send(data[:end])

    def _flush(self) -> None:
        """There is no more to come."""
        held, self._held = self._held, b""
        self._send(held)

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
        self._held = b""
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


def call_of(exchange: Exchange | None) -> Call | None:
    """The call whose answer goes to the client as it comes; None: none, or none yet."""
    if isinstance(exchange, SyncExchange):
        return exchange.call
    return exchange if isinstance(exchange, Call) else None


def events_end(data: bytes) -> int:
    """Where the last complete event ends: behind an empty line, however its lines end."""
    found = ((data.rfind(mark), len(mark)) for mark in (b"\n\n", b"\r\r", b"\n\r\n", b"\n\r"))
    return max(at + size if at >= 0 else 0 for at, size in found)


def _engine_problem(event: bytes) -> RequestError | None:
    """The error of a complete event by which an engine ends a stream; None: it is none."""
    if not event.endswith(b"\n\n"):
        return None
    doc = _problem(event.removeprefix(_ERROR_EVENT))
    return from_problem(500, doc) if str(doc.get("type", "")).startswith(TYPE_PREFIX) else None


def _stored(doc: dict[str, Any], error: StoredProblem) -> tuple[RequestError, dict[str, Any] | None]:
    """The error that a stored problem was; with the ``error`` member, if the endpoint's answer had one."""
    status = status_of(error)
    kind = str(doc.get("type", ""))
    if kind.startswith(TYPE_PREFIX):
        found = from_problem(status, doc)
        if type(found) is RequestError:
            found.extra["code"] = kind.removeprefix(TYPE_PREFIX).replace("-", "_")
        return found, None
    return error, error_of_body(status, str(doc.get("detail", "")).encode())


def _refused(status: int, body: bytes, encoding: bytes = b"") -> dict[str, object]:
    if encoding:
        return error_object(
            RequestError(
                f"the endpoint answered {status}, compressed ({encoding.decode('latin-1')[:20]}).",
                hint="A stream, and what comes instead of one, must not be.",
                http_status=status if status >= 400 else 500,
                code="endpoint_error",
            )
        )
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


def _encoding(head: bytes) -> bytes:
    """How the body is compressed; empty: not at all."""
    found = _header(head, b"content-encoding:").lower()
    return b"" if found == b"identity" else found


def _content_type(head: bytes) -> bytes:
    return _header(head, b"content-type:").lower()
