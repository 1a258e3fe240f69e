"""Ends what outlives its owner: processes a sandbox left behind, and a predecessor's remains."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from headrace_runtimes.containers.sweep import mounted_below, unmount_below
from headrace_runtimes.errors import PrepareFailed
from headrace_runtimes.instance import procs, sysv
from headrace_runtimes.instance.cgroups import remove_cgroups
from headrace_runtimes.instance.inmemory import secrets_place
from headrace_runtimes.locks import take
from headrace_runtimes.spec import Owned
from headrace_runtimes.trees import remove_tree

LOCK_WAIT_S = 10.0
KILL_WAIT_S = 5.0
UNMOUNT_WAIT_S = 35.0
SHARED = (Path("/tmp"), Path("/var/tmp"), Path("/dev/shm"))  # noqa: S108 - looked at, not written to
SHARED_DEADLINE_S = 5.0


class Undertaker:
    """Kills all other processes of ended sandboxes; one look at ``/proc`` serves all that ended meanwhile.

    What they left in ``shared`` directories and in System V's memory goes as well: their uid will be
    another sandbox's.
    """

    def __init__(self, shared: Sequence[Path] = SHARED) -> None:
        self._shared = shared
        self._since = time.time()
        self._uids: dict[int, asyncio.Future[bool]] = {}
        self._sessions: dict[tuple[int, int | None], asyncio.Future[bool]] = {}
        self._task: asyncio.Task[None] | None = None

    async def bury(self, pid: int, uid: int | None, *, runs_as: int | None = None) -> bool:
        """Returns when nothing of it runs: by uid when that is its own, else by session. False: some do.

        ``runs_as``: in the session only what has this uid is its (None: all).
        """
        loop = asyncio.get_running_loop()
        if uid is not None:
            done = self._uids.setdefault(uid, loop.create_future())
        else:
            done = self._sessions.setdefault((pid, runs_as), loop.create_future())
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._work())
        return await asyncio.shield(done)

    async def _work(self) -> None:
        while self._uids or self._sessions:
            uids, self._uids = self._uids, {}
            sessions, self._sessions = self._sessions, {}
            gone = await asyncio.to_thread(_kill_all, frozenset(uids), frozenset(sessions))
            if uids:
                await asyncio.to_thread(_remove_shared, self._shared, frozenset(uids), self._since)
                await asyncio.to_thread(sysv.remove_of, frozenset(uids))
            for done in (*uids.values(), *sessions.values()):
                if not done.done():
                    done.set_result(gone)


def _kill_all(uids: frozenset[int], sessions: frozenset[tuple[int, int | None]]) -> bool:
    by_uid = bool(uids) or any(uid is not None for _, uid in sessions)

    def find() -> list[int]:
        found: list[int] = []
        for pid in procs.pids():
            seen = procs.stat(pid)
            if seen is None or seen.zombie:
                continue
            uid = procs.uid_of(pid) if by_uid else None
            if uid in uids or (seen.session, None) in sessions or (seen.session, uid) in sessions:
                found.append(pid)
        return found

    return procs.kill_until_gone(find)


def _remove_shared(places: Sequence[Path], uids: frozenset[int], since: float) -> None:
    """Remove what these uids have in places that all may write to, unless it was there before us."""
    for place in places:
        with contextlib.suppress(OSError), os.scandir(place) as found:
            for entry in found:
                with contextlib.suppress(OSError):
                    seen = entry.stat(follow_symlinks=False)
                    if seen.st_uid in uids and seen.st_ctime >= since:
                        remove_tree(Path(entry.path), SHARED_DEADLINE_S)


@dataclass
class RunDir:
    """The runtime's directory: ``s/`` sandboxes, ``k/`` their sockets, ``p/`` one file per process, ``lock``,
    ``cgroup``."""

    root: Path
    lock: int = field(default=-1)

    def __post_init__(self) -> None:
        self.secrets = secrets_place(self.root)
        """Parent of the sandboxes' secrets; in memory where there is such a place."""

    @property
    def sandboxes(self) -> Path:
        """Parent of the sandboxes' directories."""
        return self.root / "s"

    @property
    def sockets(self) -> Path:
        """Parent of the sandboxes' sockets: sandboxes get there neither to use nor to replace one."""
        return self.root / "k"

    @property
    def processes(self) -> Path:
        """A file per process: named by pid, holding its identity."""
        return self.root / "p"

    def open(self, wait_s: float = LOCK_WAIT_S) -> None:
        """Create, lock, sweep. Blocks up to ``wait_s`` while a predecessor dies. Raises `PrepareFailed`."""
        try:
            self.root.mkdir(parents=True, exist_ok=True, mode=0o711)
            self.root.chmod(0o711)
            self._take_lock(wait_s)
            self.sweep()
            for path in (self.sandboxes, self.sockets, self.processes):
                path.mkdir(mode=0o700, exist_ok=True)
            self.sandboxes.chmod(0o711)
        except OSError as error:
            self.unlock()
            raise PrepareFailed(
                f"Cannot use {self.root}: {error.strerror}. Choose another run directory."
            ) from error
        except PrepareFailed:
            self.unlock()
            raise

    def sweep(self) -> None:
        """End what a predecessor left here and remove its files. Blocks."""

        def alive() -> list[int]:
            return [pid for pid, identity in recorded if procs.identity(pid) == identity]

        recorded = [(int(p.name), p.read_text()) for p in _files(self.processes) if p.name.isdigit()]
        if not procs.kill_until_gone(alive, KILL_WAIT_S):
            raise PrepareFailed(
                f"Processes of a predecessor in {self.root} do not die: {alive()}. End them first."
            )
        with contextlib.suppress(OSError):
            remove_cgroups(Path((self.root / "cgroup").read_text()))
        self.clear()

    def clear(self) -> None:
        """Remove what we made, the lock apart. Blocks."""
        for path in (self.secrets, self.sandboxes, self.sockets, self.processes):
            remove_tree(path)
        with contextlib.suppress(OSError):
            (self.root / "cgroup").unlink()

    def note_cgroup(self, path: Path) -> None:
        """Remember where our cgroups are, for a successor's sweep."""
        (self.root / "cgroup").write_text(str(path))

    def record(self, pid: int) -> None:
        """A process of ours runs; noted with its start, so that a recycled pid is never killed."""
        identity = procs.identity(pid)
        if identity:
            with contextlib.suppress(OSError):
                (self.processes / str(pid)).write_text(identity)

    def erase(self, pid: int) -> None:
        """The process was reaped."""
        with contextlib.suppress(OSError):
            (self.processes / str(pid)).unlink()

    def owned(self) -> list[Owned]:
        """What exists because of this directory. Blocks."""
        found = [
            Owned("process", p.name) for p in _files(self.processes)
            if p.name.isdigit() and procs.identity(int(p.name)) == _text(p)
        ]  # fmt: skip
        found += [Owned("directory", p.name) for p in _files(self.sandboxes)]
        found += [Owned("directory", str(p)) for p in _files(self.secrets)]
        found += [Owned("socket", p.name) for p in _files(self.sockets)]
        root = _text(self.root / "cgroup")
        if root:
            found += [Owned("cgroup", str(p)) for p in _files(Path(root)) if p.is_dir()]
        return found

    def unlock(self) -> None:
        """Let the directory go."""
        if self.lock >= 0:
            os.close(self.lock)
            self.lock = -1

    def remove(self) -> None:
        """Let the directory go and leave nothing of ours in it. Blocks."""
        self.clear()
        with contextlib.suppress(OSError):
            (self.root / "lock").unlink()
        self.unlock()
        with contextlib.suppress(OSError):
            self.root.rmdir()

    def _take_lock(self, wait_s: float) -> None:
        deadline = time.monotonic() + wait_s
        path = self.root / "lock"
        while (lock := take(path)) is None:
            if time.monotonic() > deadline:
                raise PrepareFailed(
                    f"{self.root} is in use by another host on this machine: "
                    "end it or choose another run directory."
                )
            time.sleep(0.02)
        self.lock = lock


def sweep_dead(root: Path) -> bool:
    """End and remove what a runtime that died left in its run directory ``root``: processes, cgroups, files.

    False, and nothing is touched, while another one runs there. Blocks.
    """
    if not root.is_dir():
        return True
    run_dir = RunDir(root)
    try:
        run_dir.open(0.0)
    except PrepareFailed:
        return False
    # What is mounted below may show images and code: their files must not be removed through it. A container
    # runtime's watchdog takes it away; when it died as well, nobody else does.
    deadline = time.monotonic() + UNMOUNT_WAIT_S
    while mounted_below(root) and time.monotonic() < deadline:
        time.sleep(0.05)
    unmount_below(root)
    run_dir.remove()
    return True


def _files(path: Path) -> list[Path]:
    try:
        return list(path.iterdir())
    except OSError:
        return []


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
