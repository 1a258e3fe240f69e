"""How long idle instances are kept, by sums that can be done by hand."""

from __future__ import annotations

import math

import pytest
from headrace_autoscaler.configs import DemandConfig, KeepConfig
from headrace_autoscaler.keep import EDGES_S, MAX_WATCHED, bucket, hold_s, learn, let_go, restart_s
from headrace_autoscaler.states import Idle, IdleTimes, KeepState

SPANS = len(EDGES_S) - 1
DEMAND = DemandConfig(goal_s=10.0)
CONFIG = KeepConfig(restart=0.5, late_s=40 * (math.e - 1), prior=10.0, memory=400.0)
"""The dearness of a start is 1 + 0.5 * log(1 + late_s / 40) = 1.5."""


def seen(**spans: tuple[float, float]) -> IdleTimes:
    """Idle times by the span's begin (``from_8=(watched, needed)``); all others: 90 watched, none needed."""
    found = {int(name.removeprefix("from_")): counts for name, counts in spans.items()}
    counts = [found.get(int(low), (90.0, 0.0)) for low in EDGES_S[:-1]]
    return IdleTimes(watched=tuple(c[0] for c in counts), needed=tuple(c[1] for c in counts))


def counted(watched: list[float], needed: list[float]) -> IdleTimes:
    def filled(values: list[float]) -> tuple[float, ...]:
        return tuple(values + [0.0] * (SPANS - len(values)))

    return IdleTimes(watched=filled(watched), needed=filled(needed))


def test_levels_learn_together_by_powers_of_two() -> None:
    assert [bucket(level) for level in (0, 1, 2, 3, 4, 7, 8, 15, 16)] == [1, 1, 2, 2, 3, 3, 4, 4, 5]


# -- what it costs that one is missing ---------------------------------------------------------


def test_a_start_costs_its_time_the_queue_meanwhile_and_a_late_request() -> None:
    # 20 of the 30 s are too long: they are taken 1.5 times for the queue. Beside it there is the start, and
    # the late request; nobody is known to become free instead.
    alone = 20 * 1.5 + 30 + CONFIG.late_s
    for level in (1, 5):
        assert restart_s(level, 30.0, None, DEMAND, CONFIG) == pytest.approx(alone)
    assert restart_s(1, 30.0, 10.0, DEMAND, CONFIG) == pytest.approx(alone)


def test_the_more_others_there_are_the_less_one_is_missed() -> None:
    # Requests of 10 s: that none of n others is free within 10 s has the chance e ** -n.
    for level in (2, 3, 9):
        missed = math.exp(1 - level) * (30 + CONFIG.late_s)
        assert restart_s(level, 30.0, 10.0, DEMAND, CONFIG) == pytest.approx(20 * 1.5 + missed)


def test_a_start_in_time_makes_nobody_late_and_one_that_takes_about_as_long_some() -> None:
    assert restart_s(1, 0.0, 10.0, DEMAND, CONFIG) == 0.0
    assert restart_s(1, 5.0, None, DEMAND, CONFIG) == pytest.approx(5.0)
    # One of another is free within 5 s with the chance 1 - e ** -0.5.
    assert restart_s(2, 5.0, 10.0, DEMAND, CONFIG) == pytest.approx(5.0 * math.exp(-0.5))
    # From 8 to 12 s, a fifth less and more than the goal, the chance to be late goes from 0 to 1.
    assert restart_s(1, 8.0, None, DEMAND, CONFIG) == pytest.approx(8.0)
    assert restart_s(1, 10.0, None, DEMAND, CONFIG) == pytest.approx(10 + 0.5 * CONFIG.late_s)
    assert restart_s(1, 11.0, None, DEMAND, CONFIG) == pytest.approx(1.5 + 11 + 0.75 * CONFIG.late_s)
    assert restart_s(1, 12.0, None, DEMAND, CONFIG) == pytest.approx(2 * 1.5 + 12 + CONFIG.late_s)
    # Where nobody should wait at all every start is late.
    at_once = DemandConfig(goal_s=0.0)
    assert restart_s(1, 5.0, None, at_once, CONFIG) == pytest.approx(5 * 1.5 + 5 + CONFIG.late_s)


