"""Looks at the store twice a second, and when asked to: what waits there, and what waited here for long."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from headrace.gateway.dispatch import Dispatcher
from headrace.gateway.jobs.lanes import Lane, Lanes, Run
from headrace.gateway.jobs.results import STORE_AGAIN_S
from headrace.gateway.routing import RoutingTable
from headrace.jobs.store import JobStore, StoreUnavailable

log = logging.getLogger("headrace.gateway.jobs")

POLL_S = 0.5
MISSING_S = 10.0
"""An endpoint that is unknown for so long was deleted: its jobs fail."""


class Looks:
    """See the module. ``pump`` leases and sends what may be, ``give_back`` returns a run to the store,
    ``doom`` fails the jobs of an endpoint that is not there any more."""

    def __init__(
        self,
        store: JobStore,
        table: RoutingTable,
        dispatcher: Dispatcher,
        lanes: Lanes,
        *,
        pump: Callable[[Lane], None],
        give_back: Callable[[Run], None],
        doom: Callable[[Lane], None],
    ) -> None:
        self._store = store
        self._table = table
        self._dispatcher = dispatcher
        self._lanes = lanes
        self._pump = pump
        self._give_back = give_back
        self._doom = doom
        self._now = asyncio.Event()

    def soon(self) -> None:
        """Look now."""
        self._now.set()

    async def run(self) -> None:
        """Look for ever."""
        while True:
            try:
                async with asyncio.timeout(POLL_S):
                    await self._now.wait()
            except TimeoutError:
                pass
            self._now.clear()
            try:
                await self._look()
            except StoreUnavailable as error:
                log.warning("the job store does not answer: %s", error)
                await asyncio.sleep(STORE_AGAIN_S)
            except Exception:
                log.exception("looking for jobs failed")

    async def _look(self) -> None:
        if not self._table.complete:
            return
        for lane in self._lanes.all():
            lane.ask()
        found = {(row.project, row.endpoint): row for row in await self._store.waiting(time.time())}
        now = time.monotonic()
        for project, endpoint in found:
            self._lanes.of(project, endpoint)
        for lane in self._lanes.all():
            row = found.get((lane.project, lane.stored_as))
            lane.told(row)
            for run in lane.stale(now, None if row is None or lane.leasing else row.best):
                self._give_back(run)
            self._pump(lane)
            if lane.idle:
                self._lanes.drop(lane)
            elif lane.waiting and self._dispatcher.state(lane.key) is None:
                self._missing(lane)

    def _missing(self, lane: Lane) -> None:
        now = time.monotonic()
        lane.missing_since = lane.missing_since or now
        if now - lane.missing_since >= MISSING_S and not lane.leasing:
            lane.leasing = True
            self._doom(lane)
