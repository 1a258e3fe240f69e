"""Late requests are counted from what is known anyway, and their price follows: sums done by hand."""

from __future__ import annotations

import math
from itertools import accumulate
from typing import Any

import msgspec
import pytest
from headrace_autoscaler.configs import KeepConfig
from headrace_autoscaler.lateness import (
    GAIN,
    LEAST,
    LESSON_S,
    MEMORY_S,
    MOST,
    PRIOR,
    STEP,
    look_s,
    price,
    watch,
)
from headrace_autoscaler.signals import observe
from headrace_autoscaler.spec import EndpointObservation, ScalingSpec, State
from headrace_autoscaler.states import LatenessState, WindowState
from hypothesis import given
from hypothesis import strategies as st

GOAL_S = 10.0
CONFIG = KeepConfig(late_s=1000.0, share=0.99)
"""One of a hundred may be late."""
NEW = LatenessState()


def see(arrived: int | None, queued: int = 0, oldest: float = 0.0) -> EndpointObservation:
    return EndpointObservation(
        endpoint="e", version=1, scaling=ScalingSpec(), arrived=arrived, queued=queued, oldest_wait_s=oldest
    )


def read(*samples: tuple[float, int | None]) -> WindowState:
    return WindowState(samples=tuple((at, at, count) for at, count in samples))


def watched(
    now: float,
    endpoint: EndpointObservation,
    window: WindowState,
    before: LatenessState = NEW,
    **options: Any,
) -> LatenessState:
    return watch(now, endpoint, window, before, goal_s=GOAL_S, config=options.get("config", CONFIG))


def power(late: float, judged: float) -> float:
    return GAIN * (100.0 * late - judged) / (judged + PRIOR)


@pytest.mark.parametrize(
    ("aged", "begun", "queued", "late"),
    [
        (10.0, 8, 0, 1.0),  # two too few begun, then six more than are of age: a quarter of the way
        (10.0, 12, 1, 0.0),  # never behind
        (10.0, 8, 10, 4.0),  # always behind
        (10.0, 12, 8, 2.0),  # two more than are of age, then two too few: these
        (10.0, 20, 20, 4.0),  # ten more, then all of them
        (10.0, 10, 6, 0.0),  # all was begun just when it came of age
    ],
)
def test_between_two_looks_what_is_of_age_and_what_is_begun_go_straight(
    aged: float, begun: int, queued: int, late: float
) -> None:
    # 14 had arrived 10 s ago, and 20 by now.
    window = read((0.0, 10), (100.0, 14), (110.0, 20))
    before = LatenessState(at=110.0 - LESSON_S, aged=aged, begun=begun)
    found = watched(110.0, see(20, queued, 11.0 if queued > 6 else 5.0), window, before)
    assert (found.at, found.aged, found.begun, found.seen) == (110.0, 14.0, 20 - queued, 4.0)
    assert found.power == pytest.approx(power(late, 4.0))


def test_while_nobody_is_late_it_is_counted_now_and_then() -> None:
    window = read((0.0, 0), (100.0, 14), (110.0, 20), (130.0, 20))
    before = LatenessState(at=100.0, aged=10.0, begun=14)
    assert watched(110.0, see(20), window, before) is before
    assert watched(100.0 + LESSON_S, see(20), window, before).seen == 10.0
    assert watched(110.0, see(20, 1, 3.0), window, before) is before
    # Not where somebody is late, or was at the look before, nor of counters that began anew.
    assert watched(110.0, see(20, 7, 11.0), window, before).power == pytest.approx(power(1.0, 4.0))
    behind = LatenessState(at=100.0, aged=10.0, begun=8)
    assert watched(110.0, see(20), window, behind).seen == 4.0
    assert watched(110.0, see(3), read((100.0, 0), (110.0, 3)), before).aged == 0.0
    assert watched(99.0, see(20), window, before).at == 99.0


def test_how_many_had_arrived_is_on_the_line_between_two_readings() -> None:
    window = read((0.0, 0), (96.0, 10), (104.0, 18), (110.0, 20))
    assert watched(110.0, see(20), window).aged == 14.0
    # Nothing was read since: as many as then.
    assert watched(130.0, see(20), window).aged == 20.0


