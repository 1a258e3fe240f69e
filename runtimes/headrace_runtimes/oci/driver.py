"""`OciDriver`: a container is an overlay, a configuration, and a call of runc."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from headrace_runtimes.base import Progress
from headrace_runtimes.containers.driver import ContainerSpec, Root
from headrace_runtimes.errors import NotSupported, PrepareFailed
from headrace_runtimes.images.definition import Image
from headrace_runtimes.images.hostroot import make_host_root
from headrace_runtimes.oci import mounts
from headrace_runtimes.oci.bundle import ID_COUNT, Place, configuration
from headrace_runtimes.oci.cgroup import Cgroup
from headrace_runtimes.spec import (
    CAPABILITIES,
    Assignment,
    Capability,
    Owned,
    Ran,
    RuntimeSettings,
    Stats,
)
from headrace_runtimes.trees import remove_tree

BINARIES = ("runc", "crun", "youki")
RUN_TIMEOUT_S = 30.0
DEAD_WAIT_S = 10.0
FIRST_ID = 0x4000_0000
"""Host ids of user namespaces begin here: far above those of users and of the process runtime."""
FREEZE_WAIT_S = 2.0


class OciContainer:
    """See `containers.driver.Container`."""

    def __init__(self, driver: OciDriver, id: str, directory: Path, slot: int) -> None:
        self.id, self.pid = id, 0
        self._driver, self._dir, self._slot = driver, directory, slot
        self.cgroup = Cgroup(driver.cgroup_path(id))
        self._pidfd = -1
        self._removed: asyncio.Task[None] | None = None

    def started(self) -> None:
        """Its first process runs. Raises `PrepareFailed`."""
        try:
            self.pid = int((self._dir / "pid").read_text())
            self._pidfd = os.pidfd_open(self.pid)
        except (OSError, ValueError) as error:
            raise PrepareFailed(f"The container {self.id} ended at once: {error}.") from error

    async def mount(self, source: Path, target: str) -> None:
        """See `Container.mount`."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()

        def settle(error: BaseException | None) -> None:
            if not done.done():
                done.set_exception(error) if error else done.set_result(None)

        def work() -> None:
            try:
                mounts.show(self.pid, source, target)
            except BaseException as error:
                loop.call_soon_threadsafe(settle, error)
            else:
                loop.call_soon_threadsafe(settle, None)

        # A thread of its own: it changes namespaces and ends.
        threading.Thread(target=work, name="show", daemon=True).start()
        await done

    async def furnish(self, assignment: Assignment) -> None:
        """See `Container.furnish`."""
        try:
            if assignment.memory_limit is not None:
                self.cgroup.limit_memory(assignment.memory_limit)
            if assignment.cpu_limit is not None:
                self.cgroup.limit_cpu(assignment.cpu_limit)
            if assignment.pids_limit is not None:
                self.cgroup.limit_pids(assignment.pids_limit)
        except OSError as error:
            raise PrepareFailed(f"A limit of {self.id} cannot be set: {error}.") from error

    def signal(self, number: int) -> None:
        """See `Container.signal`."""
        if self._pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, number)

    def killed_for_memory(self) -> bool:
        """See `Container.killed_for_memory`."""
        return self.cgroup.oom_killed()

    async def use(self) -> Stats | None:
        """See `Container.use`."""
        return self.cgroup.use()

    async def pause(self) -> None:
        """See `Container.pause`."""
        self.cgroup.freeze(True)
        async with asyncio.timeout(FREEZE_WAIT_S):
            while not self.cgroup.frozen():  # noqa: ASYNC110 - the kernel tells nobody
                await asyncio.sleep(0.001)

    async def resume(self) -> None:
        """See `Container.resume`."""
        self.cgroup.freeze(False)

    async def exec(self, argv: Sequence[str], env: Mapping[str, str], timeout_s: float) -> Ran:
        """See `Container.exec`."""
        options = [f"--env={name}={value}" for name, value in env.items()]
        return await self._driver.runc(
            "exec", "--cwd=/headrace/home", *options, self.id, *argv, timeout_s=timeout_s
        )

    async def remove(self) -> None:
        """See `Container.remove`."""
        if self._removed is None:
            self._removed = asyncio.create_task(self._remove())
        await asyncio.shield(self._removed)

    async def _remove(self) -> None:
        with contextlib.suppress(OSError):
            self.cgroup.freeze(False)
        self.signal(signal.SIGKILL)
        deadline = asyncio.get_running_loop().time() + DEAD_WAIT_S
        while self.cgroup.pids() and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(0.005)
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1
        await asyncio.to_thread(self._driver.sweep_one, self._dir)
        self._driver.give_back(self._slot)


