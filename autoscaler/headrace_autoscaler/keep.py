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

import msgspec

from headrace_autoscaler.configs import DemandConfig, KeepConfig
from headrace_autoscaler.spec import InstanceObservation
from headrace_autoscaler.states import Idle, IdleTimes, KeepState

EDGES_S = (0.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0)
"""Spans of idle time; nothing is held beyond the last."""
MAX_WATCHED = 256
"""Idle instances whose idle times are learnt from."""
_SPANS = tuple((low, high - low) for low, high in zip(EDGES_S, EDGES_S[1:], strict=False))
_PRIOR = tuple(length / (low + length) if low else 0.5 for low, length in _SPANS)
_NOTHING = (0.0,) * len(_SPANS)


def bucket(level: int) -> int:
    """Levels that learn together: 1, 2-3, 4-7, 8-15 and so on."""
    return max(1, level).bit_length()


def restart_s(
    level: int, start_s: float, service_s: float | None, demand: DemandConfig, config: KeepConfig
) -> float:
    """What it costs that the ``level``-th instance is not there when it is needed, in its seconds.

    ``start_s``: how long a start takes; ``service_s``: how long a request takes (None: not known, then
    nobody is expected to become free in time).
    """
    waited = max(0.0, start_s - demand.goal_s)
    late = 1.0 if not service_s else math.exp(-level * demand.goal_s / service_s)
    if start_s <= demand.goal_s:
        # A request that finds nobody waits for a start, which is in time.
        late *= start_s / demand.goal_s
    return config.restart * waited + config.late_s * late


def hold_s(times: IdleTimes | None, cost_s: float, config: KeepConfig) -> float:
    """For how many seconds of idleness an instance is kept whose absence costs ``cost_s``."""
    watched = _NOTHING if times is None else times.watched
    needed = _NOTHING if times is None else times.needed
    prior = config.prior
    ahead = cost_s
    until = EDGES_S[-1]
    for place in range(len(_SPANS) - 1, -1, -1):
        low, length = _SPANS[place]
        hazard = (needed[place] + prior * _PRIOR[place]) / (watched[place] + prior)
        held = length * (1.0 - hazard / 2.0) + (1.0 - hazard) * ahead
        if held < cost_s:
            ahead = held
        else:
            ahead, until = cost_s, low
    return until


def learn(
    now: float,
    instances: Sequence[InstanceObservation],
    idle: Sequence[tuple[float, InstanceObservation]],
    state: KeepState,
    config: KeepConfig,
) -> KeepState:
    """What is known after this look. ``idle``: (since when, instance), the longest first.

    An instance that was idle at the last look and is not any more was needed at some time since, or is
    gone: then it was only watched. The same object when nothing changed.
    """
    before = state.idle
    if not idle and not before:
        return state
    after: dict[str, Idle] = {}
    busy = len(instances) - len(idle)
    for place, (since, one) in enumerate(idle[-MAX_WATCHED:]):
        old = before.get(one.id)
        if old is not None and old.since == since:
            after[one.id] = old
        else:
            after[one.id] = Idle(since=since, level=busy + len(idle) - place)
    if after == before:
        return state
    levels = state.levels
    alive = {one.id for one in instances} if len(before) > len(after) or after.keys() != before.keys() else ()
    for name, old in before.items():
        if after.get(name) is old:
            continue
        ended = name in after or name in alive
        key = bucket(old.level)
        levels = {**levels, key: _counted(levels.get(key), now - old.since, ended, config)}
    return KeepState(levels=levels, idle=after)


def _counted(times: IdleTimes | None, seconds: float, needed: bool, config: KeepConfig) -> IdleTimes:
    seen = list(_NOTHING if times is None else times.watched)
    hits = list(_NOTHING if times is None else times.needed)
    for place, (low, length) in enumerate(_SPANS):
        if seconds >= low + length:
            seen[place] += 1.0
            continue
        if needed:
            seen[place] += 1.0
            hits[place] += 1.0
        else:
            seen[place] += round((seconds - low) / length, 4)
        break
    if seen[0] > config.memory:
        seen = [value / 2.0 for value in seen]
        hits = [value / 2.0 for value in hits]
    return IdleTimes(watched=tuple(seen), needed=tuple(hits))


def let_go(state: KeepState, released: Sequence[str], now: float, config: KeepConfig) -> KeepState:
    """After instances were released: each was watched for as long as it was idle, and not needed."""
    levels, idle = state.levels, dict(state.idle)
    for name in released:
        old = idle.pop(name, None)
        if old is not None:
            key = bucket(old.level)
            levels = {**levels, key: _counted(levels.get(key), now - old.since, False, config)}
    if len(idle) == len(state.idle):
        return state
    return msgspec.structs.replace(state, levels=levels, idle=idle)
