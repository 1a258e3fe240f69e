"""`DockerContainer`: one container of a daemon. What the kernel can do for it, it is not asked."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from headrace_runtimes.containers.driver import HOME, ContainerSpec
from headrace_runtimes.containers.ending import last_lines
from headrace_runtimes.docker.api import Engine, Refused, demultiplex
from headrace_runtimes.docker.request import execution
from headrace_runtimes.errors import WrongState
from headrace_runtimes.oci.cgroup import Cgroup
from headrace_runtimes.oci.disk import Disk
from headrace_runtimes.oci.kernel import KernelContainer
from headrace_runtimes.spec import Assignment, Ran, Stats

OUTPUT_BYTES = 1 << 20
DRAIN_S = 0.5
ASK_EVERY_S = 0.1
TOLD_WITHIN_S = 2.0
"""The daemon hears of an end a little later than we do."""
PIDS_LIMIT = 1024
"""Processes and threads, when nobody says otherwise."""

Remove = Callable[["DockerContainer"], Awaitable[None]]


class DockerContainer(KernelContainer):
    """See `containers.driver.Container`. Its cgroup is ours; Docker makes its own below, and removes that."""

    def __init__(
        self, spec: ContainerSpec, *, uid: int, disk: Disk, cgroup: Cgroup, engine: Engine, remove: Remove
    ) -> None:
        super().__init__(spec.id, disk.path.parent, disk, cgroup, dict(spec.env))
        self.uid = uid
        self.name = ""
        """Docker's id of it; empty before there is one."""
        self._engine, self._remove_with = engine, remove
        self._oom = OomWatch()

    async def started(self) -> None:
        """Docker says that it runs: find its first process. Raises `PrepareFailed`, ``OSError``."""
        state = (await self._engine.call("GET", f"/containers/{self.name}/json"))["State"]
        with contextlib.suppress(ProcessLookupError):
            if state["Running"] and state["Pid"]:
                self.entered(int(state["Pid"]))
        if not self.pid or self._pidfd < 0:
            raise await self.ended_early()
        self.leaf = Cgroup(await asyncio.to_thread(cgroup_of, self.pid))
        await asyncio.to_thread(self.cgroup.limit_pids, PIDS_LIMIT)
        await asyncio.to_thread(self.leaf.limit_sockets)

    def _limit(self, assignment: Assignment) -> None:
        if assignment.memory_limit is not None:
            with contextlib.suppress(OSError):
                self._oom.open(self.cgroup)
        super()._limit(assignment)

    def killed_for_memory(self) -> bool:
        """See `Container.killed_for_memory`."""
        return self._oom.seen() or self.cgroup.oom_killed() or self.leaf.oom_killed()

    async def use(self) -> Stats | None:
        """See `Container.use`."""
        whole, own = self.cgroup.use(), self.leaf.use()
        return replace(whole, io_bytes=own.io_bytes if own else None) if whole is not None else None

    async def exec(self, argv: Sequence[str], env: Mapping[str, str], timeout_s: float) -> Ran:
        """See `Container.exec`: with the rights, the environment and the directory of the instance.

        What it leaves running ends with the container; its output is not waited for.
        """
        if self.cgroup.frozen():
            raise WrongState(f"The sandbox {self.id} is paused: resume it first.")
        body = execution(argv, self._env | {"HOME": f"{HOME}/home"} | dict(env), self.uid)
        told = await self._engine.call("POST", f"/containers/{self.name}/exec", body)
        id = str(told["Id"])
        kept = {1: bytearray(), 2: bytearray()}
        pump = asyncio.create_task(self._pump(id, kept, timeout_s + 60.0))
        try:
            async with asyncio.timeout(timeout_s):
                code = await self._ended(id, pump)
            await asyncio.wait([pump], timeout=DRAIN_S)
            if pump.done():
                pump.result()
        except BaseException:
            await asyncio.shield(self._kill(id))
            raise
        finally:
            pump.cancel()
            await asyncio.wait([pump])
        return Ran(code, bytes(kept[1]), bytes(kept[2]))

    async def _pump(self, id: str, kept: dict[int, bytearray], timeout_s: float) -> None:
        """Keep the first `OUTPUT_BYTES` of each, let go of the rest."""
        buffer = bytearray()
        async with self._engine.stream(
            f"/exec/{id}/start", {"Detach": False, "Tty": False}, timeout_s
        ) as out:
            async for chunk in out.iter_any():
                buffer += chunk
                for kind, data in demultiplex(buffer):
                    into = kept[2 if kind == 2 else 1]
                    into += data[: OUTPUT_BYTES - len(into)]

    async def _ended(self, id: str, pump: asyncio.Task[None]) -> int:
        """Its exit code, when it has ended; who began it in the background may still print."""
        while True:
            await asyncio.wait([pump], timeout=ASK_EVERY_S)
            if pump.done():
                pump.result()
            state = await self._engine.call("GET", f"/exec/{id}/json")
            if not state["Running"] and state["ExitCode"] is not None:
                return int(state["ExitCode"])

    async def _kill(self, id: str) -> None:
        """Docker has no call for it."""
        with contextlib.suppress(Refused, OSError):
            state = await self._engine.call("GET", f"/exec/{id}/json")
            pid = int(state["Pid"])
            if state["Running"] and pid and pid in self.cgroup.pids():
                os.kill(pid, signal.SIGKILL)

    async def said(self) -> str:
        """See `Container.said`."""
        with contextlib.suppress(Refused):
            query = {"stdout": "1", "stderr": "1", "tail": "5"}
            frames = demultiplex(bytearray(await self._engine.text(f"/containers/{self.name}/logs", query)))
            return last_lines(b"".join(data for _, data in frames).decode("utf-8", "replace"))
        return ""

    async def _exit_code(self) -> int | None:
        deadline = time.monotonic() + TOLD_WITHIN_S
        with contextlib.suppress(Refused):
            while time.monotonic() < deadline:
                state = (await self._engine.call("GET", f"/containers/{self.name}/json"))["State"]
                if state["Status"] in {"exited", "dead"}:
                    return int(state["ExitCode"])
                await asyncio.sleep(ASK_EVERY_S)
        return None

    async def _clean_up(self) -> None:
        try:
            await self._remove_with(self)
        finally:
            self._oom.close()


