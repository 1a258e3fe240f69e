"""A paused instance that somebody kills is gone at once, not when it is called again."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path
from typing import Any, cast

import headrace
import pytest
from headrace_runtimes.base import Runtime
from headrace_runtimes.conformance_bench import Harness, call, opened
from headrace_runtimes.containers.frame import killed
from headrace_runtimes.docker import DockerRuntime
from headrace_runtimes.oci import OciRuntime
from headrace_runtimes.oci.network import LoopbackOnly
from headrace_runtimes.spec import RuntimeSettings

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="containers need root")
ENGINE = Path(headrace.__file__).parent / "engines" / "python"


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.parametrize("name", ["oci", "docker"])
async def test_a_paused_one_that_is_killed(
    directory: Path, name: str, request: pytest.FixtureRequest
) -> None:
    def make() -> Runtime:
        if name == "oci":
            return OciRuntime(networks=LoopbackOnly())
        return DockerRuntime(request.getfixturevalue("docker_daemon"), LoopbackOnly())

    settings = RuntimeSettings(
        run_dir=directory / "o", engine_dir=ENGINE, python=sys.executable, zygote_bytes=1 << 30,
        log_dir=directory / "logs",
    )  # fmt: skip
    async with opened(Harness(make, settings, directory / "code")) as bench:
        for whom in ("the first process", "the engine"):
            sandbox = await bench.start()
            first = cast("Any", sandbox)._frame.container.pid
            assert not killed(first)
            await sandbox.pause()
            os.kill(first if whom == "the first process" else children(first)[0], signal.SIGKILL)
            exit = await asyncio.wait_for(sandbox.exited, 30)
            assert exit.reason == "signalled", whom
        # Nobody else is disturbed.
        sandbox = await bench.start()
        await sandbox.pause()
        await asyncio.sleep(1.5)
        assert sandbox.state == "paused"
        await sandbox.resume()
        assert (await call(sandbox, {}))[0] == 200
        await sandbox.pause()
        assert (await sandbox.stop(1.0)).reason == "stopped"
