"""Which ids user namespaces may have: ranges that are ours while we hold the lock of their block."""

from __future__ import annotations

import os
from collections import deque
from functools import partial
from pathlib import Path

from headrace_runtimes.errors import PrepareFailed
from headrace_runtimes.instance import procs
from headrace_runtimes.locks import MACHINE_DIR, take

FIRST_ID = 0x4000_0000
"""Host ids of user namespaces begin here: far above those of users and of the process runtime."""
ID_COUNT = 65_536
"""Ids of one namespace: all that an image may name."""
SLOTS = 16_000
BLOCK = 250


class Slots:
    """Hands out ranges of host ids that no other living container on this machine has.

    Several hosts may run on one machine: each takes blocks of ranges by locks on files in one directory.
    The kernel lets a lock go when its holder dies; the next holder ends whatever still runs there. A range
    that was given back is used again as late as possible. So who uses other locks must use other ids, or they
    end each other's containers: ``first`` is the first of them.
    """

    def __init__(
        self, lock_dir: Path | None, slots: int = SLOTS, block: int = BLOCK, *, first: int = FIRST_ID
    ) -> None:
        self._dir, self._first = lock_dir or MACHINE_DIR, first
        self._block = block
        self._blocks = deque(range(0, slots - block + 1, block))
        self._locks: list[int] = []
        self._free: deque[int] = deque()

    def open(self) -> None:
        """Claim the first block. Blocks for milliseconds. Raises `PrepareFailed`."""
        try:
            self._dir.mkdir(parents=True, exist_ok=True, mode=0o711)
            self._claim_block()
        except OSError as error:
            raise PrepareFailed(
                f"Cannot lock ids in {self._dir}: {error.strerror}. Make it writable or set uid_lock_dir."
            ) from error

    def take(self) -> int:
        """The first of `ID_COUNT` host ids. Raises `PrepareFailed` when all are in use."""
        if not self._free:
            self._claim_block()
        return self._first + self._free.popleft() * ID_COUNT

    def give_back(self, first: int) -> None:
        """The caller has seen that nothing runs under the range that begins with ``first`` any more."""
        self._free.append((first - self._first) // ID_COUNT)

    def close(self) -> None:
        """Let the locks go."""
        for fd in self._locks:
            os.close(fd)
        self._locks.clear()
        self._free.clear()

    def _claim_block(self) -> None:
        for _ in range(len(self._blocks)):
            start = self._blocks.popleft()
            fd = take(self._dir / f"range-{start}.lock")
            if fd is None:
                self._blocks.append(start)
                continue
            self._locks.append(fd)
            ids = range(self._first + start * ID_COUNT, self._first + (start + self._block) * ID_COUNT)
            procs.kill_until_gone(partial(_running, ids))
            self._free.extend(range(start, start + self._block))
            return
        raise PrepareFailed("All id ranges for containers are in use on this machine: stop other hosts.")


def _running(ids: range) -> list[int]:
    found = ((pid, procs.uid_of(pid)) for pid in procs.pids())
    return [pid for pid, uid in found if uid is not None and uid in ids and procs.identity(pid)]
