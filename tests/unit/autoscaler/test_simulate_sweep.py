"""Sweeps: the frontier, its steps, what is tried; worlds of a file; reports."""

from __future__ import annotations

import itertools
import json
import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from headrace_autoscaler.baselines import policy_of
from headrace_autoscaler.simulate import report as reports
from headrace_autoscaler.simulate.engine import run
from headrace_autoscaler.simulate.generators import synthetic
from headrace_autoscaler.simulate.observed import observed_start
from headrace_autoscaler.simulate.scenario import Cost, Draw, Result, Scenario, Steps, Supply, Trace, Wish
from headrace_autoscaler.simulate.summary import (
    counted_days,
    document,
    half_width,
    lower_bound,
    mean_and_peak,
    offered,
    unbeaten,
)
from headrace_autoscaler.simulate.sweep import (
    Point,
    Variant,
    applied,
    frontier,
    play,
    point_of,
    policy_at,
    settings,
    steps,
)
from headrace_autoscaler.simulate.world import read_world, supplies_of, wishes_of, without_warm_up
from hypothesis import given
from hypothesis import strategies as st

CLOUD = Supply("cloud", 3.6, Draw(10.0))


def trace(arrivals: list[float], durations: list[float]) -> Trace:
    return Trace("mine", np.array(arrivals), np.array(durations), np.zeros(len(arrivals), np.int32))


def point(usd: float, p95: float) -> Point:
    return Point(Variant("headrace"), usd, p95, p95, 1.0, 0.0)


def test_the_frontier_keeps_what_nothing_beats() -> None:
    best = [point(1, 9), point(3, 4), point(5, 0)]
    worse = [point(2, 9), point(4, 5), point(5, 1), point(9, 0)]
    assert frontier([*worse, *best]) == best


def test_steps_name_the_cheapest_within_each_bound_once() -> None:
    found = steps([point(1, 9), point(3, 4), point(5, 0.2)], bounds=(0.1, 0.5, 1, 5, 10, 20))
    assert [(s.p95_s, s.point.usd_per_day) for s in found] == [(10, 1), (5, 3), (0.5, 5)]
    assert steps([point(1, math.inf)]) == []


POINTS = st.lists(st.builds(point, st.floats(0, 1e6), st.floats(0, 1e4)), min_size=1, max_size=40)


@given(POINTS)
def test_less_waiting_never_costs_less(points: list[Point]) -> None:
    edge = frontier(points)
    assert all(a.usd_per_day <= b.usd_per_day and a.p95_s > b.p95_s for a, b in itertools.pairwise(edge))
    for mine in points:
        assert any(e.usd_per_day <= mine.usd_per_day and e.p95_s <= mine.p95_s + 1e-9 for e in edge)
    found = steps(points)
    assert all(
        a.p95_s > b.p95_s and a.point.usd_per_day <= b.point.usd_per_day for a, b in itertools.pairwise(found)
    )


def test_a_variant_changes_wishes_parameters_and_starts() -> None:
    scenario = Scenario(trace([0.0], [1.0]), (CLOUD,))
    variant = Variant("headrace", {"min": 3}, {"keep.late_s": 7.0, "tick_s": 9.0}, "cold", 90.0)
    changed = applied(scenario, variant)
    assert changed.wishes == (Wish(min=3),)
    assert changed.supplies[0].boot == Draw(90.0)
    config = policy_at(variant).config
    assert (config.keep.late_s, config.tick_s) == (7.0, 9.0)
    assert config.keep.restart == policy_of("headrace").config.keep.restart
    assert variant.options == {"min": 3, "late_s": 7.0, "tick_s": 9.0, "start": "cold"}
    assert applied(scenario, Variant("headrace")) is scenario


def test_settings_try_each_option_and_each_tier() -> None:
    scenario = Scenario(trace([0.0, 0.0, 0.0], [10.0, 10.0, 10.0]), (CLOUD,))
    plain = settings(scenario, {"keep.late_s": (1.0, 2.0)}, {})
    assert {v.wish.get("min", 0) for v in plain} == {0, 1, 3}
    assert [v.config for v in plain if v.config] == [
        {"keep.late_s": 1.0, "keep.share": 0.0},
        {"keep.late_s": 2.0, "keep.share": 0.0},
    ]  # A price that is tried is not to regulate itself.
    assert len(settings(scenario, {"keep.late_s": (1.0, 2.0)}, {"a": 1.0, "b": 2.0})) == 2 * len(plain)
    assert settings(Scenario(trace([], []), (CLOUD,)), {}, {})
    # Three at once are more than max allows, and one is there anyway.
    bounded = replace(scenario, wishes=(Wish(min=1, max=2),))
    assert {v.wish.get("min") for v in settings(bounded, {}, {})} == {None}


