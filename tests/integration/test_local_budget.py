"""A host with a price: budgets and ``max_price`` hold, and say so."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest_asyncio

from tests.integration.conftest import Platform, make_settings, running_platform

SOURCE = """
    import asyncio

    @headrace.endpoint(name="thrifty", cpu=0.5, scaling=headrace.Scaling(max=4, budget={budget}))
    async def thrifty() -> int:
        await asyncio.sleep(0.5)
        return 1

    @headrace.endpoint(name="picky", cpu=0.5, placement=headrace.Placement(max_price={less}))
    async def picky() -> int:
        return 1
"""
HOST_USD = 8.0


@pytest_asyncio.fixture
async def priced() -> AsyncIterator[Platform]:
    with tempfile.TemporaryDirectory(prefix="hrt-") as path:
        work = Path(path)
        settings = make_settings(work / "data", host_price=HOST_USD)
        async with running_platform(settings, work) as platform:
            yield platform


async def test_no_more_is_started_than_a_budget_allows(priced: Platform) -> None:
    (host,) = (await priced.api("GET", "/hosts"))["items"]
    assert host["price"] == HOST_USD
    # Half a core is the part of the host that one takes most of: two at most for what two and a half cost.
    each = HOST_USD * 0.5 / host["resources"]["cpu"]
    found = await priced.deploy(SOURCE.format(budget=2.5 * each, less=each / 2), verify=False)
    assert found["state"] == "succeeded", found
    calls = [asyncio.create_task(priced.call("thrifty")) for _ in range(8)]
    most, reasons = 0, set[str]()
    while not all(call.done() for call in calls):
        about = await priced.api("GET", "/endpoints/thrifty")
        most = max(most, sum(one["state"] in {"starting", "ready"} for one in about["instances"]))
        reasons |= {decision["reason"] for decision in about["decisions"]}
        await asyncio.sleep(0.02)
    assert [await call for call in calls] == [1] * 8
    assert most == 2
    assert any("its budget of" in reason for reason in reasons), reasons
    status, _, body = await priced.request("POST", "/e/picky", json={}, headers={"X-Headrace-Timeout": "2"})
    assert status != 200, body
