"""The parts of the benchmarks that compute: what wrk says, summaries, the report."""

from __future__ import annotations

import datetime
import importlib
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
WRK = """Running 1s test @ http://127.0.0.1:7001/
  1 threads and 32 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency     1.40ms  247.00us   4.30ms   90.33%
    Req/Sec    23.72k     1.19k   25.45k    81.82%
  Latency Distribution
     50%  950.00us
     75%    1.44ms
     90%    1.56ms
     99%    1.20s
  25985 requests in 1.10s, 4.39MB read
  Socket errors: connect 1, read 2, write 3, timeout 4
  Non-2xx or 3xx responses: 7
Requests/sec:  23619.66
Transfer/sec:      3.99MB
"""


@pytest.fixture(autouse=True)
def _path(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(str(ROOT))
    yield
    for name in [name for name in sys.modules if name.split(".")[0] == "benchmarks"]:
        del sys.modules[name]


def _load(name: str) -> ModuleType:
    return importlib.import_module(f"benchmarks.{name}")


def test_wrk_report_is_read() -> None:
    found = _load("_load").parse_wrk(WRK)
    assert found == {"requests_per_s": 23619.66, "p50_ms": 0.95, "p99_ms": 1200.0, "failed": 17}
    with pytest.raises(RuntimeError, match="wrk said"):
        _load("_load").parse_wrk("unable to connect")


def test_summary_of_one_and_of_many() -> None:
    load = _load("_load")
    assert load.summary([5.0]) == {"count": 1, "p50": 5.0, "p99": 5.0, "max": 5.0}
    many = load.summary([float(n) for n in range(200)])
    assert (many["p50"], many["p99"], many["max"]) == (99.5, 198.0, 199.0)


def test_free_ports_are_different_and_below_rays_workers() -> None:
    ports = _load("_load").free_ports(4)
    assert len(set(ports)) == 4
    assert all(1024 < port < 10_000 for port in ports)


def test_report_has_a_row_for_each_measurement() -> None:
    main = _load("__main__")
    side = {"count": 3, "p50": 10.0, "p99": 20.0, "max": 30.0}
    wrk = {"connections_32": {"requests_per_s": 4000.0, "p50_ms": 8.0}}
    runtimes = _load("runtimes").judged(
        {
            "interpreter": side, "process": {"warm": side, "cold": side},
            "oci": {"warm": side, "cold": {**side, "p50": 110.0}, "bare": {**side, "p50": 40.0}},
        },
        10.0,
    )  # fmt: skip
    found = {
        "coldstart": {
            "headrace": side, "ray_serve_default": side, "ray_serve_tuned": side,
            "times_faster_than_default": 100.0, "times_faster_than_tuned": 50.0,
        },
        "throughput": {
            "headrace": {**wrk, "plain_client": side}, "ray_serve_default": wrk, "bare_aiohttp": wrk,
            "own_socket": side, "times_ray_serve": 20.0, "of_bare_aiohttp": 0.4, "above_own_socket_ms": 0.3,
        },
        "idle": {"endpoints": 10000, "list_s": 0.5, "wake": side, "grown_mb": 90.0},
        "jobs": {
            "sqlite": {
                "sustained": {"finished_per_s": 500.0, "seconds": 30.0},
                "long_queue": {
                    "queued": 100000, "submit_ms_behind_it": side,
                    "gateway_mb_before": 50.0, "gateway_mb_after": 51.0,
                },
            },
        },
        "runtimes": runtimes,
        "switch": {
            "runtime": "oci", "paused": side, "stopped_warm": side, "stopped_cold": side,
            "times_faster_than_stopped_warm": 2.0, "times_faster_than_stopped_cold": 9.0,
            "model": {
                "megabytes": 200, "load": side, "request": side, "from_memory": side,
                "load_of_from_memory": 1.1,
            },
        },
        "chaos": {
            "headrace": {"strikes": 9, "clients": {"sent": 1500, "ms": side}},
            "ray_serve_default": {"strikes": 9, "clients": {"sent": 1500, "ms": {}}},
            "failed_headrace": 0, "failed_ray_serve_default": 7,
        },
    }  # fmt: skip
    text = main.report(found, datetime.datetime(2026, 1, 2, 3, 4, tzinfo=datetime.UTC))
    assert "2026-01-02 03:04 UTC" in text
    assert text.count("\n| ") == 1 + 12
    assert "4.0 x faster" in text
    assert "python -m benchmarks.idle" in text
    readme = main.in_readme((ROOT / "README.md").read_text(), found, datetime.datetime(2026, 1, 2))
    measured = readme.partition(main.FIRST_MARK)[2].partition(main.LAST_MARK)[0]
    assert measured.count("\n| ") == 1 + 12
    assert main.in_readme(readme, found, datetime.datetime(2026, 1, 2)) == readme
    with pytest.raises(RuntimeError, match="marks"):
        main.in_readme("nothing", found, datetime.datetime(2026, 1, 2))


def test_figures_of_runtimes_beside_their_goals() -> None:
    side = {"count": 3, "p50": 20.0, "p99": 30.0, "max": 30.0}
    cold = {**side, "p50": 500.0}
    judged = _load("runtimes").judged
    found = judged({"oci": {"warm": side, "cold": cold}}, 20.0)["oci"]
    assert found["beyond_interpreter"] == 480.0
    assert found["of_goal"] == {"p50": 0.5, "p99": 0.2, "beyond_interpreter": 1.2}


def test_receipt_of_a_wake_is_read() -> None:
    line = 'queue;dur=8.20, tier;desc="warm", claim;dur=0.15, boot;dur=3.00, total;dur=8.91'
    tier, parts = _load("runtimes").receipt(line)
    assert (tier, parts) == ("warm", {"queue": 8.2, "claim": 0.15, "boot": 3.0, "total": 8.91})
    assert _load("runtimes").receipt("") == ("", {})


def test_what_is_left_is_what_there_is_more_of() -> None:
    above = _load("runtimes").above
    before = Counter({"container": 1, "mount": 3})
    assert above(before, Counter({"container": 1, "mount": 2})) == {}
    assert above(before, Counter({"container": 2, "cgroup": 1})) == {"container": 1, "cgroup": 1}


def test_unknown_benchmark_is_wrong_use(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmarks", "cooldstart"])
    assert _load("__main__").main() == 2
    assert "coldstart" in capsys.readouterr().err
