"""The forecast: what it says, what it learns, and that it says when it does not know."""

from __future__ import annotations

import math
import random

import msgspec
import pytest
from headrace_autoscaler import forecast as forecasting
from headrace_autoscaler import residuals, season
from headrace_autoscaler.configs import ForecastConfig
from headrace_autoscaler.forecast import WEIGHTS, doubt, forecast, learn, watch
from headrace_autoscaler.signals import observe
from headrace_autoscaler.states import ForecastState, HorizonState, ResidualState, SeasonState, WindowState
from hypothesis import given, settings
from hypothesis import strategies as st

CONFIG = ForecastConfig()
STEP = CONFIG.step_s
MOST_BYTES = 4096


def taught(values, state=None, config=CONFIG, start=0.0):
    """After one lesson per step."""
    state, now = state or ForecastState(), start
    for value in values:
        now += STEP
        state = learn(now, value, state, config)
    return now, state


def noise(level, count, seed=1):
    random_ = random.Random(seed)
    return [max(0.0, random_.gauss(level, math.sqrt(level) / 2)) for _ in range(count)]


# -- what it says --------------------------------------------------------------------------------


def test_of_steady_demand_it_is_certain():
    now, state = taught([4.0] * 2000)
    for horizon in (0.0, 15.0, 60.0, 300.0, 1800.0):
        found = forecast(now, state, horizon, 0.95, CONFIG)
        assert found is not None
        assert found.value == pytest.approx(4.0, abs=0.01)
        assert found.low == pytest.approx(4.0, abs=0.2)
        assert found.high == pytest.approx(4.0, abs=0.2)


def test_value_and_range_by_hand():
    level, slow = 8.0, 9.0
    record = ResidualState(offsets=(-4, -2, -1.5, -1, 0, 1, 1.5, 3, 4), seen=99, square=1.0, unchanged=1.0)
    state = ForecastState(
        at=100.0,
        last=12.0,
        levels=(level, level, slow),
        horizons=(HorizonState(seconds=90.0, weights=WEIGHTS, residuals=record),),
    )
    # To the fastest level: 12 + 1.0 * (8 - 12). No trend between the levels counts at first.
    found = forecast(100.0, state, 90.0, 0.95, CONFIG)
    assert found is not None
    unit = math.sqrt(8.25)
    assert found.value == pytest.approx(8.0)
    assert found.low == pytest.approx(8.0 - 2 * unit)
    assert found.high == pytest.approx(8.0 + 3 * unit)


def test_between_two_horizons_it_lies_between_and_below_the_first_it_is_the_first():
    now, state = taught(noise(9.0, 3000))
    near, far = (forecast(now, state, horizon, 0.9, CONFIG) for horizon in (15.0, 90.0))
    between = forecast(now, state, 40.0, 0.9, CONFIG)
    assert near is not None
    assert far is not None
    assert between is not None
    for name in ("value", "low", "high"):
        one, other = getattr(near, name), getattr(far, name)
        assert getattr(between, name) == pytest.approx(one + (other - one) / 3)
    assert forecast(now, state, 1.0, 0.9, CONFIG) == near


def test_the_day_that_was_is_expected_again():
    """Each day from 8:00 demand rises from 2 to 20 within the hour: known before it does."""

    def usual(t):
        return 2.0 + 18.0 * min(1.0, max(0.0, (t % 86400 - 8 * 3600) / 3600))

    config = ForecastConfig(step_s=60.0, gap_s=600.0)
    state, now = ForecastState(), 0.0
    while now < 6 * 86400 + 8 * 3600 - 300:
        now += 60.0
        state = learn(now, usual(now), state, config)
    found = forecast(now, state, 1800.0, 0.9, config)
    assert found is not None
    assert found.value > 3.0
    assert found.high > 6.0
    assert forecast(now, state, 90.0, 0.9, config).value == pytest.approx(2.0, abs=0.5)


