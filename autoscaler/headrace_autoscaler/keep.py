"""How long an idle instance is kept: for as long as holding it costs less than the restarts it saves. Pure.

Holding costs a second per second. Letting go costs a restart if the instance is needed again: the part of
a start that somebody waits for, and the price of a late request times the chance that one is late
because this instance is missing. That chance falls with the number of instances that are there, since a
request waits only when none of them becomes free in time, so the last instance is held for minutes and
the fortieth for seconds; scale to zero is what remains when even the last one is not worth its time.

When will it be needed again? Per level (how many instances there are) idle times are learnt as hazards
over growing spans (Kaplan, Meier 1958, so that instances that were let go before they were needed count
as long as they were watched). Holding through each span is weighed against letting go, from the last span
backwards (optimal stopping). Before anything is learnt the hazard at idle time x is taken as 1/x: then it
pays to hold for just as long as a restart costs, the break-even rule, which is never more than
twice as dear as knowing the future (Karlin, Manasse, Rudolph, Sleator 1988). Instances that are used
most recently are used first, so which one is idle for long says how many too many there are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise

from headrace_autoscaler.configs import DemandConfig, KeepConfig
from headrace_autoscaler.states import SPANS, Idle, IdleTimes, KeepState

EDGES_S = (0.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0)
"""Spans of idle time; nothing is held beyond the last."""
MAX_WATCHED = 256
"""Idle levels that are watched."""
ABOUT = 0.2
"""Starts that take up to this part less or more than the goal are late with a chance between 0 and 1."""
_SPANS = tuple(pairwise(EDGES_S))
_DOUBLING = math.log(2.0)
"""Of the ends of each span, but the first, by each other."""
_PRIOR = tuple((high - low) / high if low else 0.5 for low, high in _SPANS)
_NOTHING = (0.0,) * SPANS


def bucket(level: int) -> int:
    """Levels that learn together: 1, 2-3, 4-7, 8-15 and so on."""
    return max(1, level).bit_length()


def restart_s(
    level: int, start_s: float, service_s: float | None, demand: DemandConfig, config: KeepConfig
) -> float:
    """What it costs that the ``level``-th instance is not there when it is needed, in its seconds.

    ``start_s``: how long a start takes; ``service_s``: how long a request takes (None: not known, then
    nobody is expected to become free in time). Whoever needs it is served by one of the others if one
    becomes free while a start would be waited for; else there is a start, and if that takes longer than
    anybody should wait, a late request.
    """
    goal = demand.goal_s
    others = level - 1 if service_s else 0
    needed = math.exp(-others * min(goal, start_s) / service_s) if others and service_s else 1.0
    # Starts vary, so those that take about as long as anybody should wait are late in part.
    late = min(1.0, max(0.0, (start_s / goal - 1.0) / (2.0 * ABOUT) + 0.5)) if goal > 0.0 else 1.0
    queue = max(0.0, start_s - goal) * (1.0 + config.restart * math.log1p(config.late_s / 40.0))
    return queue + needed * (start_s + late * config.late_s)


def hold_s(times: IdleTimes | None, cost_s: float, config: KeepConfig) -> float:
    """For how many seconds of idleness an instance is kept whose absence costs ``cost_s``."""
    # Asked for at every look with little changed: to three digits of the cost it is remembered.
    return _hold_s(times, float(f"{cost_s:.3g}"), config.prior)


@lru_cache(maxsize=8192)
def _hold_s(times: IdleTimes | None, cost_s: float, prior: float) -> float:
    watched = _NOTHING if times is None else times.watched
    needed = _NOTHING if times is None else times.needed
    ahead = cost_s
    until = EDGES_S[-1]
    for place in range(SPANS - 1, -1, -1):
        low, high = _SPANS[place]
        hazard = (needed[place] + prior * _PRIOR[place]) / (watched[place] + prior)
        through = (high - low) * (1.0 - hazard / 2.0) + (1.0 - hazard) * ahead
        # Within a span the hazard is taken to fall as a / x, so holding pays up to x = a * cost.
        slope = -math.log1p(-hazard) / _DOUBLING
        most = slope * cost_s if low else cost_s
        stopped = _stopped(low, most, slope, cost_s) if 0.0 < low < most < high else cost_s
        if most < high and stopped <= through:
            ahead, until = stopped, max(low, most)
        else:
            ahead = through
    return until


def _stopped(low: float, most: float, slope: float, cost_s: float) -> float:
    """What it costs, from the begin of a span, to hold until ``most`` within it and no longer."""
    growth, less = most / low, 1.0 - slope
    # The chance that it is not needed up to x falls as (low / x) ** a.
    held = low * (math.expm1(less * math.log(growth)) / less if less else math.log(growth))
    return held + cost_s * math.pow(growth, -slope)


def learn(now: float, busy: int, sinces: Sequence[float], state: KeepState, config: KeepConfig) -> KeepState:
    """What is known after this look; the same object when nothing changed.

    ``busy``: instances that are not idle; ``sinces``: since when the others are, ascending. What is idle
    are levels and not certain instances: when of two idle ones that goes which was used last (it cost
    more), the one that stays is not for that the one that was not needed for longest. So a level's time
    only moves on when the instances' times say so.
    """
    before, found = state.idle, sinces[:MAX_WATCHED]
    if not found and not before:
        return state
    after: list[Idle] = []
    levels, count = state.levels, busy + len(sinces)
    for place, since in enumerate(found):
        if place >= len(before):
            after.append(Idle(since=since, level=count - place))
        elif since > before[place].since:
            levels = _with(levels, before[place], now, True, config)
            after.append(Idle(since=since, level=count - place))
        else:
            after.append(before[place])
    # Of levels that are not idle any more, as many as there are instances less were not needed but lost.
    lost = max(0, state.total - count)
    for place, old in enumerate(before[len(found) :]):
        levels = _with(levels, old, now, place >= lost, config)
    idle = tuple(after)
    if levels is state.levels and idle == before and count == state.total:
        return state
    return KeepState(levels=levels, idle=idle, total=count)


def let_go(now: float, count: int, state: KeepState, config: KeepConfig) -> KeepState:
    """After ``count`` instances were let go: so many levels were not needed for as long as they were idle."""
    levels = state.levels
    for old in state.idle[:count]:
        levels = _with(levels, old, now, False, config)
    if not count:
        return state
    return KeepState(levels=levels, idle=state.idle[count:], total=state.total - count)


def _with(
    levels: dict[int, IdleTimes], old: Idle, now: float, needed: bool, config: KeepConfig
) -> dict[int, IdleTimes]:
    key = bucket(old.level)
    return {**levels, key: _counted(levels.get(key), max(0.0, now - old.since), needed, config)}


def _counted(times: IdleTimes | None, seconds: float, needed: bool, config: KeepConfig) -> IdleTimes:
    seen = list(_NOTHING if times is None else times.watched)
    hits = list(_NOTHING if times is None else times.needed)
    for place, (low, high) in enumerate(_SPANS):
        if seconds >= high:
            seen[place] += 1.0
            continue
        if needed:
            seen[place] += 1.0
            hits[place] += 1.0
        else:
            seen[place] += round((seconds - low) / (high - low), 4)
        break
    if seen[0] > config.memory:
        seen = [value / 2.0 for value in seen]
        hits = [value / 2.0 for value in hits]
    return IdleTimes(watched=tuple(seen), needed=tuple(hits))
