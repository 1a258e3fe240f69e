"""The pool under pressure: budget, deadlines, cancelled claims, floods, and no descriptor lost."""

import asyncio
import os
import shutil
import sys
import tempfile
from pathlib import Path

import headrace
import pytest
from headrace_runtimes.conformance import CODE, call
from headrace_runtimes.errors import AssignFailed, PrepareFailed
from headrace_runtimes.instance import sandbox
from headrace_runtimes.process import ProcessRuntime
from headrace_runtimes.spec import Assignment, Base, RuntimeSettings

ENGINE = Path(headrace.__file__).parent / "engines" / "python"
MORE = """
import time
time.sleep(600)
"""


@pytest.fixture
async def opened():
    path = Path(tempfile.mkdtemp(prefix="hrp-", dir="/tmp"))
    path.chmod(0o711)
    (path / "code").mkdir(mode=0o755)
    (path / "code" / "app.py").write_text(CODE)
    (path / "code" / "hangs.py").write_text(MORE)
    runtimes = []

    async def make(zygote_bytes=1 << 30, **options):
        runtime = ProcessRuntime(**options)
        settings = RuntimeSettings(
            run_dir=path / f"r{len(runtimes)}",
            engine_dir=ENGINE,
            python=sys.executable,
            zygote_bytes=zygote_bytes,
            log_dir=path / "logs",
        )
        await runtime.open(settings, lambda status: None)
        runtimes.append(runtime)
        return runtime

    yield path, make
    for runtime in runtimes:
        await runtime.close()
    shutil.rmtree(path, ignore_errors=True)


def assignment(path, id, entry="app:hello", **options):
    return Assignment(id, "default/h", 1, path / "code", entry, "function", "t", **options)


async def eventually(what, within_s=15.0):
    async with asyncio.timeout(within_s):
        while not what():
            await asyncio.sleep(0.01)


def status(runtime, key):
    return next((s for s in runtime.bases() if s.key == key), None)


async def test_beyond_the_budget_the_least_wanted_go_but_none_with_instances(opened):
    path, make = opened
    runtime = await make(zygote_bytes=1)  # nothing fits but what must be
    first, second = Base("first"), Base("second")
    await runtime.hold([(first, 0)])
    await eventually(
        lambda: (s := status(runtime, "first")) and s.state == "failed" and "not kept" in s.detail
    )
    await eventually(lambda: status(runtime, "plain").spares == 1)
    kept = await runtime.claim(second, assignment(path, "i0"))  # served by the plain one
    assert (await call(kept, {}, token="t"))[0] == 200
    await runtime.hold([(first, 0), (second, 0)])
    await eventually(lambda: [status(runtime, k).state for k in ("first", "second")] == ["failed"] * 2)
    assert status(runtime, "plain").state == "ready"
    assert (await call(kept, {}, token="t"))[0] == 200


async def test_a_base_that_was_let_go_lives_as_long_as_its_instances(opened):
    path, make = opened
    runtime = await make()
    base = Base("held")
    await runtime.hold([(base, 1)])
    await eventually(lambda: (s := status(runtime, "held")) and s.spares == 1)
    pid = status(runtime, "held").pid
    instance = await runtime.claim(base, assignment(path, "i0"))
    await runtime.hold([])
    assert status(runtime, "held") is None
    assert (await call(instance, {}, token="t"))[0] == 200
    assert os.path.exists(f"/proc/{pid}")
    await instance.stop(1.0)
    await eventually(lambda: not os.path.exists(f"/proc/{pid}"))


async def test_what_does_not_become_ready_in_time_is_killed(opened, monkeypatch):
    path, make = opened
    runtime = await make()
    monkeypatch.setattr(sandbox, "START_SLACK_S", 0.2)
    with pytest.raises(AssignFailed) as failed:
        await runtime.claim(Base("x"), assignment(path, "i0", "hangs:f", load_timeout_s=0.0))
    assert failed.value.exit.reason == "start-timeout"
    assert not runtime.sandboxes()
    assert not list((path / "r0" / "s").iterdir())


async def test_a_cancelled_claim_leaves_nothing(opened):
    path, make = opened
    runtime = await make()
    await runtime.claim(Base("x"), assignment(path, "warm-up"))
    claim = asyncio.create_task(runtime.claim(Base("x"), assignment(path, "i0", "hangs:f")))
    await eventually((path / "r0/k/i0").exists)
    claim.cancel()
    with pytest.raises(asyncio.CancelledError):
        await claim
    await eventually(lambda: not (path / "r0/s/i0").exists())
    assert [s.id for s in runtime.sandboxes()] == ["warm-up"]


