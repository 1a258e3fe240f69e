"""What to do now: who starts where, who gives way, who is let go, what is launched elsewhere. Pure.

`wants` says how many instances each endpoint should have and `limits` how many it may; here that is
carried out. Home first: what fits there starts there, then what can be launched elsewhere (`burst`). On
full hosts, when others wait, the longest idle ones give way. A busy instance is never released, except
an old version's when a rollout has no room: that one drains, its requests finish.

Where a host can, who gives way is paused: it keeps its memory, and goes on when it is called again, before
anything new is started. What was paused longest ago is stopped when memory is needed.

During a rollout only instances of the new version count, and together with the old ones they may
exceed max by one. Draining the old ones when enough new are ready is the platform's (`rollout`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from headrace_autoscaler import limits, means, pools
from headrace_autoscaler.cases import Case, Round
from headrace_autoscaler.elsewhere import launch
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
    Pause,
    Release,
    Resume,
    Start,
    State,
    Wait,
)
from headrace_autoscaler.wants import (
    LOOK_S,
    NEW,
    Crew,
    Surplus,
    asleep,
    learned,
    look,
    remember,
    wanted,
)

__all__ = ["decide", "wanted"]


def decide(now: float, observation: Observation, state: State, config: Config) -> Decision:
    """What to do now. Equal arguments give equal results; actions are in the order to carry out."""
    this = Round(now, observation, config)
    cases: list[Case] = []
    for endpoint in observation.endpoints:
        before = state.endpoints.get(endpoint.endpoint, NEW)
        awake = endpoint.instances or endpoint.queued or endpoint.in_flight or endpoint.scaling.min
        if awake or not asleep(before):
            case = Case(endpoint, before)
            _aim(this, case)
            cases.append(case)
    means.limit(this, cases)
    actions: list[Action] = []
    changed: dict[str, EndpointState] = {}
    for case in cases:
        _carry_out(this, case)
        actions += case.actions
        if case.after is not case.before:
            changed[case.endpoint.endpoint] = case.after
    after = state
    if changed:
        after = msgspec.structs.replace(state, endpoints={**state.endpoints, **changed})
    if observation.pools or observation.offers:
        refills, after = _warm(this, observation, after)
        actions += refills
    return Decision(actions=tuple(actions), state=after, look_again_at=min(this.looks, default=None))


def _aim(this: Round, case: Case) -> None:
    """How many it shall have, and who has been idle for too long."""
    endpoint, crew, now, config = case.endpoint, case.crew, this.now, this.config
    case.seen, case.after = look(now, endpoint, crew, case.before, config)
    rollout = endpoint.rollout_from is not None
    if not rollout and (endpoint.scaling.learn_idle or this.offers or crew.elsewhere):
        case.after, case.surplus = learned(
            now, endpoint, crew, seen=case.seen, before=case.after, config=config, suspect=this.suspect
        )
        case.target = case.after.desired
    else:
        case.after = remember(now, case.seen, case.after, endpoint.scaling.max, config)
        case.surplus = Surplus(gone=tuple(_timed_out(this, case)))
        case.target = max(case.after.desired, case.seen.asked) if rollout and crew.old else case.seen.asked
        if crew.elsewhere:
            case.target = max(case.target, len(crew.mine) - len(case.surplus.gone))
    this.look_again(case.surplus.look_again_at)
    if case.seen.look_s is not None:
        this.look_again(now + case.seen.look_s + LOOK_S)


def _carry_out(this: Round, case: Case) -> None:
    missing = case.target - len(case.crew.mine)
    if missing > 0 and not _is_homeless(this, case.endpoint):
        _starts(this, case, missing)
    if this.offers or any(one.offer for one in case.endpoint.instances):
        launch(this, case)
    else:
        for one, why in case.surplus.gone:
            case.release(one, why)
    if case.limit:
        coming = sum(isinstance(action, Start | Resume | Launch) for action in case.actions)
        short = max(1, case.seen.asked - len(case.crew.mine) - coming)
        if case.broke and not coming and case.endpoint.rollout_from is not None and case.crew.old:
            case.actions += _money_first(this, case, short)
        else:
            case.wait(short, case.limit)
    if case.crew.paused:
        _expired(this, case)


def _warm(this: Round, observation: Observation, state: State) -> tuple[list[Action], State]:
    """How many sandboxes and nodes wait for whoever comes."""
    config, actions = this.config.pools, list[Action]()
    if observation.pools:
        room = pools.room_of(observation.hosts, observation.pools, config)
        refills, known = pools.decide_pools(this.now, observation.pools, state.pools, config, room=room)
        actions += refills
        if known != state.pools:
            state = msgspec.structs.replace(state, pools=known)
    nodes = [
        pools.Nodes(offer, offer.waiting, offer.waiting_booting, offer.launched)
        for offer in observation.offers
        if offer.launched is not None
    ]
    if nodes:
        waiting, known = pools.warm_nodes(this.now, nodes, state.nodes, config)
        actions += waiting
        if known != state.nodes:
            state = msgspec.structs.replace(state, nodes=known)
    return actions, state


def _is_bounded(this: Round, endpoint: EndpointObservation) -> bool:
    """Whether a budget counts for it."""
    return endpoint.scaling.budget is not None or this.config.limits.budget is not None


def _is_homeless(this: Round, endpoint: EndpointObservation) -> bool:
    """Whether `_starts` could neither do nor say anything."""
    return this.homeless and not _is_bounded(this, endpoint) and this.now >= endpoint.blocked_until


def _starts(this: Round, case: Case, missing: int) -> None:
    """What starts, or goes on, at home; what does not fit may be launched elsewhere afterwards."""
    endpoint, crew, book, donors, now = case.endpoint, case.crew, this.book, this.donors, this.now
    if now < endpoint.blocked_until:
        case.wait(missing, f"starts fail: tries again in {endpoint.blocked_until - now:.1f} s")
        return
    rollout = endpoint.rollout_from is not None and bool(crew.old)
    allowed = endpoint.scaling.max + (1 if rollout else 0) - len(crew.mine) - len(crew.old)
    reason = case.seen.reason
    if rollout:
        reason = f"rollout to version {endpoint.version}: {case.target} wanted"
    bounded = _is_bounded(this, endpoint)
    left = limits.left(endpoint, this.spending, this.config.limits) if bounded else None
    actions = case.actions
    paused = _paused(crew, endpoint.version)
    for done in range(max(0, min(missing, allowed))):
        if resumed := _resume(endpoint, paused, book, [], reason=reason):
            actions += resumed
            continue
        behind: tuple[str, ...] = ()
        if left is not None and (book.cheapest(endpoint.scaling) or 0.0) > left:
            case.broke = True
            case.limit = (
                case.limit or f"one more at home costs more than the {max(0.0, left):g} $/h that are left"
            )
            return
        host = book.place(endpoint.scaling, endpoint.endpoint, left)
        if host is None:
            # One that is loaded already is back sooner than a new one, where both need others to give way.
            if resumed := _resume(endpoint, paused, book, donors, reason=reason, now=now):
                actions += resumed
                continue
            made = book.make_room(endpoint.scaling, donors, left)
            if made is None:
                if this.offers:
                    return
                if rollout:
                    actions += _drain_first(endpoint, crew.old, missing - done, book)
                else:
                    actions.append(_no_room(endpoint, missing - done, book))
                return
            host, given = made
            actions += _give_way(now, endpoint, given, donors)
            behind = tuple(one.donor[1].id for one in given)
        if left is not None:
            left -= book.paid
            this.spending = None if this.spending is None else this.spending + book.paid
        actions.append(
            Start(
                endpoint=endpoint.endpoint, version=endpoint.version, host=host, reason=reason, after=behind
            )
        )


def _paused(crew: Crew, version: int) -> list[InstanceObservation]:
    """Those of the current version that can go on, the one used last first."""
    found = [i for i in crew.paused if i.version == version]
    return sorted(found, key=lambda i: (-idle_since(i), i.id))


def _resume(
    endpoint: EndpointObservation,
    paused: list[InstanceObservation],
    book: Book,
    donors: list[Donor],
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
    now: float, endpoint: EndpointObservation, given: Sequence[Given], donors: list[Donor]
) -> list[Action]:
    actions: list[Action] = []
    for one in given:
        name, instance, _ = one.donor
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
    if _on_its_way(endpoint):
        return _drain(endpoint, None, missing, why)
    donors = [_as_donor(endpoint, i) for i in _first_to_go(old)]
    alone = (book.make_room(endpoint.scaling, [donor]) for donor in donors)
    made = next(filter(None, alone), None) or book.make_room(endpoint.scaling, donors)
    if made is None:
        return [_no_room(endpoint, missing, book)]
    return _drain(endpoint, made[1][0].donor[1], missing, why)


def _drain(
    endpoint: EndpointObservation, first: InstanceObservation | None, missing: int, why: str
) -> list[Action]:
    """One of another version leaves, so that a new one can come; None: one leaves already, or comes."""
    wait = Wait(
        endpoint=endpoint.endpoint, wanted=missing, reason=f"rollout: {why}; an old instance drains first"
    )
    if first is None:
        return [wait]
    text = f"rollout to version {endpoint.version}: {why}, so one of version {first.version} drains first"
    return [Release(endpoint=endpoint.endpoint, instance=first.id, reason=text), wait]


def _on_its_way(endpoint: EndpointObservation) -> bool:
    """Whether a rollout goes on by itself: an old instance leaves, or a new one starts."""
    return any(
        i.state == ("starting" if i.version == endpoint.version else "draining") for i in endpoint.instances
    )


def _first_to_go(old: Sequence[InstanceObservation]) -> list[InstanceObservation]:
    return sorted(old, key=lambda i: (i.in_flight, idle_since(i), i.id))


def _money_first(this: Round, case: Case, missing: int) -> list[Action]:
    """A rollout without money: as without room, if what the old ones cost is enough for a new one."""
    endpoint, old = case.endpoint, case.crew.old
    left = limits.left(endpoint, this.spending, this.config.limits)
    freed = sum(i.price or 0.0 for i in old)
    price = means.price(this, case)
    if price is None or price > left + freed:
        return [Wait(endpoint=endpoint.endpoint, wanted=missing, reason=case.limit)]
    first = None if _on_its_way(endpoint) else _first_to_go(old)[0]
    return _drain(endpoint, first, missing, case.limit)


def _as_donor(endpoint: EndpointObservation, old: InstanceObservation) -> Donor:
    scaling = msgspec.structs.replace(endpoint.scaling, cpu=old.cpu, memory=old.memory, gpu=old.gpu)
    return endpoint.endpoint, old, scaling


def _no_room(endpoint: EndpointObservation, missing: int, book: Book) -> Wait:
    why, full = book.why_not(endpoint.scaling), book.could_run(endpoint.scaling)
    return Wait(endpoint=endpoint.endpoint, wanted=missing, reason=why, no_room=full)


def _expired(this: Round, case: Case) -> None:
    """Paused ones that nobody will need: of another version, or not called for long."""
    version = case.endpoint.version
    for instance in case.crew.paused:
        idle = this.now - idle_since(instance)
        if instance.version != version:
            case.release(instance, f"paused, and version {version} has taken over")
        elif idle >= this.config.paused_hold_s:
            case.release(instance, f"paused, and idle for {idle:.0f} s")


def _timed_out(this: Round, case: Case) -> Iterable[tuple[InstanceObservation, str]]:
    """Idle ones that are not needed any more, by ``idle_timeout_s``: (instance, why)."""
    endpoint, mine = case.endpoint, case.crew.mine
    demand = endpoint.in_flight + endpoint.queued
    scaling = endpoint.scaling
    floor = max(case.after.desired, scaling.min) if demand else scaling.min
    surplus = len(mine) - floor
    if case.crew.old or (case.seen.burst and demand) or surplus <= 0:
        return
    for instance in sorted(mine, key=lambda i: (idle_since(i), i.id)):
        if not surplus:
            break
        idle = this.now - idle_since(instance)
        timed_out = idle >= scaling.idle_timeout_s
        if instance.state != "ready" or instance.in_flight:
            continue
        if this.book.state_of(instance.host) == "suspect":
            continue
        if timed_out and not demand:
            yield instance, f"idle for {idle:.1f} s (idle_timeout={scaling.idle_timeout_s:g})"
        elif demand and (timed_out or instance.last_used_at is not None):
            yield instance, f"{len(mine)} instances, {floor} do for {demand} requests"
        else:
            continue
        surplus -= 1
