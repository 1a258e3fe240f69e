"""Batching through the gateway: requests that come together run together."""

from __future__ import annotations

import asyncio

import pytest

from tests.integration.conftest import Platform, until

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_requests_that_come_together_are_one_batch(platform: Platform) -> None:
    # The batch waits longer than any of its requests could need to arrive: it goes when it is full.
    done = await platform.deploy("""
        @headrace.endpoint(name="together", batch=headrace.Batch(max_size=4, max_wait_ms=20_000))
        def together(xs: list[int]) -> list[list[int]]:
            return [[x, len(xs)] for x in xs]
    """)
    assert done["state"] == "succeeded", done
    answers = await asyncio.gather(*(platform.call("together", x) for x in range(4)))
    assert answers == [[x, 4] for x in range(4)]
    # The default target is one per instance, and a batch counts as one: else none would ever fill.
    assert len(await platform.instances("together")) == 1


async def test_batches_beyond_one_get_instances_of_their_own(platform: Platform) -> None:
    await platform.deploy("""
        import os, time

        @headrace.endpoint(
            name="beside", batch=headrace.Batch(max_size=2, max_wait_ms=1), scaling=headrace.Scaling(max=2)
        )
        def beside(xs: list[int]) -> list[int]:
            time.sleep(0.2)
            return [os.getpid()] * len(xs)
    """)
    stop = asyncio.Event()
    pids: set[int] = set()

    async def calls() -> None:
        while not stop.is_set():
            pids.add(await platform.call("beside", 1))

    async with asyncio.TaskGroup() as group:
        for _ in range(4):
            group.create_task(calls())
        try:
            await until(lambda: len(pids) == 2)
        finally:
            stop.set()
    assert len(await platform.instances("beside")) <= 2
