"""A small client of the management API for the platform's own use, off the event loop."""

from __future__ import annotations

import asyncio
import http.client
import json
from typing import Any
from urllib.parse import urlsplit

from headrace.errors import NotRunning, from_problem


class ApiClient:
    """Calls one platform. Every call has a deadline and makes a connection of its own."""

    def __init__(self, url: str, key: str = "") -> None:
        parts = urlsplit(url)
        self._host, self._port = parts.hostname or "127.0.0.1", parts.port or 80
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}

    async def get(self, path: str, *, timeout_s: float = 30.0) -> Any:
        """GET; the JSON value. Raises a `RequestError` for a problem, `NotRunning` without an answer."""
        return await self.call("GET", path, timeout_s=timeout_s)

    async def call(
        self, method: str, path: str, body: Any = None, *, content_type: str = "", timeout_s: float = 30.0
    ) -> Any:
        """Any method; ``body`` is bytes, or a value that is sent as JSON."""
        data: bytes | None = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        headers = dict(self._headers)
        if data is not None:
            headers["Content-Type"] = content_type or (
                "application/octet-stream" if isinstance(body, bytes) else "application/json"
            )
        return await asyncio.to_thread(self._call, method, path, data, headers, timeout_s)

    def _call(
        self, method: str, path: str, data: bytes | None, headers: dict[str, str], timeout_s: float
    ) -> Any:
        connection = http.client.HTTPConnection(self._host, self._port, timeout=timeout_s)
        try:
            connection.request(method, path, data, headers)
            answer = connection.getresponse()
            status, content = answer.status, answer.read()
        except (OSError, http.client.HTTPException) as error:
            raise NotRunning(f"no answer from {self._host}:{self._port}: {error}") from error
        finally:
            connection.close()
        try:
            value = json.loads(content) if content else None
        except ValueError:
            value = content.decode(errors="replace")
        if status >= 400:
            raise from_problem(status, value if isinstance(value, dict) else {"detail": str(value)[:500]})
        return value
