"""What waiting less costs: plays many settings of one policy, and keeps those that nothing else beats."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec
import numpy as np

from headrace_autoscaler.baselines import policy_of
from headrace_autoscaler.interface import Policy
from headrace_autoscaler.simulate.engine import run
from headrace_autoscaler.simulate.scenario import Draw, Result, Scenario
from headrace_autoscaler.simulate.stats import summarise

IDLE_TIMEOUTS_S = (None, 0.0, 5.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0)
"""What is tried for ``idle_timeout``; None: learnt."""
BUSY_QUANTILES = (0.5, 0.9, 0.99)
"""``min`` is tried at 1 and at these quantiles of how many requests run at once."""
STEPS_S = (0.1, 0.25, 0.5, 1.0, 2.0, 3.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0)
"""The bounds of p95 that are asked about."""
TOLERANCE = 1e-9
OURS = "headrace"
KNOBS: Mapping[str, Sequence[Any]] = {"keep.late_s": (50.0, 150.0, 400.0, 1100.0, 3000.0, 8000.0)}
"""Parameters of our own policy that move it between cost and waiting, with the values to try."""
LATE, GOAL, IN_TIME = "keep.late_s", "demand.goal_s", "keep.share"
SETTINGS: Mapping[str, str] = {LATE: "late_s", GOAL: "wait_goal", IN_TIME: "wait_share"}
"""Parameters of our own policy that the platform has a setting for, and what that is called."""
BESIDE: Mapping[str, Mapping[str, Any]] = {LATE: {IN_TIME: 0.0}}
"""What else is set when a value is tried: a price that regulates itself would not be that one."""


@dataclass(frozen=True)
class Variant:
    """One setting of one policy: what differs from the scenario and from the policy's defaults."""

    policy: str
    wish: Mapping[str, Any] = field(default_factory=dict)
    """Fields of `Wish`."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the policy's parameters; a dot leads into a part of them (``keep.miss_cost``)."""
    tier: str = ""
    """What starts are called there, and ``start_s`` how long they take then."""
    start_s: float | None = None

    @property
    def options(self) -> dict[str, Any]:
        """What to set to get it: options of an endpoint, and settings of the platform."""
        tier = {"start": self.tier} if self.tier else {}
        config = {
            SETTINGS.get(path, path) if self.policy == OURS else path: v for path, v in self.config.items()
        }
        return {**self.wish, **config, **tier}


def play(scenario: Scenario, variant: Variant, seed: int, timeline_step_s: float | None = None) -> Result:
    """One run of one setting."""
    return run(applied(scenario, variant), policy_at(variant), seed, timeline_step_s=timeline_step_s)


def applied(scenario: Scenario, variant: Variant) -> Scenario:
    """The scenario with the variant's wishes and start-up times."""
    if variant.wish:
        wishes = tuple(replace(wish, **variant.wish) for wish in scenario.wishes)
        scenario = replace(scenario, wishes=wishes)
    if variant.start_s is not None:
        start = Draw(variant.start_s)
        supplies = tuple(replace(s, boot=start, cached=None, warm=None) for s in scenario.supplies)
        scenario = replace(scenario, supplies=supplies)
    return scenario


def policy_at(variant: Variant) -> Policy:
    """The variant's policy with its parameters. Raises ``ValueError`` for a policy that is not known."""
    policy = policy_of(variant.policy)
    for path, value in variant.config.items():
        policy = replace(policy, config=_with(policy.config, path.split("."), value))
    return policy


def _with(config: Any, path: Sequence[str], value: Any) -> Any:
    name, *rest = path
    inner = _with(getattr(config, name), rest, value) if rest else value
    return msgspec.structs.replace(config, **{name: inner})


