"""Pausing an instance: gateways leave it first, and only when all have said that nothing runs there."""

from __future__ import annotations

import asyncio
import logging
from typing import Protocol

from headrace.control.claims import Claims
from headrace.control.model import Instance, World
from headrace.control.routes import Routes

log = logging.getLogger("headrace.control")

GRACE_S = 30.0


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
        if instance.state != "paused" or self._world.instances.get(instance.id) is not instance:
            return
        if not left or instance.in_flight:
            log.info("instance %s is not idle after all: it drains", instance.id)
            self._release([instance], reason)
            return
        self._claims.pause(instance, reason, GRACE_S)
