"""Many requests at once: bursts, rollouts under load, hang-ups."""

from __future__ import annotations

import asyncio
import time
from collections import Counter

import aiohttp
import pytest

from tests.integration.conftest import Platform, until

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_a_burst_at_zero(platform: Platform) -> None:
    await platform.deploy("""
        import os, threading, time
        lock, now, most = threading.Lock(), 0, 0

        @headrace.endpoint(name="burst", concurrency=4, scaling=headrace.Scaling(max=4))
        def burst() -> dict:
            global now, most
            with lock:
                now += 1
                most = max(most, now)
            time.sleep(0.02)
            with lock:
                now -= 1
            return {"pid": os.getpid(), "most": most}
    """)
    await platform.to_zero("burst")
    before = (await platform.api("GET", "/status"))["wakes"]
    answers = await asyncio.gather(*(platform.call("burst") for _ in range(200)))
    assert len(answers) == 200
    assert max(a["most"] for a in answers) <= 4
    assert len({a["pid"] for a in answers}) <= 4
    after = (await platform.api("GET", "/status"))["wakes"]
    assert after - before == 1


async def test_rollout_under_load_fails_no_request(platform: Platform) -> None:
    def source(n: int) -> str:
        return f"""
            import time

            @headrace.endpoint(name="rolling", concurrency=8, scaling=headrace.Scaling(min=1, max=3))
            def rolling() -> int:
                time.sleep(0.01)
                return {n}
        """

    await platform.deploy(source(1))
    assert await platform.call("rolling") == 1
    results: list[tuple[int, object]] = []
    stop = time.monotonic() + 3.0

    async def one() -> None:
        status, _, value = await platform.request("POST", "/e/rolling", json={})
        results.append((status, value))

    async def load() -> None:
        async with asyncio.TaskGroup() as group:
            while time.monotonic() < stop:
                group.create_task(one())
                await asyncio.sleep(0.02)

    running = asyncio.create_task(load())
    await asyncio.sleep(0.3)
    done = await platform.deploy(source(2))
    assert done["state"] == "succeeded", done
    await running
    assert Counter(status for status, _ in results) == {200: len(results)}
    assert {value for _, value in results} == {1, 2}
    assert results[-1][1] == 2


async def test_a_hang_up_frees_the_slot(platform: Platform) -> None:
    await platform.deploy("""
        import asyncio

        @headrace.endpoint(name="slow", concurrency=1, scaling=headrace.Scaling(max=1))
        async def slow(seconds: float) -> float:
            await asyncio.sleep(seconds)
            return seconds
    """)
    assert await platform.call("slow", {"seconds": 0}) == 0
    with pytest.raises((asyncio.TimeoutError, aiohttp.ServerTimeoutError)):
        await platform.request(
            "POST", "/e/slow", json={"seconds": 50}, timeout=aiohttp.ClientTimeout(total=0.3)
        )
    began = time.monotonic()
    assert await platform.call("slow", {"seconds": 0}) == 0
    # Far below the 50 s that the first would have held the only slot.
    assert time.monotonic() - began < 25


async def test_streams_come_piece_by_piece(platform: Platform) -> None:
    await platform.deploy("""
        import asyncio

        @headrace.endpoint(name="stream")
        async def stream(n: int):
            for i in range(n):
                yield i
                await asyncio.sleep(0.01)
    """)
    async with platform.http.post(
        platform.cluster.url + "/e/stream", json={"n": 5}, headers=platform.auth
    ) as answer:
        assert answer.status == 200
        assert answer.content_type == "application/x-ndjson"
        assert [line.strip() async for line in answer.content] == [b"0", b"1", b"2", b"3", b"4"]


async def test_scaling_out_and_in(platform: Platform) -> None:
    await platform.deploy("""
        import asyncio, os

        @headrace.endpoint(name="wide", scaling=headrace.Scaling(max=3, idle_timeout=1.5))
        async def wide() -> int:
            await asyncio.sleep(0.3)
            return os.getpid()
    """)
    pids = await asyncio.gather(*(platform.call("wide") for _ in range(9)))
    assert 2 <= len(set(pids)) <= 3

    async def gone() -> bool:
        return not await platform.instances("wide")

    await until(gone)
