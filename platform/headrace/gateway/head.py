"""What the head of a client's request means, and which of its headers travel on: pure functions."""

from __future__ import annotations

import re
from typing import Final

from headrace.errors import BadRequest, MethodNotAllowed, RequestError
from headrace.observe.tracing import parse

MAX_HEAD_BYTES: Final = 64 << 10
ANY_METHOD: Final = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
"""What an endpoint may answer; others have no meaning here, whatever they name."""

(
    _HOST,
    _LENGTH,
    _TRANSFER,
    _AUTHORIZATION,
    _CONNECTION,
    _EXPECT,
    _UPGRADE,
    _COOKIE,
    _DROP,
    _TIMEOUT,
    _ORIGIN,
    _FETCH_SITE,
    _CONTENT_TYPE,
    _IDEMPOTENCY,
    _PREFER,
    _TRACEPARENT,
) = range(16)

_MEANING: Final = {
    b"host": _HOST,
    b"content-length": _LENGTH,
    b"transfer-encoding": _TRANSFER,
    b"authorization": _AUTHORIZATION,
    b"connection": _CONNECTION,
    b"expect": _EXPECT,
    b"upgrade": _UPGRADE,
    b"cookie": _COOKIE,
    b"keep-alive": _DROP,
    b"proxy-connection": _DROP,
    b"proxy-authorization": _DROP,
    b"proxy-authenticate": _DROP,
    b"te": _DROP,
    b"trailer": _DROP,
    b"http2-settings": _DROP,
    b"x-headrace-timeout": _TIMEOUT,
    b"origin": _ORIGIN,
    b"sec-fetch-site": _FETCH_SITE,
    b"content-type": _CONTENT_TYPE,
    b"idempotency-key": _IDEMPOTENCY,
    b"prefer": _PREFER,
    b"traceparent": _TRACEPARENT,
}
_NEVER_NOMINATED: Final = frozenset(
    {b"close", b"keep-alive", b"upgrade", b"host", b"content-type", b"cookie"}
)
"""``Connection: <these>`` does not make us drop them (they have their own rules here)."""


class HeadTooLarge(RequestError):
    """Request line and headers are above `MAX_HEAD_BYTES`."""

    status, type, title = 431, "head-too-large", "Request head too large"


class UnsupportedMediaType(RequestError):
    """The body is of a type that this route does not take."""

    status, type, title = 415, "unsupported-media-type", "Unsupported media type"


class Head:
    """A checked request head. ``forward`` is the block of header lines that may travel on."""

    __slots__ = (
        "authorization",
        "close",
        "content_length",
        "content_type",
        "cookie",
        "expect",
        "fetch_site",
        "forward",
        "has_body",
        "host",
        "http10",
        "idempotency_key",
        "method",
        "origin",
        "prefer",
        "priority",
        "target",
        "timeout",
        "traceparent",
        "unstored",
        "upgrade",
    )

    def __init__(self, method: bytes, target: bytes) -> None:
        self.method = method
        self.target = target
        self.host = b""
        self.authorization = b""
        self.cookie = b""
        self.timeout = b""
        self.priority = b""
        self.idempotency_key = b""
        self.unstored = b""
        self.prefer = b""
        self.traceparent = b""
        """Well-formed, or empty; travels beside ``forward``: attempts have spans of their own."""
        self.origin: bytes | None = None
        self.fetch_site = b""
        self.content_type = b""
        self.upgrade = b""
        self.content_length = -1
        self.has_body = False
        self.expect = False
        self.close = False
        self.http10 = False
        self.forward = b""


