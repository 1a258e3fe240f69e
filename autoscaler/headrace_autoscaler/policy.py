"""What to do now: who starts where, who gives way, who is let go, what is launched elsewhere. Pure.

`wants` says how many instances each endpoint should have; here that is carried out. Home first: what
fits there starts there, then what can be launched elsewhere (`burst`). On full hosts, when others wait, the
longest idle ones give way. A busy instance is never released, except an old version's when a rollout has
no room: that one drains, its requests finish.

Where a host can, who gives way is paused: it keeps its memory, and goes on when it is called again, before
anything new is started. What was paused longest ago is stopped when memory is needed.

During a rollout only instances of the new version count, and together with the old ones they may
exceed max by one. Draining the old ones when enough new are ready is the platform's (`rollout`).
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from headrace_autoscaler import burst, offers
from headrace_autoscaler.placement import Book, Donor, Given, idle_since
from headrace_autoscaler.spec import (
    Action,
    Config,
    Decision,
    EndpointObservation,
    EndpointState,
    InstanceObservation,
    Launch,
    Observation,
    OfferObservation,
    Pause,
    Release,
    Resume,
    Start,
    State,
    Wait,
)
from headrace_autoscaler.states import BurstState
from headrace_autoscaler.wants import LOOK_S, NEW, Seen, Surplus, asleep, learned, look, remember, wanted

__all__ = ["decide", "wanted"]


class _Market:
    """The offers, written down as a decision takes them."""

    def __init__(self, found: Sequence[OfferObservation]) -> None:
        self.offers = tuple(found)

    def take(self, names: Sequence[str]) -> None:
        self.offers = offers.taken(self.offers, names)


def decide(now: float, observation: Observation, state: State, config: Config) -> Decision:
    """What to do now. Equal arguments give equal results; actions are in the order to carry out."""
    book = Book(observation.hosts)
    donors = [d for d in observation.idle_elsewhere if _may_give_way(now, d, config)]
    market = _Market(observation.offers)
    actions: list[Action] = []
    looks: list[float] = []
    states: dict[str, EndpointState] | None = None
    for endpoint in observation.endpoints:
        before = state.endpoints.get(endpoint.endpoint, NEW)
        if not (endpoint.instances or endpoint.queued or endpoint.in_flight or endpoint.scaling.min):
            if asleep(before):
                continue
        seen, after = look(now, endpoint, before, config)
        surplus = Surplus()
        if endpoint.rollout_from is None and (endpoint.scaling.learn_idle or market.offers):
            after, surplus = learned(now, endpoint, seen, after, config)
        else:
            after = remember(now, seen, after, endpoint.scaling.max, config)
            surplus = Surplus(gone=tuple(_timed_out(now, endpoint, seen, after, book)))
        actions += _starts(now, endpoint, seen, after, book, donors, bool(market.offers))
        if market.offers or any(i.offer for i in endpoint.instances):
            done, after, due = _launches(now, endpoint, seen, after, surplus, actions, market, config)
            actions += done
            looks += due
        else:
            actions += [_release(endpoint, one, why) for one, why in surplus.gone]
        actions += _expired(now, endpoint, config)
        if surplus.look_again_at is not None:
            looks.append(surplus.look_again_at)
        if seen.left:
            looks.append(now + LOOK_S)
        if after is not before:
            states = dict(state.endpoints) if states is None else states
            states[endpoint.endpoint] = after
    return Decision(
        actions=tuple(actions),
        state=state if states is None else State(endpoints=states, pools=state.pools),
        look_again_at=min(looks, default=None),
    )


def _launches(
    now: float,
    endpoint: EndpointObservation,
    seen: Seen,
    after: EndpointState,
    surplus: Surplus,
    done: Sequence[Action],
    market: _Market,
    config: Config,
) -> tuple[list[Action], EndpointState, list[float]]:
    """What is launched elsewhere for what home does not hold, and what is given back there and at home."""
    mine, _ = _split(endpoint)
    gone = {one.id for one, _ in surplus.gone}
    # What costs most goes first: of those that are idle for too long home is kept longest.
    actions: list[Action] = []
    elsewhere = [i for i in endpoint.instances if i.offer and i.version == endpoint.version]
    at_home = sum(not i.offer for i in mine)
    started = sum(isinstance(a, Start | Resume) and a.endpoint == endpoint.endpoint for a in done)
    spare = max(0, len(surplus.gone) - sum(i.state in ("starting", "ready") for i in elsewhere))
    for one in [i for i in mine if i.id in gone and not i.offer][:spare]:
        at_home -= 1
        actions.append(_release(endpoint, one, dict((i.id, why) for i, why in surplus.gone)[one.id]))
    want = max(0, after.desired - at_home - started)
    if now < endpoint.blocked_until:
        want = min(want, sum(i.state in ("starting", "ready") for i in elsewhere))
    choice = burst.choose(
        now,
        endpoint.scaling,
        want,
        elsewhere,
        market.offers,
        state=after.burst or BurstState(),
        config=config.burst,
    )
    actions += [
        Launch(
            endpoint=endpoint.endpoint,
            version=endpoint.version,
            offer=offer.offer,
            reason=f"{seen.reason}; {why}",
        )
        for offer, why in choice.launches
    ]
    why = f"{surplus.gone[0][1]}; " if surplus.gone else ""
    for name, text in choice.surplus:
        actions.append(Release(endpoint=endpoint.endpoint, instance=name, reason=f"{why}{text}"))
    if choice.wait is not None:
        short = max(1, want - len(elsewhere) - len(choice.launches))
        actions.append(Wait(endpoint=endpoint.endpoint, wanted=short, reason=choice.wait))
    market.take([offer.offer for offer, _ in choice.launches])
    if choice.state != (after.burst or BurstState()):
        after = msgspec.structs.replace(after, burst=choice.state)
    return actions, after, [] if choice.look_again_at is None else [choice.look_again_at]


def _release(endpoint: EndpointObservation, one: InstanceObservation, why: str) -> Release:
    return Release(endpoint=endpoint.endpoint, instance=one.id, reason=why)


def _split(endpoint: EndpointObservation) -> tuple[list[InstanceObservation], list[InstanceObservation]]:
    """(of the current version, of others), without those that drain or are paused."""
    alive = [i for i in endpoint.instances if i.state not in ("draining", "paused")]
    return (
        [i for i in alive if i.version == endpoint.version],
        [i for i in alive if i.version != endpoint.version],
    )


def _starts(
    now: float,
    endpoint: EndpointObservation,
    seen: Seen,
    after: EndpointState,
    book: Book,
    donors: list[Donor],
    elsewhere: bool,
) -> list[Action]:
    """What starts, or goes on, at home; with ``elsewhere`` what does not fit is nobody's loss here."""
    mine, old = _split(endpoint)
    rollout = endpoint.rollout_from is not None and bool(old)
    target = max(after.desired, seen.asked) if rollout or elsewhere else seen.asked
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
    reason = f"rollout to version {endpoint.version}: {target} wanted" if rollout else seen.reason
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
            if made is None and elsewhere:
                return actions
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


def _timed_out(
    now: float, endpoint: EndpointObservation, seen: Seen, after: EndpointState, book: Book
) -> list[tuple[InstanceObservation, str]]:
    """Idle ones that are not needed any more, by ``idle_timeout_s``: (instance, why)."""
    mine, old = _split(endpoint)
    if old or (seen.burst and endpoint.in_flight + endpoint.queued):
        return []
    demand = endpoint.in_flight + endpoint.queued
    scaling = endpoint.scaling
    floor = max(after.desired, scaling.min) if demand else scaling.min
    surplus = len(mine) - floor
    if surplus <= 0:
        return []
    gone: list[tuple[InstanceObservation, str]] = []
    for instance in sorted(mine, key=lambda i: (idle_since(i), i.id)):
        if len(gone) == surplus:
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
        gone.append((instance, text))
    return gone


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
