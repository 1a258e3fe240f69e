"""Names a process beyond its pid, which the kernel gives to others later; keeps the record of a platform.

The record, ``<data-dir>/up.json``, says which processes belong to the platform that runs (or was killed).
"""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path
from typing import Literal

import msgspec
import psutil
from headrace_runtimes.instance import procs

from headrace.config import Settings

UP_FILE = "up.json"


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """A process: its pid, and what no other one ever has (its start in ticks since boot, the boot's id).

    Not the time of day of its start: that moves with the wall clock (NTP after boot, a resumed machine).
    """

    name: str
    pid: int
    mark: str

    def process(self) -> psutil.Process | None:
        """The process, or None when it has ended or is another one by now."""
        try:
            found = psutil.Process(self.pid)
        except psutil.Error:
            return None
        # Asked after psutil has noted its own: when both are of the marked one, signals go to no other.
        return found if self.mark and procs.identity(self.pid) == self.mark else None


def identify(name: str, pid: int) -> Identity:
    """The identity of a process that lives. One that has just ended gets a mark that matches nothing."""
    return Identity(name=name, pid=pid, mark=procs.identity(pid) or "")


class UpRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What runs: readable by its owner only, holds no secret."""

    pid: int
    mark: str
    state: Literal["starting", "ready", "stopping"]
    url: str
    port: int
    control_port: int
    ray_port: int
    data_dir: str
    run_dir: str
    version: str
    started_at: float
    ready_s: float = 0.0
    children: tuple[Identity, ...] = ()

    @property
    def supervisor(self) -> Identity:
        """The process of ``headrace up``."""
        return Identity(name="headrace up", pid=self.pid, mark=self.mark)


def new_record(settings: Settings, version: str) -> UpRecord:
    """The record of this process at its start."""
    me = identify("headrace up", os.getpid())
    host = "127.0.0.1" if settings.host in {"0.0.0.0", "::"} else settings.host  # noqa: S104 - compared, not bound
    return UpRecord(
        pid=me.pid, mark=me.mark, state="starting", version=version,
        url=f"http://{f'[{host}]' if ':' in host else host}:{settings.port}",
        port=settings.port, control_port=settings.control_port, ray_port=settings.ray_port,
        data_dir=settings.data_dir, run_dir=settings.run_dir, started_at=time.time(),
    )  # fmt: skip


def write_record(record: UpRecord) -> None:
    """Replace the file in one step; mode 0600."""
    path = Path(record.data_dir) / UP_FILE
    draft = path.with_name(f".{UP_FILE}.{os.getpid()}")
    try:
        fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "wb") as file:
            file.write(msgspec.json.format(msgspec.json.encode(record)) + b"\n")
        draft.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)
        raise


def remove_record(data: Path) -> None:
    """Remove the file, and drafts of it whose writers were killed. For who holds the directory's lock."""
    for draft in data.glob(f".{UP_FILE}.*"):
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)
    (data / UP_FILE).unlink(missing_ok=True)


def read_record(data: Path) -> UpRecord | None:
    """The record, or None when there is none that can be read."""
    try:
        return msgspec.json.decode((data / UP_FILE).read_bytes(), type=UpRecord)
    except (OSError, msgspec.DecodeError):
        return None
