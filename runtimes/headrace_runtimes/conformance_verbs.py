"""Checks of the verbs one by one: create, start, assign, exec, pause, health, limits, what it owns.

What a runtime may lack is asked of its capabilities: what it says that it can, it must do, and what it says
that it cannot, it must refuse with the error that the contract names.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Awaitable
from pathlib import Path
from typing import Any, get_args, get_type_hints

from headrace_runtimes.base import Runtime, Sandbox
from headrace_runtimes.conformance_bench import ENDPOINT, WITHIN_S, Harness, call, opened, until
from headrace_runtimes.errors import NotSupported, PrepareFailed, RuntimeFailure, SandboxGone, WrongState
from headrace_runtimes.images.definition import Image
from headrace_runtimes.spec import CAPABILITIES, Base, Owned, SandboxSpec, SandboxState

PLAIN = Base(key="conformance")
KINDS = frozenset(get_args(get_type_hints(Owned)["kind"]))
VALUE = "hunter2-of-conformance"
"""A secret's value: long enough to be masked in logs."""


async def refuses(work: Awaitable[object], errors: type[Exception] | tuple[type[Exception], ...]) -> str:
    """That it raises one of these, with a sentence; the sentence."""
    said = None
    try:
        await asyncio.wait_for(work, WITHIN_S)
    except errors as refused:
        said = str(refused)
    assert said is not None, f"not refused with {errors}"
    assert said.strip(), f"refused with {errors} and no word"
    assert "\n" not in said, f"more than one line: {said}"
    return said


def is_in(state: SandboxState, sandbox: Sandbox) -> None:
    """That it is in this state."""
    assert sandbox.state == state, f"{sandbox.id} is {sandbox.state}, not {state}"


async def says_what_it_can(harness: Harness) -> None:
    """Every capability is answered for, before ``open`` and after; what is closed refuses to work."""
    runtime = harness.make()
    assert isinstance(runtime, Runtime), "it lacks parts of headrace_runtimes.base.Runtime"
    assert runtime.name, "it has no name"
    async with opened(harness) as bench:
        for told in (runtime.capabilities(), bench.runtime.capabilities()):
            assert set(told) == set(CAPABILITIES), f"capabilities are {sorted(told)}"
            bad = {name: why for name, why in told.items() if "\n" in why}
            assert not bad, f"a reason is one line: {bad}"
        await bench.runtime.close()
        await bench.runtime.close()
        await refuses(bench.runtime.claim(PLAIN, bench.assignment()), PrepareFailed)
        await refuses(bench.runtime.prepare(Image()), PrepareFailed)
        await refuses(bench.runtime.create(SandboxSpec("closed", PLAIN)), PrepareFailed)


async def moves_step_by_step(harness: Harness) -> None:
    """``prepare``, ``create``, ``start``, ``assign``, ``stop``: each only from the state before."""
    async with opened(harness) as bench:
        digest = await bench.runtime.prepare(Image())
        assert digest == await bench.runtime.prepare(Image()) == "", "the plain image has the empty digest"
        sandbox = await bench.runtime.create(SandboxSpec("step", PLAIN))
        assert (sandbox.id, sandbox.state, sandbox.pid) == ("step", "created", 0), "it runs already"
        await refuses(bench.runtime.create(SandboxSpec("step", PLAIN)), PrepareFailed)
        for early in (sandbox.assign(bench.assignment()), sandbox.stats(), sandbox.resume()):
            await refuses(early, WrongState)
        await sandbox.start()
        is_in("waiting", sandbox)
        assert sandbox.pid > 0, "it has no process after start"
        assert sandbox not in bench.runtime.sandboxes(), "it is no instance yet"
        await refuses(sandbox.start(), WrongState)
        given = bench.assignment()
        await sandbox.assign(given)
        assert (sandbox.id, sandbox.endpoint, sandbox.version) == (given.id, given.endpoint, given.version)
        is_in("ready", sandbox)
        assert sandbox in bench.runtime.sandboxes(), "an instance is in sandboxes()"
        assert (await call(sandbox, {}))[0] == 200
        await refuses(sandbox.assign(bench.assignment()), WrongState)
        await sandbox.stop(1.0)
        is_in("ended", sandbox)
        for late in (
            sandbox.stats(), sandbox.health(), sandbox.start(), sandbox.assign(bench.assignment()),
            sandbox.exec([harness.settings.python, "-V"]),
        ):  # fmt: skip
            await refuses(late, SandboxGone)
        never = await bench.runtime.create(SandboxSpec("never", PLAIN))
        assert (await never.stop(1.0)).reason == "stopped", "one that never started is stopped, too"
        is_in("ended", never)
        assert never.exited.done(), "its exit was not told"


