"""What the simulated benchmarks compute: figures of a run, curves and verdicts, fleets, where costs cross."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from headrace_autoscaler.simulate.scenario import Cost, Result

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(str(ROOT))
    yield importlib.import_module("benchmarks._figures")
    for name in [name for name in sys.modules if name.split(".")[0] == "benchmarks"]:
        del sys.modules[name]


def _result(waits: list[float], arrivals: list[float], failed_at: list[float] | None = None) -> Result:
    failed = failed_at or []
    return Result(
        policy="p", seed=0, cost=Cost(busy=3.0, idle=1.0), waits=np.array(waits), arrivals=np.array(arrivals),
        cold=np.zeros(len(waits), dtype=np.bool_), errors={"timeout": len(failed)} if failed else {},
        failed_at=np.array(failed, dtype=np.float64), starts=2, by_supply={}, decisions=1, seconds=0.0,
    )  # fmt: skip


def test_failed_requests_were_within_no_time(figures: ModuleType) -> None:
    found = figures.of_run(_result([0.0, 10.0, 31.0], [0.0, 1.0, 62.0], failed_at=[130.0]))
    assert found["share_within_2s"] == 0.25
    assert found["share_within_10s"] == 0.5
    assert (found["errors"], found["error_rate"], found["cost_usd"]) == (1.0, 0.25, 4.0)
    # Of three minutes one had all of its requests started within 30 s.
    assert found["availability"] == pytest.approx(1 / 3)
    assert found["availability_first"] == found["availability"]


def test_means_over_seeds(figures: ModuleType) -> None:
    runs = [figures.of_run(_result([wait], [0.0])) for wait in (0.0, 20.0, 40.0)]
    over = figures.over_seeds(runs)
    assert (over["share_within_10s"], over["seeds"], over["wait_p50_s"]) == (pytest.approx(1 / 3), 3, 20.0)
    assert over["least_availability"] == 0.0
    assert over["ci"]["cost_usd"] == (4.0, 4.0)
    assert "ci" not in figures.over_seeds(runs[:1])


def test_curve_is_straight_between_neighbours_and_no_hull(figures: ModuleType) -> None:
    curve = [(300.0, 1.0), (100.0, 0.9), (200.0, 0.92)]
    assert figures.share_at(curve, 150.0) == pytest.approx(0.91)
    # The hull from (100, 0.9) to (300, 1.0) would say 0.95.
    assert figures.share_at(curve, 200.0) == pytest.approx(0.92)
    assert figures.share_at(curve, 99.0) is None
    assert figures.share_at(curve, 500.0) == 1.0
    # A dearer setting that does worse pulls the line down.
    assert figures.share_at([(100.0, 0.9), (200.0, 0.8)], 150.0) == pytest.approx(0.85)
    assert figures.share_at([(100.0, 0.9), (100.0, 0.95)], 100.0) == 0.95
    with pytest.raises(ValueError, match="a point"):
        figures.share_at([], 1.0)


def test_cost_of_a_share(figures: ModuleType) -> None:
    curve = [(100.0, 0.9), (200.0, 0.98), (300.0, 1.0)]
    assert figures.cost_at(curve, 0.94) == pytest.approx(150.0)
    assert figures.cost_at(curve, 0.5) == 100.0
    assert figures.cost_at(curve, 1.0) == pytest.approx(300.0)
    assert figures.cost_at(curve[:2], 0.99) is None


@pytest.mark.parametrize(
    ("point", "where", "beats"),
    [
        ((150.0, 0.93), "within", False),
        ((150.0, 0.94), "within", True),  # on the line is not below it
        ((150.0, 0.95), "within", True),
        ((50.0, 0.89), "cheaper", False),
        ((50.0, 0.90), "cheaper", True),
        ((400.0, 0.97), "dearer", False),
        ((400.0, 0.98), "dearer", True),
    ],
)
def test_verdict(figures: ModuleType, point: tuple[float, float], where: str, beats: bool) -> None:
    (found,) = figures.judge([(100.0, 0.9), (200.0, 0.98)], {"other": point})
    assert (found["where"], found["beats"]) == (where, beats)


def test_verdict_says_what_is_saved(figures: ModuleType) -> None:
    (found,) = figures.judge([(100.0, 0.9), (200.0, 0.98)], {"other": (300.0, 0.94)})
    assert found["our_cost_usd"] == pytest.approx(150.0)
    assert found["saved"] == pytest.approx(0.5)
    assert found["our_share"] == 0.98


def test_smallest_fleet(figures: ModuleType) -> None:
    asked: list[int] = []

    def meets(count: int) -> bool:
        asked.append(count)
        return count >= 37

    assert figures.smallest(meets, 1, 80) == 37
    assert len(asked) <= 8
    assert figures.smallest(meets, 40, 80) == 40
    assert figures.smallest(meets, 1, 36) is None


def test_where_costs_cross(figures: ModuleType) -> None:
    # Bare metal costs 10, 6, 2 and rented 4, 4, 4: equal half way between the last two.
    points = [(0.2, 10.0, 4.0), (0.6, 2.0, 4.0), (0.4, 6.0, 4.0)]
    assert figures.turns_at(points) == pytest.approx(0.5)
    assert figures.turns_at([(0.2, 10.0, 4.0), (0.4, 4.0, 4.0)]) == pytest.approx(0.4)
    assert figures.turns_at([(0.2, 10.0, 4.0), (0.4, 5.0, 4.0)]) is None
    assert figures.turns_at([(0.2, 1.0, 4.0), (0.4, 1.0, 4.0)]) is None


def test_waits_in_a_fleet(figures: ModuleType) -> None:
    arrivals, durations = np.array([0.0, 1.0, 2.0, 30.0]), np.array([10.0, 10.0, 10.0, 1.0])
    # Alone: served at 0, 10, 20, 30. Two: the third waits for the first.
    assert figures.fleet_waits(arrivals, durations, 1).tolist() == [0.0, 9.0, 18.0, 0.0]
    assert figures.fleet_waits(arrivals, durations, 2).tolist() == [0.0, 0.0, 8.0, 0.0]
    slo = figures.Slo(within_s=8.0, share=1.0)
    assert figures.fleet_for(arrivals, durations, slo, 5) == 2
    assert figures.fleet_for(arrivals, durations, figures.Slo(8.0, 0.5), 5) == 1
    assert figures.fleet_for(arrivals, durations, figures.Slo(1.0, 1.0), 2) is None


def test_overlap_of_requests(figures: ModuleType) -> None:
    # Two at once from 5 to 10; the third comes when the second leaves.
    mean, peak = figures.overlap(np.array([0.0, 5.0, 15.0]), np.array([10.0, 10.0, 5.0]))
    assert (mean, peak) == (pytest.approx(25.0 / 15.0), 2)
    assert figures.overlap(np.array([]), np.array([])) == (0.0, 0)


def test_busiest_stretch(figures: ModuleType) -> None:
    arrivals = np.array([0.0, 3600.0, 4000.0, 9000.0])
    durations = np.array([50.0, 40.0, 40.0, 10.0])
    assert figures.busiest(arrivals, durations, 900.0, 300.0) in (3300.0, 3600.0)
    assert figures.busiest(arrivals[:1], durations[:1], 900.0, 300.0) == 0.0