class OciDriver:
    """See `containers.driver.Driver`."""

    name: ClassVar[str] = "oci"

    def __init__(self, binary: str | None = None) -> None:
        self._binary = binary
        self._slots: list[int] = []
        self._next_slot = 0

    def capabilities(self) -> Mapping[Capability, str]:
        """See `Driver.capabilities`."""
        why = "" if self._find() else f"none of {', '.join(BINARIES)} is installed: apt-get install runc"
        if not why and os.geteuid() != 0:
            why = "the host does not run as root"
        no = {"fork": "containers are not forked from each other", "checkpoint": "not built yet"}
        return {name: no.get(name, why) for name in CAPABILITIES}

    async def open(self, settings: RuntimeSettings) -> None:
        """See `Driver.open`."""
        binary = self._find()
        if binary is None or os.geteuid() != 0:
            raise PrepareFailed(f"The oci runtime cannot run here: {self.capabilities()['isolation']}.")
        self._runc = binary
        self._settings = settings
        self._tag = hashlib.sha256(str(settings.run_dir).encode()).hexdigest()[:10]
        self._dir = settings.run_dir / "c"
        self._images = settings.images_dir or settings.run_dir / "images"
        await asyncio.to_thread(self._sweep)
        for path in (self._dir, self._images):
            await asyncio.to_thread(path.mkdir, 0o711, True, True)

    async def close(self) -> None:
        """See `Driver.close`."""
        await asyncio.to_thread(self._sweep)
        if self._settings.images_dir is None:
            await asyncio.to_thread(remove_tree, self._images)

    async def prepare(self, image: Image, progress: Progress | None) -> Root:
        """See `Driver.prepare`."""
        if not image.plain:
            raise NotSupported("Images with layers are not built yet.")
        target = self._images / "host"
        if not target.exists():
            await asyncio.to_thread(make_host_root, self._settings.python, target)
        prefix = Path(self._settings.python).parent.parent
        binds = ((prefix, str(prefix)),) if (prefix / "pyvenv.cfg").exists() else ()
        return Root(image.digest, self._settings.python, reference=str(target), binds=binds)

    async def create(self, spec: ContainerSpec) -> OciContainer:
        """See `Driver.create`."""
        slot = self._slots.pop(0) if self._slots else self._take_slot()
        directory = self._dir / spec.id
        container = OciContainer(self, spec.id, directory, slot)
        try:
            await asyncio.to_thread(self._lay_out, spec, directory, slot)
            code = await self._run(spec.id, directory)
            if code != 0:
                raise PrepareFailed(f"{self._runc} refuses the container: {last_words(directory)}.")
            container.started()
        except BaseException:
            await asyncio.shield(container.remove())
            raise
        return container

    async def list_owned(self) -> list[Owned]:
        """See `Driver.list_owned`."""
        return await asyncio.to_thread(self._owned)

    def cgroup_path(self, id: str) -> str:
        """Where a container's cgroup is."""
        return f"/headrace/{self._tag}/{id}"

    def give_back(self, slot: int) -> None:
        """Nothing runs under the ids of ``slot`` any more."""
        self._slots.append(slot)

    async def runc(self, *arguments: str, timeout_s: float) -> Ran:
        """Run the binary. Raises ``TimeoutError``; it is killed then."""
        process = await asyncio.create_subprocess_exec(
            self._runc, "--root", str(self._dir / ".state"), *arguments,
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        try:
            async with asyncio.timeout(timeout_s):
                out, err = await process.communicate()
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
            raise
        return Ran(process.returncode or 0, out[: 1 << 20], err[: 1 << 20])

    async def _run(self, id: str, directory: Path) -> int:
        # Its output is a file: the container's first process keeps what runc was given.
        with open(directory / "words", "wb") as words:  # noqa: ASYNC230 - a file in memory or on disk
            process = await asyncio.create_subprocess_exec(
                self._runc, "--root", str(self._dir / ".state"), "run", "--detach",
                "--pid-file", str(directory / "pid"), "--bundle", str(directory), id,
                stdin=asyncio.subprocess.DEVNULL, stdout=words, stderr=words,
            )  # fmt: skip
        try:
            async with asyncio.timeout(RUN_TIMEOUT_S):
                return await process.wait()
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
            raise

    def sweep_one(self, directory: Path) -> None:
        """Take away what is left of one container. Blocks."""
        with contextlib.suppress(OSError):
            mounts.unmount(directory / "root")
        remove_tree(self._dir / ".state" / directory.name)
        cgroup = Cgroup(self.cgroup_path(directory.name))
        # A process that has died leaves its cgroup when its parent has reaped it.
        deadline = time.monotonic() + DEAD_WAIT_S
        while not cgroup.remove() and time.monotonic() < deadline:
            time.sleep(0.005)
        remove_tree(directory)

    def _lay_out(self, spec: ContainerSpec, directory: Path, slot: int) -> None:
        uid = FIRST_ID + slot * ID_COUNT
        directory.mkdir(mode=0o711)
        directory.chmod(0o711)
        for name in ("root", "upper", "work"):
            (directory / name).mkdir()
        for name in ("headrace/home", "headrace/code", "headrace/engine", "headrace/door"):
            (directory / "upper" / name).mkdir(parents=True)
        for path in (directory / "upper", *(directory / "upper").rglob("*"), directory / "work"):
            os.chown(path, uid, uid)
        mounts.overlay(
            [Path(spec.root.reference)], directory / "upper", directory / "work", directory / "root"
        )
        place = Place(
            root=directory / "root",
            engine=self._settings.engine_dir,
            cgroup=self.cgroup_path(spec.id),
            uid=uid,
        )
        (directory / "config.json").write_text(json.dumps(configuration(spec, place)))

    def _take_slot(self) -> int:
        self._next_slot += 1
        return self._next_slot - 1

    def _sweep(self) -> None:
        for directory in self._containers():
            for pid in Cgroup(self.cgroup_path(directory.name)).pids():
                with contextlib.suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
            self.sweep_one(directory)
        Cgroup(f"/headrace/{self._tag}").remove()
        for path in Cgroup("/headrace").directories():
            with contextlib.suppress(OSError):
                path.rmdir()
        remove_tree(self._dir)

    def _containers(self) -> list[Path]:
        with contextlib.suppress(OSError):
            return [p for p in self._dir.iterdir() if not p.name.startswith(".")]
        return []

    def _owned(self) -> list[Owned]:
        found = [Owned("container", p.name) for p in self._containers()]
        found += [Owned("mount", str(p / "root")) for p in self._containers() if os.path.ismount(p / "root")]
        found += [
            Owned("cgroup", str(p))
            for d in Cgroup(f"/headrace/{self._tag}").directories()
            for p in d.iterdir()
            if p.is_dir()
        ]
        return found

    def _find(self) -> str | None:
        for name in (self._binary,) if self._binary else BINARIES:
            found = shutil.which(name) if name else None
            if found:
                return found
        return None


def last_words(directory: Path) -> str:
    """The last line that runc or the engine printed before anybody listened."""
    with contextlib.suppress(OSError):
        lines = (directory / "words").read_text("utf-8", "replace").strip().splitlines()
        return lines[-1] if lines else "no reason given"
    return "no reason given"
