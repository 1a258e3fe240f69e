"""How many spares are worth what they hold, from the claims that were seen while spares were being made."""

from __future__ import annotations

import msgspec
import pytest
from headrace_autoscaler.configs import PoolConfig
from headrace_autoscaler.pools import CAPACITY, MOST, Nodes, chances, decide_pools, learn, room_of, warm_nodes
from headrace_autoscaler.spec import HostObservation, OfferObservation, PoolObservation
from headrace_autoscaler.states import PoolState
from hypothesis import given, settings
from hypothesis import strategies as st

NOW = 1000.0
CONFIG = PoolConfig(wait_cost=9.0, enough=10)
"""With a spare that costs 1 $/h the ratio is 0.9."""
HALF = (5.0, 3.0, 2.0)
"""Of ten windows five without a claim, three with one, two with two: at least 1 in 50 %, 2 in 20 %."""


def pool(base="b", **changes):
    given_ = {"host": "h", "base": base, "cost": 1.0, "memory": 100, "refill_s": 5.0, "claimed": 0}
    return PoolObservation(**(given_ | changes))


def known(*windows):
    return PoolState(since=NOW, claimed=0, windows=windows)


def sizes(*pools, windows=HALF, room=None, config=CONFIG):
    states = {f"{p.host}/{p.base}": known(*windows) for p in pools}
    refills, after = decide_pools(NOW, pools, states, config, room=room)
    assert set(after) == set(states)
    return {f"{r.host}/{r.base}": r.count for r in refills}


def test_the_newsvendor_by_hand():
    # Two are enough always, one in 80 % of refills, which is less than 90 %.
    (refill,), _ = decide_pools(NOW, [pool()], {"h/b": known(*HALF)}, CONFIG)
    assert refill.count == 2
    assert refill.reason == "2 are enough in 100.0% of refills of 5 s, 90.0% are worth 1 $/h each"
    # At 9 $/h a spare has to be claimed in half of the refills, which the first is not more often than.
    assert sizes(pool(cost=9.0)) == {}
    assert sizes(pool(cost=8.9)) == {"h/b": 1}
    assert sizes(pool(cost=0.0)) == {"h/b": 2}
    assert sizes(pool(cost=0.0), config=msgspec.structs.replace(CONFIG, wait_cost=0.0)) == {}


def test_what_is_right_already_is_not_said_again():
    assert sizes(pool(ready=1, making=1)) == {}


def test_the_last_spare_goes_only_when_it_is_clearly_not_worth_it():
    # The third is claimed in no refill at all; the second in 20 %: it comes above 20 %, and goes below 10 %.
    assert sizes(pool(ready=3)) == {"h/b": 2}
    assert sizes(pool(ready=2, cost=3.0)) == {}
    assert sizes(pool(ready=0, cost=3.0)) == {"h/b": 1}
    assert sizes(pool(ready=2, cost=9.0)) == {"h/b": 1}


@pytest.mark.parametrize(
    "changes", [{"refill_s": None}, {"claimed": None, "refill_s": None}], ids=["refill", "claims"]
)
def test_what_is_not_known_keeps_its_size(changes):
    assert sizes(pool(**changes)) == {}
    assert sizes(pool(), windows=(4.0, 5.0)) == {}


def test_memory_goes_to_what_saves_most_for_each_byte():
    small, large = pool("small", memory=50), pool("large", memory=200)
    assert sizes(small, large, room={"h": 1000}) == {"h/small": 2, "h/large": 2}
    assert sizes(small, large, room={"h": 150}) == {"h/small": 2}
    assert sizes(small, large, room={"h": 300}) == {"h/small": 2, "h/large": 1}
    assert sizes(small, large, room={"elsewhere": 0}) == {"h/small": 2, "h/large": 2}
    (refill,), _ = decide_pools(NOW, [pool()], {"h/b": known(*HALF)}, CONFIG, room={"h": 100})
    assert refill.reason.startswith("as many as memory is left for; 1 are enough in 80.0%")


def test_what_keeps_its_size_keeps_its_memory():
    unknown = pool("u", refill_s=None, ready=2)
    elsewhere = pool(host="other")
    assert sizes(unknown, pool(), elsewhere, room={"h": 300}) == {"h/b": 1, "other/b": 2}


