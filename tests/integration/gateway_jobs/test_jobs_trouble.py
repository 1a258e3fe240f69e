"""Jobs while things go wrong around them, and whose turn it is."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from headrace.gateway.jobs import looks, results, sync
from headrace.jobs.store import StoreUnavailable

from tests.integration.conftest import Platform, until

pytestmark = pytest.mark.asyncio(loop_scope="module")

SOURCE = """
    import asyncio, os, pathlib, time

    @headrace.endpoint(name="add", concurrency=4)
    def add(a: int, b: int = 1) -> int:
        return a + b

    @headrace.endpoint(name="one", concurrency=1, scaling=headrace.Scaling(max=1), timeout=60)
    async def one(seconds: float) -> float:
        await asyncio.sleep(seconds)
        return seconds

    @headrace.endpoint(name="noted", concurrency=1, scaling=headrace.Scaling(max=1), timeout=60)
    async def noted(seconds: float, file: str) -> str:
        with open(file, "a") as f:
            f.write(f"started {os.getpid()}\\n")
        try:
            await asyncio.sleep(seconds)
        except asyncio.CancelledError:
            with open(file, "a") as f:
                f.write("cancelled\\n")
            raise
        with open(file, "a") as f:
            f.write("ended\\n")
        return "done"

    @headrace.endpoint(name="once", concurrency=1, idempotent=False, timeout=60)
    async def once(seconds: float, file: str) -> str:
        return await noted.__wrapped__(seconds, file)

    @headrace.endpoint(name="breaks", concurrency=1)
    def breaks(file: str):
        first = not pathlib.Path(file).read_text()
        with open(file, "a") as f:
            f.write("run\\n")
        for i in range(3):
            yield i if first else 10 + i
            time.sleep(0.05)
            if first and i == 1:
                os._exit(3)

    @headrace.endpoint(name="narrow", concurrency=1, scaling=headrace.Scaling(max=1),
                       queue=headrace.Queue(max_requests=1))
    async def narrow(seconds: float) -> str:
        await asyncio.sleep(seconds)
        return "ok"

    @headrace.endpoint(name="doomed", gpu="H100")
    def doomed() -> int:
        return 1
