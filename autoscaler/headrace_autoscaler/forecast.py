"""Concurrency some seconds ahead, with a range, or the answer that it isn't known. Pure.

Value = concurrency now + what hints say of the change: back towards the smoothed levels (most of what
moves within a minute is noise), on along their trends, and as the day usually goes. How much each
hint is worth is learnt per endpoint and horizon from forecasts that came due (normalised least mean
squares: Widrow, Hoff 1960), and so is the range around the value (`residuals`). Forecasts are made
a few per horizon and kept until they come due, so that all costs and sizes are bounded.

Why: a start takes as long as it takes, so instances should follow demand as it will be then. At such
horizons demand is mostly noise, so a forecast is worth having in ramps, and only as long as its own
record bears it out: `doubt` says when it does not.
"""

from __future__ import annotations

import math
from operator import mul

import msgspec

from headrace_autoscaler import residuals, season
from headrace_autoscaler.configs import ForecastConfig
from headrace_autoscaler.signals import average
from headrace_autoscaler.states import ForecastState, HorizonState, WindowState
from headrace_autoscaler.values import Value

SMOOTHING_S = (60.0, 300.0, 1800.0)
"""Time constants of the smoothed levels."""
WEIGHTS = (1.0, -0.2, 0.0, 0.3)
"""Of the hints, before anything is learnt: to the fastest level, on with its trend, as the day goes."""
LIMIT = 2.0
"""No weight grows beyond."""
PACE = 0.02
"""Of learning weights."""
AT_ONCE = 3
"""Forecasts that are under way per horizon, with at least as many steps between them."""
LATE = 3
"""Steps: what comes due in a longer pause of looking cannot be checked."""
NOISE = 1.5
"""Units of scale: a difference that is larger is no noise, and a hint of no more than that. (Else a crowd
that comes within a minute would be taken for noise that goes away again.)"""
MOST_SEASON = 2.0
"""A day may be this much higher than usual, and its ramps with it."""
LEAST_USUAL = 0.5
"""Instances: below, ratios to what is usual mean nothing."""
WORSE = 1.2
"""A forecast whose squared error is so many times that of "all stays as it is" is of no use."""
MARGIN = 1.2
"""Starts may come to take so many times as long before what is needed for that is learnt."""
NOTHING = 0.01
"""A level that falls below this is taken for nought."""
_DIGITS = 4


class Forecast(Value, frozen=True, kw_only=True):
    """Mean concurrency at one time to come."""

    value: float
    low: float
    """With the chance that was asked for it will be above this,"""
    high: float
    """and with the same chance below this."""


def watch(
    now: float,
    window: WindowState,
    state: ForecastState,
    config: ForecastConfig,
    asked_s: float | None = None,
) -> ForecastState:
    """`learn` from a window, however rarely one looks: the mean since the last lesson, at least over a step.

    The same object when that is not known.
    """
    since = config.step_s if state.at is None or now < state.at else now - state.at
    if since < config.step_s:
        return state
    mean = average(window, now, since)
    return state if mean is None else learn(now, mean, state, config, asked_s)


def learn(
    now: float,
    concurrency: float,
    state: ForecastState,
    config: ForecastConfig,
    asked_s: float | None = None,
) -> ForecastState:
    """What is known after ``concurrency``, its mean since the last lesson or over the last step.

    ``asked_s``: how far ahead one is going to ask; what is further than that, by `MARGIN`, is not learnt now.
    None: all is.

    The same object when the last lesson is less than a step ago, and until there is any demand. A clock
    that went back, or a pause longer than ``gap_s``, begins anew with all but what was learnt of the day,
    the weights and the errors. (Other ``horizons_s`` are taken up then, too.)
    """
    if state.at is None and not concurrency:
        return state
    if state.at is None or now < state.at or now - state.at > config.gap_s:
        return _begun(now, concurrency, state, config)
    elapsed = now - state.at
    if elapsed < config.step_s:
        return state
    levels = tuple(
        [
            _smoothed(level, concurrency, -math.expm1(-elapsed / smoothing))
            for level, smoothing in zip(state.levels, SMOOTHING_S, strict=True)
        ]
    )
    after = ForecastState(
        at=now,
        last=round(concurrency, _DIGITS),
        levels=levels,
        season=season.learn(now, elapsed, concurrency, state.season, config),
    )
    checked = elapsed <= LATE * config.step_s
    horizons = _learnt(now, state.horizons, after, config, checked=checked, asked_s=asked_s)
    return msgspec.structs.replace(after, horizons=horizons)


def _learnt(
    now: float,
    horizons: tuple[HorizonState, ...],
    state: ForecastState,
    config: ForecastConfig,
    *,
    checked: bool,
    asked_s: float | None,
) -> tuple[HorizonState, ...]:
    """After a lesson for each horizon up to the first that is far enough."""
    count = len(horizons)
    if asked_s is not None:
        near = (n for n, horizon in enumerate(horizons, 1) if horizon.seconds >= asked_s * MARGIN)
        count = next(near, count)
    lessons = [_lesson(now, horizon, state, config, checked) for horizon in horizons[:count]]
    return (*lessons, *horizons[count:])


def _smoothed(level: float, concurrency: float, part: float) -> float:
    moved = level + (concurrency - level) * part
    return 0.0 if not concurrency and moved < NOTHING else round(moved, _DIGITS)


def _begun(now: float, concurrency: float, state: ForecastState, config: ForecastConfig) -> ForecastState:
    known = {horizon.seconds: horizon for horizon in state.horizons}
    horizons = [known.get(s) or HorizonState(seconds=s, weights=WEIGHTS) for s in config.horizons_s]
    return ForecastState(
        at=now,
        last=round(concurrency, _DIGITS),
        levels=(round(concurrency, _DIGITS),) * len(SMOOTHING_S),
        season=msgspec.structs.replace(state.season, slot=None, total=0.0, seconds=0.0),
        horizons=tuple(msgspec.structs.replace(horizon, pending=(), next_at=now) for horizon in horizons),
    )


