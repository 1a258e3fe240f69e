"""The sketch of service times, and what it says of requests that run."""

from __future__ import annotations

import msgspec
import pytest
from headrace_autoscaler.service import (
    BINS,
    CAPACITY,
    ENOUGH,
    GROWTH,
    LONGEST_S,
    SHORTEST_S,
    add,
    durations,
)
from headrace_autoscaler.states import ServiceState
from hypothesis import given
from hypothesis import strategies as st

EMPTY = ServiceState()
NEAR = GROWTH - 1


def known(*served):
    found = durations(add(EMPTY, served))
    assert found is not None
    return found


def test_nothing_is_said_of_a_few():
    assert durations(EMPTY) is None
    assert durations(add(EMPTY, [1.0] * (ENOUGH - 1))) is None
    assert known(*[1.0] * ENOUGH).mean == 1.0
    assert add(EMPTY, []) is EMPTY


def test_mean_is_exact_and_quantiles_are_near():
    found = known(*range(1, 101))
    assert found.mean == 50.5
    for share in (0.1, 0.5, 0.9, 1.0):
        assert found.quantile(share) == pytest.approx(100 * share, rel=NEAR)
    assert found.quantile(0.0) == found.quantile(-1.0) == pytest.approx(1.0, rel=NEAR)
    assert found.quantile(2.0) == found.quantile(1.0)


def test_what_is_out_of_range_counts_as_its_end():
    found = known(*[0.0] * 50, *[1e9] * 50)
    assert found.quantile(0.5) <= SHORTEST_S * GROWTH
    assert found.quantile(1.0) >= LONGEST_S
    assert found.mean == pytest.approx((SHORTEST_S + LONGEST_S) / 2)


def test_the_chance_to_end_is_that_of_those_that_took_longer():
    # Half takes 10 s, half 100 s.
    found = known(*[10.0] * 50, *[100.0] * 50)
    assert found.free_within(0.0, 20.0) == pytest.approx(0.5)
    assert found.free_within(20.0, 50.0) == pytest.approx(0.0)
    assert found.free_within(20.0, 100.0) == pytest.approx(1.0)
    assert found.free_within(200.0, 10.0) is None
    assert found.free_within(0.0, 0.0) == 0.0


def test_completions_of_steady_work():
    found = known(*[10.0] * 100)
    # One that has just begun ends once within 15 s; one that is done soon ends then and 10 s later.
    assert found.completions([0.0], 15.0) == pytest.approx(1.0, abs=0.05)
    assert found.completions([5.0], 5.0 * GROWTH**2) == pytest.approx(1.0, abs=0.05)
    assert found.completions([0.0, 0.0], 35.0) == pytest.approx(6.0, abs=0.5)
    assert found.completions([], 60.0) == 0.0
    assert found.completions([1000.0], 60.0) == 0.0, "longer than any: nothing is known of it"
    # Many in one step of the reckoning: horizon / mean, and the first.
    assert found.completions([0.0], 1600.0) == pytest.approx(160.0, rel=0.1)
    assert found.completions([0.0], 16_000.0) == pytest.approx(1600.0, rel=0.1)


def test_what_was_is_forgotten_by_what_came_after():
    state = add(EMPTY, [1.0] * 5000)
    assert state.total <= CAPACITY
    for _ in range(10):
        state = add(state, [100.0] * CAPACITY)
    found = durations(state)
    assert found is not None
    assert found.quantile(0.01) == pytest.approx(100.0, rel=NEAR)
    assert found.mean == pytest.approx(100.0, rel=0.01)


times = st.lists(st.lists(st.floats(0.0, 1e6), max_size=300), max_size=12)


@given(times)
def test_bounded_ordered_and_the_same_from_json(batches):
    state = EMPTY
    for batch in batches:
        state = add(state, batch)
    assert state.total == sum(count for _, count in state.bins) <= CAPACITY
    assert [number for number, _ in state.bins] == sorted({number for number, _ in state.bins})
    assert all(count > 0 and 0 <= number < BINS for number, count in state.bins)
    assert msgspec.json.decode(msgspec.json.encode(state), type=ServiceState) == state
    found = durations(state)
    if found is None:
        return
    shares = [found.quantile(share / 20) for share in range(21)]
    assert shares == sorted(shares)
    assert SHORTEST_S <= shares[0] <= shares[-1] <= LONGEST_S * GROWTH


@given(
    st.lists(st.floats(0.01, 1000.0), min_size=ENOUGH, max_size=200),
    st.floats(0.0, 500.0),
    st.lists(st.floats(0.0, 500.0), min_size=2, max_size=5),
)
def test_chances_are_chances_and_grow_with_time(served, age, horizons):
    found = known(*served)
    chances = [found.free_within(age, horizon) for horizon in sorted(horizons)]
    if chances[0] is None:
        assert set(chances) == {None}
        return
    assert chances == sorted(chances)
    assert all(-1e-9 <= chance <= 1 + 1e-9 for chance in chances)
    ends = [found.completions([age], horizon) for horizon in sorted(horizons)]
    for chance, end in zip(chances, ends, strict=True):
        assert end >= chance - 1e-9, "who gets work again ends at least the first"