def read_head(method: bytes, url: bytes, version: str, headers: list[tuple[bytes, bytes]]) -> Head:  # noqa: PLR0912, PLR0915
    """Check and sort a request's headers in one pass. Raises `BadRequest`."""
    head = Head(method, url)
    lines: list[bytes] = []
    hosts = authorizations = timeouts = lengths = keys = traces = 0
    transfer = connection = None
    for name, value in headers:
        lower = name.lower()
        meaning = _MEANING.get(lower)
        if meaning is None:
            # Some servers take "_" for "-": both spellings of our own names are ours alone.
            if lower[:1] == b"x" and lower[:11].replace(b"_", b"-") == b"x-headrace-":
                if lower == b"x-headrace-priority":
                    head.priority = value
                    lines.append(b"%b: %b\r\n" % (name, value))
                elif lower == b"x-headrace-if-unstored":
                    head.unstored = value
                continue
            lines.append(b"%b: %b\r\n" % (name, value))
        elif meaning == _CONTENT_TYPE:
            head.content_type = value
            lines.append(b"%b: %b\r\n" % (name, value))
        elif meaning == _HOST:
            hosts += 1
            head.host = value
        elif meaning == _LENGTH:
            lengths += 1
            if not value.isdigit() or len(value) > 18:
                raise BadRequest("Content-Length is not a number.")
            head.content_length = int(value)
        elif meaning == _AUTHORIZATION:
            authorizations += 1
            head.authorization = value
        elif meaning == _CONNECTION:
            connection = value if connection is None else connection + b"," + value
        elif meaning == _TRANSFER:
            transfer = value if transfer is None else transfer + b"," + value
        elif meaning == _COOKIE:
            head.cookie = head.cookie + b"; " + value if head.cookie else value
        elif meaning == _TIMEOUT:
            timeouts += 1
            head.timeout = value
            lines.append(b"%b: %b\r\n" % (name, value))
        elif meaning == _ORIGIN:
            head.origin = value if head.origin is None else head.origin + b"," + value
            lines.append(b"%b: %b\r\n" % (name, value))
        elif meaning == _FETCH_SITE:
            head.fetch_site = value
            lines.append(b"%b: %b\r\n" % (name, value))
        elif meaning == _UPGRADE:
            head.upgrade = value
        elif meaning == _IDEMPOTENCY:
            keys += 1
            head.idempotency_key = value.strip()
            lines.append(b"%b: %b\r\n" % (name, value))
        elif meaning == _PREFER:
            head.prefer = head.prefer + b"," + value if head.prefer else value
            lines.append(b"%b: %b\r\n" % (name, value))
        elif meaning == _TRACEPARENT:
            traces += 1
            head.traceparent = value if traces == 1 and parse(value) is not None else b""
        elif meaning == _EXPECT:
            if value.strip().lower() != b"100-continue":
                raise BadRequest("Expect: only 100-continue is known.")
            head.expect = True

    if version == "1.1":
        if not hosts:
            raise BadRequest("HTTP/1.1 requests need a Host header.")
    elif version == "1.0":
        head.close = head.http10 = True
        head.expect = False
        head.upgrade = b""
        if transfer is not None:
            raise BadRequest("HTTP/1.0 knows no Transfer-Encoding.")
    else:
        raise BadRequest(f"HTTP/{version} is not spoken here.", hint="Use HTTP/1.1.")
    if hosts > 1:
        raise BadRequest("more than one Host header.")
    if authorizations > 1:
        raise BadRequest("more than one Authorization header.")
    if keys > 1 or (keys and not head.idempotency_key):
        raise BadRequest("Idempotency-Key: more than one, or an empty one.")
    if timeouts > 1:
        raise BadRequest("more than one X-Headrace-Timeout header.")
    if transfer is not None:
        if lengths:
            raise BadRequest("both Content-Length and Transfer-Encoding.")
        if transfer.strip().lower() != b"chunked":
            raise BadRequest("Transfer-Encoding: only chunked is known.")
        head.has_body = True
    elif lengths:
        if lengths > 1:
            raise BadRequest("more than one Content-Length header.")
        head.has_body = head.content_length > 0
    if connection is not None:
        tokens = [token.strip().lower() for token in connection.split(b",")]
        head.close = head.close or b"close" in tokens
        if b"upgrade" not in tokens:
            head.upgrade = b""
        nominated = {token for token in tokens if token} - _NEVER_NOMINATED
        if nominated:
            lines = [line for line in lines if line.split(b":", 1)[0].lower() not in nominated]
    else:
        head.upgrade = b""
    head.target = _origin_form(method, url, head)
    forward = b"".join(lines)
    if forward.count(b"\n") != len(lines) or forward.count(b"\r") != len(lines) or b"\0" in forward:
        raise BadRequest("a header's value holds a control character.")
    if b"\n" in head.host or b"\r" in head.host or b"\0" in head.host:
        raise BadRequest("the Host header holds a control character.")
    head.forward = b"Host: %b\r\n%b" % (head.host, forward) if hosts else b"Host: headrace\r\n" + forward
    return head


