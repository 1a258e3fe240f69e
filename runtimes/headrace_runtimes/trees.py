"""Removes directory trees that somebody else has filled: of any depth, of any mode, never through a link.

``shutil.rmtree`` recurses: a tree of a thousand levels ends it, and it opens by name what may have become
a pipe meanwhile. Here every directory below the second level is first moved to the top, by descriptor.
"""

from __future__ import annotations

import contextlib
import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path

DEADLINE_S = 60.0
_OPEN = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def remove_tree(path: Path, deadline_s: float = DEADLINE_S) -> bool:
    """Remove ``path`` and all below it; whether it is gone. A link is removed, not followed. Blocks.

    Gives up after ``deadline_s``: somebody may still write there.
    """
    try:
        if not stat.S_ISDIR(path.lstat().st_mode):
            path.unlink()
            return True
        top = _open_dir(os.fspath(path), None)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    deadline = time.monotonic() + deadline_s
    try:
        while _empty_one_level(top) and time.monotonic() < deadline:
            pass
        path.rmdir()
    except OSError:
        return not os.path.lexists(path)
    finally:
        os.close(top)
    return True


def _empty_one_level(top: int) -> bool:
    """Remove what is in ``top``, but for what its directories' directories held: that is in ``top`` now.

    Whether anything was done.
    """
    busy = False
    for name, is_dir in _entries(top):
        if not is_dir:
            busy |= _try_unlink(name, top)
            continue
        try:
            below = _open_dir(name, top)
        except OSError:
            continue
        try:
            for inner, inner_is_dir in _entries(below):
                busy |= _lift(inner, below, top) if inner_is_dir else _try_unlink(inner, below)
        finally:
            os.close(below)
        with contextlib.suppress(OSError):
            os.rmdir(name, dir_fd=top)
            busy = True
    return busy


def _lift(name: str, source: int, top: int) -> bool:
    """Move a directory to ``top`` under a name that nobody has guessed."""
    try:
        # Without leave to write in it, its owner may not move it elsewhere either.
        os.close(_open_dir(name, source))
        os.rename(name, f".gone-{os.urandom(8).hex()}", src_dir_fd=source, dst_dir_fd=top)
    except OSError:
        return False
    return True


def _try_unlink(name: str, parent: int) -> bool:
    try:
        os.unlink(name, dir_fd=parent)
    except OSError:
        return False
    return True


def _open_dir(name: str, parent: int | None) -> int:
    """A readable descriptor of a directory that we may write in from now on. Raises ``OSError``."""
    handle = os.open(name, _OPEN, dir_fd=parent)
    try:
        place = f"/proc/self/fd/{handle}"
        with contextlib.suppress(OSError):
            os.chmod(place, 0o700)
        return os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    finally:
        os.close(handle)


def _entries(directory: int) -> Iterator[tuple[str, bool]]:
    """Names in it, and whether each is a directory (not a link to one)."""
    with os.scandir(directory) as found:
        for entry in found:
            try:
                yield entry.name, entry.is_dir(follow_symlinks=False)
            except OSError:
                continue
