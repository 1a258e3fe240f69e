"""The SQLite job store beyond the contract: its file, its plans, its errors, several processes."""

import asyncio
import json
import os
import re
import signal
import sqlite3
import stat
import sys
import time
from pathlib import Path

import pytest
from headrace.errors import BadRequest, DataDirError
from headrace.jobs.model import NewJob, Payload
from headrace.jobs.sql import load_migrations, load_queries
from headrace.jobs.sqlite import open_sqlite
from headrace.jobs.store import StoreUnavailable
from headrace.sqlite_writer import open_database


def new(job_id, **more):
    return NewJob(id=job_id, project="p", endpoint="e", input=Payload(data=b"{}", size=2), **more)


async def test_the_file_is_private_and_durable(tmp_path):
    store = await open_sqlite(tmp_path / "jobs.db")
    try:
        assert stat.S_IMODE((tmp_path / "jobs.db").stat().st_mode) == 0o600
        found = await store._db.write(
            lambda db: [db.execute(f"PRAGMA {p}").fetchone()[0] for p in ("journal_mode", "synchronous")]
        )
        assert found == ["wal", 2]
    finally:
        await store.close()


async def test_a_newer_schema_is_refused(tmp_path):
    store = await open_sqlite(tmp_path / "jobs.db")
    await store.close()
    with sqlite3.connect(tmp_path / "jobs.db") as db:
        db.execute("PRAGMA user_version=99")
    db.close()
    with pytest.raises(DataDirError, match=r"schema 99.*Upgrade headrace"):
        await open_sqlite(tmp_path / "jobs.db")


async def test_a_damaged_file_is_told(tmp_path):
    (tmp_path / "jobs.db").write_bytes(b"this is no database" * 1000)
    with pytest.raises(DataDirError, match="is damaged"):
        await open_sqlite(tmp_path / "jobs.db")


async def test_damage_under_a_running_store_is_told(tmp_path):
    store = await open_sqlite(tmp_path / "jobs.db")
    for i in range(200):
        await store.submit(new(f"j{i}", context={"x": "y" * 500}), 1.0)
    await store.close()
    path = tmp_path / "jobs.db"
    data = bytearray(path.read_bytes())
    # The schema lies in the first pages: it opens, and its rows are gone.
    half = len(data) // 2 // 4096 * 4096
    data[half:] = os.urandom(len(data) - half)
    path.write_bytes(data)
    store = await open_sqlite(path)
    try:
        with pytest.raises(StoreUnavailable, match="damaged"):
            await store.list("p", limit=1000)
    finally:
        await store.close()


async def test_a_closed_store_says_so(tmp_path):
    store = await open_sqlite(tmp_path / "jobs.db")
    await store.close()
    await store.close()
    with pytest.raises(StoreUnavailable):
        await store.submit(new("a"), 1.0)
    with pytest.raises(StoreUnavailable):
        await store.get("p", "a")


async def test_text_that_is_none_is_a_bad_request(tmp_path):
    store = await open_sqlite(tmp_path / "jobs.db")
    try:
        with pytest.raises(BadRequest):
            await store.submit(new("a", idempotency_key="\ud800"), 1.0)
        await store.submit(new("b"), 1.0)
    finally:
        await store.close()


async def test_a_lock_that_is_held_too_long_is_told_and_nothing_stored(tmp_path, monkeypatch):
    monkeypatch.setattr("headrace.sqlite_writer.LOCK_TIMEOUT_S", 0.2)
    store = await open_sqlite(tmp_path / "jobs.db")
    other = sqlite3.connect(tmp_path / "jobs.db", isolation_level=None)
    try:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreUnavailable, match="locked"):
            await store.submit(new("a"), 1.0)
        other.execute("ROLLBACK")
        assert await store.get("p", "a") is None
        assert (await store.submit(new("a"), 1.0))[1]
    finally:
        other.close()
        await store.close()


def _plan(db, name):
    values = dict.fromkeys(re.findall(r":(\w+)", load_queries("sqlite")[name]), 1)
    return [row[3] for row in db.execute("EXPLAIN QUERY PLAN " + load_queries("sqlite")[name], values)]


@pytest.mark.parametrize(
    "name",
    [
        "lease",
        "job_insert",
        "job_retry",
        "chunks_untaken",
        "oldest_queued",
        "past_deadline",
        "expired_leases",
        "remove_expired",
        "owned",
        "orphans_due",
        "deliveries_due",
        "job_get",
        "list_project",
        "list_state",
        "purge_some",
        "purge_last",
        "counts",
    ],
)
def test_nothing_walks_all_jobs(tmp_path, name):
    database = open_database(tmp_path / "jobs.db", load_migrations("sqlite"))
    asyncio.run(database.close())
    db = sqlite3.connect(tmp_path / "jobs.db")
    try:
        steps = _plan(db, name)
        # Orphans are few.
        scans = [s for s in steps if s.startswith("SCAN") and s != "SCAN o"]
        scans = [s for s in scans if "CONSTANT ROW" not in s]
        assert not scans, steps
        assert not [s for s in steps if "TEMP B-TREE FOR ORDER BY" in s], steps
    finally:
        db.close()


