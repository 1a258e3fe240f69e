"""What the policy remembers between decisions, part by part; `spec.State` holds them.

What is remembered is also read from files that another version, or a person, has written. So parts whose
tuples have a certain length check it (``ValueError``; ``msgspec.ValidationError`` when they are decoded):
whoever reads it can then begin anew, and no decision stumbles over it.
"""

from __future__ import annotations

from collections.abc import Sized
from operator import gt
from typing import Literal

import msgspec

from headrace_autoscaler.values import Value

SLOTS = 144
"""Of a day, see `headrace_autoscaler.season`."""
LEVELS = 3
"""Of smoothing, see `forecast.SMOOTHING_S`."""
HINTS = 4
"""Of a forecast, see `forecast.WEIGHTS`."""
QUANTILES = 9
"""Of its errors, see `residuals.LEVELS`."""
SPANS = 11
"""Of idle time, those between `keep.EDGES_S`."""


def _check(what: str, given: Sized, *lengths: int) -> None:
    if len(given) not in lengths:
        raise ValueError(f"{what} has {len(given)} values, not {' or '.join(map(str, lengths))}")


class WindowState(Value, frozen=True, kw_only=True):
    """What was read of an endpoint's counters lately, see `headrace_autoscaler.signals`."""

    samples: tuple[tuple[float, float, int | None], ...] = ()
    """(when, ``demand_s``, ``arrived``), oldest first; at most `signals.MAX_SAMPLES`."""


class ServiceState(Value, frozen=True, kw_only=True):
    """How long requests take, as a sketch, see `headrace_autoscaler.service`."""

    bins: tuple[tuple[int, int], ...] = ()
    """(number of the bin, requests in it), in order, none empty; at most `service.BINS`."""
    total: int = 0
    """Requests in all of them."""
    seconds: float = 0.0
    """What those took together."""


class PanicState(Value, frozen=True, kw_only=True):
    """A burst that goes on, see `headrace_autoscaler.panic`."""

    until: float = 0.0
    most: float = 0.0
    """The most instances that were asked for since it began."""


class DemandState(Value, frozen=True, kw_only=True):
    """What is remembered of one endpoint's demand."""

    window: WindowState = WindowState()
    service: ServiceState = ServiceState()
    panic: PanicState | None = None
    """None: there is no burst."""


class SeasonState(Value, frozen=True, kw_only=True):
    """How concurrency goes through the day, see `headrace_autoscaler.season`."""

    workdays: tuple[float | None, ...] = ()
    """Mean concurrency per slot of a day; None: not seen yet. Empty: no slot was."""
    weekends: tuple[float | None, ...] = ()
    slot: int | None = None
    """The slot being watched, counted from the clock's zero."""
    total: float = 0.0
    """Sum of the averages seen in it, each times its seconds."""
    seconds: float = 0.0

    def __post_init__(self) -> None:
        """Raises ``ValueError`` for a course that is not a day's."""
        _check("a working day's course", self.workdays, 0, SLOTS)
        _check("a weekend's course", self.weekends, 0, SLOTS)


class ResidualState(Value, frozen=True, kw_only=True):
    """How far from the truth forecasts were, see `headrace_autoscaler.residuals`."""

    offsets: tuple[float, ...] = ()
    """Per level of `residuals.LEVELS`, in units of the forecast's scale; empty: none was checked yet."""
    seen: int = 0
    """Forecasts that have come due."""
    outside: float = 0.0
    """Share of late that fell outside of the range that should hold nine of ten."""
    error: float = 0.0
    """Mean absolute error of late, in units of the forecast's scale."""
    square: float = 0.0
    """Mean squared error of late, in the same units,"""
    unchanged: float = 0.0
    """and that of the forecast that all stays as it is."""

    def __post_init__(self) -> None:
        """Raises ``ValueError`` unless there is one offset per level."""
        _check("what is known of errors", self.offsets, 0, QUANTILES)


