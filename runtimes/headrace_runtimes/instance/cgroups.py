"""Memory limits by cgroup (v1 or v2), where a part of the tree has been delegated to us.

We never make cgroups in a part of the tree that somebody else manages, for that somebody may limit,
count and kill by it. Delegated is: what the settings name; our own cgroup when it is the root of
what we see (a container); our own cgroup when its manager says so (``Delegate=yes`` of systemd).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

MOUNTINFO = Path("/proc/self/mountinfo")
SELF_CGROUP = Path("/proc/self/cgroup")
_DELEGATED = ("user.delegate", "trusted.delegate")


@dataclass(frozen=True)
class Names:
    """What the files of a version of cgroups are called."""

    limit: str
    events: str


V1 = Names("memory.limit_in_bytes", "memory.oom_control")
V2 = Names("memory.max", "memory.events")


def memory_mounts(mountinfo: str) -> Iterator[tuple[Path, bool]]:
    """Mount points of cgroup hierarchies that can limit memory; True for version 2."""
    for line in mountinfo.splitlines():
        left, _, right = line.partition(" - ")
        kind, _, options = right.partition(" ")
        fields = left.split()
        if len(fields) < 5:
            continue
        if kind == "cgroup2":
            yield Path(fields[4]), True
        elif kind == "cgroup" and "memory" in options.split()[-1].split(","):
            yield Path(fields[4]), False


def own_path(self_cgroup: str, v2: bool) -> str | None:
    """Our cgroup below the mount point, as ``/proc/self/cgroup`` has it."""
    for line in self_cgroup.splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if (v2 and number == "0" and not controllers) or (not v2 and "memory" in controllers.split(",")):
            return path
    return None


def find_parent(mountinfo: str, self_cgroup: str) -> Path | None:
    """A cgroup directory that is delegated to us and can limit memory."""
    for mount, v2 in memory_mounts(mountinfo):
        path = own_path(self_cgroup, v2)
        if path is None:
            continue
        own = mount / path.lstrip("/")
        if (path == "/" or _delegated(own)) and os.access(own, os.W_OK):
            return own
    return None


class Cgroups:
    """The cgroups of one runtime: ``<parent>/headrace/<name>/<id>``. Use only what `open_cgroups` returns."""

    def __init__(self, parent: Path, name: str, names: Names) -> None:
        self._names = names
        self.root = parent / "headrace" / name

    def make(self, id: str, pid: int) -> str:
        """A cgroup for the process ``pid``. May block for milliseconds. Raises ``OSError``."""
        path = self.root / id
        path.mkdir(exist_ok=True)
        (path / "cgroup.procs").write_text(str(pid))
        return id

    def limit(self, id: str, count: int) -> None:
        """Set the limit in bytes. Raises ``OSError``."""
        (self.root / id / self._names.limit).write_text(str(count))

    def oom_killed(self, id: str) -> bool:
        """Whether the kernel has killed in it for memory."""
        try:
            text = (self.root / id / self._names.events).read_text()
        except OSError:
            return False
        pairs = (line.split() for line in text.splitlines())
        return any(p[0] == "oom_kill" and p[1] != "0" for p in pairs if len(p) == 2)

    def remove(self, id: str) -> None:
        """Remove a cgroup whose processes are gone."""
        with contextlib.suppress(OSError):
            (self.root / id).rmdir()

    def close(self) -> None:
        """Remove all that are empty."""
        remove_cgroups(self.root)


def open_cgroups(parent: Path | None, name: str) -> Cgroups | None:
    """Cgroups below ``parent`` (None: look for one that is delegated to us); None when it cannot be."""
    if parent is None:
        try:
            parent = find_parent(MOUNTINFO.read_text(), SELF_CGROUP.read_text())
        except OSError:
            return None
    if parent is None:
        return None
    try:
        root = parent / "headrace" / name
        root.mkdir(parents=True, exist_ok=True)
        v2 = (parent / "cgroup.controllers").exists()
        if v2:
            for path in (parent, parent / "headrace", root):
                with contextlib.suppress(OSError):
                    (path / "cgroup.subtree_control").write_text("+memory")
        cgroups = Cgroups(parent, name, V2 if v2 else V1)
        probe = root / "probe"
        probe.mkdir(exist_ok=True)
        works = os.access(probe / cgroups._names.limit, os.W_OK)
        probe.rmdir()
    except OSError:
        return None
    if not works:
        cgroups.close()
        return None
    return cgroups


def remove_cgroups(root: Path) -> None:
    """Remove a cgroup and those in it, as far as they are empty, and ``headrace`` above it when it is."""
    with contextlib.suppress(OSError):
        for child in root.iterdir():
            if child.is_dir():
                with contextlib.suppress(OSError):
                    child.rmdir()
    for path in (root, root.parent):
        with contextlib.suppress(OSError):
            path.rmdir()


def _delegated(path: Path) -> bool:
    for name in _DELEGATED:
        with contextlib.suppress(OSError):
            if os.getxattr(path, name) == b"1":
                return True
    return False
