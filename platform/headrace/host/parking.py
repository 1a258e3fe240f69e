"""Pausing and resuming instances, and handing their accelerators over to who comes after them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from headrace_runtimes.errors import NotSupported, PrepareFailed, RuntimeFailure

from headrace.host.resources import Accelerators

if TYPE_CHECKING:
    from headrace.host.instances import Instance

log = logging.getLogger("headrace.host")

AFTER_S = 600.0
"""The longest that one waits for the accelerators of those that give way to it: as long as they may drain."""
RESUME_GRACE_S = 0.0


class Change(Protocol):
    """Replaces members of an instance's report, and tells control."""

    def __call__(self, instance: Instance, **changes: object) -> None:
        """See the class."""
        ...


class Parking:
    """A paused instance keeps its memory, and its accelerators by number: it alone knows what is in them."""

    def __init__(
        self,
        living: Mapping[str, Instance],
        accelerators: Accelerators,
        *,
        change: Change,
        stop: Callable[[str, float, str], None],
    ) -> None:
        self._living, self._accelerators = living, accelerators
        self._change, self._stop = change, stop
        self._freed = asyncio.Event()
        self._turns: set[asyncio.Task[None]] = set()

    def pause(self, instance: Instance, grace_s: float, reason: str) -> None:
        """Freeze it when it is idle, and free its accelerators; otherwise stop it within the grace."""
        self._later(self._pause(instance, grace_s, reason))

    def resume(self, instance: Instance, after: tuple[str, ...]) -> None:
        """Let a paused one go on, when those of ``after`` have given its accelerators back."""
        self._later(self._resume(instance, after))

    def changed(self) -> None:
        """Accelerators were given back, or somebody who waits for some is to stop."""
        self._freed.set()

    def leaving(self, after: tuple[str, ...]) -> bool:
        """Whether one of these has accelerators to give back yet."""
        there = (self._living.get(id) for id in after)
        return any(other is not None and other.accelerators for other in there)

    async def take_over(self, instance: Instance, after: tuple[str, ...]) -> None:
        """Wait for the accelerators of those that give way. Raises `PrepareFailed`."""

        def take() -> bool:
            taken = self._accelerators.take(instance.spec.gpu)
            instance.accelerators = taken or ()
            return taken is not None

        if not await self._free(after, take):
            raise PrepareFailed("The accelerator that was to be free for it is not: it is tried again.")

    async def _pause(self, instance: Instance, grace_s: float, reason: str) -> None:
        async with instance.turn:
            sandbox = instance.sandbox
            if sandbox is None or instance.stopping or instance.parked is not None:
                return
            try:
                stats = await sandbox.stats()
                if stats.in_flight:
                    raise NotSupported(f"{stats.in_flight} requests run in it")
                await sandbox.pause()
            except (RuntimeFailure, OSError, TimeoutError) as error:
                log.info("instance %s is stopped, not paused: %s", instance.report.id, error)
            else:
                instance.parked, instance.accelerators = instance.accelerators, ()
                self._accelerators.give_back(instance.parked)
                self.changed()
                if not instance.stopping:
                    self._change(instance, state="paused", note=reason)
                return
        self._stop(instance.report.id, grace_s, reason)

    async def _resume(self, instance: Instance, after: tuple[str, ...]) -> None:
        async with instance.turn:
            # After a pause that is still under way.
            wanted = instance.parked
        if wanted is None or instance.stopping or instance.sandbox is None:
            self._change(instance)
            return
        there = await self._free(after, lambda: instance.stopping or self._accelerators.take_these(wanted))
        if instance.stopping:
            return
        async with instance.turn:
            if there:
                instance.parked, instance.accelerators = None, wanted
                try:
                    await instance.sandbox.resume()
                except (RuntimeFailure, OSError, TimeoutError) as error:
                    log.warning("instance %s does not go on: %s", instance.report.id, error)
                else:
                    if not instance.stopping:
                        self._change(instance, state="ready", note="")
                    return
        self._stop(instance.report.id, RESUME_GRACE_S, "it could not go on where it was paused")

    async def _free(self, after: tuple[str, ...], take: Callable[[], bool]) -> bool:
        """Take, as soon as those that leave have given back what they had. Whether it was there."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(AFTER_S):
                while not take():
                    if not self.leaving(after):
                        return take()
                    self._freed.clear()
                    await self._freed.wait()
                return True
        return False

    def _later(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._turns.add(task)
        task.add_done_callback(self._turns.discard)
