"""Jobs on a whole platform: submitted at zero, streamed, cancelled, retried, answered once."""

from __future__ import annotations

import asyncio
import io
import json
from pathlib import Path
from typing import Any

import pytest

from tests.integration.conftest import Platform, until

pytestmark = pytest.mark.asyncio(loop_scope="module")

SOURCE = """
    import asyncio, os, pathlib, time

    @headrace.endpoint(name="add", concurrency=4)
    def add(a: int, b: int = 1) -> int:
        return a + b

    @headrace.endpoint(name="count", concurrency=2)
    def count(n: int):
        for i in range(n):
            if i == 13:
                raise ValueError("unlucky")
            yield {"i": i}

    @headrace.endpoint(name="slow", concurrency=2, timeout=60)
    async def slow(seconds: float, file: str = "") -> str:
        if file:
            with open(file, "a") as f:
                f.write("started\\n")
        try:
            await asyncio.sleep(seconds)
        except asyncio.CancelledError:
            if file:
                with open(file, "a") as f:
                    f.write("cancelled\\n")
            raise
        if file:
            with open(file, "a") as f:
                f.write("ended\\n")
        return "done"

    @headrace.endpoint(name="big", concurrency=1)
    def big(text: str) -> str:
        return text * 2
"""


async def deploy(platform: Platform) -> None:
    if "default/add" not in platform.cluster.gateway.table.endpoints:
        found = await platform.deploy(SOURCE)
        assert found["state"] == "succeeded", found


def shared_file(platform: Platform, name: str) -> Path:
    """A file that instances may write, whatever their uid."""
    platform.work.chmod(0o711)
    file = platform.work / name
    file.touch()
    file.chmod(0o666)
    return file


async def submit(platform: Platform, endpoint: str, input: Any, **more: Any) -> dict[str, Any]:
    status, headers, job = await platform.request(
        "POST", "/api/v1/jobs", json={"endpoint": endpoint, "input": input, **more}
    )
    assert status == 202, job
    assert headers["Location"] == f"/api/v1/jobs/{job['id']}"
    return job


async def final(platform: Platform, job_id: str) -> dict[str, Any]:
    return await platform.api("GET", f"/jobs/{job_id}?wait=30")


async def test_a_job_wakes_an_endpoint_at_zero_and_its_result_is_kept(platform: Platform) -> None:
    await deploy(platform)
    await platform.to_zero("add")
    job = await submit(platform, "add", {"a": 1, "b": 41})
    assert job["state"] in ("queued", "running")
    done = await final(platform, job["id"])
    assert (done["state"], done["output"]) == ("succeeded", 42), done
    assert done["receipt"]["instance"]
    assert [a["outcome"] for a in done["attempts"]] == ["succeeded"]
    status, headers, value = await platform.request("GET", f"/api/v1/jobs/{job['id']}/output")
    assert (status, value, headers["Content-Type"]) == (200, 42, "application/json")
    listed = await platform.api("GET", "/jobs?endpoint=add&state=succeeded")
    assert [j["id"] for j in listed["items"]] == [job["id"]]


async def test_what_the_handler_raises_is_the_jobs_error(platform: Platform) -> None:
    await deploy(platform)
    done = await final(platform, (await submit(platform, "add", {"a": "x"}))["id"])
    assert (done["state"], done["error"]["type"]) == ("failed", "urn:headrace:validation-failed"), done
    again = await platform.api("POST", f"/jobs/{done['id']}/retry")
    assert again["state"] in ("queued", "running")
    done = await final(platform, done["id"])
    assert (done["state"], done["retried"], len(done["attempts"])) == ("failed", 1, 2)


