"""Finds and ends what a killed platform left: processes by what they hold open, then files.

Ray's processes rewrite their command line and environment, so the sure signs of ours are the recorded
identities, a path of our run directory in the command line of a Ray server, and an open file below it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import time
from collections.abc import Iterable
from pathlib import Path

import psutil
from headrace_runtimes.instance.leftovers import sweep_dead
from headrace_runtimes.trees import remove_tree

from headrace.cluster.identity import Identity
from headrace.config import default_run_dir
from headrace.errors import SetupError

KILL_WAIT_S = 5.0
HOSTS = "hosts"
DEV_PREFIX = "headrace-dev-"
"""Of temporary data directories."""


UNIX_PATH_MAX = 107
RAY_SOCKET_TAIL = len("/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store")
"""The longest that Ray appends to its temporary directory: the date and the pid vary."""
RAY = Path("ray", "t")
"""Below the run directory. Ray opens its temporary directory and its sockets to everybody: it lies in one
that is closed."""
TOKEN_FILE = "ray.token"  # noqa: S105 - the name of the file in the data directory


def ray_temp_dir(run: Path) -> Path:
    """Where the local head keeps its sockets and logs."""
    return run / RAY


def check_run_dir(run: Path) -> None:
    """Raise `SetupError` when the paths of Ray's unix sockets below it would be too long."""
    bound = UNIX_PATH_MAX - RAY_SOCKET_TAIL - len(f"/{RAY}")
    if len(os.fsencode(run)) > bound:
        raise SetupError(
            f"the run directory {run} is too long for Ray's unix sockets ({bound} bytes at most).",
            hint="Give a shorter one with HEADRACE_RUN_DIR.",
        )


def leftovers(
    run: Path, known: Iterable[Identity] = (), spare: Iterable[int] = (), *, only_known: bool = False
) -> list[psutil.Process]:
    """All living processes of the platform with this run directory (or of Ray, with its `ray_temp_dir`).

    But for the pids to ``spare``, this process and its ancestors. ``only_known``: look no further than those.
    """
    me = psutil.Process()
    spared = {me.pid, *(p.pid for p in me.parents()), *spare}
    found = {p.pid: p for p in (identity.process() for identity in known) if p is not None}
    prefix = f"{run}{os.sep}"
    # Only in the arguments of Ray's servers: any shell may have the run directory in its own.
    argument = f"={run if run.parts[-2:] == RAY.parts else ray_temp_dir(run)}{os.sep}"
    for process in () if only_known else psutil.process_iter():
        if process.pid not in spared and process.pid not in found and _is_ours(process, prefix, argument):
            found[process.pid] = process
    return [p for pid, p in found.items() if pid not in spared]


def _is_ours(process: psutil.Process, prefix: str, argument: str) -> bool:
    try:
        if process.status() == psutil.STATUS_ZOMBIE:
            return False
        if any(argument in word for word in process.cmdline()):
            return True
        return any(target.startswith(prefix) for target in _open_files(process.pid))
    except (psutil.Error, OSError):
        return False


def _open_files(pid: int) -> Iterable[str]:
    """Targets of the descriptors; nothing of what belongs to others or has ended."""
    for name in os.listdir(f"/proc/{pid}/fd"):
        try:
            yield os.readlink(f"/proc/{pid}/fd/{name}")
        except OSError:
            continue


def end(processes: list[psutil.Process]) -> list[psutil.Process]:
    """SIGKILL them; gives back those that are still there after `KILL_WAIT_S`. Blocks that long at most."""
    for process in processes:
        try:
            process.kill()
        except psutil.Error:
            continue
    deadline = time.monotonic() + KILL_WAIT_S
    # Not psutil's wait: it would take the exit code of a child from whoever waits for it.
    while (alive := [p for p in processes if _lives(p)]) and time.monotonic() < deadline:
        time.sleep(0.01)
    return alive


def _lives(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


def end_leftovers(
    run: Path, known: Iterable[Identity] = (), spare: Iterable[int] = (), *, only_known: bool = False
) -> int:
    """End all, in rounds, since a dying parent may just have started another. How many were ended."""
    ended = 0
    known, spare = list(known), list(spare)
    for _ in range(5):
        found = leftovers(run, known, spare, only_known=only_known)
        if not found:
            break
        ended += len(found)
        end(found)
    return ended


def sweep_node(run: Path, node: str) -> bool:
    """Remove what the host of a node left when it was killed; False while one lives there. Blocks."""
    base = run / HOSTS / node
    try:
        # A runtime's directory is the one with its lock; the rest are files of the host.
        runtimes = [path for path in base.iterdir() if (path / "lock").exists()]
    except OSError:
        return True
    return all(sweep_dead(path) for path in runtimes) and remove_tree(base)


def sweep_dev(folder: Path) -> list[Path]:
    """Remove what killed ``headrace dev`` of this user left: data directories in ``folder`` whose lock nobody
    holds, with their run directories. Which they were. Blocks.
    """
    gone: list[Path] = []
    for data in folder.glob(f"{DEV_PREFIX}*"):
        try:
            info = data.lstat()
            if not stat.S_ISDIR(info.st_mode) or info.st_uid != os.geteuid():
                continue
            lock = os.open(data / "lock", os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            # One that starts just now has no lock yet; nor has one that came no further, but that is small.
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            run = default_run_dir(data)
            clear(run)
            with contextlib.suppress(OSError):
                run.rmdir()
            if remove_tree(data):
                gone.append(data)
        except OSError:
            continue
        finally:
            os.close(lock)
    return gone


def clear(run: Path) -> None:
    """Empty the run directory: nothing below it outlives a platform."""
    # First by host: what they left elsewhere (cgroups) is known there only.
    with contextlib.suppress(OSError):
        for host in list((run / HOSTS).iterdir()):
            sweep_node(run, host.name)
    try:
        entries = list(run.iterdir())
    except OSError:
        return
    for entry in entries:
        remove_tree(entry)
