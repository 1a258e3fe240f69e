"""The loopback interface of a container that was restored: its new network namespace begins with it down."""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import struct
import threading

_CLONE_NEWNET = 0x4000_0000
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 1
_NAME_FLAGS = struct.Struct("16sH14x")
_libc = ctypes.CDLL(None, use_errno=True)


def bring_up(pid: int) -> None:
    """In the network namespace of ``pid``. Blocks for a moment. Raises ``OSError``."""
    failed: list[OSError] = []

    def inside() -> None:
        try:
            _bring_up(pid)
        except OSError as error:
            failed.append(error)

    # A thread of its own, which ends there.
    thread = threading.Thread(target=inside, name="loopback", daemon=True)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]


def _bring_up(pid: int) -> None:
    space = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        if _libc.setns(space, _CLONE_NEWNET) != 0:
            code = ctypes.get_errno()
            raise OSError(code, f"setns: {os.strerror(code)}")
    finally:
        os.close(space)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
        _, flags = _NAME_FLAGS.unpack(fcntl.ioctl(asked, _SIOCGIFFLAGS, _NAME_FLAGS.pack(b"lo", 0)))
        fcntl.ioctl(asked, _SIOCSIFFLAGS, _NAME_FLAGS.pack(b"lo", flags | _IFF_UP))
