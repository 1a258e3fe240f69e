"""The hybrid histogram policy: how long to keep and when to pre-warm, from the distribution of idle times.

Source: "Serverless in the Wild" (Shahrad et al., USENIX ATC 2020), section 4: per application a histogram
of idle times (end of one execution to the next arrival) in bins of 1 minute over 4 hours. Unload at the end
of an execution, load again after the pre-warming window (5th percentile, rounded down to the bin, less 10
%), and keep until the 99th percentile (rounded up, plus 10 %); when the pre-warming window is 0 it is not
unloaded at all. The histogram counts as representative when the coefficient of variation of its bins'
counts is at least 2; else the standard keep-alive: no pre-warming, kept for the histogram's range. Where
more than half of the idle times are beyond the range, the paper forecasts the next one by ARIMA.

Adapted:
- Range 1 hour instead of 4, and so the standard keep-alive: a GPU costs too much for the paper's.
- ARIMA is replaced by the standard keep-alive: a pure decision has no time to fit a model, and the paper
  uses it for applications that are called a few times a day.
- The paper's application runs in one container. Here the n-th of concurrent requests needs an n-th
  instance, so idle times are those of *levels*: level n is idle while fewer than n requests are there. All
  levels of an endpoint share one histogram, each follows its windows alone.
- Levels are seen at looks (every 2 s). An arrival ends exactly one level's idle time; one whose idle time
  was not seen fell between two looks, which is the first bin.
"""

from __future__ import annotations

from collections.abc import Mapping

from headrace_autoscaler.baselines.base import Fleet, Verdict, bounded, each, to_count
from headrace_autoscaler.interface import Plan, Policy
from headrace_autoscaler.spec import EndpointObservation, Observation
from headrace_autoscaler.values import Value

TICK_S = 2.0
MAX_LEVELS = 4096


class HybridHistogramConfig(Value, frozen=True, kw_only=True):
    """The paper's parameters; the range is shorter."""

    bin_s: float = 60.0
    bins: int = 60
    head: float = 0.05
    tail: float = 0.99
    margin: float = 0.1
    cv: float = 2.0
    """Least coefficient of variation of the counts of a representative histogram."""
    beyond: float = 0.5
    """Largest part of idle times beyond the range."""

    @property
    def range_s(self) -> float:
        """Seconds that the histogram covers; the standard keep-alive."""
        return self.bin_s * self.bins


class HybridHistogramState(Value, frozen=True, kw_only=True):
    """One endpoint's histogram and levels."""

    counts: tuple[int, ...] = ()
    beyond: int = 0
    """Idle times out of range."""
    level: int = 0
    """Instances needed at the last look."""
    idle: tuple[float, ...] = ()
    """Per level from the first: when it became idle last (or began to be used)."""
    arrived: int | None = None
    pre_warm_s: float = 0.0
    keep_s: float | None = None
    """The windows as of now; None: nothing has been learnt."""
    due: float | None = None
    """When the windows of a level begin or end next."""
    desired: int = 0
    """Instances wanted at the last look."""


_NEW = HybridHistogramState()


def windows(counts: tuple[int, ...], beyond: int, config: HybridHistogramConfig) -> tuple[float, float]:
    """(seconds idle until it is loaded again, until it is unloaded for good) by this histogram."""
    total = sum(counts)
    standard = (0.0, config.range_s)
    if not total or beyond > config.beyond * (total + beyond):
        return standard
    # Variance over mean squared of the bins' counts.
    squares = sum(count * count for count in counts)
    if config.bins * squares / (total * total) - 1.0 < config.cv * config.cv:
        return standard
    head = _bin_at(counts, config.head * total)
    tail = _bin_at(counts, config.tail * total) + 1
    return head * config.bin_s * (1.0 - config.margin), tail * config.bin_s * (1.0 + config.margin)


def _bin_at(counts: tuple[int, ...], rank: float) -> int:
    """The first bin at which the counts up to it reach ``rank``."""
    seen = 0
    for at, count in enumerate(counts):
        seen += count
        if seen >= rank:
            return at
    return len(counts) - 1


def judge(
    now: float,
    endpoint: EndpointObservation,
    fleet: Fleet,
    memory: HybridHistogramState,
    config: HybridHistogramConfig,
) -> Verdict:
    """Follow the levels, learn from those that came back, and have those whose window it is."""
    scaling = endpoint.scaling
    demand = endpoint.in_flight + endpoint.queued
    level = min(-(-demand // scaling.concurrency), scaling.max, MAX_LEVELS)
    arrived = endpoint.arrived
    passed = memory.due is not None and now >= memory.due
    same = level == memory.level and arrived == memory.arrived and not passed
    if same and len(fleet.alive) == memory.desired:
        return Verdict(memory)
    counts, beyond, idle = _learn(now, level, arrived, memory, config)
    pre_warm, keep = memory.pre_warm_s, memory.keep_s
    if keep is None or counts is not memory.counts or beyond != memory.beyond:
        pre_warm, keep = windows(counts, beyond, config)
    warm, due = 0, None
    for since in idle[level:]:
        begins, ends = since + pre_warm, since + keep
        if now < begins:
            due = begins if due is None else min(due, begins)
        elif now < ends:
            warm += 1
            due = ends if due is None else min(due, ends)
    desired = bounded(scaling, level + warm)
    after = HybridHistogramState(
        counts=counts,
        beyond=beyond,
        level=level,
        idle=idle,
        arrived=arrived,
        pre_warm_s=pre_warm,
        keep_s=keep,
        due=due,
        desired=desired,
    )
    why = ("%d in use, %d idle for %g to %g s", level, warm, pre_warm, keep)
    verdict = to_count(fleet, desired, after, why, starting=False, busy=False)
    return verdict._replace(look_again_at=due)


def _learn(
    now: float,
    level: int,
    arrived: int | None,
    memory: HybridHistogramState,
    config: HybridHistogramConfig,
) -> tuple[tuple[int, ...], int, tuple[float, ...]]:
    """(counts, beyond, idle) after this look."""
    counts, beyond, idle = memory.counts or (0,) * config.bins, memory.beyond, memory.idle
    ended = [now - since for since in idle[memory.level : level]]
    unseen = 0
    if arrived is not None and memory.arrived is not None:
        unseen = max(0, arrived - memory.arrived - max(0, level - memory.level))
    if ended or unseen:
        changed = list(counts)
        changed[0] += unseen
        for gap in ended:
            at = int(gap // config.bin_s)
            if at < config.bins:
                changed[at] += 1
            else:
                beyond += 1
        counts = tuple(changed)
    if level < memory.level:
        idle = (*idle[:level], *(now for _ in range(level, memory.level)), *idle[memory.level :])
    elif level > len(idle):
        idle = (*idle, *(now for _ in range(len(idle), level)))
    return counts, beyond, idle


def decide(
    now: float,
    observation: Observation,
    state: Mapping[str, HybridHistogramState],
    config: HybridHistogramConfig,
) -> Plan:
    """One decision, as `headrace_autoscaler.interface.Policy` describes it."""
    return each(now, observation, state, config, judge=judge, fresh=_NEW)


def policy() -> Policy:
    """The hybrid histogram with a range of one hour."""
    return Policy("hybrid-histogram", decide, {}, HybridHistogramConfig(), TICK_S)
