"""Looks into layers as the overlay of them would show it, without mounting, and never at the host's files."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from headrace_runtimes.errors import ImageFailed
from headrace_runtimes.images.unpack import OPAQUE_XATTR

MAX_LINKS = 40


@dataclass(frozen=True)
class Seen:
    """What is at a path. ``path`` is the real one, below the top, links resolved."""

    path: tuple[str, ...]
    stat: os.stat_result
    places: tuple[Path, ...]
    """Where it is on the host; for a directory all that are merged, top first."""


def look(layers: Sequence[Path], path: str, *, follow: bool = True) -> Seen | None:
    """What an overlay of ``layers`` (top first) has at ``path``; None when nothing. Blocks.

    Raises `ImageFailed` for links in a circle.
    """
    todo = list(reversed([p for p in path.split("/") if p not in ("", ".")]))
    trail: list[tuple[str, tuple[Path, ...]]] = []
    top = tuple(layers)
    links = 0
    while todo:
        name = todo.pop()
        if name == "..":
            if trail:
                trail.pop()
            continue
        here = trail[-1][1] if trail else top
        found = _child(here, name)
        if not found:
            return None
        about = found[0].lstat()
        if stat.S_ISLNK(about.st_mode) and (todo or follow):
            links += 1
            if links > MAX_LINKS:
                raise ImageFailed(f"{path!r:.200} of the image is a circle of links.")
            target = os.readlink(found[0])
            if target.startswith("/"):
                trail.clear()
            todo += reversed([p for p in target.split("/") if p not in ("", ".")])
            continue
        if todo and not stat.S_ISDIR(about.st_mode):
            return None
        trail.append((name, found))
    places = trail[-1][1] if trail else top
    if not places:
        return None
    return Seen(tuple(name for name, _ in trail), places[0].lstat(), places)


def _child(directories: Sequence[Path], name: str) -> tuple[Path, ...]:
    """The places of an entry in merged directories, which are real ones: no link is followed here."""
    found: list[Path] = []
    for directory in directories:
        path = directory / name
        try:
            about = path.lstat()
        except (FileNotFoundError, NotADirectoryError):
            about = None
        if about is not None:
            if not stat.S_ISDIR(about.st_mode):
                # A whiteout, or what is no directory, hides all below; but not what has been found above.
                if not found and not stat.S_ISCHR(about.st_mode):
                    return (path,)
                return tuple(found)
            found.append(path)
            if _is_opaque(path):
                return tuple(found)
    return tuple(found)


def _is_opaque(path: Path) -> bool:
    try:
        return os.getxattr(path, OPAQUE_XATTR) == b"y"
    except OSError:
        return False