class HorizonState(Value, frozen=True, kw_only=True):
    """What is known of forecasts so far ahead."""

    seconds: float
    weights: tuple[float, ...]
    """Of the hints, see `headrace_autoscaler.forecast`."""
    residuals: ResidualState = ResidualState()
    pending: tuple[tuple[float, ...], ...] = ()
    """(when it comes due, concurrency when it was made, the hints then), oldest first."""
    next_at: float = 0.0
    """When the next is to be made."""

    def __post_init__(self) -> None:
        """Raises ``ValueError`` unless there is one weight per hint, and each hint in what is pending."""
        _check("the weights of hints", self.weights, HINTS)
        for one in self.pending:
            if len(one) != 2 + HINTS:
                _check("a forecast that is pending", one, 2 + HINTS)


class ForecastState(Value, frozen=True, kw_only=True):
    """What the forecast has learnt of one endpoint."""

    at: float | None = None
    """Of the last lesson; None: there was none."""
    last: float = 0.0
    """Mean concurrency then."""
    levels: tuple[float, ...] = ()
    """Concurrency smoothed over `forecast.SMOOTHING_S`; empty: there was no lesson yet."""
    season: SeasonState = SeasonState()
    horizons: tuple[HorizonState, ...] = ()

    def __post_init__(self) -> None:
        """Raises ``ValueError`` unless a lesson has left all levels."""
        if self.at is not None:
            _check("what was smoothed", self.levels, LEVELS)


class IdleTimes(Value, frozen=True, kw_only=True):
    """How long instances were idle before they were needed again, at one level; see `keep`."""

    watched: tuple[float, ...]
    """Per span of `keep.EDGES_S`: instances that were idle at its begin and watched through it."""
    needed: tuple[float, ...]
    """Of those, how many were needed within it."""

    def __post_init__(self) -> None:
        """Raises ``ValueError`` unless there are two counts per span that go together."""
        _check("what was watched of idle times", self.watched, SPANS)
        _check("what was needed of idle times", self.needed, SPANS)
        # It is made at every second look: only when something is wrong is it asked what.
        if min(self.needed) < 0 or any(map(gt, self.needed, self.watched)):
            pairs = zip(self.needed, self.watched, strict=True)
            needed, watched = next((n, w) for n, w in pairs if not 0 <= n <= w)
            raise ValueError(f"of {watched:g} that were idle, {needed:g} cannot have been needed")


class Idle(Value, frozen=True, kw_only=True):
    """A level that nobody needed when one last looked."""

    since: float
    level: int
    """Which one it is: instances that there were, without those that were idle for longer."""


class KeepState(Value, frozen=True, kw_only=True):
    """What is known of one endpoint's idle times."""

    levels: dict[int, IdleTimes] = msgspec.field(default_factory=dict)
    """By `keep.bucket` of the level."""
    idle: tuple[Idle, ...] = ()
    """The levels that are idle now, the longest first; at most `keep.MAX_WATCHED`."""
    total: int = 0
    """Instances that there were when one last looked."""


class LatenessState(Value, frozen=True, kw_only=True):
    """What is known of one endpoint's late requests, see `lateness`."""

    at: float | None = None
    """When one last looked; None: not yet."""
    aged: float = 0.0
    """Requests that had arrived so long before that they were late unless begun; they have been judged."""
    begun: int = 0
    """Requests that had been begun, or had given up."""
    seen: float = 0.0
    """Requests judged, the older the less."""
    power: float = 0.0
    """A late request costs e to the power of this times what was configured."""


class Refusal(Value, frozen=True, kw_only=True):
    """A cloud that said no: how often in a row, and until when it is not asked."""

    kind: Literal["capacity", "outage", "quota"]
    failed_at: float
    rounds: int
    """Times that it was asked in vain; launches that fail together are one."""
    until: float


class BurstState(Value, frozen=True, kw_only=True):
    """What bursting remembers of one endpoint."""

    refusals: dict[str, Refusal] = msgspec.field(default_factory=dict)
    """By ``provider/region[/kind/spot or on-demand[/offer]]``, see `headrace_autoscaler.backoff`; only what
    failed last, so never more than there are offers."""


class PoolState(Value, frozen=True, kw_only=True):
    """What is known of the claims on one pool of warm sandboxes."""

    since: float = 0.0
    """When the window that is counted now began."""
    claimed: int | None = None
    """The counter of claims then; None: not seen yet."""
    windows: tuple[float, ...] = ()
    """How many windows had 0, 1, ... claims, the older the less; at most `pools.MOST` + 1."""
