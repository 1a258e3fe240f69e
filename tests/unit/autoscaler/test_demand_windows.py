"""Windows over counters that are read at irregular times."""

from __future__ import annotations

import msgspec
import pytest
from headrace_autoscaler.signals import MAX_SAMPLES, average, observe, rate
from headrace_autoscaler.states import WindowState
from hypothesis import given
from hypothesis import strategies as st

SPAN = 60.0
EMPTY = WindowState()


def seen(*readings, span=SPAN):
    """A window that was shown (now, demand_s, arrived)."""
    window = EMPTY
    for now, demand_s, arrived in readings:
        window = observe(window, now, demand_s, arrived, span)
    return window


def test_the_average_is_the_difference_of_two_readings():
    window = seen((100.0, 50.0, 3), (110.0, 70.0, 8))
    assert average(window, 110.0, 10.0) == 2.0
    assert rate(window, 110.0, 10.0) == 0.5


def test_the_edge_of_a_window_lies_on_the_line_between_two_readings():
    # 1 for 4 s, then 3 for 4 s. The last 6 s: 2 s at 1 and 4 s at 3.
    window = seen((0.0, 0.0, 0), (4.0, 4.0, 4), (8.0, 16.0, 16))
    assert average(window, 8.0, 6.0) == pytest.approx(14 / 6)
    assert rate(window, 8.0, 6.0) == pytest.approx(14 / 6)


def test_nothing_is_known_before_two_readings_and_half_of_the_window():
    assert average(EMPTY, 0.0, 6.0) is None
    assert rate(EMPTY, 0.0, 6.0) is None
    assert average(seen((0.0, 0.0, 0)), 0.0, 6.0) is None
    young = seen((0.0, 0.0, 0), (2.0, 2.0, 1))
    assert average(young, 2.0, 6.0) is None
    assert average(young, 2.0, 4.0) == 1.0
    assert average(young, 2.0, 0.0) is None


def test_a_window_that_was_not_read_of_late_is_not_known():
    window = seen((0.0, 0.0, 0), (5.0, 5.0, 0), (10.0, 10.0, 1))
    assert average(window, 12.0, 6.0) == 1.0
    assert average(window, 14.0, 6.0) is None
    assert average(window, 9.0, 6.0) is None, "a clock before the newest reading"


def test_a_gap_over_the_edge_that_is_longer_than_the_window_is_not_guessed_at():
    window = seen((0.0, 0.0, 0), (20.0, 20.0, 1), (22.0, 24.0, 2))
    assert average(window, 22.0, 6.0) is None
    assert average(window, 22.0, 22.0) == pytest.approx(24 / 22), "within the window a gap does not matter"
    assert average(window, 22.0, 20.0) == pytest.approx(22 / 20)


def test_over_a_gap_in_which_the_counters_stood_still_there_is_nothing_to_guess():
    window = seen((0.0, 7.0, 3), (50.0, 7.0, 3), (52.0, 9.0, 5))
    assert average(window, 52.0, 6.0) == pytest.approx(2 / 6)
    assert rate(window, 52.0, 6.0) == pytest.approx(2 / 6)


def test_missing_readings_are_no_zeros():
    window = seen((0.0, 0.0, None), (10.0, 20.0, None))
    assert average(window, 10.0, 10.0) == 2.0
    assert rate(window, 10.0, 10.0) is None
    assert observe(window, 11.0, None, 4, SPAN) is window
    partly = observe(window, 20.0, 40.0, 5, SPAN)
    assert rate(partly, 20.0, 10.0) is None
    assert rate(seen((0.0, 0.0, 1), (10.0, 20.0, None)), 10.0, 10.0) is None


@pytest.mark.parametrize("again", [(12.0, 1.0, 9), (12.0, 30.0, 2), (4.0, 30.0, 9)])
def test_what_goes_back_was_started_anew(again):
    before = seen((0.0, 0.0, 0), (10.0, 20.0, 8))
    assert observe(before, *again, SPAN).samples == (again,)


