"""Jobs in PostgreSQL, for gateways on several machines. The contract is `headrace.jobs.store.JobStore`.

Every write is one statement and so one transaction (`sql/postgres/queries.sql`); calls of one kind that come
together share it (`postgres_lanes`). Counts, attempts and webhook events follow from triggers, whatever
statement moved a job. After a lost connection a call is repeated within a budget, and finds what it did.
"""

from __future__ import annotations

import asyncio
import math
import secrets
import time
from collections.abc import Callable, Sequence
from typing import Any

from headrace.jobs import ends
from headrace.jobs.model import (
    HIGH_COUNTED,
    Attempt,
    Chunk,
    Counts,
    Delivery,
    Ended,
    Job,
    Lease,
    NewJob,
    Result,
    Undelivered,
    Waiting,
)
from headrace.jobs.postgres_link import POOL_SIZE, RETRY_BUDGET_S, Connection, Link, connect
from headrace.jobs.postgres_rows import Row, columns, delivery_of_row, job_of_row
from headrace.jobs.postgres_watch import Watch, WatchCallback
from headrace.jobs.postgres_writes import (
    Append,
    Finish,
    Move,
    Note,
    Release,
    Want,
    Writes,
    ended,
    timed_out,
    unsent,
)
from headrace.jobs.sql import load_queries
from headrace.jobs.state import JobState
from headrace.jobs.store import NOTED_S, TAKE_BYTES
from headrace.jobs.text import clean, clean_result

_Q = load_queries("postgres")
SLICE = 500
"""Jobs that one transaction of a sweep or purge touches."""
FOLD_LOCK = 0x666F6C64
FOLD_AT = 500
"""So many changes of one endpoint's counts are put together without waiting for a sweep."""
FOLD_LIMIT = 20_000
OFFER_AGAIN_S = 900.0
"""Longer than `headrace.jobs.blobs.FRESH_S`: a blob that was too fresh to be deleted is offered again."""
OFFERS = 2
DRAIN_S = 10.0
_LAST = (1 << 63) - 1


