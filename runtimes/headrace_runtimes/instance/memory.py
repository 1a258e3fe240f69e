"""Enforces memory limits: by cgroup where there is one, else by looking at PSS twice a second.

A limit counts what the sandbox added: pages it shares with its zygote are the zygote's (cgroup), or
counted by their share (PSS). Not RLIMIT_AS: it breaks whatever maps more than it uses, as torch does.
"""

from __future__ import annotations

import asyncio
import contextlib

from headrace_runtimes.instance.cgroups import Cgroups
from headrace_runtimes.instance.child import Child
from headrace_runtimes.instance.procs import in_session, of_uids, pss

PERIOD_S = 0.5


class MemoryGuard:
    """Kills what goes above its limit."""

    def __init__(self, cgroups: Cgroups | None, period_s: float = PERIOD_S) -> None:
        self._cgroups = cgroups
        self._period_s = period_s
        self._watched: dict[Child, int] = {}
        self._task: asyncio.Task[None] | None = None

    async def adopt(self, child: Child) -> None:
        """Put a fresh child into a cgroup of its own; off the claim path, as the kernel may take its time."""
        if self._cgroups is None or not child.alive:
            return
        with contextlib.suppress(OSError):
            child.cgroup = await asyncio.to_thread(self._cgroups.make, child.id, child.pid)

    def limit(self, child: Child, count: int) -> None:
        """Hold ``child`` to ``count`` bytes from now on."""
        if self._cgroups is not None and child.cgroup is not None:
            try:
                self._cgroups.limit(child.cgroup, count)
            except OSError:
                pass
            else:
                return
        self._watched[child] = count
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._watch())

    def killed_for(self, child: Child, limit: int | None) -> int | None:
        """The limit that the ended child was killed for, or None when memory was not the reason."""
        if child.memory_killed is not None:
            return child.memory_killed
        if limit is not None and self._cgroups and child.cgroup and self._cgroups.oom_killed(child.cgroup):
            return limit
        return None

    def forget(self, child: Child) -> None:
        """The child and all that was in its cgroup are gone."""
        self._watched.pop(child, None)
        if self._cgroups and child.cgroup:
            self._cgroups.remove(child.cgroup)

    async def close(self) -> None:
        """Stop watching and remove the cgroups."""
        if self._task:
            self._task.cancel()
            await asyncio.wait([self._task])
        if self._cgroups:
            await asyncio.to_thread(self._cgroups.close)

    async def _watch(self) -> None:
        while self._watched:
            for child, count in list(self._watched.items()):
                if not child.alive:
                    self._watched.pop(child, None)
                    continue
                used = await asyncio.to_thread(usage, child.pid, child.uid if child.own_uid else None)
                if used > count and child.alive:
                    child.memory_killed = count
                    child.kill()
            await asyncio.sleep(self._period_s)


def usage(pid: int, uid: int | None) -> int:
    """PSS of a sandbox with all its processes, in bytes. Blocks."""
    found = of_uids({uid}) if uid is not None else in_session(pid)
    return sum(pss(p) for p in {pid, *found})
