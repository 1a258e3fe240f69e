"""How many instances each endpoint should have now, and which idle ones it no longer needs. Pure.

What demand asks for is what runs, and what waits and would not be served in time by the instances that are
there (`staffing.left`), by requests or by tokens; before that, what is needed so that nobody has to wait
for a start (`staffing.ahead`, on the `forecast`); plus ``warm`` while there is demand. It goes up at once.

Down it goes in one of two ways. With an idle time-out the most that was wanted during the last
``scale_down_delay_s`` is remembered (`EndpointState.desired`): while there is demand, idle instances
beyond that go; without demand each goes ``idle_timeout_s`` after its last use, down to min. When idle
times are learnt (`ScalingSpec.learn_idle`), each idle instance goes when `keep` says that holding it no
longer pays. Neither lets go of anything in a burst (`panic`).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import NamedTuple

import msgspec

from headrace_autoscaler import forecast, keep, lateness, panic, staffing
from headrace_autoscaler.placement import idle_since
from headrace_autoscaler.signals import average
from headrace_autoscaler.spec import Config, EndpointObservation, EndpointState, InstanceObservation
from headrace_autoscaler.states import DemandState, ForecastState, KeepState, LatenessState
from headrace_autoscaler.values import Value

_ROUNDING = 1e-9
_NOTHING = DemandState()
_UNWATCHED = ForecastState()
_UNJUDGED = LatenessState()
_UNKEPT = KeepState()
NEW = EndpointState()
NEAR = 0.05
"""A level for a time that differs by no more than this part is good enough."""
LONG = 2.0
"""Where starts take so many times as long as anybody should wait, one looks at each lesson of the forecast:
what is not there then is missed for long."""
LOOK_S = 0.1
"""It looks again so long after the answer would have changed."""


class Crew:
    """One endpoint's instances, sorted out once per decision. Those that drain are in none of the lists."""

    __slots__ = ("elsewhere", "idle", "lost", "mine", "old", "paused", "ready")

    def __init__(self, endpoint: EndpointObservation) -> None:
        mine: list[InstanceObservation] = []
        idle: list[InstanceObservation] = []
        self.mine = mine
        """Of the current version,"""
        self.old: Sequence[InstanceObservation] = ()
        """and of others."""
        self.paused: Sequence[InstanceObservation] = ()
        self.idle = idle
        """Of ``mine``: ready, without a request, and not about to be taken away."""
        self.lost = 0
        """Of ``mine``, those that are about to be taken away."""
        version = endpoint.version
        # Each decision comes through here with every instance: nothing is looked up that needn't be.
        ready = elsewhere = old = paused = 0
        for one in endpoint.instances:
            state = one.state
            if state == "ready":
                ready += 1
            elif state != "starting":
                paused += state == "paused"
                continue
            if one.version != version:
                old += 1
                continue
            mine.append(one)
            if one.lost_at is not None:
                self.lost += 1
                continue
            if one.offer:
                elsewhere += 1
            if not one.in_flight and state == "ready":
                idle.append(one)
        if paused:
            self.paused = [one for one in endpoint.instances if one.state == "paused"]
        if old:
            others = [one for one in endpoint.instances if one.version != version]
            self.old = [one for one in others if one.state in ("starting", "ready")]
        self.elsewhere = elsewhere
        """Of ``mine``, those on nodes launched for it that are not."""
        self.ready = ready
        """Of any version."""


class Seen(Value, frozen=True, kw_only=True):
    """What one endpoint's demand comes to."""

    endpoint: EndpointObservation
    asked: int
    """Instances that it asks for now, within min and max."""
    left: int = 0
    """Requests that are left to the instances that are there."""
    level: float = 0.0
    needed: float = 0.0
    """Requests' worth of instances that are to be there ahead of demand, whose level that is."""
    lately: float = 0.0
    """Mean concurrency of late, where spares stay between requests."""
    look_s: float | None = None
    """In so many seconds it would ask for more, or somebody is late, if nothing happens until then."""
    burst: bool = False
    """Nothing may shrink."""
    start_s: float | None = None
    service_s: float | None = None
    """Mean seconds that a request takes; None: not known."""
    late_s: float | None = None
    """What a late request costs (`lateness`); None: what the configuration says."""

    @property
    def reason(self) -> str:
        """Why so many, in words. Most decisions start nothing, and nobody asks."""
        return _reason(self)


class Surplus(NamedTuple):
    """Idle instances that it no longer needs."""

    gone: tuple[tuple[InstanceObservation, str], ...] = ()
    """(instance, why), in the order in which they go."""
    look_again_at: float | None = None


_NONE = Surplus()


def asleep(state: EndpointState) -> bool:
    """Whether nothing that is remembered would change while there is no demand and no instance."""
    levels = () if state.forecast is None else state.forecast.levels
    return not state.desired and not any(levels) and (state.keep is None or not state.keep.idle)


