"""Takes away what a container runtime has made: kills, unmounts, runs hooks, removes cgroups, directories.

A runtime does so at its opening and closing. Run as a script it is the watchdog's process (see
`containers.watchdog`): it holds the end of a pipe to its host, and when the pipe breaks without a good-bye it
sweeps. So it needs nothing but the standard library.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

SWEEP_S = 30.0
HOOK_S = 10.0
SETTLED = 2
"""So many looks without a process in between: who was just being started is found by the second."""
BYE = b"bye\n"
LOOP = "/dev/loop"
_MNT_DETACH = 2
_FS_IOC_SHUTDOWN, _NO_FLUSH = 0x8004587D, 2


@dataclass(frozen=True)
class Plan:
    """What belongs to one runtime, or to one of its containers."""

    directory: str
    """Removed with all in it; what is mounted below is unmounted first."""
    cgroups: tuple[str, ...] = ()
    """Directories of the cgroup file system, removed with their children when their processes are killed."""
    commands: tuple[tuple[str, ...], ...] = ()
    """Processes whose arguments begin so are killed: makers of containers that outlived their host."""
    hooks: tuple[tuple[str, ...], ...] = ()
    """Commands that take away what else there may be: interfaces, rules. Their failure stops nothing."""
    emptied: tuple[str, ...] = ()
    """Directories that lose what is in them, and stay: a successor may have them already, still empty."""


def sweep(plan: Plan, deadline_s: float = SWEEP_S) -> bool:
    """Take it all away; whether nothing is left. Blocks. The directory stays while something is mounted."""
    deadline = time.monotonic() + deadline_s
    dead = kill_all(plan, deadline)
    directory = Path(plan.directory)
    unmount_below(directory)
    for hook in plan.hooks:
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            subprocess.run(hook, check=False, capture_output=True, timeout=HOOK_S, stdin=subprocess.DEVNULL)
    # A process that has died leaves its cgroup when its parent has reaped it.
    while not (gone := remove_cgroups(plan.cgroups)) and time.monotonic() < deadline:
        time.sleep(0.005)
    for path in plan.emptied:
        _empty(path)
    if mounted_below(directory):
        return False
    shutil.rmtree(directory, ignore_errors=True)
    return dead and gone and not directory.exists()


def kill_all(plan: Plan, deadline: float) -> bool:
    """SIGKILL until nobody is left; whether that came before the deadline (of ``time.monotonic``)."""
    quiet = 0
    while quiet < SETTLED:
        left = [*_makers(plan.commands), *(pid for path in plan.cgroups for pid in _thaw(Path(path)))]
        quiet = 0 if left else quiet + 1
        if time.monotonic() > deadline:
            return not left
        for pid in left:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        if left or (quiet < SETTLED and plan.commands):
            time.sleep(0.005)
    return True


def remove_cgroups(paths: Sequence[str]) -> bool:
    """Remove them and what is below; whether all are gone."""
    for path in paths:
        for directory, _, _ in os.walk(path, topdown=False):
            with contextlib.suppress(OSError):
                os.rmdir(directory)
    return not any(os.path.isdir(path) for path in paths)


def mounted_below(directory: Path, source: str = "") -> list[str]:
    """Mount points below ``directory``, the last one first; of sources that begin with ``source``."""
    prefix = os.path.realpath(directory) + "/"
    found = []
    with contextlib.suppress(OSError), open("/proc/self/mountinfo", encoding="utf-8") as file:
        for line in file:
            where = line.split()[4].encode().decode("unicode_escape")
            if where.startswith(prefix) and line.partition(" - ")[2].split()[1].startswith(source):
                found.append(where)
    return found[::-1]


def unmount_below(directory: Path) -> None:
    """Take away all mounts below ``directory``, also those in use."""
    for where in mounted_below(directory, LOOP):
        _forget(where)
    libc = ctypes.CDLL(None, use_errno=True)
    for where in mounted_below(directory):
        libc.umount2(os.fsencode(where), _MNT_DETACH)


def _empty(path: str) -> None:
    with contextlib.suppress(OSError), os.scandir(path) as found:
        for entry in list(found):
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path, ignore_errors=True)
            else:
                with contextlib.suppress(OSError):
                    os.unlink(entry.path)


def _forget(where: str) -> None:
    """What was written there and is not on the disk yet never goes there: the file is removed next."""
    with contextlib.suppress(OSError):
        place = os.open(where, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.ioctl(place, _FS_IOC_SHUTDOWN, struct.pack("I", _NO_FLUSH))
        finally:
            os.close(place)


def _thaw(root: Path) -> list[int]:
    """Processes in a cgroup and below it, which can die from now on: who is frozen does not."""
    found: list[int] = []
    for directory, _, files in os.walk(root):
        for name, value in (("cgroup.kill", "1"), ("cgroup.freeze", "0"), ("freezer.state", "THAWED")):
            if name in files:
                with contextlib.suppress(OSError):
                    Path(directory, name).write_text(value)
        with contextlib.suppress(OSError):
            found += [int(pid) for pid in Path(directory, "cgroup.procs").read_text().split() if pid != "0"]
    return found


def _makers(commands: Sequence[Sequence[str]]) -> list[int]:
    starts = [b"\0".join(os.fsencode(word) for word in words) + b"\0" for words in commands]
    found = []
    for name in os.listdir("/proc") if starts else ():
        if name.isdigit():
            with contextlib.suppress(OSError), open(f"/proc/{name}/cmdline", "rb") as file:
                line = file.read(65_536)
                if any(line.startswith(start) for start in starts):
                    found.append(int(name))
    return found


def main() -> int:
    """Wait for the end of the host."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        # Who ends the host's whole group by name does not mean us: the pipe tells when it is time.
        signal.signal(number, signal.SIG_IGN)
    raw = sys.stdin.buffer.readline()
    told = json.loads(raw)
    if sys.stdin.buffer.readline() == BYE:
        return 0
    plan = Plan(
        directory=told["directory"], cgroups=tuple(told["cgroups"]),
        commands=tuple(map(tuple, told["commands"])), hooks=tuple(map(tuple, told["hooks"])),
        emptied=tuple(told["emptied"]),
    )  # fmt: skip
    return 0 if sweep(plan) else 1


if __name__ == "__main__":
    sys.exit(main())