def test_who_is_turned_away_makes_a_setting_slow() -> None:
    served = Result("p", 0, Cost(busy=2.0), np.zeros(94), np.zeros(94), np.zeros(94, bool), {}, np.zeros(6),
                    1, {}, 0, 0.0)  # fmt: skip
    found = point_of(Variant("p"), [served], days=0.5)
    assert (found.usd_per_day, found.p95_s) == (4.0, math.inf)
    assert found.document["wait_p95_s"] is None


def test_demand_is_the_integral_of_what_runs() -> None:
    mine = trace([0.0, 5.0], [10.0, 10.0])
    assert offered(mine, np.array([0.0, 5.0, 10.0, 20.0])).tolist() == [1.0, 2.0, 0.5]
    assert mean_and_peak(Scenario(trace([], []), (CLOUD,))) == (0.0, 0.0)


def test_figures_are_json_and_say_what_is_unbeaten() -> None:
    scenario = Scenario(synthetic("mmpp", 0.02), (CLOUD,))
    bound = lower_bound(scenario).usd
    found = {}
    for name in ("keep-alive", "always-on-1", "knative"):
        found[name] = document([play(scenario, Variant(name), seed) for seed in (0, 1)], bound)
        assert found[name]["bound_ratio"] == pytest.approx(found[name]["cost_usd"] / bound)
        assert half_width(found[name], "cost_usd") >= 0
    json.dumps(found, allow_nan=False)
    ours = {"a": {"cost_usd": 1, "share_within_10s": 0.5}, "b": {"cost_usd": 2, "share_within_10s": 0.5}}
    assert unbeaten(ours) == {"a"}
    assert unbeaten(found) <= set(found)
    nobody = document([play(Scenario(trace([], []), (CLOUD,)), Variant("knative"), 0)], None)
    assert nobody["wait_p95_s"] is None
    assert nobody["bound_ratio"] is None


def test_without_its_extra_there_is_no_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "scipy.optimize", None)
    found = lower_bound(Scenario(trace([0.0], [5.0]), (CLOUD,)))
    assert math.isnan(found.usd)
    assert "headrace[simulate]" in found.note
    assert math.isnan(lower_bound(Scenario(trace([0.0], [5.0]), ())).usd)


WORLD = """
timeout_s = 30
[[supply]]
name = "home"
home = true
capacity = 2
price = 1.0
start_s = 5
cached_s = 1
warm_s = 0.1
warm_sandboxes = 1
[[supply]]
name = "spot"
price = 1.5
start_s = 60
spot = true
availability = "zone.json"
outages_h = [[1, 2]]
mtbf_h = 10
[endpoint]
min = 1
[endpoints.other]
min = 2
"""


def test_a_world_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "world.toml"
    file.write_text(WORLD)
    world = read_world(file)
    asked: list[str] = []

    def availability(name: str) -> Steps:
        asked.append(name)
        return Steps((0.0, 60.0), (1, 0))

    home, spot = supplies_of(world, availability, begin_s=100.0)
    assert asked == ["zone.json"]
    assert (home.owned, home.standing, home.capacity, home.provider) == (True, True, 2, "home")
    assert (home.cached, home.warm) == (Draw(1.0), Draw(0.1))
    # It is told from the first day that counts on, and before that it is what it is at its beginning.
    assert spot.availability == Steps((0.0, 160.0), (1, 0))
    assert (spot.spot, spot.provider, spot.outages, spot.mtbf_s) == (
        True,
        "spot",
        ((3700.0, 7300.0),),
        36000.0,
    )
    assert [w.min for w in wishes_of(world, ("one", "other"))] == [1, 2]
    with pytest.raises(ValueError, match="no endpoint 'other'"):
        wishes_of(world, ("one",))


