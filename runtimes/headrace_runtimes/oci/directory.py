"""The directory of a driver's containers, and what goes with it: cgroups, the engine, the disks' template.

It is under a lock that the watchdog holds as well: nobody begins before that has swept.
"""

from __future__ import annotations

import compileall
import contextlib
import logging
import os
import time
from pathlib import Path

from headrace_runtimes.containers.sweep import Plan, mounted_below, sweep
from headrace_runtimes.errors import PrepareFailed
from headrace_runtimes.locks import take
from headrace_runtimes.oci import disk
from headrace_runtimes.oci.cgroup import Cgroup
from headrace_runtimes.spec import Owned

log = logging.getLogger("headrace.runtimes")

LOCK_WAIT_S = 45.0
"""Longer than a watchdog's sweep."""


class Directory:
    """One directory for each container, and what begins with a dot."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock_path = path.with_name(path.name + ".lock")
        self._lock = -1

    def open(self, wait_s: float = LOCK_WAIT_S) -> int:
        """Lock; gives the lock's descriptor. Blocks while a watchdog sweeps. Raises `PrepareFailed`."""
        self.path.parent.mkdir(0o711, parents=True, exist_ok=True)
        deadline = time.monotonic() + wait_s
        while True:
            lock = take(self._lock_path)
            if lock is not None:
                self._lock = lock
                return lock
            if time.monotonic() > deadline:
                raise PrepareFailed(f"Another runtime uses {self.path}: choose another run directory.")
            time.sleep(0.02)

    def make_again(self) -> None:
        """Have it, empty or not. Raises ``OSError``."""
        self.path.mkdir(0o711, parents=True, exist_ok=True)
        self.path.chmod(0o711)

    def sweep(self, plan: Plan, cgroups: str) -> None:
        """Take away what is left of all containers, ours or a predecessor's; the directory stays, empty.

        ``cgroups``: the path of their cgroup; those of other drivers beside it stay. Blocks.
        """
        sweep(plan)
        for path in Cgroup(str(Path(cgroups).parent)).directories():
            with contextlib.suppress(OSError):
                path.rmdir()
        self.make_again()

    def furnish(self, engine_dir: Path, cgroups: str) -> Path | None:
        """What all containers need; gives the template of their disks, None when those are in memory.

        ``cgroups``: the path of their cgroup; empty: somebody else makes it. Blocks for seconds.
        """
        for place in Cgroup(cgroups).places() if cgroups else ():
            # Ours from now on: another host that closes must not remove what is above it under our hands.
            with contextlib.suppress(OSError):
                place.mkdir(parents=True, exist_ok=True)
        # Containers see the engine read-only: what is not compiled here, each of them compiles anew.
        compileall.compile_dir(str(engine_dir), maxlevels=0, quiet=2)
        try:
            return disk.make_template(self.path / ".disk")
        except PrepareFailed as failed:
            log.warning("%s Containers write to memory instead, which counts for their limit.", failed)
            return None

    def owned(self, cgroups: str) -> list[Owned]:
        """Mounts below it, and cgroups of containers below the one of this path. Blocks."""
        found = [Owned("mount", where) for where in mounted_below(self.path)]
        for place in Cgroup(cgroups).directories():
            found += [Owned("cgroup", str(p)) for p in place.iterdir() if p.is_dir()]
        return found

    def containers(self) -> list[str]:
        """Ids of those whose directory is there."""
        with contextlib.suppress(OSError):
            return sorted(name for name in os.listdir(self.path) if not name.startswith("."))
        return []

    def close(self) -> None:
        """Remove it as far as it is empty, and unlock."""
        with contextlib.suppress(OSError):
            self.path.rmdir()
        if self._lock >= 0:
            self._lock_path.unlink(missing_ok=True)
            os.close(self._lock)
            self._lock = -1
