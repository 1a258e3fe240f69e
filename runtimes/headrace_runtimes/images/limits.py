"""Cgroups of builds that no container runtime limits: what buildah and uv start, all of it together."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path

log = logging.getLogger("headrace.runtimes")

ROOT = Path("/sys/fs/cgroup")
PREFIX = "headrace-build-"
PIDS_LIMIT = 4096
CORE_BYTES = 1
"""No dump, also where the kernel gives dumps to a program: 0 says nothing to that."""
END_S = 5.0
JOIN = 'for place in $0; do echo $$ > "$place/cgroup.procs"; done; exec "$@"'


def memory_limit() -> int:
    """Bytes of memory, files in memory included, that one step may have: half of the machine's."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def make(name: str, memory: int | None = None, root: Path = ROOT) -> list[Path]:
    """The directories of a new cgroup ``name``, for `joined`; none, which is logged, where none can be had.

    ``memory``: bytes, swap included; None: `memory_limit`. Whoever makes it calls `remove`.
    """
    places = _places(name, root)
    try:
        _make(places, memory or memory_limit(), unified=_unified(root))
    except OSError as error:
        log.warning("Nothing but the machine limits the memory of %s: %s.", name, error)
        remove(name, root)
        return []
    return places


def joined(argv: Sequence[str], places: Sequence[Path]) -> list[str]:
    """``argv``, and whatever it starts, in that cgroup."""
    return ["sh", "-c", JOIN, " ".join(map(str, places)), *argv] if places else list(argv)


def remove(name: str, root: Path = ROOT) -> None:
    """Kill who is in it and take it away, also after its maker has died. Blocks for up to `END_S`."""
    deadline = time.monotonic() + END_S
    left = [place for place in _places(name, root) if place.is_dir()]
    while left and time.monotonic() < deadline:
        for place in left:
            with contextlib.suppress(OSError):
                for word in (place / "cgroup.procs").read_text().split():
                    os.kill(int(word), signal.SIGKILL)
            with contextlib.suppress(OSError):
                place.rmdir()
        left = [place for place in left if place.is_dir()]
        if left:
            time.sleep(0.01)


def _unified(root: Path) -> bool:
    return (root / "cgroup.controllers").exists()


def _places(name: str, root: Path) -> list[Path]:
    return [root / name] if _unified(root) else [root / kind / name for kind in ("memory", "pids")]


def _make(places: Sequence[Path], memory: int, *, unified: bool) -> None:
    if unified:
        with contextlib.suppress(OSError):
            (places[0].parent / "cgroup.subtree_control").write_text("+memory +pids")
    for place in places:
        place.mkdir(exist_ok=True)
    (places[-1] / "pids.max").write_text(str(PIDS_LIMIT))
    if unified:
        (places[0] / "memory.max").write_text(str(memory))
        with contextlib.suppress(OSError):
            (places[0] / "memory.swap.max").write_text("0")
        return
    (places[0] / "memory.limit_in_bytes").write_text(str(memory))
    # A kernel may be without these two.
    for name, value in (
        ("memory.memsw.limit_in_bytes", memory),
        ("memory.kmem.tcp.limit_in_bytes", memory // 8),
    ):
        with contextlib.suppress(OSError):
            (places[0] / name).write_text(str(value))
