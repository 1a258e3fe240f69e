"""What sandboxes of the process runtime use: all processes of each, by one look at ``/proc`` for all."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

from headrace_runtimes.instance import procs
from headrace_runtimes.instance.procs import Proc
from headrace_runtimes.spec import Stats

FRESH_S = 1.0
"""So long a look serves who asks next. What they use is read anew each time."""


@dataclass(frozen=True)
class Look:
    """Who was there. ``by_uid``: those that have another uid than ours."""

    by_session: dict[int, list[int]] = field(default_factory=dict)
    by_uid: dict[int, list[int]] = field(default_factory=dict)

    def of(self, pid: int, uid: int | None) -> list[int]:
        """Processes of the sandbox whose first one is ``pid``: under its own uid, or of its session."""
        found = self.by_session.get(pid, []) if uid is None else self.by_uid.get(uid, [])
        return [pid, *(other for other in found if other != pid)]


class Census:
    """One for a runtime."""

    def __init__(self) -> None:
        self._look, self._at = Look(), float("-inf")
        self._lock = asyncio.Lock()

    async def of(self, pid: int, uid: int | None) -> list[int]:
        """See `Look.of`; ``uid``: None when others have it, too."""
        async with self._lock:
            if time.monotonic() - self._at > FRESH_S:
                self._look = await asyncio.to_thread(look)
                self._at = time.monotonic()
        return self._look.of(pid, uid)


def look() -> Look:
    """Who is there. Blocks for a tenth of a millisecond per process."""
    found = Look()
    for pid in procs.pids():
        seen = procs.stat(pid)
        # The kernel's own have neither session nor memory.
        if seen is None or seen.zombie or seen.session == 0:
            continue
        found.by_session.setdefault(seen.session, []).append(pid)
        uid = procs.uid_of(pid)
        if uid:
            found.by_uid.setdefault(uid, []).append(pid)
    return found


def use_of(pids: Iterable[int]) -> Stats | None:
    """What these use together; the first one says whether it stands still. None when that is gone. Blocks."""
    first: Proc | None = None
    rss, cpu_s, count, read = 0, 0.0, 0, list[int]()
    for pid in pids:
        seen = procs.stat(pid)
        if seen is None or seen.zombie:
            if first is None:
                return None
            continue
        first = first or seen
        count += 1
        rss += procs.pss(pid)
        cpu_s += seen.cpu_s + seen.reaped_cpu_s
        number = procs.io_bytes(pid)
        if number is not None:
            read.append(number)
    if first is None:
        return None
    return Stats(rss, cpu_s, io_bytes=sum(read) if read else None, stopped=first.stopped, processes=count)