def test_what_a_ramp_is_worth_is_learnt():
    """Demand goes up and down in straight lines of 10 minutes: on with the trend is right."""
    values = [10 + 10 * abs(1 - (n / 60) % 2) for n in range(6000)]
    _, state = taught(values)
    horizon = next(h for h in state.horizons if h.seconds == 90.0)
    record = horizon.residuals
    assert horizon.weights != WEIGHTS
    assert record.square < record.unchanged


def test_ranges_hold_what_they_say():
    values, hits, asked = noise(16.0, 4000), [], 0
    state, now, config = ForecastState(), 0.0, CONFIG
    for n, value in enumerate(values[:-9]):
        now += STEP
        state = learn(now, value, state, config)
        found = forecast(now, state, 90.0, 0.9, config) if n > 1000 else None
        if found is not None:
            asked += 1
            hits.append((values[n + 9] <= found.high, values[n + 9] >= found.low))
    assert asked > 2500
    above, below = (sum(side) / asked for side in zip(*hits, strict=True))
    assert above == pytest.approx(0.9, abs=0.03)
    assert below == pytest.approx(0.9, abs=0.03)


# -- what it does not know -----------------------------------------------------------------------


def test_it_does_not_know_without_lessons_or_long_after_them():
    assert forecast(0.0, ForecastState(), 90.0, 0.9, CONFIG) is None
    assert doubt(0.0, ForecastState(), 90.0, 0.9, CONFIG) == "demand was not watched of late"
    now, state = taught([4.0] * 2000)
    assert doubt(now, state, 90.0, 0.9, CONFIG) is None
    assert doubt(now + CONFIG.gap_s + 1, state, 90.0, 0.9, CONFIG) == "demand was not watched of late"
    assert doubt(now - 1, state, 90.0, 0.9, CONFIG) == "demand was not watched of late"
    assert doubt(now, state, 7200.0, 0.9, CONFIG) == "7200 s is further ahead than it learns"
    bare = ForecastConfig(horizons_s=())
    assert doubt(*taught([4.0] * 9, config=bare), 90.0, 0.9, bare) == "90 s is further ahead than it learns"


def test_it_does_not_know_with_too_little_history():
    now, state = taught([4.0] * 60)
    assert forecast(now, state, 1800.0, 0.9, CONFIG) is None
    assert doubt(now, state, 1800.0, 0.9, CONFIG) == "0 forecasts of 1800 s came due, 30 are needed"
    # 15 s is known before 90 s, and what lies between needs both.
    now, state = taught([4.0] * 95)
    assert forecast(now, state, 15.0, 0.9, CONFIG) is not None
    assert "of 90 s" in doubt(now, state, 40.0, 0.9, CONFIG)


def one(record, last=4.0, **more):
    near = HorizonState(seconds=15.0, weights=WEIGHTS, residuals=record)
    sure = ResidualState(seen=99, offsets=(0.0,) * 9, square=1.0, unchanged=1.0)
    far = HorizonState(seconds=90.0, weights=WEIGHTS, residuals=sure)
    return ForecastState(at=0.0, last=last, levels=(last,) * 3, horizons=(near, far), **more)


@pytest.mark.parametrize(
    ("record", "why"),
    [
        (ResidualState(seen=99, outside=0.4, square=1.0, unchanged=1.0), "40% of late were outside"),
        (ResidualState(seen=99, square=2.0, unchanged=1.0), "worse than to say that all stays"),
        (ResidualState(seen=99, offsets=(-9.0,) * 4 + (0.0,) + (9.0,) * 4), "too wide a range"),
    ],
)
def test_it_does_not_know_when_its_record_is_bad(record, why):
    state = one(record)
    assert why in doubt(0.0, state, 15.0, 0.9, CONFIG)
    assert why in doubt(0.0, state, 40.0, 0.9, CONFIG)
    assert forecast(0.0, state, 40.0, 0.9, CONFIG) is None
    assert forecast(0.0, state, 90.0, 0.9, CONFIG) is not None


