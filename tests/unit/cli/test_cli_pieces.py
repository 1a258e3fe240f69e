"""Parts of the command line by themselves: session, receipt, tables, doctor, events."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import pytest
from headrace.cli import doctor, jobs, receipt
from headrace.cli.call import joined, read_input
from headrace.cli.dev import words
from headrace.cli.endpoints import brief, describe, report
from headrace.cli.logs import line
from headrace.cli.options import Session, is_loopback, open_session, read_up
from headrace.cli.output import Output, duration, facts, moment, size, table
from headrace.cli.up import status_text
from headrace.config import load_settings
from headrace.errors import SetupError
from hypothesis import given
from hypothesis import strategies as st

OUT = Output(as_json=False)


def test_the_key_of_this_machine_is_sent_to_this_machine_only(tmp_path: Path) -> None:
    (tmp_path / "admin.key").write_text("secret\n")
    environ = {"HEADRACE_DATA_DIR": str(tmp_path)}
    assert open_session(OUT, "http://127.0.0.1:9", None, environ).api_key == "secret"
    assert open_session(OUT, "http://localhost:9", None, environ).api_key == "secret"
    assert open_session(OUT, "http://[::1]:9", None, environ).api_key == "secret"
    for elsewhere in ("https://example.org", "http://10.0.0.7:8700", "http://127.0.0.1.example.org"):
        assert open_session(OUT, elsewhere, None, environ).api_key is None
    given_key = open_session(OUT, "https://example.org", None, {**environ, "HEADRACE_API_KEY": "mine"})
    assert given_key.api_key == "mine"


def test_the_address_of_the_running_platform_is_found(tmp_path: Path) -> None:
    (tmp_path / "up.json").write_text(json.dumps({"pid": 1, "url": "http://127.0.0.1:8799"}))
    assert open_session(OUT, None, str(tmp_path), {}).url == "http://127.0.0.1:8799"
    assert (
        open_session(OUT, None, str(tmp_path), {"HEADRACE_URL": "http://127.0.0.1:1/"}).url
        == "http://127.0.0.1:1"
    )
    assert (
        open_session(OUT, "http://[::1]:2", str(tmp_path), {"HEADRACE_URL": "http://x:1"}).url
        == "http://[::1]:2"
    )
    (tmp_path / "up.json").write_text("{broken")
    assert read_up(tmp_path) is None
    assert open_session(OUT, None, str(tmp_path), {}).url == "http://127.0.0.1:8700"


def test_a_key_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    (tmp_path / "admin.key").mkdir()
    with pytest.raises(SetupError, match="HEADRACE_API_KEY"):
        open_session(OUT, None, str(tmp_path), {})


def test_status_says_whether_the_job_store_answers() -> None:
    found = {"hosts": 1, "store": {"kind": "postgresql", "reachable": False, "reason": "nobody is there"}}
    assert "store  postgresql, not reachable: nobody is there" in status_text("http://here", found)
    found["store"] = {"kind": "sqlite", "reachable": True, "reason": ""}
    assert "store  sqlite, reachable" in status_text("http://here", found)
    assert "store" not in status_text("http://here", {"hosts": 1})


def test_addresses_that_are_not_ours_are_not_loopback() -> None:
    assert not is_loopback("http://localhost.example.org")
    assert not is_loopback("http://0.0.0.0:8700")
    assert is_loopback("http://127.8.8.8")


def test_a_receipt_is_read_in_order() -> None:
    steps = receipt.parse(
        'queued;dur=1.25, claimed;dur=3;desc="on host a, b", forked;dur=0.5, note;desc=x, bad;dur=q'
    )
    assert [(s.name, s.ms, s.detail) for s in steps] == [
        ("queued", 1.25, ""),
        ("claimed", 3.0, "on host a, b"),
        ("forked", 0.5, ""),
        ("note", None, "x"),
        ("bad", None, ""),
    ]
    shown = receipt.show(steps).splitlines()
    assert len(shown) == 5
    assert "1.2 ms" in shown[0] or "1.3 ms" in shown[0]
    assert receipt.show([]) == ""


@given(st.text(max_size=200))
def test_no_header_breaks_the_receipt(header: str) -> None:
    receipt.show(receipt.parse(header))


@pytest.mark.parametrize(
    ("reason", "shown"),
    [
        (None, "-"),
        ("waits for room", "waits for room"),
        ("its image failed: " + "x" * 80, "its image failed"),
        ("two\nlines", "two"),
        ("y" * 80, "y" * 57 + "..."),
    ],
)
def test_a_reason_in_a_table_is_one_short_line(reason: str | None, shown: str) -> None:
    assert brief(reason) == shown


@given(st.lists(st.tuples(st.text(max_size=9), st.integers(), st.none()), max_size=5))
def test_a_table_has_a_line_per_row(rows: list[tuple[str, int, None]]) -> None:
    rows = [(text.replace("\n", " ").replace("\r", " "), number, nothing) for text, number, nothing in rows]
    shown = table(("A", "B", "C"), rows, "none")
    assert len(shown.split("\n")) == (len(rows) + 1 if rows else 1)
    assert all(text.strip() in shown for text, _, _ in rows)


def test_values_for_people() -> None:
    assert [size(n) for n in (None, 0, 1023, 1024, 3 << 20, 5 << 40)] == [
        "-", "0 B", "1023 B", "1.0 KiB", "3.0 MiB", "5.0 TiB",
    ]  # fmt: skip
    assert duration(0.0123) == "12.3 ms"
    assert duration(1.5) == "1.50 s"
    assert moment(None) == "-"
    assert moment(1_700_000_000).startswith("2023-11-1")
    assert facts({"a": 1, "bb": None, "ccc": "x"}) == "a    1\nccc  x"


def test_input_comes_as_json_file_or_bytes(tmp_path: Path) -> None:
    file = tmp_path / "in.json"
    file.write_bytes(b'{"x": 1}')
    assert read_input('{"x": 1}', None, None) == (b'{"x": 1}', "application/json")
    assert read_input(f"@{file}", None, None) == (b'{"x": 1}', "application/json")
    assert read_input(None, file, None) == (b'{"x": 1}', "application/octet-stream")
    assert read_input(None, file, "image/png") == (b'{"x": 1}', "image/png")
    assert read_input(None, None, None) == (b"", None)
    assert read_input("plain words", None, "text/plain") == (b"plain words", "text/plain")
    with pytest.raises(click.UsageError, match="not JSON"):
        read_input("plain words", None, None)


def test_parameters_by_name_become_an_object() -> None:
    assert joined([]) is None
    assert joined(['{"a": 1}']) == '{"a": 1}'
    assert json.loads(joined(["name=Ada", "n=3", "on=true", "path=a=b", "empty="]) or "") == {
        "name": "Ada",
        "n": 3,
        "on": True,
        "path": "a=b",
        "empty": "",
    }
    with pytest.raises(click.UsageError, match="NAME=VALUE"):
        joined(["a", "b=1"])


def test_the_gateways_receipt_in_words() -> None:
    header = (
        'queue;dur=5.00, tier;desc="forked", claim;dur=1.00, boot;dur=2.00, load;dur=0.50, total;dur=9.00'
    )
    assert [(s.name, s.ms) for s in receipt.in_words(receipt.parse(header))] == [
        ("queued", 5.0),
        ("claimed", 1.0),
        ("forked", 2.0),
        ("loaded", 0.5),
        ("first byte", 9.0),
    ]


def _session(tmp_path: Path, as_json: bool = False) -> Session:
    return Session(Output(as_json), "http://127.0.0.1:8700", None, tmp_path)


def test_a_failed_deployment_shows_the_traceback_and_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    deployment = {
        "id": "d1",
        "state": "failed",
        "endpoints": [
            {"endpoint": "good", "version": 2, "state": "ready", "notes": ["loaded after\n the fork"]},
            {
                "endpoint": "bad",
                "version": 1,
                "state": "failed",
                "detail": "import failed",
                "traceback": "Traceback: x\n",
            },
        ],
    }
    assert report(_session(tmp_path), deployment) == 1
    shown = capsys.readouterr()
    assert "good version 2 ready: http://127.0.0.1:8700/e/good" in shown.out
    assert "note: loaded after the fork" in shown.out
    assert shown.err == "Traceback: x\nheadrace: bad failed: import failed\n"
    assert report(_session(tmp_path, as_json=True), deployment) == 1
    shown = capsys.readouterr()
    assert json.loads(shown.out) == deployment
    assert shown.err == ""
    assert report(_session(tmp_path), {**deployment, "state": "succeeded"}) == 0


def test_describe_shows_what_there_is_and_stands_what_there_is_not() -> None:
    assert "no instances" in describe({"name": "echo"})
    full = describe(
        {
            "name": "echo",
            "state": "ready",
            "waiting": "no host has room",
            "spec": {"scaling": {"min": 0, "max": 4}, "entry": "app:echo"},
            "instances": [{"id": "i-1", "state": "ready", "tier": "forked"}],
            "versions": [{"version": 1, "created_at": 1_700_000_000, "bundle": "abcdef0123456789"}],
            "decisions": [{"at": 1_700_000_000, "action": "start", "reason": "1 queued"}],
        }
    )
    for expected in ("no host has room", "min 0, max 4", "i-1", "forked", "abcdef012345", "1 queued"):
        assert expected in full


def test_describe_shows_the_newest_decisions_and_the_bounds_that_hold() -> None:
    shown = describe(
        {
            "name": "echo",
            "spec": {"scaling": {"min": 0, "max": 10}},
            "scale": {"min": 2, "max": 3},
            "decisions": [{"at": 100 - n, "action": "start", "reason": f"reason-{n}"} for n in range(20)],
        }
    )
    assert "min 2, max 3" in shown
    assert "reason-0" in shown
    assert "reason-19" not in shown


def test_log_lines_mark_stderr() -> None:
    assert line(
        {"at": 1_700_000_000.5, "instance": "i-123456789", "stream": "stderr", "text": "oh"}
    ).endswith(".500 i-123456 ! oh")
    assert line({"text": "x"}).endswith("x")


@pytest.mark.parametrize(
    ("event", "said"),
    [
        ({"kind": "starting"}, []),
        (
            {"kind": "ready", "url": "http://a", "seconds": 1.23},
            ["ready at http://a (1.2 s); Ctrl-C stops it"],
        ),
        ({"kind": "deployed", "url": "http://a", "endpoints": ("x",)}, ["serving x at http://a/e/x"]),
        ({"kind": "failed", "detail": "no", "traceback": "a\nb\n"}, ["a", "b", "headrace: no"]),
        ({"kind": "changed", "detail": "app.py"}, ["changed: app.py"]),
        ({"kind": "removed", "endpoints": ("x", "y")}, ["removed x, y"]),
        ({"kind": "unchanged"}, ["nothing changed that is deployed"]),
    ],
)
def test_dev_events_in_words(event: dict[str, Any], said: list[str]) -> None:
    blank = {"detail": "", "traceback": "", "url": "", "endpoints": (), "notes": (), "seconds": 0.0}
    assert words(SimpleNamespace(**blank | event)) == said  # type: ignore[arg-type]


def test_doctor_finds_open_key_files_and_taken_ports(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    (tmp_path / "admin.key").write_text("k")
    (tmp_path / "admin.key").chmod(0o644)
    (tmp_path / "cluster.token").write_text("k")
    (tmp_path / "cluster.token").chmod(0o600)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen(1)
        port = taken.getsockname()[1]
        settings = load_settings({"data_dir": str(tmp_path), "port": port}, environ={})
        found = [*doctor.check_data_dir(settings), *doctor.check_ports(settings)]
    problems = {f.todo for f in found if f.level == "problem" and f.check != "disk"}
    assert f"chmod 700 {tmp_path}" in problems
    assert f"chmod 600 {tmp_path / 'admin.key'}" in problems
    assert "Choose another with --port." in problems
    assert not any("cluster.token" in f.todo for f in found)


def test_doctor_knows_its_own_platform(tmp_path: Path) -> None:
    (tmp_path / "up.json").write_text(json.dumps({"pid": os.getpid(), "url": "http://127.0.0.1:1"}))
    settings = load_settings({"data_dir": str(tmp_path)}, environ={})
    (finding,) = doctor.check_ports(settings)
    assert finding.level == "ok"


def test_a_check_that_breaks_does_not_end_the_others(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(_settings: object) -> list[doctor.Finding]:
        raise OSError("no such thing")

    def fine(_settings: object) -> list[doctor.Finding]:
        return [doctor.Finding("fine", "ok", "yes")]

    monkeypatch.setattr(doctor, "CHECKS", {"broken": broken, "fine": fine})
    code = doctor.doctor_command.main(
        ["--data-dir", str(tmp_path), "--json"], prog_name="doctor", standalone_mode=False
    )
    document = json.loads(capsys.readouterr().out)
    assert [f["level"] for f in document["findings"]] == ["note", "ok"]
    assert (code, document["problems"]) == (0, 0)


def test_a_receipt_reads_as_steps() -> None:
    receipt = {
        "queued_ms": 12.5,
        "tier": "warm",
        "handler_ms": 1500.0,
        "attempts": [{"instance": "i1", "ran_ms": 2.0, "outcome": "lost"}],
        "status": 200,
        "streamed": False,
        "headers": [["Content-Type", "text/plain"]],
    }
    assert jobs._receipt(receipt) == [
        "  queued 12.5 ms",
        "  tier warm",
        "  handler 1.50 s",
        "  on i1 2.0 ms: lost",
        "  status 200",
    ]
