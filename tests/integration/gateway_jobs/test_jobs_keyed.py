"""Sync calls with an ``Idempotency-Key``: bounded as others are, each client with its own deadline."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from headrace.gateway.endpoints import EndpointState
from headrace.gateway.jobs import lanes

from tests.integration.conftest import Platform, until

pytestmark = pytest.mark.asyncio(loop_scope="module")

SOURCE = """
    import asyncio

    @headrace.endpoint(name="narrow", concurrency=1, scaling=headrace.Scaling(max=1), timeout=60,
                       queue=headrace.Queue(max_requests=6))
    async def narrow(seconds: float) -> float:
        await asyncio.sleep(seconds)
        return seconds

    runs = 0

    @headrace.endpoint(name="app")
    async def app(scope, receive, send):
        global runs
        runs += 1
        body = b"%d" % runs
        headers = [(b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": 201, "headers": headers})
        await send({"type": "http.response.body", "body": body})
"""


async def deploy(platform: Platform) -> EndpointState:
    if "default/narrow" not in platform.cluster.gateway.table.endpoints:
        found = await platform.deploy(SOURCE)
        assert found["state"] == "succeeded", found
        await platform.call("narrow", {"seconds": 0})
    state = platform.cluster.gateway.dispatcher.state("default/narrow")
    assert state is not None
    return state


async def keyed(platform: Platform, key: str, seconds: float, **headers: str) -> tuple[int, Any, Any]:
    return await platform.request(
        "POST", "/e/narrow", json={"seconds": seconds}, headers={"Idempotency-Key": key, **headers}
    )


async def test_calls_that_wait_in_the_store_count_too(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A gateway takes so many out of the store: those behind had no bound, nor did plain calls see them."""
    state = await deploy(platform)
    monkeypatch.setattr(lanes, "SYNC_WINDOW", 3)
    first = asyncio.create_task(keyed(platform, "first", 2.0))
    await until(lambda: state.in_flight == 1)
    others = [asyncio.create_task(keyed(platform, f"other-{n}", 0)) for n in range(20)]
    done, waiting = await asyncio.wait(others, timeout=1.0)
    assert len(waiting) == 6, [task.result()[0] for task in done]
    assert {task.result()[0] for task in done} == {429}
    assert len(state.queue) < 6
    status, headers, problem = await platform.request("POST", "/e/narrow", json={"seconds": 0})
    assert (status, problem["type"]) == (429, "urn:headrace:queue-full"), problem
    assert int(headers["Retry-After"]) >= 1
    assert problem["detail"].startswith("6 requests"), problem
    assert [(await task)[0] for task in (first, *waiting)] == [200] * 7
    assert (state.coming.requests, state.coming.bytes, state.coming.by_key) == (0, 0, {})
    # What was refused was not stored, and has its place now.
    assert (await keyed(platform, "other-19", 0))[0] == 200


async def test_whoever_joins_a_call_has_a_deadline_of_its_own(platform: Platform) -> None:
    state = await deploy(platform)
    first = asyncio.create_task(keyed(platform, "shared", 2.0))
    await until(lambda: state.in_flight == 1)
    status, _, problem = await keyed(platform, "shared", 2.0, **{"X-Headrace-Timeout": "0.2"})
    assert (status, problem["type"]) == (504, "urn:headrace:deadline-exceeded"), problem
    assert not first.done(), "the deadline passed, and its client waited for the call all the same"
    again = await keyed(platform, "shared", 2.0)
    assert [(await first)[0], again[0], again[1].get("Idempotent-Replayed")] == [200, 200, "true"]


async def test_a_key_is_honoured_with_every_method_that_changes_something(platform: Platform) -> None:
    await deploy(platform)
    for method in ("POST", "PUT", "PATCH", "DELETE"):
        header = {"Idempotency-Key": f"key-of-{method}"}
        first, again = [
            await platform.request(method, "/e/app/thing", data=b"x", headers=header) for _ in range(2)
        ]
        assert (first[0], again[0], again[2]) == (201, 201, first[2]), method
        assert again[1].get("Idempotent-Replayed") == "true", method
    # Another method with the same key is another request.
    header = {"Idempotency-Key": "key-of-POST"}
    status, _, problem = await platform.request("PUT", "/e/app/thing", data=b"x", headers=header)
    assert status == 422, problem


async def test_a_call_that_made_room_for_another_key_needs_a_place_anew(platform: Platform) -> None:
    state = await deploy(platform)
    made = await platform.api("POST", "/keys", {"name": "modest", "scopes": ["invoke"]})
    other = {"Authorization": f"Bearer {made['key']}"}
    first = asyncio.create_task(keyed(platform, "hold", 2.0))
    await until(lambda: state.in_flight == 1)
    greedy = {n: asyncio.create_task(keyed(platform, f"greedy-{n}", 0)) for n in range(6)}
    await until(lambda: len(state.queue) == 6)
    modest = asyncio.create_task(keyed(platform, "modest", 0, **other))
    await until(lambda: any(task.done() for task in greedy.values()))
    (out,) = [n for n, task in greedy.items() if task.done()]
    assert greedy.pop(out).result()[0] == 429
    # Its key is known now; that lets nobody in.
    assert (await keyed(platform, f"greedy-{out}", 0))[0] == 429
    assert [(await task)[0] for task in (first, modest, *greedy.values())] == [200] * 7
    assert (await keyed(platform, f"greedy-{out}", 0))[0] == 200