def test_after_a_change_of_regime_it_stops_trusting_itself_and_recovers():
    _, state = taught(noise(4.0, 1000))
    random_ = random.Random(5)
    wild, unknown = [random_.choice([0.0, 60.0]) for _ in range(400)], 0
    now = 1000 * STEP
    for value in wild:
        now += STEP
        state = learn(now, value, state, CONFIG)
        unknown += forecast(now, state, 90.0, 0.9, CONFIG) is None
    assert unknown > 50
    now, state = taught(noise(4.0, 2000), state, start=now)
    assert forecast(now, state, 90.0, 0.9, CONFIG) is not None


# -- what it learns ------------------------------------------------------------------------------


def test_nothing_is_begun_before_there_is_demand_and_nothing_learnt_within_a_step():
    empty = ForecastState()
    assert learn(5.0, 0.0, empty, CONFIG) is empty
    first = learn(5.0, 2.0, empty, CONFIG)
    assert first.levels == (2.0, 2.0, 2.0)
    assert learn(5.0 + STEP - 0.1, 9.0, first, CONFIG) is first
    assert learn(5.0 + STEP, 9.0, first, CONFIG) is not first


def test_it_learns_from_a_window_however_rarely_one_looks():
    def look(now, demand_s, window):
        return observe(window, now, demand_s, 0, 60.0)

    window = look(0.0, 0.0, WindowState())
    assert watch(0.0, window, ForecastState(), CONFIG) == ForecastState(), "one reading is no mean"
    window = look(10.0, 20.0, window)
    state = watch(10.0, window, ForecastState(), CONFIG)
    assert (state.at, state.last) == (10.0, 2.0)
    window = look(19.0, 65.0, window)
    assert watch(19.0, window, state, CONFIG) is state
    window = look(20.0, 70.0, window)
    state = watch(20.0, window, state, CONFIG)
    assert state.last == 5.0
    rare = watch(60.0, look(60.0, 190.0, window), state, CONFIG)
    assert (rare.at, rare.last) == (60.0, 3.0), "40 s without a look in between"
    assert rare.levels != (3.0,) * 3
    late = watch(320.0, look(320.0, 670.0, window), state, CONFIG)
    assert late.levels == (2.0,) * 3, "longer than gap_s: begun anew"
    back = watch(5.0, look(5.0, 4.0, look(0.0, 0.0, WindowState())), state, CONFIG)
    assert back.last == 0.8, "another clock"


def test_levels_follow_by_their_time_constants():
    _, state = taught([0.5] * 2 + [1.5])
    for level, smoothing in zip(state.levels, forecasting.SMOOTHING_S, strict=True):
        assert level == pytest.approx(0.5 + (1 - math.exp(-STEP / smoothing)), abs=1e-3)


@pytest.mark.parametrize("jump", [-500.0, 10_000.0])
def test_a_pause_or_another_clock_begins_anew_with_what_was_learnt(jump):
    now, state = taught(noise(4.0, 600))
    after = learn(now + jump, 7.0, state, CONFIG)
    assert after.levels == (7.0, 7.0, 7.0)
    assert all(not horizon.pending for horizon in after.horizons)
    assert [h.residuals for h in after.horizons] == [h.residuals for h in state.horizons]
    assert (after.season.slot, after.season.workdays) == (None, state.season.workdays)


def test_forecasts_that_came_due_in_a_short_pause_are_not_judged():
    now, state = taught(noise(4.0, 600))
    seen = [horizon.residuals.seen for horizon in state.horizons]
    after = learn(now + 100.0, 4.0, state, CONFIG)
    assert [horizon.residuals.seen for horizon in after.horizons] == seen
    assert len(after.horizons[1].pending) == 1


