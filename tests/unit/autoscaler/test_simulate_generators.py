"""Synthetic traces: the same from the same seed, with the load and the shape that their names say."""

from __future__ import annotations

import numpy as np
import pytest
from headrace_autoscaler.configs import ForecastConfig
from headrace_autoscaler.simulate.generators import (
    DAY_S,
    HOUR_S,
    MEAN_S,
    REQUESTS_PER_DAY,
    SYNTHETIC,
    WEEKEND_DAYS,
    synthetic,
)
from headrace_autoscaler.simulate.scenario import Trace
from hypothesis import given, settings
from hypothesis import strategies as st


def hourly(trace: Trace, days: float = 7.0) -> np.ndarray:
    return np.histogram(trace.arrivals, np.arange(0, days * DAY_S + 1, HOUR_S))[0]


@pytest.mark.parametrize("name", SYNTHETIC)
def test_a_week_has_the_requests_and_the_service_that_were_asked_for(name: str) -> None:
    trace = synthetic(name)
    assert len(trace.arrivals) == pytest.approx(7 * REQUESTS_PER_DAY, rel=0.02)
    assert trace.durations.mean() == pytest.approx(MEAN_S, rel=0.05)
    assert (trace.name, trace.names) == (name, ("endpoint",))
    assert SYNTHETIC[name].about


@given(
    st.sampled_from(sorted(SYNTHETIC)),
    st.floats(0.0001, 0.3),
    st.integers(0, 1000),
    st.floats(1, 1e5),
    st.floats(0.01, 500),
)
@settings(max_examples=60, deadline=None)
def test_any_numbers_give_a_trace_in_order_and_the_same_again(
    name: str, days: float, seed: int, per_day: float, mean_s: float
) -> None:
    one, two = (synthetic(name, days, seed, requests_per_day=per_day, mean_s=mean_s) for _ in range(2))
    assert (one.arrivals == two.arrivals).all()
    assert (one.durations == two.durations).all()
    assert len(one.arrivals) == len(one.durations) == len(one.endpoints)
    assert (np.diff(one.arrivals) >= 0).all()
    assert ((one.arrivals >= 0) & (one.arrivals <= days * DAY_S)).all()
    assert (one.durations > 0).all()
    assert np.isfinite(one.durations).all()


def test_other_seeds_and_names_give_other_traces() -> None:
    first = synthetic("diurnal", 0.5, 1)
    assert not np.array_equal(first.durations[:50], synthetic("diurnal", 0.5, 2).durations[:50])
    assert not np.array_equal(first.durations[:50], synthetic("mmpp", 0.5, 1).durations[:50])


def test_days_peak_in_the_afternoon_and_nights_are_nearly_empty() -> None:
    by_hour = hourly(synthetic("diurnal")).reshape(7, 24)
    assert set(by_hour.argmax(axis=1)) <= {13, 14, 15, 16}
    assert (by_hour[:, 2:4].sum(axis=1) < 0.1 * by_hour[:, 14:16].sum(axis=1)).all()
    # Day 0 is a Thursday, so these are Saturday and Sunday.
    weekend, week = by_hour[[2, 3]].sum() / 2, by_hour[[0, 1, 4, 5, 6]].sum() / 5
    assert weekend < 0.8 * week
    assert ForecastConfig().weekend == WEEKEND_DAYS


def test_crowds_come_within_minutes() -> None:
    per_minute = np.histogram(synthetic("flash-crowd").arrivals, np.arange(0, 7 * DAY_S + 1, 60))[0]
    rise = per_minute[3:] / np.maximum(per_minute[:-3], 1)
    assert rise.max() > 5
    assert per_minute.max() > 10 * np.median(per_minute)


def test_requests_come_at_times_or_not_at_all() -> None:
    per_minute = np.histogram(synthetic("on-off").arrivals, np.arange(0, 7 * DAY_S + 1, 60))[0]
    assert 0.6 < (per_minute == 0).mean() < 0.9


def test_few_requests_do_most_of_the_work() -> None:
    services = np.sort(synthetic("heavy-tail").durations)[::-1]
    top = services[: len(services) // 100].sum() / services.sum()
    usual = np.sort(synthetic("diurnal").durations)[::-1]
    assert top > 0.15 > 2 * usual[: len(usual) // 100].sum() / usual.sum()
    assert services[0] <= 210 * MEAN_S


def test_arrivals_are_burstier_than_poisson() -> None:
    per_minute = np.histogram(synthetic("mmpp").arrivals, np.arange(0, 7 * DAY_S + 1, 60))[0]
    steady = np.histogram(synthetic("heavy-tail").arrivals, np.arange(0, 7 * DAY_S + 1, 60))[0]
    assert per_minute.var() / per_minute.mean() > 5
    assert steady.var() / steady.mean() == pytest.approx(1, abs=0.1)


def test_what_makes_no_trace_is_refused() -> None:
    with pytest.raises(ValueError, match="take one of diurnal, flash-crowd"):
        synthetic("weekly")
    for days, options in ((0, {}), (1, {"requests_per_day": -1}), (1, {"mean_s": float("nan")})):
        with pytest.raises(ValueError, match="above 0"):
            synthetic("diurnal", days, **options)
