"""What the engine keeps of supplies, endpoints and instances while it plays. No events here."""

from __future__ import annotations

import math
from bisect import insort
from collections import deque
from statistics import median
from typing import Literal

from headrace_autoscaler.simulate.draws import Lifetimes, Stream
from headrace_autoscaler.simulate.scenario import Supply, Wish
from headrace_autoscaler.spec import (
    EndpointObservation,
    HostObservation,
    InstanceObservation,
    OfferObservation,
    PoolObservation,
    ScalingSpec,
)

STARTING, IDLE, BUSY, SUNK, PREEMPTED = range(5)
"""What time is spent on; the first three are also what an instance does."""
HOUR_S = 3600.0
TIERS = ("warm", "cached", "boot")
"""Ways to start, the quickest first."""
RECENT_STARTS = 15
"""Starts whose median is what is known of start times."""
UNLIMITED = 1_000_000
"""What a host without a capacity shows as free."""


class Instance:
    """One instance, from its launch to its end."""

    __slots__ = (
        "doing",
        "doomed",
        "fleet",
        "id",
        "last_finish",
        "last_used_at",
        "lost_at",
        "paid_until",
        "ready_at",
        "running",
        "since",
        "site",
        "slot",
        "started_at",
        "state",
        "tier",
        "view",
    )

    def __init__(self, name: str, fleet: Fleet, site: Site, now: float) -> None:
        self.id = name
        self.fleet = fleet
        self.site = site
        self.slot: int | None = None
        self.tier = "boot"
        self.state: Literal["starting", "ready", "draining", "gone"] = "starting"
        self.doing = STARTING
        self.since = now
        self.started_at = now
        self.paid_until = now + site.supply.min_billing_s
        self.ready_at: float | None = None
        self.last_used_at: float | None = None
        self.last_finish = -math.inf
        self.lost_at: float | None = None
        """When it is taken away; None: no notice was given."""
        self.running: dict[int, float] = {}
        """Requests that it runs, with when each will be done."""
        self.doomed = ""
        """Why its launch will fail; empty: it will not."""
        self.view: InstanceObservation | None = None

    def turn(self, now: float, doing: int) -> None:
        """From now on it does something else; its time until now is booked."""
        if self.doing != doing:
            site = self.site
            site.spend(self, now, self.doing)
            site.doing[self.doing] -= 1
            site.doing[doing] += 1
            self.doing = doing


class Site:
    """One supply: what runs there, what it cost, what is known of it."""

    def __init__(self, supply: Supply, seed: int, warm_up_s: float, end: float = math.inf) -> None:
        self.supply = supply
        self.warm_up_s = warm_up_s
        self.end = end
        """Nothing that is spent later counts."""
        self.name = supply.name
        self.rate = 0.0 if supply.standing else supply.price
        """Dollars per hour that one more instance costs."""
        self.gpu = ((supply.kind, 1),)
        """What one instance has."""
        self.draws = {
            tier: Stream(seed, f"{supply.name}/{tier}", draw)
            for tier, draw in (("boot", supply.boot), ("cached", supply.cached), ("warm", supply.warm))
            if draw is not None
        }
        self.lifetimes = Lifetimes(seed, f"{supply.name}/life", None if self.has_slots else supply.mtbf_s)
        self.slot_lifetimes = [
            Lifetimes(seed, f"{supply.name}/life/{slot}", supply.mtbf_s)
            for slot in range(supply.capacity or 0)
            if self.has_slots
        ]
        self.drawn = dict.fromkeys(self.draws, 0)
        self.started = 0
        self.free_slots = list(range(supply.capacity or 0)) if self.has_slots else []
        self.by_slot: dict[int, Instance] = {}
        self.instances: dict[str, Instance] = {}
        self.loaded: set[int] = set()
        """Endpoints whose image and weights are there."""
        self.seconds = [0.0] * 5
        """Counted seconds, by what they were spent on."""
        self.billed_s = 0.0
        """Counted seconds that ended instances are billed for."""
        self.doing = [0, 0, 0]
        """How many instances are starting, idle and busy."""
        self.outages = 0
        self.away = False
        """Its spot capacity is not there now."""
        self.refill_s = (supply.cached or supply.boot).median
        """Seconds until one more warm sandbox is ready."""
        self.sandboxes = self.sandboxes_wanted = supply.warm_sandboxes if supply.warm is not None else 0
        self.making = 0
        self.claimed = 0
        self.missed = 0
        self.boots: deque[float] = deque(maxlen=RECENT_STARTS)
        self.boot_s: float | None = None
        self.refused = 0
        """Launches under way that will fail."""
        self.failures = 0
        self.failed_at: float | None = None
        self.reason = ""
        self.preempted_at: float | None = None
        self.stale = True
        """Something about it has changed since it was shown."""
        self.host_view: HostObservation | None = None
        self.offer_view: OfferObservation | None = None
        self.pool_view: PoolObservation | None = None

    @property
    def has_slots(self) -> bool:
        """Whether its nodes are places that stay, each with failures of its own."""
        return self.supply.owned and self.supply.capacity is not None

    @property
    def left(self) -> int | None:
        """How many more instances there may be; None: any number."""
        if self.supply.capacity is None:
            return None
        return len(self.free_slots) if self.has_slots else self.supply.capacity - len(self.instances)

    def refusal(self) -> str:
        """Why nothing can be started there now; empty: it can."""
        if self.outages:
            return f"{self.supply.provider} does not answer"
        if self.away:
            return "no spot capacity"
        left = self.left
        if left is not None and left <= 0:
            return f"quota of {self.supply.capacity} is used up"
        return ""

    def tier(self, endpoint: int) -> str:
        """The quickest way to start one of this endpoint now: warm, cached or boot."""
        if self.sandboxes > 0:
            return "warm"
        if "cached" in self.draws and endpoint in self.loaded:
            return "cached"
        return "boot"

    def draw(self, tier: str) -> float:
        """Seconds that the next start of this tier takes."""
        k = self.drawn[tier]
        self.drawn[tier] = k + 1
        return self.draws[tier].at(k)

    def enter(self, one: Instance) -> None:
        """An instance begins to start here."""
        self.started += 1
        self.instances[one.id] = one
        self.doing[STARTING] += 1
        one.tier = self.tier(one.fleet.index)
        self.loaded.add(one.fleet.index)
        if self.has_slots:
            one.slot = self.free_slots.pop(0)
            self.by_slot[one.slot] = one
        self.changed()

    def leave(self, one: Instance, now: float) -> None:
        """It has ended, and its time up to now is booked: the rest of its minimum billing, and the bill."""
        paid = min(max(now, one.paid_until), self.end)
        self.spend(one, paid, SUNK)
        self.billed_s += max(0.0, paid - max(self.warm_up_s, one.started_at))
        self.doing[one.doing] -= 1
        del self.instances[one.id]
        if one.slot is not None:
            del self.by_slot[one.slot]
            self.give_slot(one.slot)
        self.changed()

    def changed(self) -> None:
        """What is shown of it is out of date."""
        self.stale = True
        self.host_view = self.offer_view = self.pool_view = None

    def spend(self, instance: Instance, now: float, kind: int) -> None:
        """Book the time since the last booking as spent on ``kind``."""
        since = max(instance.since, self.warm_up_s)
        until = min(now, self.end)
        if until > since:
            self.seconds[kind] += until - since
        instance.since = now

    def booted(self, seconds: float) -> None:
        """A start took so long; launches there succeed."""
        self.boots.append(seconds)
        self.boot_s = median(self.boots)
        self.failures = 0
        self.reason = ""
        self.changed()

    def failed(self, now: float, reason: str) -> None:
        """A launch there came to nothing."""
        self.failures += 1
        self.failed_at = now
        self.reason = reason
        self.changed()

    def take_slot(self, slot: int) -> None:
        """A free place is gone for a while."""
        self.free_slots.remove(slot)
        self.changed()

    def give_slot(self, slot: int) -> None:
        """A place is free again."""
        insort(self.free_slots, slot)
        self.changed()