def wanted(endpoint: EndpointObservation, left: int = 0, needed: float = 0.0, *, lately: float = 0.0) -> int:
    """Instances that this demand asks for: but for ``left`` requests, and ``needed`` at least.

    ``lately``: mean concurrency of late; spares are beside what that asks for, and stay between requests.
    """
    scaling = endpoint.scaling
    demand = endpoint.in_flight + endpoint.queued
    count = math.ceil(max(demand - left, lately) / scaling.target_concurrency - _ROUNDING)
    if demand > 0 or lately > 0:
        count += scaling.warm
    count = max(count, math.ceil(needed - _ROUNDING))
    return min(scaling.max, max(scaling.min, count))


def look(
    now: float, endpoint: EndpointObservation, crew: Crew, before: EndpointState, config: Config
) -> tuple[Seen, EndpointState]:
    """What its demand comes to, and what is remembered of it."""
    past = before.demand or _NOTHING
    past = panic.remember(now, endpoint, past, config.demand)
    by_tokens = 0.0
    if endpoint.scaling.tokens is None:
        burst = panic.burst(now, endpoint, past.window, config.demand, past.panic, ready=crew.ready)
    else:
        demand = panic.demand(now, endpoint, past.window, config.demand, past.panic, ready=crew.ready)
        burst = demand.panic
        by_tokens = 0.0 if demand.tokens is None else demand.instances
    if burst is not past.panic:
        past = msgspec.structs.replace(past, panic=burst)
    ahead_of = before.forecast
    known = forecast.watch(now, past.window, ahead_of or _UNWATCHED, config.forecast, endpoint.start_s)
    if known is not _UNWATCHED:
        ahead_of = known
    late = lateness.watch(
        now,
        endpoint,
        past.window,
        before.lateness or _UNJUDGED,
        goal_s=config.demand.goal_s,
        config=config.keep,
    )
    late_s = lateness.price(late, config.keep)
    service = past.service
    service_s = service.seconds / service.total if service.total else None
    left = staffing.left(
        queued=endpoint.queued,
        oldest_wait_s=endpoint.oldest_wait_s,
        busy=endpoint.in_flight,
        start_s=endpoint.start_s,
        service_s=service_s,
        late_s=late_s,
        config=config.demand,
    )
    level, start_s = before.level, endpoint.start_s
    fresh = ahead_of is not before.forecast or _differ(start_s, before.level_s)
    if fresh:
        level = _level(now, ahead_of, start_s, config)
    needed = by_tokens
    if endpoint.scaling.learn_idle:
        # With an idle time-out what is there ahead of demand would go at once, and come again.
        ahead = staffing.ahead(level, start_s, late_s, config.demand)
        needed = max(needed, ahead / endpoint.scaling.target_concurrency)
    lately = 0.0
    if endpoint.scaling.warm and endpoint.scaling.learn_idle:
        lately = average(past.window, now, config.demand.stable_s) or 0.0
    asked = wanted(endpoint, left.requests, needed, lately=lately)
    look_s = _sooner(left.for_s, lateness.look_s(endpoint, config.demand.goal_s, config.keep))
    if level and endpoint.scaling.learn_idle and (start_s or 0.0) > LONG * config.demand.goal_s:
        # The level moves also while nothing happens that would make anybody look.
        look_s = _sooner(look_s, config.forecast.step_s)
    seen = Seen(
        endpoint=endpoint,
        asked=asked,
        left=left.requests,
        level=level,
        needed=needed,
        lately=lately,
        look_s=look_s,
        # Where starts are in time, what was let go too soon is soon back.
        burst=burst is not None and start_s is not None and start_s > config.demand.goal_s,
        start_s=endpoint.start_s,
        service_s=service_s,
        late_s=late_s,
    )
    kept = None if past is _NOTHING else past
    judged = None if late is _UNJUDGED else late
    if kept is before.demand and judged is before.lateness and not fresh:
        return seen, before
    return seen, msgspec.structs.replace(
        before, demand=kept, forecast=ahead_of, lateness=judged, level=level, level_s=start_s
    )


def _sooner(one: float | None, other: float | None) -> float | None:
    return other if one is None else one if other is None else min(one, other)


def _differ(start_s: float | None, level_s: float | None) -> bool:
    """Whether a level for so many seconds ahead is not one for a start: each start moves what it takes."""
    if start_s is None or level_s is None:
        return start_s is not level_s
    return abs(start_s - level_s) > NEAR * level_s


def _level(now: float, known: ForecastState | None, start_s: float | None, config: Config) -> float:
    """Mean concurrency when a start made now would be ready."""
    if known is None or known.at is None or start_s is None or start_s <= config.demand.goal_s:
        return 0.0
    if config.demand.trust:
        coming = forecast.forecast(now, known, start_s, config.demand.quantile, config.forecast)
        if coming is not None:
            return coming.value
    return known.levels[0] if now - known.at <= config.forecast.gap_s else 0.0


