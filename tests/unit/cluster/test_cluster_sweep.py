"""What a killed host left in the run directory goes; a living host's stays."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys

import pytest
from headrace.cluster import sweep
from headrace.cluster.sweep import clear, sweep_node
from headrace_runtimes.instance import leftovers, procs
from headrace_runtimes.instance.leftovers import RunDir


def left_by_a_host(run, node):
    """The run directory of a process runtime with a sandbox; its lock is held until `unlock`."""
    base = run / "hosts" / node
    (base / "bundles" / "abc").mkdir(parents=True)
    runtime = RunDir(base / "p")
    runtime.open()
    (runtime.sandboxes / "i1" / "tmp").mkdir(parents=True)
    (runtime.sandboxes / "i1" / "tmp" / "file").write_text("x")
    return base, runtime


def test_a_dead_hosts_directory_its_cgroups_and_processes_go(tmp_path):
    base, runtime = left_by_a_host(tmp_path, "n-1")
    # A directory stands for a cgroup: it can be removed when nothing is in it.
    group = tmp_path / "cgroup" / "headrace" / "x"
    (group / "plain-1").mkdir(parents=True)
    runtime.note_cgroup(group)
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        runtime.record(process.pid)
        runtime.unlock()
        assert sweep_node(tmp_path, "n-1")
        assert process.wait(10) == -9
    finally:
        process.kill()
        process.wait()
    assert not base.exists()
    assert not (tmp_path / "cgroup" / "headrace").exists()
    assert procs.identity(process.pid) is None


def test_a_living_hosts_directory_stays(tmp_path):
    base, runtime = left_by_a_host(tmp_path, "n-1")
    assert not sweep_node(tmp_path, "n-1")
    assert (base / "p" / "s" / "i1" / "tmp" / "file").exists()
    runtime.unlock()
    assert sweep_node(tmp_path, "n-1")
    assert not base.exists()
    assert sweep_node(tmp_path, "n-never")


def test_the_next_start_removes_the_cgroups_of_all_hosts(tmp_path):
    for node in ("head", "n-1"):
        _, runtime = left_by_a_host(tmp_path / "run", node)
        group = tmp_path / "cgroup" / "headrace" / node
        (group / "plain-1").mkdir(parents=True)
        runtime.note_cgroup(group)
        runtime.unlock()
    clear(tmp_path / "run")
    assert list((tmp_path / "run").iterdir()) == []
    assert not (tmp_path / "cgroup" / "headrace").exists()


def test_what_a_killed_dev_left_goes(tmp_path, monkeypatch):
    monkeypatch.setattr(sweep, "default_run_dir", lambda data: tmp_path / f"run-{data.name}")
    for name in ("headrace-dev-dead", "headrace-dev-lives", "headrace-dev-starts", "mine"):
        (tmp_path / name / "logs").mkdir(parents=True)
        (tmp_path / f"run-{name}" / "hosts" / "h").mkdir(parents=True)
        if name != "headrace-dev-starts":
            (tmp_path / name / "lock").write_text("1")
    (tmp_path / "headrace-dev-link").symlink_to(tmp_path / "mine")
    with (tmp_path / "headrace-dev-lives" / "lock").open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert sweep.sweep_dev(tmp_path) == [tmp_path / "headrace-dev-dead"]
    left = sorted(p.name for p in tmp_path.iterdir())
    kept = ["headrace-dev-lives", "headrace-dev-starts", "mine"]
    assert left == sorted([*kept, *(f"run-{name}" for name in kept), "headrace-dev-link"])
    assert sweep.sweep_dev(tmp_path) == [tmp_path / "headrace-dev-lives"]


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_files_that_are_mounted_below_are_not_removed(tmp_path, monkeypatch):
    monkeypatch.setattr(leftovers, "UNMOUNT_WAIT_S", 0.1)
    shown = tmp_path / "image"
    shown.mkdir()
    (shown / "file").write_text("of an image")
    runtime = tmp_path / "hosts" / "n-1" / "o"
    place = runtime / "c" / "one" / "lower"
    place.mkdir(parents=True)
    (runtime / "lock").touch()
    subprocess.run(["mount", "--bind", shown, place], check=True)
    assert sweep_node(tmp_path, "n-1")
    assert not runtime.exists()
    assert (shown / "file").read_text() == "of an image"
