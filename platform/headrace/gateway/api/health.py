"""Liveness and readiness, for which nobody needs a key, and the front page, which any key may read."""

from __future__ import annotations

import msgspec

import headrace
from headrace.gateway.request import Request
from headrace.gateway.respond import response

VERSION = getattr(headrace, "__version__", "0.1.0")


def answer(request: Request, not_ready: str) -> bytes:
    """The response for ``/``, ``/healthz`` or ``/readyz``; ``not_ready`` says why, or is empty."""
    path = request.head.target.partition(b"?")[0]
    status = 200
    body: dict[str, object]
    if path == b"/healthz":
        body = {"status": "ok"}
    elif path == b"/readyz":
        status = 503 if not_ready else 200
        body = {"status": "not ready", "reason": not_ready} if not_ready else {"status": "ready"}
    else:
        body = {"name": "headrace", "version": VERSION}
    return response(
        status,
        msgspec.json.encode(body),
        "application/json",
        request_id=request.id,
        close=request.client.closes(request),
        head_only=request.head.method == b"HEAD",
    )