def remember(now: float, seen: Seen, before: EndpointState, limit: int, config: Config) -> EndpointState:
    """Follow demand up at once, and down only when it stayed down for ``scale_down_delay_s``."""
    want = seen.asked
    if want >= before.desired:
        return _desiring(before, want, None)
    since = now if before.below_since is None else before.below_since
    if now - since >= config.scale_down_delay_s and not seen.burst:
        return _desiring(before, want, None)
    return _desiring(before, min(before.desired, limit), since)


def _desiring(before: EndpointState, desired: int, since: float | None) -> EndpointState:
    if before.desired == desired and before.below_since == since:
        return before
    return msgspec.structs.replace(before, desired=desired, below_since=since)


def learned(
    now: float,
    endpoint: EndpointObservation,
    crew: Crew,
    *,
    seen: Seen,
    before: EndpointState,
    config: Config,
    suspect: Collection[str] = (),
) -> tuple[EndpointState, Surplus]:
    """What is wanted (`EndpointState.desired`), and who has been idle too long: by what was learnt, or else
    by ``idle_timeout_s``.

    Instances beyond what was wanted before (a hedge) are not what it decides on: as many of those that
    were idle for longest are left to whoever launched them. Nothing goes from the ``suspect`` hosts: what is
    there may be back in a moment.
    """
    mine = len(crew.mine)
    there = mine - crew.lost
    # What is about to be taken away is to be replaced; what is gone is missed only if demand asks for it.
    count = min(before.desired or there, mine)
    if crew.idle and not endpoint.queued:
        count = min(count, there)
    spare = 0
    if count < there:
        spare = min(there - count, crew.elsewhere)
        count = there - spare
    floor = max(seen.asked, endpoint.scaling.min)
    past = before.keep or _UNKEPT
    if not crew.idle and not past.idle:
        return _desiring(before, max(floor, count), None), _NONE
    idle = sorted([(idle_since(i), i.id, i) for i in crew.idle])[spare:]
    known = keep.learn(now, there - spare - len(idle), [one[0] for one in idle], past, config.keep)
    beyond = f"{floor} are asked for, " if floor else ""
    gone: list[tuple[InstanceObservation, str]] = []
    look_at: float | None = None
    for (_, _, one), level in zip(idle, known.idle, strict=False):
        number = count - len(gone)
        if number <= floor or seen.burst or endpoint.queued:
            break
        held = _held(number, endpoint, seen, known, config)
        if now - level.since < held:
            look_at = level.since + held
            break
        if one.host in suspect:
            break
        text = f"idle for {now - level.since:.1f} s ({beyond}number {number} is kept for {held:.0f} s)"
        gone.append((one, text))
    after = keep.let_go(now, len(gone), known, config.keep) if gone else known
    state = _desiring(before, max(floor, count - len(gone)), None)
    if after is not past:
        state = msgspec.structs.replace(state, keep=after)
    return state, Surplus(tuple(gone), look_at)


def _held(level: int, endpoint: EndpointObservation, seen: Seen, known: KeepState, config: Config) -> float:
    if not endpoint.scaling.learn_idle or endpoint.start_s is None:
        return endpoint.scaling.idle_timeout_s
    prices = config.keep
    if seen.late_s is not None and seen.late_s != prices.late_s:
        prices = msgspec.structs.replace(prices, late_s=seen.late_s)
    cost = keep.restart_s(level, endpoint.start_s, seen.service_s, config.demand, prices)
    held = keep.hold_s(known.levels.get(keep.bucket(level)), cost, config.keep)
    return max(held, config.keep.least_s)


def _reason(seen: Seen) -> str:
    endpoint, asked, left = seen.endpoint, seen.asked, seen.left
    scaling = endpoint.scaling
    demand = endpoint.in_flight + endpoint.queued
    asks = (demand - left) / scaling.target_concurrency
    if asked and asked == scaling.min and (not demand or asked > demand):
        return f"min={scaling.min}"
    if seen.needed > asks:
        ask = f"a level of {seen.level:.1f} asks for {asked}"
        return f"{ask}, as starts take {endpoint.start_s:.0f} s" if endpoint.start_s else ask
    if not demand and seen.lately and asked > scaling.min:
        return f"{seen.lately:.2f} requests of late, and warm={scaling.warm}, ask for {asked}"
    if not demand:
        return f"min={scaling.min}" if asked else "nothing asks for any"
    ask = f"are more than max={asked} serve" if asked == scaling.max < asks else f"ask for {asked}"
    text = f"{endpoint.in_flight} in flight and {endpoint.queued} queued {ask}"
    return f"{text} ({left} will be served in time)" if left else text