async def refuses_what_is_not_there(harness: Harness) -> None:
    """An image that was not prepared, and ids that cannot name a file, are refused; nothing stays."""
    async with opened(harness) as bench:
        missing = Base(key="missing", image="0" * 64)
        await refuses(bench.runtime.claim(missing, bench.assignment()), PrepareFailed)
        for id in ("../outside", "", "a b", "x" * 65):
            await refuses(bench.runtime.claim(PLAIN, bench.assignment(id=id)), PrepareFailed)
        assert not bench.runtime.sandboxes(), "something of it is left"
        assert not (harness.settings.run_dir.parent / "outside").exists(), "an id led out of the directory"
        assert (await call(await bench.start(), {}))[0] == 200


async def runs_commands(harness: Harness) -> None:
    """``exec`` runs beside the instance as its user, with its ends told; else it is refused."""
    async with opened(harness) as bench:
        sandbox = await bench.start("secrets")
        python = harness.settings.python
        if bench.runtime.capabilities()["exec"]:
            await refuses(sandbox.exec([python, "-V"]), NotSupported)
            return
        code = "import os, sys; print(os.environ['MINE']); print(os.getuid(), file=sys.stderr); sys.exit(7)"
        ran = await sandbox.exec([python, "-c", code], env={"MINE": "1"})
        _, seen = await call(sandbox, {"names": []})
        assert (ran.code, ran.stdout, ran.stderr) == (7, b"1\n", f"{seen['uid']}\n".encode()), f"ran {ran}"
        ran = await sandbox.exec([python, "-c", "print('x' * (3 << 20))"])
        assert len(ran.stdout) == 1 << 20, f"output of {len(ran.stdout)} bytes"
        await refuses_timeout(sandbox, python)
        assert (await call(sandbox, {"names": []}))[0] == 200


async def refuses_timeout(sandbox: Sandbox, python: str) -> None:
    """A command that takes too long raises ``TimeoutError``."""
    with contextlib.suppress(TimeoutError):
        await sandbox.exec([python, "-c", "import time; time.sleep(600)"], timeout_s=0.5)
        raise AssertionError("a command outlived its time")


async def pauses(harness: Harness) -> None:
    """Paused it keeps its memory, uses no CPU and answers nobody; then it goes on. Else it is refused."""
    async with opened(harness) as bench:
        sandbox = await bench.start("spin")
        if bench.runtime.capabilities()["pause"]:
            await refuses(sandbox.pause(), NotSupported)
            is_in("ready", sandbox)
            return
        await refuses(sandbox.resume(), WrongState)
        spinning = asyncio.create_task(call(sandbox, {"seconds": 0.5}))
        await asyncio.sleep(0.1)
        await sandbox.pause()
        is_in("paused", sandbox)
        await refuses(sandbox.pause(), WrongState)
        before = (await sandbox.stats()).cpu_s
        done, _ = await asyncio.wait([spinning], timeout=1.0)
        assert not done, "a paused instance answered"
        stats = await sandbox.stats()
        assert stats.cpu_s == before, "a paused instance uses CPU"
        assert stats.rss > 0, "a paused instance has lost its memory"
        assert (await sandbox.health())[0], "a paused instance is not ill"
        await sandbox.resume()
        is_in("ready", sandbox)
        assert await spinning == (200, "spun"), "what was running was not finished"
        await sandbox.pause()
        exit = await asyncio.wait_for(sandbox.stop(1.0), WITHIN_S)
        assert exit.reason == "stopped", f"stopped while paused, told as {exit}"


async def tells_health(harness: Harness) -> None:
    """``health`` is the user's word, with the reason."""
    async with opened(harness) as bench:
        sandbox = await bench.start("Sick")
        well, why = await sandbox.health()
        assert well, f"well, and told as ill: {why}"
        await call(sandbox, {})
        well, why = await sandbox.health()
        assert not well, "ill, and told as well"
        assert "no pulse" in why, f"does not say why: {why!r}"


async def gives_secrets(harness: Harness) -> None:
    """Secrets are files, variables where asked; in no argument of a process, no log, no other sandbox."""
    async with opened(harness) as bench:
        given = {"TOKEN": VALUE, "OTHER": VALUE[::-1]}
        sandbox = await bench.start("secrets", secrets=given, secrets_env=("TOKEN",))
        other = await bench.start("secrets")
        _, seen = await call(sandbox, {"names": ["TOKEN", "OTHER"]})
        assert seen["files"] == given, f"files {seen['files']}"
        assert seen["variables"] == {"TOKEN": VALUE, "OTHER": None}, f"variables {seen['variables']}"
        _, seen = await call(other, {"names": ["TOKEN", "OTHER"]})
        assert (seen["files"], seen["variables"]) == ({}, {"TOKEN": None, "OTHER": None}), f"sees {seen}"
        shown = [pid for pid, line in _command_lines() if VALUE.encode() in line]
        assert not shown, f"a secret is in the arguments of {shown}"
        await sandbox.stop(1.0)
        lines, _ = await bench.runtime.logs(ENDPOINT, sandbox=sandbox.id)
        text = "\n".join(line.text for line in lines)
        assert "kept" in text, "what it printed is missing"
        assert VALUE not in text, "a secret is in the logs"


