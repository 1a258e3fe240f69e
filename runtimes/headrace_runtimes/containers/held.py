"""One base on this host as containers that wait: brought up to their number, replaced when they end."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable

from headrace_runtimes.containers.maker import LoadFailed, Waiting
from headrace_runtimes.errors import PrepareFailed
from headrace_runtimes.instance.explain import restart_delay
from headrace_runtimes.spec import Base, BaseStatus

LOAD_RETRY_S = 30.0
REFILL_AFTER_S = 0.03

Make = Callable[[Base], Awaitable[Waiting]]


class HeldContainers:
    """Lives from the `hold` that first names its base until the one without it."""

    def __init__(self, base: Base, make: Make, on_change: Callable[[HeldContainers], None]) -> None:
        self.base = base
        self.want = 0
        self.bytes = 0
        self.refill_s: float | None = None
        self.spares: deque[Waiting] = deque()
        self.state = "starting"
        self.detail = ""
        self.refused: dict[str, str] = {}
        self._make = make
        self._on_change = on_change
        self._filling: asyncio.Task[None] | None = None
        self._leaving: set[asyncio.Task[None]] = set()
        self._failures = 0
        self._ended = False

    def status(self) -> BaseStatus:
        """Its public state. It is ready when a spare waits, or when none is asked for."""
        first = self.spares[0] if self.spares else None
        ready = first is not None or (self.want == 0 and self.state != "failed")
        return BaseStatus(
            key=self.base.key,
            state="ready" if ready else ("failed" if self.state == "failed" else "starting"),
            pid=first.frame.container.pid if first else 0,
            spares=len(self.spares),
            bytes=self.bytes,
            refill_s=self.refill_s,
            refused=dict(self.refused),
            loaded=first.loaded if first else False,
            detail=self.detail,
        )

    def take(self) -> Waiting | None:
        """A living spare; another one is made in its place."""
        found: Waiting | None = None
        while self.spares and found is None:
            waiting = self.spares.popleft()
            if waiting.alive:
                found = waiting
            else:
                self._let_go(waiting)
        if found is not None:
            self.refill()
        return found

    def keep(self, spares: int) -> None:
        """Keep so many from now on."""
        self.want = max(0, spares)
        while len(self.spares) > self.want:
            self._let_go(self.spares.pop())
        self.refill(0.0)

    def refill(self, delay_s: float = REFILL_AFTER_S) -> None:
        """Bring the spares up to their number, one after the other."""
        missing = len(self.spares) < self.want and not self._ended
        if missing and (self._filling is None or self._filling.done()):
            self._filling = asyncio.create_task(self._fill(delay_s))

    def lost(self, waiting: Waiting) -> None:
        """A spare ended by itself."""
        if waiting in self.spares:
            self.spares.remove(waiting)
            self._let_go(waiting)
            self._failures += 1
            self._on_change(self)
            self.refill(restart_delay(self._failures))

    async def end(self) -> None:
        """Let all go; returns when nothing of them is left."""
        self._ended = True
        if self._filling is not None and not self._filling.done():
            self._filling.cancel()
            await asyncio.wait([self._filling])
        while self.spares:
            self._let_go(self.spares.pop())
        if self._leaving:
            await asyncio.wait(self._leaving)

    def _let_go(self, waiting: Waiting) -> None:
        """It is nobody's any more, and no sandbox will bury it."""
        waiting.frame.child.kill()
        task = asyncio.create_task(waiting.frame.bury())
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)

    async def _fill(self, delay_s: float) -> None:
        await asyncio.sleep(delay_s)
        while len(self.spares) < self.want and not self._ended:
            began = asyncio.get_running_loop().time()
            try:
                waiting = await self._make(self.base)
            except PrepareFailed as failed:
                self._failures += 1
                self.state, self.detail = "failed", str(failed)
                self._on_change(self)
                retry = LOAD_RETRY_S if isinstance(failed, LoadFailed) else restart_delay(self._failures)
                await asyncio.sleep(retry)
                continue
            if self._ended or len(self.spares) >= self.want:
                self._let_go(waiting)
                continue
            self._failures = 0
            self.state, self.detail, self.refused = "ready", "", waiting.refused
            self.spares.append(waiting)
            self.refill_s = round(asyncio.get_running_loop().time() - began, 3)
            self._watch(waiting)
            self._on_change(self)

    def _watch(self, waiting: Waiting) -> None:
        waiting.frame.child.exited.add_done_callback(lambda _: self.lost(waiting))
