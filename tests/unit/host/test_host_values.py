"""The host's pure parts: resources, base keys, backoff."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from headrace import wire
from headrace.host.agent import directory_of
from headrace.host.link import LAST_BACKOFF_S, next_backoff
from headrace.host.pool import base_key
from headrace.host.resources import cgroup_cores, cgroup_memory, detect
from headrace_runtimes.devices.machine import find
from headrace_runtimes.process.pool import PLAIN
from hypothesis import given
from hypothesis import strategies as st

ROOT = Path("/")


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({"sys/fs/cgroup/cpu.max": "max 100000"}, None),
        ({"sys/fs/cgroup/cpu.max": "150000 100000"}, 1.5),
        ({"proc/self/cgroup": "0::/a/b", "sys/fs/cgroup/a/cpu.max": "50000 100000"}, 0.5),
        (
            {
                "proc/self/cgroup": "2:cpuacct,cpu:/x\n0::/",
                "sys/fs/cgroup/cpu/x/cpu.cfs_quota_us": "200000",
                "sys/fs/cgroup/cpu/x/cpu.cfs_period_us": "100000",
            },
            2.0,
        ),
        ({"proc/self/cgroup": "2:cpu:/", "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1"}, None),
        ({}, None),
    ],
)
def test_cores(files: dict[str, str], cores: float | None) -> None:
    assert cgroup_cores(lambda path: files.get(str(path.relative_to(ROOT)))) == cores


@pytest.mark.parametrize(
    ("files", "memory"),
    [
        ({"sys/fs/cgroup/memory.max": "max"}, None),
        ({"sys/fs/cgroup/memory.max": "1073741824"}, 1 << 30),
        (
            {
                "proc/self/cgroup": "4:memory:/p/q\n0::/",
                "sys/fs/cgroup/memory/p/q/memory.limit_in_bytes": "536870912",
                "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712",
            },
            1 << 29,
        ),
        ({}, None),
    ],
)
def test_memory(files: dict[str, str], memory: int | None) -> None:
    assert cgroup_memory(lambda path: files.get(str(path.relative_to(ROOT)))) == memory


def test_this_machine() -> None:
    found = detect()
    assert found.cpu > 0
    assert found.memory > 1 << 26
    assert found.gpu == find(Path("/")).count()


@pytest.mark.skipif(os.geteuid() != 0, reason="device nodes are made by root")
def test_accelerators_are_found(tmp_path: Path) -> None:
    (tmp_path / "dev").mkdir()
    for name in ("davinci0", "davinci1", "gcu0"):
        os.mknod(tmp_path / "dev" / name, stat.S_IFCHR | 0o600, os.makedev(236, 0))
    found = detect(tmp_path)
    assert found.gpu == {"Ascend": 2, "GCU": 1}
    assert found.cpu > 0


def test_equal_bases_have_equal_keys() -> None:
    assert base_key(wire.BaseSpec()) == base_key(wire.BaseSpec(project="default", imports=()))
    assert base_key(wire.BaseSpec()) != base_key(wire.BaseSpec(imports=("numpy",)))
    assert base_key(wire.BaseSpec(imports=("a",))) != base_key(wire.BaseSpec(preload=("a",)))
    # The one that runtimes hold by themselves must not be made twice.
    assert base_key(wire.BaseSpec()) == PLAIN.key
    assert base_key(wire.BaseSpec(project="other")) != PLAIN.key


@given(current=st.floats(0.001, 1.0), dice=st.floats(0, 1))
def test_backoff_is_bounded(current: float, dice: float) -> None:
    wait, after = next_backoff(current, dice)
    assert current / 2 <= wait <= current
    assert current <= after <= LAST_BACKOFF_S


def test_runtimes_from_outside_share_no_directory_with_ours_or_with_each_other() -> None:
    names = ("process", "oci", "docker", "podman", "oneapi", "wasm", "worker", "w", "bundles")
    found = {directory_of(name) for name in names}
    assert len(found) == len(names)
    assert not found & {"w", "bundles"}, "the host has files there"
