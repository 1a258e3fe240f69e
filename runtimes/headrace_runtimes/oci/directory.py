"""The driver's directory, under a lock that the watchdog holds as well: nobody begins before it has swept."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from pathlib import Path

from headrace_runtimes.errors import PrepareFailed

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
            fd = os.open(self._lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            with contextlib.suppress(OSError):
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # Who has closed in between has removed the file that we opened.
                if os.fstat(fd).st_ino == self._lock_path.stat().st_ino:
                    self._lock = fd
                    return fd
            os.close(fd)
            if time.monotonic() > deadline:
                raise PrepareFailed(f"Another runtime uses {self.path}: choose another run directory.")
            time.sleep(0.02)

    def make_again(self) -> None:
        """Have it, empty or not. Raises ``OSError``."""
        self.path.mkdir(0o711, parents=True, exist_ok=True)
        self.path.chmod(0o711)

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
