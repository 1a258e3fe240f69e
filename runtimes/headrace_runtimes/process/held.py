"""One base on this host: its zygote, started again when it ends, and its spare children."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Protocol

from headrace_runtimes.errors import PrepareFailed
from headrace_runtimes.instance.child import Child
from headrace_runtimes.instance.explain import restart_delay
from headrace_runtimes.instance.policy import Candidate
from headrace_runtimes.process.zygote import LoadFailed, LoadRefused, Zygote, ZygoteFailed
from headrace_runtimes.spec import Base, BaseStatus

STABLE_S = 60.0
"""A zygote that lived that long starts afresh without delay when it ends."""
LOAD_RETRY_S = 30.0
REFILL_AFTER_S = 0.03
REFILL_RETRY_S = 1.0


class Maker(Protocol):
    """What a held base needs from the runtime."""

    async def zygote(self, base: Base, *, loaded: bool) -> Zygote:
        """A started zygote, without any module imported yet."""
        ...

    async def child(self, zygote: Zygote) -> Child:
        """A fork that waits for its assignment."""
        ...

    async def spare(self, zygote: Zygote) -> Child:
        """The same, ahead of a claim."""
        ...

    async def quiet(self) -> None:
        """Returns when no instance is starting, or after a short while."""
        ...


class HeldBase:
    """Lives from the `hold` that first names it until the last one without it, or its last instance."""

    def __init__(
        self,
        base: Base,
        maker: Maker,
        starting: asyncio.Semaphore,
        on_change: Callable[[HeldBase], None],
    ) -> None:
        self.base = base
        self.want = 0
        self.wanted = True
        self.bytes = 0
        self.refill_s: float | None = None
        self.zygote: Zygote | None = None
        self.loaded = False
        self.state: str = "starting"
        self.detail = ""
        self.refused: dict[str, str] = {}
        self.modules: frozenset[str] = frozenset()
        self.spares: deque[Child] = deque()
        self._maker = maker
        self._starting = starting
        self._on_change = on_change
        self._refill: asyncio.Task[None] | None = None
        self._task = asyncio.create_task(self._live(), name=f"base {base.key[:12]}")

    @property
    def ready(self) -> bool:
        """Whether a claim can be served from it now."""
        return self.state == "ready" and self.zygote is not None and self.zygote.ready

    @property
    def living(self) -> int:
        """Instances (assigned children) that would die with the zygote."""
        return len(self.zygote.children) - len(self.spares) if self.zygote else 0

    def candidate(self) -> Candidate:
        """Its side of `policy.nearest`."""
        return Candidate(self.base.key, self.base.image, self.modules, self.loaded, len(self.spares))

    def status(self) -> BaseStatus:
        """Its public state."""
        return BaseStatus(
            key=self.base.key,
            state="ready" if self.ready else ("failed" if self.state == "failed" else "starting"),
            pid=self.zygote.pid if self.zygote else 0,
            spares=len(self.spares),
            bytes=self.bytes,
            refill_s=self.refill_s,
            refused=dict(self.refused),
            loaded=self.loaded,
            detail=self.detail,
        )

    def take(self) -> Child | None:
        """A living spare."""
        while self.spares:
            child = self.spares.popleft()
            if child.alive:
                return child
        return None

    def keep(self, spares: int) -> None:
        """Keep so many spares from now on."""
        self.want = max(0, spares)
        while len(self.spares) > self.want:
            self.spares.pop().kill()
        self.refill(0.0)

    def refill(self, delay_s: float = REFILL_AFTER_S) -> None:
        """Bring the spares up to their number, soon and one after the other."""
        if self.ready and len(self.spares) < self.want and (self._refill is None or self._refill.done()):
            self._refill = asyncio.create_task(self._fill(delay_s))

    def lost(self, child: Child) -> None:
        """A child ended; if it was a spare there is one less."""
        if child in self.spares:
            self.spares.remove(child)
            self._on_change(self)
            self.refill(REFILL_RETRY_S)

    async def end(self) -> None:
        """End the zygote and all its children."""
        self.wanted = False
        tasks = [
            t for t in (self._task, self._refill) if t and not t.done() and t is not asyncio.current_task()
        ]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        zygote, self.zygote = self.zygote, None
        self.spares.clear()
        if zygote:
            await zygote.end()

    async def _live(self) -> None:
        loop = asyncio.get_running_loop()
        failures = 0
        load = self.base.loaded is not None
        while self.wanted:
            try:
                async with self._starting:
                    await self._start(load)
            except LoadRefused as refused:
                load, self.detail = False, f"load ran, but cannot be forked: {refused}"
                continue
            except LoadFailed as failed:
                self._failed(str(failed))
                await asyncio.sleep(LOAD_RETRY_S * 2 ** min(failures, 4))
                failures += 1
                continue
            except PrepareFailed as failed:
                failures += 1
                self._failed(str(failed))
                await asyncio.sleep(restart_delay(failures))
                continue
            assert self.zygote is not None
            since = loop.time()
            self.state = "ready"
            self._on_change(self)
            self.refill(0.0)
            why = await asyncio.shield(self.zygote.ended)
            failures = 1 if loop.time() - since > STABLE_S else failures + 1
            self.zygote = None
            self.spares.clear()
            self._failed(why)
            await asyncio.sleep(restart_delay(failures))

    async def _start(self, load: bool) -> None:
        if self.state != "failed":
            self.state = "starting"
        zygote = await self._maker.zygote(self.base, loaded=load)
        try:
            refused = await zygote.preload(self.base.preload, self.base.imports)
            if load and self.base.loaded:
                await zygote.load(self.base.loaded)
                self.detail = ""
        except BaseException:
            await zygote.end()
            raise
        self.modules = frozenset((*self.base.preload, *self.base.imports)) - refused.keys()
        self.refused, self.loaded, self.zygote = refused, load, zygote
        if not load and self.base.loaded is None:
            self.detail = zygote.shield

    async def _fill(self, delay_s: float) -> None:
        await asyncio.sleep(delay_s)
        changed = False
        while self.ready and self.zygote and len(self.spares) < self.want:
            await self._maker.quiet()
            zygote = self.zygote
            if zygote is None:
                break
            began = asyncio.get_running_loop().time()
            try:
                child = await self._maker.spare(zygote)
            except (ZygoteFailed, PrepareFailed):
                await asyncio.sleep(REFILL_RETRY_S)
                continue
            if zygote is not self.zygote or len(self.spares) >= self.want or not self.wanted:
                child.kill()
            elif child.alive:
                self.spares.append(child)
                self.refill_s = round(asyncio.get_running_loop().time() - began, 3)
                changed = True
        if changed:
            self._on_change(self)

    def _failed(self, why: str) -> None:
        self.state, self.detail, self.loaded, self.bytes = "failed", why, False, 0
        self._on_change(self)