def test_the_same_reading_changes_nothing_and_one_at_the_same_time_replaces():
    window = seen((0.0, 0.0, 0), (10.0, 20.0, 8))
    assert observe(window, 10.0, 20.0, 8, SPAN) is window
    assert observe(window, 10.0, 20.0, 9, SPAN).samples == ((0.0, 0.0, 0), (10.0, 20.0, 9))


def test_an_idle_endpoint_needs_two_readings_and_what_is_too_old_goes():
    idle = seen(*((float(t), 5.0, 2) for t in range(50)))
    assert idle.samples == ((0.0, 5.0, 2), (49.0, 5.0, 2))
    busy = seen(*((5.0 * t, 5.0 * t, t) for t in range(40)))
    assert busy.samples[0][0] <= 195.0 - SPAN < busy.samples[1][0]


def test_readings_that_come_all_the_time_are_thinned_out():
    window = seen(*((0.01 * t, 0.02 * t, t) for t in range(1, 20_000, 3)))
    assert len(window.samples) <= MAX_SAMPLES
    assert average(window, 199.99, 6.0) == pytest.approx(2.0, rel=1e-3)
    assert average(window, 199.99, 60.0) == pytest.approx(2.0, rel=1e-3)


steps = st.lists(
    st.tuples(st.floats(0.001, 40.0), st.floats(0.0, 50.0), st.integers(0, 20)), min_size=1, max_size=120
)


@given(steps)
def test_a_window_is_bounded_and_knows_no_more_than_was_there(steps):
    window, now, demand_s, arrived, most = EMPTY, 0.0, 0.0, 0, 0.0
    for gap, concurrency, more in steps:
        now, demand_s, arrived = now + gap, demand_s + gap * concurrency, arrived + more
        most = max(most, concurrency)
        window = observe(window, now, demand_s, arrived, SPAN)
        assert len(window.samples) <= MAX_SAMPLES
        times = [sample[0] for sample in window.samples]
        assert times == sorted(set(times))
        assert times[-1] == now
        for seconds in (6.0, 60.0):
            found = average(window, now, seconds)
            assert found is None or -1e-6 <= found <= most + 1e-6
            again = msgspec.json.decode(msgspec.json.encode(window), type=WindowState)
            assert (average(again, now, seconds), rate(again, now, seconds)) == (
                found,
                rate(window, now, seconds),
            )


@given(
    st.lists(st.floats(0.0, 30.0), min_size=12, max_size=40),
    st.sets(st.integers(0, 11)),
    st.integers(6, 10),
)
def test_looking_now_and_then_gives_the_average_of_looking_all_the_time(levels, looks, seconds):
    """Concurrency changes each second; whoever looks at both ends of a window gets the same as from all."""
    end, total, integral = len(levels), 0.0, [0.0]
    for level in levels:
        total += level
        integral.append(total)
    edge = end - seconds
    dense = seen(*((float(t), integral[t], t) for t in range(end + 1)))
    rare = sorted({0, edge, end} | {look for look in looks if look <= end})
    sparse = seen(*((float(t), integral[t], t) for t in rare))
    exact = (integral[end] - integral[edge]) / seconds
    assert average(dense, float(end), float(seconds)) == pytest.approx(exact, abs=1e-9)
    assert average(sparse, float(end), float(seconds)) == pytest.approx(exact, abs=1e-9)
    assert rate(dense, float(end), float(seconds)) == rate(sparse, float(end), float(seconds)) == 1.0


@given(steps)
def test_more_demand_never_averages_less(steps):
    low, high, now, a, b = EMPTY, EMPTY, 0.0, 0.0, 0.0
    for gap, concurrency, more in steps:
        now, a, b = now + gap, a + gap * (concurrency + 0.5), b + gap * (concurrency + 0.5 + more)
        low, high = observe(low, now, a, 0, SPAN), observe(high, now, b, 0, SPAN)
        one, other = average(low, now, SPAN), average(high, now, SPAN)
        assert (one is None) == (other is None)
        assert one is None or other is None or one <= other + 1e-6
