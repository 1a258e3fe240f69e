"""The check that kills the process which has a runtime open; as a script it is that process."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import pickle
import signal
import sys

from headrace_runtimes.conformance_bench import WITHIN_S, Harness, call, opened, until
from headrace_runtimes.instance import procs
from headrace_runtimes.spec import Base

DIES_WITHIN_S = 40.0
LINE_BYTES = 1 << 16


async def dies_with_its_host(harness: Harness) -> None:
    """SIGKILL of who has it open ends all its sandboxes; the next ``open`` sweeps the rest, and serves."""
    told = base64.b64encode(pickle.dumps((sys.path, harness)))
    victim = await asyncio.create_subprocess_exec(
        sys.executable, "-m", __name__, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}, limit=LINE_BYTES,
    )  # fmt: skip
    assert victim.stdin is not None
    assert victim.stdout is not None
    try:
        victim.stdin.write(told + b"\n")
        line = await asyncio.wait_for(victim.stdout.readline(), DIES_WITHIN_S)
        assert line, f"the process that opens the runtime ended: {await victim.wait()}"
        before: dict[str, str] = json.loads(line)
    finally:
        if victim.returncode is None:
            victim.send_signal(signal.SIGKILL)
        await victim.wait()
    assert before, "it started nothing"

    def gone() -> bool:
        return not [pid for pid, identity in before.items() if procs.identity(int(pid)) == identity]

    await until(gone, f"the end of {list(before)}, whose host is dead", DIES_WITHIN_S)
    async with opened(harness) as bench:
        assert not bench.runtime.sandboxes(), "it took over what a dead host had"
        again = await bench.start(id="same")
        assert (await call(again, {}))[0] == 200


async def _be_the_victim(harness: Harness) -> None:
    async with opened(harness) as bench:
        await bench.runtime.hold([(Base(key="held"), 1)])
        await bench.base("held", lambda status: status.spares == 1)
        busy = await bench.start("spin", id="same")
        sandboxes = [busy, await bench.start()]
        task = asyncio.create_task(call(busy, {}))
        pids = [s.pid for s in sandboxes] + [s.pid for s in bench.runtime.bases() if s.pid]
        print(json.dumps({str(pid): procs.identity(pid) or "" for pid in pids}), flush=True)
        await asyncio.wait([task], timeout=DIES_WITHIN_S + WITHIN_S)


if __name__ == "__main__":
    # Written by the check itself, over a pipe of its own.
    path, given = pickle.loads(base64.b64decode(sys.stdin.buffer.readline()))  # noqa: S301
    sys.path[:] = path
    asyncio.run(_be_the_victim(given))
