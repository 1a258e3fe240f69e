"""The writes that come often: each kind is a lane, so that calls which come together are one transaction."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from headrace.jobs import ends
from headrace.jobs.model import Ended, Job, Lease, NewJob, Result
from headrace.jobs.postgres_lanes import Lane
from headrace.jobs.postgres_link import STATEMENT_S, Connection, Link
from headrace.jobs.postgres_rows import (
    Row,
    columns,
    job_of_new,
    job_of_row,
    lease_of_row,
    result_row,
    submit_row,
)
from headrace.jobs.state import FINAL, JobState
from headrace.jobs.store import IdempotencyConflict, StoreUnavailable

SUBMIT_TRIES = 3
BEGIN_S = STATEMENT_S / 2
"""So late after it was sent a submission is still stored: before its gateway gives it up."""


class Finish(NamedTuple):
    """An argument of the lane ``finish``."""

    job: str
    fence: int
    result: Result
    now: float


class Want(NamedTuple):
    """An argument of the lane ``lease``; ``call`` names it should its answer be lost."""

    owner: str
    project: str
    endpoint: str
    limit: int
    now: float
    until: float
    call: int


class Note(NamedTuple):
    """An argument of the lane ``note``."""

    job: str
    fence: int
    instance: str
    progress: bytes | None
    sent_at: float | None


class Append(NamedTuple):
    """An argument of the lane ``append``."""

    job: str
    fence: int
    first_seq: int
    items: Sequence[bytes]
    now: float


class Release(NamedTuple):
    """An argument of the lane ``release``."""

    job: str
    fence: int
    reason: str
    lost: bool
    now: float
    delay_s: float
    unsent: bool


class Move(NamedTuple):
    """Arguments of the query ``move`` for one job."""

    job: str
    state: JobState
    now: float
    delay_s: float
    reason: str
    lost: int
    error: bytes | None
    unsent: int = 0


class Writes:
    """The lanes; each is called with one item and gives its result after the commit."""

    def __init__(self, link: Link, queries: Mapping[str, str], ended: Callable[[Ended], None]) -> None:
        self._link = link
        self._tell = ended
        self._ahead = 0.0
        """Seconds by which the server's clock is ahead of ours, as far as we know."""
        self._q = queries
        self.submit = Lane(self._submit, size=lambda item: len(item[0].input.data))
        self.lease = Lane(self._lease, key=lambda item: (item.project, item.endpoint))
        self.finish = Lane(self._finish, key=lambda item: item.job, size=_output_bytes)
        self.note = Lane(self._note, key=lambda item: item.job)
        self.append = Lane(
            self._append, key=lambda item: item.job, size=lambda item: sum(map(len, item.items))
        )
        self.release = Lane(self._release, key=lambda item: item.job)

    async def drain(self) -> None:
        """Wait until nothing is queued or under way."""
        lanes = (self.submit, self.lease, self.finish, self.note, self.append, self.release)
        await asyncio.gather(*(lane.drain() for lane in lanes))

    async def _submit(self, items: Sequence[tuple[NewJob, float]]) -> Sequence[tuple[Job, bool] | Exception]:
        # Those with a key last and in its order: two gateways that store the same keys cannot deadlock.
        order = sorted(items, key=lambda item: item[0].idempotency_key or "")
        of_key: Counter[tuple[str, ...]] = Counter()
        rows = []
        for new, now in order:
            key = (new.project, new.endpoint, new.priority, new.key_id)
            of_key[key] += 1
            rows.append(submit_row(new, now, of_key[key]))
        arrays = columns(rows)

        async def work(connection: Connection, repeated: bool) -> Sequence[tuple[Job, bool] | Exception]:
            stored = await self._insert(connection, arrays)
            results: list[tuple[Job, bool] | Exception] = []
            for new, now in items:
                if new.id in stored:
                    stored.discard(new.id)  # a second one with that id is another one
                    results.append((job_of_new(new, now), True))
                else:
                    results.append(await self._known(connection, new, now, repeated))
            return results

        return await self._link.run(work)

    async def _insert(self, connection: Connection, arrays: Sequence[Sequence[Any]]) -> set[str]:
        """Store jobs; the ids of those that were not there.

        A statement that is sent to a server which hangs is carried out when it goes on, and nobody waits for
        it then: so it says by when. A quick answer that it came too late means that we knew the clock there
        badly, and it has told what it is now; a slow one is as a lost connection, which the link's budget
        bounds.
        """
        for _ in range(SUBMIT_TRIES):
            sent = time.time()
            until = sent + self._ahead + BEGIN_S
            rows = await connection.fetch(self._q["submit"], *arrays, until)
            at: float = next(row["at"] for row in rows if row["at"] is not None)
            # The way of the answer makes it too little: the most that was seen is best, unless one was set.
            now = time.time()
            ahead = at - now
            if at >= until or not 0.0 <= self._ahead - ahead <= BEGIN_S:
                self._ahead = ahead
            if at < until:
                return {row["id"] for row in rows if row["at"] is None}
            if now - sent > BEGIN_S:
                raise TimeoutError
        raise StoreUnavailable("it takes too long to store a job.", hint="Try again in a moment.")

    async def _known(
        self, connection: Connection, new: NewJob, now: float, repeated: bool
    ) -> tuple[Job, bool] | Exception:
        """What stood in the way of a new job: its key, or its id; or what removed that meanwhile."""
        for _ in range(SUBMIT_TRIES):
            rows = await connection.fetch(
                self._q["known"], new.id, new.project, new.endpoint, new.idempotency_key
            )
            if rows:
                same = _same(new, now, rows[0], repeated)
                if new.waiter is None or isinstance(same, Exception) or same[0].state in FINAL:
                    return same
                await connection.execute(self._q["wait_for"], same[0].id, new.waiter[1], new.waiter[0])
                # It may have been abandoned before: then it is final, and its key may be free.
                if (row := await connection.fetchrow(self._q["get"], same[0].id, new.project)) is not None:
                    job = job_of_row(row)
                    if job.reason != ends.ABANDONED:
                        return job, same[1]
                continue
            if await self._insert(connection, columns([submit_row(new, now)])):
                return job_of_new(new, now), True
        return StoreUnavailable("the job's id or key comes and goes.", hint="Try again in a moment.")

    async def _lease(self, items: Sequence[Want]) -> Sequence[Sequence[Lease]]:
        async def work(connection: Connection, repeated: bool) -> Sequence[Row]:
            rows: list[Row] = []
            wanted = items
            if repeated:
                owners, calls = [item.owner for item in items], [item.call for item in items]
                rows += await connection.fetch(self._q["leased"], owners, calls)
                taken = {row["lease_call"] for row in rows}
                wanted = [item for item in items if item.call not in taken]
            if wanted:
                rows += await connection.fetch(self._q["lease"], *columns(wanted))
            return rows

        by_call: dict[int, list[Row]] = {item.call: [] for item in items}
        for row in await self._link.run(work):
            by_call[row["lease_call"]].append(row)
        return [[lease_of_row(row) for row in sorted(by_call[item.call], key=_place)] for item in items]

    async def _finish(self, items: Sequence[Finish]) -> Sequence[bool]:
        rows = [(item.job, item.fence, *result_row(item.result), item.now) for item in items]
        return await self._fenced("finish", items, rows, say_repeated=True)

    async def _note(self, items: Sequence[Note]) -> Sequence[bool]:
        return await self._fenced("note", items, items)

    async def _append(self, items: Sequence[Append]) -> Sequence[bool]:
        heads = [(item.job, item.fence, item.first_seq, item.now) for item in items]
        chunks = [
            (item.job, seq, data) for item in items for seq, data in enumerate(item.items, item.first_seq)
        ]
        return await self._fenced("append", items, heads, *(columns(chunks) or ([], [], [])))

    async def _release(self, items: Sequence[Release]) -> Sequence[bool]:
        by_id = {item.job: item for item in items}

        def move(row: Row) -> Move:
            item = by_id[row["id"]]
            if item.unsent:
                return unsent(row, item.now, item.reason, item.delay_s)
            return ended(row, item.now, item.reason, lost=item.lost, delay_s=item.delay_s)

        held = await self.move("held", columns([(item.job, item.fence) for item in items]), move)
        return [item.job in held for item in items]

    async def move(self, lock: str, args: Sequence[Any], decide: Callable[[Row], Move]) -> set[str]:
        """Lock jobs by a query, decide for each, and move them, in one transaction; the ids."""

        async def work(connection: Connection, _: bool) -> Sequence[tuple[Row, Move]]:
            async with connection.transaction():
                moves = [(row, decide(row)) for row in await connection.fetch(self._q[lock], *args)]
                if moves:
                    await connection.execute(self._q["move"], *columns([move for _, move in moves]))
            return moves

        moves = await self._link.run(work)
        for row, move in moves:
            if move.state in FINAL:
                self._tell(Ended(row["project"], row["endpoint"], move.state, row["created_at"]))
        return {move.job for _, move in moves}

    async def abandon(self, waiter: str, now: float, free_key: bool) -> Job | None:
        """See `JobStore.abandon`."""

        async def work(connection: Connection, _: bool) -> Row | None:
            async with connection.transaction():
                gone = await connection.fetchrow(self._q["waiter_gone"], waiter)
                if gone is None:
                    return None
                await connection.execute(self._q["waited_for"], gone["job"])
                args = gone["job"], now, free_key, ends.ABANDONED
                row: Row | None = await connection.fetchrow(self._q["abandon"], *args)
                return row

        row = await self._link.run(work)
        return None if row is None else job_of_row(row)

    async def take(self, job_id: str, limit: int, max_bytes: int, call: int) -> Sequence[Row]:
        """Chunks behind the cursor, which moves; a call whose answer was lost gives the same ones again."""

        async def work(connection: Connection, repeated: bool) -> Sequence[Row]:
            async with connection.transaction():
                at = await connection.fetchrow(self._q["cursor"], job_id)
                if at is None:
                    return ()
                place = at["attempt"], at["seq"]
                if repeated and at["call"] == call:
                    place = at["from_attempt"], at["from_seq"]
                args = job_id, *place, limit, call, max_bytes
                rows: Sequence[Row] = await connection.fetch(self._q["take"], *args)
                return rows

        return await self._link.run(work)

    async def _fenced(
        self,
        name: str,
        items: Sequence[Finish | Note | Append],
        rows: Sequence[Sequence[Any]],
        *more: Any,
        say_repeated: bool = False,
    ) -> Sequence[bool]:
        """A statement that gives the ids of the jobs whose fence holds: for each item, whether it does."""
        arrays = columns(rows)

        async def work(connection: Connection, repeated: bool) -> set[str]:
            last = (repeated,) if say_repeated else ()
            return {row["id"] for row in await connection.fetch(self._q[name], *arrays, *more, *last)}

        held = await self._link.run(work)
        return [item.job in held for item in items]


