"""How concurrency goes through the day: a mean per slot, learnt day by day. Pure.

Working days and weekends have a course each, and lend it to the other where that has not been seen. A
slot is written once, when it ends, and older days are forgotten exponentially. No calendar is asked: days
are counted from the clock's zero.
"""

from __future__ import annotations

import math

import msgspec

from headrace_autoscaler.configs import ForecastConfig
from headrace_autoscaler.states import SLOTS, SeasonState

DAY_S = 86400
SLOT_S = DAY_S // SLOTS
NEWEST = 0.4
"""Weight of the newest day."""
WATCHED = 0.5
"""A slot must have been watched for this part of it to be written."""
_DIGITS = 2
"""Decimals that are kept: a hundredth of an instance."""


def learn(
    now: float, seconds: float, concurrency: float, season: SeasonState, config: ForecastConfig
) -> SeasonState:
    """The season with the mean concurrency over the last ``seconds``, which end at ``now``."""
    slot = math.floor(now / SLOT_S)
    total, watched = concurrency * seconds, seconds
    if slot == season.slot:
        return msgspec.structs.replace(season, total=season.total + total, seconds=season.seconds + watched)
    days = (season.workdays, season.weekends)
    if season.slot is not None and season.seconds >= SLOT_S * WATCHED:
        weekend = season.slot // SLOTS % 7 in config.weekend
        course = _written(days[weekend], season.slot % SLOTS, season.total / season.seconds)
        days = (days[0], course) if weekend else (course, days[1])
    return SeasonState(workdays=days[0], weekends=days[1], slot=slot, total=total, seconds=watched)


def _written(course: tuple[float | None, ...], place: int, value: float) -> tuple[float | None, ...]:
    if not course:
        if value < 10**-_DIGITS:
            return course
        course = (None,) * SLOTS
    before = course[place]
    mean = value if before is None else before + NEWEST * (value - before)
    return (*course[:place], round(mean, _DIGITS), *course[place + 1 :])


def usual(now: float, season: SeasonState, config: ForecastConfig) -> float | None:
    """What concurrency usually is at ``now``, on the line between two slots' middles; None: not known."""
    if not season.workdays and not season.weekends:
        return None
    place = now / SLOT_S - 0.5
    slot = math.floor(place)
    before, after = _slot(slot, season, config), _slot(slot + 1, season, config)
    if before is None or after is None:
        return None
    return before + (after - before) * (place - slot)


def _slot(slot: int, season: SeasonState, config: ForecastConfig) -> float | None:
    weekend = slot // SLOTS % 7 in config.weekend
    mine, other = (season.weekends, season.workdays) if weekend else (season.workdays, season.weekends)
    place = slot % SLOTS
    value = mine[place] if mine else None
    return value if value is not None or not other else other[place]
