"""The offers that one endpoint may use now: their prices, what is there, what keeps the others closed. Pure.

Why: which launch is best hangs on all offers at once (a zone is cheap beside others, a hedge needs a
second zone), so they are read once into pools that a choice then counts down.

An offer is *on trial* when it refused its last launch, or took spot away within `preempted_s` and has had
no instance ready since: SpotHedge's list of preempting zones. It gets one launch at a time.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from headrace_autoscaler.backoff import refusal_of, zone_of
from headrace_autoscaler.configs import BurstConfig
from headrace_autoscaler.offers import dear, price_of, rank_of
from headrace_autoscaler.spec import InstanceObservation, OfferObservation, ScalingSpec
from headrace_autoscaler.states import Refusal

_REASONS = 3
"""As many different reasons are named at most when nothing can be launched."""
_ROUNDING = 1e-9


@dataclass(slots=True)
class Pool:
    """One offer while a choice is made: what may be launched there still, and what is there."""

    offer: OfferObservation
    price: float
    """Dollars per hour that it is needed."""
    rank: int
    """Of its accelerator among those that the endpoint prefers."""
    trial: bool
    room: float
    """Launches that it may still get."""
    held: int = 0
    """Instances there that are ready, or on their way where it is not on trial, with those launched now."""

    @property
    def of_use(self) -> bool:
        """Whether it carries something or may: a zone that a hedge can count on."""
        return not self.trial and (self.held > 0 or self.room > 0)


@dataclass(slots=True)
class Market:
    """All offers that the endpoint may use, and what stands in the way of the others."""

    spot: list[Pool] = field(default_factory=list)
    on_demand: list[Pool] = field(default_factory=list)
    closed: dict[str, None] = field(default_factory=dict)
    """Why some of them get nothing now, in the order of the offers."""
    opens: list[float] = field(default_factory=list)
    """When those that are backed off are asked again."""
    alarm_until: float = -math.inf
    """Until then spot that starts is not counted on: some was taken away lately."""

    def why_not(self, short: int) -> str:
        """Why ``short`` instances that are wanted are not launched."""
        reasons = list(self.closed)[:_REASONS] or ["no offer matches"]
        more = len(self.closed) - len(reasons)
        tail = f"; and {more} other reasons" if more > 0 else ""
        return f"{short} more wanted: {'; '.join(reasons)}{tail}"


def read(
    now: float,
    scaling: ScalingSpec,
    alive: Sequence[InstanceObservation],
    offers: Sequence[OfferObservation],
    *,
    refusals: Mapping[str, Refusal],
    config: BurstConfig,
) -> Market:
    """The market for an endpoint that has the instances ``alive`` on these offers."""
    market = Market()
    here: dict[str, list[InstanceObservation]] = {}
    for instance in alive:
        here.setdefault(instance.offer, []).append(instance)
    for offer in offers:
        rank = rank_of(offer, scaling)
        if rank is None:
            continue
        if dear(offer, scaling):
            text = f"price {offer.price:g} $/h of {offer.offer} above max_price={scaling.max_price:g}"
            market.closed[text] = None
            continue
        mine = here.get(offer.offer, ())
        refusal = refusal_of(offer, refusals) if refusals else None
        trial = refusal is not None or _taken_lately(now, offer, mine, config)
        room = math.inf if offer.left is None else float(max(0, offer.left))
        pool = Pool(offer, price_of(offer, config.need_s), rank, trial, room)
        if mine:
            pool.held = sum(i.state == "ready" or not trial for i in mine)
        if trial or not room:
            _close(now, market, pool, refusal, sum(i.state == "starting" for i in mine))
        if offer.spot and offer.preempted_at is not None:
            market.alarm_until = max(market.alarm_until, offer.preempted_at + config.alarm_s)
        (market.spot if offer.spot else market.on_demand).append(pool)
    _narrow(market, scaling.balance, config.saving)
    return market


def _taken_lately(
    now: float, offer: OfferObservation, mine: Sequence[InstanceObservation], config: BurstConfig
) -> bool:
    taken_at = offer.preempted_at
    if taken_at is None or now - taken_at >= config.preempted_s:
        return False
    return not any(i.state == "ready" and i.started_at > taken_at for i in mine)


def _close(now: float, market: Market, pool: Pool, refusal: Refusal | None, starting: int) -> None:
    """Leave the room there is now of an offer on trial or used up, and write down why there is no more."""
    offer = pool.offer
    if refusal is not None and now < refusal.until:
        market.opens.append(refusal.until)
        text = f"{offer.offer} backed off until {refusal.until:.0f} ({refusal.until - now:.0f} s)"
        market.closed[f"{text}: {offer.reason or zone_of(offer) + ' fails'}"] = None
        pool.room = 0.0
    elif not pool.room:
        market.closed[f"quota of {offer.offer} is used up"] = None
    else:
        on_way = max(starting, offer.launching or 0)
        pool.room = 0.0 if on_way else 1.0
        market.closed[f"{offer.offer} gets one launch first, after it refused or took one away"] = None


def _narrow(market: Market, balance: float, saving: float) -> None:
    """Launch no spot that hardly saves anything, or costs much more than other spot."""
    on_demand = min((p.price for p in market.on_demand if p.room), default=math.inf)
    bound = on_demand * (1 - saving)
    cheapest = min((p.price for p in market.spot if p.of_use), default=math.inf)
    for pool in market.spot:
        if min(bound, cheapest * (1 + 2 * balance)) + _ROUNDING < pool.price:
            pool.room = 0.0
