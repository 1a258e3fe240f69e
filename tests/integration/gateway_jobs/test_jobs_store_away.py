"""A gateway whose job store does not answer when it starts."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import socket
import sqlite3
import sys
import time
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest
from headrace import Client
from headrace.cluster.local import LocalCluster
from headrace.errors import SettingsError, StoreUnavailable
from headrace.gateway.jobs import leases, outcome, results, runner, system
from headrace.gateway.jobs import service as service_module
from headrace.jobs import ends

from tests.integration.conftest import make_settings, running_platform, until

pytestmark = pytest.mark.asyncio(loop_scope="module")

SOURCE = """
    @headrace.endpoint(name="add")
    def add(a: int, pad: str = "") -> int:
        return a + 1

    @headrace.endpoint(name="chat", api="openai")
    async def chat(scope, receive, send):
        raise AssertionError("nobody asks")
"""
HOLDING = """
    import time

    @headrace.endpoint(name="held")
    def held(seconds: float, pad: str = "") -> int:
        time.sleep(seconds)
        return 1
"""


class Hanging:
    """A job store that does not answer for a while."""

    def __init__(self, store: Any) -> None:
        self.store, self.asked = store, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.store, name)

    async def get(self, project: str, job_id: str) -> Any:
        self.asked += 1
        raise StoreUnavailable("it hangs.")


async def test_who_waits_for_a_call_waits_on_while_the_store_hangs(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service_module, "AWAY_POLL_S", 0.05)
    monkeypatch.setattr(service_module, "LOCAL_POLL_S", 0.1)
    async with running_platform(make_settings(work / "hangs"), work) as platform:
        await platform.deploy(HOLDING)
        service = platform.cluster.gateway.jobs.service
        store = service.store
        headers = {"Idempotency-Key": "k"}
        call = asyncio.create_task(
            platform.request("POST", "/e/held", json={"seconds": 1.0}, headers=headers)
        )

        async def runs() -> Any:
            found = await platform.api("GET", "/jobs?endpoint=held")
            return found["items"] and found["items"][0]["state"] == "running" and found["items"][0]["id"]

        job_id = await until(runs)
        away = Hanging(store)
        service._store = away
        await until(lambda: away.asked >= 3)
        # With the time the patience ends, not before: who asks is told.
        began, asked = time.monotonic(), away.asked
        with pytest.raises(StoreUnavailable, match="hangs"):
            await service.wait("default", job_id, 0.3)
        assert (time.monotonic() - began < 5.0, away.asked - asked > 3) == (True, True)
        status, headers, problem = await platform.request("GET", f"/api/v1/jobs/{job_id}/output")
        assert (status, problem["type"]) == (503, "urn:headrace:store-unavailable"), problem
        assert (headers["Retry-After"], problem["retry_after"]) == ("1", 1)
        await until(lambda: not service.runs_here(job_id))
        assert not call.done()
        service._store = store
        status, _, value = await asyncio.wait_for(call, 30)
        assert (status, value) == (200, 1)


LARGE_OUTPUT = """
    @headrace.endpoint(name="large", idempotent=False)
    def large() -> str:
        return "x" * 1_500_000
"""


async def test_plain_calls_are_served_and_jobs_are_refused_until_it_answers(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(system, "FIRST_OPEN_S", 0.2)
    monkeypatch.setattr(system, "OPEN_TIMEOUT_S", 1.0)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    settings = make_settings(work / "away", store=f"postgresql://nobody@127.0.0.1:{port}/none")
    async with running_platform(settings, work) as platform:
        assert (await platform.deploy(SOURCE))["state"] == "succeeded"
        assert await platform.call("add", {"a": 1}) == 2
        for path, body, headers in (
            ("/api/v1/jobs", {"endpoint": "add", "input": {"a": 1}}, {}),
            ("/e/add", {"a": 1}, {"Prefer": "respond-async"}),
            ("/e/add", {"a": 1}, {"Idempotency-Key": "k"}),
            ("/v2/add/run", {"input": {"a": 1}}, {}),
            ("/v2/add/runsync", {"input": {"a": 1}}, {}),
            ("/cog/add/predictions", {"input": {"a": 1}}, {}),
        ):
            status, told, problem = await platform.request("POST", path, json=body, headers=headers)
            assert (status, problem["type"]) == (503, "urn:headrace:store-unavailable"), problem
            assert told["Retry-After"] == "1", path
        body = {"model": "chat", "messages": []}
        status, told, problem = await platform.request(
            "POST", "/v1/chat/completions", json=body, headers={"Idempotency-Key": "k"}
        )
        assert (status, problem["error"]["code"]) == (503, "store_unavailable"), problem
        assert told["Retry-After"] == "1"
        jobs = platform.cluster.gateway.jobs
        jobs._settings = msgspec.structs.replace(settings, store="")

        async def taken() -> bool:
            status, _, _ = await platform.request("POST", "/api/v1/jobs", json={"endpoint": "add"})
            return status == 202

        await until(taken)


ONCE = """
    @headrace.endpoint(name="add")
    def add(a: int, pad: str = "") -> int:
        return a + 1

    @headrace.endpoint(name="stream")
    def stream(a: int, pad: str = ""):
        yield from range(a)

    @headrace.endpoint(name="once", idempotent=False)
    def once(a: int, pad: str = "") -> int:
        return a + 1
