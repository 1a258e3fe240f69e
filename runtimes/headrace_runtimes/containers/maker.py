"""Makes one waiting container: created, its engine up, modules preloaded, perhaps the endpoint loaded."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import secrets
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from headrace_runtimes.containers.door import NAME, Door, NobodyKnocked
from headrace_runtimes.containers.driver import (
    CODE,
    DOOR_DIR,
    ENGINE,
    Container,
    ContainerSpec,
    Create,
    Driver,
    Keeper,
    NotKept,
    Root,
)
from headrace_runtimes.containers.ending import ENDED_EARLY
from headrace_runtimes.containers.frame import ContainerChild, ContainerFrame
from headrace_runtimes.containers.roots import Roots
from headrace_runtimes.errors import PrepareFailed, SandboxGone
from headrace_runtimes.instance.channel import ChannelError
from headrace_runtimes.instance.logs import LogStore, Stream
from headrace_runtimes.spec import Base, Tier

UP_TIMEOUT_S = 60.0
PRELOAD_TIMEOUT_S = 600.0
LOAD_SLACK_S = 30.0
PARK_TIMEOUT_S = 5.0
HEALTH_TIMEOUT_S = 60.0
log = logging.getLogger("headrace.runtimes")


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
    load_s: float = 0.0

    @property
    def alive(self) -> bool:
        """Whether it can be claimed."""
        return self.frame.child.alive


Ready = Callable[[Waiting], Awaitable[Waiting]]
"""Brings a container whose engine is up to where it waits."""


@dataclass(frozen=True)
class Order:
    """What is made."""

    base: Base
    root: Root
    tier: Tier


class Maker:
    """Makes them for one runtime. ``doors`` and ``sockets`` are its directories."""

    def __init__(self, driver: Driver, doors: Path, sockets: Path, logs: LogStore, forget: Forget) -> None:
        self._driver, self._doors, self._sockets, self._logs = driver, doors, sockets, logs
        self._forget = forget
        self._numbers = itertools.count(1)
        self._tag = secrets.token_hex(4)
        self.roots = Roots(driver)

    async def make(self, base: Base, tier: Tier, *, load: bool = True) -> Waiting:
        """A new one. Raises `PrepareFailed` and its kin; nothing is left then."""
        root = self.roots.get(base.image)
        if root is None:
            raise PrepareFailed(f"The image {base.image[:12] or '(plain)'} is not here: prepare it first.")
        keeper = self._keeper if load and base.loaded is not None else None
        if keeper is not None and (restored := await self.restored(base, tier)) is not None:
            return restored
        order = Order(base, root, tier)
        with self._door() as door:
            ready = partial(self._ready, keeper if tier == "warm" else None, order, door, load)
            try:
                return await self._up(door, order, self._driver.create, ready)
            except NotKept as failed:
                # It has ended for nothing: another one is made, and nobody tries again for a while.
                log.warning("No checkpoint of %s is kept: %s", _name(base), failed)
        with self._door() as door:
            ready = partial(self._ready, None, order, door, load)
            return await self._up(door, order, self._driver.create, ready)

    async def restored(self, base: Base, tier: Tier) -> Waiting | None:
        """One that has loaded, from a checkpoint, if the driver has one of this base. It is no load."""
        root, keeper = self.roots.get(base.image), self._keeper
        if keeper is None or root is None or base.loaded is None:
            return None
        return await keeper.restored(base, root, partial(self._again, Order(base, root, tier)))

    @property
    def _keeper(self) -> Keeper | None:
        found: Keeper | None = getattr(self._driver, "keeper", None)
        return found

    @contextlib.contextmanager
    def _door(self) -> Iterator[Door]:
        # Not in a thread: who is cancelled there would leave an open door behind.
        door = Door(self._doors / f"{self._tag}-{next(self._numbers)}")
        try:
            yield door
        finally:
            # Nor here: who is cancelled meanwhile would lose a container that is ready.
            door.close()

    async def _up(self, door: Door, order: Order, create: Create, ready: Ready) -> Waiting:
        base, root = order.base, order.root
        name = door.directory.name
        child = ContainerChild(name)
        frame: ContainerFrame | None = None
        try:
            container = await create(
                ContainerSpec(
                    id=name, root=root, door_dir=door.directory, network=base.network, env=root.env,
                    argv=(root.python, "-B", f"{ENGINE}/container.py", f"{DOOR_DIR}/{NAME}"),
                )
            )  # fmt: skip
            frame = ContainerFrame(child, container, order.tier, self._sockets, self._forget)
            self.roots.used_by(frame, base.image)
            await _knock(door, child, container)
            child.handed_over()
            return await ready(Waiting(frame, base))
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

    async def _ready(
        self, keeper: Keeper | None, order: Order, door: Door, load: bool, made: Waiting
    ) -> Waiting:
        """All that is done before it waits. Raises `NotKept` when it has ended on the way to a checkpoint."""
        await self._prepare(made, load=load)
        if keeper is not None and made.loaded and await keeper.wants(made.base, order.root, made.load_s):
            return await self._kept(keeper, order, door, made)
        await made.frame.child.ask({"op": "wait"}, UP_TIMEOUT_S)
        return made

    async def _again(self, order: Order, create: Create) -> Waiting:
        """One that is restored: it has loaded, and waits when it is well."""

        async def ready(made: Waiting) -> Waiting:
            child = made.frame.child
            answer = await child.ask({"op": "health"}, HEALTH_TIMEOUT_S)
            if not answer.get("ok"):
                raise PrepareFailed(f"It is not well: {answer.get('detail', '')}.")
            loaded = order.base.loaded
            made.loaded, made.frame.code = True, loaded.code_dir if loaded else None
            await child.ask({"op": "wait"}, UP_TIMEOUT_S)
            return made

        with self._door() as door:
            return await self._up(door, order, create, ready)

    async def _kept(self, keeper: Keeper, order: Order, door: Door, made: Waiting) -> Waiting:
        """What is restored from its checkpoint; itself when none can be taken.

        Raises `NotKept` when it has ended.
        """
        base, frame, up = order.base, made.frame, list[Waiting]()

        async def again(create: Create) -> Waiting:
            up.append(await self._again(order, create))
            return up[0]

        async def park() -> None:
            door.shut()
            await frame.child.park(PARK_TIMEOUT_S)

        try:
            try:
                restored = await keeper.keep(base, order.root, frame.container, park, again)
            except NotKept as failed:
                if failed.ended:
                    raise
                log.warning("No checkpoint of %s is kept: %s", _name(base), failed)
                return await self._unpark(door, made)
            await asyncio.shield(frame.bury())
        except BaseException:
            for waiting in up:
                waiting.frame.child.kill()
                await asyncio.shield(waiting.frame.bury())
            raise
        frame.child.died(None, None, "kept on disk")
        return restored

    async def _unpark(self, door: Door, made: Waiting) -> Waiting:
        """It runs on where it was."""
        old, container = made.frame, made.frame.container
        old.child.died(None, None, "parked")
        child = ContainerChild(container.id)
        try:
            door.open()
            await _knock(door, child, container)
            child.handed_over()
            await child.ask({"op": "wait"}, UP_TIMEOUT_S)
        except BaseException:
            child.died(None, None, "never came back")
            raise
        made.frame = ContainerFrame(child, container, old.tier, self._sockets, self._forget)
        made.frame.code = old.code
        self.roots.used_by(made.frame, made.base.image)
        return made

    async def _prepare(self, made: Waiting, *, load: bool) -> None:
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
            made.load_s = float(answer.get("seconds") or 0.0)
            made.frame.code = loaded.code_dir


def _name(base: Base) -> str:
    return base.loaded.endpoint if base.loaded else base.key


async def _knock(door: Door, child: ContainerChild, container: Container) -> None:
    """Let the engine in. Raises `PrepareFailed`, at once when its process has ended before it knocked."""
    try:
        child.entered(container)
        await door.hand_over(container.pid, child.descriptors(), UP_TIMEOUT_S, child.exited)
    except (NobodyKnocked, ProcessLookupError, BrokenPipeError, ConnectionResetError) as failed:
        if not isinstance(failed, NobodyKnocked) or failed.ended:
            # Before we looked, before its knock, or between that and our answer.
            raise PrepareFailed(f"The engine {ENDED_EARLY} ({await container.end_in_words()}).") from failed
        said = await container.said()
        raise PrepareFailed(f"The engine {failed.what}. It said {said or 'nothing'}.") from failed
