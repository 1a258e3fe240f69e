"""Where a sandbox lives on the host: its own directory, and the socket that its instance answers at."""

from __future__ import annotations

import logging
import os
import re
import socket
from dataclasses import dataclass
from pathlib import Path

from headrace_runtimes.errors import PrepareFailed
from headrace_runtimes.instance.uids import own
from headrace_runtimes.spec import Assignment
from headrace_runtimes.trees import remove_tree

log = logging.getLogger("headrace.runtimes")

BACKLOG = 1024
MAX_SOCKET_PATH = 107
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True)
class Home:
    """Where a sandbox lives: ``path`` is its own directory; its socket, ``door``, lies out of its reach."""

    path: Path | None
    """None: it lives in its container."""
    door: Path
    listener: socket.socket
    secrets: Path | None = None
    """Where its secrets lie; None: it has none, or its container has a place for them."""

    def remove(self) -> None:
        """Leave nothing of it, whatever it has filled its directory with. Blocks."""
        self.door.unlink(missing_ok=True)
        for path in (self.secrets, self.path):
            if path is not None and not remove_tree(path):
                log.warning("%s could not be removed; the next start tries again", path)


def make_home(homes: Path, sockets: Path, id: str, uid: int | None) -> Home:
    """The sandbox's private directory and its listening socket. Raises `PrepareFailed`.

    The socket is not in that directory: code that may replace it by a link would have whoever connects
    talk to any socket of the machine, with that one's rights.
    """
    check_id(id)
    path = homes / id
    try:
        os.mkdir(path, 0o700)
        for part in (path / "home", path / "tmp"):
            os.mkdir(part, 0o700)
            own(part, uid, uid)
        own(path, uid, uid)
    except OSError as error:
        if not isinstance(error, FileExistsError):
            remove_tree(path)
        raise PrepareFailed(f"Cannot make {path}: {error.strerror}.") from error
    try:
        bare = make_door(sockets, id)
    except PrepareFailed:
        remove_tree(path)
        raise
    return Home(path, bare.door, bare.listener)


def make_door(sockets: Path, id: str) -> Home:
    """Only the listening socket, for what has its directories elsewhere. Raises `PrepareFailed`."""
    check_id(id)
    door = sockets / id
    address = str(door)
    if len(os.fsencode(address)) > MAX_SOCKET_PATH:
        raise PrepareFailed(f"{address} is too long for a socket: choose a shorter run directory.")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(address)
        os.chmod(address, 0o600)
        # Before the process has it, so that early connections queue instead of failing.
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise PrepareFailed(f"Cannot listen at {address}: {error.strerror}.") from error
    return Home(None, door, listener)


def check_id(id: str) -> None:
    """Raises `PrepareFailed` for an id that cannot name a file."""
    if not _ID.fullmatch(id):
        raise PrepareFailed(f"Instance id {id!r}: use 1-64 letters, digits and . _ -.")


def sandbox_env(assignment: Assignment) -> dict[str, str]:
    """The assignment's environment; the accelerators are what the host reserved, whatever the user says."""
    gpus = ",".join(str(index) for index in assignment.gpu_indices)
    return dict(assignment.env) | {"CUDA_VISIBLE_DEVICES": gpus}
