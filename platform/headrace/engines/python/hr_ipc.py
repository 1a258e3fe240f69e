"""Packets between runtime, zygote and child: JSON objects over SOCK_SEQPACKET, descriptors beside them."""

from __future__ import annotations

import json
import os
import socket
from typing import Any, Dict, List, Optional, Sequence, Tuple

import hr_secrets

MAX_PACKET = 128 << 10
MAX_TEXT = 16_000
"""Longest message or traceback in a packet, characters: six bytes each in JSON at worst still fit."""
_MAX_FDS = 8

Message = Dict[str, Any]


def cut(text: str, limit: int = MAX_TEXT) -> str:
    """``text`` with its middle left out when it is longer than ``limit`` (the last lines say most)."""
    if len(text) <= limit:
        return text
    head = limit // 4
    return text[:head] + "\n[...]\n" + text[-(limit - head) :]


class Channel:
    """One end of a SOCK_SEQPACKET socket pair."""

    def __init__(self, fd: int) -> None:
        self._socket = socket.socket(fileno=fd)
        self._socket.set_inheritable(False)
        self._socket.setblocking(True)

    def fileno(self) -> int:
        """The descriptor, for select."""
        return self._socket.fileno()

    def send(self, message: Message, fds: Sequence[int] = ()) -> None:
        """Send one packet. Raises `OSError` when the peer is gone."""
        for key in ("message", "traceback", "reason", "detail"):
            if isinstance(message.get(key), str):
                message[key] = cut(hr_secrets.masked(message[key]))
        data = json.dumps(message).encode()
        if len(data) > MAX_PACKET:
            slim = {k: v for k, v in message.items() if isinstance(v, (int, float)) or k in ("ev", "id")}
            data = json.dumps(
                {**slim, "message": "the packet was too large and its details were left out"}
            ).encode()
        socket.send_fds(self._socket, [data], list(fds))

    def recv(self) -> Tuple[Optional[Message], List[int]]:
        """The next packet and its descriptors (close-on-exec); ``None`` at the end of the stream."""
        try:
            data, fds, _, _ = socket.recv_fds(self._socket, MAX_PACKET, _MAX_FDS, socket.MSG_CMSG_CLOEXEC)
        except (ConnectionResetError, BrokenPipeError):
            return None, []
        if not data:
            close_all(fds)
            return None, []
        try:
            message = json.loads(data)
        except ValueError:
            message = {}
        return (message if isinstance(message, dict) else {}), list(fds)

    def close(self) -> None:
        """Close this end."""
        self._socket.close()


def close_all(fds: Sequence[int]) -> None:
    """Close descriptors; those that are closed already don't matter."""
    for fd in fds:
        try:
            os.close(fd)
        except OSError:
            continue
