"""What came and how long it took, per endpoint, for control: plain arithmetic, a few steps per request.

The counters only grow. They begin at zero with the gateway and with each leader that it speaks to, so that
what control reads first is all of it; a report that is lost costs nothing, since the next one has it, too.
"""

from __future__ import annotations

import random

SERVED_KEPT = 64
"""Service times in one report; of more, each has the same chance to be among them (Vitter's algorithm R)."""


class Tally:
    """Counters of one endpoint."""

    __slots__ = ("_at", "_closed", "_held", "_live", "_seen", "_served", "arrived")

    def __init__(self) -> None:
        self.arrived = 0
        """Requests that came. A stored job comes when a gateway takes it."""
        self._closed = 0.0
        """Sum of ends less sum of begins: with ``now`` for the ends of those that go on it is their time."""
        self._live = 0
        self._held = 0
        self._at = 0.0
        self._served: list[float] = []
        self._seen = 0

    def begin(self, now: float) -> None:
        """A request came."""
        self.arrived += 1
        self._live += 1
        self._closed -= now

    def end(self, now: float) -> None:
        """A request has come to its end."""
        self._live -= 1
        self._closed += now

    def serve(self, seconds: float) -> None:
        """A request that an instance had has ended, so long after it was sent there."""
        self._seen += 1
        if self._seen <= SERVED_KEPT:
            self._served.append(seconds)
        else:
            place = int(random.random() * self._seen)  # noqa: S311 - a sample, no secret
            if place < SERVED_KEPT:
                self._served[place] = seconds

    def demand_s(self, now: float, held: int = 0) -> float:
        """The integral of requests in flight and waiting over time, in request-seconds.

        ``held``: jobs that wait here without being requests yet; of them only samples are known, these.
        """
        self._closed += self._held * (now - self._at)
        self._held, self._at = held, now
        return self._closed + self._live * now

    def served(self) -> tuple[float, ...]:
        """Service times since `told`, in seconds."""
        return tuple(self._served)

    def told(self) -> None:
        """Control has the service times."""
        self._served.clear()
        self._seen = 0

    def anew(self, now: float) -> None:
        """Another leader listens: to it nothing has come yet."""
        self.arrived = 0
        self._closed = -self._live * now
        self.told()
