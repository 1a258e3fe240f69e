"""Keeps a gateway's leases, and tells the store which instance has a job, and since when.

A lease alone says nothing of that: a leased job may wait here for a slot. Most jobs end before it is worth a
write (`NOTE_AFTER_S`); their result says when they began. Where it decides whether the job may be sent again,
or whether it may still be sent at all, it is written before the first byte goes out (`Run.marks_first`).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

from headrace.errors import RequestError
from headrace.gateway.jobs.lanes import Lane, Run
from headrace.jobs.store import JobStore, StoreUnavailable

log = logging.getLogger("headrace.gateway.jobs")

LEASE_S = 30.0
HEARTBEAT_S = 5.0
NOTE_AFTER_S = 0.25
"""A job that an instance has for so long is known to the store as running."""

TAKE_BACK_S = 10.0
"""After a lease call without an answer the store is asked for what it took until two questions so far apart
are answered: the statement may still run when the first one is, for as long as statements may."""
MAX_UNANSWERED = 1000
"""So many calls without an answer are remembered; what others took runs when its lease is over."""


class Leases:
    """See the module. ``void`` ends a run whose fence does not hold any more, ``moved`` hears of runs that
    went to an instance, ``give_back`` of those that have waited for a slot for too long."""

    def __init__(  # noqa: PLR0917
        self,
        store: JobStore,
        owner: str,
        spawn: Callable[[Coroutine[Any, Any, None]], None],
        void: Callable[[Run], None],
        moved: Callable[[Run], None],
        give_back: Callable[[Run], None],
    ) -> None:
        self._store = store
        self._owner = owner
        self._spawn = spawn
        self.void = void
        self.give_back = give_back
        self._moved = moved
        self._unanswered: dict[tuple[str, str, float], float] = {}
        """Lease calls -> when the store was first asked for what they took (monotonic; 0: not yet)."""

    async def beat(self, runs: Callable[[], Iterable[Run]], look: Callable[[], None]) -> None:
        """Prolong all leases, for ever; ``look`` when jobs are queued again by that."""
        while True:
            await asyncio.sleep(HEARTBEAT_S)
            try:
                await self.prolong(runs())
                if self._unanswered and await self._take_back():
                    look()
            except StoreUnavailable as error:
                log.warning("leases are not prolonged: %s", error)
            except Exception:
                log.exception("prolonging leases failed")

    async def prolong(self, runs: Iterable[Run]) -> None:
        """Prolong some leases, and void those that are not ours any more. Also of results that wait for their
        store: the job would run again meanwhile, and the result come too late."""
        by_id = {run.lease.job.id: run for run in runs if not run.void}
        if not by_id:
            return
        keys = [run.key for run in by_id.values()]
        for job_id in await self._store.heartbeat(self._owner, keys, time.time() + LEASE_S):
            run = by_id.pop(job_id)
            if not run.void and not run.settling:
                log.info("job %s is not ours any more", job_id)
                self.void(run)
        for run in by_id.values():
            if run.sent_at and run.instance and run.noted != run.instance and not run.settling:
                await self.mark(run, run.instance)

    def unanswered(self, lane: Lane, at: float) -> None:
        """A lease call of then failed. The store may have committed it nevertheless, or be about to: those
        jobs are ours, and nobody here knows."""
        if len(self._unanswered) < MAX_UNANSWERED:
            self._unanswered[lane.project, lane.stored_as, at] = 0.0

    async def _take_back(self) -> int:
        """Queue again what failed calls took. Whatever another call leases meanwhile is not theirs."""
        asked, calls = time.monotonic(), list(self._unanswered)
        count = await self._store.take_back(self._owner, calls, time.time())
        for call in calls:
            first = self._unanswered[call] = self._unanswered[call] or asked
            if asked - first >= TAKE_BACK_S:
                del self._unanswered[call]
        if count:
            log.warning("%d jobs were leased by calls that had no answer: they are queued again", count)
        return count

    def sent(self, run: Run) -> None:
        """An instance gets it now."""
        run.sent_at = time.time()
        if not run.marked:
            asyncio.get_running_loop().call_later(NOTE_AFTER_S, self._due, run)
        self._moved(run)

    def waits(self, run: Run) -> None:
        """No instance has it now: it was refused, or lost its instance."""
        run.sent_at = 0.0
        if run.marked and not run.accepted:
            run.marked = False
            run.noted = ""
            self._take_mark(run)

    async def mark(self, run: Run, instance: str) -> bool:
        """Write down that the instance has it, or gets it next. False: the fence is void."""
        job_id, fence = run.key
        while run.unmarking is not None:
            # The later one of two notes has to be stored last.
            await run.unmarking.wait()
        if not await self._store.note(job_id, fence, instance=instance, sent_at=run.sent_at or time.time()):
            return False
        if run.queued and not run.accepted:
            # Refused meanwhile: no instance has it after all.
            self._take_mark(run)
        else:
            run.marked, run.noted = True, instance
        return True

    def _due(self, run: Run) -> None:
        if run.sent_at and not (run.marked or run.settling or run.void):
            self._spawn(self._note(run))

    async def _note(self, run: Run) -> None:
        try:
            if not await self.mark(run, run.instance) and not run.settling and not run.void:
                self.void(run)
        except RequestError as error:
            # The next heartbeat tells it.
            log.info("job %s is not noted as running: %s", run.lease.job.id, error)

    def _take_mark(self, run: Run) -> None:
        if run.unmarking is None:
            run.unmarking = asyncio.Event()
            self._spawn(self._unmark(run, run.unmarking))

    async def _unmark(self, run: Run, done: asyncio.Event) -> None:
        job_id, fence = run.key
        try:
            await self._store.note(job_id, fence, sent_at=0.0)
        except RequestError as error:
            log.info("job %s stays noted as sent: %s", job_id, error)
        finally:
            run.unmarking = None
            done.set()
