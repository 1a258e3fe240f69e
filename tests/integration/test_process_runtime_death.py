"""A SIGKILL of the process that owns a runtime takes everything with it; the next one sweeps."""

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import headrace
import pytest
from headrace_runtimes.conformance import CODE, call
from headrace_runtimes.errors import PrepareFailed
from headrace_runtimes.instance import procs
from headrace_runtimes.process import ProcessRuntime
from headrace_runtimes.spec import Assignment, Base, LoadedEndpoint, RuntimeSettings

ENGINE = Path(headrace.__file__).parent / "engines" / "python"
DEADLINE_S = 20.0

OWNER = """
import asyncio, json, sys, threading
from pathlib import Path
from headrace_runtimes.process import ProcessRuntime
from headrace_runtimes.spec import Assignment, Base, LoadedEndpoint, RuntimeSettings

async def main(root, engine):
    runtime = ProcessRuntime()
    await runtime.open(RuntimeSettings(run_dir=root / "r", engine_dir=engine, python=sys.executable,
        zygote_bytes=1 << 30, log_dir=root / "logs"), lambda status: None)
    loaded = Base("loaded", loaded=LoadedEndpoint("default/l", 1, root / "code", "app:Loads", "class"))
    await runtime.hold([(Base("held"), 2), (loaded, 1)])
    while sum(s.spares for s in runtime.bases()) < 4:
        await asyncio.sleep(0.01)
    pids = []
    for n, base in enumerate([Base("held"), Base("held"), loaded]):
        entry, handler = ("Loads", "class") if base is loaded else ("hello", "function")
        s = await runtime.claim(base, Assignment(f"i{n}", "default/h", 1, root / "code", f"app:{entry}",
            handler, "t", fresh=n == 1))
        pids.append(s.pid)
    pids += [int(p.name) for p in (root / "r/p").iterdir()]
    print(json.dumps(sorted(set(pids))), flush=True)
    await asyncio.sleep(600)

root, engine, how = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
if how == "thread":  # as in a Serve replica: the loop does not run in the main thread
    thread = threading.Thread(target=asyncio.run, args=(main(root, engine),))
    thread.start()
    thread.join()
elif how == "uvloop":
    import uvloop
    uvloop.run(main(root, engine))
else:
    asyncio.run(main(root, engine))
"""


@pytest.fixture
def root():
    path = Path(tempfile.mkdtemp(prefix="hrd-", dir="/tmp"))
    path.chmod(0o711)
    (path / "code").mkdir(mode=0o755)
    (path / "code" / "app.py").write_text(CODE)
    yield path
    shutil.rmtree(path, ignore_errors=True)


def settings(root: Path) -> RuntimeSettings:
    return RuntimeSettings(
        run_dir=root / "r",
        engine_dir=ENGINE,
        python=sys.executable,
        zygote_bytes=1 << 30,
        log_dir=root / "logs",
    )


def living(pids: list[int]) -> list[int]:
    return [pid for pid in pids if procs.identity(pid)]


async def gone(pids: list[int]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while living(pids):
        assert time.monotonic() < deadline, f"{living(pids)} outlived their owner"
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("how", ["plain", "thread", "uvloop"])
async def test_sigkill_of_the_owner_takes_all_and_the_next_open_sweeps(root, how):
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(root), str(ENGINE), how], stdout=subprocess.PIPE, text=True
    )
    try:
        line = await asyncio.wait_for(asyncio.to_thread(owner.stdout.readline), 30)
        pids = json.loads(line)
        assert len(pids) >= 9  # 4 zygotes (plain, held, loaded, fresh), 3 instances, some spares
        assert living(pids) == pids
    finally:
        owner.kill()
        await asyncio.to_thread(owner.wait)
        owner.stdout.close()
    await gone(pids)
    assert (root / "r/k/i0").exists()  # what no kernel removes

    runtime = ProcessRuntime()
    await runtime.open(settings(root), lambda status: None)
    try:
        assert not list((root / "r/s").iterdir())
        sandbox = await runtime.claim(
            Base("held"), Assignment("i0", "default/h", 1, root / "code", "app:hello", "function", "t")
        )
        assert (await call(sandbox, {}, token="t"))[0] == 200
        lines, _ = await runtime.logs("default/h", sandbox="i0")
        assert len([x for x in lines if x.text.startswith("started")]) == 2  # the predecessor's too
    finally:
        await runtime.close()


