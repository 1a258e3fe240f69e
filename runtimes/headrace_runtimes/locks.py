"""Locks on files, between processes of one machine: the kernel lets go when their holder dies."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

MACHINE_DIR = Path("/run/headrace/uids")
"""Where hosts on one machine agree on ids and addresses, when no setting says otherwise."""


def try_lock(file: int, kind: int = fcntl.LOCK_EX) -> bool:
    """Take the lock if nobody has it (for ``LOCK_SH``: nobody else alone)."""
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def take(path: Path) -> int | None:
    """A descriptor that holds the lock of a file, which is made when it is not there; None: others hold it.

    Raises ``OSError``.
    """
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        if try_lock(file) and is_at(file, path):
            return file
    except BaseException:
        os.close(file)
        raise
    os.close(file)
    return None


def is_at(file: int, path: Path) -> bool:
    """Whether that is still the file of that name: its last holder may have removed it."""
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except FileNotFoundError:
        return False