async def test_a_stream_is_kept_item_by_item_and_whole(platform: Platform) -> None:
    await deploy(platform)
    job = await submit(platform, "count", {"n": 5})
    status, _, text = await platform.request("GET", f"/api/v1/jobs/{job['id']}/stream?format=ndjson")
    lines = [json.loads(line) for line in text.splitlines()]
    assert status == 200
    assert [line["item"]["i"] for line in lines[:-1]] == [0, 1, 2, 3, 4]
    assert lines[-1] == {"end": {"state": "succeeded", "error": None}}
    done = await final(platform, job["id"])
    assert done["output"] == [{"i": i} for i in range(5)]
    _, _, text = await platform.request("GET", f"/api/v1/jobs/{job['id']}/stream?after=1.3")
    assert text.startswith(b'id: 1.4\ndata: {"i":4}\n\nevent: end\n')


async def test_a_stream_that_raises_fails_with_its_items(platform: Platform) -> None:
    await deploy(platform)
    done = await final(platform, (await submit(platform, "count", {"n": 20}))["id"])
    assert (done["state"], done["error"]["type"]) == ("failed", "urn:headrace:handler-error"), done
    _, _, text = await platform.request("GET", f"/api/v1/jobs/{done['id']}/stream?format=ndjson")
    assert len(text.splitlines()) == 14


async def test_cancel_reaches_the_handler(platform: Platform) -> None:
    await deploy(platform)
    file = shared_file(platform, "cancelled.txt")
    job = await submit(platform, "slow", {"seconds": 30, "file": str(file)})
    await until(lambda: "started" in file.read_text())
    done = await platform.api("POST", f"/jobs/{job['id']}/cancel")
    assert done["state"] == "cancelled"
    await until(lambda: file.read_text() == "started\ncancelled\n")
    assert (await final(platform, job["id"]))["state"] == "cancelled"


async def test_a_job_that_runs_too_long_is_timed_out(platform: Platform) -> None:
    await deploy(platform)
    job = await submit(platform, "slow", {"seconds": 30}, execution_timeout_s=0.5)
    done = await final(platform, job["id"])
    assert (done["state"], done["error"]["type"]) == ("timed_out", "urn:headrace:deadline-exceeded"), done


async def test_bodies_above_a_mebibyte_go_to_the_blob_store(platform: Platform) -> None:
    await deploy(platform)
    text = "x" * (3 << 19)
    body = io.BytesIO(json.dumps({"endpoint": "big", "input": {"text": text}}).encode())
    status, _, job = await platform.request(
        "POST", "/api/v1/jobs", data=body, headers={"Content-Type": "application/json"}
    )
    assert status == 202
    done = await final(platform, job["id"])
    assert (done["state"], done["output"], done["output_size"]) == ("succeeded", None, len(text) * 2 + 2)
    _, _, value = await platform.request("GET", f"/api/v1/jobs/{job['id']}/output")
    assert value == text * 2


async def test_the_same_key_is_the_same_job_and_another_request_a_conflict(platform: Platform) -> None:
    await deploy(platform)
    headers = {"Idempotency-Key": "k1", "Prefer": "respond-async"}
    answers = await asyncio.gather(
        *(platform.request("POST", "/e/add", json={"a": 5}, headers=headers) for _ in range(5))
    )
    assert {status for status, _, _ in answers} == {202}
    assert len({job["id"] for _, _, job in answers}) == 1
    status, _, problem = await platform.request("POST", "/e/add", json={"a": 6}, headers=headers)
    assert (status, problem["type"]) == (422, "urn:headrace:idempotency-conflict")
    assert (await final(platform, answers[0][2]["id"]))["output"] == 6


async def test_purge_removes_what_is_queued(platform: Platform) -> None:
    await deploy(platform)
    jobs = [await submit(platform, "slow", {"seconds": 5}) for _ in range(6)]
    await until(lambda: platform.cluster.gateway.dispatcher.in_use()[0] >= 2)
    found = await platform.api("POST", "/endpoints/slow/purge")
    assert found == {"endpoint": "slow", "removed": 4}
    status, _, _ = await platform.request("GET", f"/api/v1/jobs/{jobs[-1]['id']}")
    assert status == 404
    for job in jobs[:2]:
        await platform.api("POST", f"/jobs/{job['id']}/cancel")