"""


async def deploy(platform: Platform) -> None:
    if "default/add" not in platform.cluster.gateway.table.endpoints:
        found = await platform.deploy(SOURCE, verify=False)
        assert found["state"] == "succeeded", found


def shared_file(platform: Platform, name: str) -> Path:
    platform.work.chmod(0o711)
    file = platform.work / name
    file.touch()
    file.chmod(0o666)
    return file


async def submit(platform: Platform, endpoint: str, input: Any, **more: Any) -> str:
    job = await platform.api("POST", "/jobs", {"endpoint": endpoint, "input": input, **more})
    return str(job["id"])


async def final(platform: Platform, job_id: str) -> dict[str, Any]:
    found: dict[str, Any] = await platform.api("GET", f"/jobs/{job_id}?wait=30")
    return found


async def test_many_jobs_at_once_all_end(platform: Platform) -> None:
    await deploy(platform)
    ids = await asyncio.gather(*(submit(platform, "add", {"a": n}) for n in range(300)))
    done = await asyncio.gather(*(final(platform, id) for id in ids))
    assert [job["output"] for job in done] == [n + 1 for n in range(300)]
    assert {len(job["attempts"]) for job in done} == {1}
    runner = platform.cluster.gateway.jobs._runner
    assert runner is not None
    await until(lambda: not runner._runs)


async def test_a_result_waits_for_a_store_that_is_away(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    await deploy(platform)
    monkeypatch.setattr(results, "STORE_AGAIN_S", 0.05)
    store = platform.cluster.gateway.jobs.service.store
    real, tries = store.finish, []

    async def away(*args: Any) -> bool:
        tries.append(args[0])
        if len(tries) < 4:
            raise StoreUnavailable("it is away.")
        return await real(*args)

    monkeypatch.setattr(store, "finish", away)
    done = await final(platform, await submit(platform, "add", {"a": 1}))
    assert (done["state"], len(tries), len(done["attempts"])) == ("succeeded", 4, 1)


async def test_without_a_store_jobs_are_refused_and_plain_calls_are_not(platform: Platform) -> None:
    await deploy(platform)
    service = platform.cluster.gateway.jobs.service
    store, service._store = service._store, None
    try:
        status, headers, problem = await platform.request("POST", "/api/v1/jobs", json={"endpoint": "add"})
        assert (status, problem["type"], headers["Retry-After"]) == (
            503,
            "urn:headrace:store-unavailable",
            "1",
        )
        assert await platform.call("add", {"a": 1}) == 2
    finally:
        service._store = store


async def test_a_job_cancelled_elsewhere_is_ended_at_the_next_heartbeat(platform: Platform) -> None:
    await deploy(platform)
    file = shared_file(platform, "elsewhere.txt")
    id = await submit(platform, "noted", {"seconds": 30, "file": str(file)})
    await until(lambda: "started" in file.read_text())
    jobs = platform.cluster.gateway.jobs
    assert jobs._runner is not None
    await jobs.service.store.cancel("default", id, 0.0)
    await jobs._runner._leases.prolong(jobs._runner._runs.values())
    await until(lambda: "cancelled" in file.read_text())
    assert not jobs._runner._runs
    assert (await final(platform, id))["state"] == "cancelled"


async def test_a_killed_instance_costs_a_job_nothing_but_time(platform: Platform) -> None:
    await deploy(platform)
    file = shared_file(platform, "killed-instance.txt")
    id = await submit(platform, "noted", {"seconds": 0.5, "file": str(file)})
    await until(lambda: "started" in file.read_text())
    os.kill(int(file.read_text().split()[1]), signal.SIGKILL)
    done = await final(platform, id)
    assert (done["state"], done["output"]) == ("succeeded", "done"), done
    assert file.read_text().count("ended") == 1


async def test_items_of_a_new_attempt_replace_those_of_a_broken_one(platform: Platform) -> None:
    await deploy(platform)
    file = shared_file(platform, "breaks.txt")
    id = await submit(platform, "breaks", {"file": str(file)})
    done = await final(platform, id)
    assert (done["state"], done["output"]) == ("succeeded", [10, 11, 12]), done
    assert len(done["attempts"]) == 2
    _, _, text = await platform.request("GET", f"/api/v1/jobs/{id}/stream?format=ndjson")
    assert [line.split(b'"item":')[1] for line in text.splitlines()[:-1]] == [b"10}", b"11}", b"12}"]


async def test_a_runpod_stream_tells_the_attempt_of_its_items(platform: Platform) -> None:
    await deploy(platform)
    file = shared_file(platform, "breaks-runpod.txt")
    status, _, job = await platform.request("POST", "/v2/breaks/run", json={"input": {"file": str(file)}})
    assert status == 200, job
    found: list[tuple[int, int]] = []

    async def ended() -> bool:
        _, _, page = await platform.request("GET", f"/v2/breaks/stream/{job['id']}")
        found.extend((item["attempt"], item["output"]) for item in page["stream"])
        return page["status"] == "COMPLETED" and not page["stream"]

    await until(ended)
    last = found[-1][0]
    assert [item for attempt, item in found if attempt == last] == [10, 11, 12]
    # What was given before is told apart, and nothing of it comes after.
    void = [(attempt, item) for attempt, item in found if attempt != last]
    assert found[: len(void)] == void
    assert [item for _, item in void] == list(range(len(void)))


async def test_sync_calls_come_before_jobs_and_high_jobs_before_others(platform: Platform) -> None:
    await deploy(platform)
    store = platform.cluster.gateway.jobs.service.store
    assert await platform.call("one", {"seconds": 0.01}) == 0.01
    ids = [await submit(platform, "one", {"seconds": 0.15}) for _ in range(15)]
    low = await submit(platform, "one", {"seconds": 0.15}, priority="low")
    ids.append(await submit(platform, "one", {"seconds": 0.15}))
    await platform.call("one", {"seconds": 0.01})
    assert (await store.counts("default", "one")).succeeded <= 4
    high = await submit(platform, "one", {"seconds": 0.01}, priority="high")
    await final(platform, high)
    assert (await store.counts("default", "one")).succeeded <= 8
    done = [await final(platform, id) for id in ids]
    assert {job["state"] for job in done} == {"succeeded"}
    assert (await final(platform, low))["started_at"] >= max(job["started_at"] for job in done)


async def test_jobs_that_cannot_run_say_why_and_end_with_their_endpoint(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    await deploy(platform)
    monkeypatch.setattr(looks, "MISSING_S", 0.2)
    id = await submit(platform, "doomed", {})

    async def says_why() -> Any:
        job = await platform.api("GET", f"/jobs/{id}")
        return "no host has gpu H100" in job["waiting"]["reason"] and job

    job = await until(says_why)
    assert (job["state"], job["waiting"]["for"]) == ("queued", "instance")
    await platform.api("DELETE", "/endpoints/doomed")
    done = await final(platform, id)
    assert (done["state"], done["error"]["type"]) == ("failed", "urn:headrace:endpoint-not-found")


async def test_a_job_that_does_not_begin_in_its_time_is_timed_out(platform: Platform) -> None:
    await deploy(platform)
    busy = await submit(platform, "one", {"seconds": 5})
    id = await submit(platform, "one", {"seconds": 0.01}, ttl_s=0.3)
    done = await final(platform, id)
    assert (done["state"], done["attempts"]) == ("timed_out", []), done
    await platform.api("POST", f"/jobs/{busy}/cancel")


async def test_a_call_that_was_refused_may_come_again_with_its_key(platform: Platform) -> None:
    await deploy(platform)
    await platform.call("narrow", {"seconds": 0})
    in_use = platform.cluster.gateway.dispatcher.in_use
    calls = []
    for n in range(2):
        calls.append(asyncio.create_task(platform.request("POST", "/e/narrow", json={"seconds": 1})))
        await until(lambda n=n: in_use() == (1, n))  # type: ignore[misc]
    headers = {"Idempotency-Key": "refused"}
    status, answer_headers, problem = await platform.request(
        "POST", "/e/narrow", json={"seconds": 0}, headers=headers
    )
    assert (status, problem["type"]) == (429, "urn:headrace:queue-full"), problem
    assert int(answer_headers["Retry-After"]) >= 1
    assert {status for status, _, _ in await asyncio.gather(*calls)} == {200}
    status, _, value = await platform.request("POST", "/e/narrow", json={"seconds": 0}, headers=headers)
    assert (status, value) == (200, "ok")


async def hang_up(platform: Platform, file: Path, key: str, endpoint: str = "noted") -> None:
    """Call, and hang up when the handler has begun."""
    body = {"seconds": 0.5, "file": str(file)}
    task = asyncio.create_task(
        platform.request("POST", f"/e/{endpoint}", json=body, headers={"Idempotency-Key": key})
    )
    await until(lambda: "started" in file.read_text())
    task.cancel()
    with pytest.raises((asyncio.CancelledError, aiohttp.ClientError)):
        await task


async def test_a_client_that_comes_back_finds_its_call_running(platform: Platform) -> None:
    await deploy(platform)
    file = shared_file(platform, "back.txt")
    await hang_up(platform, file, "back")
    body = {"seconds": 0.5, "file": str(file)}
    status, _, value = await platform.request(
        "POST", "/e/noted", json=body, headers={"Idempotency-Key": "back"}
    )
    assert (status, value) == (200, "done")
    assert file.read_text().count("started") == file.read_text().count("ended") == 1


async def test_a_call_whose_client_stays_away_is_cancelled(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    await deploy(platform)
    monkeypatch.setattr(sync, "HANG_UP_GRACE_S", 0.05)
    file = shared_file(platform, "away.txt")
    await hang_up(platform, file, "away")
    await until(lambda: "cancelled" in file.read_text())
    # It has not come to its end: the same key may run it again, and not what must never run twice.
    body = {"seconds": 0.01, "file": str(file)}
    headers = {"Idempotency-Key": "away"}
    status, _, value = await platform.request("POST", "/e/noted", json=body, headers=headers)
    assert (status, value) == (200, "done"), value
    file = shared_file(platform, "away-once.txt")
    await hang_up(platform, file, "away-once", endpoint="once")
    await until(lambda: "cancelled" in file.read_text())
    body = {"seconds": 0.5, "file": str(file)}
    headers = {"Idempotency-Key": "away-once"}
    status, _, problem = await platform.request("POST", "/e/once", json=body, headers=headers)
    assert (status, problem["type"]) == (409, "urn:headrace:cancelled"), problem
    assert file.read_text().count("started") == 1