class OomWatch:
    """Whether the kernel has run out of memory for a cgroup of version 1, also of one below it.

    Docker removes its cgroup, and what that has counted, as soon as the first process has ended; version 1
    tells the one above only as an event.
    """

    def __init__(self) -> None:
        self._event = -1

    def open(self, cgroup: Cgroup) -> None:
        """Listen from now on. Does nothing on version 2. Raises ``OSError``."""
        for place in cgroup.directories():
            control = place / "cgroup.event_control"
            if self._event >= 0 or not (control.exists() and (place / "memory.oom_control").exists()):
                continue
            event = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            try:
                watched = os.open(place / "memory.oom_control", os.O_RDONLY | os.O_CLOEXEC)
                try:
                    control.write_text(f"{event} {watched}")
                finally:
                    os.close(watched)
            except BaseException:
                os.close(event)
                raise
            self._event = event

    def seen(self) -> bool:
        """Whether it has happened."""
        if self._event < 0:
            return False
        try:
            count = os.eventfd_read(self._event)
        except BlockingIOError:
            return False
        os.eventfd_write(self._event, count)
        return True

    def close(self) -> None:
        """Listen no more."""
        if self._event >= 0:
            os.close(self._event)
            self._event = -1


def cgroup_of(pid: int) -> str:
    """The cgroup of a process, that which counts its memory. Raises ``OSError``."""
    found = ""
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if "memory" in controllers.split(","):
            return path
        if number == "0":
            found = path
    return found