def test_what_sleeps_learns_nothing_but_the_day():
    now, state = taught(noise(4.0, 300))
    now, state = taught([0.0] * 10_000, state, start=now)
    assert state.levels == (0.0, 0.0, 0.0)
    assert all(not horizon.pending for horizon in state.horizons)
    after = learn(now + STEP, 0.0, state, CONFIG)
    assert all(a is b for a, b in zip(after.horizons, state.horizons, strict=True))
    found = forecast(now, state, 90.0, 0.95, CONFIG)
    assert found is not None
    assert found.high < 0.5
    awake = learn(now + 2 * STEP, 3.0, after, CONFIG)
    assert all(horizon.pending for horizon in awake.horizons)


def test_nothing_is_learnt_of_times_that_nobody_asks_for():
    now, state = taught(noise(4.0, 600))
    short = state
    for value in noise(4.0, 60):
        now += STEP
        short = learn(now, value, short, CONFIG, 60.0)
    # Of 15 and 90 s it is, of the rest when somebody asks for that; what came due meanwhile is not judged.
    assert [a is b for a, b in zip(short.horizons, state.horizons, strict=True)] == [False, False, True, True]
    again = learn(now + STEP, 4.0, short, CONFIG, 299.0)
    assert again.horizons[2].residuals == state.horizons[2].residuals
    assert all(due > now for due, *_ in again.horizons[2].pending)
    # 300 s is not far enough for 299 s and a margin; beyond the last there is nothing.
    assert again.horizons[3] is not short.horizons[3]
    assert learn(now + STEP, 4.0, short, CONFIG, 1e6) == learn(now + STEP, 4.0, short, CONFIG)


# -- the parts -----------------------------------------------------------------------------------

DAY = season.DAY_S
SUNDAY = 3 * DAY


def watched(spans, state=None, config=CONFIG):
    """A season after (from, until, concurrency), a reading each 100 s."""
    state = state or SeasonState()
    for begin, end, level in spans:
        for now in range(int(begin) + 100, int(end) + 1, 100):
            state = season.learn(float(now), 100.0, level, state, config)
    return state


def test_a_slot_is_written_when_it_ends_and_read_between_middles():
    # A reading at the very end of a slot is the next one's, so these slots have 5 of 6.
    state = watched([(0, 600, 4.0), (600, 1200, 8.0), (1200, 1300, 0.0)])
    assert state.workdays[:3] == (4.0, 7.33, None)
    assert season.usual(300.0, state, CONFIG) == 4.0
    assert season.usual(600.0, state, CONFIG) == pytest.approx((4.0 + 7.33) / 2)
    assert season.usual(1000.0, state, CONFIG) is None
    assert season.usual(DAY + 300.0, state, CONFIG) == 4.0
    assert season.usual(0.0, SeasonState(), CONFIG) is None


def test_newer_days_count_more():
    config = ForecastConfig(weekend=())
    state = watched([(0, 700, 4.0), (DAY, DAY + 700, 9.0)], config=config)
    assert state.workdays[0] == pytest.approx(4.0 + season.NEWEST * 5.0)


def test_weekends_have_a_day_of_their_own_and_lend_it():
    state = watched([(0, 1300, 4.0)])
    assert season.usual(SUNDAY + 500.0, state, CONFIG) == 4.0, "no weekend was seen: it is as a working day"
    both = watched([(SUNDAY, SUNDAY + 1300, 1.0)], state)
    assert both.workdays == state.workdays
    assert season.usual(SUNDAY + 500.0, both, CONFIG) == 1.0
    assert season.usual(SUNDAY + DAY + 500.0, both, CONFIG) == 4.0
    only = watched([(SUNDAY, SUNDAY + 1300, 1.0)])
    assert season.usual(500.0, only, CONFIG) == 1.0


def test_a_slot_hardly_watched_or_empty_is_not_written():
    assert watched([(500, 700, 4.0)]).workdays == ()
    assert watched([(0, 700, 0.0)]).workdays == (), "nothing ever came: nothing is kept"
    state = watched([(0, 700, 4.0), (DAY, DAY + 700, 0.0)])
    assert state.workdays[0] == pytest.approx(4.0 * (1 - season.NEWEST))


