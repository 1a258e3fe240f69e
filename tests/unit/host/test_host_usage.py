"""What instances use, from made-up looks; what accelerators use, from made-up output of the driver's tool."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from headrace import wire
from headrace.host.gpus import READ_PERIOD_S, GpuUse, NvidiaSmi, find_reader, parse_smi
from headrace.host.usage import use_of
from headrace_runtimes.spec import Stats

SMI = """0, 37, 1024
1, 0, 3
2, [N/A], [N/A]
3, 100, 81559
garbage
5, 12
6, 101, 5
7, -1, 5
"""


def test_the_first_look_knows_no_rate() -> None:
    assert use_of(Stats(1000, 5.0), None, 10.0, []) == wire.InstanceUse(at=10.0, cpu_s=5.0, memory=1000)


def test_the_rate_is_of_the_time_between_two_looks() -> None:
    before = wire.InstanceUse(at=10.0, cpu_s=5.0)
    found = use_of(Stats(1, 8.0, io_bytes=77), before, 12.0, [])
    assert (found.cpu, found.io_bytes) == (1.5, 77)
    # A clock that was set back, a counter that began again: no rate, never a negative one.
    assert use_of(Stats(1, 8.0), before, 10.0, []).cpu == 0.0
    assert use_of(Stats(1, 1.0), before, 12.0, []).cpu == 0.0


def test_accelerators_are_added_and_those_that_nobody_knows_left_out() -> None:
    found = use_of(Stats(1, 0.0), None, 1.0, [GpuUse(0.5, 10), None, GpuUse(1.0, 20)])
    assert (found.gpu, found.gpu_memory) == (1.5, 30)
    none = use_of(Stats(1, 0.0), None, 1.0, [None])
    assert (none.gpu, none.gpu_memory) == (None, None)


def test_the_tools_lines() -> None:
    assert parse_smi(SMI) == {
        0: GpuUse(0.37, 1024 << 20),
        1: GpuUse(0.0, 3 << 20),
        3: GpuUse(1.0, 81559 << 20),
    }
    assert parse_smi("") == {}


def script(path: Path, text: str) -> str:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


async def test_the_tool_is_run_seldom(tmp_path: Path) -> None:
    now = [100.0]
    runs = tmp_path / "runs"
    tool = script(tmp_path / "smi", f"echo x >> {runs}; echo '0, 50, 2'")
    reader = NvidiaSmi(tool, lambda: now[0])
    for _ in range(3):
        assert await reader.read() == {0: GpuUse(0.5, 2 << 20)}
    assert runs.read_text() == "x\n"
    now[0] += READ_PERIOD_S
    await reader.read()
    assert runs.read_text() == "x\nx\n"


@pytest.mark.parametrize("text", ["exit 9", "echo '0, 50, 2'; exit 1", "echo no driver"])
async def test_a_tool_that_fails_tells_nothing(tmp_path: Path, text: str) -> None:
    assert await NvidiaSmi(script(tmp_path / "smi", text), lambda: 1.0).read() == {}


async def test_no_tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_reader(lambda: 0.0) is None
    assert await NvidiaSmi(str(tmp_path / "none"), lambda: 1.0).read() == {}
