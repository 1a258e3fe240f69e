"""Every second: leases of the dead and expired ones are queued again, what is past its time goes, and so
do blobs that nothing names.

Every gateway may sweep (a sweep is made of transactions), and does when no other one has just done so. While
the store does not answer nobody can prolong a lease: those that have expired then say nothing of their
owners, until these have had the time to prolong them (`Steady`).
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
import time
from collections.abc import Callable

from headrace.errors import HeadraceError
from headrace.gateway.jobs.leases import HEARTBEAT_S
from headrace.gateway.jobs.owners import OwnerMark
from headrace.gateway.jobs.remover import Remover
from headrace.jobs.blobs import BlobStore
from headrace.jobs.store import JobStore

log = logging.getLogger("headrace.gateway.jobs")

PERIOD_S = 1.0
SWEEP_LIMIT = 1000
DUE = 0.75
"""Share of the period after which a sweep is due again: less than the shortest pause."""
GAP_S = 2.0 * HEARTBEAT_S
"""A pause of the store's answers that no lease expires of: each has a longer rest when it begins."""
STEADY_S = HEARTBEAT_S + 5.0
"""Within so long of its coming back every gateway that lives has prolonged its leases."""


class Steady:
    """Whether the store has answered for so long that a lease which has expired tells of its owner.

    By the wall clock, as leases are: a clock that is set, or a machine that was suspended, is a gap too.
    """

    def __init__(self) -> None:
        self._since = 0.0
        self._last = -math.inf

    def answered(self, now: float) -> None:
        """It did."""
        if not self._follows(now):
            self._since = now
        self._last = now

    def failed(self) -> None:
        """It did not."""
        self._last = -math.inf

    def holds(self, now: float) -> bool:
        """See the class. A sweep that begins now may get to its work when the store goes on after a gap: by
        this ``now`` no lease has expired of that."""
        return self._follows(now) and now - self._since >= STEADY_S

    def _follows(self, now: float) -> bool:
        return 0.0 <= now - self._last <= GAP_S


async def sweep(
    store: JobStore,
    blobs: BlobStore,
    mark: OwnerMark,
    look: Callable[[], None],
    *,
    period_s: float = PERIOD_S,
) -> None:
    """Sweep for ever; ``look`` is called when there may be new work."""
    remover, steady = Remover(store, blobs), Steady()
    removing = asyncio.get_running_loop().create_task(remover.run())
    try:
        while True:
            try:
                if await bury(store, mark):
                    look()
                if mark.sweep_due(period_s * DUE):
                    now = time.time()
                    unnamed = await store.sweep(now, SWEEP_LIMIT, leases=steady.holds(now))
                    # Told afterwards, so that one which hangs or fails in its sweep keeps nobody from it.
                    mark.swept()
                    if unnamed:
                        remover.take(unnamed)
                # This gateway's sweep, or that of another one in this moment.
                steady.answered(time.time())
            except HeadraceError as error:
                steady.failed()
                log.warning("not swept: %s", error)
            except Exception:
                steady.failed()
                log.exception("sweeping failed")
            await asyncio.sleep(period_s * random.uniform(0.8, 1.2))  # noqa: S311 - keeps gateways apart
    finally:
        removing.cancel()


async def bury(store: JobStore, mark: OwnerMark) -> int:
    """Queue again what dead gateways held; how many jobs."""
    jobs = 0
    for owner in mark.dead():
        count = await store.release_owner(owner, time.time())
        mark.buried(owner)
        jobs += count
        log.warning("gateway %s is gone: %d jobs of it are queued again", owner, count)
    return jobs