def settings(
    scenario: Scenario,
    knob: Mapping[str, Sequence[Any]],
    tiers: Mapping[str, float],
) -> list[Variant]:
    """What a sweep plays: each idle time-out, each ``min`` that the trace makes sensible, each value of
    the policy's knob, and all of them again for each tier of starts.

    ``knob`` has values by the path of a parameter, ``tiers`` seconds by the tier's name (none: as the
    scenario says).
    """
    base = scenario.wishes[0]
    wishes: list[Mapping[str, Any]] = [{"idle_timeout_s": idle} for idle in IDLE_TIMEOUTS_S]
    for least in _minima(scenario):
        if base.min < least <= base.max:
            wishes += [{"idle_timeout_s": idle, "min": least} for idle in (None, 60.0)]
    found = [Variant(OURS, wish) for wish in wishes]
    for path, values in knob.items():
        beside = BESIDE.get(path, {})
        found += [Variant(OURS, {"idle_timeout_s": None}, {path: value, **beside}) for value in values]
    if not tiers:
        return found
    return [replace(v, tier=name, start_s=seconds) for name, seconds in tiers.items() for v in found]


def _minima(scenario: Scenario) -> list[int]:
    """Per endpoint, as ``min`` is: 1, and quantiles of the busiest endpoint's requests at once."""
    trace = scenario.trace
    if not len(trace.arrivals):
        return [1]
    busiest = int(np.argmax(np.bincount(trace.endpoints, weights=trace.durations)))
    mine = trace.endpoints == busiest
    begins, durations = trace.arrivals[mine], trace.durations[mine]
    ends = np.sort(begins + durations)
    at = np.linspace(0.0, trace.end, 2000)
    busy = np.searchsorted(begins, at, "right") - np.searchsorted(ends, at, "right")
    levels = [math.ceil(float(np.quantile(busy, q))) for q in BUSY_QUANTILES]
    return sorted({1, *(level for level in levels if level > 0)})


@dataclass(frozen=True)
class Point:
    """What a setting gave: dollars per day and waits, means over the seeds."""

    variant: Variant
    usd_per_day: float
    p95_s: float
    p99_s: float
    share_within_10s: float
    errors: float

    @property
    def document(self) -> dict[str, Any]:
        """For ``--json``."""
        return {
            "cost_usd_per_day": self.usd_per_day,
            "wait_p95_s": self.p95_s if math.isfinite(self.p95_s) else None,
            "wait_p99_s": self.p99_s if math.isfinite(self.p99_s) else None,
            "share_within_10s": self.share_within_10s,
            "errors": self.errors,
            "options": self.variant.options,
        }


@dataclass(frozen=True)
class Step:
    """The cheapest way to keep p95 at or below ``p95_s``."""

    p95_s: float
    point: Point


def point_of(variant: Variant, results: Sequence[Result], days: float) -> Point:
    """What a setting's runs, one per seed, come to."""
    found = summarise(results)
    return Point(
        variant,
        usd_per_day=found.cost_usd / days,
        # Whoever is turned away has waited for ever: a setting that fails many is not quick.
        p95_s=_with_failed(results, 95),
        p99_s=_with_failed(results, 99),
        share_within_10s=found.share_within_10s,
        errors=found.errors,
    )


def _with_failed(results: Sequence[Result], percent: float) -> float:
    """Mean over the runs of a percentile of waits in which failed requests wait for ever."""
    waits = [np.concatenate((r.waits, np.full(len(r.failed_at), np.inf))) for r in results]
    found = [float(np.percentile(w, percent, method="higher")) if len(w) else 0.0 for w in waits]
    return sum(found) / len(found)


def frontier(points: Iterable[Point]) -> list[Point]:
    """Those that no other is both as cheap and as quick as, cheapest first (so p95 falls)."""
    kept: list[Point] = []
    for point in sorted(points, key=lambda p: (p.usd_per_day, p.p95_s)):
        if not kept or point.p95_s < kept[-1].p95_s - TOLERANCE:
            kept.append(point)
    return kept


def steps(points: Iterable[Point], bounds: Sequence[float] = STEPS_S) -> list[Step]:
    """For each bound of p95 the cheapest point within it; of bounds with the same point the strictest.

    Strictest last; empty when no point is within any bound.
    """
    edge = frontier(points)
    found: dict[int, Step] = {}
    for bound in sorted(bounds, reverse=True):
        inside = [(i, point) for i, point in enumerate(edge) if point.p95_s <= bound]
        if inside:
            index, point = inside[0]
            found[index] = Step(bound, point)
    return sorted(found.values(), key=lambda step: -step.p95_s)
