"""Spot availability, measured starts and prices, from small files of the same form."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from headrace_autoscaler.simulate import data
from headrace_autoscaler.simulate.data import Price, clipped, read_prices, read_spot, read_startups, supplies
from headrace_autoscaler.simulate.generators import DAY_S
from headrace_autoscaler.simulate.scenario import Draw, Steps
from headrace_autoscaler.simulate.traces import TraceError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

HALF_DAY_S = DAY_S / 2


def spot(path: Path, values: list[int], gap: float = HALF_DAY_S) -> Path:
    file = path / "zone.json.gz"
    file.write_bytes(gzip.compress(json.dumps({"metadata": {"gap_seconds": gap}, "data": values}).encode()))
    return file


def test_availability_changes_where_the_data_do(tmp_path: Path) -> None:
    file = spot(tmp_path, [1, 1, 0, 1, 0, 0])
    assert read_spot(file) == Steps((0.0, 2 * HALF_DAY_S, 3 * HALF_DAY_S, 4 * HALF_DAY_S), (1, 0, 1, 0))


def test_days_are_cut_out_of_availability(tmp_path: Path) -> None:
    file = spot(tmp_path, [1, 1, 0, 1, 1, 1])
    assert read_spot(file, from_day=1) == Steps((0.0, HALF_DAY_S, 2 * DAY_S), (0, 1, 0))
    assert read_spot(file, from_day=0.75, to_day=2) == Steps((0.0, 0.25 * DAY_S, 0.75 * DAY_S), (1, 0, 1))
    assert read_spot(file, to_day=1) == Steps((0.0,), (1,))
    for days in ({"from_day": 3}, {"from_day": 2, "to_day": 1}, {"from_day": -1}):
        with pytest.raises(TraceError, match=r"has 3\.0 days: there is nothing from day"):
            read_spot(file, **days)


@given(st.lists(st.integers(0, 1), min_size=1, max_size=40), st.integers(0, 20), st.integers(1, 20))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_at_each_moment_it_says_what_the_data_say(
    tmp_path: Path, values: list[int], first: int, count: int
) -> None:
    file = spot(tmp_path, values)
    if first >= len(values):
        return
    last = min(len(values), first + count)
    steps = read_spot(file, from_day=first / 2, to_day=last / 2)
    for index in range(first, last):
        moment = (index - first + 0.5) * HALF_DAY_S
        assert [v for t, v in zip(steps.times, steps.values, strict=True) if t <= moment][-1] == values[index]


@pytest.mark.parametrize(
    "text", ["[]", "{}", "no", '{"metadata": {"gap_seconds": 5}, "data": 1}', '{"metadata": {}, "data": [1]}']
)
def test_what_is_no_availability_trace_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "x.json"
    file.write_text(text)
    with pytest.raises(TraceError, match="is no availability trace"):
        read_spot(file)


def test_availability_is_zero_or_one_and_takes_time(tmp_path: Path) -> None:
    for values, gap in (([2], 5.0), ([], 5.0), ([1], 0.0)):
        with pytest.raises(TraceError, match="gap_seconds must be above 0"):
            read_spot(spot(tmp_path, values, gap))


def startups(path: Path, *values: object) -> Path:
    file = path / "s.csv"
    file.write_text("\n".join(["timestamp_anon,value,container_ip", *(f"1,{v},x" for v in values)]))
    return file


def test_measured_starts_are_drawn_from(tmp_path: Path) -> None:
    file = startups(tmp_path, 2000, 1000.0, 0)
    assert read_startups(file) == Draw(0.0, samples=(0.0, 1.0, 2.0))
    assert read_startups(file, unit=1.0, scale_to=12).samples == (0.0, 1000.0, 2000.0)
    assert read_startups(file, scale_to=12).median == 12


def test_many_measurements_are_thinned_to_their_quantiles(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data, "MAX_SAMPLES", 4)
    assert read_startups(startups(tmp_path, *range(40)), unit=1).samples == (5.0, 15.0, 25.0, 35.0)


def test_starts_that_are_none_are_refused(tmp_path: Path) -> None:
    for values, words in (
        ((), "no measurement"),
        ((1, "soon"), ":3: value is 'soon', which is not a number"),
        ((-1,), ":2: value is '-1': it must be 0 or more"),
    ):
        with pytest.raises(TraceError, match=words):
            read_startups(startups(tmp_path, *values))
    (tmp_path / "s.csv").write_text("timestamp,seconds\n1,2\n")
    with pytest.raises(TraceError, match=":1: the header line has no column value"):
        read_startups(tmp_path / "s.csv")
    (tmp_path / "s.csv").write_text("timestamp,value\n1\n")
    with pytest.raises(TraceError, match=":2: value is None"):
        read_startups(tmp_path / "s.csv")
    (tmp_path / "s.csv").write_bytes(b"\x1f\x8b\x08rest")
    with pytest.raises(TraceError, match="damaged"):
        read_startups(tmp_path / "s.csv")
    with pytest.raises(TraceError, match="cannot be read"):
        read_startups(tmp_path / "none.csv")


MEDIANS = "gpu_type,provider,is_spot,regions,min,median,max"


def prices(path: Path, *lines: str, name: str = "p.csv") -> Path:
    file = path / name
    file.write_text("\n".join(lines) + "\n")
    return file


def test_prices_from_medians(tmp_path: Path) -> None:
    file = prices(tmp_path, MEDIANS, "H100,a,False,1,1,2.5,3", "H100,b,True,1,1,1.25,3")
    assert read_prices(file) == [Price("H100", "a", False, 2.5), Price("H100", "b", True, 1.25)]


def test_prices_from_snapshots(tmp_path: Path) -> None:
    row = {
        "snapshot_date": "2026-01-01",
        "provider": "a",
        "gpu_type": "L4",
        "region": "r",
        "is_spot": False,
        "price_per_gpu_hour_usd": 0.5,
    }
    file = prices(tmp_path, json.dumps(row), "", json.dumps(row | {"is_spot": True}), name="p.jsonl")
    on_demand, on_spot = read_prices(file)
    assert on_demand == Price("L4", "a", False, 0.5, "r", "2026-01-01")
    assert on_spot.spot
    for line, words in (
        ("{}", ":2: is no price"),
        (json.dumps(row | {"price_per_gpu_hour_usd": 0}), ":2: the price is 0.0: it must be above 0"),
        (json.dumps(row | {"is_spot": "maybe"}), ":2: is no price .*is_spot is 'maybe'"),
    ):
        with pytest.raises(TraceError, match=words):
            read_prices(prices(tmp_path, json.dumps(row), line, name="p.jsonl"))


def test_prices_that_are_none_are_refused(tmp_path: Path) -> None:
    for lines, words in (
        ((MEDIANS,), "no price"),
        ((MEDIANS, "H100,a,False,1,1,0,3"), ":2: median is '0': it must be above 0"),
        ((MEDIANS, "H100,a,perhaps,1,1,1,3"), ":2: is_spot is 'perhaps'"),
        (("gpu_type,median", "H100,1"), "no column provider, is_spot"),
    ):
        with pytest.raises(TraceError, match=words):
            read_prices(prices(tmp_path, *lines))


def test_a_price_far_above_what_others_ask_is_clipped() -> None:
    given_ = [
        Price("X", "a", False, 0.5),
        Price("X", "b", False, 0.4),
        Price("X", "b", True, 0.3),
        Price("X", "c", True, 60.0),
        Price("Y", "c", True, 60.0),
    ]
    got = clipped(given_)
    assert [each.price for each in got] == [0.5, 0.4, 0.3, 10 * 0.4, 60.0]
    assert clipped([]) == []


def test_offers_of_a_kind_are_sorted_by_price() -> None:
    asked = [
        Price("X", "a", False, 2.0, "r1"),
        Price("X", "a", False, 4.0, "r2"),
        Price("X", "b", False, 2.5),
        Price("X", "b", True, 1.0),
        Price("X", "a", True, 1.5),
        Price("Y", "a", False, 9.0),
    ]
    steps = Steps((0.0,), (1,))
    found = supplies(asked, "X", boot={"a": Draw(12)}, availability={"b": steps}, capacity=5)
    assert [(each.name, each.price) for each in found] == [
        ("b-spot", 1.0),
        ("b-on-demand", 2.5),
        ("a-on-demand", 3.0),
    ]
    assert [each.boot.median for each in found] == [90.0, 90.0, 12]
    assert [each.availability for each in found] == [steps, None, None]
    assert all(each.capacity == 5 and each.kind == "X" for each in found)
    (only,) = supplies(asked, "X", providers=("a",), boot=Draw(7))
    assert (only.provider, only.boot.median, only.spot) == ("a", 7, False)
    with pytest.raises(TraceError, match="nobody offers Z here; there are prices of X, Y"):
        supplies(asked, "Z")
