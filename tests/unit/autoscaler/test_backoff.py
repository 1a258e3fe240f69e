"""A cloud that says no is asked ever more seldom, and everybody comes back at another moment."""

from __future__ import annotations

import math

import pytest
from headrace_autoscaler.backoff import kind_of, learn, pause_s, refusal_of
from headrace_autoscaler.configs import BurstConfig
from headrace_autoscaler.spec import OfferObservation
from hypothesis import given
from hypothesis import strategies as st

CONFIG = BurstConfig(capacity_base_s=60.0, outage_base_s=30.0, backoff_cap_s=1800.0)
KINDS = st.sampled_from(["capacity", "outage", "quota"])


def offer(name="o", **changes):
    base = {"offer": name, "provider": "p", "region": "r", "kind": "k", "reason": "no capacity"}
    return OfferObservation(**(base | changes))


@pytest.mark.parametrize(
    ("reason", "kind"),
    [
        ("no spot capacity", "capacity"),
        ("InsufficientInstanceCapacity", "capacity"),
        ("ZONE_RESOURCE_POOL_EXHAUSTED", "capacity"),
        ("quota of 8 is used up", "quota"),
        ("VcpuLimitExceeded", "quota"),
        ("the credentials are refused", "quota"),
        ("cloud does not answer", "outage"),
        ("", "outage"),
    ],
)
def test_what_a_reason_speaks_of(reason, kind):
    assert kind_of(reason) == kind


@given(name=st.text(max_size=20), kind=KINDS, rounds=st.integers(1, 40))
def test_pauses_grow_to_a_cap_and_are_the_same_for_the_same(name, kind, rounds):
    first, later = pause_s(name, kind, rounds, CONFIG), pause_s(name, kind, rounds + 1, CONFIG)
    cap = CONFIG.quota_cap_s if kind == "quota" else CONFIG.backoff_cap_s
    base = {"capacity": 60.0, "outage": 30.0, "quota": 300.0}[kind]
    assert 0.75 * base <= first <= cap
    # The jitter takes a quarter at most, and without it each pause is at least 1.5 times the one before.
    assert later >= min(first * 1.5 * 0.75, 0.75 * cap)
    assert first == pause_s(name, kind, rounds, CONFIG)
    if rounds > math.log(cap / base, 1.5) + 1:
        assert first >= 0.75 * cap


def test_offers_do_not_come_back_together():
    assert len({pause_s(f"o{n}", "capacity", 3, CONFIG) for n in range(20)}) == 20


def test_each_refusal_after_the_pause_counts_and_those_together_are_one():
    asked = learn({}, [offer(failures=1, failed_at=100.0)], CONFIG)
    (first,) = asked.values()
    assert first.rounds == 1
    assert first.until == 100.0 + pause_s("p/r/k/on-demand/o", "capacity", 1, CONFIG)
    together = learn(asked, [offer(failures=9, failed_at=101.0)], CONFIG)
    (second,) = together.values()
    assert second.rounds == 1
    assert second.until > first.until
    assert learn(together, [offer(failures=9, failed_at=101.0)], CONFIG) == together
    (third,) = learn(together, [offer(failures=10, failed_at=second.until)], CONFIG).values()
    assert third.rounds == 2


def test_many_failures_that_nobody_saw_are_neither_one_nor_all():
    (seen,) = learn({}, [offer(failures=40, failed_at=1.0)], CONFIG).values()
    assert seen.rounds == 6


def test_what_is_asked_with_success_is_forgotten():
    asked = learn({}, [offer(failures=1, failed_at=1.0)], CONFIG)
    assert learn(asked, [offer(failures=0, failed_at=1.0)], CONFIG) == {}
    assert learn(asked, [], CONFIG) == {}
    assert learn({}, [offer(failures=1, failed_at=None)], CONFIG) == {}


def test_another_kind_of_refusal_begins_anew():
    asked = learn({}, [offer(failures=4, failed_at=1.0, reason="p is down")], CONFIG)
    assert set(asked) == {"p/r"}
    again = learn(asked, [offer(failures=5, failed_at=900.0, reason="quota")], CONFIG)
    assert {name: r.kind for name, r in again.items()} == {"p/r/k/on-demand": "quota"}


def test_an_outage_closes_the_region_a_quota_the_kind_and_no_capacity_the_offer():
    others = {
        "itself": offer("a"),
        "same": offer("b"),
        "spot": offer("b", spot=True),
        "kind": offer("b", kind="other"),
        "region": offer("b", region="other"),
    }

    def closed(reason):
        refusals = learn({}, [offer("a", failures=1, failed_at=1.0, reason=reason)], CONFIG)
        return {name for name, other in others.items() if refusal_of(other, refusals)}

    assert closed("no capacity") == {"itself"}
    assert closed("quota") == {"itself", "same"}
    assert closed("down") == {"itself", "same", "spot", "kind"}
    assert refusal_of(others["itself"], {}) is None


def test_of_two_refusals_the_later_end_counts():
    offers = [
        offer("a", failures=1, failed_at=1.0, reason="down"),
        offer("b", failures=1, failed_at=1.0, reason="quota"),
    ]
    found = refusal_of(offers[1], learn({}, offers, CONFIG))
    assert found is not None
    assert found.kind == "quota"


def test_two_offers_behind_one_refusal_are_one():
    offers = [
        offer("a", failures=1, failed_at=5.0, reason="quota"),
        offer("b", failures=1, failed_at=4.0, reason="quota"),
    ]
    (only,) = learn({}, offers, CONFIG).values()
    assert (only.rounds, only.failed_at) == (1, 5.0)


@given(base=st.floats(10, 300), names=st.text(min_size=1, max_size=8), tick=st.sampled_from([0.5, 2.0, 30.0]))
def test_an_offer_that_always_fails_is_asked_seldom(base, names, tick):
    config = BurstConfig(capacity_base_s=base)
    refusals, failures, failed_at, asked, now = {}, 0, None, 0, 0.0
    while now < 86400:
        there = offer(names, failures=failures, failed_at=failed_at)
        refusals = learn(refusals, [there], config)
        refusal = refusal_of(there, refusals)
        # Nothing is asked before the pause is over: time can be skipped.
        now = max(now + tick, refusal.until if refusal else 0.0)
        asked, failures, failed_at = asked + 1, failures + 1, now
    growing = math.log(config.backoff_cap_s / base, 1.5) + 2
    assert asked <= growing + 86400 / (0.75 * config.backoff_cap_s) + 1


def test_a_pause_at_its_cap_stays_there_however_often_one_was_refused():
    at_once = BurstConfig(capacity_base_s=1800.0, backoff_cap_s=1800.0)
    for rounds in (1, 2, 1000):
        assert 0.75 * 1800.0 <= pause_s("p/r", "capacity", rounds, at_once) <= 1800.0
