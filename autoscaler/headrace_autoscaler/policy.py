"""The first policy: how many instances of each endpoint, started where, released when. Pure.

Wanted = ceil((in flight + queued) / target concurrency), plus ``warm`` while there is demand, between
min and max. It scales up at once. What it remembers (`EndpointState.desired`) is the most that was
wanted during the last ``scale_down_delay_s``: while there is demand, idle instances beyond that go;
without demand each goes ``idle_timeout_s`` after its last use (or its start, when it was never used),
down to min. On full hosts, when others wait, the longest idle ones give way sooner. A busy instance is
never released, except an old version's when a rollout has no room: that one drains, its requests finish.

Where a host can, who gives way is paused: it keeps its memory, and goes on when it is called again, before
anything new is started. What was paused longest ago is stopped when memory is needed.

During a rollout only instances of the new version count, and together with the old ones they may
exceed max by one. Draining the old ones when enough new are ready is the platform's (`rollout`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec

from headrace_autoscaler.placement import Book, Donor, Given, idle_since
from headrace_autoscaler.spec import (
    Action,
    Config,
    Decision,
    EndpointObservation,
    EndpointState,
    InstanceObservation,
    Observation,
    Pause,
    Release,
    Resume,
    Start,
    State,
    Wait,
)


def decide(now: float, observation: Observation, state: State, config: Config) -> Decision:
    """What to do now. Equal arguments give equal results; actions are in the order to carry out."""
    book = Book(observation.hosts)
    donors = [d for d in observation.idle_elsewhere if _may_give_way(now, d, config)]
    actions: list[Action] = []
    states = dict(state.endpoints)
    for endpoint in observation.endpoints:
        after = remember(now, endpoint, states.get(endpoint.endpoint, EndpointState()), config)
        states[endpoint.endpoint] = after
        actions += _starts(now, endpoint, after, book, donors)
        actions += _releases(now, endpoint, after, book)
        actions += _expired(now, endpoint, config)
    return Decision(actions=tuple(actions), state=State(endpoints=states))


def wanted(endpoint: EndpointObservation) -> int:
    """Instances that this demand asks for now."""
    scaling = endpoint.scaling
    demand = endpoint.in_flight + endpoint.queued
    count = math.ceil(demand / scaling.target_concurrency)
    if demand > 0:
        count += scaling.warm
    return min(scaling.max, max(scaling.min, count))


def remember(
    now: float, endpoint: EndpointObservation, before: EndpointState, config: Config
) -> EndpointState:
    """Follow demand up at once, and down only when it stayed down for ``scale_down_delay_s``."""
    want = wanted(endpoint)
    if want >= before.desired:
        return EndpointState(desired=want)
    since = now if before.below_since is None else before.below_since
    if now - since >= config.scale_down_delay_s:
        return EndpointState(desired=want)
    return EndpointState(desired=min(before.desired, endpoint.scaling.max), below_since=since)


def _split(endpoint: EndpointObservation) -> tuple[list[InstanceObservation], list[InstanceObservation]]:
    """(of the current version, of others), without those that drain or are paused."""
    alive = [i for i in endpoint.instances if i.state not in ("draining", "paused")]
    return (
        [i for i in alive if i.version == endpoint.version],
        [i for i in alive if i.version != endpoint.version],
    )


def _starts(
    now: float, endpoint: EndpointObservation, after: EndpointState, book: Book, donors: list[Donor]
) -> list[Action]:
    mine, old = _split(endpoint)
    rollout = endpoint.rollout_from is not None and bool(old)
    target = max(after.desired, wanted(endpoint)) if rollout else wanted(endpoint)
    missing = target - len(mine)
    if missing <= 0:
        return []
    if now < endpoint.blocked_until:
        left = endpoint.blocked_until - now
        return [
            Wait(
                endpoint=endpoint.endpoint, wanted=missing, reason=f"starts fail: tries again in {left:.1f} s"
            )
        ]
    allowed = endpoint.scaling.max + (1 if rollout else 0) - len(mine) - len(old)
    reason = _why_start(endpoint, target, rollout)
    actions: list[Action] = []
    paused = _paused(endpoint)
    for done in range(max(0, min(missing, allowed))):
        if resumed := _resume(endpoint, paused, book, (), reason=reason):
            actions += resumed
            continue
        behind: tuple[str, ...] = ()
        host = book.place(endpoint.scaling, endpoint.endpoint)
        if host is None:
            # One that is loaded already is back sooner than a new one, where both need others to give way.
            if resumed := _resume(endpoint, paused, book, donors, reason=reason, now=now):
                actions += resumed
                continue
            made = book.make_room(endpoint.scaling, donors)
            if made is None and rollout:
                return actions + _drain_first(endpoint, old, missing - done, book)
            if made is None:
                return [*actions, _no_room(endpoint, missing - done, book)]
            host, given = made
            actions += _give_way(now, endpoint, given, donors)
            behind = tuple(one.donor[1].id for one in given)
        actions.append(
            Start(
                endpoint=endpoint.endpoint, version=endpoint.version, host=host, reason=reason, after=behind
            )
        )
    return actions


def _paused(endpoint: EndpointObservation) -> list[InstanceObservation]:
    """Those of the current version that can go on, the one used last first."""
    found = [i for i in endpoint.instances if i.state == "paused" and i.version == endpoint.version]
    return sorted(found, key=lambda i: (-idle_since(i), i.id))


def _resume(
    endpoint: EndpointObservation,
    paused: list[InstanceObservation],
    book: Book,
    donors: Sequence[Donor],
    *,
    reason: str,
    now: float = 0.0,
) -> list[Action]:
    """What lets one of ``paused`` go on, which is taken from the list; nothing: no room for any."""
    for instance in paused:
        given = book.resume(instance, endpoint.scaling, donors)
        if given is None:
            continue
        paused.remove(instance)
        actions = _give_way(now, endpoint, given, donors)
        after = tuple(one.donor[1].id for one in given)
        return [
            *actions,
            Resume(endpoint=endpoint.endpoint, instance=instance.id, reason=reason, after=after),
        ]
    return []


def _give_way(
    now: float, endpoint: EndpointObservation, given: Sequence[Given], donors: Sequence[Donor]
) -> list[Action]:
    actions: list[Action] = []
    for one in given:
        name, instance, _ = one.donor
        if isinstance(donors, list):
            donors.remove(one.donor)
        text = f"idle for {now - idle_since(instance):.1f} s, gives way to {endpoint.endpoint}"
        if one.pause:
            actions.append(Pause(endpoint=name, instance=instance.id, reason=f"{text}; paused"))
        else:
            actions.append(Release(endpoint=name, instance=instance.id, reason=text))
    return actions


def _drain_first(
    endpoint: EndpointObservation, old: Sequence[InstanceObservation], missing: int, book: Book
) -> list[Action]:
    """A rollout without room: one old instance makes place, one at a time, if that can help."""
    why = book.why_not(endpoint.scaling)
    leaving = any(i.state == "draining" and i.version != endpoint.version for i in endpoint.instances)
    starting = any(i.state == "starting" and i.version == endpoint.version for i in endpoint.instances)
    wait = Wait(
        endpoint=endpoint.endpoint, wanted=missing, reason=f"rollout: {why}; an old instance drains first"
    )
    if leaving or starting:
        return [wait]
    donors = [_as_donor(endpoint, i) for i in sorted(old, key=lambda i: (i.in_flight, idle_since(i), i.id))]
    alone = (book.make_room(endpoint.scaling, [donor]) for donor in donors)
    made = next(filter(None, alone), None) or book.make_room(endpoint.scaling, donors)
    if made is None:
        return [_no_room(endpoint, missing, book)]
    first = made[1][0].donor[1]
    text = f"rollout to version {endpoint.version}: {why}, so one of version {first.version} drains first"
    return [Release(endpoint=endpoint.endpoint, instance=first.id, reason=text), wait]


def _as_donor(endpoint: EndpointObservation, old: InstanceObservation) -> Donor:
    scaling = msgspec.structs.replace(endpoint.scaling, cpu=old.cpu, memory=old.memory, gpu=old.gpu)
    return endpoint.endpoint, old, scaling


def _no_room(endpoint: EndpointObservation, missing: int, book: Book) -> Wait:
    why, full = book.why_not(endpoint.scaling), book.could_run(endpoint.scaling)
    return Wait(endpoint=endpoint.endpoint, wanted=missing, reason=why, no_room=full)


def _expired(now: float, endpoint: EndpointObservation, config: Config) -> list[Action]:
    """Paused ones that nobody will need: of another version, or not called for long."""
    actions: list[Action] = []
    for instance in endpoint.instances:
        if instance.state != "paused":
            continue
        if instance.version != endpoint.version:
            text = f"paused, and version {endpoint.version} has taken over"
        elif now - idle_since(instance) >= config.paused_hold_s:
            text = f"paused, and idle for {now - idle_since(instance):.0f} s"
        else:
            continue
        actions.append(Release(endpoint=endpoint.endpoint, instance=instance.id, reason=text))
    return actions


def _releases(now: float, endpoint: EndpointObservation, after: EndpointState, book: Book) -> list[Action]:
    mine, old = _split(endpoint)
    if old:
        return []
    demand = endpoint.in_flight + endpoint.queued
    scaling = endpoint.scaling
    floor = max(after.desired, scaling.min) if demand else scaling.min
    surplus = len(mine) - floor
    if surplus <= 0:
        return []
    actions: list[Action] = []
    for instance in sorted(mine, key=lambda i: (idle_since(i), i.id)):
        if len(actions) == surplus:
            break
        idle = now - idle_since(instance)
        timed_out = idle >= scaling.idle_timeout_s
        if instance.state != "ready" or instance.in_flight or book.state_of(instance.host) == "suspect":
            continue
        if timed_out and not demand:
            text = f"idle for {idle:.1f} s (idle_timeout={scaling.idle_timeout_s:g})"
        elif demand and (timed_out or instance.last_used_at is not None):
            text = f"{len(mine)} instances, {floor} do for {demand} requests"
        else:
            continue
        actions.append(Release(endpoint=endpoint.endpoint, instance=instance.id, reason=text))
    return actions


def _may_give_way(now: float, donor: Donor, config: Config) -> bool:
    """Idle, and not just started for a request that is about to reach it.

    One that stays unused (its client hung up, or it was only verified) must not keep others waiting.
    """
    _, instance, scaling = donor
    if instance.state == "paused":
        return True
    held = min(scaling.idle_timeout_s, config.unused_hold_s)
    settled = instance.last_used_at is not None or now - instance.started_at >= held
    return instance.state == "ready" and not instance.in_flight and settled


def _why_start(endpoint: EndpointObservation, target: int, rollout: bool) -> str:
    if rollout:
        return f"rollout to version {endpoint.version}: {target} wanted"
    demand = endpoint.in_flight + endpoint.queued
    if not demand:
        return f"min={endpoint.scaling.min}"
    return f"{endpoint.in_flight} in flight and {endpoint.queued} queued ask for {target}"
