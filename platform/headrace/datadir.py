"""The data directory: created private, checked, held by one platform at a time; keeps its two secrets.

`open_data_dir` is for the process that runs the platform. Its children and the command line read the
secrets with `read_cluster_token` and `read_admin_key`, which take no lock.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import secrets
import stat
from dataclasses import dataclass, field
from pathlib import Path

from headrace.config import Settings
from headrace.errors import DataDirError

ADMIN_KEY_PREFIX = "hr_"
SECRET_BYTES = 32
MIN_SECRET_CHARS = 20
"""Shorter content of a secret's file is taken for damage."""


@dataclass
class DataDir:
    """An open (locked) data directory; `close` it to let another platform have it."""

    path: Path
    run: Path
    control_socket: Path
    admin_key: str = field(repr=False)
    cluster_token: str = field(repr=False)
    _lock: int = field(repr=False, default=-1)
    fresh_key: bool = False
    """The admin key was made just now: nobody has seen it."""

    @property
    def admin_key_hash(self) -> str:
        """SHA-256 (hex) of the admin key: all that control keeps of it."""
        return hashlib.sha256(self.admin_key.encode()).hexdigest()

    def close(self) -> None:
        """Give up the lock, and remove control's socket and the run directory when nothing is left in it.

        Called when all parts have stopped; a second time it does nothing.
        """
        if self._lock < 0:
            return
        with contextlib.suppress(OSError):
            self.control_socket.unlink(missing_ok=True)
        # Sockets of gateways that were killed.
        for path in (self.run / "gateways").glob("*"):
            with contextlib.suppress(OSError):
                path.unlink()
        for path in (self.run / "hosts", self.run / "gateways", self.run):
            # Not empty means that something else still lives there, which is swept at the next start.
            with contextlib.suppress(OSError):
                path.rmdir()
        os.close(self._lock)
        self._lock = -1


def open_data_dir(settings: Settings) -> DataDir:
    """Create, check and lock the data directory and the run directory, and make the secrets once.

    From then on others can write to nothing that this process and its children make, whatever they were
    started with. Raises `DataDirError`, one line, when the directory is held (names the process), belongs
    to another user or cannot be written.
    """
    os.umask(os.umask(0o077) | 0o022)
    data = settings.data
    _private_dir(data, 0o700, "data directory", "--data-dir")
    lock = _lock(data)
    try:
        for name in ("blobs", "history", "logs", "hosts"):
            _make_dir(data / name, 0o700)
        make_run_dir(settings.run)
        fresh = not (data / "admin.key").exists()
        admin_key = _secret(data / "admin.key", ADMIN_KEY_PREFIX)
        token = _secret(data / "cluster.token", "")
    except BaseException:
        os.close(lock)
        raise
    return DataDir(data, settings.run, settings.control_socket, admin_key, token, lock, fresh)


def read_cluster_token(settings: Settings) -> str:
    """The cluster token of a platform on this machine. Raises `DataDirError` when there is none."""
    return _read_secret(settings.data / "cluster.token")


def read_admin_key(settings: Settings) -> str:
    """The admin key of a platform on this machine. Raises `DataDirError` when there is none."""
    return _read_secret(settings.data / "admin.key")


def _make_dir(path: Path, mode: int) -> None:
    try:
        path.mkdir(mode=mode, parents=True, exist_ok=True)
    except FileExistsError:
        raise DataDirError(f"{path} is not a directory.", hint="Move it away or name another one.") from None
    except OSError as error:
        raise DataDirError(
            f"{path} cannot be made: {error.strerror}.", hint="Give a writable place with --data-dir."
        ) from error


def _private_dir(path: Path, mode: int, what: str, option: str) -> None:
    """Make ``path`` a directory of ours with exactly ``mode``; refuse one of another user."""
    _make_dir(path, mode)
    info = path.lstat() if what == "run directory" else path.stat()
    if not stat.S_ISDIR(info.st_mode):
        raise DataDirError(f"the {what} {path} is not a directory.", hint=f"Name another one with {option}.")
    if info.st_uid != os.geteuid():
        raise DataDirError(
            f"the {what} {path} belongs to uid {info.st_uid} and this is uid {os.geteuid()}.",
            hint=f"Run as its owner or name another one with {option}.",
        )
    if stat.S_IMODE(info.st_mode) != mode:
        try:
            path.chmod(mode)
        except OSError as error:
            raise DataDirError(
                f"the {what} {path} cannot be made private: {error.strerror}.",
                hint=f"Name another one with {option}.",
            ) from error


def make_run_dir(run: Path) -> None:
    """Make the run directory and what hosts share in it. Raises `DataDirError`.

    Instances with uids of their own reach their directories through it: traversable, not listable.
    """
    if not run.parent.exists():
        _private_dir(run.parent, 0o711, "run directory", "HEADRACE_RUN_DIR")
    _private_dir(run, 0o711, "run directory", "HEADRACE_RUN_DIR")
    _private_dir(run / "hosts", 0o711, "run directory", "HEADRACE_RUN_DIR")


def _lock(data: Path) -> int:
    path = data / "lock"
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise DataDirError(
            f"the data directory {data} cannot be written: {error.strerror}.",
            hint="Make it writable or name another one with --data-dir.",
        ) from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
    except OSError as error:
        os.close(fd)
        if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
            raise DataDirError(
                f"the data directory {data} cannot be locked: {error.strerror}.",
                hint="Name another one with --data-dir.",
            ) from error
        raise DataDirError(
            f"the data directory {data} is held by a running platform ({_holder(path)}).",
            hint="Stop it with `headrace down` or name another one with --data-dir.",
        ) from None
    return fd


def _holder(path: Path) -> str:
    try:
        pid = path.read_text().strip()
    except OSError:
        pid = ""
    return f"pid {pid}" if pid.isdigit() else "its pid is not known"


def _secret(path: Path, prefix: str) -> str:
    """Read the secret, or make it: written whole or not at all, readable by us only."""
    if path.exists():
        path.chmod(0o600)
        return _read_secret(path)
    value = prefix + secrets.token_urlsafe(SECRET_BYTES)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        draft.unlink(missing_ok=True)
        fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "w") as file:
            file.write(value + "\n")
            file.flush()
            os.fsync(file.fileno())
        draft.rename(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)
        raise DataDirError(
            f"{path} cannot be written: {error.strerror}.", hint="Free space or name another --data-dir."
        ) from error
    return value


def _read_secret(path: Path) -> str:
    try:
        value = path.read_text().strip()
    except FileNotFoundError:
        raise DataDirError(
            f"{path} does not exist.", hint="Start the platform with `headrace up` or give --data-dir."
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataDirError(f"{path} cannot be read: {error}.", hint="Run as the platform's user.") from error
    if len(value) < MIN_SECRET_CHARS or any(c.isspace() for c in value):
        raise DataDirError(f"{path} is damaged.", hint="Remove it; the next start makes a new one.")
    return value
