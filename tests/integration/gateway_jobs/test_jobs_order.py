"""Priorities of jobs hold over several gateways that share one slot."""

from __future__ import annotations

import asyncio
import itertools

import pytest
from headrace.gateway.jobs.lanes import LOOKAHEAD_S, OUTRANKED_S

from tests.integration.conftest import Platform
from tests.integration.gateway_jobs.test_jobs_death import free_port, post, ready, second_gateway

pytestmark = pytest.mark.asyncio(loop_scope="module")

SOURCE = """
    import asyncio

    @headrace.endpoint(name="one", concurrency=1, scaling=headrace.Scaling(max=1), timeout=60)
    async def one(seconds: float, until: int = 0) -> float:
        if until:
            reader, writer = await asyncio.open_connection("127.0.0.1", until)
            await reader.read()
            writer.close()
        await asyncio.sleep(seconds)
        return seconds

    @headrace.endpoint(name="once", concurrency=1, idempotent=False, scaling=headrace.Scaling(max=1))
    async def once(seconds: float) -> float:
        await asyncio.sleep(seconds)
        return seconds
"""


async def deploy(platform: Platform) -> None:
    if "default/one" not in platform.cluster.gateway.table.endpoints:
        found = await platform.deploy(SOURCE)
        assert found["state"] == "succeeded", found


@pytest.mark.parametrize("seconds", [0.3, 0.05])
async def test_what_is_high_comes_before_what_another_gateway_has_leased(
    platform: Platform, seconds: float
) -> None:
    await deploy(platform)
    await platform.call("one", {"seconds": 0})
    port = free_port()
    urls = [platform.cluster.url, f"http://127.0.0.1:{port}"]
    async with second_gateway(platform, port):
        await ready(platform, urls[1])
        # Whoever knows how long they take leases ahead.
        for url in urls:
            document = {"endpoint": "one", "input": {"seconds": seconds}}
            _, job = await post(platform, url, "/api/v1/jobs", document)
            await platform.api("GET", f"/jobs/{job['id']}?wait=30")
        # However slow the machine is: none of them runs before all of them are there.
        holding: asyncio.Future[asyncio.StreamWriter] = asyncio.get_running_loop().create_future()
        server = await asyncio.start_server(lambda _, writer: holding.set_result(writer), "127.0.0.1", 0)
        until = server.sockets[0].getsockname()[1]
        holds = asyncio.create_task(platform.call("one", {"seconds": 0, "until": until}))
        let_go = await asyncio.wait_for(holding, 30.0)
        jobs: list[tuple[str, str]] = []
        turns = itertools.cycle(urls)
        for priority in ("low", "normal", "high"):
            for _ in range(6):
                more = document | {"priority": priority}
                status, job = await post(platform, next(turns), "/api/v1/jobs", more)
                assert status == 202, job
                jobs.append((priority[0], job["id"]))
        # What was leased ahead goes back for what has come before it.
        await asyncio.sleep(4 * OUTRANKED_S)
        let_go.close()
        await holds
        server.close()
        ends: list[tuple[float, str]] = []
        for word, job_id in jobs:
            found = await platform.api("GET", f"/jobs/{job_id}?wait=30")
            assert found["state"] == "succeeded", found
            ends.append((found["finished_at"], word))
    order = "".join(word for _, word in sorted(ends))
    # Each gateway may have had one that waited for its turn at the instance.
    others_before_high = len(order[: order.rindex("h")].replace("h", ""))
    assert others_before_high <= 2, order
    if seconds > LOOKAHEAD_S:
        low_before_normal = order[: order.rindex("n")].count("l")
        assert low_before_normal <= 2, order


async def test_what_the_store_hears_of_first_gets_its_turn_at_a_full_instance(platform: Platform) -> None:
    await deploy(platform)
    await platform.call("once", {"seconds": 0})
    port = free_port()
    other = f"http://127.0.0.1:{port}"
    stop = asyncio.Event()

    async def client() -> None:
        while not stop.is_set():
            await platform.call("once", {"seconds": 0.02})

    async with second_gateway(platform, port):
        await ready(platform, other)
        clients = [asyncio.create_task(client()) for _ in range(4)]
        try:
            document = {"endpoint": "once", "input": {"seconds": 0}, "priority": "high"}
            for _ in range(3):
                _, job = await post(platform, other, "/api/v1/jobs", document)
                # The gateway that got it has it: the other one looks for it now and then only.
                found = await platform.api("GET", f"/jobs/{job['id']}?wait=4")
                assert found["state"] == "succeeded", found
        finally:
            stop.set()
            await asyncio.gather(*clients)
