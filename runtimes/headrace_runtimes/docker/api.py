"""The Engine API over the daemon's unix socket: the dozen calls that we need.

There is a client for it, aiodocker, which is maintained; it would be one more package to install and to pin
for what aiohttp, which the platform has anyway, says in one function, and it has no say in which version of
the API is spoken.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import aiohttp

from headrace_runtimes.errors import PrepareFailed

DEFAULT_SOCKET = "/var/run/docker.sock"
NEWEST = (1, 47)
"""What we speak of the API, when the daemon does."""
OLDEST = (1, 41)
CALL_TIMEOUT_S = 60.0
READ_TIMEOUT_S = 20.0
"""Of what makes nothing: who waits longer for that waits for a daemon that hangs."""
LOAD_TIMEOUT_S = 900.0
CONNECTIONS = 64
_ERROR_BYTES = 2000


class Refused(PrepareFailed):
    """The daemon says no, or nothing. ``status``: the HTTP status, 0 when it does not answer."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


def socket_of(address: str | None) -> str:
    """The path of the daemon's socket. Raises `PrepareFailed` for a daemon that is elsewhere."""
    told = address or os.environ.get("DOCKER_HOST") or f"unix://{DEFAULT_SOCKET}"
    kind, colon, path = told.partition("://")
    if kind != "unix" or not colon or not path.startswith("/"):
        raise PrepareFailed(
            f"The docker runtime needs a daemon on this machine, not {told}: use unix:///path/to/its/socket."
        )
    return path


def version_of(told: Mapping[str, Any]) -> str:
    """What to speak with a daemon that answers ``/version`` so. Raises `PrepareFailed`."""
    try:
        newest, oldest = (
            tuple(int(part) for part in str(told[name]).split("."))
            for name in ("ApiVersion", "MinAPIVersion")
        )
    except (KeyError, ValueError) as error:
        raise PrepareFailed("What listens on Docker's socket is not Docker: check the address.") from error
    if newest < OLDEST:
        raise PrepareFailed(f"Docker {told.get('Version')} is too old: install 20.10 or later.")
    return ".".join(map(str, max(min(newest, NEWEST), oldest)))


class Engine:
    """A daemon, found by `open`. Every call raises `Refused` when the daemon does not do it."""

    def __init__(self, socket: str) -> None:
        self.socket = socket
        self.version: Mapping[str, Any] = {}
        self._base = "http://docker"
        self._session: aiohttp.ClientSession | None = None

    async def open(self) -> None:
        """Agree on a version. Raises `PrepareFailed`."""
        connector = aiohttp.UnixConnector(self.socket, limit=CONNECTIONS)
        self._session = aiohttp.ClientSession(connector=connector)
        try:
            self.version = await self.call("GET", "/version")
            self._base = f"http://docker/v{version_of(self.version)}"
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Let the connections go."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def call(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        query: Mapping[str, str] | None = None,
        timeout_s: float | None = None,
    ) -> Any:
        """The decoded answer, None when there is none. ``timeout_s`` None: what such a call may take."""
        if timeout_s is None:
            timeout_s = READ_TIMEOUT_S if method == "GET" else CALL_TIMEOUT_S
        async with self._asked(method, path, query, timeout_s, json=body) as answer:
            text = await answer.text()
        return json.loads(text) if text.startswith(("{", "[")) else None

    async def send(self, path: str, file: Path, query: Mapping[str, str] | None = None) -> None:
        """POST a tar archive; the daemon tells failures on the way in its answer."""
        with file.open("rb") as data:
            async with self._asked(
                "POST", path, query, LOAD_TIMEOUT_S, data=data, headers={"Content-Type": "application/x-tar"}
            ) as answer:
                lines = (await answer.text()).splitlines()
        for line in lines:
            with contextlib.suppress(ValueError):
                told = json.loads(line)
                if isinstance(told, dict) and told.get("error"):
                    raise Refused(f"Docker does not take the image: {told['error']}.")

    @contextlib.asynccontextmanager
    async def stream(self, path: str, body: object, timeout_s: float) -> AsyncIterator[aiohttp.StreamReader]:
        """POST; what the daemon then sends until it is done."""
        async with self._asked("POST", path, None, timeout_s, json=body) as answer:
            yield answer.content

    async def text(self, path: str, query: Mapping[str, str]) -> bytes:
        """GET bytes."""
        async with self._asked("GET", path, query, READ_TIMEOUT_S) as answer:
            return await answer.read()

    @contextlib.asynccontextmanager
    async def _asked(
        self, method: str, path: str, query: Mapping[str, str] | None, timeout_s: float, **more: Any
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        if self._session is None:
            raise Refused("Docker's socket is closed.")
        limit = aiohttp.ClientTimeout(total=timeout_s)
        try:
            async with self._session.request(
                method, self._base + path, params=query, timeout=limit, **more
            ) as answer:
                if answer.status >= 400:
                    raise Refused(_reason(await answer.text()), answer.status)
                yield answer
        except TimeoutError as error:
            raise Refused(f"Docker has not answered {method} {path} within {timeout_s:.0f} s.") from error
        except aiohttp.ClientError as error:
            raise Refused(
                f"Docker does not answer at {self.socket}: {error}. Start it, or name its socket."
            ) from error


def _reason(text: str) -> str:
    with contextlib.suppress(ValueError):
        told = json.loads(text)
        if isinstance(told, dict):
            text = str(told.get("message", text))
    return f"Docker says: {text.strip()[:_ERROR_BYTES].rstrip('.')}."


def demultiplex(buffer: bytearray) -> list[tuple[int, bytes]]:
    """Take whole frames of a multiplexed stream off the buffer's front: (1 stdout or 2 stderr, data)."""
    found = []
    while len(buffer) >= 8:
        size = int.from_bytes(buffer[4:8], "big")
        if len(buffer) < 8 + size:
            break
        found.append((buffer[0], bytes(buffer[8 : 8 + size])))
        del buffer[: 8 + size]
    return found