OFFER = '[[supply]]\nname = "a"\nprice = 1.0\nstart_s = 50\n'


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("supply = []", "length"),
        ("x =\n", "line 1"),
        ('[[supply]]\nname = "a"\nprize = 1\nstart_s = 1', "prize"),
        ('[[supply]]\nname = "a"\nprice = -1\nstart_s = 1', "price"),
        ('[[supply]]\nname = "a"\nprice = 1\nstart_s = 1\nhome = true', "capacity"),
        ('[[supply]]\nname = "a"\nprice = 1\nstart_s = 1\n' * 2, "two supplies called 'a'"),
        (OFFER + "warm_s = 1\nwarm_sandboxes = 3", "supply 'a' has warm_s, warm_sandboxes, and is not home"),
        (OFFER + "cached_s = 5", "has cached_s, and is not home: .* leave out .* or say home = true"),
        (
            OFFER + "outages_h = [[1, 2], [5, 3]]",
            "'a' has an outage from hour 5 until hour 3: write when",
        ),
        (
            OFFER + 'home = true\ncapacity = 1\navailability = "x.json"',
            "'a' is home: only offers",
        ),
        (OFFER + "outages_h = [[5, 5]]", "from hour 5 until hour 5"),
        ('[endpoint]\nmin = 3\nmax = 2\n[[supply]]\nname = "a"\nprice = 1\nstart_s = 1', "more than max"),
    ],
)
def test_a_world_that_is_wrong_says_where(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "world.toml"
    file.write_text(text)
    with pytest.raises(ValueError, match=said) as found:
        read_world(file)
    assert str(file) in str(found.value)


def test_starts_that_were_recorded(tmp_path: Path) -> None:
    (tmp_path / "history").mkdir()
    lines = [
        {"now": 1, "observation": {"endpoints": [{"endpoint": "p/a", "start_s": start}, {"endpoint": "p/b"}]}}
        for start in (4.0, 6.0, None)
    ]
    file = tmp_path / "history/decisions.jsonl"
    file.write_text("\n".join([*map(json.dumps, lines), "broken"]))
    assert observed_start(tmp_path) == observed_start(file, "a") == observed_start(tmp_path, "p/a") == 5.0
    assert observed_start(tmp_path, "b") is None


class Page(HTMLParser):
    """What a page would load, and its text outside of scripts."""

    def __init__(self) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.policy = ""
        self.text = ""
        self._script = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._script = tag == "script"
        found = dict(attrs)
        self.loads += [str(found[name]) for name in ("src", "href", "srcset", "data") if name in found]
        if found.get("http-equiv") == "Content-Security-Policy":
            self.policy = str(found["content"])

    def handle_endtag(self, tag: str) -> None:
        self._script = False

    def handle_data(self, data: str) -> None:
        self.text += "" if self._script else data


def report(title: str = "a <b> & </script>") -> str:
    scenario = Scenario(
        synthetic("flash-crowd", 0.05), (CLOUD, Supply("home", 0.0, Draw(1.0), capacity=2, owned=True))
    )
    names = ("knative", "keep-alive")
    played = []
    for name in names:
        result = run(scenario, policy_of(name), 0, timeline_step_s=10.0)
        played.append(reports.Played(name, document([result], 1.0), result))
    nobody = Result(
        "none", 0, Cost(), np.zeros(0), np.zeros(0), np.zeros(0, bool), {}, np.zeros(0), 0, {}, 0, 0.0
    )
    played.append(reports.Played("nobody", document([nobody], None), nobody))
    return reports.page(
        reports.Report(
            title=title, trace=scenario.trace, facts=[("cloud", "$3")], played=played, bound_usd=1.0,
            curve=[("x=1", played[0].result)], notes=["a note"],
            columns=[("cost_usd", "cost"), ("share_within_10s", "within 10 s"), ("bound_ratio", "x")],
        )
    )  # fmt: skip


def test_a_report_loads_nothing_and_shows_all() -> None:
    text = report()
    page = Page()
    page.feed(text)
    assert page.loads == []
    assert page.policy.startswith("default-src 'none'")
    assert "showSendToCloud: false" in text
    for words in ("a <b> & </script>", "$3", "a note", "knative", "keep-alive", "within 10 s"):
        assert words in page.text
    data = json.loads(re.search(r"^const report = (.*);$", text, re.MULTILINE)[1])  # type: ignore[index]
    assert [plot["id"] for plot in data["plots"]] == ["demand", "pareto", "costs", "waits"]
    for plots in data["policies"].values():
        assert list(plots) == ["instances", "tiers", "spent"]
    lines = data["policies"]["knative"]["instances"]["data"]
    assert {"cloud: busy", "demand"} <= {line["name"] for line in lines}
    assert all(len(line["x"]) <= reports.MAX_POINTS for line in lines)
    assert len(text) - len(reports.plotly_js()) < 500_000


def test_a_report_without_plotly_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "plotly.offline", None)
    with pytest.raises(reports.NeedsPlotly, match=r"headrace\[simulate\]"):
        reports.plotly_js()


