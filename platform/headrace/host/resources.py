"""What this machine has to hand out, as the kernel lets us use it."""

from __future__ import annotations

import os
from bisect import insort
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath

from headrace_runtimes.devices.machine import find

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


class Accelerators:
    """Which of the node's accelerators is whose.

    Numbered through the models in their declared order, as drivers number equal ones from 0: on a node with
    one model the numbers are the drivers' own.
    """

    def __init__(self, gpu: Mapping[str, int]) -> None:
        self._free: dict[str, list[int]] = {}
        first = 0
        for name, count in gpu.items():
            self._free[name] = list(range(first, first + count))
            first += count

    def take(self, wanted: Sequence[tuple[str, int]]) -> tuple[tuple[str, int], ...] | None:
        """(model, number) of each that is handed out, the lowest first; None when not all are free."""
        if any(len(self._free.get(name, ())) < count for name, count in wanted):
            return None
        taken: list[tuple[str, int]] = []
        for name, count in wanted:
            taken += [(name, number) for number in self._free[name][:count]]
            del self._free[name][:count]
        return tuple(taken)

    def take_these(self, wanted: Sequence[tuple[str, int]]) -> bool:
        """Take exactly these; none of them when not all are free."""
        if any(number not in self._free[name] for name, number in wanted):
            return False
        for name, number in wanted:
            self._free[name].remove(number)
        return True

    def give_back(self, taken: Sequence[tuple[str, int]]) -> None:
        """They are free again."""
        for name, number in taken:
            insort(self._free[name], number)


def detect(devices: Path = Path("/")) -> wire.Resources:
    """Cores by affinity and quota, memory by size and limit, accelerators by their CDI specs or device files.

    ``devices``: the root of the tree that accelerators are looked for in.
    """
    cores = float(len(os.sched_getaffinity(0)))
    quota = cgroup_cores()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = cgroup_memory()
    return wire.Resources(
        cpu=cores if quota is None else min(cores, quota),
        memory=memory if limit is None else min(memory, limit),
        gpu=find(devices).count(),
    )
