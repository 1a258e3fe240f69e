"""What instances use: looked at every two seconds without disturbing them, told with the heartbeats."""

from __future__ import annotations

import asyncio
import logging
import time

from headrace_runtimes.base import Sandbox
from headrace_runtimes.errors import RuntimeFailure
from headrace_runtimes.spec import Stats

from headrace import wire
from headrace.host.gpus import GpuReader, GpuUse
from headrace.host.instances import Instance, Instances

log = logging.getLogger("headrace.host")

SAMPLE_PERIOD_S = 2.0
SAMPLE_TIMEOUT_S = 2.0
STOPPED_SAMPLES = 2
"""In a row: a process that was stopped that often is given up, with all its requests, for others to run."""


class Usage:
    """``in_flight`` and ``rss`` (bytes) by instance id, as last seen; `fresh` for the heartbeat."""

    def __init__(self, instances: Instances, gpus: GpuReader | None = None) -> None:
        self._instances, self._gpus = instances, gpus
        self.in_flight: dict[str, int] = {}
        self.rss: dict[str, int] = {}
        self._use: dict[str, wire.InstanceUse] = {}
        self._fresh: set[str] = set()
        self._stopped: dict[str, int] = {}
        self._gpu_use: dict[int, GpuUse] = {}
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to look."""
        self._task = asyncio.get_running_loop().create_task(self._sample_all())

    async def stop(self) -> None:
        """Look no more."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def fresh(self) -> dict[str, wire.InstanceUse]:
        """Of those that were looked at since this was asked last."""
        found = {id: self._use[id] for id in self._fresh if id in self._use}
        self._fresh.clear()
        return found

    async def _sample_all(self) -> None:
        while True:
            ready = self._instances.ready()
            if self._gpus is not None and any(instance.accelerators for instance, _ in ready):
                self._gpu_use = await self._gpus.read()
            for instance, sandbox in ready:
                await self._sample(instance, sandbox)
                # Spread: reading one's memory takes a millisecond that a start could need.
                await asyncio.sleep(SAMPLE_PERIOD_S / len(ready) / 2)
            alive = {instance.report.id for instance, _ in self._instances.ready()}
            self.in_flight = {id: n for id, n in self.in_flight.items() if id in alive}
            self.rss = {id: n for id, n in self.rss.items() if id in alive}
            self._use = {id: use for id, use in self._use.items() if id in alive}
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
        numbers = tuple(number for _, number in instance.accelerators)
        self._use[id] = use_of(stats, self._use.get(id), time.time(), [self._gpu_use.get(n) for n in numbers])
        self._fresh.add(id)
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


def use_of(
    stats: Stats, before: wire.InstanceUse | None, at: float, gpus: list[GpuUse | None]
) -> wire.InstanceUse:
    """One look, with what has changed since the one ``before``. Pure."""
    cores = 0.0
    if before is not None and at > before.at:
        # A counter that went back is another process': nothing is known of the time between.
        cores = max(0.0, stats.cpu_s - before.cpu_s) / (at - before.at)
    known = [gpu for gpu in gpus if gpu is not None]
    return wire.InstanceUse(
        at=at,
        cpu_s=stats.cpu_s,
        cpu=round(cores, 3),
        memory=stats.rss,
        io_bytes=stats.io_bytes,
        processes=stats.processes,
        gpu=round(sum(gpu.busy for gpu in known), 3) if known else None,
        gpu_memory=sum(gpu.memory for gpu in known) if known else None,
    )
