"""Marks in the data directory by which gateways of one machine see that another one is dead.

A gateway holds a lock on its mark for as long as it lives; the kernel lets go of it with the process. Who
sweeps is not decided by a lock: a gateway that is stopped or hangs would hold it for ever.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import time
from pathlib import Path

_ID = re.compile(r"[A-Za-z0-9_.-]{1,100}")


class OwnerMark:
    """The mark of one incarnation of a gateway (blocking, quick). `close` lets go of it."""

    def __init__(self, directory: Path, owner: str) -> None:
        directory.mkdir(mode=0o700, exist_ok=True)
        self._dir = directory
        self._path = directory / owner
        draft = directory / f".{owner}"
        self._fd = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._fd, fcntl.LOCK_EX)
        # Under its name it is locked from its first moment.
        draft.rename(self._path)
        self._swept = directory / ".swept"

    def dead(self) -> list[str]:
        """Owners whose process is gone."""
        found = []
        for path in self._dir.iterdir():
            if path == self._path or not _ID.fullmatch(path.name) or path.name.startswith("."):
                continue
            with contextlib.suppress(OSError):
                fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    found.append(path.name)
                finally:
                    os.close(fd)
        return found

    def buried(self, owner: str) -> None:
        """All that a dead one held was given back."""
        (self._dir / owner).unlink(missing_ok=True)

    def sweep_due(self, period_s: float) -> bool:
        """Whether no gateway of this machine has swept for so long."""
        try:
            age = time.time() - self._swept.stat().st_mtime
        except OSError:
            return True
        # One in the future was made before the clock was set back.
        return not 0.0 <= age < period_s

    def swept(self) -> None:
        """A sweep went well: the others need not make one now."""
        with contextlib.suppress(OSError):
            self._swept.touch(mode=0o600)

    def close(self, *, clean: bool) -> None:
        """Let go; ``clean``: nothing is held any more, so nobody needs to look."""
        if self._fd < 0:
            return
        if clean:
            self._path.unlink(missing_ok=True)
        os.close(self._fd)
        self._fd = -1
