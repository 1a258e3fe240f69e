"""What holds for bursting in any market, and over time in a small world with zones that come and go."""

from __future__ import annotations

from collections import Counter

import msgspec
from headrace_autoscaler.burst import choose
from headrace_autoscaler.configs import BurstConfig
from headrace_autoscaler.offers import dear, rank_of, taken
from headrace_autoscaler.spec import InstanceObservation, OfferObservation, ScalingSpec
from headrace_autoscaler.states import BurstState
from hypothesis import given, settings
from hypothesis import strategies as st

NOW = 100_000.0
TICK_S = 5.0
BOOT_S = 90.0
DAY_S = 86_400.0
REFUSED = "no capacity"

prices = st.floats(0.1, 10.0)
ago = st.floats(0.0, 10_000.0)


@st.composite
def an_offer(draw, number):
    failures = draw(st.integers(0, 5))
    return OfferObservation(
        offer=f"o{number}",
        provider=draw(st.sampled_from("pq")),
        region=draw(st.sampled_from("rs")),
        gpu=("X", draw(st.integers(1, 2))),
        spot=draw(st.booleans()),
        price=draw(prices),
        min_billing_s=draw(st.sampled_from([0.0, 60.0, 3600.0])),
        boot_s=draw(st.none() | st.floats(1.0, 300.0)),
        left=draw(st.none() | st.integers(0, 5)),
        failures=failures,
        failed_at=NOW - draw(ago) if failures else None,
        reason=draw(st.sampled_from([REFUSED, "quota", "it is down"])),
        preempted_at=draw(st.none() | ago.map(lambda s: NOW - s)),
        launching=draw(st.none() | st.integers(0, 2)),
    )


@st.composite
def markets(draw):
    count = draw(st.integers(1, 6))
    return tuple(draw(an_offer(n)) for n in range(count))


@st.composite
def held(draw, offers):
    found = []
    for number in range(draw(st.integers(0, 8))):
        offer = draw(st.sampled_from(offers))
        ready = draw(st.booleans())
        found.append(
            InstanceObservation(
                id=f"i{number}",
                host=f"h{number}",
                version=1,
                state=draw(st.sampled_from(["ready", "draining"])) if ready else "starting",
                in_flight=draw(st.integers(0, 1)) if ready else 0,
                started_at=NOW - draw(ago),
                offer=offer.offer,
                spot=offer.spot,
                price=offer.price,
                paid_until=draw(st.none() | st.floats(NOW - 100, NOW + 100)),
                lost_at=draw(st.none() | st.just(NOW + 60)) if ready else None,
            )
        )
    return tuple(found)


wishes = st.builds(
    ScalingSpec,
    gpu=st.just((("X", 1),)),
    spot=st.sampled_from(["prefer", "never", "only"]),
    balance=st.sampled_from([0.0, 0.2, 0.5, 0.8, 1.0]),
    on_demand=st.integers(0, 3),
    max_price=st.none() | prices,
    providers=st.sampled_from([(), ("p",)]),
)


@given(st.data(), wishes, st.integers(0, 12))
@settings(max_examples=150)
def test_what_holds_in_any_market(data, wish, want):
    offers = data.draw(markets())
    instances = data.draw(held(offers))
    choice = choose(NOW, wish, want, instances, offers, state=BurstState(), config=BurstConfig())
    again = choose(NOW, wish, want, instances, offers, state=BurstState(), config=BurstConfig())
    assert choice == again
    per_offer = Counter(offer.offer for offer, _ in choice.launches)
    for offer in offers:
        count = per_offer[offer.offer]
        if not count:
            continue
        assert rank_of(offer, wish) is not None
        assert not dear(offer, wish)
        assert offer.left is None or count <= offer.left
        if offer.failures:
            # Backed off, or one try.
            assert count == 1
            assert not offer.launching
            refusal = choice.state.refusals.values()
            assert all(r.until <= NOW for r in refusal if r.failed_at == offer.failed_at)
    by_id = {i.id: i for i in instances}
    alive = [i for i in instances if i.state in ("starting", "ready") and i.lost_at is None]
    ready_spot = sum(i.spot and i.state == "ready" for i in alive)
    for name, reason in choice.surplus:
        one = by_id[name]
        assert reason
        assert one in alive
        assert one.paid_until is None or one.paid_until <= NOW
        assert not one.in_flight or (not one.spot and ready_spot)
    # What is given back is never needed, and what is there or on its way is never far above the wants.
    assert len(alive) - len(choice.surplus) >= min(want, len(alive))
    assert choice.look_again_at is None or choice.look_again_at > NOW
    missing = want - len(alive) - len(choice.launches)
    assert (choice.wait is not None) == (missing > 0)
    kept = taken(offers, per_offer.elements())
    assert all(offer.left is None or offer.left >= 0 for offer in kept)


