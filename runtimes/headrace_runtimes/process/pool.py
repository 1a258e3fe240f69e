"""Holds the bases that are wanted, within a byte budget, and serves claims from the best that is ready."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

from headrace_runtimes.budget import Budget
from headrace_runtimes.errors import PrepareFailed
from headrace_runtimes.instance import procs
from headrace_runtimes.instance.child import Child
from headrace_runtimes.instance.explain import size
from headrace_runtimes.instance.policy import Held, nearest, over_budget
from headrace_runtimes.process.held import HeldBase, Maker
from headrace_runtimes.process.zygote import Zygote, ZygoteFailed
from headrace_runtimes.spec import Base, BaseStatus, Tier

PLAIN = Base(key="plain")
STARTS_AT_ONCE = 2
FIRST_READY_S = 30.0
MEASURE_S = 5.0
CLAIM_ATTEMPTS = 3
QUIET_S = 0.5
CLAIM_POLL_S = 0.25


@dataclass(frozen=True)
class Claimed:
    """A child for one instance. ``held`` is None when it has a zygote of its own."""

    child: Child
    tier: Tier
    zygote: Zygote
    held: HeldBase | None


class Pool:
    """The zygotes of one runtime. Open from `open` to `close`."""

    def __init__(self, budget: Budget, maker: Maker, on_base: Callable[[BaseStatus], None]) -> None:
        self._budget = budget
        self._maker = maker
        self._on_base = on_base
        self._held: dict[str, HeldBase] = {}
        self._leaving: set[HeldBase] = set()
        self._evicted: dict[str, str] = {}
        self._order: list[tuple[Base, int]] = []
        self._reported: dict[str, BaseStatus] = {}
        self._starting = asyncio.Semaphore(STARTS_AT_ONCE)
        self._changed = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._ending: set[asyncio.Task[None]] = set()
        self._closed = False

    def open(self) -> None:
        """Start the plain zygote, the fallback of all others."""
        self.hold([])
        _run(self._measure_for_ever(), self._tasks)

    def hold(self, bases: Sequence[tuple[Base, int]]) -> None:
        """Hold exactly these (and the plain one); what is not named any more goes."""
        named = {base.key: (base, spares) for base, spares in bases}
        order = list(named.values())
        if PLAIN.key not in named:
            # First in the order of starts, with one spare: nothing else serves every claim.
            order.insert(0, (PLAIN, 1))
        if {base.key for base, _ in order} != {base.key for base, _ in self._order}:
            self._evicted.clear()  # others may have gone: what did not fit gets another chance
        self._order = order
        for key in [k for k in self._held if k != PLAIN.key and k not in named]:
            self._let_go(key)
        for base, spares in order:
            self._keep(base, spares)

    def bases(self) -> list[BaseStatus]:
        """All bases, those that were let go for memory too."""
        found = [held.status() for held in self._held.values()]
        return found + [self._evicted_status(key) for key in self._evicted if key not in self._held]

    def holds(self, image: str) -> bool:
        """Whether a zygote of this image is there, or is coming."""
        return any(held.base.image == image and held.state != "failed" for held in self._held.values())

    async def claim(self, base: Base) -> Claimed:
        """A child of ``base`` or of the nearest that is ready. Raises `PrepareFailed`."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + FIRST_READY_S
        failure: PrepareFailed | None = None
        attempts = 0
        while attempts < CLAIM_ATTEMPTS and not self._closed:
            held = self._choose(base)
            if held is None or held.zygote is None:
                left = deadline - loop.time()
                if left <= 0:
                    break
                await self._wait_for_change(min(left, CLAIM_POLL_S))
                continue
            zygote = held.zygote
            child = held.take()
            if child:
                return Claimed(child, "warm", zygote, held)
            attempts += 1
            try:
                return Claimed(await self._maker.child(zygote), "forked", zygote, held)
            except ZygoteFailed as error:
                failure = error
        details = "; ".join(f"{s.key[:12]}: {s.detail}" for s in self.bases() if s.detail)
        raise failure or PrepareFailed(f"No zygote is ready on this host ({details or 'still starting'}).")

    def child_ended(self, child: Child) -> None:
        """Told of every child of every zygote."""
        for held in self._held.values():
            held.lost(child)
        for held in [h for h in self._leaving if h.living <= 0]:
            self._leaving.discard(held)
            _run(held.end(), self._ending)

    async def close(self) -> None:
        """End all zygotes and children."""
        self._closed = True
        self._changed.set()
        for task in list(self._tasks):
            task.cancel()
        if self._tasks or self._ending:
            await asyncio.wait(self._tasks | self._ending)
        ending = [*self._held.values(), *self._leaving]
        self._held.clear()
        self._leaving.clear()
        await asyncio.gather(*(held.end() for held in ending))

    def _choose(self, base: Base) -> HeldBase | None:
        ready = [held.candidate() for held in self._held.values() if held.ready]
        key = nearest(base, ready)
        return self._held[key] if key is not None else None

    def _keep(self, base: Base, spares: int) -> None:
        held = self._held.get(base.key)
        if held is None:
            if base.key in self._evicted:
                return
            held = next((h for h in self._leaving if h.base.key == base.key), None)
            if held:
                self._leaving.discard(held)
            else:
                held = HeldBase(base, self._maker, self._starting, self._on_change)
            self._held[base.key] = held
        held.keep(spares)

    def _let_go(self, key: str) -> None:
        held = self._held.pop(key)
        self._reported.pop(key, None)
        held.keep(0)
        if held.living > 0:
            self._leaving.add(held)
        else:
            _run(held.end(), self._ending)

    def _on_change(self, held: HeldBase) -> None:
        self._changed.set()
        if self._held.get(held.base.key) is held:
            self._report(held.status())
        if held.ready and not held.bytes:
            _run(self._measure(), self._tasks)

    def _report(self, status: BaseStatus) -> None:
        if self._reported.get(status.key) != status and not self._closed:
            self._reported[status.key] = status
            self._on_base(status)

    async def _wait_for_change(self, timeout_s: float) -> None:
        self._changed.clear()
        try:
            async with asyncio.timeout(timeout_s):
                await self._changed.wait()
        except TimeoutError:
            return

    async def _measure_for_ever(self) -> None:
        while True:
            await asyncio.sleep(MEASURE_S)
            await self._measure()

    async def _measure(self) -> None:
        await self._maker.quiet()
        for held in list(self._held.values()):
            if held.zygote:
                pids = [held.zygote.pid, *(c.pid for c in held.spares)]
                held.bytes = await asyncio.to_thread(_total, pids)
        order = [self._held[base.key] for base, _ in self._order if base.key in self._held]
        facts = [Held(h.base.key, h.bytes, h.living, keep=h.base.key == PLAIN.key) for h in order]
        total = sum(f.bytes for f in facts)
        room = self._budget.room("process", total)
        for key in over_budget(facts, room):
            why = f"not kept: zygotes use {size(total)} of {size(room)}; raise zygote_memory_share."
            self._let_go(key)
            self._evicted[key] = why
            self._report(self._evicted_status(key))

    def _evicted_status(self, key: str) -> BaseStatus:
        return BaseStatus(key=key, state="failed", detail=self._evicted[key])


def _run(work: Coroutine[Any, Any, None], tasks: set[asyncio.Task[None]]) -> None:
    task = asyncio.create_task(work)
    tasks.add(task)
    task.add_done_callback(tasks.discard)


def _total(pids: Sequence[int]) -> int:
    return sum(procs.pss(pid) for pid in pids)
