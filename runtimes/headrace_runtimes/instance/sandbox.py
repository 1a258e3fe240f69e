"""A sandbox with an engine in it: makes it an instance, tells how it ended, and removes what it leaves."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from headrace_runtimes.errors import AssignFailed, NotSupported, SandboxGone, WrongState
from headrace_runtimes.instance.channel import ChannelError, Packet
from headrace_runtimes.instance.child import Child, Ended
from headrace_runtimes.instance.explain import Tail, explain
from headrace_runtimes.instance.home import Home, sandbox_env
from headrace_runtimes.instance.logs import LogStore, Stream
from headrace_runtimes.instance.mask import Mask
from headrace_runtimes.spec import (
    SANDBOX_MOVES,
    Assignment,
    Exit,
    Ran,
    SandboxState,
    Stats,
    Tier,
    Timings,
)

START_SLACK_S = 60.0
TERM_AFTER_S = 2.0
"""Beyond the grace, for ``unload``."""
KILL_AFTER_S = 1.0
BURY_WAIT_S = 15.0
STATS_TIMEOUT_S = 1.0
HEALTH_TIMEOUT_S = 90.0
"""The last resort: who asks has a shorter one."""
NOFILE = 65_536
MAX_IN_FLIGHT = 1_000_000
"""What an instance says of itself is believed up to here."""


@dataclass(frozen=True)
class Furnished:
    """How the assignment looks from inside: where the code and the sandbox's own directory are."""

    home: Home
    code: str
    directory: str
    env: Mapping[str, str] = field(default_factory=dict)
    """Variables that count more than the assignment's."""


class Frame(Protocol):
    """What holds a sandbox's process: the side of it that differs from runtime to runtime."""

    @property
    def child(self) -> Child:
        """The process that is talked to."""
        ...

    @property
    def tier(self) -> Tier:
        """How it came to be there."""
        ...

    async def furnish(self, assignment: Assignment) -> Furnished:
        """Limits and files, before any code of the assignment runs. Raises `PrepareFailed`."""
        ...

    def killed_for(self, limit: int | None) -> int | None:
        """The memory limit that the ended process was killed for; None when that was not the reason."""
        ...

    async def use(self) -> Stats | None:
        """What it uses, without ``in_flight``; None when it is gone."""
        ...

    async def freeze(self) -> None:
        """Stop the clock for all of its processes. Raises `NotSupported`."""
        ...

    async def thaw(self) -> None:
        """Go on. Raises `NotSupported`."""
        ...

    async def exec(self, argv: Sequence[str], env: Mapping[str, str], timeout_s: float) -> Ran:
        """Run a command in it. Raises `NotSupported`, ``TimeoutError``."""
        ...

    async def bury(self) -> None:
        """Its process has ended: leave nothing of it."""
        ...


