"""What every runtime must do, as checks that its own tests run.

    @pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
    async def test_my_runtime(check):
        with workshop(MyRuntime, ENGINE) as harness:
            await asyncio.wait_for(check(harness), 120)

A check raises ``AssertionError`` with a sentence about what is wrong. None is ever skipped: what a runtime
says that it cannot do, it must refuse. ``docs/reference/runtimes.md`` is the page that goes with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Awaitable, Callable
from typing import Any

from headrace_runtimes.conformance_bench import (
    CODE,
    ENDPOINT,
    SECRET,
    WITHIN_S,
    Bench,
    Harness,
    call,
    opened,
    until,
    workshop,
)
from headrace_runtimes.conformance_death import dies_with_its_host
from headrace_runtimes.conformance_verbs import VERBS
from headrace_runtimes.errors import AssignFailed, RuntimeFailure
from headrace_runtimes.instance import procs
from headrace_runtimes.spec import Base, Exit, LoadedEndpoint, LogLine

__all__ = ["CHECKS", "CODE", "Bench", "Check", "Harness", "call", "opened", "workshop"]

Check = Callable[[Harness], Awaitable[None]]


async def failed_start(bench: Bench, entry: str) -> Exit:
    """How a start that must fail did."""
    try:
        await bench.start(entry)
    except AssignFailed as failed:
        return failed.exit
    raise AssertionError(f"{entry} started")


async def serves(harness: Harness) -> None:
    """An assigned sandbox answers HTTP to who has the token, and tells the truth about itself."""
    async with opened(harness) as bench:
        await bench.base("plain", lambda s: s.state == "ready" and s.spares > 0)
        sandbox = await bench.start()
        status, body = await call(sandbox, {"name": "you"})
        assert (status, body["hello"]) == (200, "you"), f"answered {status} {body}"
        status, _ = await call(sandbox, {}, token="wrong")  # noqa: S106
        assert status == 403, f"a wrong token was answered with {status}"
        times = sandbox.timings
        assert abs(times.boot + times.imported + times.load - times.total) < 1e-3, (
            f"parts do not add up: {times}"
        )
        assert sandbox.tier in {"warm", "forked"}, f"tier {sandbox.tier}"
        assert [s.id for s in bench.runtime.sandboxes()] == [sandbox.id], "it is not in sandboxes()"
        stats = await sandbox.stats()
        assert stats.rss > 0, "it uses no memory"
        assert stats.in_flight in {0, None}, "it has requests in flight that nobody sent"
        taken = bench.assignment(id=sandbox.id)
        with contextlib.suppress(RuntimeFailure):
            await bench.runtime.claim(Base(key="conformance"), taken)
            raise AssertionError("an id that is in use was taken again")


async def stops(harness: Harness) -> None:
    """``stop`` lets a running request finish, then the sandbox is gone; twice is fine."""
    async with opened(harness) as bench:
        sandbox = await bench.start("slow")
        running = asyncio.create_task(call(sandbox, {"seconds": 0.5}))
        await asyncio.sleep(0.15)  # until it is inside the handler; too early only weakens the check
        first, second = await asyncio.gather(sandbox.stop(10.0), sandbox.stop(10.0))
        assert first == second == sandbox.exited.result(), "stop and exited do not agree"
        assert first.reason == "stopped", f"stopped, but told as {first}"
        assert await running == (200, "slept"), "the running request was not finished"
        assert not bench.runtime.sandboxes(), "it is still in sandboxes()"
        try:
            await sandbox.stats()
        except RuntimeFailure:
            pass
        else:
            raise AssertionError("an ended sandbox still has stats")


async def stop_kills_after_grace(harness: Harness) -> None:
    """What does not end within its grace is killed."""
    async with opened(harness) as bench:
        sandbox = await bench.start("slow")
        running = asyncio.create_task(call(sandbox, {"seconds": 600}))
        await asyncio.sleep(0.15)
        exit = await asyncio.wait_for(sandbox.stop(0.1), WITHIN_S)
        assert exit.reason == "stopped", f"told as {exit}"
        running.cancel()
        await asyncio.wait([running])


async def start_failures(harness: Harness) -> None:
    """User code that fails to start is told with its traceback; nothing stays."""
    async with opened(harness) as bench:
        cases = (("Breaks", "load-failed", "no weights here"), ("missing", "import-failed", "missing"))
        for entry, reason, text in cases:
            exit = await failed_start(bench, entry)
            assert exit.reason == reason, f"{entry} told as {exit}"
            assert text in exit.detail + exit.traceback, f"does not say why: {exit}"
            if entry == "Breaks":
                assert "Traceback" in exit.traceback, "no traceback"
        assert not bench.runtime.sandboxes(), "a failed sandbox is still there"


async def tells_deaths(harness: Harness) -> None:
    """How a sandbox died is told plainly: exit code or signal."""
    async with opened(harness) as bench:
        for entry, reason, code, signal in (("leave", "exited", 3, None), ("crash", "signalled", None, 9)):
            sandbox = await bench.start(entry)
            with contextlib.suppress(OSError):
                await call(sandbox)
            exit = await asyncio.wait_for(sandbox.exited, WITHIN_S)
            assert (exit.reason, exit.code, exit.signal) == (reason, code, signal), f"{entry} told as {exit}"


async def memory_limit(harness: Harness) -> None:
    """A sandbox above its memory limit is killed for that reason."""
    async with opened(harness) as bench:
        sandbox = await bench.start("grow", memory_limit=96 << 20)
        with contextlib.suppress(OSError, TimeoutError):
            await call(sandbox, {"mib": 400})
        exit = await asyncio.wait_for(sandbox.exited, WITHIN_S)
        assert exit.reason == "oom", f"told as {exit}"
        assert "96 MiB" in exit.detail, f"does not name the limit: {exit.detail}"


async def spares_refill(harness: Harness) -> None:
    """Held bases have their spares, claims take them, and they come back."""
    async with opened(harness) as bench:
        base = Base(key="held", preload=("json", "no_such_module_here"))
        await bench.runtime.hold([(base, 2)])
        status = await bench.base("held", lambda s: s.state == "ready" and s.spares == 2)
        assert "no_such_module_here" in status.refused, f"refused: {status.refused}"
        assert any(s.key == "held" and s.state == "ready" for s in bench.heard), "on_base was not told"
        for _ in range(3):
            sandbox = await bench.start(base=base)
            assert sandbox.tier == "warm", f"tier {sandbox.tier} with a spare at hand"
            await bench.base("held", lambda s: s.spares == 2)
        await bench.runtime.hold([])
        await until(lambda: len(bench.runtime.sandboxes()) == 3, "the instances of a base that was let go")
        assert all([(await call(s, {}))[0] == 200 for s in bench.runtime.sandboxes()]), "one of them died"


async def serves_what_is_not_held(harness: Harness) -> None:
    """A base that is not held is served from the nearest; ``fresh`` inherits nothing."""
    async with opened(harness) as bench:
        sandbox = await bench.start(base=Base(key="unheard-of", preload=("json",)))
        assert (await call(sandbox, {}))[0] == 200
        fresh = await bench.start(fresh=True)
        assert fresh.tier == "cached", f"tier {fresh.tier}"
        assert (await call(fresh, {}))[0] == 200
        assert (await fresh.stop(1.0)).reason == "stopped"


async def loads_before_the_fork(harness: Harness) -> None:
    """A loaded base runs ``load`` once; one whose ``load`` raises fails and says why."""
    async with opened(harness) as bench:

        def base(entry: str) -> Base:
            loaded = LoadedEndpoint(ENDPOINT, 1, bench.code, f"app:{entry}", "class", load_timeout_s=30.0)
            return Base(key=f"loaded-{entry}", loaded=loaded)

        await bench.runtime.hold([(base("Loads"), 1), (base("Breaks"), 1)])
        await bench.base("loaded-Loads", lambda s: s.state == "ready" and s.loaded and s.spares == 1)
        one, two = [await bench.start("Loads", base("Loads")) for _ in range(2)]
        answers = [(await call(s))[1] for s in (one, two)]
        if bench.runtime.capabilities()["fork"]:
            assert one.tier == "warm", f"tier {one.tier} with a loaded spare at hand"
            assert answers[0]["loaded_in"] == answers[0]["pid"], "load ran elsewhere"
        else:
            assert answers[0]["loaded_in"] == answers[1]["loaded_in"], "load ran twice"
            assert answers[0]["loaded_in"] not in {a["pid"] for a in answers}, "load ran in the instance"
        failed = await bench.base("loaded-Breaks", lambda s: s.state == "failed")
        assert "no weights here" in failed.detail, f"detail {failed.detail!r}"


async def logs_are_kept(harness: Harness) -> None:
    """Lines come in pages by a cursor, wait for the first, outlive the sandbox and the runtime."""
    async with opened(harness) as bench:
        sandbox = await bench.start("talk")
        await call(sandbox, {"lines": 50})

        async def read(after: int, **options: Any) -> tuple[list[LogLine], int]:
            return await bench.runtime.logs(ENDPOINT, after=after, **options)

        seen: list[LogLine] = []
        cursor = 0
        async with asyncio.timeout(WITHIN_S):
            while not {"line 49", "to stderr"} <= {line.text for line in seen}:
                page, cursor = await read(cursor, limit=7, wait_s=1.0)
                assert len(page) <= 7, "more lines than asked for"
                seen += page
        texts = [line.text for line in seen if line.stream == "stdout"]
        assert texts == [f"line {n}" for n in range(50)], "lines are missing, doubled or out of order"
        assert {line.text: line.stream for line in seen}["to stderr"] == "stderr"
        assert any(line.stream == "system" for line in seen), "the start was not noted"
        waiting = asyncio.create_task(read(cursor, wait_s=WITHIN_S))
        await call(sandbox, {"lines": 1, "tag": "later"})
        page, cursor = await waiting
        assert page, "the long poll ended without a line"
        other = await bench.start("talk")
        await call(other, {"lines": 1, "tag": "other"})
        await other.stop(1.0)
        lines, _ = await read(0, sandbox=other.id)
        assert {line.sandbox for line in lines} == {other.id}, "lines of another sandbox"
        assert "other 0" in {line.text for line in lines}, "the lines of an ended sandbox are gone"
        whole, end = await read(0)
    async with opened(harness) as bench:
        again, _ = await bench.runtime.logs(ENDPOINT)
        assert again[: len(whole)] == whole, "lines were lost over a restart"
        nothing, cursor = await bench.runtime.logs(ENDPOINT, after=end)
        assert cursor >= end, "the cursor went back over a restart"
        assert all(line.stream == "system" for line in nothing), "old lines came again after the cursor"


async def many_at_once(harness: Harness) -> None:
    """Twenty claims at once are all served, each by a sandbox of its own."""
    async with opened(harness) as bench:
        sandboxes = await asyncio.gather(*(bench.start() for _ in range(20)))
        answers = await asyncio.gather(*(call(s, {"name": s.id}) for s in sandboxes))
        assert [a[1]["hello"] for a in answers] == [s.id for s in sandboxes], "answers are mixed up"
        assert len({s.pid for s in sandboxes}) == len({s.address for s in sandboxes}) == 20
        exits = await asyncio.gather(*(s.stop(1.0) for s in sandboxes))
        assert {e.reason for e in exits} == {"stopped"}, f"exits {exits}"


async def environment_is_clean(harness: Harness) -> None:
    """A sandbox sees its own environment and the accelerators it was given, nothing of the host's secrets."""
    os.environ[SECRET] = "secret"
    try:
        async with opened(harness) as bench:
            sandbox = await bench.start("environment", env={"MINE": "1"}, gpu_indices=(0, 2))
            names = [SECRET, "MINE", "CUDA_VISIBLE_DEVICES"]
            _, seen = await call(sandbox, {"names": names})
            assert seen == {SECRET: None, "MINE": "1", "CUDA_VISIBLE_DEVICES": "0,2"}, f"sees {seen}"
    finally:
        del os.environ[SECRET]


