"""Makes one waiting container: created, its engine up, modules preloaded, perhaps the endpoint loaded."""

from __future__ import annotations

import asyncio
import itertools
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

from headrace_runtimes.containers.door import NAME, Door, NobodyKnocked
from headrace_runtimes.containers.driver import CODE, DOOR_DIR, ENGINE, Container, ContainerSpec, Driver, Root
from headrace_runtimes.containers.frame import ContainerChild, ContainerFrame
from headrace_runtimes.errors import PrepareFailed, SandboxGone
from headrace_runtimes.instance.channel import ChannelError
from headrace_runtimes.instance.logs import LogStore, Stream
from headrace_runtimes.spec import Base, Tier

UP_TIMEOUT_S = 60.0
PRELOAD_TIMEOUT_S = 600.0
LOAD_SLACK_S = 30.0


Forget = Callable[[Container], Awaitable[None]]
"""Removes a container that has ended."""


class LoadFailed(PrepareFailed):
    """The user's ``load`` (or import) raised in the waiting container."""


@dataclass(eq=False)
class Waiting:
    """A container that waits for its assignment."""

    frame: ContainerFrame
    base: Base
    refused: dict[str, str] = field(default_factory=dict)
    loaded: bool = False

    @property
    def alive(self) -> bool:
        """Whether it can be claimed."""
        return self.frame.child.alive


class Maker:
    """Makes them for one runtime. ``doors`` and ``sockets`` are its directories."""

    def __init__(self, driver: Driver, doors: Path, sockets: Path, logs: LogStore, forget: Forget) -> None:
        self._driver, self._doors, self._sockets, self._logs = driver, doors, sockets, logs
        self._forget = forget
        self._numbers = itertools.count(1)
        self._tag = secrets.token_hex(4)
        self.roots: dict[str, Root] = {}
        """Prepared images by digest."""

    async def make(self, base: Base, tier: Tier, *, load: bool = True) -> Waiting:
        """A new one. Raises `PrepareFailed` and its kin; nothing is left then."""
        root = self.roots.get(base.image)
        if root is None:
            raise PrepareFailed(f"The image {base.image[:12] or '(plain)'} is not here: prepare it first.")
        name = f"{self._tag}-{next(self._numbers)}"
        # Not in a thread: who is cancelled there would leave an open door behind.
        door = Door(self._doors / name)
        child = ContainerChild(name)
        frame: ContainerFrame | None = None
        try:
            container = await self._driver.create(
                ContainerSpec(
                    id=name, root=root, door_dir=door.directory, network=base.network, env=root.env,
                    argv=(root.python, "-B", f"{ENGINE}/container.py", f"{DOOR_DIR}/{NAME}"),
                )
            )  # fmt: skip
            frame = ContainerFrame(child, container, tier, self._sockets, self._forget)
            child.entered(container)
            await _knock(door, child, container)
            child.handed_over()
            return await self._prepare(Waiting(frame, base), load=load)
        except BaseException as error:
            child.kill()
            if frame is not None:
                await asyncio.shield(frame.bury())
            child.died(None, None, "never came up")
            if isinstance(error, ChannelError | SandboxGone | OSError):
                raise PrepareFailed(f"The container {name} did not come up: {error}.") from error
            raise
        finally:
            child.handed_over()
            # Nor here: who is cancelled meanwhile would lose a container that is ready.
            door.close()

    async def _prepare(self, made: Waiting, *, load: bool) -> Waiting:
        child, base = made.frame.child, made.base
        await child.ask({"op": "init"}, UP_TIMEOUT_S)
        if base.preload or base.imports:
            asked = {"op": "preload", "modules": list(base.preload), "imports": list(base.imports)}
            answer = await child.ask(asked, PRELOAD_TIMEOUT_S)
            refused = answer.get("refused")
            made.refused = {k: str(v) for k, v in refused.items()} if isinstance(refused, dict) else {}
        loaded = base.loaded if load else None
        if loaded is not None:
            await made.frame.container.mount(loaded.code_dir, CODE)
            answer = await child.ask(
                {
                    "op": "load", "endpoint": loaded.endpoint, "version": loaded.version, "code": CODE,
                    "entry": loaded.entry, "handler": loaded.handler, "env": dict(loaded.env),
                    "timeout": loaded.load_timeout_s,
                },
                loaded.load_timeout_s + LOAD_SLACK_S,
            )  # fmt: skip
            if answer.get("ev") != "loaded":
                if answer.get("traceback"):
                    lines = str(answer["traceback"]).splitlines()
                    stream: Stream = "stderr"
                    self._logs.write(loaded.endpoint, child.id, stream, lines)
                raise LoadFailed(str(answer.get("message", "load failed")))
            made.loaded = True
            made.frame.code = loaded.code_dir
        await child.ask({"op": "wait"}, UP_TIMEOUT_S)
        return made


async def _knock(door: Door, child: ContainerChild, container: Container) -> None:
    """Let the engine in. Raises `PrepareFailed`, at once when its process has ended before it knocked."""
    try:
        await door.hand_over(container.pid, child.descriptors(), UP_TIMEOUT_S, child.exited)
    except NobodyKnocked as failed:
        if failed.ended:
            raise PrepareFailed(f"The engine {failed.what} ({await container.end_in_words()}).") from failed
        said = await container.said()
        raise PrepareFailed(f"The engine {failed.what}. It said {said or 'nothing'}.") from failed
