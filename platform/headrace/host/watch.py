"""Looks after living instances without disturbing them: their use of resources, and their health."""

from __future__ import annotations

import asyncio
import inspect
import logging
import random

from headrace_runtimes.base import Sandbox
from headrace_runtimes.errors import RuntimeFailure, SandboxGone

from headrace import wire
from headrace.host.instances import Instance, Instances

log = logging.getLogger("headrace.host")

SAMPLE_PERIOD_S = 2.0
SAMPLE_TIMEOUT_S = 2.0
HEALTH_PERIOD_S = 10.0
HEALTH_TIMEOUT_S = 5.0
"""Shorter than a runtime's own patience, so that silence is told from a plain no."""
HEALTH_FAILURES = 3
EVICT_GRACE_S = 5.0
STOPPED_SAMPLES = 2
"""In a row: a process that was stopped that often is given up, with all its requests, for others to run."""


class Watch:
    """``in_flight`` and ``rss`` (proportional set size, bytes) by instance id, as last seen."""

    def __init__(self, instances: Instances, *, health_period_s: float = HEALTH_PERIOD_S) -> None:
        self._instances, self._health_period_s = instances, health_period_s
        self.in_flight: dict[str, int] = {}
        self.rss: dict[str, int] = {}
        self._failures: dict[str, int] = {}
        self._stopped: dict[str, int] = {}
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begin to look."""
        loop = asyncio.get_running_loop()
        self._tasks = [loop.create_task(self._sample_all()), loop.create_task(self._check_all())]

    async def stop(self) -> None:
        """Look no more."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _sample_all(self) -> None:
        while True:
            ready = self._instances.ready()
            for instance, sandbox in ready:
                await self._sample(instance, sandbox)
                # Spread: reading one's memory takes a millisecond that a start could need.
                await asyncio.sleep(SAMPLE_PERIOD_S / len(ready) / 2)
            alive = {instance.report.id for instance, _ in self._instances.ready()}
            self.in_flight = {id: n for id, n in self.in_flight.items() if id in alive}
            self.rss = {id: n for id, n in self.rss.items() if id in alive}
            self._stopped = {id: n for id, n in self._stopped.items() if id in alive}
            await asyncio.sleep(SAMPLE_PERIOD_S / 2)

    async def _sample(self, instance: Instance, sandbox: Sandbox) -> None:
        id = instance.report.id
        try:
            async with asyncio.timeout(SAMPLE_TIMEOUT_S):
                stats = await sandbox.stats()
        except (RuntimeFailure, TimeoutError, OSError):
            self.in_flight.pop(id, None)
            return
        self.rss[id] = stats.rss
        # Not silence, which may be work: a stopped process does nothing for anybody.
        self._stopped[id] = self._stopped.get(id, 0) + 1 if stats.stopped else 0
        if self._stopped[id] >= STOPPED_SAMPLES:
            log.warning("instance %s of %s is stopped by a signal", id, instance.spec.endpoint)
            death = wire.Death(reason="unhealthy", detail="its process was stopped by a signal")
            self._instances.evict(instance, death, 0.0)
        if stats.in_flight is None:
            self.in_flight.pop(id, None)
        else:
            self.in_flight[id] = stats.in_flight

    async def _check_all(self) -> None:
        while True:
            await asyncio.sleep(self._health_period_s * (0.9 + 0.2 * random.random()))  # noqa: S311 - jitter
            ready = self._instances.ready()
            self._failures = {i.report.id: self._failures.get(i.report.id, 0) for i, _ in ready}
            await asyncio.gather(*(self._check(instance, sandbox) for instance, sandbox in ready))

    async def _check(self, instance: Instance, sandbox: Sandbox) -> None:
        id = instance.report.id
        try:
            detail = await ask_health(sandbox)
        except TimeoutError:
            # A handler may hold the loop or the GIL for long, and that is work, not illness: silence counts
            # only against an instance that is known to be idle.
            detail = f"no answer within {HEALTH_TIMEOUT_S:g} s" if self.in_flight.get(id) == 0 else None
        if detail is None:
            self._failures[id] = 0
            return
        self._failures[id] = self._failures.get(id, 0) + 1
        log.warning("instance %s of %s is unhealthy: %s", id, instance.spec.endpoint, detail)
        if self._failures[id] >= HEALTH_FAILURES:
            death = wire.Death(reason="unhealthy", detail=f"failed {HEALTH_FAILURES} health checks: {detail}")
            self._instances.evict(instance, death, EVICT_GRACE_S)


async def ask_health(sandbox: Sandbox) -> str | None:
    """What is wrong with it; None when it is well, or when its runtime offers no check.

    Raises ``TimeoutError`` when it does not answer.
    """
    check = getattr(sandbox, "health", None)
    if check is None:
        return None
    try:
        async with asyncio.timeout(HEALTH_TIMEOUT_S):
            answer = check()
            if inspect.isawaitable(answer):
                answer = await answer
    except SandboxGone:
        return None
    except TimeoutError:
        raise
    except (RuntimeFailure, OSError) as error:
        return str(error)
    ok, detail = answer if isinstance(answer, tuple) else (bool(answer), "health() said no")
    return None if ok else str(detail or "health() said no")
