"""What holds a sandbox of the process runtime: a forked child under a uid of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from headrace_runtimes.errors import NotSupported, PrepareFailed
from headrace_runtimes.instance.census import Census, use_of
from headrace_runtimes.instance.child import Child
from headrace_runtimes.instance.home import make_home
from headrace_runtimes.instance.inmemory import make_secrets
from headrace_runtimes.instance.memory import MemoryGuard
from headrace_runtimes.instance.sandbox import Furnished
from headrace_runtimes.spec import Assignment, Ran, Stats, Tier

NO_EXEC = 'The process runtime runs no commands in its sandboxes: use runtime="oci" or "docker".'


class ProcessFrame:
    """See `instance.sandbox.Frame`."""

    def __init__(
        self,
        child: Child,
        tier: Tier,
        homes: Path,
        sockets: Path,
        *,
        memory: MemoryGuard,
        census: Census,
        bury: Callable[[Child], Awaitable[None]],
        secrets: Path | None = None,
    ) -> None:
        self.child = child
        self.tier: Tier = tier
        self._homes, self._sockets = homes, sockets
        self._memory, self._census = memory, census
        self._cpu_s = 0.0
        self._bury = bury
        self._secrets = secrets

    async def furnish(self, assignment: Assignment) -> Furnished:
        """Its directory and socket, and its memory limit. Raises `PrepareFailed`."""
        self._refuse(assignment)
        home = make_home(self._homes, self._sockets, assignment.id, self.child.uid)
        if assignment.secrets and self._secrets is not None:
            try:
                secrets = make_secrets(self._secrets, assignment.id, self.child.uid)
            except PrepareFailed:
                home.listener.close()
                home.remove()
                raise
            home = replace(home, secrets=secrets)
        if assignment.memory_limit is not None:
            if self.child.cgroup is None:
                await self._memory.adopt(self.child)
            self._memory.limit(self.child, assignment.memory_limit)
        return Furnished(home, str(assignment.code_dir), str(home.path))

    def killed_for(self, limit: int | None) -> int | None:
        """See `Frame.killed_for`."""
        return self._memory.killed_for(self.child, limit)

    async def use(self) -> Stats | None:
        """PSS, CPU and IO of all of its processes."""
        pids = await self._census.of(self.child.pid, self.child.uid if self.child.own_uid else None)
        used = await asyncio.to_thread(use_of, pids)
        if used is None:
            return None
        # What an orphan has used ends with it: the sum never goes back for that.
        self._cpu_s = max(self._cpu_s, used.cpu_s)
        return replace(used, cpu_s=self._cpu_s)

    async def freeze(self) -> None:
        """Raises `NotSupported`."""
        raise NotSupported('The process runtime cannot pause: use runtime="oci" or "docker".')

    async def thaw(self) -> None:
        """Raises `NotSupported`."""
        raise NotSupported('The process runtime cannot pause: use runtime="oci" or "docker".')

    async def exec(self, argv: Sequence[str], env: Mapping[str, str], timeout_s: float) -> Ran:
        """Raises `NotSupported`."""
        raise NotSupported(NO_EXEC)

    async def bury(self) -> None:
        """End what it left behind."""
        await self._bury(self.child)

    @staticmethod
    def _refuse(assignment: Assignment) -> None:
        asked = {
            "cpu_limit": assignment.cpu_limit, "pids_limit": assignment.pids_limit,
            "disk_limit": assignment.disk_limit, "io_limit": assignment.io_limit,
            "mounts": assignment.mounts or None,
        }  # fmt: skip
        unheld = [name for name, value in asked.items() if value is not None]
        if unheld:
            raise PrepareFailed(
                f'The process runtime cannot hold {", ".join(unheld)}: use runtime="oci" or "docker".'
            )
