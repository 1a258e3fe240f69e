"""The instances of this host: the truth about them, from the claim to the end."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Literal

import msgspec
from headrace_runtimes.base import Sandbox
from headrace_runtimes.errors import (
    AssignFailed,
    ImageFailed,
    PrepareFailed,
    RegistryFailed,
    RuntimeFailure,
)
from headrace_runtimes.spec import Assignment, Exit
from headrace_runtimes.weights import WeightsFailed

from headrace import wire
from headrace.errors import BundleError, LinkError
from headrace.host.bundles import Bundles
from headrace.host.given import variables
from headrace.host.limits import limits_of
from headrace.host.parking import Parking
from headrace.host.pool import Pool
from headrace.host.probes import asks_health
from headrace.host.resources import Accelerators
from headrace.host.runtimes import Runtimes
from headrace.host.turns import Turn
from headrace.host.weights import NOTHING, HostWeights, Shown, death_of_weights

log = logging.getLogger("headrace.host")

MAX_ENDED = 1000
"""Ended instances remembered, so that a late or repeated command is answered with what happened."""
TELL_S = 0.25
"""How often a fetch of weights is told of."""
STOP_MARGIN_S = 10.0
"""Beyond the grace: how long a runtime may take to kill before the host stops waiting for it."""


@dataclass(eq=False)
class Instance:
    """One instance; ``report`` is replaced at every change."""

    spec: wire.InstanceSpec
    report: wire.InstanceReport
    sandbox: Sandbox | None = None
    task: asyncio.Task[None] | None = None
    """Starts it; then, when asked, stops it."""
    stopping: bool = False
    death: wire.Death | None = None
    """Set before the host itself ends it: told instead of what the runtime saw."""
    accelerators: tuple[tuple[str, int], ...] = ()
    """Those that are its own: (model, number)."""
    secrets: wire.SecretValues = field(default_factory=wire.SecretValues)
    """Until it has them."""
    parked: tuple[tuple[str, int], ...] | None = None
    """While it is paused: those that it had, and needs again. What is in them only it knows."""
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    """One at a time pauses, resumes or stops it."""
    turn: Turn = "running"
    """See `turns`."""
    after: tuple[str, ...] = ()
    """Who gives way to it when it goes on."""
    pauses: int = 0
    """Counted at each begin and each end of a pause: what was asked before is not answered in time."""
    shown: Shown = NOTHING
    """Its weights."""


def death_of(exit: Exit) -> wire.Death:
    """The runtime's account as the platform's."""
    return wire.Death(
        reason=exit.reason,
        detail=exit.detail,
        traceback=exit.traceback,
        exit_code=exit.code,
        signal=exit.signal,
        # After a stop that was asked for nobody wonders what it said last.
        log=() if exit.reason == "stopped" else exit.log,
    )


def death_at_start(error: Exception) -> wire.Death:
    """Why an instance could not even begin."""
    reason: Literal["image-failed", "prepare-failed", "start-timeout"] = "start-timeout"
    if isinstance(error, ImageFailed | RegistryFailed):
        reason = "image-failed"
    elif isinstance(error, PrepareFailed):
        reason = "prepare-failed"
    return wire.Death(reason=reason, detail=str(error) or "the bundle could not be fetched in time")


class Instances:
    """Starts, watches and stops instances; ``emit`` gets every change."""

    def __init__(  # noqa: PLR0917 - the parts of a host
        self,
        runtimes: Runtimes,
        pool: Pool,
        bundles: Bundles,
        emit: Callable[[wire.InstanceReport], None],
        accelerators: Accelerators,
        resources: wire.Resources,
    ) -> None:
        self._resources = resources
        self._runtimes, self._pool, self._bundles, self._emit = runtimes, pool, bundles, emit
        self._accelerators = accelerators
        self._living: dict[str, Instance] = {}
        self._parking = Parking(self._living, accelerators, change=self._set, stop=self.stop)
        self.weights: HostWeights | None = None
        """Set by whoever makes it: where weights come from."""
        self._ended: OrderedDict[str, wire.InstanceReport] = OrderedDict()
        self._draining = False
        self.gate: Callable[[Instance, Sandbox], Awaitable[wire.Death | None]] | None = None
        """Asked before an instance is told to be ready: None lets it, a death ends it."""

    def inventory(self) -> list[wire.InstanceReport]:
        """All living instances."""
        return [instance.report for instance in self._living.values()]

    def ended(self) -> list[wire.InstanceReport]:
        """The last ended ones, oldest first."""
        return list(self._ended.values())

    def ready(self) -> list[tuple[Instance, Sandbox]]:
        """Those that take requests."""
        return [
            (i, i.sandbox)
            for i in self._living.values()
            if i.sandbox is not None and not i.stopping and i.parked is None
        ]

    def bundles(self) -> set[str]:
        """Bundles in use."""
        return {instance.spec.bundle for instance in self._living.values()}

    def start(self, msg: wire.StartInstance) -> None:
        """Claim a sandbox for it. Doing it again with the same id tells its state again."""
        known = self._living.get(msg.id)
        if known is not None or msg.id in self._ended:
            self._emit(known.report if known is not None else self._ended[msg.id])
            return
        spec = msg.spec
        report = wire.InstanceReport(
            id=msg.id,
            endpoint=spec.endpoint,
            version=spec.version,
            state="starting",
            runtime=spec.base.runtime,
            token=secrets.token_urlsafe(32),
            # A batch holds one place in the handler, and each of its requests one on the wire.
            concurrency=spec.concurrency * max(1, spec.batch_max_size),
            started_at=time.time(),
            timings=wire.StartTimings(claim_s=msg.claim_s),
            gpu=spec.gpu,
        )
        instance = Instance(spec, report, secrets=msg.secrets)
        self._living[msg.id] = instance
        if msg.refused:
            self._end(instance, "failed", wire.Death(reason="prepare-failed", detail=msg.refused))
            return
        offered = spec.base.runtime in self._runtimes
        taken = self._accelerators.take(spec.gpu)
        waits = taken is None and self._parking.leaving(msg.after)
        if self._draining or not offered or (taken is None and not waits):
            instance.accelerators = taken or ()
            why = f"the host has no free {' and '.join(f'{name}:{count}' for name, count in spec.gpu)}"
            if not offered:
                why = f"the host has no runtime {spec.base.runtime!r}"
            if self._draining:
                why = "the host is draining"
            self._end(instance, "failed", wire.Death(reason="host-lost", detail=why + "."))
            return
        instance.accelerators = taken or ()
        received = time.perf_counter()
        instance.task = asyncio.get_running_loop().create_task(
            self._start(instance, received, msg.after if waits else ())
        )
        # After the claim is under way: telling about it must not delay it.
        self._emit(report)

    def stop(self, id: str, grace_s: float, reason: str) -> None:
        """Let it finish for at most ``grace_s`` and end it; its end is emitted. Unknown ids are ignored."""
        instance = self._living.get(id)
        if instance is None:
            if id in self._ended:
                self._emit(self._ended[id])
            return
        if instance.stopping:
            return
        instance.stopping = True
        self._parking.changed()
        self._set(instance, state="draining", note=reason or instance.report.note)
        task = instance.task
        instance.task = asyncio.get_running_loop().create_task(self._stop(instance, task, grace_s))

    def hurry(self, id: str) -> None:
        """One that stops gets no more requests: it need not wait for what may be on its way."""
        instance = self._living.get(id)
        hurry = getattr(instance.sandbox, "hurry", None) if instance is not None else None
        if hurry is not None:
            hurry()

    def evict(self, instance: Instance, death: wire.Death, grace_s: float) -> None:
        """End an instance for a reason of the host's own; it counts as failed."""
        if instance.stopping:
            return
        instance.death = death
        self.stop(instance.report.id, grace_s, death.detail)

    def set_unready(self, instance: Instance, why: str) -> None:
        """It takes no new requests from now on, and lives; empty: it does again."""
        if not instance.stopping and instance.report.unready != why:
            self._set(instance, unready=why)

    async def drain(self, grace_s: float) -> None:
        """Take nothing new, end everything, return when all have ended."""
        self._draining = True
        for id in list(self._living):
            self.stop(id, grace_s, "the host is draining")
        tasks = [i.task for i in self._living.values() if i.task is not None]
        await asyncio.gather(*tasks, return_exceptions=True)

    def abandon(self) -> None:
        """Forget everything at once and emit nothing more: the host is gone."""
        self._draining = True
        self._emit = lambda report: None
        for instance in self._living.values():
            if instance.task is not None:
                instance.task.cancel()

    def pause(self, id: str, grace_s: float, reason: str) -> None:
        """See `Parking.pause`. Unknown ids are ignored."""
        if instance := self._known(id):
            self._parking.pause(instance, grace_s, reason)

    def resume(self, id: str, after: tuple[str, ...]) -> None:
        """See `Parking.resume`. Unknown ids are ignored."""
        if instance := self._known(id):
            self._parking.resume(instance, after)

    def _known(self, id: str) -> Instance | None:
        if id in self._ended:
            self._emit(self._ended[id])
        return self._living.get(id)

    async def _show_weights(self, instance: Instance) -> None:
        """Fetch its weights, telling how far that is. Raises `WeightsFailed`."""
        spec = instance.spec
        if not spec.weights or self.weights is None:
            return
        told = 0.0

        def tell(text: str) -> None:
            nonlocal told
            now = time.monotonic()
            if now - told >= TELL_S and not instance.stopping:
                told = now
                self._set(instance, note=text)

        mounts = spec.base.runtime != "process"
        instance.shown = await self.weights.show(instance.report.id, spec.weights, mounts=mounts, told=tell)
        if instance.report.note:
            self._set(instance, note="")

    async def _start(self, instance: Instance, received: float, after: tuple[str, ...] = ()) -> None:
        spec, report = instance.spec, instance.report
        try:
            await self._show_weights(instance)
            if not self._bundles.has(spec.bundle):
                await self._bundles.ensure(spec.bundle)
            await self._pool.prepared(spec.base)
            runtime = await self._runtimes.get(spec.base.runtime)
            base = self._pool.base(spec.base)
            if base.loaded is not None and not self._bundles.has(base.loaded.code_dir.name):
                await self._bundles.ensure(base.loaded.code_dir.name)
            if after:
                await self._parking.take_over(instance, after)
            sandbox = await runtime.claim(base, self._assignment(instance))
        except AssignFailed as error:
            self._end(instance, "failed", death_of(error.exit))
        except WeightsFailed as error:
            self._end(instance, "failed", death_of_weights(error))
        except BundleError as error:
            self._end(instance, "failed", wire.Death(reason="import-failed", detail=str(error)))
        except (RuntimeFailure, LinkError, TimeoutError, OSError) as error:
            self._end(instance, "failed", death_at_start(error))
        except Exception as error:
            log.exception("starting %s failed", report.id)
            detail = f"the host failed: {type(error).__name__}: {error}"
            self._end(instance, "failed", wire.Death(reason="start-timeout", detail=detail))
        else:
            instance.secrets = wire.SecretValues()
            if await self._let_in(instance, sandbox):
                self._started(instance, sandbox, time.perf_counter() - received)

    async def _let_in(self, instance: Instance, sandbox: Sandbox) -> bool:
        """Whether it has started and is ready as its probes see it; it has ended otherwise."""
        if self.gate is None:
            return True
        try:
            death = await self.gate(instance, sandbox)
        except BaseException:
            # It is to stop, or the host itself failed: the runtime knows it as an instance already.
            await asyncio.shield(sandbox.stop(0.0))
            raise
        if death is None:
            return True
        exit = await sandbox.stop(0.0)
        self._end(instance, "failed", msgspec.structs.replace(death, log=exit.log))
        return False

    def _started(self, instance: Instance, sandbox: Sandbox, total_s: float) -> None:
        instance.sandbox = sandbox
        if not instance.stopping:
            took = sandbox.timings
            self._set(
                instance,
                state="ready",
                pid=sandbox.pid,
                address=sandbox.address,
                tier=sandbox.tier,
                timings=wire.StartTimings(
                    claim_s=instance.report.timings.claim_s,
                    boot_s=took.boot,
                    import_s=took.imported,
                    load_s=took.load,
                    total_s=total_s,
                ),
                note=self._pool.note(instance.spec.base),
            )
        sandbox.exited.add_done_callback(lambda exited: self._exited(instance, exited.result()))

    def _assignment(self, instance: Instance) -> Assignment:
        spec, report = instance.spec, instance.report
        held = self._runtimes.holds_limits(spec.base.runtime)
        limits = limits_of(spec, self._resources, held=held)
        return Assignment(
            id=report.id,
            endpoint=spec.endpoint,
            version=spec.version,
            code_dir=self._bundles.path(spec.bundle),
            entry=spec.entry,
            handler=spec.handler,
            token=report.token,
            env={**spec.env, **instance.shown.env},
            mounts=instance.shown.mounts,
            concurrency=spec.concurrency,
            batch_max_size=spec.batch_max_size,
            batch_max_wait_ms=spec.batch_max_wait_ms,
            timeout_s=spec.timeout_s,
            load_timeout_s=spec.load_timeout_s,
            memory_limit=limits.memory,
            cpu_limit=limits.cpu,
            max_body=spec.max_body,
            fresh=spec.snapshot == "none",
            # Without a gate nobody would ask.
            probed=self.gate is not None and asks_health(spec.probes),
            gpu_indices=tuple(number for _, number in instance.accelerators),
            secrets=instance.secrets.values,
            secrets_env=variables(spec.secrets),
        )

    async def _stop(self, instance: Instance, starting: asyncio.Task[None] | None, grace_s: float) -> None:
        if instance.sandbox is None and starting is not None:
            # Not ready yet: nothing to finish. The runtime ends what it began when it is cancelled.
            starting.cancel()
            await asyncio.wait([starting])
        if instance.sandbox is None:
            self._end(instance, "stopped", wire.Death(reason="stopped", detail="stopped before it was ready"))
            return
        try:
            async with asyncio.timeout(grace_s + STOP_MARGIN_S), instance.lock:
                exit = await instance.sandbox.stop(grace_s)
        except TimeoutError:
            log.warning("instance %s did not end in time", instance.report.id)
            exit = Exit("stopped", detail="it did not end in time")
        self._exited(instance, exit)

    def _exited(self, instance: Instance, exit: Exit) -> None:
        if instance.death is not None:
            self._end(instance, "failed", msgspec.structs.replace(instance.death, log=exit.log))
        elif instance.stopping or exit.reason == "stopped":
            self._end(instance, "stopped", death_of(exit))
        else:
            self._end(instance, "failed", death_of(exit))

    def _end(self, instance: Instance, state: wire.InstanceState, death: wire.Death) -> None:
        id = instance.report.id
        if self._living.pop(id, None) is None:
            return
        self._accelerators.give_back(instance.accelerators)
        instance.accelerators = ()
        self._parking.changed()
        if self.weights is not None:
            self.weights.release(id)
        self._ended[id] = msgspec.structs.replace(instance.report, state=state, death=death)
        if len(self._ended) > MAX_ENDED:
            self._ended.popitem(last=False)
        self._emit(self._ended[id])

    def _set(self, instance: Instance, **changes: object) -> None:
        instance.report = msgspec.structs.replace(instance.report, **changes)
        self._emit(instance.report)
