"""How wrong forecasts are: quantiles of their residuals, tracked online, and whether they hold. Pure.

Each quantile is one number that moves up when the truth is above it and down when it is below, by
steps whose sizes are to each other as the chances: over time it is passed as often as it should be,
whatever the distribution, also when that changes (quantile tracking: Angelopoulos, Candes,
Tibshirani, "Conformal PID Control for Time Series Prediction", NeurIPS 2023). Residuals are taken in units
of the forecast's scale, the square root of its level: arrivals are noisy like that.
"""

from __future__ import annotations

import math
from bisect import bisect_right

from headrace_autoscaler.states import ResidualState

LEVELS = (0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99)
FIRST = (-2.9, -2.05, -1.6, -0.85, 0.0, 0.85, 1.6, 2.05, 2.9)
"""Where the quantiles begin, in units of the mean error: those of the normal distribution."""
MEASURED = 10
"""Forecasts from which the mean error is taken for that."""
FLOOR = 0.25
"""Added to the level: at nought there is noise too."""
SLOWEST = 0.04
"""Steps of the quantiles, in units of the mean error, once many have been seen; larger before."""
SPREAD = 0.1
"""Of the range for nine of ten: it counts as the mean error if that is smaller, else the range could not
shrink where there are no errors any more."""
HASTE = 0.6
"""How fast steps become small: as seen to the power of minus this (between 1/2 and 1: Robbins, Monro)."""
NEWEST = 0.05
"""Weight of the newest forecast in what is known of late."""
_LOW, _HIGH = LEVELS.index(0.05), LEVELS.index(0.95)
_SCORES = tuple(math.log(level / (1 - level)) for level in LEVELS)
_DIGITS = 4


def scale(value: float) -> float:
    """The unit that errors of a forecast of ``value`` are counted in."""
    return math.sqrt((value if value > 0.0 else 0.0) + FLOOR)


def learn(error: float, unchanged: float, residuals: ResidualState) -> ResidualState:
    """With one forecast that came due: truth less forecast, and truth less what was when it was made.

    Both in units of the forecast's `scale`.
    """
    offsets = residuals.offsets or FIRST
    newest = max(NEWEST, 1.0 / (residuals.seen + 1))
    mean = residuals.error + newest * (abs(error) - residuals.error)
    spread = (offsets[_HIGH] - offsets[_LOW]) * SPREAD
    step = max(SLOWEST, (residuals.seen + 1) ** -HASTE) * max(mean, residuals.error, spread)
    if residuals.seen < MEASURED:
        offsets, step = tuple(offset * mean for offset in FIRST), 0.0
    moved = sorted(
        [
            round(offset + step * (level if error > offset else level - 1.0), _DIGITS)
            for offset, level in zip(offsets, LEVELS, strict=True)
        ]
    )
    outside = residuals.seen >= MEASURED and not offsets[_LOW] <= error <= offsets[_HIGH]
    return ResidualState(
        offsets=tuple(moved),
        seen=residuals.seen + 1,
        outside=round(residuals.outside + newest * (outside - residuals.outside), _DIGITS),
        error=round(mean, _DIGITS),
        square=round(residuals.square + newest * (error * error - residuals.square), _DIGITS),
        unchanged=round(
            residuals.unchanged + newest * (unchanged * unchanged - residuals.unchanged), _DIGITS
        ),
    )


def offset(residuals: ResidualState, quantile: float) -> float:
    """What to add to a forecast, in units of its `scale`, so that ``quantile`` of the truths are below.

    Between the levels it lies on a line over the logits; outside of them it is the outermost one's.
    """
    offsets = residuals.offsets or FIRST
    if quantile <= LEVELS[0]:
        return offsets[0]
    if quantile >= LEVELS[-1]:
        return offsets[-1]
    place = bisect_right(LEVELS, quantile)
    score = math.log(quantile / (1 - quantile))
    part = (score - _SCORES[place - 1]) / (_SCORES[place] - _SCORES[place - 1])
    return offsets[place - 1] + part * (offsets[place] - offsets[place - 1])