async def test_a_sync_call_with_a_key_runs_once_and_is_answered_again(platform: Platform) -> None:
    await deploy(platform)
    file = shared_file(platform, "once.txt")
    body = {"seconds": 0.3, "file": str(file)}
    headers = {"Idempotency-Key": "sync-1"}
    answers = await asyncio.gather(
        *(platform.request("POST", "/e/slow", json=body, headers=headers) for _ in range(4))
    )
    answers.append(await platform.request("POST", "/e/slow", json=body, headers=headers))
    assert [(status, value) for status, _, value in answers] == [(200, "done")] * 5
    assert file.read_text() == "started\nended\n"
    assert sum("Idempotent-Replayed" not in h for _, h, _ in answers) == 1
    assert "handler;dur=" in answers[0][1]["Server-Timing"]
    status, _, problem = await platform.request("POST", "/e/slow", json={"seconds": 1}, headers=headers)
    assert (status, problem["type"]) == (422, "urn:headrace:idempotency-conflict")
    status, _, problem = await platform.request(
        "POST", "/e/add", json={"a": "x"}, headers={"Idempotency-Key": "bad"}
    )
    assert (status, problem["type"]) == (422, "urn:headrace:validation-failed")


async def test_a_streamed_answer_to_a_key_is_passed_on_and_not_kept(platform: Platform) -> None:
    await deploy(platform)
    headers = {"Idempotency-Key": "stream-1"}
    status, _, text = await platform.request("POST", "/e/count", json={"n": 3}, headers=headers)
    assert (status, [json.loads(line)["i"] for line in text.splitlines()]) == (200, [0, 1, 2])
    status, _, problem = await platform.request("POST", "/e/count", json={"n": 3}, headers=headers)
    assert (status, problem["type"]) == (409, "urn:headrace:conflict"), problem


async def test_what_is_wrong_is_said(platform: Platform) -> None:
    await deploy(platform)
    cases: list[tuple[str, str, Any, int]] = [
        ("POST", "/jobs", {"endpoint": "nothing"}, 404),
        ("POST", "/jobs", {"endpoint": "add@77"}, 404),
        ("POST", "/jobs", {"endpoint": "add", "inputs": 1}, 422),
        ("POST", "/jobs", {"endpoint": "add", "priority": "urgent"}, 422),
        ("POST", "/jobs", {"endpoint": "sync:add"}, 404),
        ("POST", "/jobs", {"endpoint": "add", "webhook": "http://127.0.0.1:1/"}, 422),
        ("POST", "/jobs", {"endpoint": "add", "webhook": "ftp://example.com/"}, 422),
        ("GET", "/jobs/unknown", None, 404),
        ("POST", "/jobs/unknown/cancel", None, 404),
        ("POST", "/jobs/unknown/retry", None, 404),
        ("GET", "/jobs/unknown/stream", None, 404),
        ("GET", "/jobs?state=odd", None, 422),
        ("GET", "/jobs?limit=0", None, 422),
        ("PUT", "/jobs", None, 405),
        ("GET", "/endpoints/add/purge", None, 405),
    ]
    for method, path, body, expected in cases:
        status, _, problem = await platform.request(method, f"/api/v1{path}", json=body)
        assert status == expected, (method, path, body, problem)
        assert problem["type"].startswith("urn:headrace:")


async def test_a_restarted_gateway_finishes_what_the_old_one_ran(platform: Platform) -> None:
    await deploy(platform)
    jobs = [await submit(platform, "slow", {"seconds": 1}) for _ in range(4)]
    await until(lambda: platform.cluster.gateway.dispatcher.in_use()[0] >= 1)
    await platform.cluster.restart_gateway()
    await platform.cluster.wait_ready()
    for job in jobs:
        done = await final(platform, job["id"])
        assert (done["state"], done["output"]) == ("succeeded", "done"), done
