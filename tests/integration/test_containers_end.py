"""When a container is told to have ended, nobody runs in it: its accelerator has a new owner then."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import headrace
import pytest
from headrace_runtimes.base import Runtime, Sandbox
from headrace_runtimes.conformance_bench import Harness, call, opened, until
from headrace_runtimes.containers.frame import ContainerFrame
from headrace_runtimes.docker import DockerRuntime
from headrace_runtimes.instance.sandbox import EngineSandbox
from headrace_runtimes.oci import OciRuntime
from headrace_runtimes.spec import Base, RuntimeSettings

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="containers need root")
CODE = """
import os, signal, time

def leave_some(count=3):
    for number in range(count):
        if os.fork() == 0:
            os.setsid()
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            # A grandchild, too: its parent is another.
            os.fork()
            time.sleep(600)
            os._exit(0)
    return os.getpid()
"""


@pytest.fixture(params=["oci", "docker"])
def make(request: pytest.FixtureRequest, docker_daemon: str) -> Callable[[], Runtime]:
    return OciRuntime if request.param == "oci" else lambda: DockerRuntime(docker_daemon)


def others(sandbox: Sandbox) -> set[int]:
    """The host's ids of its processes but the first."""
    assert isinstance(sandbox, EngineSandbox)
    assert isinstance(sandbox._frame, ContainerFrame)
    container = sandbox._frame.container
    return {*container.cgroup.pids()} - {container.pid}  # type: ignore[attr-defined]


async def test_what_an_instance_leaves_is_dead_when_its_end_is_told(
    make: Callable[[], Runtime], directory: Path
) -> None:
    settings = RuntimeSettings(
        run_dir=directory / "r", engine_dir=Path(headrace.__file__).parent / "engines" / "python",
        python=sys.executable, zygote_bytes=1 << 30, log_dir=directory / "logs",
    )  # fmt: skip
    async with opened(Harness(make, settings, directory / "code")) as bench:
        (directory / "code" / "left.py").write_text(CODE)
        assignment = replace(bench.assignment(), entry="left:leave_some")
        sandbox = await bench.runtime.claim(Base(key="end"), assignment)
        assert (await call(sandbox, {"count": 3}))[0] == 200
        await until(lambda: len(others(sandbox)) == 7, "its processes")
        seen: list[set[int]] = []
        sandbox.exited.add_done_callback(lambda _: seen.append(others(sandbox)))
        exit = await sandbox.stop(5.0)
        assert (exit.reason, seen) == ("stopped", [set()])
