"""Which instance is the better choice, and how fast requests run and end: pure, given the time."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import islice
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from headrace import wire
    from headrace.gateway.endpoints import Instance

FEW = 4
"""Up to so many instances all are compared; above, two at random."""
SLOW = 1.5
"""Times the endpoint's usual service time: an instance that takes longer is no better for having run last."""
STALE_S = 10.0
"""What an instance needed so long ago says nothing of it now."""
SMOOTHING = 0.2
SAMPLES = 256
ENOUGH_SAMPLES = 20
RECOUNT = 16
WINDOW_S = 5
UNKNOWN_S = 0.01
MOST_DOUBLINGS = 6


class ServiceTime:
    """Smoothed service time of one instance, in seconds; 0 when nothing recent is known."""

    __slots__ = ("_at", "_failures", "_mean")

    def __init__(self) -> None:
        self._mean = 0.0
        self._at = float("-inf")
        self._failures = 0
        """In a row."""

    def observe(self, seconds: float, now: float) -> None:
        """A request took so long."""
        if self._failures or now - self._at > STALE_S:
            self._mean = seconds
            self._failures = 0
        else:
            self._mean += SMOOTHING * (seconds - self._mean)
        self._at = now

    def at_least(self, seconds: float, now: float) -> None:
        """A request was given up after so long: it is slower than that."""
        if seconds > self.get(now):
            self.observe(seconds, now)

    def failed(self, usual: float, now: float) -> None:
        """An answer was an error: those come fast, and must not draw all requests to where nothing works.

        It counts as twice the usual time, and each further one in a row as twice as much again.
        """
        self._failures = min(self._failures + 1, MOST_DOUBLINGS)
        self._mean = max(self.get(now), (usual or UNKNOWN_S) * 2.0**self._failures)
        self._at = now

    def get(self, now: float) -> float:
        """What a request takes there."""
        return self._mean if now - self._at <= STALE_S else 0.0


def best(
    group: Sequence[Instance], now: float, mean_s: float, avoid: tuple[str, ...] = ()
) -> Instance | None:
    """The cheapest free instance of all (few) or of two at random; cost = (in flight + 1) x service time.

    ``mean_s`` stands in where nothing is known of one. Those of ``avoid`` are taken only when no other
    is free: they live, says control, and all who wait behind the request would wait with it for another one.
    None: all are busy.
    """
    usual = mean_s or UNKNOWN_S
    count = len(group)
    if count > FEW and not avoid:
        one = int(random.random() * count)  # noqa: S311 - a choice, no secret
        two = (one + 1 + int(random.random() * (count - 1))) % count  # noqa: S311
        chosen = _cheapest((group[one], group[two]), now, usual)
        if chosen is not None:
            return chosen
    elif count <= FEW and not avoid:
        return _cheapest(group, now, usual)
    free = [i for i in group if i.free(now)]
    if avoid and len(free) > 1:
        free = [i for i in free if i.route.id not in avoid] or free
    if len(free) > FEW:
        free = random.sample(free, 2)
    return _cheapest(free, now, usual)


def latest(
    idle: dict[Instance, None], like: wire.InstanceRoute, now: float, mean_s: float
) -> Instance | None:
    """Of the idle instances that of ``like``'s version which was used last; None: none will do.

    One that is slower than usual, or answers with errors, is left to `best`: else it would get all requests.
    """
    slowest = SLOW * (mean_s or UNKNOWN_S)
    for instance in islice(reversed(idle), FEW):
        route = instance.route
        same = route.version == like.version and route.suspect == like.suspect
        if same and instance.free(now) and instance.speed.get(now) <= slowest:
            return instance
    return None


def _cheapest(group: Sequence[Instance], now: float, usual: float) -> Instance | None:
    found, lowest = None, float("inf")
    for instance in group:
        if instance.free(now):
            cost = (instance.in_flight + 1) * (instance.speed.get(now) or usual)
            if cost < lowest:
                found, lowest = instance, cost
    return found


class Quantile:
    """A quantile of the last `SAMPLES` values; None below `ENOUGH_SAMPLES`."""

    __slots__ = ("_due", "_next", "_value", "_values", "q")

    def __init__(self, q: float) -> None:
        self.q = q
        self._values: list[float] = []
        self._next = 0
        self._due = 0
        self._value = 0.0

    def add(self, value: float) -> None:
        """One more."""
        if len(self._values) < SAMPLES:
            self._values.append(value)
        else:
            self._values[self._next] = value
            self._next = (self._next + 1) % SAMPLES
        self._due -= 1

    def get(self) -> float | None:
        """The quantile, counted anew every `RECOUNT` values."""
        count = len(self._values)
        if count < ENOUGH_SAMPLES:
            return None
        if self._due <= 0:
            self._value = sorted(self._values)[min(count - 1, int(self.q * count))]
            self._due = RECOUNT
        return self._value


class Rate:
    """Events per second over the last `WINDOW_S` seconds."""

    __slots__ = ("_counts", "_second", "_since")

    def __init__(self) -> None:
        self._counts = [0] * WINDOW_S
        self._second = -1
        self._since = 0.0

    def count(self, now: float) -> None:
        """One happened."""
        second = int(now)
        if second != self._second:
            self._turn(second, now)
        self._counts[second % WINDOW_S] += 1

    def get(self, now: float) -> float:
        """Events per second; 0 when none came lately."""
        if self._second < 0:
            return 0.0
        self._turn(int(now), now)
        total = sum(self._counts)
        # The second that runs has only just begun.
        span = min(now - self._since, WINDOW_S - 1 + now % 1.0)
        return total / max(span, 0.2) if total else 0.0

    def _turn(self, second: int, now: float) -> None:
        if self._second < 0 or second - self._second >= WINDOW_S:
            self._counts = [0] * WINDOW_S
            self._since = now
        else:
            for passed in range(self._second + 1, second + 1):
                self._counts[passed % WINDOW_S] = 0
        self._second = second
