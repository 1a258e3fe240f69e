"""Limits and use of a container's cgroup, on plain files laid out as the kernel's are."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from headrace_runtimes.oci.cgroup import Cgroup, disk_of, inner_path


@pytest.fixture
def unified(tmp_path: Path) -> Path:
    (tmp_path / "cgroup.controllers").write_text("cpu io memory pids")
    (tmp_path / "a/b").mkdir(parents=True)
    return tmp_path


@pytest.fixture
def split(tmp_path: Path) -> Path:
    for name in ("cpu,cpuacct", "memory", "pids", "freezer", "blkio", "unified"):
        (tmp_path / name / "a/b").mkdir(parents=True)
    for name in ("cpu", "cpuacct"):
        (tmp_path / name).symlink_to("cpu,cpuacct")
    return tmp_path


def test_limits_on_version_2(unified: Path) -> None:
    cgroup = Cgroup("/a/b", unified)
    cgroup.limit_memory(512 << 20)
    cgroup.limit_cpu(1.5)
    cgroup.limit_pids(64)
    cgroup.limit_io(1 << 20, ["8:0"])
    cgroup.freeze(True)
    assert {p.name: p.read_text() for p in (unified / "a/b").iterdir()} == {
        "memory.max": str(512 << 20), "memory.swap.max": "0", "memory.oom.group": "1",
        "cpu.max": "150000 100000", "pids.max": "64", "io.max": "8:0 rbps=1048576 wbps=1048576",
        "cgroup.freeze": "1",
    }  # fmt: skip
    assert cgroup.directories() == [unified / "a/b"]


def test_limits_on_version_1_and_hybrid(split: Path) -> None:
    cgroup = Cgroup("/a/b", split)
    cgroup.limit_memory(512 << 20)
    cgroup.limit_cpu(0.5)
    cgroup.limit_pids(64)
    cgroup.limit_io(1 << 20, ["8:0"])
    cgroup.freeze(True)
    cgroup.freeze(False)
    found = {
        str(p.relative_to(split).parts[0]) + "/" + p.name: p.read_text()
        for p in split.rglob("a/b/*")
        if p.relative_to(split).parts[0] not in {"cpu", "cpuacct"}
    }
    assert found == {
        "memory/memory.limit_in_bytes": str(512 << 20), "memory/memory.memsw.limit_in_bytes": str(512 << 20),
        "memory/memory.kmem.tcp.limit_in_bytes": str(64 << 20),
        "cpu,cpuacct/cpu.cfs_period_us": "100000", "cpu,cpuacct/cpu.cfs_quota_us": "50000",
        "pids/pids.max": "64", "blkio/blkio.throttle.read_bps_device": "8:0 1048576",
        "blkio/blkio.throttle.write_bps_device": "8:0 1048576", "freezer/freezer.state": "THAWED",
    }  # fmt: skip
    assert len(cgroup.directories()) == 6, "links to a hierarchy are no hierarchies"


def test_use_and_death_on_version_2(unified: Path) -> None:
    at = unified / "a/b"
    cgroup = Cgroup("/a/b", unified)
    assert cgroup.use() is None
    (at / "memory.current").write_text("1000")
    (at / "memory.stat").write_text("anon 5\ninactive_file 300\n")
    (at / "cpu.stat").write_text("usage_usec 2500000\nuser_usec 1\n")
    (at / "io.stat").write_text("8:0 rbytes=10 wbytes=20 rios=1 wios=1\n7:1 rbytes=1 wbytes=2\n")
    (at / "pids.current").write_text("3\n")
    (at / "memory.events").write_text("low 0\noom 1\noom_kill 0\n")
    used = cgroup.use()
    assert used is not None
    assert (used.rss, used.cpu_s, used.io_bytes, used.processes) == (700, 2.5, 33, 3)
    assert not cgroup.oom_killed()
    (at / "memory.events").write_text("oom_kill 2\n")
    assert cgroup.oom_killed()
    (at / "cgroup.events").write_text("populated 1\nfrozen 1\n")
    assert cgroup.frozen()
    (at / "cgroup.procs").write_text("12\n13\n")
    assert cgroup.pids() == [12, 13]


def test_use_on_version_1(split: Path) -> None:
    for name, text in {
        "memory/a/b/memory.usage_in_bytes": "1000", "memory/a/b/memory.stat": "total_inactive_file 100\n",
        "cpuacct/a/b/cpuacct.usage": "3000000000",
        "blkio/a/b/blkio.throttle.io_service_bytes": "8:0 Read 10\n8:0 Write 5\n8:0 Total 15\nTotal 15\n",
        "memory/a/b/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 1\n",
        "freezer/a/b/freezer.state": "FREEZING\n",
    }.items():  # fmt: skip
        (split / name).write_text(text)
    cgroup = Cgroup("/a/b", split)
    used = cgroup.use()
    assert used is not None
    assert (used.rss, used.cpu_s, used.io_bytes) == (900, 3.0, 15)
    assert cgroup.oom_killed()
    assert not cgroup.frozen()


def test_the_name_of_a_delegated_directory(unified: Path) -> None:
    assert inner_path(None, unified) == ""
    assert inner_path(unified / "system.slice/us", unified) == "/system.slice/us"


def test_the_name_of_a_delegated_directory_on_version_1(split: Path) -> None:
    assert inner_path(split / "memory" / "us", split) == "/us"
    assert inner_path(Path("/elsewhere"), split) == ""


def test_the_disk_under_a_partition(tmp_path: Path) -> None:
    disk, links = tmp_path / "devices/sda", tmp_path / "block"
    (disk / "sda1").mkdir(parents=True)
    links.mkdir()
    (disk / "dev").write_text("8:0\n")
    (disk / "sda1" / "dev").write_text("8:1\n")
    (disk / "sda1" / "partition").write_text("1\n")
    (links / "8:0").symlink_to(disk)
    (links / "8:1").symlink_to(disk / "sda1")
    assert disk_of(os.makedev(8, 1), links) == "8:0"
    assert disk_of(os.makedev(8, 0), links) == "8:0"
    assert disk_of(os.makedev(0, 40), links) == "", "a file system on no disk"