def test_the_oldest_in_the_queue_tells_who_is_late() -> None:
    """One that came a moment ago, after an hour of nothing, is not old, whatever the line says."""
    before = LatenessState(at=0.0, aged=5.0, begun=5)
    window = read((0.0, 5), (3600.0, 6))
    waits = watched(3600.0, see(6, 1), window, before)
    assert waits is before
    later = read((0.0, 5), (3600.0, 6), (3610.5, 6))
    late = watched(3610.5, see(6, 1, 10.5), later, waits)
    assert (late.aged, late.begun, late.seen, late.power) == (6.0, 5, 1.0, pytest.approx(power(1.0, 1.0)))
    # Once begun it is not judged again.
    begun = watched(3620.0, see(6), read((0.0, 5), (3600.0, 6), (3620.0, 6)), late)
    assert (begun.aged, begun.begun, begun.power) == (6.0, 6, late.power)
    assert begun.seen == pytest.approx(1.0, rel=1e-3)


def test_a_retry_that_waits_again_is_judged_once() -> None:
    before = LatenessState(at=100.0, aged=14.0, begun=20)
    found = watched(110.0, see(20, 8, 12.0), read((0.0, 10), (100.0, 14), (110.0, 20)), before)
    assert (found.aged, found.begun, found.seen) == (14.0, 12, 0.0)


def test_what_is_not_known_changes_nothing() -> None:
    before = LatenessState(at=1.0, aged=3.0, begun=3, seen=7.0, power=0.2)
    whole = read((0.0, 0), (100.0, 14), (110.0, 20))
    assert watched(110.0, see(None), whole, before) is before
    assert watched(110.0, see(20), read((105.0, 14), (110.0, 20)), before) is before
    assert watched(110.0, see(20), read((95.0, None), (110.0, 20)), before) is before
    assert watched(110.0, see(20), read((95.0, 14), (110.0, None)), before) is before
    assert watched(110.0, see(20), whole, before, config=KeepConfig(share=0.0)) is before
    assert watched(110.0, see(20), whole, before) is not before


@pytest.mark.parametrize(("now", "arrived"), [(110.0, 2), (0.5, 20)])
def test_counters_that_begin_anew_judge_nobody_and_the_price_stays(now: float, arrived: int) -> None:
    before = LatenessState(at=1.0, aged=3.0, begun=3, seen=7.0, power=0.2)
    found = watched(now, see(arrived), read((-60.0, 1), (now, arrived)), before)
    assert (found.at, found.begun, found.seen, found.power) == (now, arrived, 7.0, 0.2)
    assert found.aged <= arrived


def test_what_was_seen_is_forgotten_and_then_each_counts_more() -> None:
    before = LatenessState(at=0.0, aged=10.0, begun=10, seen=math.e * 1000.0)
    window = read((0.0, 10), (MEMORY_S - 20.0, 10), (MEMORY_S - 10.0, 14), (MEMORY_S, 14))
    found = watched(MEMORY_S, see(14, 4, 12.0), window, before)
    assert found.seen == pytest.approx(1004.0)
    assert found.power == pytest.approx(GAIN * (400.0 - 4.0) / (1004.0 + PRIOR))


def test_with_nothing_seen_the_price_is_the_one_that_was_set() -> None:
    assert price(NEW, CONFIG) == 1000.0
    # Without a goal it stays, whatever was learnt while there was one.
    dear = LatenessState(power=1.0)
    assert price(dear, msgspec.structs.replace(CONFIG, share=0.0)) == 1000.0
    assert price(dear, CONFIG) == pytest.approx(1000.0 * math.e)
    assert price(LatenessState(power=1e9), CONFIG) == 4000.0
    assert price(LatenessState(power=STEP * 2.4), CONFIG) == pytest.approx(1000.0 * math.exp(2 * STEP))


