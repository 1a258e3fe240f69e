"""Which offers are launched for what home cannot hold, which instances are given back, and why not."""

from __future__ import annotations

from collections import Counter

import msgspec
import pytest
from headrace_autoscaler.burst import choose
from headrace_autoscaler.configs import BurstConfig
from headrace_autoscaler.spec import InstanceObservation, OfferObservation, ScalingSpec
from headrace_autoscaler.states import BurstState

NOW = 10_000.0
GPU = (("X1", 1),)
FULL = BurstConfig(hedge=1.0, reserve=1.0)
"""At the default balance a zone's loss leaves all that is wanted."""


def spot(name, price=1.0, **changes):
    base = {
        "offer": name, "provider": "p", "region": name, "gpu": ("X1", 1), "spot": True, "price": price,
        "boot_s": 90.0,
    }  # fmt: skip
    return OfferObservation(**(base | changes))


def demand(name="od", price=3.0, **changes):
    return spot(name, price, **({"spot": False, "region": "r"} | changes))


ZONES = tuple(spot(f"z{n}") for n in range(5))


def at(offer, number=0, **changes):
    base = {
        "id": f"{offer.offer}-{number}", "host": f"n-{offer.offer}-{number}", "version": 1, "state": "ready",
        "offer": offer.offer, "spot": offer.spot, "price": offer.price, "started_at": NOW - 1000.0,
    }  # fmt: skip
    return InstanceObservation(**(base | changes))


def several(offer, count, **changes):
    return [at(offer, n, **changes) for n in range(count)]


ALL = (*ZONES, demand())


def chosen(want, instances=(), offers=ALL, *, state=None, config=None, now=NOW, **scaling):
    return choose(
        now,
        ScalingSpec(**({"gpu": GPU, "balance": 0.5} | scaling)),
        want,
        instances,
        offers,
        state=state or BurstState(),
        config=config or FULL,
    )


def counts(choice):
    return dict(Counter(offer.offer for offer, _ in choice.launches))


def released(choice):
    return [name for name, _ in choice.surplus]


def test_nothing_wanted_and_nothing_there_is_nothing_to_do():
    choice = chosen(0)
    assert (choice.launches, choice.surplus, choice.wait, choice.look_again_at) == ((), (), None, None)


def test_spot_is_spread_and_a_zone_can_go():
    # 4 in five zones: one more, and what is left without any of them is 4.
    choice = chosen(4)
    assert counts(choice) == {f"z{n}": 1 for n in range(5)}
    assert choice.launches[0][1] == "0 of 4 wanted on spot: z0 (p z0, spot, 1 $/h)"
    assert choice.launches[4][1].startswith("losing a zone would leave 3 of 4: z4 ")
    # 10 in five zones: 13, the fullest of which holds 3.
    assert counts(chosen(10)) == {"z0": 3, "z1": 3, "z2": 3, "z3": 2, "z4": 2}


def test_the_hedge_is_a_part_of_what_is_wanted():
    # Of 10 over five zones 8 are left when one goes: that hedges a half, and needs no more.
    assert sum(counts(chosen(10, config=BurstConfig(hedge=0.5))).values()) == 10
    assert sum(counts(chosen(10, config=BurstConfig(hedge=0.5), balance=1.0)).values()) == 13 + 10


def test_balance_zero_is_all_spot_in_the_cheapest_zone():
    offers = (spot("a", 1.0), spot("b", 0.9), demand())
    choice = chosen(3, offers=offers, balance=0.0)
    assert counts(choice) == {"b": 3}


def test_balance_zero_goes_on_demand_only_when_every_zone_refuses():
    refusing = spot("a", failures=1, failed_at=NOW - 1, reason="no spot capacity")
    choice = chosen(2, offers=(refusing, demand()), balance=0.0)
    assert counts(choice) == {"od": 2}
    assert choice.launches[0][1].startswith("0 of 2 are ready on spot: od (p r, on demand, 3 $/h)")
    # What boots counts, however long.
    booting = several(spot("a"), 2, state="starting", started_at=NOW - 900)
    assert counts(chosen(2, booting, (spot("a"), demand()), balance=0.0)) == {}


