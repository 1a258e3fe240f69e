"""`ContainerRuntime`: the contract of `headrace_runtimes.base`, kept by containers of any `Driver`.

Containers are made in the background, wait with their engine up and their modules imported, are claimed by
writing the assignment to their socket, used once and destroyed. They outlive a host that is killed for as
long as its watchdog needs (`containers.watchdog`), and the next ``open`` on the same directory sweeps.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, ClassVar

from headrace_runtimes.base import Progress, Sandbox
from headrace_runtimes.budget import Budget
from headrace_runtimes.containers.driver import Container, Driver, Keeper
from headrace_runtimes.containers.frame import ContainerFrame
from headrace_runtimes.containers.held import HeldContainers
from headrace_runtimes.containers.maker import Maker, Waiting
from headrace_runtimes.errors import PrepareFailed
from headrace_runtimes.images.definition import Image
from headrace_runtimes.instance.leftovers import RunDir
from headrace_runtimes.instance.logs import LogStore
from headrace_runtimes.instance.policy import Candidate, Held, nearest, over_budget
from headrace_runtimes.instance.roster import Roster
from headrace_runtimes.spec import (
    Assignment,
    Base,
    BaseStatus,
    Capability,
    LogLine,
    Owned,
    RuntimeSettings,
    SandboxSpec,
)

PLAIN = Base(key="plain")
STARTS_AT_ONCE = 2
MEASURE_S = 5.0
QUIET_S = 0.5


class ContainerRuntime:
    """A runtime over one driver. Subclasses give it a name and a driver."""

    name: ClassVar[str]

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._roster = Roster()
        self._held: dict[str, HeldContainers] = {}
        self._order: list[tuple[Base, int]] = []
        self._evicted: dict[str, str] = {}
        self._reported: dict[str, BaseStatus] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._removing: set[asyncio.Task[None]] = set()
        self._closed = True

    def capabilities(self) -> Mapping[Capability, str]:
        """See `base.Runtime.capabilities`."""
        return self._driver.capabilities()

    def checkpoints(self) -> Mapping[str, int]:
        """What became of the driver's checkpoints, by outcome; empty when it makes none."""
        keeper: Keeper | None = getattr(self._driver, "keeper", None)
        return {} if keeper is None else keeper.outcomes()

    async def open(self, settings: RuntimeSettings, on_base: Callable[[BaseStatus], None]) -> None:
        """See `base.Runtime.open`. Raises `PrepareFailed`."""
        self._settings, self._on_base = settings, on_base
        self._budget = settings.budget or Budget(settings.zygote_bytes)
        self._dir = RunDir(settings.run_dir)
        await asyncio.to_thread(self._dir.open)
        # In it are the doors of containers. A restore mounts one as the container's own root, who must get
        # through; nobody else may list them, and who knocks at another's is not let in.
        self._dir.sandboxes.chmod(0o711)
        try:
            await self._driver.open(settings)
            self._logs = settings.logs or LogStore(settings.log_dir, settings.log_bytes)
            self._maker = Maker(
                self._driver, self._dir.sandboxes, self._dir.sockets, self._logs, self._remove
            )
            self._starting = asyncio.Semaphore(STARTS_AT_ONCE)
            self._closed = False
            self._roster.open()
            await self._maker.roots.prepare(Image(), None)
        except BaseException:
            await asyncio.shield(self._driver.close())
            self._dir.remove()
            self._closed = True
            raise
        await self.hold([])
        self._later(self._measure_for_ever(), self._tasks)

    async def close(self) -> None:
        """See `base.Runtime.close`. Does nothing the second time."""
        if self._closed:
            return
        self._closed = True
        for task in self._tasks:
            task.cancel()
        await self._roster.end_claims()
        if self._tasks:
            await asyncio.wait(self._tasks)
        await asyncio.gather(*(held.end() for held in self._held.values()))
        self._held.clear()
        self._budget.leave(self.name)
        await self._roster.stop_all()
        while self._removing:
            await asyncio.wait(self._removing)
        await self._driver.close()
        if self._settings.logs is None:
            self._logs.close()
        await asyncio.to_thread(self._dir.remove)

    async def prepare(self, image: Image, progress: Progress | None = None) -> str:
        """See `base.Runtime.prepare`."""
        self._check_open()
        await self._maker.roots.prepare(image, progress)
        return image.digest

    def has_image(self, digest: str) -> bool:
        """Whether an image is here, and stays for minutes; what nothing uses is let go and prepared anew."""
        return self._maker.roots.get(digest) is not None

    async def create(self, spec: SandboxSpec) -> Sandbox:
        """See `base.Runtime.create`."""
        self._check_open()

        async def boot() -> ContainerFrame:
            return (await self._maker.make(spec.base, "cached", load=not spec.fresh)).frame

        return self._roster.new(spec.id, self._logs, boot)

    async def hold(self, bases: Sequence[tuple[Base, int]]) -> None:
        """See `base.Runtime.hold`."""
        self._check_open()
        named = {base.key: (base, spares) for base, spares in bases}
        order = list(named.values())
        if PLAIN.key not in named:
            order.insert(0, (PLAIN, 1))
        if {base.key for base, _ in order} != {base.key for base, _ in self._order}:
            self._evicted.clear()
        self._order = order
        wanted = {base.key for base, _ in order}
        for key in [key for key in self._held if key not in wanted]:
            self._let_go(key)
        for base, spares in order:
            if base.key in self._evicted:
                continue
            held = self._held.get(base.key)
            if held is None:
                held = self._held[base.key] = HeldContainers(base, self._spare, self._on_change)
            held.keep(spares)
            self._on_change(held)

    async def claim(self, base: Base, assignment: Assignment) -> Sandbox:
        """See `base.Runtime.claim`."""
        self._check_open()
        return await self._roster.claim(assignment, lambda: self._claim(base, assignment))

    def sandboxes(self) -> list[Sandbox]:
        """See `base.Runtime.sandboxes`."""
        return self._roster.instances()

    def bases(self) -> list[BaseStatus]:
        """See `base.Runtime.bases`."""
        gone = [BaseStatus(key=k, state="failed", detail=why) for k, why in self._evicted.items()]
        return [held.status() for held in self._held.values()] + gone

    async def list_owned(self) -> list[Owned]:
        """See `base.Runtime.list_owned`."""
        return [*await asyncio.to_thread(self._dir.owned), *await self._driver.list_owned()]

    async def logs(
        self,
        endpoint: str,
        *,
        sandbox: str | None = None,
        after: int = 0,
        limit: int = 1000,
        wait_s: float = 0.0,
    ) -> tuple[list[LogLine], int]:
        """See `base.Runtime.logs`."""
        return await self._logs.read(endpoint, sandbox, after, limit, wait_s)

    async def _claim(self, base: Base, assignment: Assignment) -> Sandbox:
        claimed_at = time.monotonic()
        waiting: Waiting | None = None
        if not assignment.fresh:
            if not self._waits(base):
                # Sooner there than another spare, which would have to load.
                waiting = await self._maker.restored(base, "cached")
            waiting = waiting or self._take(base)
        if waiting is None:
            waiting = await self._maker.make(base, "cached", load=not assignment.fresh)
        return await self._roster.assign(assignment, waiting.frame, self._logs, claimed_at)

    def _waits(self, base: Base) -> bool:
        """Whether a spare of this very base does."""
        held = self._held.get(base.key)
        return held is not None and bool(held.spares)

    def _take(self, base: Base) -> Waiting | None:
        """The best spare for it; it has the same image and network."""
        ready = [
            Candidate(
                held.base.key, held.base.image, frozenset((*held.base.preload, *held.base.imports)),
                held.base.loaded is not None, len(held.spares),
            )
            for held in self._held.values()
            if held.spares and held.base.network == base.network
        ]  # fmt: skip
        while ready:
            key = nearest(base, ready)
            if key is None:
                return None
            waiting = self._held[key].take()
            if waiting is not None:
                waiting.frame.tier = "warm"
                self._on_change(self._held[key])
                return waiting
            ready = [candidate for candidate in ready if candidate.key != key]
        return None

    async def _spare(self, base: Base) -> Waiting:
        """Ahead of a claim, two at once at most, and not while an instance starts."""
        async with self._starting:
            await self._roster.quiet(QUIET_S)
            return await self._maker.make(base, "warm")

    async def _remove(self, container: Container) -> None:
        task = asyncio.create_task(container.remove())
        self._removing.add(task)
        task.add_done_callback(self._removing.discard)
        await asyncio.shield(task)

    def _let_go(self, key: str) -> None:
        self._reported.pop(key, None)
        self._later(self._held.pop(key).end(), self._removing)

    def _on_change(self, held: HeldContainers) -> None:
        status = held.status()
        if self._held.get(held.base.key) is held and self._reported.get(status.key) != status:
            self._reported[status.key] = status
            self._on_base(status)

    async def _measure_for_ever(self) -> None:
        while True:
            await asyncio.sleep(MEASURE_S)
            self._maker.roots.let_go({base.image for base, _ in self._order})
            for held in list(self._held.values()):
                used = await asyncio.gather(*(w.frame.use() for w in list(held.spares)))
                held.bytes = sum(stats.rss for stats in used if stats is not None)
            order = [self._held[base.key] for base, _ in self._order if base.key in self._held]
            facts = [Held(h.base.key, h.bytes, 0, keep=h.base.key == PLAIN.key) for h in order]
            room = self._budget.room(self.name, sum(held.bytes for held in facts))
            for key in over_budget(facts, room):
                self._evicted[key] = "not kept: warm containers use too much; raise zygote_memory_share."
                self._let_go(key)
                self._on_base(BaseStatus(key=key, state="failed", detail=self._evicted[key]))

    def _later(self, work: Coroutine[Any, Any, None], tasks: set[asyncio.Task[Any]]) -> None:
        task = asyncio.create_task(work)
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    def _check_open(self) -> None:
        if self._closed:
            raise PrepareFailed("The runtime is not open.")
