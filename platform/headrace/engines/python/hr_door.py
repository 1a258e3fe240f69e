"""Who comes in beside the plain rule "whoever comes while there is room": two cases that need more.

*Alone.* A request with ``X-Headrace-Alone`` is suspected of killing what it runs in. It comes in when
nothing else runs, and nothing else comes in while it runs. When it had to be refused, nobody comes in for
`EMPTYING_S`, so that it finds the instance empty when it comes again.

*Turns.* A gateway fills the slot that one of its requests leaves at once; another gateway would find the
instance full for as long as the first has any. A refusal of a request with ``X-Headrace-Turn`` therefore
has its head now (the request was not started) and its end when it is that gateway's turn: a slot is then
kept for `OFFER_S` for what comes next over the same connection. Turns are taken in the order of asking.
"""

from __future__ import annotations

import asyncio
import time
from typing import Callable, Dict, Optional, Tuple

from hr_connection import Connection, Exchange
from hr_problem import CONTENT_TYPE

ALONE = b"x-headrace-alone"
TURN = b"x-headrace-turn"
EMPTYING_S = 0.25
"""Longer than a gateway waits before it asks again."""
OFFER_S = 0.05
"""Longer than a request needs from a gateway to here."""
SLICE_S = 0.03
"""Who has waited for less gets no slot while others take it: turns cost a round trip each."""
GAP_S = 0.002
"""A slot that nobody took for so long is for whoever waits."""
TURN_S = 5.0
"""Nobody waits longer for a turn: its gateway asks again."""
MAX_WAITING = 64


class Door:
    """See the module. ``running`` counts the requests in flight, never above ``capacity``."""

    def __init__(self, capacity: int, running: Callable[[], int]) -> None:
        self.limit = capacity
        """Whoever comes while fewer run comes in; 0 while `admits` has to be asked about each."""
        self.watching = False
        """Whether `left` wants to hear of those who leave."""
        self._capacity = capacity
        self._running = running
        self._alone: Optional[Exchange] = None
        self._emptying: Optional[asyncio.TimerHandle] = None
        self._gap: Optional[asyncio.TimerHandle] = None
        self._waiting: Dict[Exchange, Tuple[float, asyncio.TimerHandle]] = {}
        self._offers: Dict[Connection, asyncio.TimerHandle] = {}

    def admits(self, x: Exchange) -> bool:
        """Whether it comes in now; who does must be counted as running at once."""
        offer = self._offers.pop(x.conn, None)
        if offer is not None:
            offer.cancel()
        if self._alone is not None:
            admitted = False
        elif ALONE in x.head.index:
            admitted = not self._running() and not self._offers
            self._stop_emptying()
            if admitted:
                self._alone = x
            else:
                self._emptying = asyncio.get_running_loop().call_later(EMPTYING_S, self._emptied)
        else:
            admitted = offer is not None or self._room() > 0
        self._settle()
        return admitted

    def parks(self, x: Exchange) -> bool:
        """Refuse it with an answer that ends when it is its gateway's turn; False: refuse it as usual."""
        if TURN not in x.head.index or len(self._waiting) >= MAX_WAITING:
            return False
        if not (x.head.keep_alive and x.head.http11) or x.head.method == b"HEAD":
            return False
        x.begin(503, CONTENT_TYPE, b"X-Headrace-Refused: wait\r\n")
        x.cancel = lambda: self._forget(x)
        timer = asyncio.get_running_loop().call_later(TURN_S, self._dismiss, x)
        self._waiting[x] = (time.monotonic(), timer)
        self._settle()
        return True

    def left(self, x: Exchange) -> None:
        """One of those in flight has ended."""
        if x is self._alone:
            self._alone = None
        self._call()

    def gone(self, connection: Connection) -> None:
        """A connection has ended: what was kept for it is for others."""
        offer = self._offers.pop(connection, None)
        if offer is not None:
            offer.cancel()
            self._call()

    def dismiss(self) -> None:
        """Nobody comes in any more: those who wait need not."""
        for x in list(self._waiting):
            self._dismiss(x)

    def _room(self) -> int:
        if self._alone is not None or self._emptying is not None:
            return 0
        return self._capacity - self._running() - len(self._offers)

    def _call(self) -> None:
        """Whoever waits gets what is free."""
        now = time.monotonic()
        while self._waiting and self._room() > 0:
            x, (since, _) = next(iter(self._waiting.items()))
            if now - since < SLICE_S:
                if self._gap is None:
                    self._gap = asyncio.get_running_loop().call_later(GAP_S, self._untaken)
                break
            self._offer(x)
        self._settle()

    def _untaken(self) -> None:
        self._gap = None
        while self._waiting and self._room() > 0:
            self._offer(next(iter(self._waiting)))
        self._settle()

    def _offer(self, x: Exchange) -> None:
        self._forget(x)
        self._offers[x.conn] = asyncio.get_running_loop().call_later(OFFER_S, self.gone, x.conn)
        x.end()

    def _dismiss(self, x: Exchange) -> None:
        self._forget(x)
        x.end()

    def _forget(self, x: Exchange) -> None:
        entry = self._waiting.pop(x, None)
        if entry is not None:
            entry[1].cancel()
        self._settle()

    def _emptied(self) -> None:
        self._emptying = None
        self._call()

    def _stop_emptying(self) -> None:
        if self._emptying is not None:
            self._emptying.cancel()
            self._emptying = None

    def _settle(self) -> None:
        special = self._alone is not None or self._emptying is not None or bool(self._offers)
        self.limit = 0 if special else self._capacity
        self.watching = special or bool(self._waiting)
