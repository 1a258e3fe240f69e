"""Jobs in SQLite: one file that several processes may share; in each one writer thread with group commit."""

from __future__ import annotations

import asyncio
import heapq
import math
import sqlite3
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from headrace.errors import BadRequest
from headrace.jobs import sqlite_moves as moves
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
from headrace.jobs.sql import load_migrations
from headrace.jobs.sqlite_moves import Q
from headrace.jobs.sqlite_rows import insert_row, job_of, new_job, readable
from headrace.jobs.state import JobState
from headrace.jobs.store import NOTED_S, TAKE_BYTES, IdempotencyConflict, StoreUnavailable
from headrace.jobs.text import clean, clean_result
from headrace.sqlite_writer import Database, StoreBusy, open_database

T = TypeVar("T")
READERS = 2
SLICE = 100
"""Jobs that one transaction of a sweep or purge touches: submits wait behind it."""
_NEWEST = 1 << 62


class SqliteStore:
    """`JobStore` in one SQLite file. Make it with `open_sqlite`."""

    def __init__(self, database: Database, path: Path) -> None:
        self._db = database
        self._path = path
        self.ended: Callable[[Ended], None] = lambda _: None

    async def close(self) -> None:
        """See `JobStore.close`."""
        await self._db.close()

    # -- clients ------------------------------------------------------------------------------

    async def submit(self, new: NewJob, now: float) -> tuple[Job, bool]:
        """See `JobStore.submit`."""
        row = insert_row(new, now)
        data = new.input.data
        found = await self._write(lambda db: moves.submit(db, row, data))
        if found is None:
            return new_job(new, now), True
        if (found.project, found.endpoint) != (new.project, new.endpoint):
            raise IdempotencyConflict(f"the job id {new.id} is taken.", hint="Choose another one.")
        if found.fingerprint != new.fingerprint:
            raise IdempotencyConflict(
                f"the same key was used for job {found.id}, with another request.",
                hint="Use a new Idempotency-Key for a new request.",
            )
        return found, False

    async def get(self, project: str, job_id: str) -> Job | None:
        """See `JobStore.get`."""
        args = {"project": project, "id": job_id}
        row = await self._read(lambda db: db.execute(Q["job_get"], args).fetchone())
        return None if row is None else job_of(row)

    async def has_key(self, project: str, endpoint: str, idempotency_key: str) -> bool:
        """See `JobStore.has_key`."""
        args = {"project": project, "endpoint": endpoint, "idempotency_key": idempotency_key}
        return await self._read(lambda db: db.execute(Q["job_has_key"], args).fetchone()) is not None

    async def list(
        self,
        project: str,
        *,
        endpoint: str | tuple[str, ...] | None = None,
        states: Sequence[JobState] = (),
        limit: int = 100,
        cursor: str | None = None,
    ) -> tuple[Sequence[Job], str | None]:
        """See `JobStore.list`. A cursor that is not one of ours starts from the newest."""
        before = int(cursor) if cursor and cursor.isascii() and cursor.isdigit() else _NEWEST
        args = {"project": project, "before": min(before, _NEWEST), "limit": limit + 1}

        def run(db: sqlite3.Connection) -> Sequence[Any]:
            names = (endpoint,) if isinstance(endpoint, str) else endpoint or ()
            if not names and not states:
                return db.execute(Q["list_project"], args).fetchall()
            groups = []
            for name, state in db.execute(Q["list_groups"], args).fetchall():
                sent = _sent(state, states)
                if (not names or name in names) and (sent is not None or not states or state in states):
                    which = args | {"endpoint": name, "state": state, "sent": sent}
                    groups.append(db.execute(Q["list_state"], which).fetchall())
            return list(heapq.merge(*groups, key=lambda row: -row[0]))[: limit + 1]

        rows = await self._read(run)
        following = str(rows[limit - 1][0]) if len(rows) > limit else None
        return [job for row in rows[:limit] if (job := readable(row)) is not None], following

    async def attempts(self, job_id: str) -> Sequence[Attempt]:
        """See `JobStore.attempts`."""
        rows = await self._read(lambda db: db.execute(Q["attempts"], {"id": job_id}).fetchall())
        return [
            Attempt(number=n, owner=o, started_at=s, ended_at=e, instance=i, outcome=c, detail=d)
            for n, o, s, e, i, c, d in rows
        ]

    async def chunks(
        self, job_id: str, *, attempt: int = 0, after: int = -1, limit: int = 1000
    ) -> Sequence[Chunk]:
        """See `JobStore.chunks`."""
        args = {"id": job_id, "attempt": attempt, "after": after, "limit": limit}
        rows = await self._read(lambda db: db.execute(Q["chunks"], args).fetchall())
        return [Chunk(attempt=a, seq=s, data=d) for a, s, d in rows]

    async def take_chunks(
        self, job_id: str, *, limit: int = 1000, max_bytes: int = TAKE_BYTES
    ) -> Sequence[Chunk]:
        """See `JobStore.take_chunks`."""
        return await self._write(lambda db: moves.take_chunks(db, job_id, limit, max_bytes))

    async def cancel(self, project: str, job_id: str, now: float) -> Job | None:
        """See `JobStore.cancel`."""
        return await self._write(lambda db: moves.cancel(db, project, job_id, now))

    async def abandon(self, waiter: str, now: float, *, free_key: bool) -> Job | None:
        """See `JobStore.abandon`."""
        return await self._write(lambda db: moves.abandon(db, waiter, now, free_key=free_key))

    async def announce_blob(self, blob: str, until: float) -> None:
        """See `JobStore.announce_blob`."""
        await self._write(lambda db: db.execute(Q["orphan_later"], {"blob": blob, "next_at": until}).rowcount)

    async def retry(self, project: str, job_id: str, now: float) -> Job | None:
        """See `JobStore.retry`."""
        return await self._write(lambda db: moves.retry(db, project, job_id, now))

    async def purge(self, project: str, endpoint: str, now: float, *, owner: str | None = None) -> int:
        """See `JobStore.purge`."""
        noted = math.inf if owner is None else now - NOTED_S
        args = {"project": project, "endpoint": endpoint, "owner": owner, "noted": noted}
        last = await self._read(lambda db: db.execute(Q["purge_last"], args).fetchone()[0])
        if last is None:
            return 0
        some = args | {"last": last, "limit": SLICE}
        return await self._repeat(lambda db: (db.execute(Q["purge_some"], some).rowcount, ()))

    async def counts(self, project: str, endpoint: str) -> Counts:
        """See `JobStore.counts`."""
        args = {"project": project, "endpoint": endpoint}

        def run(db: sqlite3.Connection) -> Counts:
            numbers = dict(db.execute(Q["counts"], args).fetchall())
            if numbers.get("running") and (unsent := db.execute(Q["unsent"], args).fetchone()[0]):
                numbers["running"] -= unsent
                numbers["queued"] = numbers.get("queued", 0) + unsent
            oldest = db.execute(Q["oldest_queued"], args).fetchone() if numbers.get("queued") else None
            return Counts(**numbers, oldest_queued_at=oldest[0] if oldest else None)

        return await self._read(run)

    # -- workers ------------------------------------------------------------------------------

    async def waiting(self, now: float, limit: int = 10_000) -> Sequence[Waiting]:
        """See `JobStore.waiting`."""
        at = {"now": now, "counted": HIGH_COUNTED}

        def run(db: sqlite3.Connection) -> Sequence[Waiting]:
            found = []
            for project, endpoint, queued in db.execute(Q["waiting"], {"limit": limit}).fetchall():
                who = {"project": project, "endpoint": endpoint}
                oldest, best, high = db.execute(Q["waiting_of"], who | at).fetchone()
                if oldest is not None:
                    found.append(Waiting(**who, queued=queued, oldest_at=oldest, best=best, high=high))
            return found

        return await self._read(run)

    async def lease(
        self, owner: str, project: str, endpoint: str, *, limit: int, now: float, until: float
    ) -> Sequence[Lease]:
        """See `JobStore.lease`."""
        return await self._write(
            lambda db: moves.lease(db, owner, project, endpoint, limit=max(0, limit), now=now, until=until)
        )

    async def take_back(self, owner: str, calls: Sequence[tuple[str, str, float]], now: float) -> int:
        """See `JobStore.take_back`."""
        which = tuple(calls)
        return await self._write(lambda db: moves.take_back(db, owner, which, now)) if which else 0

    async def heartbeat(self, owner: str, leases: Sequence[tuple[str, int]], until: float) -> Sequence[str]:
        """See `JobStore.heartbeat`."""
        held = tuple(leases)
        return await self._write(lambda db: moves.heartbeat(db, owner, held, until)) if held else ()

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
        what: dict[str, Any] = {"instance": clean(instance), "progress": progress, "sent_at": sent_at}
        return await self._write(lambda db: moves.note(db, job_id, fence, **what))

    async def append(self, job_id: str, fence: int, first_seq: int, items: Sequence[bytes]) -> bool:
        """See `JobStore.append`."""
        now, kept = time.time(), tuple(items)
        return await self._write(
            lambda db: moves.append(db, job_id, fence, first_seq=first_seq, items=kept, now=now)
        )

    async def finish(self, job_id: str, fence: int, result: Result, now: float) -> bool:
        """See `JobStore.finish`."""
        result = clean_result(result)
        row = moves.finish_row(job_id, fence, result, now)
        return await self._write(lambda db: moves.finish(db, job_id, fence, row, result))

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
        how: dict[str, Any] = {"reason": clean(reason), "lost": lost, "delay_s": delay_s, "unsent": unsent}
        return await self._ending(lambda db: moves.release(db, job_id, fence, now, **how))

    async def release_owner(self, owner: str, now: float) -> int:
        """See `JobStore.release_owner`."""
        return await self._repeat(lambda db: moves.release_owned(db, owner, now, SLICE))

    async def dropped(self) -> int:
        """See `JobStore.dropped`."""
        row = await self._read(lambda db: db.execute(Q["meta_get"], {"key": "dropped"}).fetchone())
        return 0 if row is None else int(row[0])

    # -- time ---------------------------------------------------------------------------------

    async def sweep(self, now: float, limit: int = 1000, *, leases: bool = True) -> Sequence[str]:
        """See `JobStore.sweep`. ``limit`` holds for each kind of work."""
        await self._repeat(lambda db: moves.sweep_deadlines(db, now, SLICE), limit)
        if leases:
            await self._repeat(lambda db: moves.sweep_leases(db, now, SLICE), limit)
        await self._repeat(lambda db: moves.sweep_expired(db, now, SLICE), limit)
        blobs: list[str] = []
        for _ in range(-(-limit // SLICE)):
            found, looked_at = await self._write(lambda db: moves.sweep_orphans(db, now, SLICE))
            blobs += found
            if looked_at < SLICE:
                break
        return blobs

    # -- webhooks -----------------------------------------------------------------------------

    async def due(self, owner: str, now: float, until: float, limit: int = 100) -> Sequence[Delivery]:
        """See `JobStore.due`."""
        args = {"now": now, "until": until, "limit": limit}
        rows = await self._write(lambda db: db.execute(Q["deliveries_due"], args).fetchall())
        found = [
            Delivery(id=i, job=j, project=p, event=e, url=u, body=b, tries=t, created_at=c)
            for i, j, p, e, u, b, t, c in rows
        ]
        return sorted(found, key=lambda delivery: (delivery.created_at, delivery.id))

    async def settle(
        self, delivery_id: str, *, delivered: bool, next_at: float | None, detail: str = ""
    ) -> None:
        """See `JobStore.settle`."""
        args = {"id": delivery_id, "next_at": next_at, "detail": clean(detail[:1000])}

        def run(db: sqlite3.Connection) -> None:
            if delivered:
                db.execute(Q["delivery_done"], args)
                return
            db.execute(Q["delivery_next"], args)
            if next_at is None:
                db.execute(Q["delivery_given_up"], args)

        await self._write(run)

    async def undelivered(self, job_id: str) -> Sequence[Undelivered]:
        """See `JobStore.undelivered`."""
        rows = await self._read(lambda db: db.execute(Q["job_deliveries"], {"job": job_id}).fetchall())
        return [Undelivered(event=e, tries=t, created_at=c, next_at=n, detail=d) for e, t, c, n, d in rows]

    # -- the database -------------------------------------------------------------------------

    async def _ending(self, fn: Callable[[sqlite3.Connection], tuple[T, Sequence[Ended]]]) -> T:
        """Write, and tell of the jobs that came to an end by it."""
        result, ended = await self._write(fn)
        for job in ended:
            self.ended(job)
        return result

    async def _repeat(
        self, fn: Callable[[sqlite3.Connection], tuple[int, Sequence[Ended]]], limit: int | None = None
    ) -> int:
        """In slices until less than one is done, so that nobody waits for all of it; how many in all."""
        done = 0
        while limit is None or done < limit:
            some = await self._ending(fn)
            done += some
            if some < SLICE:
                break
        return done

    async def _write(self, fn: Callable[[sqlite3.Connection], T]) -> T:
        try:
            return await self._db.write(fn)
        except (sqlite3.DatabaseError, StoreBusy, UnicodeError) as error:
            raise self._told(error) from error

    async def _read(self, fn: Callable[[sqlite3.Connection], T]) -> T:
        try:
            return await self._db.read(fn)
        except (sqlite3.DatabaseError, StoreBusy, UnicodeError) as error:
            raise self._told(error) from error

    def _told(self, error: Exception) -> Exception:
        """The error as callers see it; our own mistakes stay what they are."""
        if isinstance(error, UnicodeError | sqlite3.DataError):
            return BadRequest("the job store cannot keep this text.", hint="It must be valid Unicode.")
        if isinstance(error, sqlite3.ProgrammingError | sqlite3.IntegrityError | sqlite3.NotSupportedError):
            return error
        if isinstance(error, StoreBusy):
            return StoreUnavailable(error.message, hint=error.hint)
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            hint = "Stop the platform, and put back a copy of the file or move it away to start empty."
            return StoreUnavailable(f"{self._path} is damaged ({error}).", hint=hint)
        return StoreUnavailable(f"{self._path}: {error}.", hint="Check the free space, then try again.")


def _sent(state: JobState, states: Sequence[JobState]) -> int | None:
    """Of running jobs those that instances have are listed (1), those that wait in a gateway (0), or all."""
    if state != "running" or ("queued" in states) == ("running" in states):
        return None
    return int("running" in states)


async def open_sqlite(path: Path) -> SqliteStore:
    """Open or make the file. Raises `DataDirError`."""
    migrations = load_migrations("sqlite")
    return SqliteStore(await asyncio.to_thread(open_database, path, migrations, readers=READERS), path)