def test_quantiles_move_by_their_chances():
    before = ResidualState(offsets=(0.0,) * 9, seen=10**9, error=1.0, square=1.0, unchanged=1.0)
    after = residuals.learn(1.0, 1.0, before)
    assert after.offsets == pytest.approx([residuals.SLOWEST * level for level in residuals.LEVELS])
    under = residuals.learn(-1.0, 1.0, before)
    assert under.offsets == pytest.approx([residuals.SLOWEST * (level - 1) for level in residuals.LEVELS])
    assert (after.error, after.seen) == (1.0, 10**9 + 1)
    assert after.outside == residuals.NEWEST


def test_offsets_lie_between_levels_by_logits():
    record = ResidualState(offsets=(-9.0, -3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0, 9.0), seen=1)
    assert residuals.offset(record, 0.9) == pytest.approx(2.0)
    assert residuals.offset(record, 0.5) == pytest.approx(0.0)
    assert 2.0 < residuals.offset(record, 0.93) < 3.0
    assert residuals.offset(record, 0.0) == residuals.offset(record, 0.01) == -9.0
    assert residuals.offset(record, 1.0) == residuals.offset(record, 0.99) == 9.0
    assert residuals.offset(ResidualState(), 0.5) == 0.0


def test_quantiles_of_a_known_distribution_are_found():
    random_, record = random.Random(3), ResidualState()
    for _ in range(20_000):
        record = residuals.learn(random_.gauss(1.0, 2.0), 0.0, record)
    assert residuals.offset(record, 0.5) == pytest.approx(1.0, abs=0.3)
    assert residuals.offset(record, 0.9) == pytest.approx(1.0 + 2 * 1.2816, abs=0.5)


# -- of anything ---------------------------------------------------------------------------------

lessons = st.lists(st.tuples(st.floats(-100.0, 400.0), st.floats(0.0, 1e6)), min_size=1, max_size=80)


@settings(max_examples=60, deadline=None)
@given(lessons, st.floats(0.0, 4000.0), st.floats(0.5, 1.0))
def test_never_raises_is_ordered_and_the_same_from_json(lessons, horizon, quantile):
    config = ForecastConfig(enough=1, widest=1e9, most_outside=1.0, horizons_s=(15.0, 90.0, 1800.0))
    state, now = ForecastState(), 0.0
    for gap, value in lessons:
        now += gap
        state = learn(now, value, state, config)
        again = msgspec.json.decode(msgspec.json.encode(state), type=ForecastState)
        assert again == state
        found = forecast(now, state, horizon, quantile, config)
        assert (found is None) == (doubt(now, state, horizon, quantile, config) is not None)
        if found is not None:
            assert 0 <= found.low <= found.high
            assert found.value >= 0


def test_the_state_stays_small():
    """After two weeks with a lesson each minute, all slots written."""
    config = ForecastConfig(step_s=60.0, gap_s=600.0)
    random_, state, now = random.Random(2), ForecastState(), 0.0
    for _ in range(14 * 1440):
        now += 60.0
        state = learn(now, random_.uniform(0, 80), state, config)
    assert None not in state.season.workdays + state.season.weekends
    assert len(msgspec.json.encode(state)) <= MOST_BYTES


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(0.0, 100.0), min_size=100, max_size=140), st.floats(0.5, 0.98))
def test_a_higher_quantile_is_no_lower(values, quantile):
    config = ForecastConfig(enough=1, widest=1e9, most_outside=1.0)
    now, state = taught([1.0, *values], config=config)
    low, high = (forecast(now, state, 90.0, q, config) for q in (quantile, quantile + 0.01))
    assert (low is None) == (high is None)
    if low is not None and high is not None:
        assert low.high <= high.high + 1e-9
        assert low.low >= high.low - 1e-9
