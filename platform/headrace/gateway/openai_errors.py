"""Errors as OpenAI's clients know them: ``{"error": {"message", "type", "param", "code"}}``."""

from __future__ import annotations

import contextlib
from typing import Any

import msgspec

from headrace.errors import TYPE_PREFIX, InstanceDied, RequestError, from_problem
from headrace.gateway.respond import problem_lines, response

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}
_CODES = {
    "unauthorized": "invalid_api_key",
    "endpoint-not-found": "model_not_found",
    "version-not-found": "model_not_found",
    "rate-limited": "rate_limit_exceeded",
    "not-found": "unknown_url",
}


def speaks_openai(target: bytes) -> bool:
    """Whether whoever asks for this (a request target) expects OpenAI's shape."""
    path = target.partition(b"?")[0]
    return path.startswith(b"/v1/") or (path.startswith(b"/v2/") and b"/openai/v1/" in path)


def status_of(error: RequestError) -> int:
    """The HTTP status of an error."""
    return int(error.extra.get("http_status", error.status))


def error_object(error: RequestError) -> dict[str, Any]:
    """The ``error`` member. ``message`` says what to do next, too; ``code`` is stable."""
    status = status_of(error)
    kind = _TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    code = error.extra.get("code") or _CODES.get(error.type, error.type.replace("-", "_"))
    return {"message": str(error), "type": kind, "param": error.extra.get("param"), "code": code}


def openai_error(
    error: RequestError,
    request_id: str,
    *,
    close: bool = False,
    head_only: bool = False,
    extra: bytes = b"",
    found: dict[str, Any] | None = None,
) -> bytes:
    """A whole response that carries ``error``, or ``found`` for its ``error`` member."""
    status = status_of(error)
    extra += problem_lines(status, error.extra)
    if isinstance(error, InstanceDied) or status in (409, 504):
        # The client would send it again by itself, twice: it may have run, or has, or its time is over.
        extra += b"X-Should-Retry: false\r\n"
    return response(
        status,
        msgspec.json.encode({"error": error_object(error) if found is None else found}),
        "application/json",
        request_id=request_id,
        close=close,
        head_only=head_only,
        extra=b"X-Request-Id: %b\r\n" % request_id.encode() + extra,
    )


def error_event(found: dict[str, Any]) -> bytes:
    """The server-sent event that ends a stream."""
    return b"data: %b\n\n" % msgspec.json.encode({"error": found})


def error_of_body(status: int, body: bytes) -> dict[str, Any]:
    """The ``error`` member for an answer of an instance that is none of success."""
    with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        doc = msgspec.json.decode(body)
        if isinstance(doc, dict):
            if isinstance(doc.get("error"), dict):
                found: dict[str, Any] = doc["error"]
                return found
            if str(doc.get("type", "")).startswith(TYPE_PREFIX):
                return error_object(from_problem(status, doc))
    text = body[:500].decode("utf-8", "replace")
    return error_object(
        RequestError(f"the endpoint answered {status}: {text}", http_status=status, code="endpoint_error")
    )