def test_balance_one_counts_only_what_is_ready():
    choice = chosen(2, balance=1.0)
    assert counts(choice) == {"z0": 1, "z1": 1, "z2": 1, "od": 2}
    assert choice.look_again_at is None


def test_what_boots_counts_for_a_while():
    young = [at(z, state="starting", started_at=NOW - 10) for z in ZONES[:2]]
    choice = chosen(1, young)
    # 1.5 boots of 90 s at balance 0.5.
    assert counts(choice) == {}
    assert choice.look_again_at == NOW - 10 + 135
    old = [at(z, state="starting", started_at=NOW - 140) for z in ZONES[:2]]
    assert counts(chosen(1, old)) == {"od": 1}
    # Where no boot was seen yet, the configured one is taken.
    strange = (*(spot(z.offer, boot_s=None) for z in ZONES), demand())
    assert (
        chosen(1, young, strange, config=BurstConfig(hedge=1.0, reserve=1.0, boot_s=20.0)).look_again_at
        == NOW + 20
    )


def test_while_spot_is_taken_away_only_what_is_ready_counts():
    taken = (*ZONES[:4], spot("z4", preempted_at=NOW - 10), demand())
    here = [at(ZONES[0]), *several(ZONES[1], 2, state="starting", started_at=NOW - 5)]
    choice = chosen(2, here, taken)
    assert counts(choice)["od"] == 1
    assert "1 of 2 are ready on spot, and some was taken away" in choice.launches[-1][1]
    assert "od" not in counts(chosen(2, here))


def test_what_is_about_to_be_lost_is_replaced_at_the_notice():
    here = [at(ZONES[0], lost_at=NOW + 110), at(ZONES[1], state="draining"), at(ZONES[2])]
    choice = chosen(2, here)
    # One is ready, and until others are, on-demand stands in for it.
    assert counts(choice) == {"z0": 1, "z1": 1, "od": 1}
    assert released(choice) == []


def test_on_demand_is_given_back_when_spot_is_ready():
    od = demand()
    both = [at(ZONES[0]), at(ZONES[1]), at(od, 1), at(od, 2, in_flight=1)]
    choice = chosen(1, both)
    assert released(choice) == ["od-1", "od-2"]
    assert choice.surplus[0][1] == "2 ready on spot and 2 on demand, 1 wanted"
    # Not while that spot still boots.
    booting = [at(z, state="starting", started_at=NOW - 1) for z in ZONES[:2]]
    assert released(chosen(1, [*booting, at(od, 1)])) == []


def test_what_is_busy_on_demand_drains_only_as_far_as_ready_spot_takes_over():
    od = demand()
    busy = several(od, 3, in_flight=1)
    # 1 of 2 is ready on spot: of three that are busy on demand one is covered twice.
    choice = chosen(2, [at(ZONES[0]), *busy], config=BurstConfig(hedge=0.0))
    assert len(released(choice)) == 2
    assert released(chosen(2, busy, spot="never")) == []
    assert len(released(chosen(2, several(od, 3), spot="never"))) == 1


def test_what_is_paid_for_stays_until_it_is_not():
    od = demand()
    paid = [at(od, 1, paid_until=NOW + 50), at(od, 2, paid_until=NOW)]
    choice = chosen(0, paid, spot="never")
    assert released(choice) == ["od-2"]
    assert choice.look_again_at == NOW + 50


def test_what_starts_goes_before_what_is_idle_and_the_dear_before_the_cheap():
    cheap, dear_one = demand("c", 2.0), demand("d", 3.0)
    here = [at(cheap), at(dear_one), at(cheap, 1, state="starting", ready_at=None)]
    offers = (cheap, dear_one)
    assert released(chosen(2, here, offers, spot="never")) == ["c-1"]
    assert released(chosen(1, here, offers, spot="never")) == ["c-1", "d-0"]


def test_spare_spot_goes_from_the_fullest_zone_and_never_while_it_is_busy():
    here = [*several(ZONES[0], 3), at(ZONES[1]), at(ZONES[2])]
    choice = chosen(2, here)
    assert released(choice) == ["z0-0", "z0-1"]
    assert choice.surplus[0][1] == "5 on spot, 2 wanted there"
    assert released(chosen(2, several(ZONES[0], 5, in_flight=1))) == []


