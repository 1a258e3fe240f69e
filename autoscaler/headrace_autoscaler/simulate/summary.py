"""What is told of simulated runs: figures as a JSON document, what is unbeaten, how uneven demand is."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np

from headrace_autoscaler.simulate.bounds import BIN_S, Bound, scenario_bound
from headrace_autoscaler.simulate.generators import DAY_S
from headrace_autoscaler.simulate.program import MissingExtraError
from headrace_autoscaler.simulate.scenario import Floats, Result, Scenario, Trace
from headrace_autoscaler.simulate.stats import MINUTE_S, summarise

PEAK_BIN_S = 300.0
"""Demand is averaged over so long before its peak is looked for."""
MAX_BINS = 120_000
"""Of the bound's linear program, over all supplies: 100,000 take about 8 s."""
LONGEST_BIN_S = 60.0
TIME_LIMIT_S = 120.0


def document(results: Sequence[Result], bound_usd: float | None) -> dict[str, Any]:
    """One policy's figures over its runs, for JSON: those of `stats.Summary`, unknown as None."""
    found: dict[str, Any] = msgspec.to_builtins(summarise(results, bound_usd))
    del found["policy"]
    return {name: _known(value) for name, value in found.items()}


def _known(value: Any) -> Any:
    """NaN is no JSON: None in its place."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {name: _known(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return None if any(_known(inner) is None for inner in value) else list(value)
    return value


def half_width(figures: Mapping[str, Any], name: str) -> float:
    """Of the 95 % confidence interval of a figure; 0 where one run says nothing of it."""
    low, high = figures["ci"].get(name) or (0.0, 0.0)
    return float(high - low) / 2


def unbeaten(figures: Mapping[str, Mapping[str, Any]]) -> set[str]:
    """Policies for which no other is as cheap and serves as many within 10 s (and one of both better)."""

    def place(name: str) -> tuple[float, float]:
        return figures[name]["cost_usd"], -(figures[name]["share_within_10s"] or 0.0)

    def beats(other: str, name: str) -> bool:
        (cost, missed), (their_cost, their_missed) = place(name), place(other)
        return their_cost <= cost and their_missed <= missed and place(other) != place(name)

    return {name for name in figures if not any(beats(other, name) for other in figures)}


def counted_days(scenario: Scenario) -> float:
    """For how long requests were seen, in the part that counts; a minute at least.

    What is spent after the last one is spent for them: it is no part of a day.
    """
    return max(MINUTE_S, scenario.trace.end - scenario.warm_up_s) / DAY_S


def offered(trace: Trace, edges: Floats) -> Floats:
    """Mean number of requests at once between each two edges (seconds), if none ever waited."""
    # The integral of the number at once, up to an edge, is how much of all requests lies before it.
    integral = _ramp(np.sort(trace.arrivals), edges) - _ramp(np.sort(trace.arrivals + trace.durations), edges)
    return np.asarray(np.diff(integral) / np.diff(edges), dtype=np.float64)


def _ramp(times: Floats, at: Floats) -> Floats:
    """Sum of max(0, at - time) over all times, which are sorted."""
    count = np.searchsorted(times, at, "right")
    sums = np.concatenate(([0.0], np.cumsum(times)))
    return np.asarray(count * at - sums[count], dtype=np.float64)


def mean_and_peak(scenario: Scenario) -> tuple[float, float]:
    """(mean, peak over `PEAK_BIN_S`) requests at once in the part that counts, if none ever waited."""
    begin, end = scenario.warm_up_s, scenario.trace.end
    if end <= begin:
        return 0.0, 0.0
    edges = np.linspace(begin, end, max(1, math.ceil((end - begin) / PEAK_BIN_S)) + 1)
    count = offered(scenario.trace, edges)
    return float(count.mean()), float(count.max())


def lower_bound(scenario: Scenario, bin_s: float | None = None) -> Bound:
    """`bounds.scenario_bound` in bins that take seconds to solve; a longer bin is looser, and still a bound.

    Where there is none (without the extra that it needs, or when these supplies can't serve so much) its
    dollars are NaN and its note says why.
    """
    span = scenario.trace.end - scenario.warm_up_s + scenario.tail_s
    size = span * len(scenario.supplies) / MAX_BINS
    chosen = min(LONGEST_BIN_S, max(BIN_S, math.ceil(size / BIN_S) * BIN_S)) if bin_s is None else bin_s
    try:
        return scenario_bound(scenario, bin_s=chosen, time_limit_s=TIME_LIMIT_S)
    except (MissingExtraError, ValueError) as error:
        return Bound(math.nan, 0.0, 0.0, 0.0, "none", str(error))
