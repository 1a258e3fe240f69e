"""A seeded schedule of kills, load that goes on meanwhile, and what became of it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import time
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web
from headrace.errors import HeadraceError
from headrace.sdk.client import Client

from benchmarks._load import summary

PERIOD_S = 3.0
PARTS = ("instance", "host", "control", "node", "stop-instance", "stop-host")
"""What is struck without a gateway's death."""
AGAIN_S = 0.05
LIMIT_S = 60.0
"""A call that is not answered so long after its start has failed."""
THREADS = 400
BROKEN = (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError, ConnectionError)


@dataclass(frozen=True)
class Strike:
    """At ``at_s`` after the start, ``kind`` is struck; ``pick`` (0 to 1) says which of them."""

    at_s: float
    kind: str
    pick: float
    stop_s: float
    """How long a stopped process stays so."""


def schedule(
    seed: int, seconds: float, kinds: Sequence[str] = PARTS, *, rare: str = "", period_s: float = PERIOD_S
) -> list[Strike]:
    """One strike per period, all kinds in turn in an order of chance, none in the last half period.

    ``rare`` is every eighth one, from the third: the platform needs some time to be there again.
    """
    chance = random.Random(seed)
    found: list[Strike] = []
    bag: list[str] = []
    at = period_s / 2
    while at < seconds - period_s / 2:
        if not bag:
            bag = chance.sample(kinds, len(kinds))
        kind = rare if rare and len(found) % 8 == 2 else bag.pop()
        found.append(Strike(at, kind, chance.random(), round(chance.uniform(1.0, 2.0), 2)))
        at += period_s
    return found


@dataclass
class Group:
    """Calls of one kind of client."""

    times: list[float] = field(default_factory=list)
    """Milliseconds of the answered ones."""
    failures: list[str] = field(default_factory=list)
    sent: int = 0
    again: int = 0
    """Connections that broke and were made anew."""

    def said(self) -> dict[str, Any]:
        """For the report."""
        kinds = Counter(line[:160] for line in self.failures)
        found = {"sent": self.sent, "failed": len(self.failures), "reconnected": self.again}
        return {**found, "ms": summary(self.times) if self.times else {}, "failures": dict(kinds)}


async def at_rate(
    per_s: float, seconds: float, one: Callable[[int], Coroutine[Any, Any, None]]
) -> list[asyncio.Task[None]]:
    """Start ``one`` at a fixed rate, whatever became of those before."""
    began, started = time.monotonic(), []
    for number in range(int(per_s * seconds)):
        await asyncio.sleep(max(0.0, began + number / per_s - time.monotonic()))
        started.append(asyncio.create_task(one(number)))
    return started


async def post(
    http: aiohttp.ClientSession,
    url: str,
    body: Any,
    headers: Mapping[str, str],
    group: Group,
    *,
    reconnect: bool,
    busy: bool = False,
) -> tuple[int, bytes]:
    """One request; with ``reconnect`` again when its connection breaks, with ``busy`` after 429 and 503."""
    until = time.monotonic() + LIMIT_S
    while True:
        try:
            async with http.post(url, json=body, headers=headers) as answer:
                data = await answer.read()
                if not (busy and answer.status in {429, 503}) or time.monotonic() > until:
                    return answer.status, data
        except BROKEN:
            if not reconnect or time.monotonic() > until:
                raise
            group.again += 1
        await asyncio.sleep(AGAIN_S)


class Receiver:
    """A real server for webhooks: which ids came for which job."""

    def __init__(self) -> None:
        self.ids: dict[str, set[str]] = {}
        self.came = 0
        self.url = ""
        self._runner: web.AppRunner | None = None

    async def _take(self, request: web.Request) -> web.Response:
        document = await request.json()
        self.came += 1
        self.ids.setdefault(document["data"]["id"], set()).add(request.headers["webhook-id"])
        return web.Response()

    async def __aenter__(self) -> Receiver:
        app = web.Application()
        app.router.add_post("/hook", self._take)
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}/hook"
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._runner is not None
        await self._runner.cleanup()


