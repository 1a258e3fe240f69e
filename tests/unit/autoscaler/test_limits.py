"""Bounds, budgets and cool-downs: what wins over what, and who gets what of a budget that is too small."""

from __future__ import annotations

import pytest
from headrace_autoscaler.configs import LimitConfig
from headrace_autoscaler.limits import Changes, Claim, Limited, Spending, bound, share, spending_of
from headrace_autoscaler.spec import InstanceObservation, ScalingSpec
from hypothesis import given
from hypothesis import strategies as st

NOW = 1000.0


def limited(wanted, *, have=0, price=1.0, mine=0.0, others=0.0, config=None, scaling=None, **options):
    return bound(
        NOW,
        wanted,
        scaling or ScalingSpec(),
        have=have,
        price=price,
        spending=Spending(mine, others),
        config=config or LimitConfig(),
        **options,
    )


def test_min_and_max():
    wish = ScalingSpec(min=2, max=5)
    assert limited(3, scaling=wish) == Limited(3)
    assert limited(0, scaling=wish) == Limited(2, "min=2")
    assert limited(9, scaling=wish) == Limited(5, "9 wanted, max=5")


def test_a_budget_bounds_new_instances_and_wins_over_min():
    wish = ScalingSpec(budget=10.0, min=4)
    assert limited(4, have=2, price=3.0, mine=6.0, scaling=wish) == Limited(
        3, "4 wanted, its budget of 10 $/h has 4 left, one more costs 3, below min=4", money=True
    )
    assert limited(5, have=2, price=2.0, mine=2.0, scaling=wish) == Limited(5)


def test_a_budget_never_ends_what_runs():
    wish = ScalingSpec(budget=1.0)
    assert limited(8, have=8, price=3.0, mine=24.0, scaling=wish) == Limited(8)
    assert limited(9, have=8, price=3.0, mine=24.0, scaling=wish).count == 8


def test_the_budget_of_all_endpoints():
    config = LimitConfig(budget=10.0)
    assert limited(9, have=1, price=2.0, mine=2.0, others=3.0, config=config) == Limited(
        3, "9 wanted, the budget of all endpoints of 10 $/h has 5 left, one more costs 2", money=True
    )
    # What others spend is not known: not taken for nothing, and not for too much.
    assert limited(9, have=1, price=2.0, mine=2.0, others=None, config=config) == Limited(9)
    # The tighter of both is named.
    both = limited(9, price=2.0, others=3.0, config=config, scaling=ScalingSpec(budget=4.0))
    assert both == Limited(2, "9 wanted, its budget of 4 $/h has 4 left, one more costs 2", money=True)


@pytest.mark.parametrize("price", [None, 0.0])
def test_what_costs_nothing_needs_no_budget(price):
    assert limited(9, price=price, scaling=ScalingSpec(budget=0.0)) == Limited(9)


def test_cool_downs():
    config = LimitConfig(up_cool_down_s=60.0, down_cool_down_s=300.0)
    changes = Changes(up_at=NOW - 50)
    assert limited(5, have=3, config=config, changes=changes) == Limited(
        3, "5 wanted, cooling down 10 s more after the last increase"
    )
    assert limited(5, have=3, config=config, changes=changes, urgent=True) == Limited(5)
    assert limited(5, have=3, config=config, changes=Changes(up_at=NOW - 60)) == Limited(5)
    assert limited(5, have=3, config=config) == Limited(5)
    assert limited(2, have=3, config=config, changes=changes) == Limited(
        3, "2 would do, cooling down 250 s more after the last change"
    )
    assert limited(2, have=3, config=config, changes=Changes(NOW - 300, NOW - 1)).count == 3
    assert limited(2, have=3, config=config, changes=Changes(NOW - 300, NOW - 300)) == Limited(2)
    assert limited(3, have=3, config=config, changes=changes) == Limited(3)


def test_prices_that_are_not_known_are_taken_for_the_dearest():
    def at(*prices):
        return [
            InstanceObservation(id=str(n), host="h", version=1, state="ready", price=price)
            for n, price in enumerate(prices)
        ]

    assert spending_of(at(1.0, None, 3.0)) == 7.0
    assert spending_of(at(None, None)) == 0.0
    assert spending_of([]) == 0.0


