"""Bytes of the answers that the gateway gives by itself."""

from __future__ import annotations

import asyncio
import http
import socket
import struct
from collections.abc import Mapping
from typing import Any

import msgspec

from headrace.errors import PROBLEM_CONTENT_TYPE, RequestError

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_encoder = msgspec.json.Encoder()

STATUS_LINES: dict[int, bytes] = {
    s.value: b"HTTP/1.1 %d %b\r\n" % (s.value, s.phrase.encode()) for s in http.HTTPStatus
}


def status_line(status: int) -> bytes:
    """``HTTP/1.1 200 OK`` with its line end."""
    return STATUS_LINES.get(status) or b"HTTP/1.1 %d Status\r\n" % status


def response(
    status: int,
    body: bytes,
    content_type: str,
    *,
    request_id: str = "",
    close: bool = False,
    head_only: bool = False,
    extra: bytes = b"",
) -> bytes:
    """A whole response. ``extra`` are header lines, each with its line end."""
    parts = [
        status_line(status),
        b"Content-Type: %b\r\nContent-Length: %d\r\n" % (content_type.encode(), len(body)),
        b"X-Content-Type-Options: nosniff\r\n",
        extra,
    ]
    if request_id:
        parts.append(b"X-Headrace-Request-Id: %b\r\n" % request_id.encode())
    if close:
        parts.append(b"Connection: close\r\n")
    parts.append(b"\r\n")
    if not head_only:
        parts.append(body)
    return b"".join(parts)


def problem_body(error: RequestError, request_id: str) -> bytes:
    """The problem document as JSON."""
    return _encoder.encode(error.to_problem(request_id))


def problem(
    error: RequestError, request_id: str, *, close: bool = False, head_only: bool = False, extra: bytes = b""
) -> bytes:
    """A whole response that carries the problem document of ``error``."""
    status = int(error.extra.get("http_status", error.status))
    return response(
        status,
        problem_body(error, request_id),
        PROBLEM_CONTENT_TYPE,
        request_id=request_id,
        close=close,
        head_only=head_only,
        extra=extra + problem_lines(status, error.extra),
    )


def problem_lines(status: int, members: Mapping[str, Any]) -> bytes:
    """The header lines that go with a problem document of this status and with these members."""
    lines = b"WWW-Authenticate: Bearer\r\n" if status == 401 else b""
    if (retry_after := members.get("retry_after")) is not None:
        lines += b"Retry-After: %d\r\n" % int(retry_after)
    if (allow := members.get("allow")) is not None:
        lines += b"Allow: %b\r\n" % ", ".join(allow).encode()
    return lines


def reset_at_close(transport: asyncio.Transport) -> None:
    """Let the connection end with a reset after what was written: closed in order, it would look complete."""
    sock = transport.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
