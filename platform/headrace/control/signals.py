"""What is measured of one endpoint over time, for the autoscaler: arrivals, demand, service and start times.

Gateways count from zero with each leader, so what one says first is all that came. What cannot be known is
None: before a gateway has said anything, while one that had requests is silent or away, or does not count.
"""

from __future__ import annotations

from collections import deque
from statistics import median

from headrace_autoscaler.spec import MAX_SERVED

from headrace import wire

AWAY_S = 10.0
"""A gateway that is not back by then has ended: what it had then comes to others, which count it."""
UNCOUNTED_S = 5.0
"""So long the word of a gateway that does not count leaves open how much came."""
MAX_GATEWAYS = 128
STARTS_KEPT = 16
NEVER = float("-inf")
FAST: tuple[wire.Tier, ...] = ("warm", "forked")
"""Starts from a zygote or a waiting container that was there."""


class Signals:
    """Of one endpoint, from all gateways and hosts."""

    __slots__ = (
        "_at",
        "_away",
        "_last",
        "_served",
        "_starts",
        "_stored",
        "_uncounted",
        "arrived",
        "demand_s",
    )

    def __init__(self) -> None:
        self.arrived = 0
        self.demand_s = 0.0
        self._last: dict[str, tuple[int, float]] = {}
        """What each gateway said last: (arrived, demand_s)."""
        self._away: dict[str, float] = {}
        """Gateways whose links ended while they had requests of it, and when."""
        self._uncounted = NEVER
        self._stored, self._at = 0, 0.0
        self._served: deque[float] = deque(maxlen=MAX_SERVED)
        self._starts: deque[tuple[wire.Tier, float]] = deque(maxlen=STARTS_KEPT)

    def heard(self, gateway: str, item: wire.EndpointDemand, now: float) -> None:
        """A gateway reports."""
        self._away.pop(gateway, None)
        self._served.extend(item.served)
        if item.arrived is None or item.demand_s is None:
            self._uncounted = now
            return
        arrived, demand_s = self._last.pop(gateway, (0, 0.0))
        if item.arrived < arrived:
            # It began anew.
            arrived, demand_s = 0, 0.0
        self.arrived += item.arrived - arrived
        self.demand_s += max(0.0, item.demand_s - demand_s)
        if len(self._last) >= MAX_GATEWAYS:
            del self._last[next(iter(self._last))]
        self._last[gateway] = item.arrived, item.demand_s

    def stored(self, jobs: int, now: float) -> None:
        """So many jobs wait in the store from now on: demand, too, of which only samples are known."""
        self.demand_s += self._stored * (now - self._at)
        self._stored, self._at = jobs, now

    def lost(self, gateway: str, now: float) -> None:
        """The link of a gateway that has requests ended: it may go on to serve without being heard."""
        self._away[gateway] = now

    def known(self, now: float) -> bool:
        """Whether the counters have all that came."""
        for gateway, at in list(self._away.items()):
            if now - at > AWAY_S:
                del self._away[gateway]
        return bool(self._last) and not self._away and now - self._uncounted > UNCOUNTED_S

    def take_served(self) -> tuple[float, ...]:
        """Service times since the last call, the newest `MAX_SERVED`."""
        found = tuple(self._served)
        self._served.clear()
        return found

    def started(self, tier: wire.Tier, seconds: float) -> None:
        """An instance became ready, so long after its claim."""
        self._starts.append((tier, seconds))

    def start_s(self, *, warm: bool) -> float | None:
        """What a start takes, the median of the last ones: of those like the next one, if there were any.

        ``warm``: whether a host has what it can be forked from. None: none was seen.
        """
        like = [seconds for tier, seconds in self._starts if (tier in FAST) is warm]
        seen = like or [seconds for _, seconds in self._starts]
        return median(seen) if seen else None