class Storm:
    """The load on one platform while it is struck."""

    def __init__(
        self, url: str, key: str, log: Path, *, reconnect: bool, busy: bool = False, retry_for: float = 10.0
    ) -> None:
        self.url, self.key, self.log = url, key, log
        self.busy = busy
        self.reconnect, self.retry_for = reconnect, retry_for
        self.plain, self.client, self.submits = Group(), Group(), Group()
        self.jobs: dict[str, str] = {}
        """Accepted jobs: id -> call."""
        self.strikes: list[str] = []
        self.receiver = Receiver()

    @property
    def auth(self) -> dict[str, str]:
        """The header that opens the platform."""
        return {"Authorization": f"Bearer {self.key}"}

    async def run(
        self,
        seconds: float,
        strikes: Sequence[Strike],
        strike: Callable[[Strike], Awaitable[str]],
        *,
        sync_per_s: float = 50.0,
        jobs_per_s: float = 20.0,
    ) -> None:
        """Load and strikes, until every call has ended. Jobs may still run."""
        timeout = aiohttp.ClientTimeout(total=LIMIT_S)
        connector = aiohttp.TCPConnector(limit=0)
        with ThreadPoolExecutor(THREADS) as threads:
            async with aiohttp.ClientSession(timeout=timeout, connector=connector) as http:
                client = Client(self.url, self.key, timeout=LIMIT_S, retry_for=self.retry_for)
                await asyncio.to_thread(client.status)

                async def plain(number: int) -> None:
                    await self._timed(self.plain, self._plain(http, f"plain-{number}"))

                async def library(number: int) -> None:
                    await self._timed(self.client, self._library(client, threads, f"client-{number}"))

                async def submit(number: int) -> None:
                    await self._timed(self.submits, self._submit(http, f"job-{number}"))

                with contextlib.closing(client):
                    struck = asyncio.create_task(self._strike(strikes, strike))
                    started = await asyncio.gather(
                        at_rate(sync_per_s / 2, seconds, plain),
                        at_rate(sync_per_s / 2, seconds, library),
                        at_rate(jobs_per_s, seconds, submit),
                    )
                    await struck
                    for group in started:
                        await asyncio.gather(*group)

    async def _strike(self, strikes: Sequence[Strike], strike: Callable[[Strike], Awaitable[str]]) -> None:
        began = time.monotonic()
        for one in strikes:
            await asyncio.sleep(max(0.0, began + one.at_s - time.monotonic()))
            said = await strike(one)
            self.strikes.append(f"{time.monotonic() - began:.1f} s {one.kind}: {said}")

    async def _timed(self, group: Group, call: Coroutine[Any, Any, None]) -> None:
        group.sent += 1
        began = time.monotonic()
        try:
            await call
        except (HeadraceError, OSError, aiohttp.ClientError, TimeoutError, RuntimeError, ValueError) as error:
            group.failures.append(f"{type(error).__name__}: {error}")
        else:
            group.times.append((time.monotonic() - began) * 1000)

    async def _plain(self, http: aiohttp.ClientSession, call: str) -> None:
        body = {"call": call, "log": str(self.log)}
        status, data = await post(
            http, f"{self.url}/e/storm", body, self.auth, self.plain, reconnect=self.reconnect, busy=self.busy
        )
        _check(status, data, call)

    async def _library(self, client: Client, threads: ThreadPoolExecutor, call: str) -> None:
        def work() -> Any:
            return client.call("storm", call=call, log=str(self.log))

        said = await asyncio.get_running_loop().run_in_executor(threads, work)
        if said != call:
            raise RuntimeError(f"another answer: {said!r}")

    async def _submit(self, http: aiohttp.ClientSession, call: str) -> None:
        body = {
            "endpoint": "storm-job",
            "input": {"call": call, "log": str(self.log)},
            "webhook": self.receiver.url,
        }
        headers = {**self.auth, "Idempotency-Key": uuid.uuid4().hex}
        url = f"{self.url}/api/v1/jobs"
        status, data = await post(http, url, body, headers, self.submits, reconnect=True, busy=True)
        if status not in {200, 202}:
            raise RuntimeError(f"{status} {data[:300]!r}")
        self.jobs[json.loads(data)["id"]] = call

    async def settle(self, deadline_s: float = 60.0) -> dict[str, Any]:
        """Wait until all accepted jobs have ended and were told; then what became of everything."""
        end = time.monotonic() + deadline_s
        found: dict[str, dict[str, Any]] = {}
        timeout = aiohttp.ClientTimeout(total=10)
        async with aiohttp.ClientSession(timeout=timeout, headers=self.auth) as http:
            while (missing := self.jobs.keys() - found.keys()) and time.monotonic() < end:
                for job in missing:
                    with contextlib.suppress(*BROKEN, TimeoutError):
                        async with http.get(f"{self.url}/api/v1/jobs/{job}") as answer:
                            document = await answer.json() if answer.status == 200 else {}
                        if document.get("state") in {"succeeded", "failed", "cancelled", "timed_out"}:
                            found[job] = document
                await asyncio.sleep(0.1)
        while self.jobs.keys() - self.receiver.ids.keys() and time.monotonic() < end:  # noqa: ASYNC110 - polled with a deadline
            await asyncio.sleep(0.1)
        return self._said(found)

    def _said(self, found: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
        ends = Counter(self.log.read_text().split())
        twice = {call: count for call, count in ends.items() if count > 1}
        states = Counter(str(job["state"]) for job in found.values())
        final = {"succeeded", "failed", "cancelled", "timed_out"}
        outcomes = [[a.get("outcome") for a in job.get("attempts") or ()] for job in found.values()]
        hooks = self.receiver.ids
        return {
            "strikes": self.strikes,
            "plain": self.plain.said(),
            "client": self.client.said(),
            "submit": self.submits.said(),
            "sync_ms": summary(self.plain.times + self.client.times),
            "ran_twice": {
                kind: sorted(c for c in twice if c.startswith(kind)) for kind in ("plain", "client", "job")
            },
            "not_run": sorted(c for c in self.jobs.values() if not ends[c])[:20],
            "jobs": {
                "accepted": len(self.jobs),
                "states": dict(states),
                "lost": sorted(self.jobs.keys() - found.keys()),
                "not_told": sorted(self.jobs.keys() - hooks.keys()),
                "finished_twice_in_store": sum(
                    sum(outcome in final for outcome in outcome_list) > 1 for outcome_list in outcomes
                ),
                "finished_twice_at_receiver": sorted(job for job, ids in hooks.items() if len(ids) > 1),
                "webhooks": self.receiver.came,
                "attempts": dict(Counter(len(outcome_list) for outcome_list in outcomes)),
                "reasons": dict(
                    Counter(
                        str(j.get("error") or j.get("reason"))
                        for j in found.values()
                        if j["state"] != "succeeded"
                    )
                ),
            },
        }


def _check(status: int, data: bytes, call: str) -> None:
    if status != 200:
        raise RuntimeError(f"{status} {data[:300]!r}")
    if json.loads(data) != call:
        raise RuntimeError(f"another answer: {data[:100]!r}")
