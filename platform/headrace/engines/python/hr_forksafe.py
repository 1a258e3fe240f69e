"""Whether this process may be forked and its children still work: one thread, no sockets, no GPU, no loop."""

from __future__ import annotations

import asyncio
import os
import time
from typing import FrozenSet, Iterable, List, NamedTuple, Optional

import hr_sys

_SETTLE_S = 0.25
"""A thread that an import starts and ends again gets this long to be gone."""
_GPU_DEVICES = ("/dev/nvidia", "/dev/kfd", "/dev/dri/", "/dev/accel")


class Picture(NamedTuple):
    """What `look` saw."""

    threads: int
    sockets: FrozenSet[str]
    gpus: FrozenSet[str]
    loop_runs: bool


def look() -> Picture:
    """What this process holds that a fork would break."""
    sockets, gpus = [], []
    for fd in hr_sys.open_descriptors():
        try:
            target = os.readlink(f"/proc/self/fd/{fd}")
        except OSError:
            continue
        if target.startswith("socket:"):
            sockets.append(target)
        elif target.startswith(_GPU_DEVICES):
            gpus.append(target)
    loop_runs = asyncio._get_running_loop() is not None
    return Picture(len(os.listdir("/proc/self/task")), frozenset(sockets), frozenset(gpus), loop_runs)


def compare(before: Picture, after: Picture) -> List[str]:
    """Reasons against a fork in ``after`` that were not there ``before``; none: safe."""
    reasons = []
    if after.threads > before.threads:
        more = after.threads - before.threads
        reasons.append(f"it starts {more} thread{'s' if more > 1 else ''}")
    if after.sockets - before.sockets:
        reasons.append("it leaves a socket open")
    if after.gpus - before.gpus:
        reasons.append(f"it opens a GPU ({', '.join(sorted(after.gpus - before.gpus))})")
    if after.loop_runs:
        reasons.append("it leaves an event loop running")
    return reasons


def unsafe_since(before: Picture, settle_s: float = _SETTLE_S) -> Optional[str]:
    """Why this process may no longer be forked, told in one clause; ``None`` when it may."""
    deadline = time.monotonic() + settle_s
    while True:
        reasons = compare(before, look())
        if not reasons or time.monotonic() > deadline:
            return told(reasons)
        time.sleep(0.005)


def told(reasons: Iterable[str]) -> Optional[str]:
    """The reasons as one clause."""
    return " and ".join(reasons) or None
