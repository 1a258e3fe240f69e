"""Sync calls without a key, asked for by their request id: why they wait, where they are, how they ended."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from headrace.errors import BodyTooLarge
from headrace.gateway.recent import living
from headrace.sdk.client import Client

from tests.integration.conftest import Platform, until

pytestmark = pytest.mark.asyncio(loop_scope="module")

SOURCE = """
    import asyncio

    @headrace.endpoint(name="nap", timeout=30, scaling=headrace.Scaling(max=1))
    async def nap(seconds: float) -> str:
        if seconds < 0:
            raise ValueError("back in time")
        await asyncio.sleep(seconds)
        return "rested"

    @headrace.endpoint(name="other")
    def other() -> int:
        return 1

    @headrace.endpoint(name="size", max_body="1MiB")
    def size(data: bytes) -> int:
        return len(data)
"""


async def deployed(platform: Platform) -> None:
    if "default/nap" not in platform.cluster.gateway.table.endpoints:
        found = await platform.deploy(SOURCE)
        assert found["state"] == "succeeded", found
        assert await platform.call("nap", {"seconds": 0}) == "rested"


def call(platform: Platform, seconds: float) -> asyncio.Task[tuple[int, Any, Any]]:
    return asyncio.create_task(platform.request("POST", "/e/nap", json={"seconds": seconds}))


async def known(platform: Platform, number: int) -> list[str]:
    """Ids of the requests that wait or run, oldest first."""
    dispatcher = platform.cluster.gateway.dispatcher
    state = dispatcher.state("default/nap")
    assert state is not None

    def look() -> list[str]:
        calls = [*state.queue.items(), *(a.call for i in state.instances.values() for a in i.running)]
        calls.sort(key=lambda found: found.order)
        return [found.request.id for found in calls] if len(calls) == number else []

    found = await until(look)
    assert all(living(dispatcher.states(), id) is not None for id in found)
    return list(found)


async def test_a_living_call_says_where_it_is(platform: Platform) -> None:
    await deployed(platform)
    calls = [call(platform, 1.5), call(platform, 0)]
    runs, waits = await known(platform, 2)
    shown = await platform.api("GET", f"/jobs/{runs}")
    assert (shown["state"], shown["endpoint"], shown["waiting"]) == ("running", "nap", None)
    assert shown["attempts"][0]["outcome"] == "running"
    shown = await platform.api("GET", f"/jobs/{waits}")
    assert (shown["state"], shown["attempts"]) == ("queued", [])
    assert shown["waiting"]["for"] == "slot"
    assert "busy endpoint" in shown["waiting"]["reason"]
    shown = await platform.api("GET", f"/jobs/{waits}?wait=20")
    assert (shown["state"], shown["error"]) == ("succeeded", None)
    for task, id in zip(calls, (runs, waits), strict=True):
        status, headers, value = await task
        assert (status, value, headers["X-Headrace-Request-Id"]) == (200, "rested", id)


async def test_an_ended_call_says_how(platform: Platform) -> None:
    await deployed(platform)
    _, headers, _ = await platform.request("POST", "/e/nap", json={"seconds": 0.1})
    shown = await platform.api("GET", f"/jobs/{headers['X-Headrace-Request-Id']}")
    assert shown["state"] == "succeeded"
    assert shown["created_at"] <= shown["started_at"] <= shown["finished_at"] <= shown["deadline_at"]
    assert shown["receipt"]["ran_ms"] >= 100
    assert shown["receipt"]["instance"] == shown["attempts"][0]["instance"]
    _, headers, _ = await platform.request("POST", "/e/nap", json={"seconds": -1})
    failed = f"/jobs/{headers['X-Headrace-Request-Id']}"
    assert (await platform.api("GET", failed))["state"] == "failed"
    assert (await platform.request("POST", f"/api/v1{failed}/retry"))[0] == 409
    assert (await platform.request("GET", f"/api/v1{failed}/output"))[0] == 404
    headers = {"X-Headrace-Timeout": "0.2"}
    _, told, _ = await platform.request("POST", "/e/nap", json={"seconds": 9}, headers=headers)
    late = await platform.api("GET", f"/jobs/{told['X-Headrace-Request-Id']}")
    # The instance may be the first to say that it is late.
    assert late["state"] in ("timed_out", "failed")
    assert late["error"]["status"] == 504


async def test_a_call_is_cancelled_by_its_id(platform: Platform) -> None:
    await deployed(platform)
    calls = [call(platform, 20), call(platform, 20)]
    for id, task in zip(await known(platform, 2), calls, strict=True):
        shown = await platform.api("POST", f"/jobs/{id}/cancel")
        assert shown["state"] == "cancelled"
        status, _, problem = await task
        assert (status, problem["detail"]) == (409, "the call was cancelled.")
        assert (await platform.api("POST", f"/jobs/{id}/cancel"))["state"] == "cancelled"
    assert await platform.call("nap", {"seconds": 0}) == "rested"


async def test_a_call_with_a_key_is_the_stores(platform: Platform) -> None:
    await deployed(platform)
    headers = {"Idempotency-Key": "kept"}
    _, told, _ = await platform.request("POST", "/e/nap", json={"seconds": 0}, headers=headers)
    shown = await platform.api("GET", f"/jobs/{told['X-Headrace-Request-Id']}")
    assert (shown["state"], shown["output"]) == ("succeeded", "rested")
    listed = await platform.api("GET", "/jobs?endpoint=nap")
    assert shown["id"] in [job["id"] for job in listed["items"]]


async def test_a_key_knows_no_calls_of_other_endpoints(platform: Platform) -> None:
    await deployed(platform)
    _, told, _ = await platform.request("POST", "/e/nap", json={"seconds": 0})
    id = told["X-Headrace-Request-Id"]
    for endpoint, expected in (("nap", 200), ("other", 404)):
        body = {"name": endpoint, "scopes": ["invoke"], "endpoints": [endpoint]}
        key = (await platform.api("POST", "/keys", body))["key"]
        headers = {"Authorization": f"Bearer {key}"}
        assert (await platform.request("GET", f"/api/v1/jobs/{id}", headers=headers))[0] == expected
    assert (await platform.request("GET", f"/api/v1/jobs/{'0' * 18}"))[0] == 404


async def test_pages_and_purges_of_nothing(platform: Platform) -> None:
    await deployed(platform)
    for _ in range(3):
        await platform.api("POST", "/jobs", {"endpoint": "other"})
    page = await platform.api("GET", "/jobs?limit=2")
    assert (await platform.request("GET", f"/api/v1/jobs?cursor={page['next']}"))[0] == 200
    assert (await platform.request("GET", "/api/v1/jobs?cursor=zzz"))[0] == 422
    assert (await platform.request("POST", "/api/v1/endpoints/nothing/purge"))[0] == 404
    assert (await platform.request("POST", "/api/v1/endpoints/nap/purge"))[0] == 200


async def test_the_client_hears_that_a_body_is_too_large(platform: Platform) -> None:
    """The gateway answers before it has read the body: the client is still sending then."""
    await deployed(platform)

    def calls() -> None:
        with Client(platform.cluster.url, platform.cluster.admin_key) as client:
            for send in (client.call, client.submit):
                with pytest.raises(BodyTooLarge):
                    send("size", data=bytes(34_000_000))
            assert client.call("size", data=b"xyz") == 3
            assert client.submit("size", data=b"xy", content_type="image/png").result(10) == 2

    await asyncio.to_thread(calls)
