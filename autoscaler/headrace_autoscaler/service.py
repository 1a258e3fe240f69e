"""How long requests take: a small sketch that forgets, and what it says of those that run. Pure.

The sketch counts in bins whose edges grow by a constant factor, so that every quantile is right to a
few per cent whatever the scale (DDSketch: Masson, Rim, Lee, VLDB 2019). When it holds `CAPACITY` requests
all counts are halved: requests are forgotten by the number of those that came after them, and the
counts stay whole numbers. What is asked for is conditional on the age of what runs: of requests that took
longer than this one has taken already, which share ended within the next seconds?

Why: when an instance becomes free before a new one could be ready, starting one buys nothing.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from itertools import accumulate, pairwise

from headrace_autoscaler.states import ServiceState

SHORTEST_S = 0.001
LONGEST_S = 86400.0
GROWTH = 1.1
"""Of the bins' edges: what is read from a bin is wrong by 10 % at most."""
BINS = math.ceil(math.log(LONGEST_S / SHORTEST_S) / math.log(GROWTH))
CAPACITY = 1024
"""Requests at which the counts are halved."""
ENOUGH = 20
"""With fewer requests than this nothing is said."""
STEPS = 16
"""Parts in which a span is cut to count the requests that follow each other in it."""

_EDGES = tuple(SHORTEST_S * GROWTH**number for number in range(BINS + 1))


def add(service: ServiceState, served: Iterable[float]) -> ServiceState:
    """The sketch with the service times (seconds) of requests that ended; the same object without any.

    Times outside of `SHORTEST_S` to `LONGEST_S` count as those.
    """
    times = [min(max(seconds, SHORTEST_S), LONGEST_S) for seconds in served]
    if not times:
        return service
    bins = list(service.bins)
    # A look sees a few that ended, and there are dozens of bins: each is put where it belongs.
    for seconds in times:
        number = bisect_right(_EDGES, seconds) - 1
        place = bisect_left(bins, (number,))
        if place < len(bins) and bins[place][0] == number:
            bins[place] = (number, bins[place][1] + 1)
        else:
            bins.insert(place, (number, 1))
    after = ServiceState(
        bins=tuple(bins),
        total=service.total + len(times),
        seconds=service.seconds + sum(times),
    )
    while after.total > CAPACITY:
        after = _halved(after)
    return after


def _halved(service: ServiceState) -> ServiceState:
    """Half of everything. Running sums are halved, so that what one bin's rounding loses the next gets."""
    halves = [0, *(below // 2 for below in accumulate(count for _, count in service.bins))]
    counts = zip(service.bins, pairwise(halves), strict=True)
    return ServiceState(
        bins=tuple((number, high - low) for (number, _), (low, high) in counts if high > low),
        total=halves[-1],
        seconds=service.seconds * halves[-1] / service.total,
    )


class Durations:
    """A sketch laid out to be asked; `durations` makes one."""

    def __init__(self, service: ServiceState) -> None:
        self._numbers = [number for number, _ in service.bins]
        self._sums = [0, *accumulate(count for _, count in service.bins)]
        self._total = service.total
        self.mean = service.seconds / service.total
        """Seconds that a request takes on average."""

    def quantile(self, share: float) -> float:
        """Seconds within which ``share`` (0 to 1) of the requests end."""
        rank = min(max(share, 0.0), 1.0) * self._total
        place = max(1, bisect_left(self._sums, rank))
        low, high = self._sums[place - 1], self._sums[place]
        edge = self._numbers[place - 1]
        return _EDGES[edge] + (_EDGES[edge + 1] - _EDGES[edge]) * (rank - low) / (high - low)

    def free_within(self, age: float, horizon: float) -> float | None:
        """The chance that a request that has run for ``age`` seconds ends within the next ``horizon``.

        None: no request is known that took longer than this one has taken already.
        """
        start = self._below(age)
        longer = self._total - start
        return (self._below(age + horizon) - start) / longer if longer >= 1.0 else None

    def completions(self, ages: Sequence[float], horizon: float) -> float:
        """Requests that busy instances end within ``horizon`` seconds if there is always a next one.

        ``ages`` says for how long the request of each has run. The first end is conditional on that, those
        that follow are a renewal process (the renewal equation in `STEPS` steps; an end within a step
        counts at its end, so this is rather too few), or horizon / mean when many fit into one step. An
        instance whose request took longer than any that is known counts nothing.
        """
        step = horizon / STEPS
        ends = [self._below(step * number) / self._total for number in range(STEPS + 1)]
        within = [high - low for low, high in pairwise(ends)]
        follow = [0.0]
        for number in range(STEPS):
            chained = sum(share * (1.0 + follow[number - i]) for i, share in enumerate(within[: number + 1]))
            follow.append(max(chained, (number + 1) * step / self.mean) if self.mean < step else chained)
        found = 0.0
        for age in ages:
            below = [self._below(age + step * number) for number in range(STEPS + 1)]
            longer = self._total - below[0]
            if longer >= 1.0:
                chances = ((high - low) / longer for low, high in pairwise(below))
                found += sum(
                    chance * (1.0 + then) for chance, then in zip(chances, follow[-2::-1], strict=True)
                )
        return found

    def _below(self, seconds: float) -> float:
        """How many of the requests took at most so long, with a bin's spread evenly over it."""
        edge = bisect_right(_EDGES, seconds) - 1
        place = bisect_left(self._numbers, edge)
        below = self._sums[place]
        if place == len(self._numbers) or self._numbers[place] != edge:
            return below
        part = (seconds - _EDGES[edge]) / (_EDGES[edge + 1] - _EDGES[edge])
        return below + (self._sums[place + 1] - below) * part


def durations(service: ServiceState) -> Durations | None:
    """What the sketch says; None: it has seen too few requests."""
    return Durations(service) if service.total >= ENOUGH else None
