"""What this machine has to hand out, as the kernel lets us use it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from headrace import wire

CGROUP = Path("/sys/fs/cgroup")
NO_LIMIT = 1 << 60
"""cgroup v1 says "no limit" with a number near 2**63."""

ReadText = Callable[[Path], str | None]


def read_text(path: Path) -> str | None:
    """The file's text, or None when there is none."""
    try:
        return path.read_text().strip()
    except OSError:
        return None


def cgroup_cores(read: ReadText = read_text) -> float | None:
    """Cores allowed by the CPU quota of our control group (v2, then v1), None without a quota."""
    if (text := read(CGROUP / "cpu.max")) is not None:
        quota, _, period = text.partition(" ")
        return None if quota == "max" else int(quota) / int(period or 100_000)
    quota_v1, period_v1 = read(CGROUP / "cpu/cpu.cfs_quota_us"), read(CGROUP / "cpu/cpu.cfs_period_us")
    if quota_v1 is None or period_v1 is None or int(quota_v1) <= 0:
        return None
    return int(quota_v1) / int(period_v1)


def cgroup_memory(read: ReadText = read_text) -> int | None:
    """Bytes allowed by our control group (v2, then v1), None without a limit."""
    text = read(CGROUP / "memory.max") or read(CGROUP / "memory/memory.limit_in_bytes")
    if text is None or text == "max" or int(text) >= NO_LIMIT:
        return None
    return int(text)


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
