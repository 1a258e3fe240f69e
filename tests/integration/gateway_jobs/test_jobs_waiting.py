"""A lease is no start: what a job is told as while it waits for a slot, and what its time counts from."""

from __future__ import annotations

import asyncio
import itertools
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from headrace.gateway.jobs import lanes

from tests.integration.conftest import Platform, until
from tests.integration.gateway_jobs.test_jobs_death import free_port, post, ready, second_gateway, shared_file

pytestmark = pytest.mark.asyncio(loop_scope="module")

SOURCE = """
    import asyncio, time

    @headrace.endpoint(name="one", concurrency=1, scaling=headrace.Scaling(max=1), timeout=60)
    async def one(seconds: float) -> float:
        await asyncio.sleep(seconds)
        return seconds

    @headrace.endpoint(name="narrow", concurrency=1, scaling=headrace.Scaling(max=1),
                       queue=headrace.Queue(max_requests=3))
    async def narrow(seconds: float) -> float:
        await asyncio.sleep(seconds)
        return seconds

    @headrace.endpoint(name="once", concurrency=2, idempotent=False, scaling=headrace.Scaling(max=1))
    async def once(seconds: float, file: str, name: str) -> str:
        with open(file, "a") as f:
            f.write(f"{name}\\n")
        await asyncio.sleep(seconds)
        return name
"""


async def deploy(platform: Platform) -> None:
    if "default/one" not in platform.cluster.gateway.table.endpoints:
        found = await platform.deploy(SOURCE)
        assert found["state"] == "succeeded", found


async def busy(platform: Platform, seconds: float) -> asyncio.Task[Any]:
    """The one slot is taken for so long."""
    await platform.call("one", {"seconds": 0})
    task = asyncio.create_task(platform.call("one", {"seconds": seconds}))
    state = platform.cluster.gateway.dispatcher.state("default/one")
    assert state is not None
    await until(lambda: bool(state.in_flight))
    return task


async def submit(platform: Platform, seconds: float, **more: Any) -> str:
    job = await platform.api(
        "POST", "/jobs", {"endpoint": "one", "input": {"seconds": seconds}, "execution_timeout_s": 1.0} | more
    )
    return str(job["id"])


async def test_the_execution_timeout_runs_while_an_instance_has_the_job(platform: Platform) -> None:
    await deploy(platform)
    task = await busy(platform, 2.0)
    waits = [await submit(platform, 0.3, priority=p) for p in ("high", "normal", "low")]
    slow = await submit(platform, 20)
    for job_id in waits:
        found = await platform.api("GET", f"/jobs/{job_id}?wait=30")
        assert found["state"] == "succeeded", found
        assert found["started_at"] - found["created_at"] > 1.0, found
        assert found["finished_at"] - found["started_at"] < 1.0, found
        assert found["receipt"]["queued_ms"] > 1000, found
        assert [a["instance"] != "" for a in found["attempts"]] == [True], found
    found = await platform.api("GET", f"/jobs/{slow}?wait=30")
    assert (found["state"], found["error"]["type"]) == ("timed_out", "urn:headrace:deadline-exceeded"), found
    assert found["finished_at"] - found["started_at"] >= 0.9, found
    await task