def _same(new: NewJob, now: float, row: Row, repeated: bool) -> tuple[Job, bool] | Exception:
    """The job that is there, if it is the one that was meant."""
    job = job_of_row(row)
    if not row["by_key"] and (job.project, job.endpoint) != (new.project, new.endpoint):
        return IdempotencyConflict("another job has this id.", hint="Choose ids at random.")
    if job.fingerprint != new.fingerprint:
        return IdempotencyConflict(
            f"job {job.id} was submitted with this key or id and another request.",
            hint="Use a new key for a new request.",
        )
    return job, repeated and job.id == new.id and job.created_at == now


def _place(row: Row) -> tuple[int, int, int]:
    """Its place in the queue."""
    return row["rank"], row["turn"], row["seq"]


def _output_bytes(item: Finish) -> int:
    return len(item.result.output.data) if item.result.output is not None else 0


def ended(row: Row, now: float, reason: str, *, lost: bool, delay_s: float = 0.0) -> Move:
    """What becomes of a job whose attempt ended without a result."""
    counted, lost_now = row["counted"] - int(lost), row["lost"] + int(lost)
    if ends.may_try_again(counted, lost_now, row["max_attempts"]):
        return Move(row["id"], "queued", now, delay_s, reason, int(lost), None)
    problem, why = ends.lost_problem(reason, counted, lost_now)
    return Move(row["id"], "failed", now, 0.0, why, int(lost), msgspec.json.encode(problem))


def unsent(row: Row, now: float, reason: str = "", delay_s: float = 0.0) -> Move:
    """What becomes of a job that no instance had."""
    return Move(row["id"], "queued", now, delay_s, reason, 0, None, 1)


def timed_out(row: Row, now: float) -> Move:
    """What becomes of a job that is past its deadline."""
    problem, reason = ends.deadline_problem(row["state"])
    return Move(row["id"], "timed_out", now, 0.0, reason, 0, msgspec.json.encode(problem))
