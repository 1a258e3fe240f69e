"""Instances that are to end: their hosts are told as soon as no gateway can have sent them anything more.

Without that word an instance waits a moment for requests on their way. Whoever is to have its accelerator
waits for that moment, too.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from headrace.control.claims import Claims
from headrace.control.model import Instance
from headrace.control.routes import Routes


class Leaving:
    """Asks gateways about instances that were just told to stop."""

    def __init__(self, claims: Claims, routes: Routes) -> None:
        self._claims, self._routes = claims, routes
        self._tasks: set[asyncio.Task[None]] = set()

    def watch(self, going: Sequence[Instance]) -> None:
        """Gateways were told of these, and their hosts. Those without accelerators keep nobody waiting."""
        idle = [i for i in going if i.gpu is not None and not i.in_flight]
        if idle:
            task = asyncio.get_running_loop().create_task(self._watch(idle))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _watch(self, idle: Sequence[Instance]) -> None:
        if not await self._routes.left():
            return
        for instance in idle:
            if instance.state == "draining" and not instance.in_flight:
                self._claims.hurry(instance)
