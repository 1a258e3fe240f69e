"""Jobs through the whole platform: submit -> stored result of a no-op, and submits behind a long queue.

    python -m benchmarks.jobs [--store sqlite|postgres|both] [--seconds 30] [--queued 100000]

The queued jobs are of an endpoint that has no room: `submit_ms` is measured with them in the store, and the
gateway's memory before and after. ``postgres`` starts one of its own (fsync on). Prints one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib
import json
import os
import sys
import time
from collections.abc import Iterator
from typing import Any

import aiohttp
from headrace.cluster.identity import read_record

from benchmarks._load import root, summary
from benchmarks._platform import Ours, bounded, ours

SUBMITTERS = 32
BACKLOG = 1500
"""Submitted and not finished: more would measure only the queue."""
PROBES = 500


def gateway_rss(platform: Ours) -> int:
    """Bytes."""
    record = read_record(platform.data_dir)
    found = 0
    for child in record.children if record else ():
        if child.name.startswith("gateway") and (process := child.process()):
            found += sum(p.memory_info().rss for p in (process, *process.children(recursive=True)))
    return found


class Bench:
    """Submits to one platform."""

    def __init__(self, platform: Ours, http: aiohttp.ClientSession) -> None:
        self.platform, self.http = platform, http
        self.times: list[float] = []
        self.failures: list[str] = []

    async def submit(self, endpoint: str, number: int) -> None:
        """One job."""
        began = time.monotonic()
        body = {"endpoint": endpoint, "input": {"x": number}}
        async with self.http.post("/api/v1/jobs", json=body) as answer:
            said = await answer.read()
        if answer.status != 202:
            self.failures.append(f"{answer.status} {said[:200]!r}")
        self.times.append((time.monotonic() - began) * 1000)

    async def health(self, endpoint: str) -> dict[str, int]:
        """Jobs by state, as the gateway counts them."""
        async with self.http.get(f"/v2/{endpoint}/health") as answer:
            found: dict[str, int] = (await answer.json())["jobs"]
            return found

    async def sustained(self, seconds: float) -> dict[str, Any]:
        """Submitters that go on for some time; ends when all is finished."""
        before = (await self.health("noop"))["completed"]
        began = time.monotonic()
        end = began + seconds
        done = 0

        async def one() -> None:
            while time.monotonic() < end:
                if len(self.times) - done > BACKLOG:
                    await asyncio.sleep(0.01)
                    continue
                await self.submit("noop", len(self.times))

        submitters = [asyncio.create_task(one()) for _ in range(SUBMITTERS)]
        at_end = 0
        while done < len(self.times) or time.monotonic() < end:
            done = (await self.health("noop"))["completed"] - before
            if time.monotonic() <= end:
                at_end = done
            if time.monotonic() > end + 60:
                raise TimeoutError(f"{len(self.times) - done} jobs are not finished")
            await asyncio.sleep(0.2)
        await asyncio.gather(*submitters)
        took = time.monotonic() - began
        return {
            "seconds": seconds,
            "submitted": len(self.times),
            "failed": self.failures[:3],
            "finished_within": at_end,
            "finished_per_s": round(done / took, 1),
            "submit_ms": summary(self.times),
        }

    async def queued(self, count: int, limit_s: float) -> dict[str, Any]:
        """Fill a queue that nobody works off, then measure submits."""
        await asyncio.sleep(2)
        self.times.clear()
        rss = gateway_rss(self.platform)
        began = time.monotonic()
        left = iter(range(count))

        async def fill() -> None:
            for number in left:
                if time.monotonic() - began > limit_s:
                    return
                await self.submit("blocked", number)

        await asyncio.gather(*(fill() for _ in range(SUBMITTERS)))
        took = time.monotonic() - began
        filling, self.times = self.times, []
        full = gateway_rss(self.platform)
        for number in range(PROBES):
            await self.submit("blocked", number)
        quiet, self.times = self.times, []
        return {
            "queued": (await self.health("blocked"))["inQueue"],
            "filled_per_s": round(len(filling) / took, 1),
            "submit_ms_while_filling": summary(filling),
            "submit_ms_behind_it": summary(quiet),
            "gateway_mb_before": round(rss / 2**20, 1),
            "gateway_mb_after": round(full / 2**20, 1),
            "failed": self.failures[:3],
        }


async def measure(platform: Ours, seconds: float, count: int, limit_s: float) -> dict[str, Any]:
    """Both on one platform."""
    connector = aiohttp.TCPConnector(limit=SUBMITTERS + 1)
    base = f"http://127.0.0.1:{platform.port}"
    async with aiohttp.ClientSession(base, headers=platform.auth, connector=connector) as http:
        bench = Bench(platform, http)
        for number in range(200):
            await bench.submit("noop", number)
        await asyncio.sleep(1)
        bench.times.clear()
        found: dict[str, Any] = {"sustained": await bench.sustained(seconds)}
        if count:
            found["long_queue"] = await bench.queued(count, limit_s)
    return found


@contextlib.contextmanager
def store_of(name: str) -> Iterator[None]:
    """Name the store in the environment of ``headrace up``: its address holds a password."""
    if name == "sqlite":
        yield
        return
    sys.path.insert(0, str(root() / "tests"))
    with importlib.import_module("fixtures_postgres").running_postgres() as server:
        os.environ["HEADRACE_STORE"] = server.new_database()
        try:
            yield
        finally:
            del os.environ["HEADRACE_STORE"]


def main() -> None:
    """Parse, run, print JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--store", choices=["sqlite", "postgres", "both"], default="both")
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--queued", type=int, default=100_000)
    parser.add_argument("--limit", type=float, default=200, help="Seconds that filling the queue may take.")
    given = parser.parse_args()
    stores = ["sqlite", "postgres"] if given.store == "both" else [given.store]
    bounded(int(len(stores) * (given.seconds + given.limit + 180)))
    found: dict[str, Any] = {"benchmark": "jobs"}
    for name in stores:
        with store_of(name), ours() as platform:
            platform.deploy(root() / "benchmarks/apps/jobs.py")
            found[name] = asyncio.run(measure(platform, given.seconds, given.queued, given.limit))
    json.dump(found, sys.stdout, indent=2)
    print()


if __name__ == "__main__":
    main()