async def test_a_survivor_is_swept_but_a_recycled_pid_is_not(root):
    recorded, stranger = (subprocess.Popen(["sleep", "60"]) for _ in range(2))
    try:
        (root / "r" / "p").mkdir(parents=True)
        (root / "r" / "p" / str(recorded.pid)).write_text(procs.identity(recorded.pid))
        (root / "r" / "p" / str(stranger.pid)).write_text(f"{stranger.pid} 1 {procs.boot_id()}")
        (root / "r" / "s" / "old").mkdir(parents=True)
        runtime = ProcessRuntime()
        await runtime.open(settings(root), lambda status: None)
        await runtime.close()
        assert recorded.wait(timeout=DEADLINE_S) == -signal.SIGKILL
        assert stranger.poll() is None
        assert not (root / "r").exists()
    finally:
        for process in (recorded, stranger):
            process.kill()
            process.wait()


async def test_a_run_directory_in_use_is_refused(root, monkeypatch):
    monkeypatch.setattr("headrace_runtimes.instance.leftovers.LOCK_WAIT_S", 0.1)
    runtime, second = ProcessRuntime(), ProcessRuntime()
    await runtime.open(settings(root), lambda status: None)
    try:
        with pytest.raises(PrepareFailed, match="in use by another host"):
            await second.open(settings(root), lambda status: None)
    finally:
        await runtime.close()


async def test_a_killed_zygote_takes_its_instances_and_comes_back(root):
    runtime = ProcessRuntime()
    await runtime.open(settings(root), lambda status: None)
    try:
        await runtime.hold([(Base("held"), 1)])
        sandbox = await runtime.claim(
            Base("held"), Assignment("i0", "default/h", 1, root / "code", "app:hello", "function", "t")
        )
        zygotes = {s.pid for s in runtime.bases() if s.pid}
        for pid in zygotes:
            os.kill(pid, signal.SIGKILL)
        exit = await asyncio.wait_for(sandbox.exited, DEADLINE_S)
        assert (exit.reason, exit.signal) == ("signalled", 9)
        assert "zygote" in exit.detail
        async with asyncio.timeout(DEADLINE_S):
            while [s.state for s in runtime.bases()] != ["ready", "ready"] or not all(
                s.spares for s in runtime.bases()
            ):
                await asyncio.sleep(0.01)
        assert not zygotes & {s.pid for s in runtime.bases()}
        again = await runtime.claim(
            Base("held"), Assignment("i1", "default/h", 1, root / "code", "app:hello", "function", "t")
        )
        assert (await call(again, {}, token="t"))[0] == 200
    finally:
        await runtime.close()


async def test_a_load_that_cannot_be_forked_falls_back_and_says_why(root):
    (root / "code" / "threads.py").write_text(
        "import threading, time\n"
        "class Threads:\n"
        "    def load(self):\n"
        "        threading.Thread(target=time.sleep, args=(600,), daemon=True).start()\n"
        "    def __call__(self):\n"
        "        return 'ok'\n"
    )
    runtime = ProcessRuntime()
    await runtime.open(settings(root), lambda status: None)
    try:
        base = Base(
            "threads", loaded=LoadedEndpoint("default/t", 1, root / "code", "threads:Threads", "class")
        )
        await runtime.hold([(base, 1)])
        async with asyncio.timeout(DEADLINE_S * 2):
            while not any(s.key == "threads" and s.state == "ready" and s.spares for s in runtime.bases()):
                await asyncio.sleep(0.01)
        status = next(s for s in runtime.bases() if s.key == "threads")
        assert not status.loaded
        assert "thread" in status.detail
        sandbox = await runtime.claim(
            base, Assignment("i0", "default/t", 1, root / "code", "threads:Threads", "class", "t")
        )
        assert await call(sandbox, token="t") == (200, "ok")
    finally:
        await runtime.close()