async def test_an_environment_that_fits_no_packet_is_refused(opened):
    path, make = opened
    runtime = await make()
    with pytest.raises(AssignFailed, match="above the bound"):
        await runtime.claim(Base("x"), assignment(path, "i0", env={"BIG": "x" * 200_000}))
    assert not runtime.sandboxes()


async def test_an_engine_that_does_not_start_is_told_and_tried_again(opened, monkeypatch):
    path, _ = opened
    broken = path / "engine"
    broken.mkdir()
    (broken / "zygote.py").write_text("raise SystemExit('this engine is broken')")
    monkeypatch.setattr("headrace_runtimes.process.pool.FIRST_READY_S", 1.0)
    runtime = ProcessRuntime()
    settings = RuntimeSettings(path / "rx", broken, sys.executable, 1 << 30, path / "logs")
    await runtime.open(settings, lambda s: None)
    try:
        with pytest.raises(PrepareFailed, match="this engine is broken"):
            await runtime.claim(Base("x"), assignment(path, "i0"))
    finally:
        await runtime.close()
    with pytest.raises(PrepareFailed, match="not open"):
        await runtime.claim(Base("x"), assignment(path, "i0"))


async def test_fifty_lives_leave_no_descriptor_and_no_process(opened):
    path, make = opened
    runtime = await make()
    await runtime.hold([(Base("held"), 2)])
    await eventually(lambda: (s := status(runtime, "held")) and s.spares == 2)

    async def settled():
        await eventually(lambda: status(runtime, "held").spares == 2 and status(runtime, "plain").spares == 1)
        await eventually(lambda: not list((path / "r0/s").iterdir()))
        return len(os.listdir("/proc/self/fd")), len(list((path / "r0/p").iterdir()))

    before = await settled()
    for n in range(10):
        instances = await asyncio.gather(
            *(runtime.claim(Base("held"), assignment(path, f"i{n}-{m}")) for m in range(5))
        )
        await asyncio.gather(*(i.stop(1.0) for i in instances))
    async with asyncio.timeout(30):
        # Not "!=": a look at /proc may have been open in a thread when we counted first.
        while any(now > then for now, then in zip(await settled(), before, strict=True)):
            await asyncio.sleep(0.01)


async def test_a_flood_of_output_does_not_stop_the_loop(opened):
    path, make = opened
    runtime = await make()
    loud = await runtime.claim(Base("x"), assignment(path, "loud", "app:talk"))
    quiet = await runtime.claim(Base("x"), assignment(path, "quiet"))
    flood = asyncio.create_task(call(loud, {"lines": 200_000}, token="t"))
    async with asyncio.timeout(10):
        for _ in range(20):
            assert (await call(quiet, {}, token="t"))[0] == 200
    await loud.stop(0.0)
    flood.cancel()
    await asyncio.wait([flood])


@pytest.mark.parametrize("how", ["auto", "poll"])
async def test_a_leak_is_told_with_its_limit_and_hurts_nobody_else(opened, how):
    path, make = opened
    runtime = await make(memory=how)
    other = await runtime.claim(Base("x"), assignment(path, "i0"))
    leak = await runtime.claim(Base("x"), assignment(path, "i1", "app:grow", memory_limit=96 << 20))
    running = asyncio.create_task(call(leak, {"mib": 300}, token="t"))
    exit = await asyncio.wait_for(leak.exited, 20)
    assert (exit.reason, exit.detail) == ("oom", "OOM-killed at 96 MiB")
    assert (await call(other, {}, token="t"))[0] == 200
    await asyncio.wait([running])
    assert running.exception() is not None


async def test_health_is_asked_of_the_engine(opened):
    path, make = opened
    (path / "code" / "sick.py").write_text(
        "class Sick:\n    def __call__(self):\n        return 1\n\n    def health(self):\n"
        "        return False\n"
    )
    runtime = await make()
    well = await runtime.claim(Base("x"), assignment(path, "i0"))
    assert (await well.health())[0]
    with pytest.raises(AssignFailed):
        await runtime.claim(
            Base("x"),
            Assignment("i1", "default/s", 1, path / "code", "sick:Sick", "class", "t", load_timeout_s=1),
        )


async def test_a_start_that_close_interrupts_is_told_to_its_caller(opened):
    path, make = opened
    runtime = await make()
    claim = asyncio.create_task(runtime.claim(Base("x"), assignment(path, "i0", "hangs:f")))
    await eventually((path / "r0/k/i0").exists)
    await runtime.close()
    with pytest.raises(AssignFailed, match="closed while it started"):
        await claim
    assert not (path / "r0").exists()
