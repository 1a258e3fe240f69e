"""Many more endpoints than a host has room for: everybody gets their turn, and soon."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from headrace import wire

from tests.integration.conftest import Platform, make_settings, running_platform

pytestmark = pytest.mark.asyncio(loop_scope="module")
SLOTS = 4
ENDPOINTS = 40
DEADLINE = {"X-Headrace-Timeout": "10"}
"""Far above what a turn takes, far below the idle timeout: who is stuck gets a 504."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def full(work: Path) -> AsyncIterator[Platform]:
    """A host with four places, forty endpoints that would keep theirs for ten minutes."""
    resources = wire.Resources(cpu=SLOTS * 0.125, memory=8 << 30)
    async with running_platform(make_settings(work / "data"), work, resources=resources) as platform:
        await platform.deploy("""
            import asyncio

            @headrace.endpoint(name="base", idempotent=False, retries=0,
                               scaling=headrace.Scaling(max=2, idle_timeout=600))
            async def base(ms: float = 0) -> float:
                await asyncio.sleep(ms / 1000)
                return ms
        """)
        spec = (await platform.endpoint("base"))["spec"]
        specs = [{**spec, "name": f"e{n}"} for n in range(ENDPOINTS)]
        deployment = await platform.api("POST", "/deployments", {"specs": specs, "verify": False})
        assert (await platform.finished(deployment["id"]))["state"] == "succeeded"
        yield platform


async def living(platform: Platform) -> list[dict[str, Any]]:
    found = (await platform.api("GET", "/instances?limit=500"))["items"]
    return [i for i in found if i["state"] in ("starting", "ready")]


async def test_nobody_is_stuck_on_a_full_host(full: Platform) -> None:
    """What real clients do, at random (the same in every run): call, hang up during a wake, scale."""
    statuses: list[int] = []

    async def client(seed: int) -> None:
        chosen = random.Random(seed)
        for _ in range(25):
            name = f"e{chosen.randrange(ENDPOINTS)}"
            body = {"ms": chosen.choice([0, 0, 20])}
            kind = chosen.random()
            if kind < 0.15:
                patience = aiohttp.ClientTimeout(total=chosen.uniform(0.001, 0.03))
                with contextlib.suppress(TimeoutError, aiohttp.ClientError):
                    await full.request("POST", f"/e/{name}", json=body, timeout=patience)
            elif kind < 0.25:
                await full.api("POST", f"/endpoints/{name}/scale", {"to": chosen.choice([0, 1])})
            else:
                status, _, value = await full.request("POST", f"/e/{name}", json=body, headers=DEADLINE)
                assert status == 200, value
                statuses.append(status)

    before = (await full.api("GET", "/status"))["wakes"]
    await asyncio.gather(*(client(seed) for seed in range(SLOTS + 2)))
    assert (await full.api("GET", "/status"))["wakes"] - before > 2 * SLOTS
    assert len(await living(full)) <= SLOTS
    assert statuses


async def test_places_are_handed_over_without_waiting_for_a_report(full: Platform) -> None:
    """One after another: control knows at each wake which instance has just become idle."""
    for instance in await living(full):
        await full.api("POST", f"/endpoints/{instance['endpoint']}/scale", {"to": 0})
    began = time.time()
    for n in range(3 * SLOTS):
        status, _, value = await full.request("POST", f"/e/e{n}", json={}, headers=DEADLINE)
        assert status == 200, value
    notes = [
        note
        for n in range(SLOTS, 3 * SLOTS)
        for note in (await full.endpoint(f"e{n}"))["decisions"]
        if note["action"] == "wait" and note["at"] >= began
    ]
    # A wait for want of a report is tried again at once, but it should be rare to need one.
    assert len(notes) <= SLOTS, notes
    # The longest idle went first: the last ones called are those that are there.
    there = {i["endpoint"] for i in await living(full)}
    assert there == {f"e{n}" for n in range(2 * SLOTS, 3 * SLOTS)}


async def test_scale_to_zero_straight_after_an_answer(full: Platform) -> None:
    for n in range(10):
        assert (await full.request("POST", f"/e/e{n}", json={}, headers=DEADLINE))[0] == 200
        found = await full.api("POST", f"/endpoints/e{n}/scale", {"to": 0})
        assert {i["state"] for i in found["instances"]} <= {"draining"}
