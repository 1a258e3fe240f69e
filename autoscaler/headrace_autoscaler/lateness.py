"""What a late request costs, so that as many are in time as shall be: the price that regulates itself. Pure.

`configs.KeepConfig.late_s` is a price, and people think in goals: so many of a hundred within ten seconds.
Which price gives which share differs from load to load and with the time that starts take, and cannot be
worked out beforehand. So it is fed back: each late request makes being late dearer by a step, and each one
in time makes it a little cheaper, such that both are equal when as many are late as may be. Whatever the
load does, the share then comes to what is wanted, unless the price is at its end (adaptive conformal
inference moves its level so: Gibbs, Candes 2021).

The steps are small, as late requests come in clusters and it takes hours until a price is seen in the
share: a day of 20,000 requests with twice as many late as may be makes it two or three times as dear. They
go by the requests of the last days, so a busy endpoint does not follow each hour, and one with few requests
stays near `configs.KeepConfig.late_s`. The price stays between `LEAST` and `MOST` times that. Below it a late
request would count for less than people said that it is worth; above it is what no price buys: in a crowd
that comes faster than starts take somebody is late at any price, and only money would be lost.

Nobody has to report a late request: the queue is first in, first out. So the n-th request that ever
arrived is late if it was not begun when it was so old, and both are counters: how many were
begun (arrived, and not queued any more), and how many had arrived `configs.DemandConfig.goal_s` ago. One
looks when the oldest comes of age, and from then on until nobody is late both are taken to go straight
between two looks.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from functools import lru_cache
from operator import itemgetter

from headrace_autoscaler.configs import KeepConfig
from headrace_autoscaler.spec import EndpointObservation
from headrace_autoscaler.states import LatenessState, WindowState

MEMORY_S = 2 * 86_400.0
"""What was seen so long ago counts a third (1 / e): nights and days are in it together."""
PRIOR = 40_000.0
"""Requests that are counted as seen when none was: first of all everything else is learnt."""
GAIN = 3.0
"""The price goes up by the factor e ** GAIN while as many requests as are remembered come, and twice as many
of them are late as may be."""
LEAST = 0.5
MOST = 4.0
"""The price is no less and no more than so many times `configs.KeepConfig.late_s`."""
STEP = 0.05
"""It goes in steps of about this part: what follows from a price is reckoned once for each."""
LESSON_S = 30.0
"""While nobody is late, who was in time is counted no more often than this."""
_when = itemgetter(0)
_LOWEST, _HIGHEST = math.log(LEAST), math.log(MOST)


def watch(
    now: float,
    endpoint: EndpointObservation,
    window: WindowState,
    before: LatenessState,
    *,
    goal_s: float,
    config: KeepConfig,
) -> LatenessState:
    """What is known of late requests after this look; the same object when there is nothing new.

    ``window``: the endpoint's counters, with those of now, for ``goal_s`` back at least.
    """
    if not config.share or endpoint.arrived is None:
        return before
    late_now = endpoint.queued > 0 and endpoint.oldest_wait_s > goal_s
    if not late_now and _in_time(now, endpoint.arrived, before):
        return before
    begun = endpoint.arrived - endpoint.queued
    aged = _arrived(window, now - goal_s)
    if aged is None:
        return before
    # Where the counter was not read for a while, the oldest in the queue tells which side it is on.
    aged = max(aged, begun + 1.0) if late_now else min(aged, float(begun))
    if before.at is None or now < before.at or endpoint.arrived < before.aged:
        # Counters that begin, or begin anew, say nothing of what was before.
        return LatenessState(at=now, aged=aged, begun=begun, seen=before.seen, power=before.power)
    aged = max(aged, before.aged)
    if aged == before.aged and begun == before.begun:
        return before
    kept = math.exp((before.at - now) / MEMORY_S)
    judged = aged - before.aged
    late = _late(judged, before.aged - before.begun, aged - begun)
    seen = before.seen * kept + judged
    power = before.power + GAIN * (late / (1.0 - config.share) - judged) / (seen + PRIOR)
    power = min(max(power, _LOWEST), _HIGHEST)
    return LatenessState(at=now, aged=aged, begun=begun, seen=seen, power=power)


def _in_time(now: float, arrived: int, before: LatenessState) -> bool:
    """Whether all who came since are in time, as nobody is late nor was: a later look may count them."""
    if before.at is None or before.aged > before.begun or arrived < before.aged:
        return False
    return 0.0 <= now - before.at < LESSON_S


def look_s(endpoint: EndpointObservation, goal_s: float, config: KeepConfig) -> float | None:
    """In so many seconds the oldest that waits is late; None: nobody does, or it is late already.

    Whoever looks then sees it: who is late by less than the time between two looks may else go unseen.
    """
    if not config.share or endpoint.arrived is None:
        return None
    if not endpoint.queued or endpoint.oldest_wait_s > goal_s:
        return None
    return goal_s - endpoint.oldest_wait_s


def _arrived(window: WindowState, at: float) -> float | None:
    """Requests that had arrived then, on the line between two readings; None: not known."""
    samples = window.samples
    place = bisect_right(samples, at, key=_when)
    if not place:
        return None
    when, _, count = samples[place - 1]
    if count is None or place == len(samples):
        return count
    next_at, _, following = samples[place]
    return None if following is None else count + (following - count) * (at - when) / (next_at - when)


def _late(judged: float, first: float, last: float) -> float:
    """Of the ``judged`` requests that came of age between two looks, those that had not begun by then.

    ``first`` and ``last``: how many more were of age than were begun, at the one look and at the other
    (below 0: begun before they were). One looks when the oldest comes of age (`look_s`), so who is late first
    is still there. Later, where the sign changes, the two lines cross.
    """
    if first <= 0.0 or last >= 0.0:
        return judged if first > 0.0 else min(judged, max(last, 0.0))
    return judged * first / (first - last)


def price(known: LatenessState, config: KeepConfig) -> float:
    """What a late request costs now, in seconds of an instance."""
    if not config.share or not known.power:
        return config.late_s
    return config.late_s * _factor(round(known.power / STEP))


@lru_cache(maxsize=256)
def _factor(steps: int) -> float:
    power = min(max(STEP * steps, _LOWEST), _HIGHEST)
    return min(max(math.exp(power), LEAST), MOST)
