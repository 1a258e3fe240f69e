"""What clients have not read: who takes nothing for too long is cut off, sooner when they are many."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from headrace.gateway.client import ClientConnection

STALL_S = 600.0
"""A client that takes nothing of an answer that is still coming for so long is cut off."""
PRESSED_S = 5.0
"""Any client, while they leave too much unread in all."""


class Unsent:
    """Bytes that a client had not taken at the last look, and the look at which their number last changed."""

    __slots__ = ("since", "size")

    def __init__(self) -> None:
        self.size = 0
        self.since = 0.0

    def look(self, size: int, now: float) -> float:
        """Note that so many wait now; for how many seconds it has taken none."""
        if size != self.size:
            self.size, self.since = size, now
        return now - self.since if size else 0.0


def sweep_all(clients: Iterable[ClientConnection], most: int) -> None:
    """Close slow and idle connections; and of those that take nothing the longest-standing, while more than
    ``most`` bytes wait for their clients."""
    now = time.monotonic()
    total = 0
    stuck: list[ClientConnection] = []
    for client in list(clients):
        client.sweep(now)
        if client.unsent.size:
            total += client.unsent.size
            stuck.append(client)
    if total <= most:
        return
    stuck.sort(key=lambda client: client.unsent.since)
    for client in stuck:
        if total <= most or now - client.unsent.since < PRESSED_S:
            break
        total -= client.unsent.size
        client.abort()
