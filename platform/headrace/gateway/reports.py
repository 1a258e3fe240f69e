"""What control is told of demand, and when: every 0.5 s, ahead of a wake, at once while room is short."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection
from itertools import islice

from headrace import wire
from headrace.gateway.endpoints import EndpointState, demand_of

BURST_S = 0.02
"""After a wake, control hears so soon how many requests came with the first one."""
EAGER_S = 0.005
"""While room is short, control hears so soon which instances became idle."""
AHEAD = 64
"""Endpoints reported ahead of a wake at most; the others come with the next report."""


class Reports:
    """Sends `wire.Demand` through ``send``, which may drop it and say False."""

    def __init__(self, loop: asyncio.AbstractEventLoop, send: Callable[[wire.AnyMessage], bool]) -> None:
        self._loop = loop
        self._send = send
        self._active: set[EndpointState] = set()
        # In the order in which they came: a dict, for want of an ordered set.
        self._due: dict[EndpointState, None] = {}
        self._eager_until = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def active(self, state: EndpointState) -> None:
        """It has something to report until it is quiet."""
        self._active.add(state)

    def waiting(self) -> list[EndpointState]:
        """Those with requests that wait."""
        return [state for state in self._active if state.queue]

    def idle(self, state: EndpointState) -> None:
        """One of its instances became idle. Called for every request that ends: must stay cheap."""
        self._due[state] = None
        if self._eager_until and self._timer is None:
            if time.monotonic() < self._eager_until:
                self._timer = self._loop.call_later(EAGER_S, self._some)
            else:
                self._eager_until = 0.0

    def ahead(self) -> None:
        """A wake follows: control shall know first which instances may give way."""
        if self._due:
            self._tell(list(islice(self._due, AHEAD)))

    def woken(self, state: EndpointState) -> None:
        """A wake was sent: say soon how many requests came with the first."""
        self._due[state] = None
        if self._timer is None:
            self._timer = self._loop.call_later(BURST_S, self._some)

    def ask(self, eager_s: float) -> None:
        """Control needs to know, now and for so long."""
        if eager_s > 0:
            self._eager_until = max(self._eager_until, time.monotonic() + eager_s)
        self.all()

    def all(self) -> None:
        """Send what changed since the last report; zeros once when an endpoint goes quiet."""
        self._stop_timer()
        self._tell(self._active | self._due.keys())

    def close(self) -> None:
        """Nothing is sent any more by itself."""
        self._stop_timer()

    def _some(self) -> None:
        self._timer = None
        self._tell(list(self._due))

    def _tell(self, states: Collection[EndpointState]) -> None:
        if not states:
            return
        now = time.monotonic()
        if not self._send(wire.Demand(items=[demand_of(state, now) for state in states])):
            return
        for state in states:
            self._due.pop(state, None)
            if not (state.in_flight or state.queue or state.finished or state.stored or state.held):
                self._active.discard(state)
            state.told()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