def _origin_form(method: bytes, url: bytes, head: Head) -> bytes:
    """The path and query of the request target, whatever form it has."""
    if method in (b"CONNECT", b"TRACE"):
        raise MethodNotAllowed(
            f"{method.decode()} is not supported.", hint="Use GET or POST.", allow=ANY_METHOD
        )
    if url[:1] == b"/":
        if b"#" in url:
            raise BadRequest("a fragment (#) in the request target.")
        return url
    if url == b"*":
        raise BadRequest("the request target * is not supported.", hint="Name a path.")
    scheme, sep, rest = url.partition(b"://")
    if not sep or scheme.lower() not in (b"http", b"https"):
        raise BadRequest("the request target is neither a path nor an http URL.")
    cut = min((i for i in (rest.find(b"/"), rest.find(b"?")) if i >= 0), default=len(rest))
    if head.host and rest[:cut].lower() != head.host.lower():
        raise BadRequest("the request target names another host than the Host header.")
    path = rest[cut:]
    if b"#" in path:
        raise BadRequest("a fragment (#) in the request target.")
    return path if path[:1] == b"/" else b"/" + path


# --- answers of instances ------------------------------------------------------------------------

_ANSWER_DROP: Final = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-connection",
        b"proxy-authenticate",
        b"transfer-encoding",
        b"te",
        b"trailer",
        b"upgrade",
        b"set-cookie",
        b"set-cookie2",
        # These speak for all of our origin, and for other endpoints there.
        b"service-worker-allowed",
        b"clear-site-data",
        b"alt-svc",
        b"strict-transport-security",
    }
)
_INERT: Final = frozenset(
    {
        b"application/json",
        b"application/problem+json",
        b"application/x-ndjson",
        b"application/octet-stream",
        b"text/event-stream",
        b"text/plain",
        b"text/csv",
        b"image/png",
        b"image/jpeg",
        b"image/gif",
        b"image/webp",
    }
)
"""What no browser runs as a page, whatever it holds. The types that one runs are too many to list."""


class Answer:
    """The head of an instance's answer: what to do with it, and ``forward``, the lines for the client."""

    __slots__ = ("chunked", "content_length", "content_type", "exception", "forward", "refused", "timing")

    def __init__(self) -> None:
        self.content_length = -1
        self.chunked = False
        self.content_type = b""
        self.refused = b""
        self.exception = b""
        self.timing = b""
        self.forward = b""


def read_answer(headers: list[tuple[bytes, bytes]]) -> Answer:
    """Sort the headers of an instance's answer.

    ``Set-Cookie``, ``X-Headrace-*`` and hop-by-hop headers stay here; what a browser would run
    as a page of ours is put in a sandbox.
    """
    answer = Answer()
    lines: list[bytes] = []
    types = 0
    for name, value in headers:
        lower = name.lower()
        if lower == b"content-length":
            answer.content_length = int(value)
        elif lower == b"content-type":
            types += 1
            answer.content_type = value
            lines.append(b"%b: %b\r\n" % (name, value))
        elif lower[:1] == b"x" and lower[:11].replace(b"_", b"-") == b"x-headrace-":
            if lower == b"x-headrace-timing":
                answer.timing = value
            elif lower == b"x-headrace-refused":
                answer.refused = value.lower()
            elif lower == b"x-headrace-exception":
                answer.exception = value
        elif lower in _ANSWER_DROP:
            if lower == b"transfer-encoding":
                answer.chunked = value.lower().endswith(b"chunked")
        else:
            lines.append(b"%b: %b\r\n" % (name, value))
    media = answer.content_type
    if types != 1 or (media not in _INERT and media.partition(b";")[0].strip().lower() not in _INERT):
        lines.append(b"Content-Security-Policy: sandbox\r\n")
    forward = b"".join(lines)
    if forward.count(b"\n") != len(lines) or forward.count(b"\r") != len(lines):
        forward = b"".join(line for line in lines if line.count(b"\n") == line.count(b"\r") == 1)
    answer.forward = forward
    return answer


def is_encoded(answer: Answer) -> bool:
    """Whether the body is compressed: nothing can be added to it."""
    found = re.search(rb"^content-encoding:[ \t]*([^\r\n]*)", answer.forward, re.IGNORECASE | re.MULTILINE)
    return found is not None and found[1].strip().lower() not in (b"", b"identity")
