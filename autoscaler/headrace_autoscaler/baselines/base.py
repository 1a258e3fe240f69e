"""What the baselines share: a verdict on how many instances, and how it becomes actions.

A baseline decides for each endpoint alone how many to start and which to release (`Verdict`); `each` asks it
for all endpoints of an observation and turns the answers into Start, Launch, Release and Wait. These rules
are the same for all, so that what is compared is the scaling and nothing else:

- the endpoint's min and max hold whatever the baseline says (its own limits are set to these);
- homes with room come first, then the cheapest offer that suits and does not fail. One whose launches fail is
  left alone for a time that doubles with each failure (`BACKOFF_S` to `BACKOFF_MAX_S`);
- of those that go, the longest idle goes first. A busy one goes only where the real system takes those too,
  and then it drains: what it runs is finished. One that still starts is cancelled only where the real
  system does so, and then before all others.

What a baseline remembers is one frozen value per endpoint, in a dict that is copied when it changes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from headrace_autoscaler.interface import Plan
from headrace_autoscaler.placement import Book
from headrace_autoscaler.spec import (
    Action,
    EndpointObservation,
    InstanceObservation,
    Launch,
    Observation,
    OfferObservation,
    Release,
    ScalingSpec,
    Start,
    Wait,
)

RETRY_S = 5.0
"""Seconds until it is tried again when there was no room."""
BACKOFF_S = 10.0
"""Seconds that an offer is left alone after its first failure in a row; doubled with each further one."""
BACKOFF_MAX_S = 300.0
_BACKOFF_DOUBLINGS = 10

Reason = tuple[Any, ...]
"""A %-template and its arguments: put together only when there is an action to explain."""


class Fleet(NamedTuple):
    """The instances of one endpoint that serve or will (those that drain or are paused do neither)."""

    alive: Sequence[InstanceObservation]
    ready: int
    """How many of them take requests."""


_NO_FLEET = Fleet((), 0)


class Verdict(NamedTuple):
    """What a baseline says about one endpoint."""

    memory: Any
    """To be given to it the next time; the same object when nothing changed."""
    start: int = 0
    why: Reason = ("",)
    """Why they start."""
    release: Sequence[InstanceObservation] = ()
    """In the order to go; min may keep the last of them."""
    gone: Reason = ("",)
    """Why they go."""
    look_again_at: float | None = None


Judge = Callable[[float, EndpointObservation, Fleet, Any, Any], Verdict]
"""(now, endpoint, its instances, memory, config) -> verdict. Pure."""


def fleet_of(endpoint: EndpointObservation) -> Fleet:
    """Who serves it or will."""
    if not endpoint.instances:
        return _NO_FLEET
    alive = [i for i in endpoint.instances if i.state in ("ready", "starting")]
    ready = 0
    for instance in alive:
        if instance.state == "ready":
            ready += 1
    return Fleet(alive, ready)


def idle_from(instance: InstanceObservation) -> float:
    """Since when it has nothing to do: its last use, else since it is ready (or started)."""
    if instance.last_used_at is not None:
        return instance.last_used_at
    return instance.started_at if instance.ready_at is None else instance.ready_at


def is_idle(instance: InstanceObservation) -> bool:
    """Ready, with nothing to do."""
    return instance.state == "ready" and not instance.in_flight


def bounded(scaling: ScalingSpec, count: int) -> int:
    """``count`` within the endpoint's min and max; max wins."""
    return min(scaling.max, max(scaling.min, count))


def to_count(fleet: Fleet, desired: int, memory: Any, why: Reason, *, starting: bool, busy: bool) -> Verdict:
    """Have ``desired`` instances; ``starting`` and ``busy``: whether those go too when there are too many."""
    surplus = len(fleet.alive) - desired
    if surplus == 0:
        return Verdict(memory)
    if surplus < 0:
        return Verdict(memory, start=-surplus, why=why)
    return Verdict(memory, release=leavers(fleet.alive, surplus, starting=starting, busy=busy), gone=why)


def leavers(
    alive: Sequence[InstanceObservation], surplus: int, *, starting: bool, busy: bool
) -> list[InstanceObservation]:
    """Who goes, at most ``surplus``: those that start (the last started first), idle ones, busy ones."""
    going: list[InstanceObservation] = []
    if starting:
        going += sorted(
            (i for i in alive if i.state == "starting"), key=lambda i: (i.started_at, i.id), reverse=True
        )
    going += sorted((i for i in alive if is_idle(i)), key=lambda i: (idle_from(i), i.id))
    if busy:
        working = (i for i in alive if i.state == "ready" and i.in_flight)
        going += sorted(working, key=lambda i: (i.in_flight, i.started_at, i.id))
    return going[:surplus]


def expire(
    now: float, fleet: Fleet, timeout_of: Callable[[InstanceObservation], float]
) -> tuple[list[InstanceObservation], float | None]:
    """(the idle ones whose time-out has passed, longest idle first; when the next one's does, or None)."""
    due: list[tuple[float, str, InstanceObservation]] = []
    soonest: float | None = None
    for instance in fleet.alive:
        if not is_idle(instance):
            continue
        since = idle_from(instance)
        ends = since + timeout_of(instance)
        if ends <= now:
            due.append((since, instance.id, instance))
        elif soonest is None or ends < soonest:
            soonest = ends
    due.sort(key=lambda one: one[:2])
    return [one[2] for one in due], soonest