async def close_leaves_nothing(harness: Harness) -> None:
    """After ``close`` no process and no file is left, whatever ran; then it opens again."""
    async with opened(harness) as bench:
        await bench.runtime.hold([(Base(key="held"), 2)])
        sandboxes = [await bench.start("slow") for _ in range(3)]
        running = asyncio.create_task(call(sandboxes[0], {"seconds": 600}))
        pids = [s.pid for s in sandboxes] + [s.pid for s in bench.runtime.bases() if s.pid]
        await bench.runtime.close()
        running.cancel()
        await asyncio.wait([running])
        # What is dead, and waits for a parent that is not ours to look, is nothing of ours.
        left = [pid for pid in pids if procs.identity(pid)]
        assert not left, f"processes {left} are left"
        files = sorted(harness.settings.run_dir.rglob("*")) if harness.settings.run_dir.exists() else []
        assert not files, f"files {files} are left"
        assert all(s.exited.done() for s in sandboxes), "an exit was not told"
    async with opened(harness) as bench:
        assert (await call(await bench.start(), {}))[0] == 200


CHECKS: tuple[Check, ...] = (
    serves,
    stops,
    stop_kills_after_grace,
    start_failures,
    tells_deaths,
    memory_limit,
    spares_refill,
    serves_what_is_not_held,
    loads_before_the_fork,
    logs_are_kept,
    many_at_once,
    environment_is_clean,
    *VERBS,
    dies_with_its_host,
    close_leaves_nothing,
)
