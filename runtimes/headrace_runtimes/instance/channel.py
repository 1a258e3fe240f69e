"""Packets between the runtime and its zygotes and children: JSON objects and descriptors, bounded."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import socket
from array import array
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

log = logging.getLogger("headrace.runtimes")

MAX_PACKET = 128 << 10
MAX_WAITING = 64
UNASKED = 1000
"""Packets that a peer may send beyond `ANSWERS` for each of ours: a flood is work for the whole host."""
ANSWERS = 4
_ANCILLARY = socket.CMSG_SPACE(253 * 4)
"""The most descriptors that one packet can carry."""
_SO_PASSRIGHTS = 83

Packet = dict[str, Any]


class ChannelError(Exception):
    """The packet cannot be sent: the peer is gone, does not read, or the packet is too large."""


class Channel:
    """One end of a SOCK_SEQPACKET pair on the running loop.

    ``on_packet`` gets every packet that is a JSON object; anything else from the peer closes the
    channel, for the peer may be user code. ``on_close`` is called once, also after `close`.
    """

    def __init__(
        self, sock: socket.socket, on_packet: Callable[[Packet], None], on_close: Callable[[], None]
    ) -> None:
        sock.setblocking(False)
        # Nobody sends us descriptors: to close some kinds takes as long as their sender likes. The kernel
        # can refuse them (6.16 and later).
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, _SO_PASSRIGHTS, 0)
        self._sock = sock
        self._fd = sock.fileno()
        self._loop = asyncio.get_running_loop()
        self._on_packet = on_packet
        self._on_close = on_close
        self._waiting: deque[tuple[bytes, list[int]]] = deque()
        self._allowed = UNASKED
        self.closed = False
        self._loop.add_reader(self._fd, self._readable)

    def send(self, packet: Packet, fds: Sequence[int] = ()) -> None:
        """Queue a packet. The descriptors are duplicated when it must wait. Raises `ChannelError`."""
        data = json.dumps(packet, separators=(",", ":")).encode()
        if len(data) > MAX_PACKET:
            raise ChannelError(f"a message of {len(data)} bytes is above the bound of {MAX_PACKET}")
        if self.closed:
            raise ChannelError("the process at the other end has ended")
        self._allowed = min(self._allowed + ANSWERS, UNASKED)
        if not self._waiting and self._try(data, fds):
            return
        if len(self._waiting) >= MAX_WAITING:
            raise ChannelError("the process at the other end does not read its messages")
        self._waiting.append((data, [os.dup(fd) for fd in fds]))
        self._loop.add_writer(self._fd, self._writable)

    def drain(self) -> None:
        """Hand out what has arrived already: the last words of a peer whose end is known from elsewhere."""
        for _ in range(MAX_WAITING):
            if self.closed or not self._receive():
                return

    def close(self) -> None:
        """Close the socket; waiting packets are dropped."""
        if self.closed:
            return
        self.closed = True
        self._loop.remove_reader(self._fd)
        self._loop.remove_writer(self._fd)
        while self._waiting:
            _close_all(self._waiting.popleft()[1])
        self._sock.close()
        self._on_close()

    def _try(self, data: bytes, fds: Sequence[int]) -> bool:
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", fds))] if fds else []
        try:
            self._sock.sendmsg([data], ancillary)
        except (BlockingIOError, InterruptedError):
            return False
        except OSError as error:
            raise ChannelError(f"the process at the other end has ended ({error.strerror})") from error
        return True

    def _writable(self) -> None:
        while self._waiting:
            data, fds = self._waiting[0]
            try:
                if not self._try(data, fds):
                    return
            except ChannelError:
                self.close()
                return
            self._waiting.popleft()
            _close_all(fds)
        self._loop.remove_writer(self._fd)

    def _readable(self) -> None:
        # One packet per call: a peer that floods us takes turns with everything else on the loop.
        self._receive()

    def _receive(self) -> bool:
        """Whether there was a packet."""
        try:
            data, ancillary, flags, _ = self._sock.recvmsg(MAX_PACKET, _ANCILLARY)
        except (BlockingIOError, InterruptedError):
            return False
        except OSError:
            self.close()
            return False
        for level, kind, payload in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                received = array("i")
                received.frombytes(payload[: len(payload) - len(payload) % received.itemsize])
                _close_all(received.tolist())
        self._allowed -= 1
        if not data or flags & socket.MSG_TRUNC or self._allowed < 0:
            self.close()
            return False
        try:
            self._on_packet(read_packet(data))
        except Exception as error:
            log.warning("a sandbox sent what nobody asked for, and is cut off: %s", type(error).__name__)
            self.close()
            return False
        return True


def read_packet(data: bytes) -> Packet:
    """A packet of a peer that may be user code. Raises ``ValueError`` or ``RecursionError``.

    Its texts can be encoded again: JSON can say half a surrogate pair, which no message could carry on.
    """
    packet = json.loads(data.decode("utf-8", "replace"), parse_constant=_no_number)
    if not isinstance(packet, dict):
        raise ValueError("not an object")  # noqa: TRY004 - one type for all that is no packet
    return {_text(key): _clean(value) for key, value in packet.items()} if b"\\u" in data else packet


def _clean(value: Any) -> Any:
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, list):
        return [_clean(item) for item in value]
    if isinstance(value, dict):
        return {_text(key): _clean(item) for key, item in value.items()}
    return value


def _text(text: str) -> str:
    return text.encode("utf-8", "replace").decode()


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number")


def pair() -> tuple[socket.socket, socket.socket]:
    """Our end and the peer's end; neither is inherited by an exec unless it is passed on."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def _close_all(fds: Sequence[int]) -> None:
    for fd in fds:
        with contextlib.suppress(OSError):
            os.close(fd)
