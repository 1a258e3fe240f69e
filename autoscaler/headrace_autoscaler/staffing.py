"""How many instances demand needs beyond those that are there: for the queue, and ahead of it. Pure.

For the queue: a request that waits is left to the instances that are there while those free themselves in
time, because a start buys nothing that a completion gives for free. With n busy ones and a mean service
time m, about n * t / m become free within t seconds; how sure it must be follows from what a late request
costs and what a start does. In time means before the request has waited for
``goal_s``, or for as long as a start takes, whichever is less: where starts are fast nobody queues.

Ahead of it: a start that takes longer than anybody should wait comes too late for whoever asked for it.
So instances are there before they are asked for: the level of demand and a multiple of its square root
that follows from what a late request costs,
times the part of a start that nobody should wait for. Where starts are in time that is nothing. The level
is what the forecast says for when a start would be ready, or, while it does not know, the smoothed
concurrency.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import lru_cache
from statistics import NormalDist
from typing import NamedTuple

from headrace_autoscaler.configs import DemandConfig

PLACES = 64
"""Of a longer queue no more places than about these are looked at."""
_EXTREME = 1e-6
"""No chance is nearer to 0 or 1: five standard deviations."""


class Left(NamedTuple):
    """Requests that are left to the instances that are there."""

    requests: int
    for_s: float | None = None
    """In so many seconds fewer would be, if none becomes free until then; None: that is not due to time."""


_NOBODY = Left(0)


def left(
    *,
    queued: int,
    oldest_wait_s: float,
    busy: int,
    start_s: float | None,
    service_s: float | None,
    late_s: float,
    config: DemandConfig,
) -> Left:
    """How many of the requests that wait are left to the instances that are there.

    ``busy``: requests that run, each of which frees a place; ``start_s`` and ``service_s``: seconds that a
    start and a request take, None when not known: then nothing is left to anybody; ``late_s``: what a late
    request costs (`configs.KeepConfig.late_s`). The requests behind the oldest are taken to have come
    evenly since then.
    """
    if not queued or not busy or start_s is None or not service_s:
        return _NOBODY
    patience, rate = min(config.goal_s, start_s), busy / service_s
    sure = _worth(late_s, config.spare_starts * start_s)
    for_s = math.inf
    for place in _places(queued):
        freed = rate * (patience - oldest_wait_s * (1.0 - place / queued))
        spare = freed - _needed(place + 1, sure)
        if spare < 0.0:
            return Left(place, for_s / rate if place else None)
        for_s = min(for_s, spare)
    return Left(queued, for_s / rate)


def _places(queued: int) -> Iterable[int]:
    """The places of a queue that are looked at: all of a short one, some of a long one, the last always."""
    return range(queued) if queued <= PLACES else (*range(0, queued - 1, queued // PLACES), queued - 1)


@lru_cache(maxsize=4096)
def _needed(places: int, sure: float) -> float:
    """Mean of a Poisson count of which so many are sure: x with x - sure * sqrt(x) = places."""
    return ((sure + math.sqrt(sure * sure + 4.0 * places)) / 2.0) ** 2


def ahead(level: float, start_s: float | None, late_s: float, config: DemandConfig) -> float:
    """Instances that should be there when the level of demand is ``level`` (mean concurrency).

    ``late_s``: what a late request costs, in seconds of an instance (`configs.KeepConfig.late_s`).
    """
    if start_s is None or start_s <= config.goal_s or level <= 0.0:
        return 0.0
    root = config.staff_root + _worth(late_s, config.spare_s)
    needed = config.staff_share * level + root * math.sqrt(level) - config.staff_less
    return (1.0 - config.goal_s / start_s) * max(0.0, needed)


@lru_cache(maxsize=4096)
def _worth(late_s: float, cost_s: float) -> float:
    """Standard deviations to be safe by, when being late costs the one and being safe the other."""
    share = late_s / (late_s + cost_s) if late_s > 0.0 else 0.0
    return NormalDist().inv_cdf(min(max(share, _EXTREME), 1.0 - _EXTREME))
