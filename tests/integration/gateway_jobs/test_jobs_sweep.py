"""A gateway that is stopped in its tracks keeps nobody from sweeping the store."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sqlite3
import sys
import time
from collections.abc import AsyncIterator, Iterable
from pathlib import Path

import pytest
from headrace.gateway.jobs import remover, sweeper
from headrace.gateway.jobs.leases import HEARTBEAT_S, LEASE_S
from headrace.gateway.jobs.owners import OwnerMark
from headrace.gateway.jobs.sweeper import GAP_S, STEADY_S, Steady, sweep
from headrace.jobs.blobs import BlobMissing, BlobsUnavailable, LocalBlobs, open_local_blobs
from headrace.jobs.model import NewJob, Payload
from headrace.jobs.sqlite import SqliteStore, open_sqlite

from tests.integration.conftest import until

SWEEPER = """
import asyncio, pathlib, sys
from headrace.gateway.jobs.owners import OwnerMark
from headrace.gateway.jobs.sweeper import GAP_S, STEADY_S, Steady, sweep
from headrace.jobs.blobs import open_local_blobs
from headrace.jobs.sqlite import open_sqlite

async def main(data):
    store = await open_sqlite(data / "jobs.db")
    mark = OwnerMark(data / "gateways", "gw-other")
    print("up", flush=True)
    await sweep(store, open_local_blobs(data / "blobs"), mark, lambda: None, period_s=0.1)

asyncio.run(main(pathlib.Path(sys.argv[1])))
"""


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leases expire as soon as the store answers."""
    monkeypatch.setattr(sweeper, "STEADY_S", 0.2)


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


class Troubled(LocalBlobs):
    """A blob store that hangs, or fails, when it is to delete."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory, fresh_s=0.0)
        self.hangs = self.fails = 0
        self.asked = 0

    async def delete(self, blobs: Iterable[str]) -> int:
        self.asked += 1
        if self.hangs:
            await asyncio.Event().wait()
        if self.fails:
            self.fails -= 1
            raise BlobsUnavailable("away.")
        return await super().delete(blobs)


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[tuple[SqliteStore, Troubled]]:
    """A store that is swept, and its blobs."""
    store = await open_sqlite(tmp_path / "jobs.db")
    open_local_blobs(tmp_path / "blobs")
    blobs = Troubled(tmp_path / "blobs")
    mark = OwnerMark(tmp_path / "gateways", "gw-ours")
    ours = asyncio.create_task(sweep(store, blobs, mark, lambda: None, period_s=0.1))
    yield store, blobs
    ours.cancel()
    await asyncio.wait([ours])
    await store.close()


async def test_a_blob_store_that_hangs_keeps_no_lease_from_being_given_back(
    rig: tuple[SqliteStore, Troubled],
) -> None:
    store, blobs = rig
    blobs.hangs = 1
    await store.announce_blob(await blobs.put(b"nobody's"), time.time())
    await until(lambda: blobs.asked)
    await store.submit(NewJob(id="a", project="p", endpoint="e", input=Payload()), time.time())
    now = time.time()
    await store.lease("gw-other", "p", "e", limit=1, now=now, until=now - 1)

    async def queued() -> bool:
        job = await store.get("p", "a")
        return job is not None and job.state == "queued"

    await until(queued)


@pytest.mark.parametrize("trouble", ["away", "hangs", "too late"])
async def test_a_blob_that_could_not_be_deleted_is_offered_until_it_is(
    rig: tuple[SqliteStore, Troubled], monkeypatch: pytest.MonkeyPatch, trouble: str
) -> None:
    store, blobs = rig
    monkeypatch.setattr(remover, "AGAIN_S", 0.0)
    if trouble == "away":
        blobs.fails = 5
    elif trouble == "hangs":
        monkeypatch.setattr(remover, "BATCH_S", 0.05)
        blobs.hangs = 1
    else:
        monkeypatch.setattr(remover, "USABLE_S", 0.0)
    name = await blobs.put(b"nobody's")
    await store.announce_blob(name, time.time())
    if trouble == "hangs":
        await until(lambda: blobs.asked >= 4)
        blobs.hangs = 0
    elif trouble == "too late":
        await asyncio.sleep(0.5)
        assert (blobs.asked, await blobs.get(name)) == (0, b"nobody's")
        monkeypatch.undo()
        await store.announce_blob(name, time.time())

    async def gone() -> bool:
        with contextlib.suppress(BlobMissing):
            return not await blobs.get(name)
        return True

    await until(gone)
    assert blobs.fails == 0


def answers(steady: Steady, begin: float, end: float) -> None:
    while begin <= end:
        steady.answered(begin)
        begin += 1.0


def test_leases_expire_once_the_store_has_answered_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweeper, "STEADY_S", STEADY_S)
    assert LEASE_S > HEARTBEAT_S + GAP_S, "one that is prolonged could expire within a gap that is not seen"
    assert STEADY_S > HEARTBEAT_S
    steady = Steady()
    assert not steady.holds(1000.0)
    answers(steady, 1000.0, 1000.0 + STEADY_S - 1.0)
    assert not steady.holds(1000.0 + STEADY_S - 0.5)
    assert steady.holds(1000.0 + STEADY_S)
    steady.failed()
    assert not steady.holds(1001.0 + STEADY_S)
    answers(steady, 1100.0, 1100.0 + STEADY_S)
    assert steady.holds(1101.0 + STEADY_S)


@pytest.mark.parametrize("jump", [3600.0, -3600.0])
def test_no_lease_expires_of_a_clock_that_was_set(monkeypatch: pytest.MonkeyPatch, jump: float) -> None:
    """Nor of a machine that was suspended."""
    monkeypatch.setattr(sweeper, "STEADY_S", STEADY_S)
    steady = Steady()
    answers(steady, 10_000.0, 10_100.0)
    assert steady.holds(10_101.0)
    assert not steady.holds(10_101.0 + jump)
    answers(steady, 10_101.0 + jump, 10_101.0 + jump + STEADY_S / 2)
    assert not steady.holds(10_101.0 + jump + STEADY_S / 2)
