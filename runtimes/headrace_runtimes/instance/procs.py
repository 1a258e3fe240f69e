"""What ``/proc`` says of processes: who they are, whether they are still the same, what they use."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import cache
from pathlib import Path

PROC = Path("/proc")
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Proc:
    """One process as seen at one moment. ``start`` is in clock ticks since boot."""

    pid: int
    ppid: int
    session: int
    start: int
    cpu_s: float
    zombie: bool
    stopped: bool = False
    """By a signal; a debugger's stop is not meant."""
    reaped_cpu_s: float = 0.0
    """Of children that have ended and were waited for, and theirs."""


def stat(pid: int) -> Proc | None:
    """What the kernel says of ``pid``; None when there is no such process."""
    try:
        raw = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return None
    # The command may hold spaces and parentheses: fields are counted from the last parenthesis.
    fields = raw[raw.rindex(b")") + 2 :].split()
    return Proc(
        pid=pid,
        ppid=int(fields[1]),
        session=int(fields[3]),
        start=int(fields[19]),
        cpu_s=(int(fields[11]) + int(fields[12])) / _TICKS,
        zombie=fields[0] in (b"Z", b"X"),
        stopped=fields[0] == b"T",
        reaped_cpu_s=(int(fields[13]) + int(fields[14])) / _TICKS,
    )


@cache
def boot_id() -> str:
    """Different after every boot: start times are only comparable within one."""
    try:
        return (PROC / "sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def identity(pid: int) -> str | None:
    """A text that no other process ever has; None when ``pid`` is gone."""
    found = stat(pid)
    return None if found is None or found.zombie else f"{pid} {found.start} {boot_id()}"


def pss(pid: int) -> int:
    """Proportional set size in bytes; 0 when the process is gone or not ours to see."""
    try:
        with open(f"/proc/{pid}/smaps_rollup", "rb") as file:
            for line in file:
                if line.startswith(b"Pss:"):
                    return int(line.split()[1]) << 10
    except (OSError, ValueError):
        pass
    return 0


def io_bytes(pid: int) -> int | None:
    """Bytes that it had read from and written to storage; None when the kernel does not say."""
    try:
        with open(f"/proc/{pid}/io", "rb") as file:
            pairs = dict(line.split(b": ") for line in file.read().splitlines())
        return int(pairs[b"read_bytes"]) + int(pairs[b"write_bytes"])
    except (OSError, ValueError, KeyError):
        return None


def uid_of(pid: int) -> int | None:
    """Real uid; from ``status``, as the directory's owner is root for a process that is not dumpable."""
    try:
        with open(f"/proc/{pid}/status", "rb") as file:
            for line in file:
                if line.startswith(b"Uid:"):
                    return int(line.split()[1])
    except (OSError, ValueError):
        pass
    return None


def pids() -> list[int]:
    """All processes that are visible here."""
    return [int(name) for name in os.listdir(PROC) if name.isdigit()]


def of_uids(uids: Collection[int]) -> list[int]:
    """Living processes that run under one of these uids."""
    wanted = frozenset(uids)
    return [pid for pid in pids() if uid_of(pid) in wanted and not _gone(pid)]


def in_session(session: int) -> list[int]:
    """Living processes of a session (the pid of its leader)."""
    found = (stat(pid) for pid in pids())
    return [p.pid for p in found if p and p.session == session and not p.zombie]


def kill_until_gone(find: Callable[[], list[int]], deadline_s: float = 3.0) -> bool:
    """SIGKILL what ``find`` returns until it returns nothing. Blocks; False when the deadline passed."""
    deadline = time.monotonic() + deadline_s
    while left := find():
        for pid in left:
            send_signal(pid, signal.SIGKILL)
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return True


def send_signal(pid: int, number: int) -> None:
    """Signal a process; a gone one is fine."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)


def signal_group(pid: int, number: int) -> None:
    """Signal the group that ``pid`` leads, and ``pid`` itself (it may not lead one yet)."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)
    send_signal(pid, number)


def _gone(pid: int) -> bool:
    found = stat(pid)
    return found is None or found.zombie