async def shows_mounts(harness: Harness) -> None:
    """Directories of the host appear read-only at their path, where a sandbox has a root of its own."""
    async with opened(harness) as bench:
        if bench.runtime.capabilities()["isolation"]:
            return
        shown = harness.code_root / "shown"
        shown.mkdir(exist_ok=True)
        (shown / "weights.bin").write_text("w")
        sandbox = await bench.start("look", mounts=((shown, "/weights/mine"),))
        _, seen = await call(sandbox, {"path": "/weights/mine"})
        assert seen == {"files": ["weights.bin"], "written": False}, f"sees {seen}"
        await sandbox.stop(1.0)
        assert os.listdir(shown) == ["weights.bin"], "what was shown has changed"


async def holds_limits(harness: Harness) -> None:
    """Limits are the kernel's, where the runtime says so; else an assignment that has some is refused."""
    async with opened(harness) as bench:
        limits: dict[str, Any] = {"pids_limit": 40, "cpu_limit": 0.5}
        if bench.runtime.capabilities()["limits"]:
            await refuses(bench.start("many", **limits), RuntimeFailure)
            assert not bench.runtime.sandboxes(), "it was started all the same"
            return
        sandbox = await bench.start("many", **limits)
        neighbour = await bench.start()
        _, made = await call(sandbox, {"count": 200})
        assert made < 40, f"{made} threads with room for 40"
        assert (await call(neighbour, {}))[0] == 200, "its neighbour suffers"
        spinning = await bench.start("spin", **limits)
        before = (await spinning.stats()).cpu_s
        began = asyncio.get_running_loop().time()
        await call(spinning, {"seconds": 2.0})
        used = (await spinning.stats()).cpu_s - before
        took = asyncio.get_running_loop().time() - began
        assert used < 0.8 * took, f"{used:.2f} s of CPU in {took:.2f} s, with half a core"


async def tells_what_it_owns(harness: Harness) -> None:
    """``list_owned`` names what exists, by kind; what has ended is not in it any more."""
    async with opened(harness) as bench:
        await bench.runtime.hold([])
        sandboxes = [await bench.start() for _ in range(3)]
        owned = await bench.runtime.list_owned()
        assert owned, "three instances, and it owns nothing"
        assert {thing.kind for thing in owned} <= KINDS, f"kinds {sorted({o.kind for o in owned})}"
        assert len(owned) == len(set(owned)), "something is in it twice"
        ids = {s.id for s in sandboxes}
        await asyncio.gather(*(s.stop(1.0) for s in sandboxes))
        left = [o for o in await bench.runtime.list_owned() if o.name in ids]
        assert not left, f"ended, and still in it: {left}"
        before = len(await bench.runtime.list_owned())
        await bench.runtime.hold([(Base(key="more"), 2)])
        await bench.base("more", lambda status: status.spares == 2)
        more = await bench.runtime.list_owned()
        assert len(more) > before, "two spares more, and it owns no more than before"
        await bench.runtime.hold([])
        async with asyncio.timeout(WITHIN_S):
            while len(await bench.runtime.list_owned()) > before:  # noqa: ASYNC110 - nobody tells of it
                await asyncio.sleep(0.05)


async def gives_up(harness: Harness) -> None:
    """A start is given up in time, when nobody waits for it, and at the close; nothing of it stays."""
    async with opened(harness) as bench:
        late = bench.start("Slow", load_timeout_s=0.5)
        await refuses(late, RuntimeFailure)
        assert not bench.runtime.sandboxes(), "one that was too slow is still there"
        waiting = asyncio.create_task(bench.start("Slow"))
        await until(lambda: bool(bench.runtime.sandboxes()), "the start of an instance")
        pid = bench.runtime.sandboxes()[0].pid
        waiting.cancel()
        await asyncio.wait([waiting], timeout=WITHIN_S)
        assert waiting.cancelled(), "a claim that was cancelled went on"
        await until(lambda: not bench.runtime.sandboxes(), "the end of a start that nobody waits for")
        await until(lambda: not Path(f"/proc/{pid}").exists(), "the end of its process")
        closing = asyncio.create_task(bench.start("Slow"))
        await until(lambda: bool(bench.runtime.sandboxes()), "the start of an instance")
        await asyncio.wait_for(bench.runtime.close(), WITHIN_S)
        await refuses(closing, RuntimeFailure)


def _command_lines() -> list[tuple[str, bytes]]:
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            found.append((pid, Path(f"/proc/{pid}/cmdline").read_bytes()))
    return found


VERBS = (
    says_what_it_can,
    moves_step_by_step,
    refuses_what_is_not_there,
    runs_commands,
    pauses,
    tells_health,
    gives_secrets,
    shows_mounts,
    holds_limits,
    tells_what_it_owns,
    gives_up,
)
