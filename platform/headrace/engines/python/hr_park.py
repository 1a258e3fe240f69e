"""Letting go of the host before a checkpoint, and finding it again when the container runs on.

A dumped process must hold nothing whose other end is on the host: the server drops its control socket and its
output, the first process the pipe of the exit status. Both ends of what is left, the line between the two,
are in the container. The first process then knocks until somebody answers: its host if nothing came of the
dump, or whoever has restored it.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from typing import List, Tuple

import hr_child
from hr_ipc import Channel, close_all

FDS = 4
"""What comes through the door: control socket, stdout, stderr, pipe of the exit status."""
_DOOR_TIMEOUT_S = 30.0
_AGAIN_S = 0.005
_TRIES = 24_000
"""Counted, not timed: no time passes for a process that is kept on disk. Two minutes."""
_PARK = b"park"


def line() -> Tuple[socket.socket, socket.socket]:
    """Between the first process and the server."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def knock(door: str) -> List[int]:
    """The descriptors from behind the door. Raises `OSError` when nobody answers."""
    conn = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    conn.settimeout(_DOOR_TIMEOUT_S)
    try:
        conn.connect(door)
        _, fds, _, _ = socket.recv_fds(conn, 64, FDS, socket.MSG_CMSG_CLOEXEC)
    finally:
        conn.close()
    if len(fds) != FDS:
        close_all(fds)
        raise OSError(f"{len(fds)} descriptors instead of {FDS}")
    return list(fds)


def park(channel: Channel, line: socket.socket) -> Channel:
    """The server's side: returns when there is a host again. Raises `OSError`, `SystemExit`."""
    hush()
    line.send(_PARK)
    os.kill(os.getppid(), signal.SIGUSR1)
    channel.close()
    _, fds, _, _ = socket.recv_fds(line, 64, FDS, socket.MSG_CMSG_CLOEXEC)
    if len(fds) != FDS - 1:
        raise SystemExit(0)
    for number, fd in ((1, fds[1]), (2, fds[2])):
        os.dup2(fd, number)
        os.close(fd)
    # Whoever is restored from the same memory has the same generators.
    hr_child.reseed()
    ssl = sys.modules.get("ssl")
    if ssl is not None:
        # It looks at the process id to see that it was copied, which is the same here.
        ssl.RAND_add(os.urandom(64), 64.0)
    return Channel(fds[0])


def park_first(line: socket.socket, report: int, door: str) -> int:
    """The first process's side: the new pipe of the exit status; the old one when nobody has asked for it."""
    try:
        if line.recv(len(_PARK), socket.MSG_DONTWAIT) != _PARK:
            return report
    except OSError:
        return report
    os.close(report)
    hush()
    for _ in range(_TRIES):
        try:
            fds = knock(door)
        except OSError:
            time.sleep(_AGAIN_S)
            continue
        socket.send_fds(line, [_PARK], fds[:-1])
        close_all(fds[:-1])
        return fds[-1]
    sys.exit(f"headrace: nobody has answered at {door}")


def hush() -> None:
    """Output goes nowhere from now on."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError, AttributeError):
            continue
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for number in (0, 1, 2):
        os.dup2(null, number)
    os.close(null)