def test_fair_shares_by_hand():
    # 12 dollars: the one that asks for 2 gets 2, the others 5 each, which is 2 of 2 dollars and 5 of 1;
    claims = {"a": Claim(9, 2.0), "b": Claim(9, 1.0), "c": Claim(2, 1.0)}
    # 1 dollar is over, for one more of 1 dollar.
    assert share(12.0, claims) == {"a": 2, "b": 6, "c": 2}
    assert share(100.0, claims) == {"a": 9, "b": 9, "c": 2}
    assert share(0.0, claims) == {"a": 0, "b": 0, "c": 0}
    assert share(-5.0, claims | {"free": Claim(7, 0.0)}) == {"a": 0, "b": 0, "c": 0, "free": 7}
    assert share(5.0, {}) == {}


def test_what_does_not_reach_for_a_dear_one_goes_to_the_others():
    assert share(50.0, {"dear": Claim(2, 60.0), "cheap": Claim(100, 1.0)}) == {"dear": 0, "cheap": 50}
    # Too little for one each: who is cheapest, then who comes first by name.
    assert share(3.0, {"b": Claim(2, 2.0), "a": Claim(2, 2.0)}) == {"b": 0, "a": 1}


names = st.text("abcdef", min_size=1, max_size=3)
claims_of_some = st.dictionaries(
    names, st.builds(Claim, st.integers(0, 40), st.sampled_from([0.0, 0.5, 1.0, 2.5, 7.0])), max_size=8
)


@given(left=st.floats(0, 200), claims=claims_of_some)
def test_shares_are_within_the_budget_and_leave_nothing_that_somebody_could_use(left, claims):
    granted = share(left, claims)
    assert set(granted) == set(claims)
    assert all(0 <= granted[n] <= claims[n].count for n in claims)
    spent = sum(granted[n] * claims[n].price for n in claims)
    assert spent <= left + 1e-6
    for name, claim in claims.items():
        assert granted[name] == claim.count or claim.price > left - spent - 1e-6
        # Fair: nobody who got less than another by more than one of theirs and one of the other's was short.
        for other, their in claims.items():
            mine, yours = granted[name] * claim.price, granted[other] * their.price
            assert granted[name] == claim.count or mine + claim.price + their.price >= yours - 1e-6


@given(
    wanted=st.integers(0, 50), have=st.integers(0, 50), price=st.none() | st.floats(0.1, 9),
    mine=st.floats(0, 99), others=st.none() | st.floats(0, 99), low=st.integers(0, 5),
    high=st.integers(5, 30),
    budget=st.none() | st.floats(0, 99), total=st.none() | st.floats(0, 200),
    cool=st.sampled_from([0.0, 60.0]), at=st.none() | st.floats(NOW - 100, NOW), urgent=st.booleans(),
)  # fmt: skip
def test_what_always_holds(wanted, have, price, mine, others, low, high, budget, total, cool, at, urgent):
    wish = ScalingSpec(min=low, max=high, budget=budget)
    config = LimitConfig(budget=total, up_cool_down_s=cool, down_cool_down_s=cool)
    found = limited(
        wanted, have=have, price=price, mine=mine, others=others, config=config, scaling=wish,
        changes=Changes(at, at), urgent=urgent,
    )  # fmt: skip
    asked = min(high, max(low, wanted))
    assert found.count <= max(high, have)
    assert min(asked, have) <= found.count <= max(asked, have)
    assert (found.count == wanted) or found.reason
    more = found.count - have
    if price and more > 0:
        assert budget is None or mine + more * price <= budget + 1e-6
        assert total is None or others is None or mine + others + more * price <= total + 1e-6
    less = limited(max(0, wanted - 1), have=have, price=price, mine=mine, others=others, scaling=wish)
    full = limited(wanted, have=have, price=price, mine=mine, others=others, scaling=wish)
    assert less.count <= full.count
