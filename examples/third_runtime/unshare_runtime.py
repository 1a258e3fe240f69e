"""A runtime of one's own, written from docs/reference/runtimes.md: sandboxes by util-linux alone.

``unshare`` gives each sandbox process ids and mounts of its own, ``nsenter`` goes in, ``setpriv`` has it die
with its host. It shows what a driver must do and no more: files, users and the network are the host's, so it
is no isolation, and says so.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from headrace_runtimes.base import Progress
from headrace_runtimes.containers.driver import CODE, DOOR_DIR, ENGINE, HOME, SECRETS, ContainerSpec, Root
from headrace_runtimes.containers.runtime import ContainerRuntime
from headrace_runtimes.errors import NotSupported, PrepareFailed
from headrace_runtimes.images.definition import Image
from headrace_runtimes.instance import procs
from headrace_runtimes.instance.leftovers import RunDir
from headrace_runtimes.spec import CAPABILITIES, Assignment, Capability, Owned, Ran, RuntimeSettings, Stats

TOOLS = ("setpriv", "unshare", "nsenter", "mount", "chroot", "sh")
PATH = "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"
UP_S = 10.0
LOOK_S = 0.2
OUTPUT_BYTES = 1 << 20

# $1: the new root, $2: engine, $3: door, then what is hidden, "--", and the command. Its mounts are its own.
SCRIPT = f"""set -e
root=$1 engine=$2 door=$3; shift 3
mount -t tmpfs -o mode=755 headrace "$root"
for place in /*; do
    case $place in
        /headrace | /proc | /run | /weights) continue ;;
        *) if [ -L "$place" ]; then cp -P "$place" "$root$place"
           elif [ -d "$place" ]; then mkdir "$root$place"; mount --rbind "$place" "$root$place"; fi ;;
    esac
done
for place in /proc {SECRETS} {ENGINE} {DOOR_DIR} {CODE} {HOME}/home {HOME}/tmp; do
    mkdir -p "$root$place"
done
mount -t proc proc "$root/proc"
mount -t tmpfs -o mode=700 secrets "$root{SECRETS}"
mount --bind -o ro "$engine" "$root{ENGINE}"
mount --bind -o ro "$door" "$root{DOOR_DIR}"
while [ "$1" != -- ]; do mount -t tmpfs -o mode=0 hidden "$root$1"; shift; done
shift
exec chroot "$root" "$@"
"""


class UnshareContainer:
    """One sandbox: ``unshare`` on the outside, the engine as process 1 of the inside."""

    def __init__(self, spec: ContainerSpec, directory: Path) -> None:
        self.id = spec.id
        self.pid = 0
        self.directory = directory
        self._env = {"PATH": PATH, "HOME": f"{HOME}/home", **spec.env}
        self._outer: subprocess.Popen[bytes] | None = None
        self._watch: asyncio.Task[None] | None = None
        self._killed_for_memory = False

    async def up(self, words: Sequence[str]) -> None:
        """Start it. Raises `PrepareFailed` when there is no first process of the inside in time."""
        self._start(words)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(UP_S):
                while not self._is_up():  # noqa: ASYNC110 - nobody tells of a grandchild
                    await asyncio.sleep(0.002)
        if not self.pid:
            raise PrepareFailed(
                f"The sandbox {self.id} did not start: try `unshare --mount --pid --fork true`."
            )

    def _start(self, words: Sequence[str]) -> None:
        # From the loop's own thread: who is to die with a parent dies with the thread that made it.
        self._outer = subprocess.Popen(
            ["setpriv", "--pdeathsig=KILL", "unshare", "--mount", "--pid", "--fork", "--kill-child=KILL",
             "--propagation=private", "--", "sh", "-c", SCRIPT, "sh", *words],
            env=self._env, stdin=subprocess.DEVNULL,
        )  # fmt: skip

    def _is_up(self) -> bool:
        """Whether it has a first process, or never will."""
        assert self._outer is not None
        with contextlib.suppress(OSError):
            found = Path(f"/proc/{self._outer.pid}/task/{self._outer.pid}/children").read_text().split()
            self.pid = int(found[0]) if found else 0
        return bool(self.pid) or self._outer.poll() is not None

    async def mount(self, source: Path, target: str) -> None:
        """See `Container.mount`."""
        place = f"{self.directory}{target}"
        script = 'mkdir -p "$2" && mount --bind -o ro "$1" "$2"'
        ran = await _run(
            [
                "nsenter",
                f"--target={self.pid}",
                "--mount",
                "--",
                "sh",
                "-c",
                script,
                "sh",
                str(source),
                place,
            ],
            timeout_s=UP_S,
        )
        if ran.code != 0:
            raise PrepareFailed(
                f"{source} cannot be shown at {target}: {ran.stderr.decode(errors='replace')}"
            )

    async def furnish(self, assignment: Assignment) -> Mapping[str, str]:
        """See `Container.furnish`: memory is looked at, other limits are refused."""
        asked = (assignment.cpu_limit, assignment.pids_limit, assignment.disk_limit, assignment.io_limit)
        if any(value is not None for value in asked):
            raise PrepareFailed('The unshare runtime holds no limit but memory: use runtime="oci".')
        if assignment.memory_limit is not None:
            self._watch = asyncio.create_task(self._hold(assignment.memory_limit))
        return {}

    def signal(self, number: int) -> None:
        """See `Container.signal`: the kernel ends all others of a process id namespace with its first."""
        procs.send_signal(self.pid, number)

    def killed_for_memory(self) -> bool:
        """See `Container.killed_for_memory`."""
        return self._killed_for_memory

    def alone(self) -> bool:
        """See `Container.alone`: nobody counts its processes, so its end is that of the first one."""
        return False

    async def end_in_words(self) -> str:
        """See `Container.end_in_words`."""
        code = self._outer.poll() if self._outer is not None else None
        return f"exit code {code}" if code is not None else "nobody knows how"

    async def said(self) -> str:
        """See `Container.said`: what it prints so early goes where the host's own output goes."""
        return ""

    async def use(self) -> Stats | None:
        """See `Container.use`."""
        return await asyncio.to_thread(self._use)

    async def pause(self) -> None:
        """Raises `NotSupported`."""
        raise NotSupported('The unshare runtime cannot pause: use runtime="oci".')

    async def resume(self) -> None:
        """Raises `NotSupported`."""
        raise NotSupported('The unshare runtime cannot pause: use runtime="oci".')

    async def exec(self, argv: Sequence[str], env: Mapping[str, str], timeout_s: float) -> Ran:
        """See `Container.exec`."""
        enter = ["nsenter", f"--target={self.pid}", "--mount", "--pid", "--root", f"--wdns={HOME}", "--"]
        return await _run([*enter, *argv], timeout_s=timeout_s, env={**self._env, **env})

    async def remove(self) -> None:
        """See `Container.remove`: its mounts end with its processes."""
        if self._watch is not None:
            self._watch.cancel()
        await asyncio.to_thread(self._remove)

    def _remove(self) -> None:
        if self.pid:
            procs.kill_until_gone(lambda: [self.pid] if procs.identity(self.pid) else [])
        if self._outer is not None:
            self._outer.kill()
            self._outer.wait()
        with contextlib.suppress(OSError):
            self.directory.rmdir()

    def _use(self) -> Stats | None:
        if (first := procs.stat(self.pid)) is None:
            return None
        with contextlib.suppress(OSError):
            inside = os.readlink(f"/proc/{self.pid}/ns/pid")
            found = [pid for pid in procs.pids() if _namespace(pid) == inside]
            seen = [process for pid in found if (process := procs.stat(pid)) is not None]
            return Stats(
                sum(map(procs.pss, found)), sum(process.cpu_s for process in seen), stopped=first.stopped
            )
        return None

    async def _hold(self, limit: int) -> None:
        while (used := await self.use()) is not None:
            if used.rss > limit:
                self._killed_for_memory = True
                self.signal(signal.SIGKILL)
                return
            await asyncio.sleep(LOOK_S)


class UnshareDriver:
    """See `containers.driver.Driver`."""

    name: ClassVar[str] = "unshare"

    def capabilities(self) -> Mapping[Capability, str]:
        """Commands can be run; the rest says why not."""
        missing = [tool for tool in TOOLS if shutil.which(tool, path=PATH) is None]
        why = f"{missing[0]} is not installed" if missing else ""
        why = why or ("" if os.geteuid() == 0 else "the host does not run as root")
        no = "the unshare runtime shares files, users and the network with the host"
        return {name: why if name == "exec" else no for name in CAPABILITIES}

    async def open(self, settings: RuntimeSettings) -> None:
        """See `Driver.open`."""
        if why := self.capabilities()["exec"]:
            raise PrepareFailed(f"The unshare runtime cannot run here: {why}.")
        self._settings = settings
        self._dir = RunDir(settings.run_dir / "u")
        await asyncio.to_thread(self._dir.open)

    async def close(self) -> None:
        """See `Driver.close`."""
        if hasattr(self, "_dir"):
            await asyncio.to_thread(self._dir.remove)

    async def prepare(self, image: Image, progress: Progress | None) -> Root:
        """The host's own files are the only root. Raises `NotSupported` for any other."""
        if image.digest:
            raise NotSupported('The unshare runtime has no images: use runtime="oci".')
        return Root("", self._settings.python)

    async def create(self, spec: ContainerSpec) -> UnshareContainer:
        """See `Driver.create`."""
        if spec.network.mode == "none" or spec.network.allow:
            raise PrepareFailed('The unshare runtime holds nobody from the network: use runtime="oci".')
        container = UnshareContainer(spec, self._dir.sandboxes / spec.id)
        container.directory.mkdir()
        hidden = [str(path) for path in self._settings.hide if path.is_dir()]
        try:
            await container.up(
                [
                    str(container.directory),
                    str(self._settings.engine_dir),
                    str(spec.door_dir),
                    *hidden,
                    "--",
                    *spec.argv,
                ]
            )
        except BaseException:
            await asyncio.shield(container.remove())
            raise
        # What a killed host leaves dies by itself; the next one makes sure.
        self._dir.record(container.pid)
        return container

    async def list_owned(self) -> list[Owned]:
        """See `Driver.list_owned`."""
        return [Owned("container", path.name) for path in self._dir.sandboxes.iterdir()]


class UnshareRuntime(ContainerRuntime):
    """Sandboxes by util-linux: see the module."""

    name: ClassVar[str] = "unshare"

    def __init__(self) -> None:
        super().__init__(UnshareDriver())


def _namespace(pid: int) -> str:
    with contextlib.suppress(OSError):
        return os.readlink(f"/proc/{pid}/ns/pid")
    return ""


async def _run(argv: Sequence[str], *, timeout_s: float, env: Mapping[str, str] | None = None) -> Ran:
    process = await asyncio.create_subprocess_exec(
        *argv, env=dict(env) if env is not None else None, stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    try:
        async with asyncio.timeout(timeout_s):
            stdout, stderr = await process.communicate()
    except BaseException:
        procs.signal_group(process.pid, signal.SIGKILL)
        await process.wait()
        raise
    return Ran(process.returncode or 0, stdout[:OUTPUT_BYTES], stderr[:OUTPUT_BYTES])