class Fleet:
    """One endpoint: its queue, its instances and its counters."""

    def __init__(self, name: str, index: int, scaling: ScalingSpec) -> None:
        self.name = name
        self.index = index
        self.scaling = scaling
        self.concurrency = scaling.concurrency
        self.instances: dict[str, Instance] = {}
        """In the order of their launch."""
        self.free: dict[Instance, None] = {}
        """Those with a slot free, the most recently used last."""
        self.leaving: dict[Instance, None] = {}
        """Likewise, those that are to be taken away soon: they take what no other can."""
        self.queue: deque[int] = deque()
        """Requests in order, with some that have left since."""
        self.queued = 0
        self.in_flight = 0
        self.arrived = 0
        self.demand_s = 0.0
        self.demand_at = 0.0
        self.served: list[float] = []
        self.recent: deque[float] = deque(maxlen=RECENT_STARTS)
        self.start_s: float | None = None
        self.instances_view: tuple[InstanceObservation, ...] | None = ()
        """None: out of date."""
        self.view: EndpointObservation | None = None
        """What was shown last, while it is true."""

    def count(self, now: float) -> None:
        """Bring the integral of demand up to now; to be called before demand changes."""
        self.demand_s += (self.in_flight + self.queued) * (now - self.demand_at)
        self.demand_at = now
        self.view = None

    def put(self, one: Instance) -> None:
        """It has a slot free, and was used last."""
        slots = self.free if one.lost_at is None else self.leaving
        slots.pop(one, None)
        slots[one] = None

    def take(self, one: Instance) -> None:
        """It has no slot free."""
        self.free.pop(one, None)
        self.leaving.pop(one, None)

    def started(self, seconds: float) -> None:
        """A start took so long."""
        self.recent.append(seconds)
        self.start_s = median(self.recent)

    def alive(self) -> bool:
        """Whether one runs or starts that is not on its way out."""
        return any(one.state != "draining" for one in self.instances.values())

    def changed(self, instance: Instance) -> None:
        """What is shown of the instance is out of date."""
        instance.view = None
        self.instances_view = None
        self.view = None


def scaling_of(wish: Wish, supplies: tuple[Supply, ...]) -> ScalingSpec:
    """What the policy is told of an endpoint's wish: any of the supplies' kinds will do."""
    kinds = dict.fromkeys(supply.kind for supply in supplies)
    return ScalingSpec(
        min=wish.min,
        max=wish.max,
        concurrency=wish.concurrency,
        target_concurrency=wish.target_concurrency,
        idle_timeout_s=60.0 if wish.idle_timeout_s is None else wish.idle_timeout_s,
        learn_idle=wish.idle_timeout_s is None,
        spot=_SPOT[wish.spot],
        balance=wish.balance,
        on_demand=wish.on_demand,
        budget=wish.budget,
        max_price=wish.max_price,
        cpu=0.0,
        gpu=tuple((kind, 1) for kind in kinds),
    )


_SPOT: dict[str, Literal["prefer", "never", "only"]] = {"prefer": "prefer", "never": "never", "only": "only"}
