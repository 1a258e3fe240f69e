"""What a container engine must be able to do. Everything above it is the same for all of them.

A container is made from a prepared root, with our engine as its first process, which knocks at a door (see
`containers.door`) and is served from there like a forked child of the process runtime.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Protocol, TypeVar

from headrace_runtimes.base import Progress
from headrace_runtimes.errors import PrepareFailed
from headrace_runtimes.images.definition import Image
from headrace_runtimes.spec import Assignment, Base, Capability, Network, Owned, Ran, RuntimeSettings, Stats

T = TypeVar("T")

ENGINE = "/headrace/engine"
"""Where the engine's directory is in a container, read-only."""
DOOR_DIR = "/headrace/door"
"""Where the directory with the door is, read-only."""
CODE = "/headrace/code"
"""Where the bundle appears at the assignment, read-only."""
HOME = "/headrace/home"
"""The sandbox's own directory: writable, its working directory, with ``home`` and ``tmp``."""
SECRETS = "/run/secrets"
"""A file system in memory."""


@dataclass(frozen=True)
class Root:
    """A prepared image: what `Driver.create` starts from."""

    digest: str
    """Of the definition; empty for the runtime's own environment."""
    python: str
    """Path of the interpreter inside."""
    env: Mapping[str, str] = field(default_factory=dict)
    reference: str = ""
    """The driver's own name of it: a directory, an image id."""
    binds: tuple[tuple[Path, str], ...] = ()
    """Directories of the host that are part of it, read-only."""


@dataclass(frozen=True)
class ContainerSpec:
    """One container. ``id`` is unique on the machine."""

    id: str
    root: Root
    door_dir: Path
    argv: tuple[str, ...]
    network: Network
    env: Mapping[str, str] = field(default_factory=dict)
    code: Path | None = None
    """The bundle that it has at `CODE` from the beginning: one that is restored has loaded it."""


class Container(Protocol):
    """One container of a driver."""

    id: str
    pid: int
    """Its first process as the host sees it."""

    async def mount(self, source: Path, target: str) -> None:
        """Show a directory of the host in it, read-only. Raises `PrepareFailed`."""
        ...

    async def furnish(self, assignment: Assignment) -> Mapping[str, str]:
        """Limits, devices and network rules. Raises `PrepareFailed`.

        Variables that count more than the assignment's: how its accelerators are numbered inside.
        """
        ...

    def signal(self, number: int) -> None:
        """Signal its first process; SIGKILL ends all of them."""
        ...

    def killed_for_memory(self) -> bool:
        """Whether the kernel has killed in it for its memory limit."""
        ...

    def alone(self) -> bool:
        """Whether nobody but its first process is in it any more; False when that cannot be told."""
        ...

    async def end_in_words(self) -> str:
        """How its first process has ended, as far as anybody knows, and what it said last: for one that died
        before anybody listened to it."""
        ...

    async def said(self) -> str:
        """What its first process has printed before anybody listened, the last lines in one; or nothing."""
        ...

    async def use(self) -> Stats | None:
        """What all of its processes use together; None when it is gone."""
        ...

    async def pause(self) -> None:
        """Freeze. Raises `NotSupported`, `OSError`."""
        ...

    async def resume(self) -> None:
        """Thaw. Raises `NotSupported`, `OSError`."""
        ...

    async def exec(self, argv: Sequence[str], env: Mapping[str, str], timeout_s: float) -> Ran:
        """Run a command in it. Raises `NotSupported`, ``TimeoutError``."""
        ...

    async def remove(self) -> None:
        """Kill what is left and leave nothing: mounts, cgroups, interfaces, directories."""
        ...


class Driver(Protocol):
    """Makes containers with one engine."""

    name: ClassVar[str]

    def capabilities(self) -> Mapping[Capability, str]:
        """See `base.Runtime.capabilities`."""
        ...

    async def open(self, settings: RuntimeSettings) -> None:
        """Sweep what a predecessor left and get ready. Raises `PrepareFailed`."""
        ...

    async def close(self) -> None:
        """All containers have been removed: leave nothing else."""
        ...

    async def prepare(self, image: Image, progress: Progress | None) -> Root:
        """Have the image as a root here. Raises `PrepareFailed` and its kin."""
        ...

    def release(self, root: Root) -> None:
        """Nothing uses it: from now on it may be collected, until it is prepared again."""
        ...

    async def create(self, spec: ContainerSpec) -> Container:
        """Make it and start its first process. Raises `PrepareFailed`; nothing is left then."""
        ...

    async def list_owned(self) -> list[Owned]:
        """See `base.Runtime.list_owned`."""
        ...


Create = Callable[[ContainerSpec], Awaitable[Container]]
"""As `Driver.create`."""


Park = Callable[[], Awaitable[None]]
"""Lets the engine go of its host. Raises `PrepareFailed`."""


class Keeper(Protocol):
    """What a driver may have as ``keeper``: it keeps loaded containers on disk (decision 12).

    ``up`` makes a waiting container with the given `Create` and asks for its health; it raises when anything
    of that fails, and nothing is left then.
    """

    async def restored(self, base: Base, root: Root, up: Callable[[Create], Awaitable[T]]) -> T | None:
        """What ``up`` made of the one that is kept for this base; None: there is none, or it was no good."""
        ...

    async def wants(self, base: Base, root: Root, load_s: float) -> bool:
        """Whether one is to be kept for this base, whose ``load`` took so long."""
        ...

    async def keep(
        self, base: Base, root: Root, container: Container, park: Park, up: Callable[[Create], Awaitable[T]]
    ) -> T:
        """Keep a container, which parks and ends, and give what ``up`` made of it.

        Raises `NotKept`.
        """
        ...

    def outcomes(self) -> Mapping[str, int]:
        """How many came to which end since the driver was opened."""
        ...


class NotKept(PrepareFailed):
    """No checkpoint came of it. ``ended``: nor is the container there any more."""

    def __init__(self, message: str, *, ended: bool) -> None:
        super().__init__(message)
        self.ended = ended