class EngineSandbox:
    """See `base.Sandbox`. ``boot`` starts its process; a claim gives it a ``frame`` that waits already."""

    def __init__(
        self,
        id: str,
        *,
        logs: LogStore,
        boot: Callable[[], Awaitable[Frame]] | None = None,
        frame: Frame | None = None,
        on_gone: Callable[[EngineSandbox], None],
        on_assign: Callable[[EngineSandbox], None] = lambda sandbox: None,
    ) -> None:
        self.id = id
        self.state: SandboxState = "created"
        self.endpoint = ""
        self.version = 0
        self.pid = 0
        self.address = ""
        self.tier: Tier = "cached"
        self.timings = Timings(0.0, 0.0, 0.0, 0.0)
        self.exited: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()
        self.furnished: Furnished | None = None
        self._frame = frame
        self._boot = boot
        self._logs = logs
        self._attached = False
        self._on_gone = on_gone
        self._on_assign = on_assign
        self._limit: int | None = None
        self._tail = Tail()
        self._mask = Mask()
        self._answers: dict[str, asyncio.Future[Packet]] = {}
        self._booting: asyncio.Task[Frame] | None = None
        self._stopping: asyncio.Task[Exit] | None = None
        self._buried: asyncio.Task[None] | None = None
        self._reason: Exit | None = None
        if frame is not None:
            self._take(frame)

    @property
    def child(self) -> Child:
        """Its process. Raises `WrongState` before ``start``."""
        return self._of("has not been started").child

    @property
    def alive(self) -> bool:
        """Whether its process is not known to have ended."""
        return self._frame is not None and self._frame.child.alive

    def holds(self, child: Child) -> bool:
        """Whether this is its process."""
        return self._frame is not None and self._frame.child is child

    async def start(self) -> None:
        """See `base.Sandbox.start`."""
        self._check("waiting")
        assert self._boot is not None
        self._booting = asyncio.ensure_future(self._boot())
        try:
            frame = await self._booting
        except BaseException:
            self._never("it did not start")
            raise
        self._take(frame)

    async def assign(self, assignment: Assignment, *, claimed_at: float | None = None) -> None:
        """See `base.Sandbox.assign`. ``claimed_at``: `time.monotonic` at the begin of the claim."""
        began = time.monotonic() if claimed_at is None else claimed_at
        self._move("starting")
        frame = self._of("has not been started")
        self.id, self.endpoint, self.version = assignment.id, assignment.endpoint, assignment.version
        self._limit = assignment.memory_limit
        self._mask = Mask(assignment.secrets)
        try:
            self._on_assign(self)
            furnished = self.furnished = await frame.furnish(assignment)
        except BaseException:
            await self.kill(Exit("start-timeout", "it could not be furnished"))
            raise
        self.address = f"unix:{furnished.home.door}"
        a = assignment
        packet: Packet = {
            "op": "assign", "id": a.id, "endpoint": a.endpoint, "version": a.version,
            "code": furnished.code, "entry": a.entry, "handler": a.handler, "token": a.token,
            "env": sandbox_env(a) | dict(furnished.env), "dir": furnished.directory,
            "concurrency": a.concurrency,
            "batch_max_size": a.batch_max_size, "batch_max_wait_ms": a.batch_max_wait_ms,
            "timeout": a.timeout_s, "load_timeout": a.load_timeout_s, "max_body": a.max_body,
            "probed": a.probed,
            "nofile": NOFILE, "secrets": dict(a.secrets), "secrets_env": list(a.secrets_env),
            "secrets_dir": str(furnished.home.secrets or ""),
        }  # fmt: skip
        ready = self._expect("ready")
        try:
            self.child.send(packet, furnished.home.listener)
        except ChannelError as error:
            raise await self._give_up(Exit("exited", f"cannot be assigned: {error}")) from error
        finally:
            furnished.home.listener.close()
        # From here on the process works, and so may we.
        self._logs.attach(self.endpoint)
        self._attached = True
        self.child.listen(self._printed, self._mask)
        answer = await self._first(ready, a.load_timeout_s + START_SLACK_S)
        if answer is None and self.child.alive:
            limit_s = a.load_timeout_s + START_SLACK_S
            raise await self._give_up(Exit("start-timeout", f"not ready within {limit_s:.0f} s"))
        if answer is None or answer.get("ev") == "failed" or not self.child.alive:
            raise await self._give_up(None)
        total = time.monotonic() - began
        imported, load = _seconds(answer.get("imported"), total), _seconds(answer.get("load"), total)
        self.timings = Timings(max(0.0, total - imported - load), imported, load, total)
        self._move("ready")
        self._system(f"started: version {self.version}, {self.tier}, {total * 1000:.0f} ms")

    async def exec(
        self, argv: Sequence[str], *, env: Mapping[str, str] | None = None, timeout_s: float = 60.0
    ) -> Ran:
        """See `base.Sandbox.exec`."""
        frame = self._living()
        return await frame.exec(argv, env or {}, timeout_s)

    async def pause(self) -> None:
        """See `base.Sandbox.pause`."""
        self._check("paused")
        frame = self._of("has not been started")
        try:
            await frame.freeze()
        except BaseException:
            # Half frozen it would neither work nor die.
            with contextlib.suppress(NotSupported, OSError):
                await frame.thaw()
            raise
        self._move("paused")

    async def resume(self) -> None:
        """See `base.Sandbox.resume`."""
        if self.state != "paused":
            raise WrongState(f"The sandbox {self.id} is {self.state}, not paused.")
        await self._of("has not been started").thaw()
        self._move("ready")

    async def stop(self, grace_s: float) -> Exit:
        """See `base.Sandbox.stop`. Any number of callers; the first one's grace counts."""
        if self._stopping is None:
            self._stopping = asyncio.create_task(self._stop(grace_s))
        return await asyncio.shield(self._stopping)

    def hurry(self) -> None:
        """Nobody sends requests any more: when it stops, it does not wait for those on their way."""
        if self.alive:
            with contextlib.suppress(ChannelError):
                self.child.send({"op": "left"})

    async def kill(self, reason: Exit | None = None) -> None:
        """End it now; ``reason`` is what `exited` will say instead of the signal."""
        if self._frame is None:
            self._never("killed before it was started")
            return
        if self.child.alive and self._reason is None:
            self._reason = reason
        self.child.kill()
        await self.gone()

    async def gone(self) -> None:
        """Returns when it has ended and nothing of it is left."""
        if self._frame is None:
            return
        await asyncio.wait([self.exited], timeout=BURY_WAIT_S)
        if self._buried:
            await asyncio.wait([self._buried], timeout=BURY_WAIT_S)

    async def stats(self) -> Stats:
        """See `base.Sandbox.stats`."""
        frame = self._living()
        # A paused one cannot answer.
        answer = None if self.state == "paused" else self._ask("stats")
        used = await frame.use()
        if used is None or not self.alive:
            raise self._is_gone()
        if used.stopped or answer is None:
            return used
        packet = await self._first(answer, STATS_TIMEOUT_S)
        in_flight = packet.get("in_flight") if packet else None
        believed = isinstance(in_flight, int) and 0 <= in_flight <= MAX_IN_FLIGHT
        return replace(used, in_flight=in_flight if believed else None)

    async def health(self) -> tuple[bool, str]:
        """The engine's check and the user's ``health``: well or not, and why. Raises `SandboxGone`."""
        if self.state == "paused":
            return True, "paused"
        packet = await self._first(self._ask("health"), HEALTH_TIMEOUT_S)
        if packet is None and not self.child.alive:
            raise self._is_gone()
        if packet is None:
            return False, f"no answer within {HEALTH_TIMEOUT_S:.0f} s"
        return bool(packet.get("ok")), str(packet.get("detail", ""))

    def _ask(self, op: str) -> asyncio.Future[Packet]:
        """Ask the process; who asks again before it answered waits for the same answer."""
        self._living()
        answer = self._answers.get(op)
        if answer is None:
            answer = self._expect(op)
            with contextlib.suppress(ChannelError):
                self.child.send({"op": op})
        return answer

    def _living(self) -> Frame:
        """What holds its process. Raises `SandboxGone`; `WrongState` when it has not been started."""
        if self.state != "ended" and self._frame is None:
            raise WrongState(f"The sandbox {self.id} is {self.state}: start it first.")
        if self._frame is None or not self.alive:
            raise self._is_gone()
        return self._frame

    def _is_gone(self) -> SandboxGone:
        return SandboxGone(f"The instance {self.id} has ended.")

    async def _stop(self, grace_s: float) -> Exit:
        if self._frame is None:
            if self._booting is not None and not self._booting.done():
                self._booting.cancel()
                await asyncio.wait([self._booting])
            self._never("stopped before it was started")
        elif self.child.alive:
            self._reason = self._reason or Exit("stopped")
            if self.state == "paused":
                # Frozen processes do not even die.
                with contextlib.suppress(NotSupported, OSError):
                    await self._frame.thaw()
            with contextlib.suppress(ChannelError):
                self.child.send({"op": "stop", "grace": grace_s})
            for number, wait_s in ((signal.SIGTERM, grace_s + TERM_AFTER_S), (signal.SIGKILL, KILL_AFTER_S)):
                await asyncio.wait([self.exited], timeout=wait_s)
                if self.exited.done():
                    break
                self.child.signal(number)
        await self.gone()
        return (
            self.exited.result()
            if self.exited.done()
            else Exit("stopped", "does not die: it waits in the kernel")
        )

    def _take(self, frame: Frame) -> None:
        self._frame = frame
        self.tier, self.pid = frame.tier, frame.child.pid
        frame.child.on_packet = self._packet
        self._move("waiting")
        frame.child.exited.add_done_callback(self._ended)

    def _of(self, why_not: str) -> Frame:
        if self._frame is None:
            raise WrongState(f"The sandbox {self.id} {why_not}.")
        return self._frame

    def _check(self, state: SandboxState) -> None:
        if self.state == "ended":
            raise self._is_gone()
        if state not in SANDBOX_MOVES[self.state]:
            raise WrongState(f"The sandbox {self.id} is {self.state}: it cannot become {state}.")

    def _move(self, state: SandboxState) -> None:
        self._check(state)
        self.state = state

    def _never(self, why: str) -> None:
        """It ends without ever having had a process."""
        if not self.exited.done():
            self.state = "ended"
            self.exited.set_result(Exit("stopped", why))
            self._on_gone(self)

    def _ended(self, ended: asyncio.Future[Ended]) -> None:
        end = ended.result()
        frame = self._of("has not been started")
        limit = frame.killed_for(self._limit)
        stopping = self._reason is not None and self._reason.reason == "stopped"
        exit = explain(end.code, end.signal, stopping=stopping, limit=limit, note=end.note)
        if self._reason is not None and not stopping:
            exit = self._reason
        exit = replace(exit, log=self._tail.lines())
        for answer in self._answers.values():
            answer.cancel()
        if self.endpoint:
            self._system(f"ended: {exit.reason}" + (f", {exit.detail}" if exit.detail else ""))
        if self._attached:
            self._logs.detach(self.endpoint)
        self.state = "ended"
        self.exited.set_result(exit)
        self._buried = asyncio.create_task(self._bury(frame))

    async def _bury(self, frame: Frame) -> None:
        await frame.bury()
        if self.furnished is not None:
            self.furnished.home.listener.close()
            await asyncio.to_thread(self.furnished.home.remove)
        self._on_gone(self)

    async def _give_up(self, reason: Exit | None) -> AssignFailed:
        await self.kill(reason)
        exit = self.exited.result() if self.exited.done() else reason or Exit("exited", "does not die")
        return AssignFailed(f"{self.endpoint}: {exit.reason}: {exit.detail}", exit)

    def _expect(self, event: str) -> asyncio.Future[Packet]:
        answer: asyncio.Future[Packet] = asyncio.get_running_loop().create_future()
        self._answers[event] = answer
        answer.add_done_callback(lambda _: self._answers.pop(event, None))
        return answer

    async def _first(self, answer: asyncio.Future[Packet], timeout_s: float) -> Packet | None:
        """The answer; None when it ended instead, or said nothing in time."""
        waiting: list[asyncio.Future[Any]] = [answer, self.child.exited]
        await asyncio.wait(waiting, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        return answer.result() if answer.done() and not answer.cancelled() else None

    def _packet(self, packet: Packet) -> None:
        event = str(packet.get("ev"))
        if event == "failed" and self._reason is None:
            # Kept at once: it ends by itself now, and its end must not be told as a bare exit code.
            self._reason = _failure(packet, self._mask)
        elif event == "stuck" and self._reason is None:
            self._reason = Exit("stuck", str(packet.get("message", "")))
        answer = self._answers.get("ready" if event == "failed" else event)
        if answer and not answer.done():
            answer.set_result(packet)

    def _printed(self, stream: Stream, lines: list[str]) -> None:
        lines = self._mask.lines(lines)
        self._tail.add(lines)
        self._logs.write(self.endpoint, self.id, stream, lines)

    def _system(self, text: str) -> None:
        self._logs.write(self.endpoint, self.id, "system", [text])


def _failure(packet: Packet, mask: Mask) -> Exit:
    message = mask.text(str(packet.get("message", "")))
    traceback = mask.text(str(packet.get("traceback", "")))
    if packet.get("reason") == "import-failed":
        return Exit("import-failed", message, traceback=traceback)
    return Exit("load-failed", message, traceback=traceback)


def _seconds(value: object, most: float) -> float:
    """A duration as an instance tells it, believed up to ``most``."""
    return float(value) if isinstance(value, int | float) and 0 <= value <= most else 0.0
