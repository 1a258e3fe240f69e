"""Which uids this runtime's sandboxes may have: blocks that are ours while we hold their lock."""

from __future__ import annotations

import os
from collections import deque
from pathlib import Path

from headrace_runtimes.errors import PrepareFailed
from headrace_runtimes.instance import sysv
from headrace_runtimes.instance.procs import kill_until_gone, of_uids
from headrace_runtimes.locks import MACHINE_DIR, take

BLOCK = 250


class Uids:
    """Hands out uids that no other living sandbox on this machine has. Gives None when not root.

    Several hosts may run on one machine: each takes blocks of uids by locks on files in one
    directory. The kernel lets a lock go when its holder dies, and the next holder ends whatever
    still runs under the block's uids. A uid that was given back is used again as late as possible.
    """

    def __init__(self, lock_dir: Path | None, first: int, count: int, *, root: bool | None = None) -> None:
        self._dir = lock_dir or MACHINE_DIR
        self._blocks = deque(range(first, first + max(count - BLOCK, 0) + 1, BLOCK))
        self._root = os.geteuid() == 0 if root is None else root
        self._locks: list[int] = []
        self._free: deque[int] = deque()

    def open(self) -> None:
        """Claim the first block. Blocks for milliseconds. Raises `PrepareFailed`."""
        if not self._root:
            return
        try:
            self._dir.mkdir(parents=True, exist_ok=True, mode=0o711)
        except OSError as error:
            raise PrepareFailed(
                f"Cannot make {self._dir} for the locks on uids: {error.strerror}. "
                "Make it writable or set uid_lock_dir."
            ) from error
        self._claim_block()

    def take(self) -> int | None:
        """A uid of its own, or None when we are not root. Raises `PrepareFailed` when all are in use."""
        if not self._root:
            return None
        if not self._free:
            self._claim_block()
        return self._free.popleft()

    def give_back(self, uid: int | None) -> None:
        """The caller has seen that nothing runs under ``uid`` any more."""
        if uid is not None:
            self._free.append(uid)

    def close(self) -> None:
        """Let the locks go."""
        for fd in self._locks:
            os.close(fd)
        self._locks.clear()
        self._free.clear()

    def _claim_block(self) -> None:
        for _ in range(len(self._blocks)):
            start = self._blocks.popleft()
            fd = take(self._dir / f"{start}.lock")
            if fd is None:
                self._blocks.append(start)
                continue
            uids = range(start, start + BLOCK)
            self._locks.append(fd)
            kill_until_gone(lambda uids=uids: of_uids(uids))  # type: ignore[misc]
            sysv.remove_of(uids)
            self._free.extend(uids)
            return
        raise PrepareFailed(
            "All uids for sandboxes are in use on this machine: stop other hosts or raise uid_count."
        )


def own(path: Path | str, uid: int | None, gid: int | None) -> None:
    """Give ``path`` to a sandbox; nothing when it has no uid of its own."""
    if uid is not None:
        os.chown(path, uid, uid if gid is None else gid, follow_symlinks=False)
