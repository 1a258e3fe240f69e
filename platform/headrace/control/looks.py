"""Looks that a decision asks for: something falls due later, although nothing happens until then."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from headrace.control.model import Endpoint, World

SOONEST_S = 0.02
"""No look comes sooner after the one that asked for it: a policy that errs must not keep control busy."""


class Looks:
    """At most one per endpoint; the newest decision's counts. ``look`` decides anew."""

    def __init__(self, world: World, look: Callable[[Endpoint], None]) -> None:
        self._world = world
        self._look = look
        self._timers: dict[Endpoint, asyncio.TimerHandle] = {}

    def at(self, endpoint: Endpoint, when: float | None) -> None:
        """Look at ``when`` on the world's clock; None: no look is due."""
        timer = self._timers.pop(endpoint, None)
        if timer is not None:
            timer.cancel()
        if when is not None and not endpoint.deleting:
            delay = max(SOONEST_S, when - self._world.now())
            loop = asyncio.get_running_loop()
            self._timers[endpoint] = loop.call_later(delay, self._due, endpoint)

    def stop(self) -> None:
        """None comes any more."""
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()

    def _due(self, endpoint: Endpoint) -> None:
        del self._timers[endpoint]
        if self._world.endpoints.get(endpoint.key) is endpoint and not endpoint.deleting:
            self._world.touch(endpoint)
            self._look(endpoint)
