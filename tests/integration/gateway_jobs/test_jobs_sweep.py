"""A gateway that is stopped in its tracks keeps nobody from sweeping the store."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sqlite3
import sys
import time
from pathlib import Path

from headrace.gateway.jobs.owners import OwnerMark
from headrace.gateway.jobs.sweeper import sweep
from headrace.jobs.blobs import open_local_blobs
from headrace.jobs.model import NewJob, Payload
from headrace.jobs.sqlite import open_sqlite

from tests.integration.conftest import until

SWEEPER = """
import asyncio, pathlib, sys
from headrace.gateway.jobs.owners import OwnerMark
from headrace.gateway.jobs.sweeper import sweep
from headrace.jobs.blobs import open_local_blobs
from headrace.jobs.sqlite import open_sqlite

async def main(data):
    store = await open_sqlite(data / "jobs.db")
    mark = OwnerMark(data / "gateways", "gw-other")
    print("up", flush=True)
    await sweep(store, open_local_blobs(data / "blobs"), mark, lambda: None, period_s=0.1)

asyncio.run(main(pathlib.Path(sys.argv[1])))
"""


def stopped_between_writes(process: asyncio.subprocess.Process, path: Path) -> bool:
    """Stop it; one that was in the middle of a transaction, where SQLite lets nobody else write, goes on."""
    process.send_signal(signal.SIGSTOP)
    with contextlib.closing(sqlite3.connect(path, timeout=0.2, isolation_level=None)) as db:
        try:
            db.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError:
            process.send_signal(signal.SIGCONT)
            return False
        db.execute("ROLLBACK")
    return True


async def test_leases_of_a_stopped_gateway_that_swept_are_queued_again(tmp_path: Path) -> None:
    store = await open_sqlite(tmp_path / "jobs.db")
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", SWEEPER, str(tmp_path), stdout=asyncio.subprocess.PIPE
    )
    ours: asyncio.Task[None] | None = None
    try:
        assert process.stdout is not None
        assert await asyncio.wait_for(process.stdout.readline(), 30) == b"up\n"
        removed = NewJob(id="old", project="p", endpoint="e", input=Payload(), retention_s=0.0)
        await store.submit(removed, time.time())
        await store.cancel("p", "old", time.time())

        async def gone() -> bool:
            return await store.get("p", "old") is None

        await until(gone)
        mark = OwnerMark(tmp_path / "gateways", "gw-ours")
        blobs = open_local_blobs(tmp_path / "blobs")
        ours = asyncio.create_task(sweep(store, blobs, mark, lambda: None, period_s=0.1))
        await until(lambda: stopped_between_writes(process, tmp_path / "jobs.db"))
        await store.submit(NewJob(id="a", project="p", endpoint="e", input=Payload()), time.time())
        now = time.time()
        await store.lease("gw-other", "p", "e", limit=1, now=now, until=now - 1)

        async def queued() -> bool:
            job = await store.get("p", "a")
            return job is not None and job.state == "queued"

        await until(queued)
    finally:
        if ours is not None:
            ours.cancel()
            await asyncio.wait([ours])
        process.kill()
        await process.wait()
        await store.close()
