"""Where secrets of sandboxes lie that have no file system of their own: in memory, gone with the sandbox."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterable
from pathlib import Path

from headrace_runtimes.errors import PrepareFailed
from headrace_runtimes.instance.uids import own

SHM = Path("/dev/shm")  # noqa: S108 - used only when the directory in it is our own
IN_MEMORY = frozenset({"tmpfs", "ramfs"})


def secrets_place(run_dir: Path, shm: Path = SHM) -> Path:
    """The directory for the secrets of a run directory's sandboxes.

    In the run directory when that is in memory, else in ``/dev/shm``; where there is neither, it lies on a
    disk, and is removed with the sandbox all the same.
    """
    inside = run_dir / "m"
    mounts = _mounts()
    if _in_memory(run_dir, mounts) or not _in_memory(shm, mounts) or not os.access(shm, os.W_OK):
        return inside
    digest = hashlib.sha256(os.fsencode(run_dir)).hexdigest()[:16]
    found = shm / f"headrace-{os.geteuid()}-{digest}"
    return found if _may_be_ours(found) else inside


def make_secrets(place: Path, id: str, uid: int | None) -> Path:
    """A sandbox's own directory for its secrets, which only its uid may enter. Raises `PrepareFailed`."""
    path = place / id
    try:
        # Made at the first secret: most hosts never have one.
        place.mkdir(mode=0o700, exist_ok=True)
        if not _may_be_ours(place):
            raise PrepareFailed(f"{place} belongs to somebody else: remove it, or use another run directory.")
        place.chmod(0o711)
        os.mkdir(path, 0o700)
        own(path, uid, uid)
    except OSError as error:
        raise PrepareFailed(f"Cannot make {path} for secrets: {error.strerror}.") from error
    return path


def _may_be_ours(path: Path) -> bool:
    """Anybody may have made it: /dev/shm is everybody's."""
    try:
        seen = os.lstat(path)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return stat.S_ISDIR(seen.st_mode) and seen.st_uid == os.geteuid()


def _mounts() -> list[tuple[str, str]]:
    """(mount point, kind of file system), the newest last."""
    try:
        lines = Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines()
    except OSError:
        return []
    found: list[tuple[str, str]] = []
    for line in lines:
        left, _, right = line.partition(" - ")
        fields, kind = left.split(), right.split()
        if len(fields) > 4 and kind:
            found.append((fields[4].encode().decode("unicode_escape"), kind[0]))
    return found


def _in_memory(path: Path, mounts: Iterable[tuple[str, str]]) -> bool:
    real = os.path.realpath(path)
    best, answer = -1, False
    for point, kind in mounts:
        inside = real == point or real.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= best:
            best, answer = len(point), kind in IN_MEMORY
    return answer
