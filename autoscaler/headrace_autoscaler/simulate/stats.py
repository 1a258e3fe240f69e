"""What runs come to: the figures of one policy over several seeds, with confidence intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from headrace_autoscaler.simulate.scenario import Floats, Result
from headrace_autoscaler.values import Value

MINUTE_S = 60.0
AVAILABLE_WITHIN_S = 30.0
AVAILABLE_SHARE = 0.99
_EPSILON = 1e-9
_Z = 1.959963984540054
"""The normal distribution's 97.5 % point."""
_STUDENT = (12.7062, 4.30265, 3.18245, 2.77645, 2.57058, 2.44691, 2.36462, 2.30600, 2.26216, 2.22814)
"""Student's t for 95 % two-sided, for 1 to 10 degrees of freedom."""


class Summary(Value, frozen=True, kw_only=True):
    """The figures of one policy: means over its runs. NaN (null in JSON): there were no requests.

    Waits are from arrival to start of service, percentiles of those that were served. Shares are of all
    counted requests; one that failed is within no time. ``ci`` of a figure is where its mean is with 95 %
    confidence (Student's t over the seeds); there is none for a single run.
    """

    policy: str
    seeds: int
    requests: float
    cost_usd: float
    bound_ratio: float | None
    """Cost as a multiple of the lower bound; None: no bound was given."""
    wait_p50_s: float
    wait_p95_s: float
    wait_p99_s: float
    share_within_2s: float
    share_within_10s: float
    share_within_30s: float
    starts: float
    errors: float
    cold_share: float
    """Of those served: they waited for an instance that was being started."""
    availability: float
    """Share of the minutes with requests in which enough of them started soon (`available_minutes`)."""
    busy_usd: float
    idle_usd: float
    starting_usd: float
    sunk_usd: float
    preempted_usd: float
    by_supply_usd: dict[str, float]
    error_reasons: dict[str, float]
    decisions: float
    ci: dict[str, tuple[float, float]]


def summarise(results: Sequence[Result], bound_usd: float | None = None) -> Summary:
    """The figures of one policy's runs, one per seed.

    ``bound_usd``: the lower bound of the cost. Raises ``ValueError`` without a run, or with runs of
    different policies.
    """
    if not results:
        raise ValueError("there is no run to summarise: give at least one")
    names = sorted({result.policy for result in results})
    if len(names) > 1:
        raise ValueError(f"these runs are of different policies ({', '.join(names)}): summarise each alone")
    rows = [figures(result, bound_usd) for result in results]
    means = {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
    ratio = means.pop("bound_ratio", None)
    return Summary(
        policy=names[0],
        seeds=len(results),
        bound_ratio=ratio,
        by_supply_usd=_mean_by_name([result.by_supply for result in results]),
        error_reasons=_mean_by_name([result.errors for result in results]),
        ci={name: interval([row[name] for row in rows]) for name in rows[0]} if len(rows) > 1 else {},
        **means,
    )


def figures(result: Result, bound_usd: float | None = None) -> dict[str, float]:
    """The numbers of one run, by their names in `Summary`."""
    waits, cost = result.waits, result.cost
    failed = len(result.failed_at)
    counted = len(waits) + failed
    found = {
        "requests": counted,
        "cost_usd": cost.total,
        "starts": result.starts,
        "errors": failed,
        "cold_share": float(np.mean(result.cold)) if len(waits) else math.nan,
        "availability": availability(result),
        "busy_usd": cost.busy,
        "idle_usd": cost.idle,
        "starting_usd": cost.starting,
        "sunk_usd": cost.sunk,
        "preempted_usd": cost.preempted,
        "decisions": result.decisions,
    }
    for part, value in zip((50, 95, 99), percentiles(waits, (50, 95, 99)), strict=True):
        found[f"wait_p{part}_s"] = value
    for limit in (2, 10, 30):
        found[f"share_within_{limit}s"] = share_within(result, limit)
    if bound_usd is not None:
        found["bound_ratio"] = cost.total / bound_usd if bound_usd > 0 else math.nan
    return found


def percentiles(waits: Floats, parts: Sequence[float]) -> list[float]:
    """Percentiles, between two waits by straight line; NaN of none."""
    if not len(waits):
        return [math.nan] * len(parts)
    return [float(value) for value in np.percentile(waits, parts)]


def share_within(result: Result, seconds: float) -> float:
    """Share of all counted requests that started within so long; NaN when there were none."""
    counted = len(result.waits) + len(result.failed_at)
    return float(np.count_nonzero(result.waits <= seconds)) / counted if counted else math.nan


def available_minutes(result: Result) -> tuple[int, int]:
    """(minutes in which at least 99 % of the requests that arrived started within 30 s, minutes with any).

    Requests that failed count as misses of the minute in which they arrived.
    """
    minutes = (np.concatenate([result.arrivals, result.failed_at]) // MINUTE_S).astype(np.int64)
    soon = np.concatenate([result.waits <= AVAILABLE_WITHIN_S, np.zeros(len(result.failed_at), np.bool_)])
    if not len(minutes):
        return 0, 0
    asked = np.bincount(minutes)
    met = np.bincount(minutes, weights=soon)
    used = asked > 0
    return int(np.count_nonzero(met[used] >= AVAILABLE_SHARE * asked[used] - _EPSILON)), int(
        np.count_nonzero(used)
    )


def availability(result: Result) -> float:
    """The share of `available_minutes`; NaN when there were no requests."""
    met, asked = available_minutes(result)
    return met / asked if asked else math.nan


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Where the mean of what these are a sample of is, with 95 % confidence; needs two values."""
    if len(values) < 2:
        raise ValueError("one value has no confidence interval: play more seeds")
    middle = float(np.mean(values))
    half = student(len(values) - 1) * float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return middle - half, middle + half


def student(freedom: int) -> float:
    """Student's t for 95 % two-sided: a table, then the Cornish-Fisher expansion (Abramowitz 26.7.5)."""
    if freedom <= len(_STUDENT):
        return _STUDENT[freedom - 1]
    z = _Z
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / freedom + second / freedom**2 + third / freedom**3


def _mean_by_name(rows: Sequence[dict[str, int]] | Sequence[dict[str, float]]) -> dict[str, float]:
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: sum(row.get(name, 0.0) for row in rows) / len(rows) for name in names}
