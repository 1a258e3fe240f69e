"""An assigned child: makes it an instance, tells how it ended, and removes what it leaves."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import signal
import socket
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headrace_runtimes.errors import AssignFailed, PrepareFailed, SandboxGone
from headrace_runtimes.instance import procs
from headrace_runtimes.instance.channel import ChannelError, Packet
from headrace_runtimes.instance.child import Child, Ended
from headrace_runtimes.instance.explain import explain
from headrace_runtimes.instance.logs import LogStore
from headrace_runtimes.instance.memory import MemoryGuard
from headrace_runtimes.instance.uids import own
from headrace_runtimes.spec import Assignment, Exit, Stats, Tier, Timings
from headrace_runtimes.trees import remove_tree

log = logging.getLogger("headrace.runtimes")

START_SLACK_S = 60.0
TERM_AFTER_S = 2.0
"""Beyond the grace, for ``unload``."""
KILL_AFTER_S = 1.0
BURY_WAIT_S = 15.0
STATS_TIMEOUT_S = 1.0
HEALTH_TIMEOUT_S = 10.0
BACKLOG = 1024
MAX_SOCKET_PATH = 107
NOFILE = 65_536
MAX_IN_FLIGHT = 1_000_000
"""What an instance says of itself is believed up to here."""
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True)
class Home:
    """Where a sandbox lives: ``path`` is its own directory; its socket, ``door``, lies out of its reach."""

    path: Path
    door: Path
    listener: socket.socket

    def remove(self) -> None:
        """Leave nothing of it, whatever it has filled its directory with. Blocks."""
        self.door.unlink(missing_ok=True)
        if not remove_tree(self.path):
            log.warning("%s could not be removed; the next start tries again", self.path)


def make_home(homes: Path, sockets: Path, id: str, uid: int | None) -> Home:
    """The sandbox's private directory and its listening socket. Raises `PrepareFailed`.

    The socket is not in that directory: code that may replace it by a link would have whoever connects
    talk to any socket of the machine, with that one's rights.
    """
    path, door = homes / id, sockets / id
    address = str(door)
    if not _ID.fullmatch(id):
        raise PrepareFailed(f"Instance id {id!r}: use 1-64 letters, digits and . _ -.")
    if len(os.fsencode(address)) > MAX_SOCKET_PATH:
        raise PrepareFailed(f"{address} is too long for a socket: choose a shorter run directory.")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        os.mkdir(path, 0o700)
        for part in (path / "home", path / "tmp"):
            os.mkdir(part, 0o700)
            own(part, uid, uid)
        own(path, uid, uid)
        listener.bind(address)
        os.chmod(address, 0o600)
        # Before the process has it, so that early connections queue instead of failing.
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        if not isinstance(error, FileExistsError):
            remove_tree(path)
        raise PrepareFailed(f"Cannot make {path}: {error.strerror}.") from error
    return Home(path, door, listener)


def sandbox_env(assignment: Assignment) -> dict[str, str]:
    """The assignment's environment; the accelerators are what the host reserved, whatever the user says."""
    gpus = ",".join(str(index) for index in assignment.gpu_indices)
    return dict(assignment.env) | {"CUDA_VISIBLE_DEVICES": gpus}


