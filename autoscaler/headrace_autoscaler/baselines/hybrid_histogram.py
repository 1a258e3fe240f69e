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

from bisect import bisect_left
from collections.abc import Mapping, Sequence

from headrace_autoscaler.baselines.base import Fleet, Verdict, bounded, each, earlier, to_count
from headrace_autoscaler.baselines.keep_alive import needed
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


class Histogram(Value, frozen=True, kw_only=True):
    """Idle times in bins."""

    counts: tuple[int, ...]
    total: int = 0
    squares: int = 0
    """The sum of the counts' squares."""
    beyond: int = 0
    """Idle times out of range."""

    def add(self, gaps: Sequence[float], first: int, bin_s: float) -> Histogram:
        """With these idle times, and ``first`` more in the first bin."""
        counts, total, squares, beyond = list(self.counts), self.total + first, self.squares, self.beyond
        squares += (2 * counts[0] + first) * first
        counts[0] += first
        for gap in gaps:
            at = int(gap // bin_s)
            if at < len(counts):
                squares += 2 * counts[at] + 1
                counts[at] += 1
                total += 1
            else:
                beyond += 1
        return Histogram(counts=tuple(counts), total=total, squares=squares, beyond=beyond)

    def windows(self, config: HybridHistogramConfig) -> tuple[float, float]:
        """(seconds idle until it is loaded again, until it is unloaded for good)."""
        standard = (0.0, config.range_s)
        if not self.total or self.beyond > config.beyond * (self.total + self.beyond):
            return standard
        # The coefficient of variation's square: variance over mean squared.
        if len(self.counts) * self.squares / self.total**2 - 1.0 < config.cv**2:
            return standard
        head = self._bin_at(config.head * self.total)
        tail = self._bin_at(config.tail * self.total) + 1
        return head * config.bin_s * (1.0 - config.margin), tail * config.bin_s * (1.0 + config.margin)

    def _bin_at(self, rank: float) -> int:
        """The first bin up to which the counts reach ``rank``."""
        at, seen = 0, self.counts[0]
        while seen < rank:
            at += 1
            seen += self.counts[at]
        return at


class HybridHistogramState(Value, frozen=True, kw_only=True):
    """One endpoint's histogram and levels."""

    histogram: Histogram | None = None
    level: int = 0
    """Instances needed at the last look."""
    idle: tuple[float, ...] = ()
    """Per level from the first: when it became idle last. The higher the level, the earlier."""
    arrived: int | None = None
    """The counter at the last look."""
    pre_warm_s: float = 0.0
    """The windows, with the next one."""
    keep_s: float = 0.0
    due: float | None = None
    """When a window of a level begins or ends next."""
    desired: int = 0
    """Instances wanted at the last look."""


_NEW = HybridHistogramState()


def judge(
    now: float,
    endpoint: EndpointObservation,
    fleet: Fleet,
    memory: HybridHistogramState,
    config: HybridHistogramConfig,
) -> Verdict:
    """Follow the levels, learn from those that came back, and have those whose window it is."""
    scaling = endpoint.scaling
    level = min(needed(endpoint), scaling.max, MAX_LEVELS)
    passed = memory.due is not None and now >= memory.due
    same = level == memory.level and endpoint.arrived == memory.arrived and not passed
    if same and len(fleet.alive) == memory.desired:
        return Verdict(memory)
    histogram, idle = _learn(now, level, endpoint.arrived, memory, config)
    pre_warm, keep = memory.pre_warm_s, memory.keep_s
    if histogram is not memory.histogram:
        pre_warm, keep = histogram.windows(config)
    # Along the levels those that wait for their window come first, then those in it, then those past it.
    begun = bisect_left(idle, True, level, key=lambda since: since + pre_warm <= now)
    ended = bisect_left(idle, True, begun, key=lambda since: since + keep <= now)
    due = idle[begun - 1] + pre_warm if begun > level else None
    if ended > begun:
        due = earlier(due, idle[ended - 1] + keep)
    desired = bounded(scaling, level + ended - begun)
    after = HybridHistogramState(
        histogram=histogram,
        level=level,
        idle=idle,
        arrived=endpoint.arrived,
        pre_warm_s=pre_warm,
        keep_s=keep,
        due=due,
        desired=desired,
    )
    why = ("%d in use, and %d idle for %g to %g s", level, ended - begun, pre_warm, keep)
    verdict = to_count(fleet, desired, after, why, starting=False, busy=False)
    return verdict._replace(look_again_at=due)


def _learn(
    now: float,
    level: int,
    arrived: int | None,
    memory: HybridHistogramState,
    config: HybridHistogramConfig,
) -> tuple[Histogram, tuple[float, ...]]:
    """The histogram and the levels after this look."""
    histogram, idle = memory.histogram, memory.idle
    if histogram is None:
        histogram = Histogram(counts=(0,) * config.bins)
    gaps = [now - since for since in idle[memory.level : level]]
    unseen = 0
    if arrived is not None and memory.arrived is not None:
        unseen = max(0, arrived - memory.arrived - max(0, level - memory.level))
    if gaps or unseen:
        histogram = histogram.add(gaps, unseen, config.bin_s)
    if level < memory.level:
        idle = (*idle[:level], *[now] * (memory.level - level), *idle[memory.level :])
    elif level > len(idle):
        idle = (*idle, *[now] * (level - len(idle)))
    return histogram, idle


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