def suits(offer: OfferObservation, scaling: ScalingSpec) -> bool:
    """Whether the endpoint may and can run on a node of this offer."""
    return (
        scaling.runtime in offer.runtimes
        and (not scaling.providers or offer.provider in scaling.providers)
        and (not scaling.regions or offer.region in scaling.regions)
        and (scaling.spot == "prefer" or offer.spot == (scaling.spot == "only"))
        and (scaling.max_price is None or offer.price <= scaling.max_price)
        and (not scaling.gpu or offer.gpu in scaling.gpu)
        and (not offer.cpu or offer.cpu >= scaling.cpu)
        and (not offer.memory or offer.memory >= scaling.memory)
    )


def resting(now: float, offer: OfferObservation) -> bool:
    """Whether it is left alone because its launches failed."""
    if not offer.failures or offer.failed_at is None:
        return False
    doublings = min(offer.failures - 1, _BACKOFF_DOUBLINGS)
    return now < offer.failed_at + min(BACKOFF_MAX_S, BACKOFF_S * 2.0**doublings)


class Market:
    """Where new instances can go, written down as one decision hands it out."""

    def __init__(self, now: float, observation: Observation) -> None:
        self._now = now
        self._book = Book(observation.hosts)
        self._offers = sorted(observation.offers, key=lambda o: (o.price, o.offer))
        self._left = {o.offer: o.left for o in observation.offers if o.left is not None}

    def home(self, endpoint: EndpointObservation, why: str) -> Start | None:
        """Start one on a host that is there; None: none has room."""
        host = self._book.place(endpoint.scaling, endpoint.endpoint)
        if host is None:
            return None
        return Start(endpoint=endpoint.endpoint, version=endpoint.version, host=host, reason=why)

    def offers(self, endpoint: EndpointObservation) -> list[OfferObservation]:
        """Those that suit and have some left, cheapest first."""
        return [o for o in self._offers if self.has(o) and suits(o, endpoint.scaling)]

    def has(self, offer: OfferObservation) -> bool:
        """Whether it has some left."""
        return self._left.get(offer.offer, 1) > 0

    def launch(self, endpoint: EndpointObservation, offer: OfferObservation, why: str) -> Launch:
        """Launch one there."""
        if offer.offer in self._left:
            self._left[offer.offer] -= 1
        return Launch(endpoint=endpoint.endpoint, version=endpoint.version, offer=offer.offer, reason=why)

    def cheapest(self, endpoint: EndpointObservation, why: str, spot: bool | None = None) -> Launch | None:
        """Launch one where it is cheapest and nothing fails (``spot``: or only where it is, or is not)."""
        for offer in self.offers(endpoint):
            if (spot is None or offer.spot == spot) and not resting(self._now, offer):
                return self.launch(endpoint, offer, why)
        return None

    def anywhere(self, endpoint: EndpointObservation, why: str) -> Start | Launch | None:
        """Home, else the cheapest offer; None: nowhere."""
        return self.home(endpoint, why) or self.cheapest(endpoint, why)

    def short(self, endpoint: EndpointObservation, missing: int) -> Wait:
        """Says that so many found no place."""
        scaling = endpoint.scaling
        text = f"{self._book.why_not(scaling)}, and no offer that suits takes another launch now"
        return Wait(
            endpoint=endpoint.endpoint, wanted=missing, reason=text, no_room=self._book.could_run(scaling)
        )


def each(
    now: float, observation: Observation, state: Mapping[str, Any], config: Any, *, judge: Judge, fresh: Any
) -> Plan:
    """Ask ``judge`` about each endpoint (``fresh``: the memory of one that is new) and act on it."""
    actions: list[Action] = []
    after: dict[str, Any] | None = None
    soonest: float | None = None
    market: Market | None = None
    for endpoint in observation.endpoints:
        before = state.get(endpoint.endpoint, fresh)
        fleet = fleet_of(endpoint)
        verdict = judge(now, endpoint, fleet, before, config)
        if verdict.memory is not before:
            after = dict(state) if after is None else after
            after[endpoint.endpoint] = verdict.memory
        again = verdict.look_again_at
        alive, scaling = len(fleet.alive), endpoint.scaling
        start = max(min(verdict.start, scaling.max - alive), min(scaling.min, scaling.max) - alive)
        if start > 0:
            market = Market(now, observation) if market is None else market
            actions += _starts(now, endpoint, start, verdict, market)
            if isinstance(actions[-1], Wait):
                again = earlier(again, now + RETRY_S)
        elif verdict.release:
            actions += _releases(endpoint, alive, verdict)
        soonest = earlier(soonest, again)
    return Plan(tuple(actions), state if after is None else after, soonest)


def earlier(one: float | None, other: float | None) -> float | None:
    """The earlier of two times, of which each may be none."""
    if one is None or other is None:
        return other if one is None else one
    return min(one, other)


def _starts(
    now: float, endpoint: EndpointObservation, count: int, verdict: Verdict, market: Market
) -> list[Action]:
    if now < endpoint.blocked_until:
        text = f"starts fail: tries again in {endpoint.blocked_until - now:.1f} s"
        return [Wait(endpoint=endpoint.endpoint, wanted=count, reason=text)]
    why = told(verdict.why) if verdict.start else f"min={endpoint.scaling.min}"
    actions: list[Action] = []
    for done in range(count):
        action = market.anywhere(endpoint, why)
        if action is None:
            actions.append(market.short(endpoint, count - done))
            break
        actions.append(action)
    return actions


def _releases(endpoint: EndpointObservation, alive: int, verdict: Verdict) -> list[Action]:
    text = told(verdict.gone)
    allowed = max(0, alive - endpoint.scaling.min)
    return [
        Release(endpoint=endpoint.endpoint, instance=instance.id, reason=text)
        for instance in verdict.release[:allowed]
    ]


def told(reason: Reason) -> str:
    """The reason in words."""
    words: str = reason[0] % reason[1:]
    return words
