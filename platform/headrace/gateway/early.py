"""Clients of a gateway that has just started and knows no keys yet: they wait unread, for a bounded time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

KEYS_WAIT_S = 10.0
"""So long a client waits for control to tell the keys; then it is answered without them, with a 503."""
MAX_WAITING = 256
"""Clients that wait at once (each with what one read gives); the others are answered at once."""
_PROBES = (b"GET /healthz", b"GET /readyz", b"HEAD /healthz", b"HEAD /readyz")


class EarlyClient(Protocol):
    """What this module needs of a connection."""

    def hold_back(self, early: Early) -> None:
        """Give what comes to ``early``, until `go_on`."""

    def stop_reading(self) -> None:
        """Leave the rest in the socket."""

    def go_on(self, data: bytes) -> None:
        """Begin with this, which came meanwhile."""


class Early:
    """Keeps what one client has sent: a `headrace.gateway.request.Tunnel` that leads nowhere yet."""

    def __init__(self, client: EarlyClient, over: Callable[[Early], None]) -> None:
        self._client = client
        self._over = over
        self._data = b""
        self._timer = asyncio.get_running_loop().call_later(KEYS_WAIT_S, self.release)

    def from_client(self, data: bytes) -> None:
        """Bytes of the client."""
        self._data += data
        if self._data.startswith(_PROBES):
            self.release()
        else:
            self._client.stop_reading()

    def client_closed(self) -> None:
        """The client is gone."""
        self._timer.cancel()
        self._over(self)

    def release(self) -> None:
        """It has waited long enough."""
        self.client_closed()
        self._client.go_on(self._data)


class EarlyClients:
    """All that wait."""

    def __init__(self) -> None:
        self._waiting: dict[Early, None] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def take(self, client: EarlyClient) -> None:
        """Let a new client wait, if there is room."""
        if len(self._waiting) < MAX_WAITING:
            early = Early(client, lambda one: self._waiting.pop(one, None))
            self._waiting[early] = None
            client.hold_back(early)

    def release(self) -> None:
        """The keys are known, or the gateway ends."""
        for early in list(self._waiting):
            early.release()
