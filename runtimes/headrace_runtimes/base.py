"""The runtime contract: what makes, assigns and ends sandboxes on one host.

A runtime lives in one event loop, on one host. It owns its processes: when the process that opened
it dies, by any signal, all its sandboxes die too, and the next ``open`` on the same directory
sweeps what was left (processes, sockets, directories, mounts, cgroups).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import ClassVar, Protocol, runtime_checkable

from headrace_runtimes.spec import (
    Assignment,
    Base,
    BaseStatus,
    Exit,
    LogLine,
    RuntimeSettings,
    Stats,
    Tier,
    Timings,
)


class Sandbox(Protocol):
    """A sandbox that became an instance: it answers HTTP at ``address``."""

    id: str
    endpoint: str
    version: int
    pid: int
    address: str
    tier: Tier
    timings: Timings
    exited: asyncio.Future[Exit]
    """Done when the sandbox has ended, never with an exception."""

    async def stop(self, grace_s: float) -> Exit:
        """Finish what runs for at most ``grace_s`` seconds, run ``unload``, end; kill after that."""
        ...

    async def stats(self) -> Stats:
        """Use of resources now. Raises `SandboxGone`."""
        ...


@runtime_checkable
class Runtime(Protocol):
    """Makes sandboxes. The module says who dies with whom."""

    name: ClassVar[str]

    async def open(self, settings: RuntimeSettings, on_base: Callable[[BaseStatus], None]) -> None:
        """Sweep the predecessor's leftovers and get ready; ``on_base`` hears of every base's change."""
        ...

    async def close(self) -> None:
        """End all sandboxes and bases; leave nothing behind."""
        ...

    async def hold(self, bases: Sequence[tuple[Base, int]]) -> None:
        """Keep these bases ready with so many spare sandboxes each, most wanted first; let others go.

        Returns at once; work goes on in the background and is reported to ``on_base``. A base with
        living sandboxes is never evicted; beyond the byte budget the last of the list are not kept.
        """
        ...

    async def assign(self, base: Base, assignment: Assignment) -> Sandbox:
        """Claim a sandbox of ``base`` (a spare, a fork, or a new one) and make it an instance.

        Returns when it is ready: code imported, ``load`` done, healthy, listening. Raises
        `AssignFailed` (with the traceback when the user's code is at fault) or `PrepareFailed`.
        A base that is not held is not waited for: the nearest one that is ready is used.
        """
        ...

    def sandboxes(self) -> list[Sandbox]:
        """All living instances."""
        ...

    def bases(self) -> list[BaseStatus]:
        """All bases."""
        ...

    async def logs(
        self,
        endpoint: str,
        *,
        sandbox: str | None = None,
        after: int = 0,
        limit: int = 1000,
        wait_s: float = 0.0,
    ) -> tuple[list[LogLine], int]:
        """Lines after the cursor and the next cursor, oldest first, also of ended sandboxes."""
        ...
