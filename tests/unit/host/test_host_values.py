"""The host's pure parts: resources, base keys, backoff."""

from __future__ import annotations

from pathlib import Path

import pytest
from headrace import wire
from headrace.host.link import LAST_BACKOFF_S, next_backoff
from headrace.host.pool import base_key
from headrace.host.resources import cgroup_cores, cgroup_memory, detect
from hypothesis import given
from hypothesis import strategies as st

ROOT = Path("/sys/fs/cgroup")


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({"cpu.max": "max 100000"}, None),
        ({"cpu.max": "150000 100000"}, 1.5),
        ({"cpu/cpu.cfs_quota_us": "200000", "cpu/cpu.cfs_period_us": "100000"}, 2.0),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
        ({}, None),
    ],
)
def test_cores(files: dict[str, str], cores: float | None) -> None:
    assert cgroup_cores(lambda path: files.get(str(path.relative_to(ROOT)))) == cores


@pytest.mark.parametrize(
    ("files", "memory"),
    [
        ({"memory.max": "max"}, None),
        ({"memory.max": "1073741824"}, 1 << 30),
        ({"memory/memory.limit_in_bytes": "536870912"}, 1 << 29),
        ({"memory/memory.limit_in_bytes": "9223372036854771712"}, None),
        ({}, None),
    ],
)
def test_memory(files: dict[str, str], memory: int | None) -> None:
    assert cgroup_memory(lambda path: files.get(str(path.relative_to(ROOT)))) == memory


def test_this_machine() -> None:
    found = detect()
    assert found.cpu > 0
    assert found.memory > 1 << 26
    assert found.gpu == {}


def test_equal_bases_have_equal_keys() -> None:
    assert base_key(wire.BaseSpec()) == base_key(wire.BaseSpec(project="default", imports=()))
    assert base_key(wire.BaseSpec()) != base_key(wire.BaseSpec(imports=("numpy",)))
    assert base_key(wire.BaseSpec(imports=("a",))) != base_key(wire.BaseSpec(preload=("a",)))
    # Written down: a key must not change between processes or versions of Python.
    assert base_key(wire.BaseSpec()) == base_key(wire.BaseSpec())
    assert len(base_key(wire.BaseSpec())) == 20


@given(current=st.floats(0.001, 1.0), dice=st.floats(0, 1))
def test_backoff_is_bounded(current: float, dice: float) -> None:
    wait, after = next_backoff(current, dice)
    assert current / 2 <= wait <= current
    assert current <= after <= LAST_BACKOFF_S
