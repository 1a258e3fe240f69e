"""What the simulated runs are judged by: figures of one run, curves, verdicts, fleet sizes. Pure."""

from __future__ import annotations

import heapq
import itertools
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from headrace_autoscaler.simulate.scenario import Floats, Result
from headrace_autoscaler.simulate.stats import availability, figures, interval

Point = tuple[float, float]
"""(dollars, share of requests that started in time)."""


@dataclass(frozen=True)
class Slo:
    """``share`` of requests (all of them, or those of one minute) start within ``within_s``."""

    within_s: float = 10.0
    share: float = 0.99


def of_run(result: Result) -> dict[str, float]:
    """One run's figures, those of the simulator's summaries. A request that failed was within no time."""
    found = figures(result)
    first = result.waits if result.first_waits is None else result.first_waits
    return {
        **found,
        "availability_first": availability(replace(result, waits=first)),
        "error_rate": found["errors"] / found["requests"] if found["requests"] else 0.0,
        "seconds": result.seconds,
    }


def over_seeds(runs: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Means of all figures, 95 % intervals of cost, share and availability, and the worst availability."""
    found: dict[str, Any] = {name: statistics.fmean(run[name] for run in runs) for name in runs[0]}
    found["seeds"] = len(runs)
    found["least_availability"] = min(run["availability"] for run in runs)
    if len(runs) > 1:
        named = ("cost_usd", "share_within_10s", "availability")
        found["ci"] = {name: interval([run[name] for run in runs]) for name in named}
    return found


def share_at(curve: Iterable[Point], dollars: float) -> float | None:
    """The curve's share at this cost, on the straight line between the neighbouring points.

    No convex hull: between two points a policy does what lies between them, however far another pair could
    reach over it. Beyond the dearest point: its share, for nobody pays more for less. None: cheaper than
    its cheapest point.
    """
    points = _by_cost(curve)
    if dollars < points[0][0]:
        return None
    for (low, least), (high, most) in itertools.pairwise(points):
        if low <= dollars <= high:
            return least + (most - least) * (dollars - low) / (high - low)
    return points[-1][1]


def cost_at(curve: Iterable[Point], share: float) -> float | None:
    """The least cost at which the curve reaches ``share``, same lines; None: it never does."""
    points = _by_cost(curve)
    if points[0][1] >= share:
        return points[0][0]
    for (low, least), (high, most) in itertools.pairwise(points):
        if most >= share:
            return low + (high - low) * (share - least) / (most - least)
    return None


def _by_cost(curve: Iterable[Point]) -> list[Point]:
    """In order of cost; of those that cost the same the best."""
    best: dict[float, float] = {}
    for dollars, share in curve:
        best[dollars] = max(share, best.get(dollars, share))
    if not best:
        raise ValueError("a curve needs a point")
    return sorted(best.items())


def judge(curve: Sequence[Point], others: Mapping[str, Point]) -> list[dict[str, Any]]:
    """For each of ``others`` whether it lies on or above the curve, and how far from it.

    ``beats``: at its cost our share is no higher. One that is cheaper than all our points beats us when it
    is also no worse than our cheapest; otherwise the two can't be compared (``where`` says ``cheaper``).
    """
    points = _by_cost(curve)
    found = []
    for name, (dollars, share) in others.items():
        ours = share_at(points, dollars)
        where = "cheaper" if ours is None else "dearer" if dollars > points[-1][0] else "within"
        same = cost_at(points, share)
        found.append(
            {
                "policy": name,
                "cost_usd": dollars,
                "share": share,
                "where": where,
                "our_share": ours,
                "our_cost_usd": same,
                "saved": None if same is None else 1 - same / dollars,
                "beats": share >= (points[0][1] if ours is None else ours),
            }
        )
    return found


def smallest(meets: Callable[[int], bool], least: int, most: int) -> int | None:
    """The smallest count from ``least`` to ``most`` that meets it, by halving: ``meets`` must stay true
    once it is. None: not even ``most`` does."""
    if not meets(most):
        return None
    low, high = least, most
    while low < high:
        middle = (low + high) // 2
        if meets(middle):
            high = middle
        else:
            low = middle + 1
    return low


def fleet_waits(arrivals: Floats, durations: Floats, count: int) -> Floats:
    """Seconds that each request waits for one of ``count`` servers: none fails, first come first served."""
    free = [0.0] * count
    waits = []
    for at, length in zip(arrivals.tolist(), durations.tolist(), strict=True):
        begin = max(at, free[0])
        heapq.heapreplace(free, begin + length)
        waits.append(begin - at)
    return np.array(waits, dtype=np.float64)


def fleet_for(arrivals: Floats, durations: Floats, slo: Slo, most: int) -> int | None:
    """The smallest fleet without failures in which ``slo.share`` start in time; None: above ``most``."""

    def meets(count: int) -> bool:
        return bool(np.mean(fleet_waits(arrivals, durations, count) <= slo.within_s) >= slo.share)

    return smallest(meets, 1, most)


def turns_at(points: Iterable[tuple[float, float, float]]) -> float | None:
    """Where the first of two costs stops being the higher one.

    ``points``: (x, first, second). On the straight line between the last x where the first is dearer and
    the next one; None: it never is, or always.
    """
    ordered = sorted(points)
    for (low, one, two), (high, then, against) in itertools.pairwise(ordered):
        above, below = one - two, then - against
        if above > 0 >= below:
            return low + (high - low) * above / (above - below)
    return None


def overlap(arrivals: Floats, durations: Floats) -> tuple[float, int]:
    """(mean, peak) number of requests in service, if each had been served at once."""
    if not len(arrivals):
        return 0.0, 0
    times = np.concatenate([arrivals, arrivals + durations])
    steps = np.concatenate([np.ones(len(arrivals)), -np.ones(len(arrivals))])
    # Who leaves makes place before who comes at the same moment.
    running = np.cumsum(steps[np.lexsort((steps, times))])
    span = float(np.max(arrivals) - np.min(arrivals)) or float(np.max(durations))
    return float(np.sum(durations)) / span, int(np.max(running))


def busiest(arrivals: Floats, durations: Floats, length_s: float, step_s: float = 300.0) -> float:
    """Begin of the stretch of ``length_s`` with the most work arriving, to ``step_s``."""
    bins = np.bincount((arrivals // step_s).astype(int), weights=durations)
    width = max(1, round(length_s / step_s))
    sums = np.convolve(bins, np.ones(width), mode="valid") if len(bins) > width else bins[:1]
    return float(np.argmax(sums)) * step_s
