"""Launches for an endpoint what home does not hold, and gives back what it no longer needs; see `burst`."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from headrace_autoscaler import burst, limits, offers
from headrace_autoscaler.cases import Case, Round
from headrace_autoscaler.spec import InstanceObservation, Launch, Release, Resume, Start
from headrace_autoscaler.states import BurstState


def launch(this: Round, case: Case) -> None:
    """What is launched elsewhere for what home does not hold, and what is given back there and at home."""
    endpoint, crew = case.endpoint, case.crew
    at_home = len(crew.mine) - crew.lost - crew.elsewhere
    if case.actions:
        at_home += sum([isinstance(action, Start | Resume) for action in case.actions])
    staying = at_home
    # What is idle too long at home goes when nothing is left elsewhere that could go for it.
    spare = len(case.surplus.gone) - crew.elsewhere
    if spare > 0:
        leaving = [(one, why) for one, why in case.surplus.gone if not one.offer][:spare]
        for one, why in leaving:
            case.release(one, why)
        staying -= len(leaving)
    want = max(0, case.target - staying)
    if this.now < endpoint.blocked_until:
        want = min(want, crew.elsewhere)
    if want == crew.elsewhere and not crew.lost and not this.spot and case.after.burst is None:
        return
    known = case.after.burst or BurstState()
    elsewhere = _elsewhere(case)
    room = endpoint.scaling.max - at_home - crew.elsewhere
    left = limits.left(endpoint, this.spending, this.config.limits)
    # Where starts fail, more nodes would not help.
    among = () if this.now < endpoint.blocked_until else this.offers
    choice = burst.choose(
        this.now, endpoint.scaling, want, elsewhere, among, state=known, config=this.config.burst
    )
    launches = limits.affordable(choice.launches, room, left)
    if choice.launches and not launches and crew.elsewhere < want:
        # What it would rather have is too dear: less sure, but there.
        case.limit = case.limit or f"{choice.launches[0][1]} is above a budget"
        among = tuple(offer for offer in among if offer.price <= left)
        choice = burst.choose(
            this.now, endpoint.scaling, want, elsewhere, among, state=known, config=this.config.burst
        )
        launches = limits.affordable(choice.launches, room, left)
    for offer, text in launches:
        why = f"{case.seen.reason}; {text}"
        name, version = endpoint.endpoint, endpoint.version
        case.actions.append(Launch(endpoint=name, version=version, offer=offer.offer, reason=why))
        if this.spending is not None:
            this.spending += offer.price
    idle = f"{case.surplus.gone[0][1]}; " if case.surplus.gone else ""
    for name, text in choice.surplus:
        case.actions.append(Release(endpoint=endpoint.endpoint, instance=name, reason=f"{idle}{text}"))
    if choice.wait is not None:
        case.wait(max(1, want - crew.elsewhere - len(launches)), choice.wait)
    if launches and not this.alone:
        this.offers = offers.taken(this.offers, [offer.offer for offer, _ in launches])
    if choice.state != known:
        refusing = choice.state if choice.state.refusals else None
        case.after = msgspec.structs.replace(case.after, burst=refusing)
    this.look_again(choice.look_again_at)


def _elsewhere(case: Case) -> Sequence[InstanceObservation]:
    """The instances of the current version on nodes launched for it, whatever their state."""
    every = case.endpoint.instances
    if case.crew.elsewhere == len(every):
        return every
    return [one for one in every if one.offer and one.version == case.endpoint.version]