def test_room_is_what_spares_have_and_a_part_of_what_is_free():
    hosts = [HostObservation(host="h", memory_free=1000), HostObservation(host="i")]
    pools = [pool(ready=2, making=1), pool("c", ready=1), pool(host="gone", ready=9)]
    assert room_of(hosts, pools, PoolConfig(memory_share=0.5)) == {"h": 500 + 300, "i": 0}


def test_claims_are_counted_for_each_refill():
    state = learn(NOW, pool(claimed=7), PoolState())
    assert state == PoolState(since=NOW, claimed=7)
    assert learn(NOW + 4, pool(claimed=9), state) is state
    state = learn(NOW + 5, pool(claimed=9), state)
    assert (state.windows, state.claimed, state.since) == ((0.0, 0.0, 1.0), 9, NOW + 5)
    state = learn(NOW + 10, pool(claimed=9), state)
    assert state.windows == (1.0, 0.0, 1.0)
    # The counter began anew, or the clock did: the window is lost, and not taken for one without claims.
    assert learn(NOW + 15, pool(claimed=1), state).windows == state.windows
    assert learn(NOW - 90, pool(claimed=10), state) == PoolState(
        since=NOW - 90, claimed=10, windows=state.windows
    )
    assert learn(NOW + 15, pool(claimed=None), state) is state
    assert learn(NOW + 15, pool(refill_s=None), state) is state
    instant = learn(NOW + 10, pool(claimed=20, refill_s=0.0), state)
    assert instant is state


def test_what_is_remembered_is_bounded_and_forgets():
    state = known(CONFIG.enough * 1.0, CAPACITY - CONFIG.enough)
    state = learn(NOW + 5, pool(claimed=10_000), state)
    assert len(state.windows) == MOST + 1
    assert sum(state.windows) == (CAPACITY + 1) / 2
    found = chances(state, 1)
    assert found is not None
    assert len(found) == MOST


def test_what_is_gone_is_forgotten():
    _, after = decide_pools(NOW, [pool()], {"h/b": known(*HALF), "h/old": known(*HALF)}, CONFIG)
    assert set(after) == {"h/b"}


def test_warm_nodes_are_pools_of_nodes():
    def nodes(price, **changes):
        offer = OfferObservation(offer="o/x", provider="p", price=price, boot_s=90.0)
        return [Nodes(offer, **({"launched": 0} | changes))]

    config = msgspec.structs.replace(CONFIG, wait_cost=10.0)
    states = {"o/x": PoolState(since=NOW, claimed=0, windows=HALF)}
    (warm,), after = warm_nodes(NOW, nodes(3.29), states, config)
    assert (warm.offer, warm.count) == ("o/x", 1)
    assert warm.reason == "1 are enough in 80.0% of refills of 90 s, 75.2% are worth 3.29 $/h each"
    assert set(after) == {"o/x"}
    assert warm_nodes(NOW, nodes(30.0), states, config)[0] == ()
    assert warm_nodes(NOW, nodes(3.29, ready=1), states, config)[0] == ()
    assert warm_nodes(NOW, nodes(3.29, launched=None), {}, config)[0] == ()


@given(
    costs=st.lists(st.floats(0.0, 20.0), min_size=1, max_size=4),
    windows=st.lists(st.integers(0, 50), min_size=1, max_size=8).filter(lambda w: sum(w) >= 10),
    room=st.integers(0, 2000),
    ready=st.integers(0, 5),
)
@settings(max_examples=80)
def test_sizes_are_within_memory_monotone_in_cost_and_settle(costs, windows, room, ready):
    pools = [pool(f"b{n}", cost=cost, ready=ready, memory=100) for n, cost in enumerate(costs)]
    counts = tuple(float(count) for count in windows)
    bound = {"h": room}
    found = sizes(*pools, windows=counts, room=bound)
    settled = [
        msgspec.structs.replace(one, ready=found.get(f"h/{one.base}", one.ready), making=0) for one in pools
    ]
    assert sum(one.ready * one.memory for one in settled) <= room
    assert sizes(*settled, windows=counts, room=bound) == {}
    free = sizes(*(msgspec.structs.replace(one, ready=0) for one in pools), windows=counts)
    by_cost = [free.get(f"h/b{n}", 0) for n in sorted(range(len(costs)), key=lambda n: costs[n])]
    assert by_cost == sorted(by_cost, reverse=True)
    assert all(count <= len(windows) - 1 for count in by_cost)
