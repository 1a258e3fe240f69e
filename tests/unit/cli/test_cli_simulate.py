"""``headrace simulate``: its JSON, its words, what it refuses, and that an interrupt leaves nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from headrace.cli import simulate_runs
from headrace.cli.app import run
from headrace.cli.simulate_text import percent
from headrace.errors import SetupError
from headrace_autoscaler.configs import DemandConfig, KeepConfig
from headrace_autoscaler.history import Writer
from headrace_autoscaler.simulate.generators import synthetic
from headrace_autoscaler.simulate.scenario import Draw, Scenario, Supply
from headrace_autoscaler.spec import (
    Config,
    Decision,
    EndpointObservation,
    Observation,
    Record,
    ScalingSpec,
    State,
)

FIGURES = {
    "cost_usd", "wait_p50_s", "wait_p95_s", "wait_p99_s", "share_within_2s", "share_within_10s",
    "share_within_30s", "starts", "errors", "bound_ratio", "cold_share", "availability", "busy_usd",
    "idle_usd", "starting_usd", "sunk_usd", "preempted_usd", "ci", "seeds",
}  # fmt: skip


@pytest.fixture(autouse=True)
def _here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("HEADRACE_DEBUG", raising=False)
    monkeypatch.setenv("HEADRACE_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def requests(tmp_path: Path) -> str:
    """Two days with a request each minute of the first hours, of 30 s."""
    rows = [f"{day * 86400 + minute * 60},30" for day in (0, 1) for minute in range(120)]
    (tmp_path / "mine.csv").write_text("\n".join(["time,duration", *rows]))
    return "mine.csv"


Said = Callable[..., tuple[int, str, str]]


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Said:
    def play(*words: str) -> tuple[int, str, str]:
        code = run(["simulate", *words])
        return (code, *capsys.readouterr())

    return play


def test_json_has_the_bound_and_each_policy(requests: str, said: Said) -> None:
    words = (
        "--policy",
        "keep-alive",
        "--compare",
        "knative,always-on-1",
        "--price",
        "3.6",
        "--start-seconds",
        "5",
    )
    code, out, _ = said(requests, *words, "--seeds", "2", "--jobs", "1", "--json")
    assert code == 0
    found = json.loads(out)
    assert set(found) == {"bound_usd", "policies"}
    assert list(found["policies"]) == ["keep-alive", "knative", "always-on-1"]
    for figures in found["policies"].values():
        assert set(figures) >= FIGURES
        assert figures["cost_usd"] == pytest.approx(figures["bound_ratio"] * found["bound_usd"])
    always = found["policies"]["always-on-1"]
    # One instance from the begin to 900 s after the last arrival, at 3.6 dollars an hour.
    assert always["cost_usd"] == pytest.approx((86400 + 119 * 60 + 900) / 1000)
    assert always["share_within_10s"] == 1.0
    assert always["starts"] == 1


def test_days_and_warm_up(requests: str, said: Said) -> None:
    words = ("--policy", "always-on-1", "--price", "3.6", "--jobs", "1", "--json", "--from-day", "1")
    for more, starts in (("7", 0), ("0", 1)):
        code, out, _ = said(requests, *words, "--warm-up-days", more)
        figures = json.loads(out)["policies"]["always-on-1"]
        assert (code, figures["requests"], figures["starts"]) == (0, 120, starts)
        assert figures["cost_usd"] == pytest.approx((119 * 60 + 900) / 1000, rel=0.01)


def test_a_table_for_people(requests: str, said: Said) -> None:
    code, out, _ = said(requests, "--policy", "keep-alive-60", "--days", "0.1", "--jobs", "1")
    assert code == 0
    assert "mine.csv: 120 requests in 1.98 hours" in out
    assert "keep-alive-60 *" in out
    assert "Lower bound $" in out
    assert "mean/peak" in out


def test_supplies_that_cannot_do_it_have_no_bound(said: Said, tmp_path: Path) -> None:
    """Ten requests of 60 s at once, for one instance at $3.60 per hour: 600 s of work."""
    (tmp_path / "ten.csv").write_text("\n".join(["time,duration", *["0,60"] * 10]))
    (tmp_path / "small.toml").write_text('[[supply]]\nname = "a"\nprice = 3.6\nstart_s = 5\ncapacity = 1')
    words = ("ten.csv", "--world", "small.toml", "--jobs", "1")
    code, out, err = said(*words, "--policy", "keep-alive-60")
    assert code == 0
    assert "note: these supplies cannot serve so many requests in time, whatever it costs\n" in err
    assert "Lower bound" not in out
    assert "No policy can start 99% of the requests within 10 s on these supplies, whatever it costs" in out
    assert "X BOUND is to $0.6000, which their work alone costs at the lowest price" in out
    code, out, _ = said(*words, "--sweep")
    assert code == 0
    assert "Lower bound" not in out
    # The one moment in which requests were seen counts as a minute.
    assert "their work alone costs $864.00 per day at the lowest price" in out


def test_shares_are_not_rounded_up_to_all() -> None:
    shown = [percent(part) for part in (None, 0.5, 0.9996, 0.9999999, 1.0)]
    assert shown == ["-", "50.00 %", "99.960 %", "99.999 %", "100.00 %"]


def test_everything_that_is_known_is_compared(requests: str, said: Said) -> None:
    code, out, _ = said(requests, "--compare", "all", "--days", "0.01", "--jobs", "1", "--json")
    assert code == 0
    assert {"headrace", "knative", "spothedge", "always-on-1"} <= set(json.loads(out)["policies"])


def test_home_spot_and_outages(requests: str, said: Said, tmp_path: Path) -> None:
    zone = tmp_path / "zone.json"
    zone.write_text(json.dumps({"metadata": {"gap_seconds": 600}, "data": [1] * 12}))
    words = ("--home", "1", "--spot", str(zone), "--outage", "0-0.5", "--timeout", "60", "--queue-cap", "5")
    code, out, _ = said(requests, *words, "--policy", "spothedge", "--days", "0.1", "--jobs", "1", "--json")
    assert code == 0
    spent = json.loads(out)["policies"]["spothedge"]["by_supply_usd"]
    assert set(spent) == {"home", "cloud", "spot-1"}


def test_a_report_is_a_file(requests: str, said: Said, tmp_path: Path) -> None:
    code, out, _ = said(
        requests, "--days", "0.02", "--compare", "knative", "--report", "r.html", "--jobs", "1"
    )
    assert code == 0
    assert "The report is r.html." in out
    assert "other settings" in (tmp_path / "r.html").read_text()


def test_a_sweep_prints_what_each_p95_costs(requests: str, said: Said) -> None:
    words = ("--days", "0.01", "--tier", "cached=2", "--tier", "cold=40", "--jobs", "1", "--json")
    code, out, _ = said(requests, "--sweep", *words)
    assert code == 0
    found = json.loads(out)
    edge = found["frontier"]
    assert edge
    costs = [step["cost_usd_per_day"] for step in edge]
    assert costs == sorted(costs)
    assert [s["p95_s"] for s in edge] == sorted((s["p95_s"] for s in edge), reverse=True)
    assert all(s["wait_p95_s"] <= s["p95_s"] for s in edge)
    assert {p["options"]["start"] for p in found["points"]} == {"cached", "cold"}


def history(folder: Path) -> None:
    """Of a look each second for 100 s: a request each 10 s, which lasts 2 s; starts take 3 s."""
    folder.mkdir(parents=True)
    records = []
    for second in range(100):
        endpoint = EndpointObservation(
            endpoint="default/hello", version=1, scaling=ScalingSpec(), arrived=second // 10,
            served=(2.0,) if second % 10 == 2 and second > 10 else (), start_s=3.0,
        )  # fmt: skip
        seen = Observation(endpoints=(endpoint,), hosts=())
        done = Decision(actions=(), state=State())
        records.append(
            Record(now=float(second), observation=seen, state=State(), config=Config(), decision=done)
        )
    (folder / "decisions.jsonl").write_bytes(b"".join(map(Writer().line, records)))


def test_the_platforms_own_history(said: Said, tmp_path: Path) -> None:
    history(tmp_path / "data/history")
    code, out, err = said(
        "--from-history", "--endpoint", "hello", "--policy", "keep-alive", "--jobs", "1", "--json"
    )
    assert code == 0
    assert json.loads(out)["policies"]["keep-alive"]["requests"] == 9
    assert "starts take 3 s (as recorded)" in err
    code, out, err = said("--from-history", "--endpoint", "hello", "--sweep", "--jobs", "1")
    assert code == 0
    assert " per day: idle_timeout=" in out
    assert "scaled up to a day" in out
    words = ("--sweep", "--tier", "cached=1", "--tier", "cold=9", "--jobs", "1", "--json")
    code, out, err = said("--from-history", "--endpoint", "hello", *words)
    assert code == 0
    assert "starts take" not in err, "they take as long as the tiers say"
    assert "an instance costs $2 per hour" in err
    assert json.loads(out)["days"] == pytest.approx(80 / 86400, rel=0.2)


WRONG = [
    ((), "TRACE or --from-history"),
    (("nope",), "no synthetic trace of that name"),
    (("empty.csv",), "empty.csv"),
    (("bad.csv",), "bad.csv:2"),
    (("two.csv", "--sweep"), "2 endpoints"),
    (("two.csv", "--endpoint", "c"), "The trace has: a, b"),
    (("diurnal", "--policy", "foo"), "no policy is called 'foo'"),
    (("diurnal", "--from-day", "2", "--to-day", "1"), "not after --from-day 2"),
    (("diurnal", "--days", "1", "--to-day", "1"), "--days and --to-day"),
    (("two.csv", "--from-day", "3"), "no request from day 3"),
    (("--from-history",), "no recorded history"),
    (("diurnal", "--spot", "nope.json"), "nope.json"),
    (("diurnal", "--outage", "3"), "FROM-UNTIL"),
    (("diurnal", "--outage", "3-2"), "FROM-UNTIL"),
    (("diurnal", "--world", "nope.toml"), "nope.toml"),
    (("diurnal", "--world", "wrong.toml"), "prize"),
    (("diurnal", "--world", "wrong.toml", "--price", "1"), "--price is said by the file"),
    (("diurnal", "--days", "0.01", "--world", "owned.toml"), "only offers have an availability"),
    (("diurnal", "--min", "3", "--max", "2"), "--min 3 is more than --max 2"),
    (("diurnal", "--tier", "a=1"), "--sweep"),
    (("diurnal", "--price", "nan"), "'nan' is not a finite number"),
    (("diurnal", "--start-seconds", "inf"), "'inf' is not a finite number"),
    (("diurnal", "--late-s", "nan"), "'nan' is not a finite number"),
    (("diurnal", "--bound-bin", "nan"), "'nan' is not a finite number"),
    (("diurnal", "--world", "nan.toml"), "supply[0].outages_h[0][1] is nan"),
    (("diurnal", "--sweep", "--tier", "a=x"), "NAME=SECONDS"),
    (("diurnal", "--sweep", "--compare", "hpa"), "--compare"),
    (("diurnal", "--report", "no/such/place.html"), "cannot be written"),
]


@pytest.mark.parametrize(("words", "part"), WRONG, ids=lambda value: str(value)[:40])
def test_what_is_wrong_is_said_in_one_line(
    words: tuple[str, ...], part: str, said: Said, tmp_path: Path
) -> None:
    (tmp_path / "empty.csv").write_text("")
    (tmp_path / "bad.csv").write_text("time,duration\n1,x\n")
    (tmp_path / "two.csv").write_text("time,duration,endpoint\n1,2,a\n2,3,b\n")
    (tmp_path / "wrong.toml").write_text('[[supply]]\nname = "a"\nprize = 1\nstart_s = 1\n')
    (tmp_path / "zone.json").write_text('{"metadata": {"gap_seconds": 600}, "data": [1, 0]}')
    (tmp_path / "nan.toml").write_text(
        '[[supply]]\nname = "a"\nprice = 1\nstart_s = 1\noutages_h = [[1, nan]]\n'
    )
    (tmp_path / "owned.toml").write_text(
        '[[supply]]\nname = "a"\nprice = 1\nstart_s = 1\n'
        'home = true\ncapacity = 1\navailability = "zone.json"\n'
    )
    code, out, err = said(*words)
    assert (code, out) == (2, "")
    assert part in err
    assert len(err.splitlines()) == 1


def test_a_world_of_several_providers(requests: str, said: Said, tmp_path: Path) -> None:
    world = tmp_path / "world.toml"
    world.write_text(
        '[[supply]]\nname = "dear"\nprice = 4\nstart_s = 5\n'
        '[[supply]]\nname = "cheap"\nprice = 2\nstart_s = 5\n'
    )
    words = ("--world", str(world), "--policy", "keep-alive", "--days", "0.1", "--jobs", "1", "--json")
    code, out, _ = said(requests, *words)
    assert code == 0
    spent = json.loads(out)["policies"]["keep-alive"]["by_supply_usd"]
    assert spent["cheap"] > spent["dear"] == 0


def test_a_report_without_its_extra_is_refused_at_once(said: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    code, _, err = said("diurnal", "--report", "r.html")
    assert code == 1
    assert "pip install 'headrace[simulate]'" in err


def test_the_settings_of_the_platform_are_options(requests: str, said: Said) -> None:
    def cost(*more: str) -> float:
        code, out, _ = said(
            requests, *more, "--start-seconds", "60", "--days", "0.1", "--jobs", "1", "--json"
        )
        assert code == 0
        return float(json.loads(out)["policies"]["headrace"]["cost_usd"])

    late_s, goal_s = KeepConfig().late_s, DemandConfig().goal_s
    share = KeepConfig().share
    assert cost("--late-s", str(late_s), "--wait-goal", str(goal_s), "--wait-share", str(share)) == cost()
    assert cost("--wait-share", "0") <= cost() < cost("--wait-share", "0.9999")
    assert cost("--late-s", "0") < cost("--late-s", "100000")
    assert cost("--wait-goal", "3600") != cost()
    for words in (("--sweep", "--late-s", "9"), ("--policy", "knative", "--wait-goal", "5")):
        code, _, err = said(requests, *words)
        assert (code, len(err.splitlines())) == (2, 1)
        assert "--late-s" in err


def test_a_sweep_says_which_setting_it_is(requests: str, said: Said) -> None:
    words = ("--days", "0.05", "--start-seconds", "90", "--wait-goal", "5", "--jobs", "1")
    code, out, _ = said(requests, "--sweep", *words, "--json")
    assert code == 0
    options = [point["options"] for point in json.loads(out)["points"]]
    assert {one["wait_goal"] for one in options} == {5.0}
    assert {one.get("late_s") for one in options} >= {None, 50.0, 8000.0}
    # A price that is named is not to regulate itself.
    assert all(one.get("wait_share") == (0.0 if "late_s" in one else None) for one in options)


SMALL = Scenario(synthetic("mmpp", 0.01), (Supply("cloud", 1.0, Draw(1.0)),))


def requests_of(scenario: Scenario) -> int:
    return len(scenario.trace.arrivals)


def raises(scenario: Scenario) -> int:
    raise ValueError("what a task raises")


def dies(scenario: Scenario) -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return 0


def test_processes_give_what_one_gives_and_end() -> None:
    me = psutil.Process()
    alone = dict(simulate_runs.run_all(SMALL, [requests_of] * 3, 1))
    assert dict(simulate_runs.run_all(SMALL, [requests_of] * 3, 2)) == alone
    with pytest.raises(ValueError, match="what a task raises"):
        list(simulate_runs.run_all(SMALL, [raises, requests_of, requests_of], 2))
    with pytest.raises(SetupError, match="was killed"):
        list(simulate_runs.run_all(SMALL, [dies, requests_of], 2))
    assert not [p for p in me.children(recursive=True) if "spawn_main" in " ".join(p.cmdline())]


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGKILL])
def test_who_is_interrupted_leaves_no_process(sent: signal.Signals, tmp_path: Path) -> None:
    words = [
        sys.executable,
        "-m",
        "headrace.cli",
        "simulate",
        "diurnal",
        "--days",
        "20",
        "--compare",
        "knative",
    ]
    with subprocess.Popen(
        [*words, "--jobs", "2", "--bound-bin", "3"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    ) as process:  # fmt: skip
        mine = psutil.Process(process.pid)
        until = time.monotonic() + 30
        while len(children := mine.children(recursive=True)) < 3 and time.monotonic() < until:
            time.sleep(0.05)
        assert len(children) >= 2
        if sent is signal.SIGINT:
            time.sleep(0.5)
            os.killpg(process.pid, sent)  # as a terminal's Ctrl-C does
        else:
            process.send_signal(sent)
        out, err = process.communicate(timeout=30)
    _gone, alive = psutil.wait_procs(children, timeout=10)
    assert not alive
    assert out == ""
    if sent is signal.SIGINT:
        assert process.returncode == 130
        assert err.startswith("headrace: interrupted after ")
        assert len(err.splitlines()) == 1