# -- how long it is kept -----------------------------------------------------------------------


@pytest.mark.parametrize("cost", [0.0, 0.7, 2.0, 2.5, 3.0, 7.0, 13.0, 16.0, 100.0, 400.0, 1990.0, 2048.0])
def test_before_anything_is_learnt_it_is_kept_as_long_as_a_restart_costs(cost: float) -> None:
    assert hold_s(None, cost, CONFIG) == pytest.approx(cost, rel=5e-3), "a cost counts to three digits"


def test_nothing_is_kept_beyond_the_last_span() -> None:
    assert hold_s(None, 2049.0, CONFIG) == 2048.0
    assert hold_s(None, 1e9, CONFIG) == 2048.0


def test_what_was_never_needed_is_let_go_early() -> None:
    # Hazards are (0 + 10 * 0.5) / (90 + 10) = 0.05 for a span: a = -ln(0.95) / ln(2) = 0.0740, and
    # holding pays to a * cost.
    slope = -math.log(0.95) / math.log(2)
    assert hold_s(seen(), 100.0, CONFIG) == pytest.approx(100 * slope)
    assert 7.39 < 100 * slope < 7.41
    # For 20 that would be 1.48 s. Within the first two seconds nothing is told apart: they are held.
    assert hold_s(seen(), 20.0, CONFIG) == 2.0


def test_it_is_kept_for_those_who_come_back_late() -> None:
    # Nine of ten idle times end between 256 and 512 s: hazard (81 + 5) / 100 = 0.86.
    late = seen(from_256=(90.0, 81.0))
    # A restart of 1000 s is worth to wait 256 s at 0.95 a span, and no more when nobody came by 512 s.
    assert hold_s(late, 1000.0, CONFIG) == 512.0
    # One of 100 s is not: it goes as if they never came back.
    assert hold_s(late, 100.0, CONFIG) == pytest.approx(hold_s(seen(), 100.0, CONFIG))


def test_many_that_come_back_lengthen_it() -> None:
    some = counted([0.0] * 4 + [90.0], [0.0] * 4 + [63.0])
    # The hazard between 16 and 32 s is (63 + 10 * 0.5) / (90 + 10) = 0.68, so a = -ln(0.32) / ln(2) = 1.644:
    # what costs 18 s is kept for 29.6 s instead of for 18 s.
    assert hold_s(some, 18.0, CONFIG) == pytest.approx(-math.log(0.32) / math.log(2) * 18)


def test_a_hazard_that_falls_as_the_time_that_was_idle_is_worth_the_same_as_none_learnt() -> None:
    # What was learnt is what was assumed: half of those that reach a span are needed in it.
    assert hold_s(counted([80.0] * SPANS, [40.0] * SPANS), 77.0, CONFIG) == pytest.approx(77.0)


# -- what is learnt ----------------------------------------------------------------------------


def test_an_idle_time_that_ended_by_a_request_is_counted_as_needed() -> None:
    state = learn(100.0, 2, [100.0], KeepState(), CONFIG)
    assert state == KeepState(idle=(Idle(since=100.0, level=3),), total=3)
    # Needed after 5 s: it was watched through 0-2 and 2-4, and needed in 4-8.
    after = learn(105.0, 3, [], state, CONFIG)
    assert after == KeepState(levels={2: counted([1.0, 1.0, 1.0], [0.0, 0.0, 1.0])}, total=3)


def test_one_that_was_let_go_counts_as_long_as_it_was_watched() -> None:
    state = KeepState(idle=(Idle(since=80.0, level=3), Idle(since=95.0, level=2)), total=3)
    after = let_go(100.0, 1, state, CONFIG)
    # 20 s: through the spans to 16, and 4 of the 16 s of the one from 16 to 32.
    assert after == KeepState(
        levels={2: counted([1.0, 1.0, 1.0, 1.0, 0.25], [])}, idle=(Idle(since=95.0, level=2),), total=2
    )
    assert let_go(100.0, 0, state, CONFIG) is state