def _lesson(
    now: float, horizon: HorizonState, state: ForecastState, config: ForecastConfig, checked: bool
) -> HorizonState:
    """Check what has come due, and make the next forecast when it is time."""
    pending, next_at = horizon.pending, horizon.next_at
    due = now + config.step_s / 2
    if now < next_at and not (pending and pending[0][0] <= due):
        return horizon
    weights, record = horizon.weights, horizon.residuals
    while pending and pending[0][0] <= due:
        at, base, *hints = pending[0]
        pending = pending[1:]
        # One that came due while this horizon was of no use is not for now.
        if checked and now - at <= LATE * config.step_s:
            value = _value(base, hints, weights)
            unit = residuals.scale(value)
            error = state.last - value
            record = residuals.learn(error / unit, (state.last - base) / unit, record)
            weights = _corrected(weights, hints, error, unit)
    asleep = not state.last and not any(state.levels)
    if not asleep and now >= next_at:
        made = (now + horizon.seconds, state.last, *_hints(now, horizon.seconds, state, config))
        pending = (*pending, made)
        next_at = now + max(horizon.seconds / AT_ONCE, AT_ONCE * config.step_s)
    elif pending is horizon.pending:
        return horizon
    return HorizonState(
        seconds=horizon.seconds, weights=weights, residuals=record, pending=pending, next_at=next_at
    )


def _hints(now: float, ahead: float, state: ForecastState, config: ForecastConfig) -> tuple[float, ...]:
    """Changes that may come: to the fastest level, from it to the next, from that to the last; the day's."""
    fast, middle, slow = state.levels
    here, there = season.usual(now, state.season, config), season.usual(now + ahead, state.season, config)
    ramp = 0.0
    if here is not None and there is not None:
        ramp = (there - here) * min(MOST_SEASON, slow / max(here, LEAST_USUAL))
    noise = NOISE * residuals.scale(fast)
    changes = (fast - state.last, middle - fast, slow - middle)
    hints = [min(noise, max(-noise, change)) for change in changes]
    return tuple([round(hint, _DIGITS) for hint in (*hints, ramp)])


def _value(base: float, hints: tuple[float, ...] | list[float], weights: tuple[float, ...]) -> float:
    change: float = sum(map(mul, weights, hints))
    return max(0.0, base + change)


def _corrected(
    weights: tuple[float, ...], hints: list[float], error: float, unit: float
) -> tuple[float, ...]:
    """Weights moved towards what would have been right; little where the hints are small beside the noise."""
    pace = PACE * error / (unit * unit + sum(hint * hint for hint in hints))
    moved = [weight + pace * hint for weight, hint in zip(weights, hints, strict=True)]
    return tuple([round(min(LIMIT, max(-LIMIT, weight)), _DIGITS) for weight in moved])


def forecast(
    now: float, state: ForecastState, horizon_s: float, quantile: float, config: ForecastConfig
) -> Forecast | None:
    """Mean concurrency in ``horizon_s`` seconds, and below what it stays with chance ``quantile`` (> 0.5).

    None: it doesn't know; `doubt` says why.
    """
    found = _weighed(now, state, horizon_s, quantile, config)
    return None if isinstance(found, str) else found


def doubt(
    now: float, state: ForecastState, horizon_s: float, quantile: float, config: ForecastConfig
) -> str | None:
    """Why there is no forecast, in words; None: there is one."""
    found = _weighed(now, state, horizon_s, quantile, config)
    return found if isinstance(found, str) else None


def _weighed(
    now: float, state: ForecastState, horizon_s: float, quantile: float, config: ForecastConfig
) -> Forecast | str:
    if state.at is None or not 0 <= now - state.at <= config.gap_s:
        return "demand was not watched of late"
    if not state.horizons or horizon_s > state.horizons[-1].seconds:
        return f"{horizon_s:g} s is further ahead than it learns"
    place = next(i for i, horizon in enumerate(state.horizons) if horizon_s <= horizon.seconds)
    far = _at(now, state, state.horizons[place], quantile, config)
    if place == 0 or isinstance(far, str) or horizon_s == state.horizons[place].seconds:
        return far
    near = _at(now, state, state.horizons[place - 1], quantile, config)
    if isinstance(near, str):
        return near
    first, second = state.horizons[place - 1].seconds, state.horizons[place].seconds
    part = (horizon_s - first) / (second - first)
    return Forecast(
        value=near.value + part * (far.value - near.value),
        low=near.low + part * (far.low - near.low),
        high=near.high + part * (far.high - near.high),
    )


def _at(
    now: float, state: ForecastState, horizon: HorizonState, quantile: float, config: ForecastConfig
) -> Forecast | str:
    record = horizon.residuals
    if record.seen < config.enough:
        return f"{record.seen} forecasts of {horizon.seconds:g} s came due, {config.enough} are needed"
    if record.outside > config.most_outside:
        return f"{record.outside:.0%} of late were outside of the range that should hold 90%"
    if record.square > WORSE * record.unchanged:
        return "of late it was worse than to say that all stays as it is"
    value = _value(state.last, _hints(now, horizon.seconds, state, config), horizon.weights)
    unit = residuals.scale(value)
    low = max(0.0, value + unit * residuals.offset(record, 1 - quantile))
    high = max(0.0, value + unit * residuals.offset(record, quantile))
    if high - low > config.widest * (value + 1):
        return f"{low:.1f} to {high:.1f} is too wide a range to say anything"
    return Forecast(value=value, low=low, high=high)
