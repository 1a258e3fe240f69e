"""What the simulated benchmarks are fed with: loads, prices, spot windows, outages; who is compared."""

from __future__ import annotations

import datetime
import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from headrace_autoscaler.simulate.data import Price
from headrace_autoscaler.simulate.scenario import Draw

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], ModuleType]]:
    monkeypatch.syspath_prepend(str(ROOT))
    monkeypatch.delenv("HEADRACE_DATA", raising=False)
    yield lambda name: importlib.import_module(f"benchmarks.{name}")
    for name in [name for name in sys.modules if name.split(".")[0] == "benchmarks"]:
        del sys.modules[name]


@pytest.mark.parametrize(("ratio", "power"), [(1.0, 0.0), (0.5, 1.0), (0.375, 2.0), (35 / 128, 4.0)])
def test_mean_of_a_wave(load: Callable[[str], ModuleType], ratio: float, power: float) -> None:
    # The mean of cos(x)^2k: 1, 1/2, 3/8, 35/128 for k = 0, 1, 2, 4.
    assert load("_loads").wave_power(ratio) == pytest.approx(power, abs=1e-6)
    with pytest.raises(ValueError, match="at most 1"):
        load("_loads").wave_power(1.1)


def test_waves_have_the_mean_and_get_flatter(load: Callable[[str], ModuleType]) -> None:
    overlap, wave = load("_figures").overlap, load("_loads").wave
    found = [
        overlap(w.arrivals, w.durations) for w in (wave(20.0, ratio, 1.0, 1) for ratio in (0.2, 0.5, 1.0))
    ]
    assert all(mean == pytest.approx(20.0, rel=0.05) for mean, _ in found)
    peaks = [peak for _, peak in found]
    assert peaks == sorted(peaks, reverse=True)
    assert 80 < peaks[0] < 130
    assert 36 < peaks[1] < 60


def test_loads_are_thinned_and_doubled(load: Callable[[str], ModuleType]) -> None:
    loads = load("_loads")
    whole = loads.trace("w", np.array([10.0, 5.0, 86_000.0]), np.array([1.0, 2.0, 3.0]))
    assert whole.arrivals.tolist() == [5.0, 10.0, 86_000.0]
    twice = loads.doubled(whole, 1000.0)
    # The last one comes again after midnight, on the same day.
    assert twice.arrivals.tolist() == [5.0, 10.0, 600.0, 1005.0, 1010.0, 86_000.0]
    assert twice.durations.tolist() == [2.0, 1.0, 3.0, 2.0, 1.0, 3.0]
    assert len(loads.thinned(twice, 0.0, 1).arrivals) == 0


def test_who_offers_both_ways_and_is_nearest(load: Callable[[str], ModuleType]) -> None:
    loads = load("_loads")
    listed = [
        Price("H100", "a", False, 8.0), Price("H100", "a", True, 3.0),
        Price("H100", "b", False, 3.3), Price("H100", "b", True, 2.9),
        Price("H100", "c", False, 2.0),
        Price("H100", "d", False, 3.0), Price("H100", "d", True, 1.0),
        Price("L4", "e", False, 0.4), Price("L4", "e", True, 0.2),
    ]  # fmt: skip
    found = loads.both_ways(listed, "H100")
    assert [(one.provider, one.on_demand, one.spot) for one in found] == [
        ("d", 3.0, 1.0), ("b", 3.3, 2.9), ("a", 8.0, 3.0),
    ]  # fmt: skip
    assert [one.provider for one in loads.nearest(found, 3.29, 2)] == ["d", "b"]
    with pytest.raises(loads.NoDataError, match="another kind"):
        loads.both_ways(listed, "B200")


def test_made_spot_is_the_same_each_time_and_differs_by_zone(load: Callable[[str], ModuleType]) -> None:
    one, other, *_ = load("_loads").zones(None)
    steps = one.window(0.0, 86_400.0)
    assert steps == one.window(0.0, 86_400.0) != other.window(0.0, 86_400.0)
    assert steps != one.window(9.0, 86_400.0)
    assert steps.times[0] == 0.0
    assert set(np.diff(steps.values)) <= {-1, 1}