def test_spot_that_is_ready_is_not_given_back_for_spot_that_boots():
    booting = [at(z, state="starting", started_at=NOW - 1) for z in ZONES[1:4]]
    assert released(chosen(2, [*several(ZONES[0], 2), *booting])) == ["z1-0"]


def test_in_one_zone_on_demand_is_the_hedge():
    only = (ZONES[0], demand())
    half = BurstConfig(reserve=0.5)
    assert counts(chosen(4, offers=only, config=half)) == {"z0": 2, "od": 2}
    # It takes over from spot of one zone when it is ready, not before.
    there = several(ZONES[0], 4)
    assert released(chosen(4, [*there, *several(demand(), 2, state="starting")], only, config=half)) == []
    ready = [*there, *several(demand(), 2)]
    assert released(chosen(4, ready, only, config=half)) == ["z0-0", "z0-1"]


def test_without_on_demand_spot_of_one_zone_is_all_there_is():
    choice = chosen(4, offers=(ZONES[0],))
    assert counts(choice) == {"z0": 4}
    assert counts(chosen(4, offers=(ZONES[0], demand()), spot="only")) == {"z0": 4}


def test_two_dear_zones_are_no_cheaper_hedge_than_on_demand():
    offers = (spot("a", 1.6), spot("b", 1.6), demand())
    # Twice 1.6 $/h for each one wanted is more than 3 $/h.
    assert counts(chosen(2, offers=offers)) == {"od": 2}


def test_spot_that_saves_little_or_costs_much_more_than_other_spot_is_left():
    offers = (spot("a", 1.0), spot("b", 1.0), spot("c", 2.2), spot("d", 2.5), demand())
    assert counts(chosen(2, offers=offers)) == {"a": 2, "b": 2}
    assert counts(chosen(2, offers=offers, balance=0.8)) == {"a": 1, "b": 1, "c": 1}
    assert counts(chosen(2, offers=(spot("d", 2.5), demand()), balance=0.0)) == {"od": 2}


def test_a_zone_that_took_spot_away_gets_one_beside_what_is_wanted():
    taken = spot("z0", preempted_at=NOW - 600)
    offers = (taken, *ZONES[1:3], demand())
    choice = chosen(2, offers=offers)
    assert counts(choice) == {"z0": 1, "z1": 2, "z2": 2}
    assert "whether there is spot again" in choice.launches[-1][1]
    trying = [*several(ZONES[1], 2), *several(ZONES[2], 2)]
    here = [*trying, at(taken, state="starting", started_at=NOW - 50)]
    # One try at a time, that nothing counts on; it goes when nothing is wanted.
    assert (counts(chosen(2, here, offers)), released(chosen(2, here, offers))) == ({}, [])
    assert released(chosen(0, here, offers))[0] == "z0-0"
    # Ready, it is a zone as others are: five on spot are more than needed then.
    proven = [*trying, at(taken, started_at=NOW - 90)]
    assert len(released(chosen(2, proven, offers))) == 2
    # Long ago is forgotten.
    later = chosen(2, offers=(spot("z0", preempted_at=NOW - 1900), *ZONES[1:3], demand()))
    assert counts(later) == {"z0": 1, "z1": 1, "z2": 1}


def test_a_try_that_others_have_under_way_is_enough():
    taken = spot("z0", preempted_at=NOW - 600, launching=1)
    assert counts(chosen(2, offers=(taken, *ZONES[1:3], demand()))) == {"z1": 2, "z2": 2}


def test_a_cheaper_provider_that_failed_is_tried_beside_a_dearer_one():
    failed = demand("cheap", 2.0, failures=1, failed_at=NOW - 5000, reason="does not answer", region="x")
    choice = chosen(2, offers=(failed, demand()), spot="never")
    assert counts(choice) == {"cheap": 1, "od": 2}
    dearer = msgspec.structs.replace(failed, price=9.0)
    assert counts(chosen(2, offers=(dearer, demand()), spot="never")) == {"od": 2}


def test_quotas_bound_launches_and_the_next_offer_takes_the_rest():
    offers = (demand("a", 1.0, left=1), demand("b", 2.0, left=2), demand("c", 3.0, left=0))
    choice = chosen(5, offers=offers, spot="never")
    assert counts(choice) == {"a": 1, "b": 2}
    assert choice.wait == "2 more wanted: quota of c is used up"


