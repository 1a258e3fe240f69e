"""What a gateway counts for control."""

from __future__ import annotations

import pytest
from headrace.gateway.tally import SERVED_KEPT, Tally
from hypothesis import given
from hypothesis import strategies as st

SPANS = st.lists(st.tuples(st.floats(0, 1e6), st.floats(0, 1e3)), max_size=40)


@given(SPANS, st.floats(0, 1e3))
def test_the_integral_is_the_time_that_all_requests_have_taken_so_far(
    spans: list[tuple[float, float]], left: float
) -> None:
    tally = Tally()
    now = max((begin for begin, _ in spans), default=0.0) + left
    expected = 0.0
    for begin, lasts in spans:
        tally.begin(begin)
        if begin + lasts <= now:
            tally.end(begin + lasts)
        expected += min(begin + lasts, now) - begin
    assert tally.arrived == len(spans)
    assert tally.demand_s(now) == pytest.approx(expected, rel=1e-9, abs=1e-6)


def test_what_is_held_counts_from_one_look_to_the_next() -> None:
    tally = Tally()
    assert tally.demand_s(10.0, held=3) == 0.0
    assert tally.demand_s(12.0, held=0) == 6.0
    assert tally.demand_s(20.0) == 6.0


def test_service_times_are_a_bounded_sample() -> None:
    tally = Tally()
    for number in range(10 * SERVED_KEPT):
        tally.serve(float(number))
    sample = tally.served()
    assert len(sample) == len(set(sample)) == SERVED_KEPT
    assert max(sample) >= SERVED_KEPT, "the first ones are no sample of all"
    tally.told()
    assert tally.served() == ()


def test_a_new_leader_is_told_from_zero_on() -> None:
    tally = Tally()
    tally.begin(1.0)
    tally.begin(2.0)
    tally.end(4.0)
    tally.anew(5.0)
    assert (tally.arrived, tally.demand_s(5.0), tally.served()) == (0, 0.0, ())
    assert tally.demand_s(7.0) == 2.0
