"""Where a new container's first process knocks: one connection, four descriptors, then it is closed.

The door is a socket in a directory of its own that the container sees read-only. Who knocks must be in the
container: its process id is looked up by the kernel, not told by the peer.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import struct
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from headrace_runtimes.containers.ending import ENDED_EARLY
from headrace_runtimes.errors import PrepareFailed
from headrace_runtimes.trees import remove_tree

log = logging.getLogger("headrace.runtimes")

NAME = "door"


class NobodyKnocked(PrepareFailed):
    """It ended, or it takes too long."""

    def __init__(self, what: str, *, ended: bool) -> None:
        super().__init__(f"The engine {what}.")
        self.what, self.ended = what, ended


_UCRED = struct.Struct("3i")


WAITING = 16
"""So many may have knocked and not been looked at: one who is not meant keeps nobody out."""
STRANGERS_S = 0.01
"""After one who is not meant: whoever knocks again and again costs us little."""


class Door:
    """Open from its making until `close`. ``directory`` is what the container gets to see.

    The directory above can be entered and not listed; `hand_over` heeds nobody but its container.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir(mode=0o755)
        directory.chmod(0o755)
        self.open()

    def open(self) -> None:
        """At its making, and after `shut`. Raises ``OSError``."""
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            self._socket.setblocking(False)
            self._socket.bind(str(self.directory / NAME))
            # Whoever has the directory in sight may knock: only the container does.
            os.chmod(self.directory / NAME, 0o666)  # noqa: S103
            self._socket.listen(WAITING)
        except BaseException:
            self.close()
            raise

    def shut(self) -> None:
        """Nobody comes in until it is opened again."""
        self._socket.close()
        (self.directory / NAME).unlink(missing_ok=True)

    async def hand_over(
        self,
        inside: int,
        descriptors: Sequence[int],
        timeout_s: float,
        ended: asyncio.Future[Any] | None = None,
    ) -> int:
        """Give the descriptors to who knocks from ``inside`` (the container's first process): its pid.

        ``ended``: done when that process has ended. Raises `NobodyKnocked`, at once when it has and after
        ``timeout_s``, whoever else has knocked meanwhile; ``OSError``.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            conn = await self._next(max(0.0, deadline - time.monotonic()), timeout_s, ended)
            with contextlib.closing(conn):
                peer = _UCRED.unpack(conn.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
                if peer[0] == inside:
                    socket.send_fds(conn, [b"{}"], list(descriptors))
                    return inside
            log.warning("Process %d (user %d) knocked in the place of %d.", peer[0], peer[1], inside)
            await asyncio.sleep(STRANGERS_S)

    async def _next(
        self, left_s: float, timeout_s: float, ended: asyncio.Future[Any] | None
    ) -> socket.socket:
        loop = asyncio.get_running_loop()
        knocked: asyncio.Future[None] = loop.create_future()
        loop.add_reader(self._socket, _settle, knocked)
        waiting: list[asyncio.Future[Any]] = [knocked, *((ended,) if ended is not None else ())]
        try:
            await asyncio.wait(waiting, timeout=left_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            loop.remove_reader(self._socket)
            knocked.cancel()
        # Not while we wait: who is cancelled then would lose a connection that is there already.
        with contextlib.suppress(BlockingIOError):
            conn, _ = self._socket.accept()
            conn.setblocking(False)
            return conn
        if ended is not None and ended.done():
            raise NobodyKnocked(ENDED_EARLY, ended=True)
        raise NobodyKnocked(f"did not come up within {timeout_s:.0f} s", ended=False)

    def close(self) -> None:
        """Nobody comes in any more."""
        self._socket.close()
        remove_tree(self.directory)


def _settle(knocked: asyncio.Future[None]) -> None:
    if not knocked.done():
        knocked.set_result(None)
