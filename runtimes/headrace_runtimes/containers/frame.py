"""What holds a sandbox of a container runtime: the container and the process in it that we talk to."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from headrace_runtimes.containers.driver import CODE, HOME, Container
from headrace_runtimes.errors import PrepareFailed, RuntimeFailure
from headrace_runtimes.instance import procs
from headrace_runtimes.instance.channel import Packet
from headrace_runtimes.instance.child import Child
from headrace_runtimes.instance.home import make_door
from headrace_runtimes.instance.sandbox import Furnished
from headrace_runtimes.spec import Assignment, Ran, Stats, Tier

log = logging.getLogger("headrace.runtimes")

REPORT_BYTES = 256
LAST_CODE, LAST_SIGNAL = 255, 64
PARK_POLL_S = 0.002
LOOK_S, DIES_WITHIN_S = 1.0, 2.0


class ContainerChild(Child):
    """The child side of a container: signals go to its first process, its end is told by that one's pipe."""

    def __init__(self, id: str) -> None:
        super().__init__(id, None, own_uid=False)
        self.container: Container | None = None
        self._report, self._their_report = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._pidfd = -1
        self._answer: asyncio.Future[Packet] | None = None
        self._heard = b""
        self._parking = False
        self.on_packet = self._before

    def descriptors(self) -> list[int]:
        """What goes through the door: control socket, stdout, stderr, the exit status's pipe."""
        return [*super().descriptors(), self._their_report]

    def handed_over(self) -> None:
        """Close our copies of the other ends."""
        super().handed_over()
        if self._their_report >= 0:
            os.close(self._their_report)
            self._their_report = -1

    def entered(self, container: Container) -> None:
        """Its first process runs; from now on its end is noticed. Raises ``OSError`` when it is gone."""
        self.container = container
        self._pidfd = os.pidfd_open(container.pid)
        self.forked(container.pid)
        loop = asyncio.get_running_loop()
        loop.add_reader(self._pidfd, self._gone)
        loop.add_reader(self._report, self._told)

    def signal(self, number: int) -> None:
        """To its first process, which passes SIGTERM on; SIGKILL ends the container."""
        if self.container is not None and self.alive:
            self.container.signal(number)

    def died(self, code: int | None, sig: int | None, note: str = "") -> None:
        """It is gone."""
        if self._pidfd >= 0:
            loop = asyncio.get_running_loop()
            loop.remove_reader(self._pidfd)
            loop.remove_reader(self._report)
            os.close(self._pidfd)
            self._pidfd = -1
        super().died(code, sig, note)
        if self._report >= 0:
            os.close(self._report)
            self._report = -1

    async def ask(self, packet: Packet, timeout_s: float) -> Packet:
        """A question before the assignment, one at a time. Raises `PrepareFailed`."""
        answer: asyncio.Future[Packet] = asyncio.get_running_loop().create_future()
        self._answer = answer
        self.send(packet)
        waiting: list[asyncio.Future[Any]] = [answer, self.exited]
        await asyncio.wait(waiting, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        self._answer = None
        if answer.done():
            return answer.result()
        answer.cancel()
        if self.exited.done():
            end = self.exited.result()
            how = f"signal {end.signal}" if end.signal is not None else f"exit code {end.code}"
            raise PrepareFailed(f"The engine ended in its container ({how}). {self.last_words()}".strip())
        raise PrepareFailed(f"The engine did not answer {packet['op']!r} within {timeout_s:.0f} s.")

    async def park(self, timeout_s: float) -> None:
        """Let it go of all that leads to us; it knocks at its door from then on. Raises `PrepareFailed`.

        What it has started may hold its output: then it does not come to that.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        self._parking = True
        self.send({"op": "park"})
        while not self._let_go():
            if not self.alive or loop.time() > deadline:
                raise PrepareFailed(f"The engine does not let go of its host within {timeout_s:.0f} s.")
            await asyncio.sleep(PARK_POLL_S)

    def _let_go(self) -> bool:
        if not self._channel.closed or not all(pipe.closed for pipe in self._pipes):
            return False
        try:
            return not os.read(self._report, REPORT_BYTES)
        except BlockingIOError:
            return False

    def _cut_off(self) -> None:
        if not self._parking:
            super()._cut_off()

    def _before(self, packet: Packet) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(packet)

    def _told(self) -> None:
        """The first process says how the engine's has ended. With nobody else there, that is the end.

        Its own takes as long as the kernel needs for its namespaces, and nothing waits for those.
        """
        asyncio.get_running_loop().remove_reader(self._report)
        with contextlib.suppress(OSError):
            self._heard = os.read(self._report, REPORT_BYTES)
        if self._heard and self.container is not None and self.container.alone():
            self._gone()

    def _gone(self) -> None:
        if not self._heard:
            with contextlib.suppress(OSError):
                self._heard = os.read(self._report, REPORT_BYTES)
        self.died(*how_it_ended(self._heard))


def how_it_ended(told: bytes) -> tuple[int | None, int | None]:
    """Exit code or signal, as the first process (anybody) tells it; what makes no sense was a kill."""
    with contextlib.suppress(ValueError, RecursionError):
        match json.loads(told):
            case {"code": int(code), "signal": None} if type(code) is int and 0 <= code <= LAST_CODE:
                return code, None
            case {"signal": int(number)} if type(number) is int and 1 <= number <= LAST_SIGNAL:
                return None, number
    return None, int(signal.SIGKILL)


def stopped(first: int) -> bool:
    """Whether a signal has stopped the first process of a container, or the engine, its oldest child.

    Its other children are those whose parents have ended: what has stopped one of them is the user's affair.
    Blocks for less than a millisecond.
    """
    seen = [procs.stat(pid) for pid in (first, *_children(first))]
    init, children = seen[0], [child for child in seen[1:] if child is not None]
    engine = min(children, key=lambda child: (child.start, child.pid), default=None)
    return any(one is not None and one.stopped for one in (init, engine))


def _children(pid: int) -> list[int]:
    with contextlib.suppress(OSError, ValueError):
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def killed(first: int) -> bool:
    """Whether a SIGKILL waits for the first process of a container, or for one of its own children, to go on.

    One of those is the engine. Blocks for less than a millisecond.
    """
    return any(_killed(pid) for pid in (first, *_children(first)))


def _killed(pid: int) -> bool:
    with contextlib.suppress(OSError, ValueError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            name, _, mask = line.partition(":")
            if name in {"SigPnd", "ShdPnd"} and int(mask, 16) & 1 << (signal.SIGKILL - 1):
                return True
    return False


class ContainerFrame:
    """See `instance.sandbox.Frame`."""

    def __init__(
        self,
        child: ContainerChild,
        container: Container,
        tier: Tier,
        sockets: Path,
        bury: Callable[[Container], Awaitable[None]],
    ) -> None:
        self.child = child
        self.container = container
        self.tier: Tier = tier
        self.code: Path | None = None
        """The bundle that it sees at `CODE` already."""
        self._sockets = sockets
        self._bury = bury
        self._watching: asyncio.Task[None] | None = None

    async def furnish(self, assignment: Assignment) -> Furnished:
        """See `Frame.furnish`."""
        home = make_door(self._sockets, assignment.id)
        try:
            await self._show_code(assignment.code_dir)
            for source, target in assignment.mounts:
                await self.container.mount(source, target)
            env = await self.container.furnish(assignment)
        except BaseException:
            home.listener.close()
            home.remove()
            raise
        return Furnished(home, CODE, HOME, env)

    async def _show_code(self, code_dir: Path) -> None:
        if self.code is None:
            await self.container.mount(code_dir, CODE)
        elif self.code != code_dir:
            raise PrepareFailed(f"The container has loaded {self.code.name[:12]}, another bundle.")

    def killed_for(self, limit: int | None) -> int | None:
        """See `Frame.killed_for`."""
        return limit if limit is not None and self.container.killed_for_memory() else None

    async def use(self) -> Stats | None:
        """See `Frame.use`."""
        used = await self.container.use()
        if used is None or not self.child.pid:
            return used
        return replace(used, stopped=stopped(self.child.pid))

    async def freeze(self) -> None:
        """See `Frame.freeze`."""
        await self.container.pause()
        if self._watching is None:
            self._watching = asyncio.create_task(self._let_the_killed_die())

    async def thaw(self) -> None:
        """See `Frame.thaw`."""
        await self._unwatched()
        await self.container.resume()

    async def _let_the_killed_die(self) -> None:
        """While it is frozen. On cgroups of version 1 the frozen do not die before they go on."""
        while self.child.alive:
            await asyncio.sleep(LOOK_S)
            if not await asyncio.to_thread(killed, self.child.pid):
                continue
            try:
                await self.container.resume()
                await asyncio.wait([self.child.exited], timeout=DIES_WITHIN_S)
                if self.child.alive:
                    # Not one that it cannot live without.
                    await self.container.pause()
            except (RuntimeFailure, OSError) as error:
                log.warning("What is killed in %s cannot die: %s", self.container.id, error)

    async def _unwatched(self) -> None:
        task, self._watching = self._watching, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])

    async def exec(self, argv: Sequence[str], env: Mapping[str, str], timeout_s: float) -> Ran:
        """See `Frame.exec`."""
        return await self.container.exec(argv, env, timeout_s)

    async def bury(self) -> None:
        """Destroy the container: it is used once."""
        await self._unwatched()
        await self._bury(self.container)
