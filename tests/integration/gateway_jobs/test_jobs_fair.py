"""Jobs of several API keys share an endpoint."""

from __future__ import annotations

import secrets

import pytest
from headrace.jobs.model import NewJob, Payload

from tests.integration.conftest import Platform

pytestmark = pytest.mark.asyncio(loop_scope="module")

SOURCE = """
    import asyncio

    @headrace.endpoint(name="one", concurrency=1, scaling=headrace.Scaling(max=1), timeout=60)
    async def one(seconds: float) -> float:
        await asyncio.sleep(seconds)
        return seconds
"""


async def test_a_key_with_many_jobs_does_not_keep_another_one_waiting(platform: Platform) -> None:
    await platform.deploy(SOURCE)
    assert await platform.call("one", {"seconds": 0.01}) == 0.01
    service = platform.cluster.gateway.jobs.service

    async def submit(key: str) -> str:
        body = b'{"seconds": 0.1}'
        new = NewJob(
            id=secrets.token_hex(8),
            project="default",
            endpoint="one",
            key_id=key,
            input=Payload(data=body, size=len(body)),
        )
        return (await service.submit(new))[0].id

    greedy = [await submit("greedy") for _ in range(40)]
    modest = [await submit("modest") for _ in range(3)]
    for id in modest:
        done = await service.wait("default", id, 30)
        assert done is not None
        assert done.state == "succeeded", done
    # What had been leased by then, one per turn, and some leased ahead.
    assert (await service.counts("default", "one")).succeeded <= len(modest) + 20
    for id in greedy:
        done = await service.wait("default", id, 30)
        assert done is not None
        assert done.state == "succeeded", done
