"""A sandbox whose process says its last words and ends in the same moment."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import tempfile
from pathlib import Path

import pytest
from headrace_runtimes.errors import AssignFailed
from headrace_runtimes.instance.census import Census
from headrace_runtimes.instance.child import Child
from headrace_runtimes.instance.logs import LogStore
from headrace_runtimes.instance.memory import MemoryGuard
from headrace_runtimes.instance.sandbox import EngineSandbox
from headrace_runtimes.process.frame import ProcessFrame
from headrace_runtimes.spec import Assignment


async def buried(child: Child) -> None:
    """Nothing is left of a process that never was."""


@pytest.mark.parametrize("said", ["import-failed", "load-failed"])
async def test_a_failure_is_told_though_the_end_is_known_first(tmp_path: Path, said: str) -> None:
    short = tempfile.mkdtemp(prefix="hrk-")  # a socket's path must be short
    child = Child("c-1", None, own_uid=False)
    engine = socket.socket(fileno=os.dup(child.descriptors()[0]))
    assignment = Assignment(
        id="i-1", endpoint="default/x", version=1, code_dir=tmp_path, entry="a:b", handler="class", token="t"
    )
    frame = ProcessFrame(
        child, "warm", tmp_path, Path(short), memory=MemoryGuard(None), census=Census(), bury=buried
    )
    logs = LogStore(tmp_path / "logs", 1 << 20)
    sandbox = EngineSandbox("i-1", logs=logs, frame=frame, on_gone=lambda sandbox: None)
    starting = asyncio.create_task(sandbox.assign(assignment))
    await asyncio.sleep(0)
    assert json.loads(engine.recv(1 << 17))["op"] == "assign"
    engine.send(json.dumps({"ev": "failed", "reason": said, "message": "no", "traceback": "T"}).encode())
    child.died(1, None)
    with pytest.raises(AssignFailed) as failed:
        await asyncio.wait_for(starting, 5)
    assert (failed.value.exit.reason, failed.value.exit.detail, failed.value.exit.traceback) == (
        said,
        "no",
        "T",
    )
    assert (await sandbox.exited).reason == said
    engine.close()
    await sandbox.gone()
    assert not (tmp_path / "i-1").exists()
    Path(short).rmdir()  # its socket is gone, too
