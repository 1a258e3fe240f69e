"""Moves of jobs in SQLite: functions of a connection, each within one transaction of the caller's."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from typing import Any

from headrace.jobs import ends, events
from headrace.jobs.model import Chunk, Ended, Job, Lease, Payload, Result
from headrace.jobs.sql import load_queries
from headrace.jobs.sqlite_rows import COMPLETED, OUTPUT, ROW_BYTES, START, job_of, readable, to_json
from headrace.jobs.state import FINAL

Q = load_queries("sqlite")
ORPHAN_AGAIN_S = 900.0
"""Longer than `headrace.jobs.blobs.FRESH_S`: a blob that was too fresh to be deleted is offered again."""
ORPHAN_OFFERS = 2
INPUT_BODY, OUTPUT_BODY = 0, 1


def submit(db: sqlite3.Connection, row: dict[str, Any], data: bytes) -> Job | None:
    """Store a job (None), or give the one that has its idempotency key or its id."""
    cursor = db.execute(Q["job_insert"], row)
    if cursor.rowcount == 1:
        if row["input_data"] is None:
            db.execute(Q["body_put"], {"seq": cursor.lastrowid, "kind": INPUT_BODY, "data": data})
        if row["waiter"] is not None:
            db.execute(Q["waiter_put"], row | {"seq": cursor.lastrowid})
        return None
    found = None
    if row["idempotency_key"] is not None:
        found = db.execute(Q["job_get_key"], row).fetchone()
    found = found or db.execute(Q["job_get_any"], row).fetchone()
    job = job_of(found)
    same = (job.project, job.endpoint, job.fingerprint) == (
        row["project"],
        row["endpoint"],
        row["fingerprint"],
    )
    if row["waiter"] is not None and job.state not in FINAL and same:
        db.execute(Q["waiter_put"], row | {"seq": found[0]})
    return job


def take_chunks(db: sqlite3.Connection, job_id: str, limit: int, max_bytes: int) -> Sequence[Chunk]:
    """See `JobStore.take_chunks`."""
    rows, size = [], 0
    for row in db.execute(Q["chunks_untaken"], {"id": job_id, "limit": limit}):
        rows.append(row)
        size += len(row[2])
        if size >= max_bytes:
            break
    if rows:
        attempt, seq, _, job = rows[-1]
        db.execute(Q["cursor_put"], {"job": job, "attempt": attempt, "seq": seq})
    return [Chunk(attempt=attempt, seq=seq, data=data) for attempt, seq, data, _ in rows]


def cancel(db: sqlite3.Connection, project: str, job_id: str, now: float) -> Job | None:
    """See `JobStore.cancel`."""
    who = {"id": job_id, "project": project}
    moved = db.execute(Q["job_cancel"], who | {"now": now}).fetchall()
    return _moved(db, who, moved, now)


def abandon(db: sqlite3.Connection, waiter: str, now: float, *, free_key: bool) -> Job | None:
    """See `JobStore.abandon`."""
    gone = db.execute(Q["waiter_gone"], {"waiter": waiter}).fetchall()
    if not gone:
        return None
    args = {"seq": gone[0][0], "now": now, "free_key": int(free_key), "reason": ends.ABANDONED}
    moved = db.execute(Q["abandon"], args).fetchall()
    if not moved:
        return None
    job = job_of(db.execute(Q["jobs_get_seqs"], {"seqs": f"[{moved[0][0]}]"}).fetchone())
    if moved[0][1] & COMPLETED:
        queue_event(db, job, "completed", now)
    return job


def retry(db: sqlite3.Connection, project: str, job_id: str, now: float) -> Job | None:
    """See `JobStore.retry`."""
    who = {"id": job_id, "project": project}
    db.execute(Q["job_retry"], who | {"now": now}).fetchall()
    return _moved(db, who, [], now)


def _moved(db: sqlite3.Connection, who: dict[str, str], moved: Sequence[Any], now: float) -> Job | None:
    found = db.execute(Q["job_get"], who).fetchone()
    if found is None:
        return None
    job = job_of(found)
    if moved and moved[0][1] & COMPLETED:
        queue_event(db, job, "completed", now)
    return job


def lease(
    db: sqlite3.Connection, owner: str, project: str, endpoint: str, *, limit: int, now: float, until: float
) -> Sequence[Lease]:
    """See `JobStore.lease`."""
    args = {"owner": owner, "project": project, "endpoint": endpoint}
    taken = db.execute(Q["lease"], args | {"limit": limit, "now": now, "until": until}).fetchall()
    if not taken:
        return ()
    rows = db.execute(Q["jobs_get_seqs"], {"seqs": json.dumps([row[0] for row in taken])}).fetchall()
    jobs_by_seq = {row[0]: job for row in rows if (job := readable(row)) is not None}
    if len(jobs_by_seq) < len(taken):
        problem, why = ends.lost_problem("its record cannot be read", 1, 0)
        for seq in {row[0] for row in taken} - jobs_by_seq.keys():
            dead = {"seq": seq, "now": now, "lost": 0, "error": to_json(problem), "reason": why}
            db.execute(Q["die"], dead).fetchall()
        taken = [row for row in taken if row[0] in jobs_by_seq]
    # By rank, turn, seq.
    taken.sort(key=lambda row: (row[3], row[4], row[0]))
    jobs = {row[0]: jobs_by_seq[row[0]] for row in taken}
    for rank, turn in {row[3]: row[4] for row in taken}.items():
        db.execute(Q["turn_put"], args | {"rank": rank, "turn": turn})
    for seq, notify, nth, _, _ in taken:
        if notify & START and nth == 1:
            queue_event(db, jobs[seq], "start", now)
    return [Lease(job=job, fence=job.attempts, owner=owner, until=until) for job in jobs.values()]


def take_back(db: sqlite3.Connection, owner: str, calls: Sequence[tuple[str, str, float]], now: float) -> int:
    """See `JobStore.take_back`."""
    rows: list[tuple[str, int]] = []
    for project, endpoint, at in calls:
        args = {"owner": owner, "project": project, "endpoint": endpoint, "at": at}
        rows += db.execute(Q["unanswered"], args).fetchall()
    for job_id, fence in rows:
        release(db, job_id, fence, now, reason="", lost=True, delay_s=0.0, unsent=True)
    return len(rows)


def heartbeat(
    db: sqlite3.Connection, owner: str, leases: Sequence[tuple[str, int]], until: float
) -> list[str]:
    """See `JobStore.heartbeat`."""
    return [
        job_id
        for job_id, fence in leases
        if db.execute(Q["heartbeat"], {"owner": owner, "id": job_id, "fence": fence, "until": until}).rowcount
        != 1
    ]


def note(
    db: sqlite3.Connection,
    job_id: str,
    fence: int,
    *,
    instance: str,
    progress: bytes | None,
    sent_at: float | None,
) -> bool:
    """See `JobStore.note`."""
    found = db.execute(Q["fence_valid"], {"id": job_id, "fence": fence}).fetchone()
    if found is None:
        return False
    if instance:
        db.execute(Q["note_instance"], {"seq": found[0], "fence": fence, "instance": instance})
    if sent_at is not None:
        db.execute(Q["note_sent"], {"seq": found[0], "sent_at": sent_at})
    if progress is not None:
        db.execute(Q["note_progress"], {"seq": found[0], "progress": progress.decode()})
    return True


def append(
    db: sqlite3.Connection, job_id: str, fence: int, *, first_seq: int, items: Sequence[bytes], now: float
) -> bool:
    """See `JobStore.append`."""
    found = db.execute(Q["fence_valid"], {"id": job_id, "fence": fence}).fetchone()
    if found is None:
        return False
    seq, notify = found
    who = {"job": seq, "attempt": fence}
    db.executemany(
        Q["chunk_put"], [who | {"seq": number, "data": item} for number, item in enumerate(items, first_seq)]
    )
    if notify & OUTPUT and items:
        row = db.execute(Q["job_get_any"], {"id": job_id}).fetchone()
        if (job := readable(row)) is not None:
            queue_event(db, job, "output", now, chunks=tuple(items), first_seq=first_seq)
    return True


def finish(db: sqlite3.Connection, job_id: str, fence: int, row: dict[str, Any], result: Result) -> bool:
    """See `JobStore.finish`."""
    moved = db.execute(Q["finish"], row).fetchall()
    if not moved:
        drop(db, job_id, fence, result)
        return False
    seq, notify = moved[0]
    if result.output is not None and len(result.output.data) > ROW_BYTES:
        db.execute(Q["body_put"], {"seq": seq, "kind": OUTPUT_BODY, "data": result.output.data})
    if result.instance:
        db.execute(Q["note_instance"], {"seq": seq, "fence": fence, "instance": result.instance})
    if notify & COMPLETED:
        tell_end(db, db.execute(Q["job_get_any"], {"id": job_id}).fetchone(), row["now"])
    return True


def drop(db: sqlite3.Connection, job_id: str, fence: int, result: Result) -> None:
    """A late result: counted, told by its attempt, and its blob given back."""
    db.execute(Q["meta_add"], {"key": "dropped"})
    db.execute(Q["fenced"], {"id": job_id, "fence": fence})
    if result.output is not None and result.output.blob:
        db.execute(Q["orphan_put"], {"blob": result.output.blob})


def release(
    db: sqlite3.Connection,
    job_id: str,
    fence: int,
    now: float,
    *,
    reason: str,
    lost: bool,
    delay_s: float,
    unsent: bool = False,
) -> tuple[bool, list[Ended]]:
    """See `JobStore.release`; and the job, if this was its end."""
    found = db.execute(Q["budget"], {"id": job_id, "fence": fence}).fetchone()
    if found is None:
        return False, []
    seq, counted, lost_before, max_attempts, notify = found
    if unsent:
        db.execute(Q["give_back"], {"seq": seq, "now": now, "reason": reason, "delay_s": delay_s})
        db.execute(Q["no_attempt"], {"seq": seq, "fence": fence})
        return True, []
    lost_now = lost_before + int(lost)
    counted -= int(lost)
    args = {"seq": seq, "now": now, "lost": int(lost)}
    if ends.may_try_again(counted, lost_now, max_attempts):
        db.execute(Q["release"], args | {"reason": reason, "delay_s": delay_s})
        return True, []
    problem, why = ends.lost_problem(reason, counted, lost_now)
    ended = db.execute(Q["die"], args | {"error": to_json(problem), "reason": why}).fetchall()
    if notify & COMPLETED:
        tell_end(db, db.execute(Q["job_get_any"], {"id": job_id}).fetchone(), now)
    return True, [Ended(*row) for row in ended]


def release_owned(db: sqlite3.Connection, owner: str, now: float, limit: int) -> tuple[int, list[Ended]]:
    """Queue again some of what a gone worker held; how many, and which came to their end."""
    db.execute(Q["waiters_gone"], {"owner": owner})
    rows = db.execute(Q["owned"], {"owner": owner, "limit": limit}).fetchall()
    reason = ends.gone_worker(owner)
    return len(rows), _lose(db, [(job_id, fence, reason) for job_id, fence in rows], now)


def sweep_leases(db: sqlite3.Connection, now: float, limit: int) -> tuple[int, list[Ended]]:
    """Queue again, or end, jobs whose lease has expired; how many, and which ended."""
    rows = db.execute(Q["expired_leases"], {"now": now, "limit": limit}).fetchall()
    lost = [(job_id, fence, ends.silent_worker(owner)) for job_id, fence, owner in rows]
    return len(rows), _lose(db, lost, now)


def _lose(db: sqlite3.Connection, lost: Sequence[tuple[str, int, str]], now: float) -> list[Ended]:
    """Release (job, fence, reason) whose workers are gone; those that have no attempt left."""
    ended: list[Ended] = []
    for job_id, fence, reason in lost:
        ended += release(db, job_id, fence, now, reason=reason, lost=True, delay_s=0.0)[1]
    return ended


def sweep_deadlines(db: sqlite3.Connection, now: float, limit: int) -> tuple[int, list[Ended]]:
    """End jobs that are past their deadline; how many, and which."""
    ended: list[Ended] = []
    rows = db.execute(Q["past_deadline"], {"now": now, "limit": limit}).fetchall()
    for seq, state, notify in rows:
        problem, reason = ends.deadline_problem(state)
        args = {"seq": seq, "now": now, "error": to_json(problem), "reason": reason}
        ended += [Ended(*row) for row in db.execute(Q["time_out"], args).fetchall()]
        if notify & COMPLETED:
            tell_end(db, db.execute(Q["jobs_get_seqs"], {"seqs": f"[{seq}]"}).fetchone(), now)
    return len(rows), ended


def sweep_expired(db: sqlite3.Connection, now: float, limit: int) -> tuple[int, list[Ended]]:
    """Remove jobs that are past their retention; how many."""
    return db.execute(Q["remove_expired"], {"now": now, "limit": limit}).rowcount, []


def sweep_orphans(db: sqlite3.Connection, now: float, limit: int) -> tuple[list[str], int]:
    """(blobs that nothing names, how many were looked at)."""
    rows = db.execute(Q["orphans_due"], {"now": now, "limit": limit}).fetchall()
    for blob, offers, named in rows:
        if named or offers + 1 >= ORPHAN_OFFERS:
            db.execute(Q["orphan_delete"], {"blob": blob})
        else:
            db.execute(Q["orphan_again"], {"blob": blob, "next_at": now + ORPHAN_AGAIN_S})
    return [blob for blob, _, named in rows if not named], len(rows)


def tell_end(db: sqlite3.Connection, row: Sequence[Any], at: float) -> None:
    """Queue the event of a job that has come to its end, if its row can be read."""
    if (job := readable(row)) is not None:
        queue_event(db, job, "completed", at)


def queue_event(
    db: sqlite3.Connection,
    job: Job,
    event: events.EventName,
    at: float,
    *,
    chunks: tuple[bytes, ...] = (),
    first_seq: int = 0,
) -> None:
    """Queue a webhook event, in the transaction of the move that causes it."""
    assert job.webhook is not None
    output = job.output or Payload()
    row = {
        "id": events.event_id(job, event, first_seq),
        "job": job.id,
        "project": job.project,
        "event": event,
        "url": job.webhook.url,
        "body": events.encode_event(job, event, at, chunks),
        "blob": output.blob or None,
        "created_at": at,
        # Chunks come without the caller's clock: due as soon as the attempt has begun.
        "next_at": (job.started_at or job.queued_at or job.created_at) if event == "output" else at,
    }
    db.execute(Q["delivery_put"], row)


def finish_row(job_id: str, fence: int, result: Result, now: float) -> dict[str, Any]:
    """Parameters of ``finish``."""
    output = result.output
    return {
        "id": job_id,
        "fence": fence,
        "state": result.state,
        "now": now,
        "output": None if output is None else to_json(events.without_data(output)),
        "output_data": output.data if output is not None and len(output.data) <= ROW_BYTES else None,
        "output_blob": output.blob or None if output is not None else None,
        "error": None if result.error is None else to_json(result.error),
        "receipt": to_json(result.receipt) if result.receipt else None,
        "reason": result.reason,
        "started_at": result.started_at,
    }