def test_days_that_count_leave_the_warm_up_out() -> None:
    scenario = Scenario(trace([0.0, 86400.0 * 2], [1.0, 1.0]), (CLOUD,), warm_up_s=86400.0)
    assert counted_days(scenario) == pytest.approx(1.0)
    # However long it goes on after the last request; one request alone is taken for a minute.
    assert counted_days(replace(scenario, tail_s=86400.0)) == pytest.approx(1.0)
    assert counted_days(replace(scenario, warm_up_s=86400.0 * 2)) == pytest.approx(1 / 1440)


def test_nothing_that_counts_has_no_mean_and_no_peak() -> None:
    scenario = Scenario(trace([0.0, 3600.0], [1800.0, 1800.0]), (CLOUD,))
    # Two requests of half an hour each, one after the other, until an hour after the begin: one in two.
    assert mean_and_peak(scenario) == (pytest.approx(0.5), pytest.approx(1.0))
    assert mean_and_peak(replace(scenario, warm_up_s=7200.0)) == (0.0, 0.0)


def test_all_endpoints_share_a_wish_unless_one_has_its_own(tmp_path: Path) -> None:
    file = tmp_path / "world.toml"
    file.write_text('[[supply]]\nname = "a"\nprice = 1\nstart_s = 1\n[endpoint]\nmin = 3')
    assert wishes_of(read_world(file), ("one", "other")) == (Wish(min=3),)


def test_what_was_before_the_part_that_counts_is_cut_off() -> None:
    hour = 3600.0
    steps = Steps((0.0, 10 * hour, 30 * hour), (1, 0, 2))
    zone = Supply(
        "zone", 1.0, Draw(9.0), availability=steps, outages=((1 * hour, 2 * hour), (20 * hour, 26 * hour))
    )
    scenario = Scenario(trace([5 * hour, 25 * hour], [60.0, 90.0]), (zone, CLOUD), warm_up_s=24 * hour)
    cut = without_warm_up(scenario)
    assert (cut.trace.arrivals.tolist(), cut.trace.durations.tolist(), cut.warm_up_s) == ([hour], [90.0], 0.0)
    # Nothing was to be had from the tenth hour on, which holds at the begin; six hours later two are.
    assert cut.supplies[0].availability == Steps((0.0, 6 * hour), (0, 2))
    assert cut.supplies[0].outages == ((0.0, 2 * hour),)
    assert cut.supplies[1] == CLOUD
    assert without_warm_up(cut) is cut
    # What begins later only is kept as it is.
    late = replace(scenario, supplies=(replace(zone, availability=Steps((30 * hour,), (2,))),))
    assert without_warm_up(late).supplies[0].availability == Steps((6 * hour,), (2,))


def test_a_report_without_a_bound_a_curve_or_prices() -> None:
    scenario = Scenario(trace([0.0, 30.0], [5.0, 5.0]), (CLOUD,))
    result = run(scenario, policy_of("keep-alive"), 0, timeline_step_s=10.0)
    unpriced = {key: value for key, value in result.timeline.items() if not key.startswith("dollars:")}
    result = replace(result, timeline=unpriced)
    text = reports.page(
        reports.Report(
            title="t",
            trace=scenario.trace,
            facts=[],
            bound_usd=None,
            played=[reports.Played("keep-alive", document([result], None), result)],
            columns=[("cost_usd", "cost")],
        )
    )
    data = json.loads(re.search(r"^const report = (.*);$", text, re.MULTILINE)[1])  # type: ignore[index]
    plots = {plot["id"]: plot for plot in data["plots"]}
    assert [line["name"] for line in plots["pareto"]["data"]] == ["keep-alive"]
    assert not plots["pareto"]["layout"].get("shapes")
    assert not plots["costs"]["layout"].get("shapes")
    assert data["policies"]["keep-alive"]["spent"]["data"] == []
