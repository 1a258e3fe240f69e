"""Asks instances how they are, and acts on it: what does not start, is not ready, or is not alive."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec
from headrace_runtimes.base import Sandbox

from headrace import wire
from headrace.host.ask import ask
from headrace.host.instances import Instance, Instances, death_of
from headrace.host.probes import Answer, Health, Move, Role, answered, asked, begin, name_of, plain, wait_s
from headrace.host.usage import Usage

log = logging.getLogger("headrace.host")

EVICT_GRACE_S = 5.0
SILENCE_MARGIN_S = 10.0
"""Beyond the longest request: how long an instance may be silent."""


@dataclass(eq=False)
class _Followed:
    instance: Instance
    sandbox: Sandbox
    probes: wire.Probes
    health: Health
    last: Answer = field(default_factory=lambda: Answer(True))
    """The last answer that was no pass."""
    tasks: list[asyncio.Task[None]] = field(default_factory=list)


class Watch:
    """Asks all instances of this host. ``health_period_s``: in place of the default liveness' period."""

    def __init__(
        self, instances: Instances, usage: Usage | None = None, *, health_period_s: float | None = None
    ) -> None:
        self._instances = instances
        self._own = usage is None
        self._usage = Usage(instances) if usage is None else usage
        self._health_period_s = health_period_s
        self._followed: dict[str, _Followed] = {}

    @property
    def in_flight(self) -> Mapping[str, int]:
        """Requests by instance id, as last seen."""
        return self._usage.in_flight

    def start(self) -> None:
        """Begin to ask those that are ready."""
        if self._own:
            self._usage.start()
        for instance, sandbox in self._instances.ready():
            self._follow(self._new(instance, sandbox, ready=True))

    async def stop(self) -> None:
        """Ask no more."""
        tasks = [task for followed in self._followed.values() for task in followed.tasks]
        self._followed.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._own:
            await self._usage.stop()

    async def gate(self, instance: Instance, sandbox: Sandbox) -> wire.Death | None:
        """Wait until it has started and is ready, and ask it from then on; why it failed otherwise."""
        followed = self._new(instance, sandbox)
        if not (followed.health.started and followed.health.ready):
            work = asyncio.ensure_future(self._begin(followed))
            try:
                either: list[asyncio.Future[Any]] = [work, sandbox.exited]
                await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            finally:
                work.cancel()
                await asyncio.wait([work])
            if sandbox.exited.done():
                return death_of(sandbox.exited.result())
            if (death := work.result()) is not None:
                return death
        self._follow(followed)
        return None

    def _new(self, instance: Instance, sandbox: Sandbox, *, ready: bool = False) -> _Followed:
        probes = instance.spec.probes
        if self._health_period_s is not None and probes.liveness is not None and probes.liveness.lenient:
            liveness = msgspec.structs.replace(probes.liveness, period_s=self._health_period_s)
            probes = msgspec.structs.replace(probes, liveness=liveness)
        health = begin(probes, asyncio.get_running_loop().time())
        if ready:
            unready = instance.report.unready
            health = Health(health.began, started=True, ready=not unready)
        return _Followed(instance, sandbox, probes, health)

    def _follow(self, followed: _Followed) -> None:
        loop = asyncio.get_running_loop()
        id = followed.instance.report.id
        roles = asked(followed.probes, followed.health)
        if not roles:
            return
        self._followed[id] = followed
        followed.tasks = [loop.create_task(self._ask_for_ever(followed, role)) for role in roles]
        followed.sandbox.exited.add_done_callback(lambda _: self._forget(id, followed))

    def _forget(self, id: str, followed: _Followed) -> None:
        if self._followed.get(id) is followed:
            del self._followed[id]
        for task in followed.tasks:
            task.cancel()

    async def _begin(self, followed: _Followed) -> wire.Death | None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        if followed.probes.startup is not None:
            move = await self._ask_until(followed, "startup", ("started", "failed"))
            if move == "failed":
                return _not_started(f"startup probe failed after {loop.time() - began:.0f} s", followed)
        if followed.probes.readiness is None:
            return None
        limit = followed.instance.spec.load_timeout_s
        try:
            async with asyncio.timeout(limit):
                await self._ask_until(followed, "readiness", ("ready",))
        except TimeoutError:
            return _not_started(f"readiness probe did not pass within {limit:g} s", followed)
        return None

    async def _ask_until(self, followed: _Followed, role: Role, moves: tuple[Move, ...]) -> Move:
        first = True
        while (move := await self._ask(followed, role, first)) not in moves:
            first = False
        return move

    async def _ask_for_ever(self, followed: _Followed, role: Role) -> None:
        liveness = followed.probes.liveness
        # What has passed to get here is asked again a period later.
        first = role == "liveness" and liveness is not None and liveness.initial_delay_s > 0
        while role in asked(followed.probes, followed.health) and not followed.instance.stopping:
            move = await self._ask(followed, role, first)
            first = False
            if move != "none":
                self._act(followed, role, move)

    async def _ask(self, followed: _Followed, role: Role, first: bool) -> Move:
        probe: wire.Probe = getattr(followed.probes, role)
        await asyncio.sleep(wait_s(probe, first, random.random()))  # noqa: S311 - jitter
        instance, sandbox = followed.instance, followed.sandbox
        if getattr(sandbox, "state", "ready") == "paused" or instance.stopping:
            return "none"
        pauses = instance.pauses
        answer = await ask(sandbox, probe, instance.report.token)
        if instance.pauses != pauses:
            # Nobody answers who is frozen.
            return "none"
        if not answer.ok:
            followed.last = answer
            log.info("%s of %s of %s: %s", role, instance.report.id, instance.spec.endpoint, answer.detail)
        followed.health, move = answered(
            followed.probes, followed.health, role, answer, asyncio.get_running_loop().time(),
            idle=self._usage.in_flight.get(instance.report.id) == 0,
            most_s=instance.spec.timeout_s + SILENCE_MARGIN_S,
        )  # fmt: skip
        return move

    def _act(self, followed: _Followed, role: Role, move: Move) -> None:
        instance, probe = followed.instance, getattr(followed.probes, role)
        why = f"{role} probe ({name_of(probe)}) failed: {plain(followed.last.detail)}"
        if move in ("ready", "unready"):
            log.warning("instance %s of %s is %s", instance.report.id, instance.spec.endpoint, move)
            self._instances.set_unready(instance, why if move == "unready" else "")
        elif move == "dead":
            log.warning("instance %s of %s is unhealthy: %s", instance.report.id, instance.spec.endpoint, why)
            silence = followed.health.tallies["liveness"].silent_since
            # Who does not answer does not finish anything either.
            grace_s = EVICT_GRACE_S if silence is None else 0.0
            self._instances.evict(instance, wire.Death(reason="unhealthy", detail=why), grace_s)


def _not_started(what: str, followed: _Followed) -> wire.Death:
    detail = plain(followed.last.detail)
    return wire.Death(reason="start-timeout", detail=f"{what}: {detail}" if detail else what)
