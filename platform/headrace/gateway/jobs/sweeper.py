"""Every second: leases of the dead and expired ones are queued again, what is past its time goes, and so
do blobs that nothing names.

Every gateway may sweep (a sweep is made of transactions), and does when no other one has just done so.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable

from headrace.errors import HeadraceError
from headrace.gateway.jobs.owners import OwnerMark
from headrace.gateway.jobs.remover import Remover
from headrace.jobs.blobs import BlobStore
from headrace.jobs.store import JobStore

log = logging.getLogger("headrace.gateway.jobs")

PERIOD_S = 1.0
SWEEP_LIMIT = 1000
DUE = 0.75
"""Share of the period after which a sweep is due again: less than the shortest pause."""


async def sweep(
    store: JobStore,
    blobs: BlobStore,
    mark: OwnerMark,
    look: Callable[[], None],
    *,
    period_s: float = PERIOD_S,
) -> None:
    """Sweep for ever; ``look`` is called when there may be new work."""
    remover = Remover(store, blobs)
    removing = asyncio.get_running_loop().create_task(remover.run())
    try:
        while True:
            try:
                if await bury(store, mark):
                    look()
                if mark.sweep_due(period_s * DUE):
                    unnamed = await store.sweep(time.time(), SWEEP_LIMIT)
                    # Told afterwards, so that one which hangs or fails in its sweep keeps nobody from it.
                    mark.swept()
                    if unnamed:
                        remover.take(unnamed)
            except HeadraceError as error:
                log.warning("not swept: %s", error)
            except Exception:
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
