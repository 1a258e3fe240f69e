"""What runs come to, on runs whose figures were computed by hand."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import numpy as np
import pytest
from headrace_autoscaler.simulate.scenario import Cost, Result
from headrace_autoscaler.simulate.stats import (
    available_minutes,
    figures,
    interval,
    percentiles,
    share_within,
    student,
    summarise,
)


def result(waits: list[float], failed: list[float] | None = None, **changes: Any) -> Result:
    base: dict[str, Any] = {
        "policy": "p",
        "seed": 0,
        "cost": Cost(busy=1.0, idle=2.0, starting=3.0, sunk=4.0, preempted=5.0),
        "waits": np.array(waits, dtype=np.float64),
        "arrivals": np.arange(len(waits), dtype=np.float64),
        "cold": np.array([wait > 5 for wait in waits], dtype=np.bool_),
        "errors": {"timeout": len(failed)} if failed else {},
        "failed_at": np.array(failed or [], dtype=np.float64),
        "starts": 7,
        "by_supply": {"a": 10.0, "b": 5.0},
        "decisions": 9,
        "seconds": 0.0,
    }
    return Result(**(base | changes))


def test_figures_of_one_run() -> None:
    found = figures(result([0, 2, 10, 30], failed=[50]), bound_usd=10.0)
    assert found["cost_usd"] == 15.0
    assert found["bound_ratio"] == 1.5
    assert (found["requests"], found["errors"], found["starts"], found["decisions"]) == (5, 1, 7, 9)
    # One that failed is within no time.
    assert (found["share_within_2s"], found["share_within_10s"], found["share_within_30s"]) == (0.4, 0.6, 0.8)
    assert found["cold_share"] == 0.5
    assert found["wait_p50_s"] == 6.0
    assert (found["busy_usd"], found["idle_usd"], found["starting_usd"]) == (1.0, 2.0, 3.0)
    assert (found["sunk_usd"], found["preempted_usd"]) == (4.0, 5.0)
    assert found["availability"] == 0.0


def test_percentiles_lie_between_waits() -> None:
    assert percentiles(np.arange(101.0), (50, 95, 99)) == [50.0, 95.0, 99.0]
    assert percentiles(np.array([0.0, 10.0]), (99,)) == [pytest.approx(9.9)]


def test_a_minute_is_available_when_99_of_100_start_within_30_s() -> None:
    waits = [0.0] * 99 + [31.0] + [0.0] * 98 + [31.0, 31.0] + [30.0]
    arrivals = np.array([10.0] * 100 + [70.0] * 100 + [300.0])
    assert available_minutes(result(waits, arrivals=arrivals)) == (2, 3)
    # A request that failed is a miss of the minute that it came in, which may have had no other.
    both = result(waits, failed=[20.0, 200.0], arrivals=arrivals)
    assert available_minutes(both) == (1, 4)
    assert figures(both)["availability"] == 0.25


def test_without_requests_there_are_costs_and_no_waits() -> None:
    found = figures(result([]))
    assert math.isnan(found["wait_p99_s"])
    assert math.isnan(found["cold_share"])
    assert math.isnan(found["availability"])
    assert math.isnan(share_within(result([]), 10.0))
    assert found["cost_usd"] == 15.0
    assert "bound_ratio" not in found
    assert math.isnan(figures(result([]), bound_usd=0.0)["bound_ratio"])


def test_students_t() -> None:
    assert student(1) == 12.7062
    assert student(4) == 2.77645
    assert student(10) == 2.22814
    # From tables.
    for freedom, value in ((11, 2.20099), (20, 2.08596), (29, 2.04523), (120, 1.97993)):
        assert student(freedom) == pytest.approx(value, abs=1e-3)


def test_a_confidence_interval_by_hand() -> None:
    # Mean 3, standard deviation sqrt(2.5), 5 values: 3 +- 2.77645 * sqrt(0.5).
    low, high = interval([1.0, 2.0, 3.0, 4.0, 5.0])
    assert (low, high) == (pytest.approx(3 - 1.963247, abs=1e-5), pytest.approx(3 + 1.963247, abs=1e-5))
    with pytest.raises(ValueError, match="play more seeds"):
        interval([1.0])


def test_a_summary_is_the_mean_over_seeds_with_intervals() -> None:
    runs = [result([0.0, 4.0], cost=Cost(busy=10.0)), result([0.0, 0.0], failed=[1, 2], cost=Cost(busy=14.0))]
    found = summarise(runs, bound_usd=6.0)
    assert (found.policy, found.seeds, found.requests) == ("p", 2, 3.0)
    assert (found.cost_usd, found.bound_ratio, found.errors) == (12.0, 2.0, 1.0)
    assert found.share_within_2s == 0.5
    assert found.wait_p50_s == 1.0
    assert found.error_reasons == {"timeout": 1.0}
    assert found.by_supply_usd == {"a": 10.0, "b": 5.0}
    assert found.ci["cost_usd"] == (pytest.approx(12 - 12.7062 * 2), pytest.approx(12 + 12.7062 * 2))
    assert found.ci["share_within_2s"] == (0.5, 0.5)


def test_a_summary_of_one_run_has_no_intervals_and_writes_the_names_that_are_promised() -> None:
    found = msgspec.to_builtins(summarise([result([0.0])]))
    assert found["ci"] == {}
    assert found["bound_ratio"] is None
    names = {
        "cost_usd", "wait_p50_s", "wait_p95_s", "wait_p99_s", "share_within_2s", "share_within_10s",
        "share_within_30s", "starts", "errors", "bound_ratio",
    }  # fmt: skip
    assert names <= set(found)


def test_runs_of_different_policies_have_no_common_summary() -> None:
    with pytest.raises(ValueError, match="different policies"):
        summarise([result([]), result([], policy="q")])
    with pytest.raises(ValueError, match="at least one"):
        summarise([])
