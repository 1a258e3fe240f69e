"""Requests that insist on an older version start that one, up to its max, and not the current one."""

from __future__ import annotations

import asyncio

import pytest

from tests.integration.conftest import Platform

pytestmark = pytest.mark.asyncio(loop_scope="module")

SOURCE = """
    import asyncio

    @headrace.endpoint(
        name="twice", cpu=0.1, memory="32MiB", scaling=headrace.Scaling(max=3, idle_timeout=30)
    )
    async def twice(seconds: float) -> int:
        await asyncio.sleep(seconds)
        return {number}
"""


async def test_only_the_version_that_is_asked_for_starts(platform: Platform) -> None:
    for number in (1, 2):
        found = await platform.deploy(SOURCE.format(number=number), verify=False)
        assert found["state"] == "succeeded", found
    calls = [asyncio.create_task(platform.call("twice@1", {"seconds": 2.0})) for _ in range(6)]
    most: dict[int, int] = {}
    while not all(call.done() for call in calls):
        about = await platform.api("GET", "/endpoints/twice")
        versions = [one["version"] for one in about["instances"]]
        most = {v: max(most.get(v, 0), versions.count(v)) for v in {*versions, *most}}
        await asyncio.sleep(0.05)
    assert [await call for call in calls] == [1] * 6
    assert most == {1: 3}