def test_levels_stay_when_the_dearer_of_two_idle_ones_goes() -> None:
    # One is busy; two are idle, since 80 and 95. The level idle for longest is the third.
    state = learn(100.0, 1, [80.0, 95.0], KeepState(), CONFIG)
    assert state.idle == (Idle(since=80.0, level=3), Idle(since=95.0, level=2))
    # Third level not needed for 20 s: one goes. It is the dear one, used last, so that since 80 stays. The
    # second level is idle since 95 all the same, and nothing more is learnt from that.
    state = let_go(100.0, 1, state, CONFIG)
    assert learn(101.0, 1, [80.0], state, CONFIG) is state
    # When the one that stayed is used, that ends the second level's time: 6 s since 95, not 21 s.
    after = learn(101.0, 2, [], state, CONFIG)
    assert after.levels[2] == counted([2.0, 2.0, 1 + 1.0, 1.0, 0.25], [0.0, 0.0, 1.0])


def test_one_that_was_used_meanwhile_was_needed_and_is_idle_anew() -> None:
    state = KeepState(idle=(Idle(since=80.0, level=1),), total=1)
    # Used between two looks: idle since 99 now. It was needed at 100 at the latest, 20 s after 80.
    after = learn(100.0, 0, [99.0], state, CONFIG)
    assert after == KeepState(
        levels={1: counted([1.0] * 5, [0.0] * 4 + [1.0])}, idle=(Idle(since=99.0, level=1),), total=1
    )


def test_one_that_was_lost_was_not_needed() -> None:
    # Three are idle; one of them is gone, and one is used.
    state = learn(100.0, 1, [80.0, 90.0, 95.0], KeepState(), CONFIG)
    after = learn(105.0, 2, [80.0], state, CONFIG)
    # Of the two levels that are idle no more one was lost (3rd: watched 15 s), one needed (2nd: within 10 s).
    assert after.levels == {2: counted([2.0, 2.0, 2.0, 1.875], [0.0, 0.0, 0.0, 1.0])}


def test_nothing_new_is_the_same_object() -> None:
    assert learn(100.0, 3, [], KeepState(), CONFIG) == KeepState()
    state = KeepState()
    assert learn(100.0, 3, [], state, CONFIG) is state
    state = learn(100.0, 3, [90.0], state, CONFIG)
    assert learn(105.0, 3, [90.0], state, CONFIG) is state


def test_idle_for_longer_than_all_spans_counts_in_each() -> None:
    state = KeepState(idle=(Idle(since=0.0, level=1),))
    assert learn(5000.0, 1, [], state, CONFIG).levels == {1: counted([1.0] * SPANS, [])}


def test_the_past_is_forgotten_by_halves() -> None:
    config = KeepConfig(memory=4.0)
    times = counted([4.0, 2.0], [1.0, 1.0])
    state = KeepState(levels={1: times}, idle=(Idle(since=0.0, level=1),))
    # The fifth, needed after 1 s: (5, 2) and (2, 1), halved.
    assert learn(1.0, 1, [], state, config).levels == {1: counted([2.5, 1.0], [1.0, 0.5])}
    # Up to four all are kept.
    state = KeepState(levels={1: counted([3.0], [])}, idle=(Idle(since=0.0, level=1),))
    assert learn(1.0, 1, [], state, config).levels == {1: counted([4.0], [1.0])}


def test_so_many_levels_are_watched() -> None:
    sinces = [float(number) for number in range(MAX_WATCHED + 9)]
    state = learn(500.0, 0, sinces, KeepState(), CONFIG)
    assert len(state.idle) == MAX_WATCHED
    assert state.idle[0].level == MAX_WATCHED + 9
