"""Who waits for room on full hosts, first come first served, and how control learns at once of room."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from headrace.control.model import Endpoint, World
from headrace.control.routes import Routes

log = logging.getLogger("headrace.control")

EAGER_S = 2.0
"""Gateways report eagerly for so long after they were asked, and are asked again while somebody waits."""
ASK_EVERY_S = 0.02
FAILURES = 64
"""So many that still find no room end a pass: the rest has its turn with the next tick."""


class Shortage:
    """``again`` decides anew for an endpoint, and calls `note` with what came of it."""

    def __init__(self, world: World, routes: Routes, again: Callable[[Endpoint], None]) -> None:
        self._world = world
        self._routes = routes
        self._again = again
        self._waiting: dict[str, Endpoint] = {}
        """By lane, in the order in which they began to wait."""
        self._noted: set[str] = set()
        self._asked = float("-inf")
        self._ask_timer: asyncio.TimerHandle | None = None
        self._pass: asyncio.Handle | None = None

    def stop(self) -> None:
        """Nothing is done any more by itself."""
        for handle in (self._ask_timer, self._pass):
            if handle is not None:
                handle.cancel()

    def note(self, lane: str, endpoint: Endpoint, waits: bool) -> None:
        """What was decided last: whether the lane waits for room."""
        self._noted.add(lane)
        if not waits:
            self._waiting.pop(lane, None)
            return
        if lane not in self._waiting:
            self._waiting[lane] = endpoint
            # What gateways said last may be half a second old.
            self.ask()

    def ask(self) -> None:
        """Have gateways say now, and for a while at once, what is idle; bounded in rate."""
        if self._ask_timer is not None:
            return
        wait = self._asked + ASK_EVERY_S - self._world.now()
        if wait > 0:
            self._ask_timer = asyncio.get_running_loop().call_later(wait, self._ask)
        else:
            self._ask()

    def changed(self) -> None:
        """An instance became idle or ended: those that wait try again, soon and together."""
        if self._waiting and self._pass is None:
            self._pass = asyncio.get_running_loop().call_soon(self.settle)

    def settle(self) -> None:
        """Try again now, if anything has changed: nobody who comes later gets what they wait for."""
        if self._pass is not None:
            self._pass.cancel()
            self._pass = None
            self._try()

    def tick(self) -> None:
        """Every tick: try again, and keep gateways eager."""
        if not self._waiting:
            return
        if self._pass is not None:
            self._pass.cancel()
            self._pass = None
        self._try()
        if self._waiting and self._world.now() - self._asked > EAGER_S / 2:
            self.ask()

    def _ask(self) -> None:
        self._ask_timer = None
        self._asked = self._world.now()
        self._routes.ask(EAGER_S)

    def _try(self) -> None:
        failures = 0
        self._noted.clear()
        for lane, endpoint in list(self._waiting.items()):
            if endpoint.deleting or self._world.endpoints.get(endpoint.key) is not endpoint:
                self._waiting.pop(lane, None)
                continue
            if lane in self._noted:
                # Decided already, with another lane of its endpoint.
                continue
            try:
                self._again(endpoint)
            except Exception:
                # One bad endpoint must not keep the others waiting.
                log.exception("deciding for %s failed; the next tick tries again", endpoint.key)
            if lane not in self._noted:
                # There is no such lane any more.
                self._waiting.pop(lane, None)
            elif lane in self._waiting:
                failures += 1
                if failures >= FAILURES:
                    break
