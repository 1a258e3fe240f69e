"""Where a new container's first process knocks: one connection, four descriptors, then it is closed.

The door is a socket in a directory of its own that the container sees read-only. Who knocks must be in the
container: its process id is looked up by the kernel, not told by the peer.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
from collections.abc import Sequence
from pathlib import Path

from headrace_runtimes.errors import PrepareFailed
from headrace_runtimes.trees import remove_tree

NAME = "door"
_UCRED = struct.Struct("3i")


class Door:
    """Open from its making until `close`. ``directory`` is what the container gets to see."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir(mode=0o755)
        directory.chmod(0o755)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            self._socket.setblocking(False)
            self._socket.bind(str(directory / NAME))
            # Whoever has the directory in sight may knock: only the container does.
            os.chmod(directory / NAME, 0o666)  # noqa: S103
            self._socket.listen(1)
        except BaseException:
            self.close()
            raise

    async def hand_over(self, inside: int, descriptors: Sequence[int], timeout_s: float) -> int:
        """Give the descriptors to who knocks from ``inside`` (the container's first process): its pid.

        Raises `PrepareFailed` when nobody does in time.
        """
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(timeout_s):
                conn, _ = await loop.sock_accept(self._socket)
        except TimeoutError as error:
            raise PrepareFailed(f"The engine did not come up within {timeout_s:.0f} s.") from error
        with contextlib.closing(conn):
            peer = _UCRED.unpack(conn.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
            if peer[0] != inside:
                raise PrepareFailed(f"Process {peer[0]} knocked in the place of {inside}.")
            socket.send_fds(conn, [b"{}"], list(descriptors))
        return int(peer[0])

    def close(self) -> None:
        """Nobody comes in any more."""
        self._socket.close()
        remove_tree(self.directory)
