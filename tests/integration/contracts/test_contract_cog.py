"""Cog's contract: predictions, sync and async, under the client's ids, cancelled, told by webhooks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from tests.integration.conftest import Platform, make_settings, running_platform, until

pytestmark = pytest.mark.asyncio(loop_scope="module")

SOURCE = """
    import asyncio

    @headrace.endpoint(name="add", concurrency=4)
    def add(a: int, b: int = 1) -> int:
        if a == 13:
            raise ValueError("unlucky")
        return a + b

    @headrace.endpoint(name="nap", concurrency=2, timeout=30)
    async def nap(seconds: float) -> str:
        await asyncio.sleep(seconds)
        return "rested"

    @headrace.endpoint(name="drip")
    async def drip(n: int, size: int = 0):
        for i in range(n):
            yield i if not size else "x" * size
            await asyncio.sleep(0.4)

    @headrace.endpoint(name="count")
    def count(n: int):
        yield from range(n)
"""
ASYNC = {"Prefer": "respond-async"}


async def deployed(platform: Platform) -> None:
    if "default/add" not in platform.cluster.gateway.table.endpoints:
        found = await platform.deploy(SOURCE)
        assert found["state"] == "succeeded", found


async def predict(
    platform: Platform, endpoint: str, input: Any, *, id: str = "", **options: Any
) -> tuple[int, dict[str, Any]]:
    headers, body = options.pop("headers", {}), {"input": input, **options}
    path = f"/cog/{endpoint}/predictions" + (f"/{id}" if id else "")
    method = "PUT" if id else "POST"
    status, _, value = await platform.request(method, path, json=body, headers=headers)
    return status, value


async def test_a_prediction_is_answered_when_it_is_final(platform: Platform) -> None:
    await deployed(platform)
    status, found = await predict(platform, "add", {"a": 40, "b": 2})
    assert (status, found["status"], found["output"], found["error"]) == (200, "succeeded", 42, None)
    assert found["input"] == {"a": 40, "b": 2}
    assert found["metrics"]["predict_time"] >= 0
    assert found["created_at"] <= found["started_at"] <= found["completed_at"]
    status, items = await predict(platform, "count", {"n": 3})
    assert (status, items["output"]) == (200, [0, 1, 2])


async def test_a_failure_is_http_200(platform: Platform) -> None:
    await deployed(platform)
    status, found = await predict(platform, "add", {"a": 13})
    assert (status, found["status"], found["output"]) == (200, "failed", None)
    assert "unlucky" in found["error"]


async def test_the_same_id_is_the_same_prediction(platform: Platform) -> None:
    await deployed(platform)
    status, first = await predict(platform, "nap", {"seconds": 0.5}, id="mine-1", headers=ASYNC)
    assert (status, first["id"]) == (202, "mine-1")
    assert first["status"] in ("starting", "processing")
    status, again = await predict(platform, "nap", {"seconds": 0.5}, id="mine-1")
    assert (status, again["status"], again["output"]) == (200, "succeeded", "rested")
    assert again["created_at"] == first["created_at"]
    status, other = await predict(platform, "nap", {"seconds": 9}, id="mine-1")
    assert status == 422, other
    status, elsewhere = await predict(platform, "add", {"a": 1}, id="mine-1")
    assert (status, elsewhere["output"]) == (200, 2)
    status, _, shown = await platform.request("GET", "/cog/nap/predictions/mine-1")
    assert (status, shown["status"]) == (200, "succeeded")


async def test_a_prediction_is_cancelled(platform: Platform) -> None:
    await deployed(platform)
    _, found = await predict(platform, "nap", {"seconds": 30}, headers=ASYNC)
    status, _, value = await platform.request("POST", f"/cog/nap/predictions/{found['id']}/cancel")
    assert (status, value) == (200, {})
    _, _, shown = await platform.request("GET", f"/cog/nap/predictions/{found['id']}")
    assert shown["status"] == "canceled"


async def test_bad_requests(platform: Platform) -> None:
    await deployed(platform)
    assert (await predict(platform, "nothing", {}))[0] == 404
    assert (await predict(platform, "add", {"a": 1}, id="not%20good"))[0] == 422
    assert (await predict(platform, "add", {"a": 1}, webhook_events_filter=["ended"]))[0] == 422
    assert (await platform.request("GET", "/cog/add/predictions/unknown"))[0] == 404
    assert (await platform.request("GET", "/cog/add/predictions"))[0] == 405
    status, found = await predict(platform, "add", {"a": "seven"})
    assert (status, found["status"]) == (200, "failed")


async def test_webhooks_by_filter(tmp_path: Path) -> None:
    told: list[dict[str, Any]] = []

    async def receive(request: web.Request) -> web.Response:
        told.append(await request.json())
        return web.Response()

    app = web.Application(client_max_size=64 << 20)
    app.router.add_post("/hook", receive)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    settings = make_settings(tmp_path / "data", webhook_private=True)
    try:
        async with running_platform(settings, tmp_path) as platform:
            await deployed(platform)
            url = f"http://127.0.0.1:{port}/hook"
            wanted = ["start", "completed"]
            await predict(platform, "add", {"a": 1}, webhook=url, webhook_events_filter=wanted)
            await until(lambda: len(told) == 2)
            assert {doc["status"] for doc in told} == {"processing", "succeeded"}
            done = next(doc for doc in told if doc["status"] == "succeeded")
            assert done["output"] == 2
            told.clear()
            await predict(platform, "drip", {"n": 4}, webhook=url, webhook_events_filter=["output"])
            await until(lambda: [0, 1, 2, 3] in [doc["output"] for doc in told])
            assert len(told) > 1
            for doc in told:
                assert doc["output"] == list(range(len(doc["output"]))), told
            told.clear()
            await predict(platform, "drip", {"n": 3, "size": 600_000}, webhook=url, headers=ASYNC)
            await until(lambda: "succeeded" in [doc["status"] for doc in told])
            assert {len(doc["output"] or ()) for doc in told if doc["status"] == "processing"} >= {0, 1}
    finally:
        await runner.cleanup()
