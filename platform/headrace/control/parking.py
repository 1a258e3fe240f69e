"""Pausing an instance: gateways leave it first, and only when all have said that nothing runs there."""

from __future__ import annotations

import asyncio
import logging
from typing import Literal, Protocol

from headrace import wire
from headrace.control.claims import Claims
from headrace.control.model import Instance, World
from headrace.control.routes import Routes

log = logging.getLogger("headrace.control")

GRACE_S = 30.0


Heard = Literal["none", "seen", "paused", "ready"]
"""What a host's word changes: ``seen``: it is paused as it was told; ``paused``, ``ready``: it is so now."""


def heard(
    state: wire.InstanceState, said: wire.InstanceState, *, before: wire.InstanceState | None, resuming: bool
) -> Heard:
    """What follows when a host says ``said``, and ``before`` that, of an instance in ``state``. Pure.

    An instance is booked as paused before its host knows: that it was ready a moment ago changes nothing.
    Once the host has said that it is frozen, ready means that it goes on, by whose word ever (control's
    predecessor may have sent one).
    """
    if said == "paused" and state == "ready":
        return "paused"
    if said == "paused" and state == "paused":
        return "seen"
    if said == "ready" and state == "paused" and (resuming or before == "paused"):
        return "ready"
    return "none"


def stranded(instance: Instance) -> bool:
    """Whether a request waits in an instance that is frozen: of a gateway that control could not tell."""
    frozen = instance.parked and instance.report is not None and instance.report.state == "paused"
    return frozen and any(instance.used_by.values())


class Release(Protocol):
    """Drains and stops instances."""

    def __call__(self, instances: list[Instance], reason: str, grace_s: float | None = None) -> None:
        """See `Reconciler.release`."""
        ...


class Parking:
    """Instances on their way to be paused."""

    def __init__(self, world: World, claims: Claims, routes: Routes, release: Release) -> None:
        self._world, self._claims, self._routes, self._release = world, claims, routes, release
        self._tasks: set[asyncio.Task[None]] = set()

    def pause(self, instance: Instance, reason: str) -> None:
        """Book it as paused at once; it is frozen in a moment, or stopped when it is not idle after all."""
        self._world.turn(instance, "paused")
        self._world.touch(instance.endpoint)
        self._routes.publish(removed=[instance.id])
        self._routes.refresh(instance.endpoint)
        task = asyncio.get_running_loop().create_task(self._pause(instance, reason))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _pause(self, instance: Instance, reason: str) -> None:
        # A request that a gateway sent there a moment ago would wait for as long as it is frozen.
        left = await self._routes.left()
        if not instance.parked or self._world.instances.get(instance.id) is not instance:
            # It ends, or is wanted again already.
            return
        if not left or instance.in_flight:
            log.info("instance %s is not idle after all: it drains", instance.id)
            self._release([instance], reason)
            return
        self._claims.pause(instance, reason, GRACE_S)
