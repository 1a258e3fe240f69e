"""What to launch at which cloud for what home cannot hold, and what to give back. Pure.

The idea is SpotHedge (SkyServe, EuroSys'25, arXiv 2411.01438): spot is cheap and goes in whole zones, so
hold it in several zones at once and more of it than is needed, stay away from zones that lately took it
away, cover by on-demand what is not *ready* on spot, and give that back when spot is. Its on-demand count
is min(N_tar, N_tar + N_extra - ready spot), N_extra a constant. Three things differ here, and why:

- N_extra follows from what it is for. Spot is launched until what is left without the fullest zone is
  enough: one more over five zones for four wanted, not two for any number. The cheapest zones are filled
  as far as that allows, and evenly where they cost the same. Where one zone is left, more spot in it is
  no hedge: on-demand takes a part, the reserve.
- Spot that boots in a zone that works counts for a while as if it were ready. Otherwise each rise in
  demand pays for a boot of on-demand as well. For `alarm_s` after spot was taken away only what is ready
  counts, so that on-demand starts at the notice and not at the loss.
- A zone that took spot away or refused it gets one instance, beside what is wanted, and more only when
  that one is ready.

``balance`` b, from 0 to 1: what losing one zone must leave of what is wanted is nothing at 0, ``hedge`` at
0.5 and all at 1, and between in proportion; the reserve likewise with ``reserve``, which costs more and so
is less. Spot that boots counts for ``patience * (1 - b) / b`` boot times; zones are used up to ``1 + 2b``
times the price of the cheapest. So 0 is all spot in the cheapest zone that has it, without spare, and
on-demand only when every zone refuses; 1 counts only what is ready, as the paper does.
Of what is wanted, ``on_demand`` instances are never on spot.

Of what is not needed, instances that are starting go first, then idle ones, the dearest first; what is
paid for anyway stays until that ends. Busy on-demand drains when ready spot takes its place; nothing else
that is busy is given back.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from headrace_autoscaler.backoff import learn, zone_of
from headrace_autoscaler.configs import BurstConfig
from headrace_autoscaler.market import Market, Pool, read
from headrace_autoscaler.offers import dear, price_of, rank_of
from headrace_autoscaler.placement import idle_since
from headrace_autoscaler.spec import InstanceObservation, OfferObservation, ScalingSpec
from headrace_autoscaler.states import BurstState

_ROUNDING = 1e-9
_CALM = BurstState()
"""Nobody refuses."""


@dataclass(frozen=True)
class Choice:
    """What to launch and to give back now, and what is remembered."""

    launches: tuple[tuple[OfferObservation, str], ...]
    """(offer, reason), one for each node, in the order to carry out."""
    surplus: tuple[tuple[str, str], ...]
    """(instance, reason): to be released; one that is busy drains."""
    wait: str | None
    """Why what is wanted is not there and not on its way, in words; None: nothing is short."""
    state: BurstState
    look_again_at: float | None
    """When something falls due if nothing else happens; None: nothing does."""


def choose(
    now: float,
    scaling: ScalingSpec,
    want: int,
    instances: Sequence[InstanceObservation],
    offers: Sequence[OfferObservation],
    *,
    state: BurstState,
    config: BurstConfig,
) -> Choice:
    """What to launch and give back so that ``want`` instances are there beyond what home holds.

    ``instances``: those of the endpoint on nodes launched for it, whatever their state; ``offers``: what
    may be launched, less what other endpoints took in the same decision (`offers.taken`). What is not
    wanted is named at once: how long to keep spare ones is the caller's to say, by ``want``.
    """
    if want <= 0 and not instances:
        # What refuses meanwhile is learnt from the offers when something is wanted again.
        return Choice((), (), None, state, None)
    if (simple := _plain(now, scaling, want, instances, offers, config=config)) is not None:
        return simple
    return _weighed(now, scaling, want, instances, offers, state=state, config=config)


def _weighed(
    now: float,
    scaling: ScalingSpec,
    want: int,
    instances: Sequence[InstanceObservation],
    offers: Sequence[OfferObservation],
    *,
    state: BurstState,
    config: BurstConfig,
) -> Choice:
    refusals = learn(state.refusals, offers, config)
    # What is about to be taken away serves until then, and is not counted on.
    alive = [i for i in instances if i.state in ("starting", "ready") and i.lost_at is None]
    market = read(now, scaling, alive, offers, refusals=refusals, config=config)
    if any(i.spot and i.lost_at is not None for i in instances):
        market.alarm_until = math.inf
    plan = _Plan(now, scaling, max(0, want), alive, market=market, config=config)
    launches = tuple(plan.launches())
    surplus = tuple(plan.surplus())
    short = want - len(plan.spot) - len(plan.other) - len(launches)
    wait = market.why_not(short) if short > 0 else None
    due = [*plan.due, *(market.opens if plan.lacks else ())]
    look = min((at for at in due if at > now), default=None)
    return Choice(launches, surplus, wait, BurstState(refusals=refusals), look)


def _plain(
    now: float,
    scaling: ScalingSpec,
    want: int,
    instances: Sequence[InstanceObservation],
    offers: Sequence[OfferObservation],
    *,
    config: BurstConfig,
) -> Choice | None:
    """What `_weighed` says where nobody refuses and spot plays no part, at a tenth of the work; else None."""
    if scaling.spot == "only" or want < 0 or not all(_is_calm(offer, scaling) for offer in offers):
        return None
    if any(one.spot for one in instances):
        return None
    alive = [i for i in instances if i.lost_at is None and i.state in ("starting", "ready")]
    short = want - len(alive)
    if short <= 0:
        return _back(now, alive, want)
    found = [offer for offer in offers if rank_of(offer, scaling) is not None]
    best = min(found, key=lambda o: (rank_of(o, scaling), price_of(o, config.need_s), o.offer), default=None)
    if best is None or (best.left is not None and best.left < short):
        return None
    why = "spot=never" if scaling.spot == "never" else f"on_demand={want}"
    return Choice(((best, _said(best, why)),) * short, (), None, _CALM, None)


def _is_calm(offer: OfferObservation, scaling: ScalingSpec) -> bool:
    """Whether there is nothing to be said of the offer but its price."""
    quiet = not offer.spot and not offer.failures and offer.preempted_at is None and offer.left != 0
    return quiet and not dear(offer, scaling)


def _back(now: float, alive: Sequence[InstanceObservation], want: int) -> Choice:
    """On-demand instances alone: those that are too many, and no longer paid for."""
    gone: list[tuple[str, str]] = []
    due: list[float] = []
    spare = len(alive) - want
    if spare:
        text = f"0 ready on spot and {len(alive)} on demand, {want} wanted"
        for one in sorted((i for i in alive if not i.in_flight), key=_order):
            if len(gone) == spare:
                break
            if one.paid_until is not None and now < one.paid_until:
                due.append(one.paid_until)
            else:
                gone.append((one.id, text))
    return Choice((), tuple(gone), None, _CALM, min(due, default=None))


def _said(offer: OfferObservation, why: str) -> str:
    market = "spot" if offer.spot else "on demand"
    return f"{why}: {offer.offer} ({offer.provider} {offer.region}, {market}, {offer.price:g} $/h)"


class _Plan:
    """One endpoint's counts while a choice is made."""

    def __init__(
        self,
        now: float,
        scaling: ScalingSpec,
        want: int,
        alive: Sequence[InstanceObservation],
        *,
        market: Market,
        config: BurstConfig,
    ) -> None:
        self.now, self.scaling, self.market, self.config = now, scaling, market, config
        self.pools = {pool.offer.offer: pool for pool in (*market.spot, *market.on_demand)}
        self.spot = [i for i in alive if i.spot]
        self.other = [i for i in alive if not i.spot]
        some = market.spot or self.spot
        self.floor = 0 if scaling.spot == "only" else min(want, scaling.on_demand) if some else want
        self.rest = want - self.floor
        """What may be on spot."""
        self.need = self._part(config.hedge)
        """What losing one zone must leave of it."""
        self.mixed = self._mixed()
        if self.mixed:
            self.need = self._part(config.reserve)
        self.goal = self.rest - self.need if self.mixed else self.rest
        """What is wanted on spot, apart from the hedge."""
        self.counted = [i for i in self.spot if i.state == "ready" or not self._on_trial(i.offer)]
        self.fresh: list[Pool] = []
        """Where spot is launched now, for each launch."""
        self.lacks = False
        """More would be launched if it could be."""
        self.due: list[float] = []

    def _part(self, at_half: float) -> int:
        """So many of what may be on spot; ``at_half`` is the part at ``balance`` 0.5, and 1 it is at 1."""
        twice = 2 * min(1.0, self.scaling.balance)
        part = twice * at_half if twice <= 1 else at_half + (twice - 1) * (1 - at_half)
        return math.ceil(part * self.rest - _ROUNDING)

    def _on_trial(self, offer: str) -> bool:
        pool = self.pools.get(offer)
        return pool is None or pool.trial

    def _mixed(self) -> bool:
        """Whether on-demand is the hedge: spot is in one zone at most, or in too few to be cheaper."""
        if not self.need or not self.market.on_demand:
            return False
        zones = [pool.price for pool in self.market.spot if pool.of_use]
        if len(zones) < 2:
            return True
        on_demand = min(pool.price for pool in self.market.on_demand)
        # Spread evenly over n zones, n / (n - 1) times what is wanted survives the loss of one.
        return sum(zones) / (len(zones) - 1) > on_demand

    # Launches

    def launches(self) -> Iterator[tuple[OfferObservation, str]]:
        """Spot for what is wanted and for the hedge, a try where spot was refused, then on-demand."""
        while (step := self._next_spot()) is not None:
            pool, why = step
            self.fresh.append(pool)
            yield self._take(pool, why)
        self.lacks = self._total() < self.goal or self.mixed
        if self.rest and (self.lacks or self.need or self.fresh):
            for pool in self.market.spot:
                if pool.trial and pool.room:
                    yield self._take(pool, "whether there is spot again")
        yield from self._on_demand(self.floor + self._uncovered() - len(self.other))

    def _on_demand(self, missing: int) -> Iterator[tuple[OfferObservation, str]]:
        why = self._why_on_demand()
        for _ in range(missing):
            found = [pool for pool in self.market.on_demand if pool.room]
            if not found:
                self.lacks = True
                return
            best = min(found, key=lambda p: (p.trial, p.rank, p.price, p.offer.offer))
            for pool in found:
                # Else what failed once is never gone back to, as long as a dearer one works.
                if pool.trial and pool is not best and pool.price < best.price:
                    yield self._take(pool, "whether it launches again")
            yield self._take(best, why)

    def _total(self) -> int:
        return len(self.counted) + len(self.fresh)

    def _next_spot(self) -> tuple[Pool, str] | None:
        """Where one more on spot is to be launched, and why; None: nowhere."""
        found = [pool for pool in self.market.spot if pool.room and not pool.trial]
        total = self._total()
        if total < self.goal:
            pool = min(found, key=self._preference, default=None)
            return None if pool is None else (pool, f"{total} of {self.goal} wanted on spot")
        fullest = max((pool.held for pool in self.market.spot), default=0)
        if self.mixed or total - fullest >= self.need or not found:
            return None
        pool = min(found, key=lambda p: (p.held, *self._preference(p)))
        # In the fullest zone alone one more is no hedge; in all of several it is a step to one.
        if pool.held >= fullest and len(found) == 1:
            return None
        return pool, f"losing a zone would leave {total - fullest} of {self.need}"

    def _preference(self, pool: Pool) -> tuple[object, ...]:
        if not self.need:
            return pool.rank, pool.price, pool.offer.offer
        # A zone may hold as many as leave what is needed when it goes: the cheapest first, to that.
        over = pool.held >= self.rest - self.need
        zone = zone_of(pool.offer)
        beside = sum(p.held for p in self.market.spot if zone_of(p.offer) == zone)
        held = pool.held if over else 0
        return pool.rank, over, held, pool.price, pool.held, beside, pool.offer.offer

    def _take(self, pool: Pool, why: str) -> tuple[OfferObservation, str]:
        pool.room -= 1
        pool.held += 1
        return pool.offer, _said(pool.offer, why)

    def _uncovered(self) -> int:
        """How many on-demand instances cover what may be on spot and is not there."""
        there = Counter(
            i.offer for i in self.spot if i.state == "ready" or self._trusted(i.offer, i.started_at)
        )
        there.update(pool.offer.offer for pool in self.fresh if self._trusted(pool.offer.offer, self.now))
        return self._missing(there)

    def _missing(self, there: Counter[str]) -> int:
        total = there.total()
        missing = self.rest - total
        if self.mixed:
            missing = max(missing, self.need - (total - max(there.values(), default=0)))
        return max(0, missing)

    def _trusted(self, offer: str, since: float) -> bool:
        """Whether spot that is starting since then counts as if it were ready."""
        balance = self.scaling.balance
        if balance <= 0:
            return True
        if self._on_trial(offer) or self.now < self.market.alarm_until:
            return False
        boot = self.pools[offer].offer.boot_s
        boot = self.config.boot_s if boot is None else boot
        until = since + self.config.patience * (1 - balance) / balance * boot
        if self.now >= until:
            return False
        self.due.append(until)
        return True

    def _why_on_demand(self) -> str:
        if not self.rest:
            return "spot=never" if self.scaling.spot == "never" else f"on_demand={self.floor}"
        ready = sum(i.state == "ready" for i in self.spot)
        alarm = ", and some was taken away" if self.now < self.market.alarm_until else ""
        return f"{ready} of {self.rest} are ready on spot{alarm}"

    # Surplus

    def surplus(self) -> Iterator[tuple[str, str]]:
        """What is not needed and no longer paid for; to be asked after `launches`."""
        ready = Counter(i.offer for i in self.spot if i.state == "ready")
        wanted = self.floor + self.rest
        spare = len(self.other) - self.floor - self._missing(ready)
        ready_other = sum(i.state == "ready" for i in self.other)
        # What spot took over drains even while it is busy; what demand has left, only when it is idle.
        over = ready.total() + ready_other - wanted if ready else 0
        text = f"{ready.total()} ready on spot and {len(self.other)} on demand, {wanted} wanted"
        for instance in sorted(self.other, key=_order) if spare > 0 else ():
            if spare <= 0:
                break
            if (instance.in_flight and over <= 0) or self._paid(instance):
                continue
            spare -= 1
            over -= instance.state == "ready"
            ready_other -= instance.state == "ready"
            yield instance.id, text
        yield from self._spare_spot(ready_other)

    def _spare_spot(self, beside: int) -> Iterator[tuple[str, str]]:
        """Spot beyond what is wanted and hedged; what is ready goes only when the rest that is ready does.

        ``beside``: instances on demand that are ready and stay.
        """
        if not self.spot:
            return
        # What is to be on demand instead has to be ready there first.
        needed = self.floor + self.rest - beside
        goal = max(self.goal, needed)
        counted = Counter(i.offer for i in self.counted)
        ready = Counter(i.offer for i in self.spot if i.state == "ready")
        text = f"{counted.total()} on spot, {goal} wanted there"
        for instance in sorted(self.spot, key=lambda i: _order(i, counted[i.offer])):
            offer, is_ready = instance.offer, instance.state == "ready"
            in_count = is_ready or not self._on_trial(offer)
            if in_count:
                counts = (counted, ready) if is_ready else (counted,)
                spare = not instance.in_flight and all(self._spares(offer, held, goal) for held in counts)
            else:
                # Only a try, beside what is wanted: it stays while anything may be on spot.
                spare = not self.rest and needed <= 0
            if not spare or self._paid(instance):
                continue
            counted[offer] -= in_count
            ready[offer] -= is_ready
            yield instance.id, text

    def _spares(self, offer: str, held: Counter[str], goal: int) -> bool:
        """Whether one less there leaves enough, also without the zone that is then the fullest."""
        if held.total() <= goal:
            return False
        if self.mixed or not self.need:
            return True
        left = held.copy()
        left[offer] -= 1
        return left.total() - _most(left) >= min(self.need, held.total() - _most(held))

    def _paid(self, instance: InstanceObservation) -> bool:
        """Whether it is paid for anyway; notes until when."""
        if instance.paid_until is None or self.now >= instance.paid_until:
            return False
        self.due.append(instance.paid_until)
        return True


def _most(counts: Counter[str]) -> int:
    return max(counts.values(), default=0)


def _order(instance: InstanceObservation, held: int = 0) -> tuple[bool, bool, float, int, float, str]:
    """What is given back first: starting, idle, then busy ones; the dearest of each, where most are ``held``.

    Of those then that starts which would be there last, or that which is idle for longest.
    """
    busy, ready = instance.in_flight > 0, instance.state == "ready"
    order = idle_since(instance) if ready else -instance.started_at
    return busy, ready, -(instance.price or 0.0), -held, order, instance.id
