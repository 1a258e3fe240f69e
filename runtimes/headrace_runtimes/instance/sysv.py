"""System V shared memory, queues and semaphores: unlike all else they outlive every process of their user."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Container
from pathlib import Path

LISTS = Path("/proc/sysvipc")
_IPC_RMID = 0
_libc = ctypes.CDLL(None, use_errno=True)


def remove_of(uids: Container[int], lists: Path = LISTS) -> int:
    """Remove what these users own or have made; how many there were. Blocks for a moment.

    Nothing runs under ``uids`` any more: who is still attached to a segment is another user, and keeps it
    until it lets go.
    """
    removed = 0
    for kind in ("shm", "msg", "sem"):
        # A kernel may have been built without.
        with contextlib.suppress(OSError, ValueError):
            head, *rows = (lists / kind).read_text().splitlines()
            names = head.split()
            owner, maker = names.index("uid"), names.index("cuid")
            for row in rows:
                cells = row.split()
                if int(cells[owner]) in uids or int(cells[maker]) in uids:
                    removed += _remove(kind, int(cells[1])) == 0
    return removed


def _remove(kind: str, number: int) -> int:
    if kind == "shm":
        return int(_libc.shmctl(number, _IPC_RMID, None))
    if kind == "msg":
        return int(_libc.msgctl(number, _IPC_RMID, None))
    return int(_libc.semctl(number, 0, _IPC_RMID))