class PostgresStore:
    """One gateway's view of the store. Make it with `open_postgres`."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._watch = Watch(link, _Q["notify"])
        self.ended: Callable[[Ended], None] = lambda _: None
        self._writes = Writes(link, _Q, self._tell)
        self._folds: set[asyncio.Task[None]] = set()

    def _tell(self, job: Ended) -> None:
        self.ended(job)  # as it is set then

    async def close(self) -> None:
        """Store what is queued, for at most `DRAIN_S`, and close."""
        try:
            await asyncio.wait_for(asyncio.gather(self._writes.drain(), *self._folds), DRAIN_S)
        except TimeoutError:
            pass
        finally:
            await self._watch.close()
            await self._link.close()

    async def watch(self, callback: WatchCallback) -> None:
        """Hear at once what other gateways did, until the task is cancelled; see `postgres_watch.Watch`."""
        await self._watch.run(callback)

    # -- clients ------------------------------------------------------------------------------

    async def submit(self, new: NewJob, now: float) -> tuple[Job, bool]:
        """See `JobStore.submit`."""
        job, is_new = await self._writes.submit((new, now))
        if is_new:
            self._watch.tell("queued", new.project, new.endpoint)
        return job, is_new

    async def get(self, project: str, job_id: str) -> Job | None:
        """See `JobStore.get`."""
        row = await self._row("get", job_id, project)
        return None if row is None else job_of_row(row)

    async def has_key(self, project: str, endpoint: str, idempotency_key: str) -> bool:
        """See `JobStore.has_key`."""
        return bool(await self._value("has_key", project, endpoint, idempotency_key))

    async def list(
        self,
        project: str,
        *,
        endpoint: str | tuple[str, ...] | None = None,
        states: Sequence[JobState] = (),
        limit: int = 100,
        cursor: str | None = None,
    ) -> tuple[Sequence[Job], str | None]:
        """See `JobStore.list`."""
        before = int(cursor) if cursor and cursor.isascii() and cursor.isdigit() else _LAST
        before = min(before, _LAST)
        names = [endpoint] if isinstance(endpoint, str) else list(endpoint or ())
        if not names and not states:
            rows = await self._rows("list", project, before, limit + 1)
        else:
            rows = await self._rows("list_some", project, before, limit + 1, names, list(states))
        more = len(rows) > limit
        return [job_of_row(row) for row in rows[:limit]], str(rows[limit - 1]["seq"]) if more else None

    async def attempts(self, job_id: str) -> Sequence[Attempt]:
        """See `JobStore.attempts`."""
        return [Attempt(**dict(row)) for row in await self._rows("attempts", job_id)]

    async def chunks(
        self, job_id: str, *, attempt: int = 0, after: int = -1, limit: int = 1000
    ) -> Sequence[Chunk]:
        """See `JobStore.chunks`."""
        rows = await self._rows("chunks", job_id, attempt, after, limit)
        return [Chunk(attempt=row["attempt"], seq=row["seq"], data=row["data"]) for row in rows]

    async def take_chunks(
        self, job_id: str, *, limit: int = 1000, max_bytes: int = TAKE_BYTES
    ) -> Sequence[Chunk]:
        """See `JobStore.take_chunks`."""
        rows = await self._writes.take(job_id, limit, max_bytes, secrets.randbits(62))
        return [Chunk(attempt=row["attempt"], seq=row["seq"], data=row["data"]) for row in rows]

    async def cancel(self, project: str, job_id: str, now: float) -> Job | None:
        """See `JobStore.cancel`."""
        job = await self._move("cancel", project, job_id, now)
        if job is not None and job.state == "cancelled":
            self._watch.tell("final", project, job_id)
        return job

    async def abandon(self, waiter: str, now: float, *, free_key: bool) -> Job | None:
        """See `JobStore.abandon`."""
        job = await self._writes.abandon(waiter, now, free_key)
        if job is not None:
            self._watch.tell("final", job.project, job.id)
        return job

    async def announce_blob(self, blob: str, until: float) -> None:
        """See `JobStore.announce_blob`."""
        await self._changed("blob_later", blob, until)

    async def retry(self, project: str, job_id: str, now: float) -> Job | None:
        """See `JobStore.retry`."""
        job = await self._move("retry", project, job_id, now)
        if job is not None and job.state == "queued":
            self._watch.tell("queued", project, job.endpoint)
        return job

    async def purge(self, project: str, endpoint: str, now: float, *, owner: str | None = None) -> int:
        """See `JobStore.purge`."""
        noted = math.inf if owner is None else now - NOTED_S
        last = await self._value("purge_last", project, endpoint)
        removed = 0
        while last is not None:
            some = await self._changed("purge", project, endpoint, last, SLICE, noted, owner or "")
            removed += some
            if some < SLICE:
                break
        return removed

    async def counts(self, project: str, endpoint: str) -> Counts:
        """See `JobStore.counts`."""
        rows = await self._rows("counts", project, endpoint)
        found = {row["what"]: max(0, row["n"]) for row in rows}
        if sum(row["parts"] for row in rows) > FOLD_AT and not self._folds:
            task = asyncio.create_task(self._fold())
            self._folds.add(task)
            task.add_done_callback(self._folds.discard)
        oldest = await self._value("oldest", project, endpoint) if found.get("queued") else None
        if found.get("running"):
            unsent = min(found["running"], await self._value("unsent", project, endpoint))
            found["running"] -= unsent
            found["queued"] = found.get("queued", 0) + unsent
        return Counts(**found, oldest_queued_at=oldest)

    # -- workers ------------------------------------------------------------------------------

    async def waiting(self, now: float, limit: int = 10_000) -> Sequence[Waiting]:
        """See `JobStore.waiting`."""
        rows = await self._rows("waiting", limit, now, HIGH_COUNTED)
        return [
            Waiting(
                project=row["project"],
                endpoint=row["endpoint"],
                queued=row["n"],
                oldest_at=row["oldest"],
                best=row["best"],
                high=row["high"],
            )
            for row in rows
        ]

    async def lease(
        self, owner: str, project: str, endpoint: str, *, limit: int, now: float, until: float
    ) -> Sequence[Lease]:
        """See `JobStore.lease`."""
        if limit <= 0:
            return []
        return await self._writes.lease(
            Want(owner, project, endpoint, limit, now, until, secrets.randbits(62))
        )

    async def take_back(self, owner: str, calls: Sequence[tuple[str, str, float]], now: float) -> int:
        """See `JobStore.take_back`."""
        if not calls:
            return 0
        return await self._slices("unanswered", [owner, *columns(calls)], lambda row: unsent(row, now))

    async def heartbeat(self, owner: str, leases: Sequence[tuple[str, int]], until: float) -> Sequence[str]:
        """See `JobStore.heartbeat`."""
        if not leases:
            return []
        rows = await self._rows("heartbeat", owner, *columns(leases), until)
        held = {row["id"] for row in rows}
        return [job_id for job_id, _ in leases if job_id not in held]

    async def note(
        self,
        job_id: str,
        fence: int,
        *,
        instance: str = "",
        progress: bytes | None = None,
        sent_at: float | None = None,
    ) -> bool:
        """See `JobStore.note`."""
        return await self._writes.note(Note(job_id, fence, clean(instance), progress, sent_at))

    async def append(self, job_id: str, fence: int, first_seq: int, items: Sequence[bytes]) -> bool:
        """See `JobStore.append`."""
        stored = await self._writes.append(Append(job_id, fence, first_seq, items, time.time()))
        if stored:
            self._watch.tell("chunks", "", job_id)
        return stored

    async def finish(self, job_id: str, fence: int, result: Result, now: float) -> bool:
        """See `JobStore.finish`."""
        stored = await self._writes.finish(Finish(job_id, fence, clean_result(result), now))
        if stored:
            self._watch.tell("final", "", job_id)
        return stored

    async def release(
        self,
        job_id: str,
        fence: int,
        now: float,
        *,
        reason: str,
        lost: bool,
        delay_s: float = 0.0,
        unsent: bool = False,
    ) -> bool:
        """See `JobStore.release`."""
        return await self._writes.release(Release(job_id, fence, clean(reason), lost, now, delay_s, unsent))

    async def release_owner(self, owner: str, now: float) -> int:
        """See `JobStore.release_owner`."""
        await self._changed("waiters_gone", owner)
        reason = ends.gone_worker(owner)
        return await self._slices("owned", [owner], lambda row: ended(row, now, reason, lost=True))

    async def dropped(self) -> int:
        """See `JobStore.dropped`."""
        return int(await self._value("dropped"))

    # -- time ---------------------------------------------------------------------------------

    async def sweep(self, now: float, limit: int = 1000, *, leases: bool = True) -> Sequence[str]:
        """See `JobStore.sweep`."""
        await self._slices("past_deadline", [now], lambda row: timed_out(row, now), limit)
        if leases:
            await self._slices(
                "silent",
                [now],
                lambda row: ended(row, now, ends.silent_worker(row["owner"]), lost=True),
                limit,
            )
        await self._changed("remove", now, limit)
        await self._changed("named_blobs", now, OFFERS, limit)
        blobs = await self._rows("loose_blobs", now, now + OFFER_AGAIN_S, limit)
        await self._fold()
        return [row["blob"] for row in blobs]

    # -- webhooks -----------------------------------------------------------------------------

    async def due(self, owner: str, now: float, until: float, limit: int = 100) -> Sequence[Delivery]:
        """See `JobStore.due`."""
        found = [delivery_of_row(row) for row in await self._rows("due", now, until, limit)]
        return sorted(found, key=lambda delivery: (delivery.created_at, delivery.id))

    async def settle(
        self, delivery_id: str, *, delivered: bool, next_at: float | None, detail: str = ""
    ) -> None:
        """See `JobStore.settle`."""
        if delivered:
            await self._changed("delivered", delivery_id)
            return
        await self._changed("undelivered", delivery_id, next_at, clean(detail[:1000]))
        if next_at is None:
            await self._changed("given_up", delivery_id)

    async def undelivered(self, job_id: str) -> Sequence[Undelivered]:
        """See `JobStore.undelivered`."""
        return [Undelivered(**dict(row)) for row in await self._rows("job_deliveries", job_id)]

    # -- one statement ------------------------------------------------------------------------

    async def _rows(self, name: str, *args: Any) -> Sequence[Row]:
        async def work(connection: Connection, _: bool) -> Sequence[Row]:
            rows: Sequence[Row] = await connection.fetch(_Q[name], *args)
            return rows

        return await self._link.run(work)

    async def _row(self, name: str, *args: Any) -> Row | None:
        rows = await self._rows(name, *args)
        return rows[0] if rows else None

    async def _value(self, name: str, *args: Any) -> Any:
        row = await self._row(name, *args)
        return None if row is None else next(iter(row.values()))

    async def _changed(self, name: str, *args: Any) -> int:
        async def work(connection: Connection, _: bool) -> int:
            status: str = await connection.execute(_Q[name], *args)
            return int(status.rpartition(" ")[2])

        return await self._link.run(work)

    async def _move(self, name: str, project: str, job_id: str, now: float) -> Job | None:
        """Make a move if it is legal, then give the job as it is."""
        await self._changed(name, job_id, project, now)
        return await self.get(project, job_id)

    async def _slices(
        self, lock: str, args: Sequence[Any], decide: Callable[[Row], Move], limit: int | None = None
    ) -> int:
        """Move what a query finds, in slices, so that no transaction is long; how many."""
        done = 0
        while limit is None or done < limit:
            some = SLICE if limit is None else min(SLICE, limit - done)
            moved = await self._writes.move(lock, [*args, some], decide)
            done += len(moved)
            if len(moved) < some:
                break
        return done

    async def _fold(self) -> None:
        await self._changed("fold", FOLD_LOCK, FOLD_LIMIT)


async def open_postgres(
    dsn: str, *, platform: str = "", budget_s: float = RETRY_BUDGET_S, pool_size: int = POOL_SIZE
) -> PostgresStore:
    """Connect to ``postgresql://user:password@host:port/database?sslmode=...``; bring the schema up to date.

    Raises `SettingsError` (also for the database of another ``platform``), `DataDirError` (a newer schema),
    `StoreUnavailable`.
    """
    return PostgresStore(await connect(dsn, platform=platform, budget_s=budget_s, pool_size=pool_size))