class ProcessSandbox:
    """An instance in a forked process. Made by `ProcessRuntime.assign`; see `base.Sandbox`."""

    def __init__(
        self,
        child: Child,
        assignment: Assignment,
        tier: Tier,
        home: Home,
        *,
        logs: LogStore,
        memory: MemoryGuard,
        bury: Callable[[ProcessSandbox], Awaitable[None]],
    ) -> None:
        self.id = assignment.id
        self.endpoint = assignment.endpoint
        self.version = assignment.version
        self.pid = child.pid
        self.home = home
        self.path = home.path
        self.address = f"unix:{home.door}"
        self.tier: Tier = tier
        self.timings = Timings(0.0, 0.0, 0.0, 0.0)
        loop = asyncio.get_running_loop()
        self.exited: asyncio.Future[Exit] = loop.create_future()
        self.child = child
        self._assignment = assignment
        self._logs = logs
        self._attached = False
        self._memory = memory
        self._bury = bury
        self._limit = assignment.memory_limit
        self._answers: dict[str, asyncio.Future[Packet]] = {}
        self._stopping: asyncio.Task[Exit] | None = None
        self._buried: asyncio.Task[None] | None = None
        self._reason: Exit | None = None
        child.on_packet = self._packet
        child.exited.add_done_callback(self._ended)

    async def start(self, claimed_at: float) -> None:
        """Assign it and wait until it is ready. Raises `AssignFailed`; it is dead and gone then."""
        a = self._assignment
        packet: Packet = {
            "op": "assign", "id": a.id, "endpoint": a.endpoint, "version": a.version,
            "code": str(a.code_dir), "entry": a.entry, "handler": a.handler, "token": a.token,
            "env": sandbox_env(a), "dir": str(self.path), "concurrency": a.concurrency,
            "batch_max_size": a.batch_max_size, "batch_max_wait_ms": a.batch_max_wait_ms,
            "timeout": a.timeout_s, "load_timeout": a.load_timeout_s, "max_body": a.max_body,
            "nofile": NOFILE,
        }  # fmt: skip
        ready = self._expect("ready")
        try:
            if self._limit is not None:
                self._memory.limit(self.child, self._limit)
            self.child.send(packet, self.home.listener)
        except ChannelError as error:
            raise await self._give_up(Exit("exited", f"cannot be assigned: {error}")) from error
        finally:
            self.home.listener.close()
        # From here on the process works, and so may we.
        self._logs.attach(self.endpoint)
        self._attached = True
        self.child.listen(lambda stream, lines: self._logs.write(self.endpoint, self.id, stream, lines))
        answer = await self._first(ready, a.load_timeout_s + START_SLACK_S)
        if answer is None and self.child.alive:
            limit_s = a.load_timeout_s + START_SLACK_S
            raise await self._give_up(Exit("start-timeout", f"not ready within {limit_s:.0f} s"))
        if answer is None:
            raise await self._give_up(None)
        if answer.get("ev") == "failed":
            raise await self._give_up(None)
        total = time.monotonic() - claimed_at
        imported, load = _seconds(answer.get("imported"), total), _seconds(answer.get("load"), total)
        self.timings = Timings(max(0.0, total - imported - load), imported, load, total)
        self._system(f"started: version {self.version}, {self.tier}, {total * 1000:.0f} ms")

    async def stop(self, grace_s: float) -> Exit:
        """See `base.Sandbox.stop`. Any number of callers; the first one's grace counts."""
        if self._stopping is None:
            self._stopping = asyncio.create_task(self._stop(grace_s))
        return await asyncio.shield(self._stopping)

    async def kill(self, reason: Exit | None = None) -> None:
        """End it now; ``reason`` is what `exited` will say instead of the signal."""
        if self.child.alive and self._reason is None:
            self._reason = reason
        self.child.kill()
        await self.gone()

    async def gone(self) -> None:
        """Returns when it has ended and nothing of it is left."""
        await asyncio.wait([self.exited], timeout=BURY_WAIT_S)
        if self._buried:
            await asyncio.wait([self._buried], timeout=BURY_WAIT_S)

    async def stats(self) -> Stats:
        """See `base.Sandbox.stats`; PSS of its main process."""
        answer = self._ask("stats")
        rss = await asyncio.to_thread(procs.pss, self.pid)
        seen = procs.stat(self.pid)
        if seen is None or not self.child.alive:
            raise self._is_gone()
        if seen.stopped:
            return Stats(rss, seen.cpu_s, stopped=True)
        packet = await self._first(answer, STATS_TIMEOUT_S)
        in_flight = packet.get("in_flight") if packet else None
        believed = isinstance(in_flight, int) and 0 <= in_flight <= MAX_IN_FLIGHT
        return Stats(rss, seen.cpu_s, in_flight if believed else None)

    async def health(self) -> tuple[bool, str]:
        """The engine's check and the user's ``health``: well or not, and why. Raises `SandboxGone`."""
        packet = await self._first(self._ask("health"), HEALTH_TIMEOUT_S)
        if packet is None and not self.child.alive:
            raise self._is_gone()
        if packet is None:
            return False, f"no answer within {HEALTH_TIMEOUT_S:.0f} s"
        return bool(packet.get("ok")), str(packet.get("detail", ""))

    def _ask(self, op: str) -> asyncio.Future[Packet]:
        """Ask the process; who asks again before it answered waits for the same answer."""
        if not self.child.alive:
            raise self._is_gone()
        answer = self._answers.get(op)
        if answer is None:
            answer = self._expect(op)
            with contextlib.suppress(ChannelError):
                self.child.send({"op": op})
        return answer

    def _is_gone(self) -> SandboxGone:
        return SandboxGone(f"The instance {self.id} has ended.")

    async def _stop(self, grace_s: float) -> Exit:
        if self.child.alive:
            self._reason = self._reason or Exit("stopped")
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

    def _ended(self, ended: asyncio.Future[Ended]) -> None:
        end = ended.result()
        limit = self._memory.killed_for(self.child, self._limit)
        stopping = self._reason is not None and self._reason.reason == "stopped"
        exit = explain(end.code, end.signal, stopping=stopping, limit=limit, note=end.note)
        if self._reason is not None and not stopping:
            exit = self._reason
        for answer in self._answers.values():
            answer.cancel()
        self._system(f"ended: {exit.reason}" + (f", {exit.detail}" if exit.detail else ""))
        if self._attached:
            self._logs.detach(self.endpoint)
        self.exited.set_result(exit)
        self._buried = asyncio.create_task(self._bury_all())

    async def _bury_all(self) -> None:
        await self._bury(self)
        await asyncio.to_thread(self.home.remove)

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
            self._reason = _failure(packet)
        elif event == "stuck" and self._reason is None:
            self._reason = Exit("stuck", str(packet.get("message", "")))
        answer = self._answers.get("ready" if event == "failed" else event)
        if answer and not answer.done():
            answer.set_result(packet)

    def _system(self, text: str) -> None:
        self._logs.write(self.endpoint, self.id, "system", [text])


def _failure(packet: Packet) -> Exit:
    message, traceback = str(packet.get("message", "")), str(packet.get("traceback", ""))
    if packet.get("reason") == "import-failed":
        return Exit("import-failed", message, traceback=traceback)
    return Exit("load-failed", message, traceback=traceback)


def _seconds(value: object, most: float) -> float:
    """A duration as an instance tells it, believed up to ``most``."""
    return float(value) if isinstance(value, int | float) and 0 <= value <= most else 0.0
