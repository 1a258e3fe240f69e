"""What the kernel does for a container, whoever started it: mounts, limits, freezing, signals, its end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import threading
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from headrace_runtimes.containers.ending import ENDED_EARLY, ended, in_words, wait_status
from headrace_runtimes.devices.edits import Edits, join_env
from headrace_runtimes.devices.machine import Machine
from headrace_runtimes.errors import PrepareFailed
from headrace_runtimes.instance.home import sandbox_env
from headrace_runtimes.oci import mounts
from headrace_runtimes.oci.cgroup import Cgroup, disk_of
from headrace_runtimes.oci.disk import DISK_BYTES, Disk
from headrace_runtimes.spec import Assignment, Stats

DEAD_WAIT_S = 10.0
FREEZE_WAIT_S = 2.0
FREEZE_AGAIN_S = 0.05


class KernelContainer:
    """The part of `containers.driver.Container` that needs no engine, only its first process and its cgroup.

    ``directory``: its own on the host; ``disk``: the file system that it writes to.
    """

    def __init__(self, id: str, directory: Path, disk: Disk, cgroup: Cgroup, env: dict[str, str]) -> None:
        self.id, self.pid = id, 0
        self.directory, self.disk, self.cgroup = directory, disk, cgroup
        self.leaf = cgroup
        """Where its processes are, when that is below ``cgroup``: version 1 holds IO back only there."""
        self.machine = Machine()
        """Whose accelerators it may be assigned."""
        self.owner, self.root = 0, 0
        """Host's ids: whose its device nodes are, and who may make files in its ``/dev``."""
        self._env = env
        self._pidfd = -1
        self._removed: asyncio.Task[None] | None = None

    def entered(self, pid: int) -> None:
        """Its first process runs. Raises ``OSError`` when that is gone already."""
        self.pid = pid
        self._pidfd = os.pidfd_open(pid)

    async def mount(self, source: Path, target: str) -> None:
        """See `Container.mount`."""
        await _apart(partial(mounts.show, self.pid, source, target))

    async def furnish(self, assignment: Assignment) -> Mapping[str, str]:
        """See `Container.furnish`."""
        edits = self.machine.at_assignment(assignment.gpu_indices)
        given = join_env(self.machine.at_creation().env, edits.env)
        self._env = join_env(self._env | sandbox_env(assignment), given)
        if edits.nodes or edits.binds:
            await self._show_devices(edits)
        limits = (
            assignment.memory_limit, assignment.cpu_limit, assignment.pids_limit, assignment.io_limit,
            assignment.disk_limit,
        )  # fmt: skip
        if any(limit is not None for limit in limits):
            await asyncio.to_thread(self._limit, assignment)
        return edits.env

    async def _show_devices(self, edits: Edits) -> None:
        try:
            for node in edits.nodes:
                self.leaf.allow_device(node.rule)
        except OSError as error:
            raise PrepareFailed(f"The devices cannot be allowed to {self.id}: {error}.") from error
        show = partial(mounts.show_devices, owner=self.owner, root=self.root)
        await _apart(partial(show, self.pid, edits.nodes, edits.binds, self.directory / "devices"))

    def _limit(self, assignment: Assignment) -> None:
        what = ""
        try:
            if assignment.memory_limit is not None:
                what = "memory"
                self.cgroup.limit_memory(assignment.memory_limit)
            if assignment.cpu_limit is not None:
                what = "CPU"
                self.cgroup.limit_cpu(assignment.cpu_limit)
            if assignment.pids_limit is not None:
                what = "processes"
                self.cgroup.limit_pids(assignment.pids_limit)
            if assignment.io_limit is not None:
                what = "input and output"
                under = disk_of(self.directory.stat().st_dev)
                self.leaf.limit_io(assignment.io_limit, {d for d in (under, self.disk.device()) if d})
            if assignment.disk_limit is not None and assignment.disk_limit != DISK_BYTES:
                what = "disk"
                self.disk.limit(assignment.disk_limit)
        except OSError as error:
            raise PrepareFailed(f"The limit of {what} cannot be set for {self.id}: {error}.") from error

    def signal(self, number: int) -> None:
        """See `Container.signal`."""
        if self._pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, number)

    def killed_for_memory(self) -> bool:
        """See `Container.killed_for_memory`."""
        return self.cgroup.oom_killed()

    def gone(self) -> bool:
        """Whether its first process ran, and does no more."""
        return self.pid > 0 and (self._pidfd < 0 or ended(self._pidfd))

    async def ended_early(self) -> PrepareFailed:
        """What is told of one whose first process was gone before anybody listened to it."""
        return PrepareFailed(f"The engine {ENDED_EARLY} ({await self.end_in_words()}).")

    async def end_in_words(self) -> str:
        """See `Container.end_in_words`."""
        status = await wait_status(self._pidfd) if self._pidfd >= 0 else None
        return in_words(status, await self._exit_code() if status is None else None, await self.said())

    async def said(self) -> str:
        """See `Container.said`."""
        raise NotImplementedError

    async def _exit_code(self) -> int | None:
        """Of its first process, when somebody else has it than the kernel."""
        return None

    def alone(self) -> bool:
        """See `Container.alone`."""
        there = bool(self.cgroup.directories())
        return there and {*self.cgroup.pids()} <= {self.pid}

    async def use(self) -> Stats | None:
        """See `Container.use`."""
        return self.cgroup.use()

    async def pause(self) -> None:
        """See `Container.pause`. Raises ``OSError`` when something in it does not stop; it runs on then."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + FREEZE_WAIT_S
        again = 0.0
        while True:
            if loop.time() >= again:
                # Version 1 misses who is born meanwhile; told again it looks again.
                self.cgroup.freeze(True)
                again = loop.time() + FREEZE_AGAIN_S
            if self.cgroup.frozen():
                return
            if loop.time() > deadline:
                self.cgroup.freeze(False)
                raise OSError(
                    f"{self.id} does not freeze within {FREEZE_WAIT_S:.0f} s: it waits in the kernel"
                )
            await asyncio.sleep(0.001)

    async def resume(self) -> None:
        """See `Container.resume`."""
        self.cgroup.freeze(False)

    async def remove(self) -> None:
        """See `Container.remove`."""
        if self._removed is None:
            self._removed = asyncio.create_task(self._remove())
        await asyncio.shield(self._removed)

    async def _remove(self) -> None:
        with contextlib.suppress(OSError):
            self.cgroup.freeze(False)
        self.signal(signal.SIGKILL)
        loop = asyncio.get_running_loop()
        deadline = loop.time() + DEAD_WAIT_S
        while self.cgroup.pids() and loop.time() < deadline:  # noqa: ASYNC110 - the kernel tells nobody
            await asyncio.sleep(0.005)
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1
        await self._clean_up()

    async def _clean_up(self) -> None:
        """Its processes are dead: take away what there is on the host."""
        raise NotImplementedError


async def _apart(work: Callable[[], None]) -> None:
    """Do it in a thread of its own, which changes namespaces and ends."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()

    def settle(error: BaseException | None) -> None:
        if not done.done():
            done.set_exception(error) if error else done.set_result(None)

    def run() -> None:
        try:
            work()
        except BaseException as error:
            loop.call_soon_threadsafe(settle, error)
        else:
            loop.call_soon_threadsafe(settle, None)

    threading.Thread(target=run, name="show", daemon=True).start()
    await done
