"""The runtime contract: what makes, assigns and ends sandboxes on one host.

``docs/reference/runtimes.md`` is its page, `headrace_runtimes.conformance` its suite.

A runtime lives in one event loop, on one host. It owns its processes: when the process that opened
it dies, by any signal, all its sandboxes die too, and the next ``open`` on the same directory
sweeps what was left (processes, sockets, directories, mounts, cgroups).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar, Protocol, runtime_checkable

from headrace_runtimes.images.definition import Image
from headrace_runtimes.spec import (
    Assignment,
    Base,
    BaseStatus,
    Capability,
    Exit,
    LogLine,
    Owned,
    Ran,
    RuntimeSettings,
    SandboxSpec,
    SandboxState,
    Stats,
    Tier,
    Timings,
)

Progress = Callable[[str, int, int], None]
"""(what, bytes done, bytes of all or 0): told while an image is pulled or built."""


class Sandbox(Protocol):
    """One place to run code: made, started, assigned once, then an instance that answers HTTP at ``address``.

    Its states and moves are `spec.SANDBOX_MOVES`. What fails in it ends it; ``exited`` says how.
    """

    id: str
    """The spec's; from the assignment on, the instance's."""
    state: SandboxState
    endpoint: str
    version: int
    pid: int
    """Its first process as the host sees it; 0 before ``start``."""
    address: str
    tier: Tier
    timings: Timings
    exited: asyncio.Future[Exit]
    """Done when the sandbox has ended, never with an exception."""

    async def start(self) -> None:
        """created -> waiting: boot the engine and preload. Raises `PrepareFailed`; it has ended then."""
        ...

    async def assign(self, assignment: Assignment) -> None:
        """waiting -> ready: code, environment, secrets, limits; load, health check, listening.

        Raises `AssignFailed` (with the traceback when the user's code is at fault); it has ended then.
        """
        ...

    async def exec(
        self, argv: Sequence[str], *, env: Mapping[str, str] | None = None, timeout_s: float = 60.0
    ) -> Ran:
        """Run a command beside the instance, as its user, in its directory; it is killed after ``timeout_s``.

        Raises `NotSupported`, `WrongState` (not started, or paused), `SandboxGone`, ``TimeoutError``.
        """
        ...

    async def stats(self) -> Stats:
        """Use of resources now. Raises `SandboxGone`, `WrongState` when it has not been started."""
        ...

    async def health(self) -> tuple[bool, str]:
        """The engine's check and the user's ``health``: well or not, and why. Raises `SandboxGone`."""
        ...

    async def pause(self) -> None:
        """ready -> paused: it keeps its memory and uses no CPU. Raises `NotSupported`, `WrongState`."""
        ...

    async def resume(self) -> None:
        """paused -> ready. Raises `NotSupported`, `WrongState`."""
        ...

    async def stop(self, grace_s: float) -> Exit:
        """Finish what runs for at most ``grace_s`` seconds, run ``unload``, end; kill after that."""
        ...


@runtime_checkable
class Runtime(Protocol):
    """Makes sandboxes. The module says who dies with whom."""

    name: ClassVar[str]

    def capabilities(self) -> Mapping[Capability, str]:
        """All of `spec.CAPABILITIES`: empty when it can do it here, else one line of why not.

        After ``open`` it speaks of this machine, before of what is installed.
        """
        ...

    async def open(self, settings: RuntimeSettings, on_base: Callable[[BaseStatus], None]) -> None:
        """Sweep the predecessor's leftovers and get ready; ``on_base`` hears of every base's change."""
        ...

    async def close(self) -> None:
        """End all sandboxes and bases; leave nothing behind."""
        ...

    async def prepare(self, image: Image, progress: Progress | None = None) -> str:
        """Have the image here, built or pulled; returns its digest, which `Base.image` names from now on.

        Doing it again is quick. Raises `PrepareFailed`, `ImageFailed`, `RegistryFailed`, `NotSupported`.
        """
        ...

    async def create(self, spec: SandboxSpec) -> Sandbox:
        """A sandbox in state ``created``, of a prepared image. Raises `PrepareFailed`."""
        ...

    async def hold(self, bases: Sequence[tuple[Base, int]]) -> None:
        """Keep these bases ready with so many spare sandboxes each, most wanted first; let others go.

        Returns at once; work goes on in the background and is reported to ``on_base``. Beside these a spare
        of ``Base(key="plain")`` is kept, unless that one is named with another number. A base with
        living sandboxes is never evicted; beyond the byte budget the last of the list are not kept.
        """
        ...

    async def claim(self, base: Base, assignment: Assignment) -> Sandbox:
        """A sandbox of ``base`` (a spare, a fork, or a new one), assigned: an instance.

        Returns when it is ready. Raises `AssignFailed` (with the traceback when the user's code is at
        fault) or `PrepareFailed`. A base that is not held is not waited for: the nearest one that is
        ready is used.
        """
        ...

    def sandboxes(self) -> list[Sandbox]:
        """All living instances."""
        ...

    def bases(self) -> list[BaseStatus]:
        """All bases."""
        ...

    async def list_owned(self) -> list[Owned]:
        """All that exists on this machine because of this runtime's directory, also a predecessor's."""
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
        """Lines after the cursor and the next cursor, oldest first, also of ended sandboxes.

        ``sandbox``: an id or how it begins, as people read it.
        """
        ...
