"""Job stores alone: submit -> lease -> note -> finish of a no-op, sustained, with fsync on.

    python -m benchmarks.job_stores [--store sqlite|postgres|postgresql://...] [--seconds 30] [--queued 1000]

``postgres`` starts a PostgreSQL of its own. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib
import json
import sys
import tempfile
import time
import uuid
from contextlib import AbstractContextManager
from typing import Any, cast

import psutil
import uvloop
from headrace.config import Settings
from headrace.jobs.model import NewJob, Payload, Result
from headrace.jobs.open import open_store
from headrace.jobs.store import JobStore

from benchmarks._load import root, summary

SUBMITTERS = 64
WINDOW = 64
BACKLOG = 2000
RETENTION_S = 5.0
DONE = Result(state="succeeded", output=Payload(data=b"1", size=1), receipt={"handler_ms": 0.1})


def _new(endpoint: str) -> NewJob:
    return NewJob(
        id=uuid.uuid4().hex,
        project="bench",
        endpoint=endpoint,
        input=Payload(data=b'{"n": 1}', size=8),
        retention_s=RETENTION_S,
    )


async def _cycles(store: JobStore, seconds: float, endpoint: str) -> dict[str, Any]:
    """Submitters and one worker for some time; then the rest is worked off."""
    begun = time.monotonic()
    end = begun + seconds
    submits: list[float] = []
    finished = 0

    async def submit() -> None:
        while (now := time.monotonic()) < end:
            await store.submit(_new(endpoint), time.time())
            submits.append((time.monotonic() - now) * 1000)
            while len(submits) - finished > BACKLOG:  # noqa: ASYNC110 - a worker that is behind, not an event
                await asyncio.sleep(0.005)

    async def work() -> None:
        nonlocal finished
        running: set[asyncio.Task[None]] = set()

        async def one(job_id: str, fence: int) -> None:
            nonlocal finished
            assert await store.note(job_id, fence, instance="i")
            assert await store.finish(job_id, fence, DONE, time.time())
            finished += 1

        while time.monotonic() < end or finished < len(submits):
            now = time.time()
            free = WINDOW - len(running)
            leases = await store.lease("w", "bench", endpoint, limit=free, now=now, until=now + 30)
            running |= {asyncio.create_task(one(lease.job.id, lease.fence)) for lease in leases}
            if running:
                done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
            else:
                await asyncio.sleep(0.002)

    async def sweep() -> None:
        while time.monotonic() < end:
            await asyncio.sleep(1.0)
            await store.sweep(time.time(), 10_000)

    await asyncio.gather(work(), sweep(), *(submit() for _ in range(SUBMITTERS)))
    rate = finished / (time.monotonic() - begun)
    return {"jobs_per_s": round(rate, 1), "submit_ms": summary(submits)}


async def _fill(store: JobStore, count: int) -> float:
    begun = time.monotonic()
    for start in range(0, count, 1000):
        await asyncio.gather(
            *(store.submit(_new("queued"), time.time()) for _ in range(min(1000, count - start)))
        )
    return count / (time.monotonic() - begun)


async def _measure(store: JobStore, seconds: float, queued: int) -> dict[str, Any]:
    found: dict[str, Any] = {"sustained": await _cycles(store, seconds, "e")}
    if queued:
        memory = psutil.Process().memory_info().rss
        found["fill_per_s"] = round(await _fill(store, queued), 1)
        begun = time.monotonic()
        assert (await store.counts("bench", "queued")).queued == queued
        found["counts_ms"] = round((time.monotonic() - begun) * 1000, 2)
        found["memory_grown_mib"] = round((psutil.Process().memory_info().rss - memory) / 2**20, 1)
        found["sustained_with_queue"] = await _cycles(store, seconds, "e")
    return found


def _own_postgres() -> AbstractContextManager[Any]:
    """The server that the tests use too."""
    sys.path.insert(0, str(root() / "tests"))
    return cast(AbstractContextManager[Any], importlib.import_module("fixtures_postgres").running_postgres())


async def _run(args: argparse.Namespace) -> dict[str, Any]:
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        address = {"sqlite": "", "postgres": ""}.get(args.store, args.store)
        if args.store == "postgres":
            address = stack.enter_context(_own_postgres()).new_database()
        store = await open_store(Settings(data_dir=folder, store=address))
        try:
            return await _measure(store, args.seconds, args.queued)
        finally:
            await store.close()


def main() -> None:
    """Measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--store", default="sqlite")
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--queued", type=int, default=100_000)
    args = parser.parse_args()
    name = args.store.partition("://")[0]
    print(json.dumps({"store": name, "seconds": args.seconds, **uvloop.run(_run(args))}))


if __name__ == "__main__":
    main()