class World:
    """Offers that launch while they are ``there``, boot in ``BOOT_S`` and take spot away when they go."""

    def __init__(self, offers):
        self.offers = {offer.offer: offer for offer in offers}
        self.there = {offer.offer: True for offer in offers}
        self.nodes = {}
        self.now = 0.0
        self.state = BurstState()
        self.launches = Counter()
        self.actions = 0

    def go(self, name, there):
        if self.there[name] and not there:
            self.nodes = {i: n for i, n in self.nodes.items() if n.offer != name}
            self.change(name, preempted_at=self.now if self.offers[name].spot else None)
        self.there[name] = there

    def change(self, name, **changes):
        self.offers[name] = msgspec.structs.replace(self.offers[name], **changes)

    def step(self, wish, want, config=None):
        for one in self.nodes.values():
            if one.state == "starting" and self.now - one.started_at >= BOOT_S:
                self.nodes[one.id] = msgspec.structs.replace(one, state="ready")
                self.change(one.offer, failures=0)
        choice = choose(
            self.now,
            wish,
            want,
            tuple(self.nodes.values()),
            tuple(self.offers.values()),
            state=self.state,
            config=config or BurstConfig(),
        )
        self.state = choice.state
        self.actions = len(choice.launches) + len(choice.surplus)
        for offer, _ in choice.launches:
            self.launches[offer.offer] += 1
            if not self.there[offer.offer]:
                failures = self.offers[offer.offer].failures + 1
                self.change(offer.offer, failures=failures, failed_at=self.now, reason=REFUSED)
                continue
            name = f"{offer.offer}/{self.launches[offer.offer]}"
            self.nodes[name] = InstanceObservation(
                id=name, host=name, version=1, state="starting", started_at=self.now, offer=offer.offer,
                spot=offer.spot, price=offer.price,
            )  # fmt: skip
        for name, _ in choice.surplus:
            del self.nodes[name]
        self.now += TICK_S
        return choice

    def ready(self, spot=None):
        return sum(n.state == "ready" and spot in (None, n.spot) for n in self.nodes.values())


def offer(name, price, *, spot=True, **changes):
    return OfferObservation(
        offer=name, provider=name[0], region=name, gpu=("X", 1), spot=spot, price=price, **changes
    )


WISH = ScalingSpec(gpu=(("X", 1),))


@given(
    zones=st.lists(st.floats(0.5, 2.0), max_size=5),
    on_demand=st.lists(st.floats(1.0, 4.0), max_size=2),
    want=st.integers(0, 20),
    balance=st.floats(0.0, 1.0),
    floor=st.integers(0, 2),
    hedge=st.floats(0.0, 1.0),
    before=st.integers(0, 25),
)
@settings(max_examples=60, deadline=None)
def test_a_constant_want_in_a_market_that_stays_comes_to_rest(
    zones, on_demand, want, balance, floor, hedge, before
):
    offers = [offer(f"z{n}", price) for n, price in enumerate(zones)]
    offers += [offer(f"d{n}", price, spot=False) for n, price in enumerate(on_demand)]
    world, wish = World(offers), msgspec.structs.replace(WISH, balance=balance, on_demand=floor)
    config = BurstConfig(hedge=hedge, reserve=hedge)
    world.step(wish, before, config)
    for _ in range(60):
        choice = world.step(wish, want, config)
    assert world.actions == 0
    assert choice.wait is None or not offers or not (zones or on_demand) or not on_demand
    assert not offers or world.ready() >= want or not on_demand
    if on_demand and want and not zones:
        assert world.ready() == want
    # The hedge against one zone's loss is at most as much again.
    assert world.ready() <= 2 * want + 1


@given(order=st.permutations(range(3)), want=st.integers(1, 8))
@settings(max_examples=8, deadline=None)
def test_the_loss_of_a_zone_is_covered_and_on_demand_goes_when_spot_is_back(order, want):
    world = World([*(offer(f"z{n}", 1.0) for n in range(3)), offer("d", 3.0, spot=False)])
    config = BurstConfig(hedge=1.0, reserve=1.0)
    for _ in range(30):
        world.step(WISH, want, config)
    assert world.ready(spot=False) == 0
    for name in order[:2]:
        world.go(f"z{name}", False)
        # Without any one zone there is enough: no gap at all.
        assert world.ready() >= want or name == order[1]
        for _ in range(30):
            world.step(WISH, want, config)
        assert world.ready() >= want
    assert world.ready(spot=False) == want
    for name in order[:2]:
        world.go(f"z{name}", True)
    for _ in range(600):
        world.step(WISH, want, config)
    assert world.ready(spot=False) == 0
    assert world.ready(spot=True) >= want


@given(want=st.integers(1, 30), balance=st.sampled_from([0.0, 0.5, 1.0]), on_demand=st.booleans())
@settings(max_examples=4, deadline=None)
def test_a_cloud_that_says_no_all_day_is_asked_seldom(want, balance, on_demand):
    offers = [offer("z", 1.0), *([offer("d", 3.0, spot=False)] if on_demand else [])]
    world, wish = World(offers), msgspec.structs.replace(WISH, balance=balance)
    world.there["z"] = False
    while world.now < DAY_S:
        before = world.launches["z"]
        choice = world.step(wish, want)
        # The first time nobody can know, then one at a time.
        assert world.launches["z"] - before <= (want if world.launches["z"] <= want else 1)
        # Between decisions nothing is due: skip.
        if not choice.launches and choice.look_again_at is not None:
            world.now = max(world.now, choice.look_again_at - TICK_S)
    # 60 s growing by 1.5 at least to 1,800 s, less a quarter: 10 steps, then at most 64 in a day.
    assert world.launches["z"] <= want + 10 + 64