def test_the_price_ends_at_its_bounds_and_comes_back_at_once() -> None:
    """What no price buys leaves no debt: the first days in time after a crowd make it cheaper."""
    crowd = read((0.0, 0), (100.0, 5000), (110.0, 5000))
    dear = watched(110.0, see(5000, 5000, 105.0), crowd, LatenessState(at=0.0))
    assert price(dear, CONFIG) == MOST * 1000.0
    calm = read((0.0, 5000), (200.0, 9000), (210.0, 9000))
    cheaper = watched(210.0, see(9000), calm, msgspec.structs.replace(dear, begun=5000))
    assert price(cheaper, CONFIG) < MOST * 1000.0
    quiet = read((0.0, 0), (100.0, 90_000), (110.0, 90_000))
    assert price(watched(110.0, see(90_000), quiet, LatenessState(at=0.0)), CONFIG) == LEAST * 1000.0


def test_somebody_looks_when_the_oldest_is_late() -> None:
    assert look_s(see(3, 1, 4.0), GOAL_S, CONFIG) == 6.0
    assert look_s(see(3, 1, 10.0), GOAL_S, CONFIG) == 0.0
    assert look_s(see(3, 1, 11.0), GOAL_S, CONFIG) is None
    assert look_s(see(3), GOAL_S, CONFIG) is None
    assert look_s(see(None, 1), GOAL_S, CONFIG) is None
    assert look_s(see(3, 1), GOAL_S, KeepConfig(share=0.0)) is None


def test_it_is_remembered_over_restarts() -> None:
    known = LatenessState(at=3.5, aged=2.25, begun=2, seen=9.5, power=-0.125)
    state = msgspec.json.decode(b'{"endpoints": {"e": {}}}', type=State).endpoints["e"]
    assert state.lateness is None
    state = msgspec.structs.replace(state, lateness=known)
    assert msgspec.json.decode(msgspec.json.encode(state), type=type(state)) == state


MARGIN_S = 2.0
"""Readings are this far apart when they are as old as the goal, and looks 0.5 s."""


@given(st.lists(st.floats(0.0, 25.0), min_size=1, max_size=25))
def test_who_was_late_is_found_without_being_told(waits: list[float]) -> None:
    """One request each 2 s, begun after so long, in their order. Those that are clearly late are counted, and
    those that clearly are not are not."""
    arrivals = [2.0 * number for number in range(len(waits))]
    begins = list(accumulate((at + wait for at, wait in zip(arrivals, waits, strict=True)), max))
    window, state = WindowState(), NEW
    for number in range(2 * math.ceil(begins[-1] + GOAL_S + LESSON_S) + 5):
        now = number / 2.0 - 1.0
        arrived = sum(at <= now for at in arrivals)
        queue = [at for at, begin in zip(arrivals, begins, strict=True) if at <= now < begin]
        window = observe(window, now, now, arrived, 60.0)
        state = watched(now, see(arrived, len(queue), now - queue[0] if queue else 0.0), window, state)
    waited = [begin - at for at, begin in zip(arrivals, begins, strict=True)]
    least, most = (
        power(sum(wait > bound for wait in waited), len(waits))
        for bound in (GOAL_S + MARGIN_S, GOAL_S - MARGIN_S)
    )
    assert state.seen == pytest.approx(len(waits), rel=1e-2)
    assert least - 1e-3 <= state.power <= most + 1e-3


@given(
    st.floats(0.0, 1e6),
    st.floats(math.log(LEAST), math.log(MOST)),
    st.floats(0.0, 300.0),
    st.floats(0.0, 300.0),
    st.integers(0, 300),
    st.integers(0, 300),
)
def test_the_price_is_bounded_and_never_lower_when_more_are_late(
    seen: float, before: float, aged: float, older: float, queued: int, more: int
) -> None:
    known = LatenessState(at=0.0, aged=min(aged, older), begun=300, seen=seen, power=before)
    window = read((-60.0, 0), (100.0, 300), (110.0, 600))
    few, many = (
        watched(110.0, see(600, q, 11.0 if q > 300 else 5.0), window, known) for q in (queued, queued + more)
    )
    assert few.power <= many.power
    assert LEAST * 1000.0 <= price(few, CONFIG) <= price(many, CONFIG) <= MOST * 1000.0