def test_the_first_choice_of_gpu_comes_first_while_it_can_be_had():
    offers = (demand("l4", 1.0, gpu=("L4", 1)), demand("h100", 4.0, gpu=("H100", 1), left=1))
    choice = chosen(2, offers=offers, spot="never", gpu=(("H100", 1), ("L4", 1)))
    assert counts(choice) == {"h100": 1, "l4": 1}


def test_a_floor_of_on_demand_is_never_on_spot():
    choice = chosen(3, on_demand=1, config=BurstConfig(hedge=0.0))
    assert counts(choice) == {"z0": 1, "z1": 1, "od": 1} or counts(choice)["od"] == 1
    all_of_it = chosen(2, on_demand=5)
    assert counts(all_of_it) == {"od": 2}
    assert all_of_it.launches[0][1].startswith("on_demand=2: ")
    assert counts(chosen(1, on_demand=1, spot="only")).get("od") is None


@pytest.mark.parametrize(
    ("offers", "scaling", "why"),
    [
        ((), {}, "1 more wanted: no offer matches"),
        ((demand(gpu=("Y", 1)),), {}, "1 more wanted: no offer matches"),
        ((demand(),), {"max_price": 2.0}, "1 more wanted: price 3 $/h of od above max_price=2"),
        (
            (demand(failures=1, failed_at=NOW, reason="no capacity"),),
            {},
            "1 more wanted: od backed off until 10060 (60 s): no capacity",
        ),
        (
            (demand(failures=1, failed_at=NOW),),
            {},
            "1 more wanted: od backed off until 10060 (60 s): p/r fails",
        ),
        (
            tuple(demand(name, left=0) for name in "abcde"),
            {},
            "1 more wanted: quota of a is used up; quota of b is used up; quota of c is used up; "
            "and 2 other reasons",
        ),
        (
            (demand(failures=1, failed_at=NOW - 5000, launching=1, reason="no capacity"),),
            {},
            "1 more wanted: od gets one launch first, after it refused or took one away",
        ),
    ],
)
def test_why_nothing_is_launched_in_words(offers, scaling, why, monkeypatch):
    monkeypatch.setattr("headrace_autoscaler.backoff._JITTER", 0.0)
    config = BurstConfig(outage_base_s=60.0)
    choice = chosen(1, offers=offers, config=config, **({"spot": "never"} | scaling))
    assert (choice.launches, choice.wait) == ((), why)
    if "backed off" in why:
        assert choice.look_again_at == NOW + 60


def test_instances_of_an_offer_that_is_withdrawn_are_kept_and_given_back():
    gone = spot("gone")
    here = [at(gone), at(gone, 1, state="starting", started_at=NOW - 1)]
    assert "gone-0" not in released(chosen(2, here))
    assert set(released(chosen(0, here))) == {"gone-0", "gone-1"}


@pytest.mark.parametrize(
    ("balance", "reserved"), [(0.0, 0), (0.25, 1), (0.5, 2), (0.75, 6), (1.0, 10), (1.5, 10)]
)
def test_the_reserve_grows_from_nothing_to_all(balance, reserved):
    only = (ZONES[0], demand())
    ready = [*several(ZONES[0], 10), *several(demand(), 10)]
    kept = chosen(10, ready, only, config=BurstConfig(reserve=0.2), balance=balance)
    assert len([name for name in released(kept) if name.startswith("od")]) == 10 - reserved


def test_the_cheapest_zones_are_filled_as_far_as_the_hedge_allows():
    offers = (spot("a", 1.0), spot("b", 1.1), spot("c", 1.9), demand())
    half = BurstConfig(hedge=0.5)
    assert counts(chosen(10, offers=offers, config=half)) == {"a": 5, "b": 5}
    assert counts(chosen(10, offers=offers, config=BurstConfig(hedge=0.2))) == {"a": 8, "b": 2}
    # What is dearest goes first, as far as the rest is still hedged.
    here = [*several(offers[0], 5), *several(offers[1], 2), *several(offers[2], 5)]
    assert Counter(name[0] for name in released(chosen(10, here, offers, config=half))) == {"c": 2}
