"""Finds the Python of an image."""

from __future__ import annotations

import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeGuard

from headrace_runtimes.errors import ImageFailed
from headrace_runtimes.images.view import Seen, look

LABEL = "headrace.python"
"""A label of the image's configuration that names its interpreter."""
OVER = frozenset({"dev", "proc", "sys"})
"""Places of an image over which file systems of the kernel are mounted."""
PATH = "/usr/local/bin:/usr/local/sbin:/usr/bin:/usr/sbin:/bin:/sbin"


def find_python(
    layers: Sequence[Path], env: Mapping[str, str], labels: Mapping[str, object], version: str | None
) -> str:
    """The interpreter's path in an image of ``layers`` (top first). Blocks. Raises `ImageFailed`.

    ``version``, such as ``3.11``, is asked for by name; else the first ``python3`` or ``python`` of its PATH.
    """
    label = labels.get(LABEL)
    if isinstance(label, str) and label.startswith("/") and _of_image(look(layers, label)):
        return label
    short = ".".join(version.split(".")[:2]) if version else ""
    names = (f"python{short}",) if short else ("python3", "python")
    for directory in env.get("PATH", PATH).split(":"):
        for name in names:
            path = f"{directory.rstrip('/')}/{name}"
            seen = look(layers, path) if directory.startswith("/") else None
            if _of_image(seen) and stat.S_ISREG(seen.stat.st_mode) and seen.stat.st_mode & 0o111:
                return path
    raise ImageFailed(
        f"The image has no {' or '.join(names)} on its PATH: "
        "start from one that has, such as python:3.12-slim."
    )


def _of_image(seen: Seen | None) -> TypeGuard[Seen]:
    """Whether it is there, and still is when the container runs: ``/proc/self/exe`` is the engine's then."""
    return seen is not None and (not seen.path or seen.path[0] not in OVER)


def is_musl(layers: Sequence[Path]) -> bool:
    """Whether its C library is musl, for which our copy of uv is not made."""
    seen = look(layers, "/lib")
    return seen is not None and any(any(place.glob("ld-musl-*")) for place in seen.places)
