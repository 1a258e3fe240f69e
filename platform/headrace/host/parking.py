"""Pausing and resuming instances, and handing their accelerators over to who comes after them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine, Mapping
from typing import TYPE_CHECKING, Any, Protocol

import msgspec
from headrace_runtimes.errors import PrepareFailed, RuntimeFailure

from headrace.host.resources import Accelerators
from headrace.host.turns import Effect, Event, move

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
        if self._move(instance, "pause") == "freeze":
            self._later(self._freeze(instance, grace_s, reason))

    def resume(self, instance: Instance, after: tuple[str, ...]) -> None:
        """Let a paused one go on, when those of ``after`` have given its accelerators back."""
        instance.after = after
        if self._move(instance, "resume") == "thaw":
            self._later(self._thaw(instance))

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

    def _here(self, instance: Instance) -> bool:
        return not instance.stopping and self._living.get(instance.report.id) is instance

    def _move(self, instance: Instance, event: Event) -> Effect:
        """Take a turn, and tell control where that is all there is to do."""
        if not self._here(instance):
            event = "stop"
        instance.turn, effect = move(instance.turn, event)
        if effect == "tell" and instance.turn == "parked":
            self._change(instance, state="paused")
        elif effect == "tell":
            self._change(instance, state="ready", note="") if event == "thawed" else self._change(instance)
        return effect

    async def _freeze(self, instance: Instance, grace_s: float, reason: str) -> None:
        async with instance.lock:
            instance.pauses += 1
            why_not = await _frozen(instance) if self._here(instance) else ""
            if not why_not and self._here(instance):
                instance.report = msgspec.structs.replace(instance.report, note=reason)
                instance.parked, instance.accelerators = instance.accelerators, ()
                self._accelerators.give_back(instance.parked)
                self.changed()
        effect = self._move(instance, "busy" if why_not else "frozen")
        if effect == "thaw":
            await self._thaw(instance)
        elif effect == "end":
            log.info("instance %s is stopped, not paused: %s", instance.report.id, why_not)
            self._stop(instance.report.id, grace_s, reason)

    async def _thaw(self, instance: Instance) -> None:
        def take() -> bool:
            wanted = instance.parked or ()
            if not self._here(instance) or not self._accelerators.take_these(wanted):
                return not self._here(instance)
            # At once: whenever it ends from here on, they are given back with it.
            instance.parked, instance.accelerators = None, wanted
            return True

        there = await self._free(instance.after, take)
        async with instance.lock:
            if there and self._here(instance) and instance.sandbox is not None:
                try:
                    await instance.sandbox.resume()
                except (RuntimeFailure, OSError, TimeoutError) as error:
                    log.warning("instance %s does not go on: %s", instance.report.id, error)
                    there = False
                instance.pauses += 1
        if instance.sandbox is not None and instance.sandbox.exited.done():
            # Its end is told by itself, with the reason.
            return
        if self._move(instance, "thawed" if there else "lost") == "end":
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


async def _frozen(instance: Instance) -> str:
    """Freeze it if nothing runs there; why not otherwise."""
    if instance.sandbox is None:
        return "it has not started"
    try:
        stats = await instance.sandbox.stats()
        if stats.in_flight is None:
            # It may be at work and unable to say so.
            return "it does not say whether requests run in it"
        if stats.in_flight:
            return f"{stats.in_flight} requests run in it"
        await instance.sandbox.pause()
    except (RuntimeFailure, OSError, TimeoutError) as error:
        return str(error) or type(error).__name__
    return ""
