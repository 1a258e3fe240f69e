"""A request on its way through the gateway, and the roles of those who handle it."""

from __future__ import annotations

import itertools
import secrets
from typing import TYPE_CHECKING, Any, Protocol

from headrace.errors import BodyTooLarge, RequestError
from headrace.gateway.head import Head

if TYPE_CHECKING:
    from headrace.gateway.client import ClientConnection
    from headrace.observe.tracing import SpanRef

_ids = itertools.count(int.from_bytes(secrets.token_bytes(3), "big"))
ID_PREFIX = secrets.token_hex(5)
"""Of the ids of all requests of this process."""

SKIP_BYTES = 16 << 10
"""A refused request with a body up to this size keeps its connection."""
NO_HEAD = Head(b"GET", b"/")


_FORWARDED = (
    b"%b %b HTTP/1.1\r\n%bX-Headrace-Request-Id: %b\r\n"
    b"X-Headrace-Attempt: %d\r\nX-Headrace-Deadline-Ms: %d\r\n%b\r\n%b"
)


class Exchange(Protocol):
    """Whoever answers the current request."""

    def cancel(self) -> None:
        """The client is gone: stop the work, keep nothing."""

    def pause(self) -> None:
        """The client reads slowly: produce nothing more for now."""

    def resume(self) -> None:
        """Go on."""

    def fail(self, error: RequestError) -> None:
        """Give up, and tell the client why: as the answer, or in the stream that has begun."""


class Tunnel(Protocol):
    """Takes over a connection after an upgrade."""

    def from_client(self, data: bytes) -> None:
        """Bytes of the client."""

    def client_closed(self) -> None:
        """The client is gone."""


class App(Protocol):
    """What the connection needs of the gateway."""

    draining: bool

    def admit(self, request: Request) -> int:
        """Look at the head; give the limit of the body in bytes, or raise `RequestError`."""

    def answer(self, request: Request) -> None:
        """The request is complete and its turn has come: answer it."""

    def hold(self, size: int) -> bool:
        """Take so many bytes of the budget for bodies; False when it is spent."""

    def unhold(self, size: int) -> None:
        """Give bytes back."""

    def opened(self, client: ClientConnection) -> None:
        """A connection came."""

    def closed(self, client: ClientConnection) -> None:
        """A connection went."""


class Request:
    """One request; ``target`` is whatever `App.admit` found out."""

    __slots__ = (
        "body",
        "client",
        "close",
        "continued",
        "exchange",
        "failure",
        "head",
        "held",
        "id",
        "key",
        "limit",
        "parts",
        "ready",
        "silent",
        "target",
        "trace",
    )

    def __init__(self, client: ClientConnection) -> None:
        self.client = client
        self.head: Head = NO_HEAD
        self.id = f"{ID_PREFIX}{next(_ids) & 0xFFFFFFFF:08x}"
        self.key = ""
        """The id of the API key that asks: keys share an endpoint's queue fairly."""
        self.parts: list[bytes] = []
        self.body = b""
        self.held = 0
        self.limit = 0
        self.ready = False
        self.close = False
        self.silent = False
        """Its answer ends with the connection and broke off: nothing but a reset can say so."""
        self.continued = False
        self.failure: RequestError | None = None
        self.exchange: Exchange | None = None
        self.target: Any = None
        self.trace: SpanRef | None = None
        """Its own span, once there is one."""

    def forwarded(self, path: bytes, attempt: int, left_ms: int, extra: bytes) -> bytes:
        """All that an instance gets of it; ``extra`` are header lines."""
        head, body = self.head, self.body
        if body or head.content_length == 0 or head.has_body:
            extra += b"Content-Length: %d\r\n" % len(body)
        return _FORWARDED % (head.method, path, head.forward, self.id.encode(), attempt, left_ms, extra, body)


def skippable(head: Head) -> bool:
    """Whether the rest of a refused request is worth reading, to keep its connection."""
    if head is NO_HEAD or head.expect:
        return False
    return not head.has_body or 0 < head.content_length <= SKIP_BYTES


def too_large(limit: int) -> BodyTooLarge:
    """The error for a body above ``limit``."""
    return BodyTooLarge(
        f"the body is above {limit} bytes.",
        hint="Raise the endpoint's max_body, or the max_bytes of its queue where that is less.",
        limit=limit,
    )