async def test_a_job_that_waits_in_a_gateway_is_queued_for_everybody(platform: Platform) -> None:
    await deploy(platform)
    task = await busy(platform, 60.0)
    held = platform.cluster.gateway.dispatcher.state("default/one")
    assert held is not None
    high, normal = [await submit(platform, 0, priority=p) for p in ("high", "normal")]
    store = platform.cluster.gateway.jobs.service.store

    async def leased(job_id: str) -> bool:
        job = await store.get("default", job_id)
        return job is not None and job.state == "running"

    await until(lambda: leased(high))
    for job_id in (high, normal):
        found = await platform.api("GET", f"/jobs/{job_id}")
        assert (found["state"], found["started_at"], found["attempts"]) == ("queued", None, []), found
        assert found["waiting"]["for"] == "slot", found
        assert "busy" in found["waiting"]["reason"], found
        status, _, runpod = await platform.request("GET", f"/v2/one/status/{job_id}")
        assert (status, runpod["status"]) == (200, "IN_QUEUE"), runpod
    listed = await platform.request("GET", "/api/v1/jobs?endpoint=one&state=queued")
    assert {high, normal} <= {item["id"] for item in listed[2]["items"]}, listed
    _, _, health = await platform.request("GET", "/v2/one/health")
    assert (health["jobs"]["inQueue"], health["jobs"]["inProgress"]) == (2, 0), health
    purged = await platform.api("POST", "/endpoints/one/purge")
    assert purged["removed"] == 2
    status, _, _ = await platform.request("GET", f"/api/v1/jobs/{high}")
    assert status == 404
    await until(lambda: not held.queue)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_what_gets_no_slot_in_a_gateway_goes_back_to_the_store(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    await deploy(platform)
    monkeypatch.setattr(lanes, "GIVE_BACK_S", 0.3)
    monkeypatch.setattr("headrace.gateway.jobs.attempt.GIVE_BACK_S", 0.3)
    task = await busy(platform, 3.0)
    job_id = await submit(platform, 0, priority="high")
    store = platform.cluster.gateway.jobs.service.store

    async def given_back() -> bool:
        job = await store.get("default", job_id)
        return job is not None and job.unsent > 0

    await until(given_back)
    assert (await platform.api("GET", f"/jobs/{job_id}"))["state"] == "queued"
    found = await platform.api("GET", f"/jobs/{job_id}?wait=30")
    assert (found["state"], found["lost"], len(found["attempts"])) == ("succeeded", 0, 1), found
    await task


async def test_jobs_have_their_share_of_an_endpoint_that_is_full_of_sync_calls(platform: Platform) -> None:
    await deploy(platform)
    await platform.call("one", {"seconds": 0})
    stop = asyncio.Event()
    calls = itertools.count()

    async def client(word: str) -> None:
        while not stop.is_set():
            await platform.call("one", {"seconds": 0.02}, headers={"X-Headrace-Priority": word})
            next(calls)

    clients = [asyncio.create_task(client(word)) for word in ("low", "normal", "normal", "normal")]
    try:
        await until(lambda: next(calls) > 20)
        for _ in range(2):
            found = await platform.api("GET", f"/jobs/{await submit(platform, 0)}?wait=30")
            assert found["state"] == "succeeded", found
    finally:
        stop.set()
        await asyncio.gather(*clients)


async def test_calls_with_a_key_are_within_the_bounds_of_the_queue(platform: Platform) -> None:
    await deploy(platform)
    await platform.call("narrow", {"seconds": 0})

    async def call(key: str, seconds: float) -> tuple[int, Any]:
        header = {"Idempotency-Key": key}
        status, headers, _ = await platform.request(
            "POST", "/e/narrow", json={"seconds": seconds}, headers=header
        )
        return status, headers

    first = asyncio.create_task(call("first", 2.0))
    state = platform.cluster.gateway.dispatcher.state("default/narrow")
    assert state is not None
    await until(lambda: state.in_flight == 1)
    others = [asyncio.create_task(call(f"other-{n}", 0)) for n in range(12)]
    done, waiting = await asyncio.wait(others, timeout=1.0)
    assert len(waiting) == 3, [task.result() for task in done]
    for task in done:
        status, headers = task.result()
        assert (status, int(headers["Retry-After"]) >= 1) == (429, True)
    # Whoever has been let in may come back, however full it is.
    again = asyncio.create_task(call("first", 2.0))
    for task in (first, again, *waiting):
        assert (await task)[0] == 200
    stored, _ = await platform.cluster.gateway.jobs.service.store.list("default", endpoint="sync:narrow")
    assert len(stored) == 4, "a refused call was stored"


def names(file: Path) -> list[str]:
    return file.read_text().split()


@pytest.mark.parametrize("kind", ["job", "call"])
async def test_what_is_not_idempotent_is_not_sent_again_after_the_death_of_its_gateway(
    platform: Platform, kind: str
) -> None:
    await deploy(platform)
    file = shared_file(platform, f"once-{kind}.txt")
    body = {"seconds": 30.0, "file": str(file), "name": "sent"}
    await platform.call("once", {**body, "seconds": 0, "name": "warm"})
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    key = {"Idempotency-Key": f"once-{kind}"}
    async with second_gateway(platform, port) as process:
        await ready(platform, url)
        if kind == "job":
            document = {"endpoint": "once", "input": body, "priority": "high"}
            _, job = await post(platform, url, "/api/v1/jobs", document, key)
            call = None
        else:
            call = asyncio.create_task(post(platform, url, "/e/once", body, key))
        await until(lambda: "sent" in names(file))
        process.kill()
        await process.wait()
    if call is not None:
        with pytest.raises(aiohttp.ClientError):
            await call
        status, error = await post(platform, platform.cluster.url, "/e/once", body, key)
    else:
        found = await platform.api("GET", f"/jobs/{job['id']}?wait=30")
        assert found["state"] == "failed", found
        status, error = found["error"]["status"], found["error"]
    assert (status, error["type"]) == (502, "urn:headrace:instance-died"), error
    assert "not sent again" in error["detail"], error
    assert names(file) == ["warm", "sent"]
