"""HTTP/1.1 by hand: strict parsing of requests and chunked bodies, heads of answers. Pure, no I/O."""

from __future__ import annotations

import http
import re
from typing import Any, Dict, List, Optional, Tuple

MAX_HEAD = 64 << 10
_MAX_CHUNK_LINE = 1024
_MAX_TRAILERS = 8 << 10
_NAME = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_METHOD = re.compile(rb"[A-Z]{1,20}")
_TARGET = re.compile(rb"[\x21-\x7e\x80-\xff]+")
_DIGITS = re.compile(rb"[0-9]{1,18}")
_CHUNK_SIZE = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;[^\r\n]*)?")
_SINGLE = (b"content-length", b"transfer-encoding", b"host", b"x-headrace-token", b"x-headrace-deadline-ms")
_NAMES: Dict[bytes, bytes] = {}
"""Names seen -> lower case; bounded, because clients choose them."""

REASONS: Dict[int, bytes] = {int(s): f"{int(s)} {s.phrase}".encode() for s in http.HTTPStatus}

_OURS = (b"connection", b"transfer-encoding", b"keep-alive")
"""Headers that an app may not set: they are the connection's."""

Headers = List[Tuple[bytes, bytes]]


class BadHttp(Exception):
    """Not a request that may be answered; ``slug`` is a problem kind. The answer ends the connection."""

    def __init__(self, slug: str, detail: str) -> None:
        super().__init__(detail)
        self.slug = slug


class Head:
    """Request line and headers. Header names are lower case; ``length`` is ``None`` for a chunked body."""

    __slots__ = ("headers", "http11", "index", "keep_alive", "length", "method", "target")

    def __init__(
        self, method: bytes, target: bytes, http11: bool, headers: Headers, index: Dict[bytes, bytes]
    ) -> None:
        self.method = method
        self.target = target
        self.http11 = http11
        self.headers = headers
        self.index = index
        """Name -> value, the last of repeated ones."""
        self.length: Optional[int] = 0
        self.keep_alive = http11


def _lower(name: bytes) -> bytes:
    if not _NAME.fullmatch(name):
        raise BadHttp("bad-request", "a header has a malformed name")
    low = name.lower()
    if len(_NAMES) < 512:
        _NAMES[name] = low
    return low


def parse_head(data: bytes) -> Head:
    """Parse what stands before the empty line. Raises `BadHttp`."""
    lines = data.split(b"\r\n")
    # Line ends that only some parsers see are how requests are smuggled.
    if data.count(b"\n") != len(lines) - 1 or data.count(b"\r") != len(lines) - 1 or b"\0" in data:
        raise BadHttp("bad-request", "the header holds a stray control character")
    parts = lines[0].split(b" ")
    if len(parts) != 3 or not _METHOD.fullmatch(parts[0]) or not _TARGET.fullmatch(parts[1]):
        raise BadHttp("bad-request", "the request line is malformed")
    method, target, version = parts
    if version not in (b"HTTP/1.1", b"HTTP/1.0"):
        raise BadHttp("bad-request", "only HTTP/1.1 and HTTP/1.0 are spoken here")
    headers: Headers = []
    known = _NAMES.get
    for i in range(1, len(lines)):
        name, colon, value = lines[i].partition(b":")
        if not colon:
            raise BadHttp("bad-request", "a header line has no colon")
        headers.append((known(name) or _lower(name), value.strip(b" \t")))
    index = dict(headers)
    head = Head(method, target, version == b"HTTP/1.1", headers, index)
    if len(index) != len(headers):
        names = [name for name, _ in headers]
        for name in _SINGLE:
            if names.count(name) > 1:
                raise BadHttp("bad-request", f"the header {name.decode()} is given twice")
    _frame(head)
    return head


def _frame(head: Head) -> None:
    index = head.index
    length, coding = index.get(b"content-length"), index.get(b"transfer-encoding")
    if coding is not None:
        if length is not None or not head.http11:
            raise BadHttp(
                "bad-request", "Transfer-Encoding goes neither with Content-Length nor with HTTP/1.0"
            )
        if coding.lower() != b"chunked":
            raise BadHttp("not-implemented", "the only transfer coding understood is chunked")
        head.length = None
    elif length is not None:
        if not _DIGITS.fullmatch(length):
            raise BadHttp("bad-request", "Content-Length is not a number")
        head.length = int(length)
    connection = index.get(b"connection")
    if connection is not None:
        tokens = [token.strip() for token in connection.lower().split(b",")]
        head.keep_alive = b"close" not in tokens and (head.http11 or b"keep-alive" in tokens)


class ChunkedDecoder:
    """Decodes a chunked body as it arrives; trailers are read and dropped."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._buffer = bytearray()
        self._left = 0
        self._state = "size"
        self._trailers = 0
        self._parts: List[bytes] = []
        self.size = 0

    def feed(self, data: bytes) -> Optional[bytes]:
        """``None`` while more is needed, else what follows the body. Raises `BadHttp` (413)."""
        self._buffer += data
        while True:
            if self._state == "data":
                if not self._take_data():
                    return None
                continue
            end = self._buffer.find(b"\r\n")
            if end < 0:
                if len(self._buffer) > _MAX_CHUNK_LINE:
                    raise BadHttp("bad-request", "a line of the chunked body is too long")
                return None
            line = bytes(self._buffer[:end])
            del self._buffer[: end + 2]
            if self._state == "size":
                self._start_chunk(line)
            elif self._state == "after":
                if line:
                    raise BadHttp("bad-request", "a chunk is longer than it says")
                self._state = "size"
            elif not line:
                return bytes(self._buffer)
            else:
                self._trailers += len(line)
                if self._trailers > _MAX_TRAILERS:
                    raise BadHttp("header-too-large", "the trailers are too large")

    def _start_chunk(self, line: bytes) -> None:
        match = _CHUNK_SIZE.fullmatch(line)
        if not match:
            raise BadHttp("bad-request", "a chunk's size is malformed")
        self._left = int(match[1], 16)
        self.size += self._left
        if self.size > self._limit:
            raise BadHttp("body-too-large", f"the body is above {self._limit} bytes")
        self._state = "data" if self._left else "trailer"

    def _take_data(self) -> bool:
        piece = bytes(self._buffer[: self._left])
        del self._buffer[: len(piece)]
        self._parts.append(piece)
        self._left -= len(piece)
        if self._left:
            return False
        self._state = "after"
        return True

    def body(self) -> bytes:
        """The whole body, once `feed` has returned bytes."""
        return b"".join(self._parts)


def media_type(value: Optional[bytes]) -> bytes:
    """The media type without parameters, lower case; empty when there is none."""
    return value.partition(b";")[0].strip().lower() if value else b""


def header_lines(headers: Any) -> Tuple[bytes, bool]:
    """An app's headers as lines, without those that are ours to say; whether it gives the length itself."""
    lines: List[bytes] = []
    sized = False
    for name, value in headers or ():
        low = bytes(name).lower()
        if low in _OURS or low.startswith(b"x-headrace-"):
            continue
        if any(c in bytes(name) + bytes(value) for c in b"\r\n\0"):
            raise ValueError(f"the header {bytes(name)!r} holds a line end")
        sized = sized or low == b"content-length"
        lines.append(b"%b: %b\r\n" % (bytes(name), bytes(value)))
    return b"".join(lines), sized