def test_folder_without_requests_is_refused(
    load: Callable[[str], ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads = load("_loads")
    assert loads.folder(None) is None
    with pytest.raises(loads.NoDataError, match="requests"):
        loads.folder(str(tmp_path))
    (tmp_path / loads.REQUESTS).parent.mkdir()
    (tmp_path / loads.REQUESTS).touch()
    monkeypatch.setenv("HEADRACE_DATA", str(tmp_path))
    assert loads.folder(None) == tmp_path
    assert "MADE" in loads.caveats(None)[0]
    assert any("Nights" in text for text in loads.caveats(tmp_path))


def test_outages_are_at_the_peaks_of_the_busiest_days(load: Callable[[str], ModuleType]) -> None:
    # One hour of work at 12:00 on day 0 and at 20:00 on day 1, more of it on day 1.
    first = np.arange(12 * 3600.0, 13 * 3600.0, 60.0)
    second = 86_400.0 + np.arange(20 * 3600.0, 21 * 3600.0, 30.0)
    trace = load("_loads").trace("t", np.concatenate([first, second]), np.full(180, 20.0))
    peaks = load("_markets").peaks
    (one,) = peaks(trace, 1)
    assert one[1] - one[0] == 7200.0
    assert one[0] <= second[0]
    assert second[-1] < one[1]
    assert [begin < 86_400.0 for begin, _ in peaks(trace, 5)] == [True, False]
    assert peaks(trace, 0) == ()
    assert [begin < 86_400.0 for begin, _ in peaks(trace, 5, 86_400.0)] == [False]
    assert peaks(trace, 5, 2 * 86_400.0) == ()


def test_market_deals_zones_round_and_stops_the_cheapest(load: Callable[[str], ModuleType]) -> None:
    loads, markets = load("_loads"), load("_markets")
    trace = loads.trace("t", np.arange(0.0, 7200.0, 10.0), np.full(720, 5.0))
    market = markets.Market(loads.MADE_OFFERS, tuple(loads.zones(None)), Draw(12.0))
    for seed in (0, 1):
        made = markets.supplies(market, trace, seed)
        assert [s.spot for s in made] == [False] * 3 + [True] * 5
        assert [bool(s.outages) for s in made] == [s.provider == "one" for s in made]
        assert {s.price for s in made if s.provider == "one"} == {3.25, 1.15}
        assert all((s.availability is not None) == s.spot for s in made)
    # Warm-up is before what counts, and nobody goes away in it.
    warm = markets.Market(market.offers, market.zones, Draw(12.0), warm_up_s=86_400.0)
    assert not any(s.outages for s in markets.supplies(warm, trace, 0))
    (made,) = markets.scenarios("m", warm, trace, 1, {}).values()
    assert made.warm_up_s == 86_400.0
    assert [s.provider for s in markets.supplies(market, trace, 1)][3:] == [
        "two",
        "three",
        "one",
        "two",
        "three",
    ]


def test_baselines_are_judged_beside_all_of_our_settings(load: Callable[[str], ModuleType]) -> None:
    autoscaler = load("autoscaler")
    plan = autoscaler.Plan(1, 1, (90.0,), (0.0, 1.0), quick=True)
    ours = [autoscaler.label(variant) for variant in plan.knob]

    def run(dollars: float, share: float) -> dict[str, Any]:
        return {"cost_usd": dollars, "share_within_10s": share}

    runs = {name: run(100.0 + 10 * n, 0.98 + 0.005 * n) for n, name in enumerate(ours)}
    runs |= {"good": run(90.0, 0.99), "poor": run(150.0, 0.98), "cheap": run(50.0, 0.5)}
    found = autoscaler.compared(runs, plan, {"lp": 50.0}, 90.0)
    assert found["on_or_above"] == ["good"]
    assert found["not_comparable"] == ["cheap"]
    assert found["policies"]["headrace"]["bound_ratio"] == 2.0
    assert (found["goal"]["share"], found["goal"]["met"]) == (0.98, False)
    assert found["best"] == {"policy": "good: 99.00 %", "of_best": pytest.approx(100 / 90)}
    assert autoscaler.best_of(runs["good"], {"poor": runs["poor"]}) == {"policy": "", "of_best": None}
    (row,) = load("__main__").of_simulations({"autoscaler": {"data": "made", "accept": {"90": found}}})
    assert row[1:] == ("98.00 % in 10 s at 2.00 x the bound", "good: 99.00 %", "1.11 of its cost")
    assert "made requests" in row[0]


def test_spot_is_judged_by_cost_and_availability(load: Callable[[str], ModuleType]) -> None:
    def judged(available: float, dollars: float) -> Any:
        """Whether the goal is met, and the row of the report."""
        runs = {
            "headrace, spot prefer": {"cost_usd": dollars, "availability": available},
            "headrace, spot never": {"cost_usd": 100.0, "availability": 1.0},
        }
        found = load("autoscaler").against_never(runs)
        spot = {"kind": "H100", "12": found, "others": {}}
        (row,) = load("__main__").of_simulations({"autoscaler": {"data": "real", "spot": spot}})
        return found["met"], row[1], row[3]

    assert judged(0.999, 65.0) == (True, "99.900 % of minutes available", "0.65 of its cost")
    assert judged(0.998, 65.0)[0] is False
    assert judged(0.999, 66.0)[0] is False


def test_dollars_of_a_side_at_other_prices(load: Callable[[str], ModuleType]) -> None:
    effect = load("serverless_effect")
    # In the run 53 owned GPUs cost $1 for each of 10 hours; at $2.50 that is 1.5 times more of it.
    assert effect.dollars_of({"cost_usd": 530.0}, "fair", 2.5, {"fair": 53}, 10.0) == pytest.approx(1325.0)
    # 4 owned beside $60 of rented ones.
    assert effect.dollars_of({"cost_usd": 100.0}, "home-4", 2.0, {}, 10.0) == pytest.approx(140.0)
    assert effect.dollars_of({"cost_usd": 60.0}, "home-0", 2.0, {}, 10.0) == 60.0
    tried = {
        0: {"cost_usd": 100.0, "share_within_10s": 0.995, "hours": 10.0},
        4: {"cost_usd": 90.0, "share_within_10s": 0.995, "hours": 10.0},
        8: {"cost_usd": 50.0, "share_within_10s": 0.9, "hours": 10.0},
    }
    assert effect.best_home(tried, 1.2) == 4
    assert effect.best_home(tried, 3.0) == 0
    costs = {"2.0": {"peak": 400.0, "fair": 200.0, "known": 250.0, "rented": 100.0, "beside": 90.0}}
    (row,) = load("__main__").of_simulations(
        {"serverless_effect": {"data": "real", "main": {"costs": costs}}}
    )
    assert row[1:] == ("$90, beside", "$200, fair", "0.45 of its cost")


def test_where_bare_metal_becomes_cheaper(load: Callable[[str], ModuleType]) -> None:
    effect, trace = load("serverless_effect"), load("_loads").trace
    # Two at once for an hour, from a request each hundred seconds on: a fleet of two, used half of the time.
    steep = trace("s", np.repeat(np.arange(0.0, 3601.0, 100.0), 2), np.full(74, 50.0))
    even = trace("e", np.repeat(np.arange(0.0, 3601.0, 100.0), 2), np.full(74, 99.0))
    points = [
        effect.against(trace, {"cost_usd": dollars, "share_within_10s": 1.0})
        for trace, dollars in ((steep, 3.5), (even, 7.0))
    ]
    assert [point["fleet"] for point in points] == [2, 2]
    assert points[0]["bare_usd"] == {1.5: 3.0, 2.0: 4.0, 2.5: 5.0, 3.0: 6.0}
    low, high = (point["ratio"] for point in points)
    # At $2: 4.0 against 3.5, then 4.0 against 7.0: equal after one seventh of the way.
    assert effect.turn(points, 2.0) == pytest.approx(low + (high - low) / 7)
    assert effect.turn(points, 1.5) is None


def test_decisions_are_timed_on_the_whole_installation(load: Callable[[str], ModuleType]) -> None:
    scenario = load("_decide").installation(30, 4, 10.0)
    assert len(scenario.trace.names) == 30
    assert [s.owned for s in scenario.supplies].count(True) == 4
    found = load("_decide").decisions(30, 4, 10.0)
    assert found["decisions"] > 1
    assert found["instances"] > 0
    assert 0 < found["cpu_ms"]["p50"] <= found["cpu_ms"]["max"]


def test_results_keep_what_was_simulated_when_the_rest_is_measured_again(
    load: Callable[[str], ModuleType],
) -> None:
    main = load("__main__")
    part = main.simulated({"serverless_effect": {"text": "costs"}}, datetime.datetime(2026, 1, 2, 3, 4))
    assert "python -m benchmarks.serverless_effect" in part
    text = main.joined("# Measured\n\nfirst\n", part)
    head, mark, played = text.partition(main.SIMULATED_MARK)
    assert mark
    assert main.joined("# Measured\n\nsecond\n", played) == text.replace("first", "second")
    assert main.joined(head, part) == text
    assert main.joined("# Measured\n", "") == "# Measured\n"


def test_table_has_columns(load: Callable[[str], ModuleType]) -> None:
    text = load("_replays").table(("policy", "$"), [("a", 1.0), ("longer", None)])
    assert text.splitlines() == ["policy      $", "------  -----", "a       1.000", "longer      -"]


def test_nearly_all_is_not_shown_as_all(load: Callable[[str], ModuleType]) -> None:
    percent = load("_replays").percent
    assert [percent(share) for share in (1.0, 0.99999, 0.98765, None)] == [
        "100.00 %",
        "99.99 %",
        "98.77 %",
        "-",
    ]
    assert percent(1.3, 0) == "130 %"
