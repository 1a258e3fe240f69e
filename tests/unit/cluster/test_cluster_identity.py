"""A pid alone never names a process: the sweep must not end somebody else's."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import msgspec
import psutil
import pytest
from headrace.cluster.identity import UP_FILE, identify, new_record, read_record, write_record
from headrace.cluster.sweep import clear, end_leftovers, leftovers, ray_temp_dir
from headrace.config import load_settings


@pytest.fixture
def sleeper():
    """A process that holds nothing of ours."""
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    yield process
    process.kill()
    process.wait()


def holder(path: Path) -> subprocess.Popen[bytes]:
    """A process that keeps ``path`` open and says when it does."""
    code = f"import sys, time; f = open({str(path)!r}, 'w'); print('open', flush=True); time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"open\n"
    process.stdout.close()
    return process


def test_a_recycled_pid_is_another_process(sleeper):
    identity = identify("x", sleeper.pid)
    assert identity.process() == psutil.Process(sleeper.pid)
    pid, start, boot = identity.mark.split()
    for other in (f"{pid} {int(start) - 1} {boot}", f"{pid} {start} {boot[::-1]}", ""):
        assert msgspec.structs.replace(identity, mark=other).process() is None


def test_a_step_of_the_wall_clock_makes_nobody_another_process(sleeper, monkeypatch):
    """What psutil calls the creation time moves with the clock: /proc/stat's btime does."""
    identity = identify("x", sleeper.pid)
    created, later = psutil.Process(sleeper.pid).create_time(), psutil.boot_time() + 2
    monkeypatch.setattr(psutil._psplatform, "boot_time", lambda: later)
    assert psutil.Process(sleeper.pid).create_time() != created, "the test steps the clock"
    assert identity.process() is not None


def test_an_ended_process_has_no_identity(sleeper):
    identity = identify("x", sleeper.pid)
    sleeper.kill()
    sleeper.wait()
    assert identity.process() is None
    assert identify("x", sleeper.pid).process() is None


def test_the_sweep_ends_the_known_and_who_holds_our_files(tmp_path, sleeper):
    run = tmp_path / "run"
    ray_temp_dir(run).mkdir(parents=True)
    by_file = holder(ray_temp_dir(run) / "raylet.log")
    stranger = holder(tmp_path / "run-of-another")
    try:
        known = [identify("x", sleeper.pid)]
        assert {p.pid for p in leftovers(run, known)} == {sleeper.pid, by_file.pid}
        assert {p.pid for p in leftovers(ray_temp_dir(run))} == {by_file.pid}
        assert leftovers(run, known, spare=[sleeper.pid, by_file.pid]) == []
        assert end_leftovers(run, known) == 2
        assert by_file.wait() == -9
        assert stranger.poll() is None
    finally:
        for process in (by_file, stranger):
            process.kill()
            process.wait()


def test_the_sweep_spares_itself_and_its_ancestors(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    with (run / "mine").open("w"):
        assert leftovers(run, [identify("me", os.getpid()), identify("parent", os.getppid())]) == []


def test_clear_empties_but_does_not_follow(tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_text("x")
    run = tmp_path / "run"
    (run / "hosts" / "head").mkdir(parents=True)
    (run / "hosts" / "head" / "http.sock").write_text("x")
    (run / "link").symlink_to(outside)
    clear(run)
    assert list(run.iterdir()) == []
    assert (outside / "kept").exists()
    clear(tmp_path / "missing")


def test_the_record_is_private_and_survives_a_round(tmp_path):
    settings = load_settings({"data_dir": str(tmp_path), "host": "0.0.0.0", "port": 8123})
    record = new_record(settings, "1")
    write_record(record)
    assert (tmp_path / UP_FILE).stat().st_mode & 0o777 == 0o600
    assert read_record(tmp_path) == record
    assert record.url == "http://127.0.0.1:8123"
    assert record.supervisor.process() == psutil.Process()
    assert [p.name for p in tmp_path.iterdir()] == [UP_FILE]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"pid": "x"}'])
def test_a_damaged_record_is_none(tmp_path, text):
    (tmp_path / UP_FILE).write_text(text)
    assert read_record(tmp_path) is None


async def test_down_says_that_nothing_runs(tmp_path):
    from headrace.cluster import supervisor  # noqa: PLC0415
    from headrace.errors import NotRunning  # noqa: PLC0415

    settings = load_settings({"data_dir": str(tmp_path / "d"), "run_dir": str(tmp_path / "r")})
    with pytest.raises(NotRunning, match="headrace up"):
        await supervisor.down(settings)
    assert supervisor.status(settings) is None
    assert supervisor.doctor_ports(settings) == []
    await asyncio.sleep(0)
