"""What this machine has to hand out, as the kernel lets us use it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

from headrace import wire

CGROUP = Path("/sys/fs/cgroup")
OWN_GROUPS = Path("/proc/self/cgroup")
NO_LIMIT = 1 << 60
"""cgroup v1 says "no limit" with a number near 2**63."""

ReadText = Callable[[Path], str | None]


def read_text(path: Path) -> str | None:
    """The file's text, or None when there is none."""
    try:
        return path.read_text().strip()
    except OSError:
        return None


def group_paths(controller: str, read: ReadText = read_text) -> Iterator[Path]:
    """Directories of our control group and its ancestors, for v2 and for ``controller`` of v1.

    Where the group's path is not visible (another namespace), only what is at the root is.
    """
    for line in (read(OWN_GROUPS) or "0::/").splitlines():
        _, names, path = line.split(":", 2)
        if names and controller not in names.split(","):
            continue
        root = CGROUP / controller if names else CGROUP
        group = PurePosixPath(path)
        for part in (group, *group.parents):
            yield root / part.relative_to("/")


def cgroup_cores(read: ReadText = read_text) -> float | None:
    """Cores allowed by the CPU quotas of our control groups, None without a quota."""
    found: list[float] = []
    for path in group_paths("cpu", read):
        if (text := read(path / "cpu.max")) is not None:
            quota, _, period = text.partition(" ")
        else:
            quota, period = read(path / "cpu.cfs_quota_us") or "max", read(path / "cpu.cfs_period_us") or ""
        if quota != "max" and int(quota) > 0:
            found.append(int(quota) / int(period or 100_000))
    return min(found, default=None)


def cgroup_memory(read: ReadText = read_text) -> int | None:
    """Bytes allowed by our control groups, None without a limit."""
    found: list[int] = []
    for path in group_paths("memory", read):
        text = read(path / "memory.max") or read(path / "memory.limit_in_bytes") or "max"
        if text != "max" and int(text) < NO_LIMIT:
            found.append(int(text))
    return min(found, default=None)


def detect() -> wire.Resources:
    """Cores by affinity and quota, memory by size and limit; accelerators are declared, not detected."""
    cores = float(len(os.sched_getaffinity(0)))
    quota = cgroup_cores()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = cgroup_memory()
    return wire.Resources(
        cpu=cores if quota is None else min(cores, quota),
        memory=memory if limit is None else min(memory, limit),
    )
