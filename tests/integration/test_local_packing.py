"""Requests are kept together on as few instances as their target says: what is too many falls idle."""

from __future__ import annotations

import asyncio

import pytest

from tests.integration.conftest import Platform

pytestmark = pytest.mark.asyncio(loop_scope="module")

SOURCE = """
    import asyncio

    @headrace.endpoint(
        name="shared", concurrency=4, cpu=0.1, memory="32MiB",
        scaling=headrace.Scaling(max=4, target_concurrency=4, idle_timeout=1),
    )
    async def shared(seconds: float) -> float:
        await asyncio.sleep(seconds)
        return seconds
"""


async def test_what_a_crowd_needed_goes_though_requests_go_on(platform: Platform) -> None:
    assert (await platform.deploy(SOURCE))["state"] == "succeeded"

    async def ready() -> int:
        about = await platform.api("GET", "/endpoints/shared")
        return sum(one["state"] == "ready" for one in about["instances"])

    crowd = [asyncio.create_task(platform.call("shared", {"seconds": 2.0})) for _ in range(16)]
    async with asyncio.timeout(30):
        while await ready() < 3:
            await asyncio.sleep(0.05)
        await asyncio.gather(*crowd)
    stop = asyncio.Event()

    async def client() -> None:
        while not stop.is_set():
            await platform.call("shared", {"seconds": 0.2})

    clients = [asyncio.create_task(client()) for _ in range(4)]
    try:
        async with asyncio.timeout(30):
            while await ready() > 1:
                await asyncio.sleep(0.1)
    finally:
        stop.set()
        await asyncio.gather(*clients)