PROGRAM = """
import asyncio, json, sys, time
from pathlib import Path
from headrace.jobs.model import NewJob, Payload, Result
from headrace.jobs.sqlite import open_sqlite

def say(*words):
    # One write, one line: what was said before a kill is whole.
    sys.stdout.write(json.dumps(words) + "\\n"); sys.stdout.flush()

async def submit(store, name):
    for i in range(100000):
        job = NewJob(id=f"{name}.{i}", project="p", endpoint="e", input=Payload(data=b"{}", size=2))
        await store.submit(job, time.time())
        say("submitted", job.id)

async def work(store, owner, rounds):
    for _ in range(rounds):
        leases = await store.lease(owner, "p", "e", limit=3, now=time.time(), until=time.time() + 60)
        if not leases:
            await asyncio.sleep(0.005)
        for lease in leases:
            say("leased", lease.job.id)
            await store.finish(lease.job.id, lease.fence, Result(state="succeeded"), time.time())
            say("finished", lease.job.id)

async def main():
    store = await open_sqlite(Path(sys.argv[1]))
    say("open", "")
    if sys.argv[2] == "both":
        tasks = [submit(store, f"s{i}") for i in range(8)] + [work(store, f"w{i}", 10**9) for i in range(4)]
    else:
        tasks = [work(store, f"{sys.argv[2]}{i}", 60) for i in range(4)]
    await asyncio.gather(*tasks)
    await store.close()

asyncio.run(main())
"""


async def _child(path, how):
    return await asyncio.create_subprocess_exec(
        sys.executable, "-c", PROGRAM, str(path), how, stdout=asyncio.subprocess.PIPE
    )


async def test_what_was_answered_survives_a_kill(tmp_path):
    """SIGKILL in the middle of writes, three times over one file: no acknowledged job or result is gone."""
    path = tmp_path / "jobs.db"
    submitted, finished = set(), set()
    for turn in range(3):
        child = await _child(path, "both")
        said = 0
        deadline = time.monotonic() + 30
        while said < 300:
            line = await asyncio.wait_for(child.stdout.readline(), deadline - time.monotonic())
            assert line, "it ended by itself"
            said += _count(line, submitted, finished, turn)
        child.send_signal(signal.SIGKILL)
        for line in (await asyncio.wait_for(child.stdout.read(), 30)).splitlines(keepends=True):
            if line.endswith(b"\n"):
                _count(line, submitted, finished, turn)
        await child.wait()
        store = await open_sqlite(path)
        try:
            for turn_id in submitted:
                job = await store.get("p", turn_id)
                assert job is not None, f"{turn_id} was acknowledged and is gone"
                assert turn_id not in finished or job.state == "succeeded", f"{turn_id}: {job.state}"
            counts = await store.counts("p", "e")
            everything = counts.queued + counts.running + counts.succeeded
            assert counts.succeeded >= len(finished)
            assert everything >= len(submitted)
            assert await store._db.read(lambda db: db.execute("PRAGMA integrity_check").fetchone()) == ("ok",)
            # What the killed one held is worked on again; then the next turn submits under names of its own.
            for owner in [f"w{i}" for i in range(4)]:
                await store.release_owner(owner, time.time())
            assert (await store.counts("p", "e")).running == 0
            await store._db.write(
                lambda db, turn=turn: db.execute(
                    "UPDATE jobs SET id = ? || id WHERE id LIKE 's%'", (f"{turn}",)
                )
            )
            submitted = {name if name[0] != "s" else f"{turn}{name}" for name in submitted}
            finished = {name if name[0] != "s" else f"{turn}{name}" for name in finished}
        finally:
            await store.close()


def _count(line, submitted, finished, turn):
    what, name = json.loads(line)
    if what == "submitted":
        submitted.add(name)
    elif what == "finished":
        finished.add(name)
    return what != "open"


async def test_two_processes_never_lease_the_same(tmp_path):
    path = tmp_path / "jobs.db"
    store = await open_sqlite(path)
    try:
        total = 300
        await asyncio.gather(*(store.submit(new(f"j{i}"), time.time()) for i in range(total)))
        children = [await _child(path, how) for how in ("a", "b")]
        outputs = await asyncio.wait_for(asyncio.gather(*(c.communicate() for c in children)), 60)
        assert [c.returncode for c in children] == [0, 0]
        said = [[json.loads(line) for line in out.splitlines()] for out, _ in outputs]
        leased = [name for lines in said for what, name in lines if what == "leased"]
        assert len(leased) == len(set(leased)) == total
        assert (await store.counts("p", "e")).succeeded == total
        assert await store.dropped() == 0
    finally:
        await store.close()


async def test_two_processes_make_the_file_at_once(tmp_path):
    path = tmp_path / "jobs.db"
    stores = await asyncio.gather(*(open_sqlite(path) for _ in range(6)))
    try:
        await asyncio.gather(*(s.submit(new(f"j{i}"), 1.0) for i, s in enumerate(stores)))
        assert (await stores[0].counts("p", "e")).queued == 6
    finally:
        for store in stores:
            await store.close()


async def test_a_failing_write_spoils_no_other(tmp_path):
    """Writes of one transaction share it, and not their failures; what ran before runs again just once."""
    database = open_database(Path(tmp_path / "x.db"), ["CREATE TABLE t (n INTEGER UNIQUE);"])

    def fail(db):
        db.execute("INSERT INTO t VALUES (-1)")
        raise ValueError("mine")

    try:
        writes = [
            database.write(lambda db, n=n: db.execute("INSERT INTO t VALUES (?)", (n,)).rowcount)
            for n in range(50)
        ]
        results = await asyncio.gather(
            *writes[:25], database.write(fail), *writes[25:], return_exceptions=True
        )
        assert [r for r in results if r != 1 and not isinstance(r, ValueError)] == []
        assert sum(isinstance(r, ValueError) for r in results) == 1
        rows = await database.read(lambda db: db.execute("SELECT n FROM t ORDER BY n").fetchall())
        assert rows == [(n,) for n in range(50)]
        assert database.commits < 50
    finally:
        await database.close()