"""
OWN = {"Idempotency-Key": "k", "X-Headrace-If-Unstored": "run"}
LARGE = {"a": 1, "pad": "x" * 60_000}


async def test_a_full_disk_stops_no_call_that_needs_no_store(work: Path) -> None:
    async with running_platform(make_settings(work / "full"), work) as platform:
        assert (await platform.deploy(ONCE))["state"] == "succeeded"

        def call(name: str, **options: Any) -> Any:
            with Client(platform.cluster.url, platform.cluster.admin_key, retry_for=0.1) as client:
                found = client.call(name, json=LARGE, timeout=10, **options)
                return list(found) if name == "stream" else found

        def refused(name: str, **options: Any) -> bool:
            with pytest.raises(StoreUnavailable, match="full"):
                call(name, **options)
            return True

        service = platform.cluster.gateway.jobs.service
        database = service.store._db  # type: ignore[attr-defined]
        await database.write(_fill)
        # Nobody asked for the client's own key.
        assert await asyncio.to_thread(call, "add") == 2
        assert await asyncio.to_thread(call, "add", idempotent=False) == 2
        assert await asyncio.to_thread(call, "stream") == [0]
        status, _, answer = await platform.request("POST", "/e/add", json=LARGE, headers=OWN)
        assert (status, answer) == (200, 2)
        # A key that was given is kept, and what may run once only runs once.
        assert await asyncio.to_thread(refused, "add", idempotency_key="mine")
        assert await asyncio.to_thread(refused, "once")
        await database.write(lambda db: db.execute("PRAGMA max_page_count=1000000"))
        assert await asyncio.to_thread(call, "once") == 2
        status, _, answer = await platform.request("POST", "/e/add", json=LARGE, headers=OWN)
        status, headers, answer = await platform.request("POST", "/e/add", json=LARGE, headers=OWN)
        assert (status, answer, headers["Idempotent-Replayed"]) == (200, 2, "true")


def _fill(db: sqlite3.Connection) -> None:
    """It grows no further."""
    pages = db.execute("PRAGMA page_count").fetchone()[0]
    db.execute(f"PRAGMA max_page_count={pages}")


async def test_jobs_without_blobs_run_while_s3_is_away_and_the_others_when_it_is_back(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "tests",
        "AWS_SECRET_ACCESS_KEY": "tests-secret",
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }.items():
        monkeypatch.setenv(name, value)
    settings = make_settings(work / "s3", blobs="s3://jobs/x")
    async with running_platform(settings, work) as platform:
        await platform.deploy(SOURCE)

        async def submit(pad: int) -> tuple[int, Any]:
            body = json.dumps({"endpoint": "add", "input": {"a": 1, "pad": "x" * pad}}).encode()
            headers = {"Content-Type": "application/json"}
            status, _, job = await platform.request(
                "POST", "/api/v1/jobs", data=io.BytesIO(body), headers=headers
            )
            return status, job

        async def small() -> Any:
            status, job = await submit(0)
            return status == 202 and job

        job = await until(small)
        done = await platform.api("GET", f"/jobs/{job['id']}?wait=30")
        assert (done["state"], done["output"]) == ("succeeded", 2), done
        status, problem = await submit(2 << 20)
        assert (status, problem["type"]) == (503, "urn:headrace:blobs-unavailable"), problem
        server = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "moto.server",
            "-H",
            "127.0.0.1",
            "-p",
            str(port),
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )
        try:

            async def bucket() -> bool:
                try:
                    async with platform.http.put(f"http://127.0.0.1:{port}/jobs") as answer:
                        return answer.status == 200
                except aiohttp.ClientError:
                    return False

            await until(bucket)
            status, job = await submit(2 << 20)
            assert status == 202, job
            done = await platform.api("GET", f"/jobs/{job['id']}?wait=30")
            assert (done["state"], done["output"]) == ("succeeded", 2), done
        finally:
            server.kill()
            await server.wait()


async def test_a_job_outlives_any_number_of_refusals_while_its_input_cannot_be_had(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ends, "MAX_LOST", 3)
    monkeypatch.setattr(outcome, "RELEASE_DELAY_S", 0.001)
    async with running_platform(make_settings(work / "input"), work) as platform:
        await platform.deploy(HOLDING)
        blobs, aside = work / "input" / "blobs-jobs", work / "aside"

        async def submit(**input: Any) -> str:
            body = {"endpoint": "held", "input": input}
            data = io.BytesIO(json.dumps(body).encode())
            headers = {"Content-Type": "application/json"}
            status, _, job = await platform.request("POST", "/api/v1/jobs", data=data, headers=headers)
            assert status == 202, job
            return str(job["id"])

        first = await submit(seconds=3.0)

        async def runs() -> bool:
            return bool((await platform.api("GET", f"/jobs/{first}"))["state"] == "running")

        await until(runs)
        large = await submit(seconds=0.0, pad="x" * 1_500_000)
        blobs.rename(aside)
        blobs.touch()
        store = platform.cluster.gateway.jobs.service.store

        async def refused() -> Any:
            job = await store.get("default", large)
            assert job is not None
            assert job.state in ("queued", "running"), job.reason
            return job.unsent >= 6 and job.state == "queued" and job

        job = await until(refused)
        assert (job.lost, "blobs-jobs" in job.reason) == (0, True), job
        # Ever longer, but not for ever: what was refused for long still runs soon after the end of it.
        assert [outcome.pause_s(n) for n in (0, 1, 2, 4, 5, 99)] == [
            seconds * outcome.RELEASE_DELAY_S for seconds in (1, 2, 4, 16, 30, 30)
        ]
        blobs.unlink()
        aside.rename(blobs)
        done = await platform.api("GET", f"/jobs/{large}?wait=30")
        assert (done["state"], len(done["attempts"])) == ("succeeded", 1), done


async def test_a_large_result_outlasts_an_outage_of_its_store_and_its_job_runs_once(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (leases, runner):
        monkeypatch.setattr(module, "LEASE_S", 1.5)
    monkeypatch.setattr(leases, "HEARTBEAT_S", 0.2)
    monkeypatch.setattr(results, "KEEP_RESULT_S", 0.5)
    async with running_platform(make_settings(work / "output"), work) as platform:
        await platform.deploy(LARGE_OUTPUT)
        blobs, aside = work / "output" / "blobs-jobs", work / "aside-too"
        store = platform.cluster.gateway.jobs.service.store
        blobs.rename(aside)
        blobs.touch()
        job = await platform.api("POST", "/jobs", {"endpoint": "large", "input": {}})
        began = time.monotonic()

        async def waits() -> bool:
            found = await store.get("default", job["id"])
            assert found is not None
            assert (found.state in ("queued", "running"), found.attempts <= 1) == (True, True), found
            # Longer than a lease, and than what results are kept for that the job store does not take.
            return time.monotonic() - began > 4.0

        await until(waits)
        blobs.unlink()
        aside.rename(blobs)
        done = await platform.api("GET", f"/jobs/{job['id']}?wait=30")
        assert (done["state"], done["output_size"]) == ("succeeded", 1_500_002), done
        assert [attempt["outcome"] for attempt in done["attempts"]] == ["succeeded"]


async def test_a_store_that_cannot_be_meant_ends_the_start(work: Path) -> None:
    with pytest.raises(SettingsError, match="--store: not an address"):
        await LocalCluster(make_settings(work / "odd", store="mysql://x/y")).start()


async def test_a_gateway_that_stops_leaves_nothing_of_its_own_in_the_store(work: Path) -> None:
    settings = make_settings(work / "stops")
    async with running_platform(settings, work) as platform:
        await platform.deploy(SOURCE)
        headers = {"Idempotency-Key": "k"}
        status, _, value = await platform.request("POST", "/e/add", json={"a": 1}, headers=headers)
        assert (status, value) == (200, 2)
        owner = platform.cluster.gateway.id
    with contextlib.closing(sqlite3.connect(settings.data / "jobs.db")) as db:
        assert db.execute("SELECT count(*) FROM jobs").fetchone() == (1,)
        assert db.execute("SELECT count(*) FROM waiters").fetchone() == (0,)
        assert db.execute("SELECT count(*) FROM jobs WHERE lease_owner = ?", [owner]).fetchone() == (0,)
    assert not (settings.data / "gateways" / owner).exists()
