"""What a client is told of an instance that died under its request, through all parts."""

from __future__ import annotations

import pytest

from tests.integration.conftest import Platform

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_an_exit_code_reaches_the_client(platform: Platform) -> None:
    await platform.deploy("""
        import os

        @headrace.endpoint(name="quits", idempotent=False)
        def quits() -> None:
            os._exit(3)

        @headrace.endpoint(name="quits-often", retries=1, scaling=headrace.Scaling(max=4))
        def quits_often() -> None:
            os._exit(4)
    """)
    status, _, problem = await platform.request("POST", "/e/quits", json={})
    assert (status, problem["type"]) == (502, "urn:headrace:instance-died")
    assert "exited: " in problem["detail"]
    assert "3" in problem["detail"]
    status, headers, problem = await platform.request("POST", "/e/quits-often", json={})
    assert (status, headers["X-Headrace-Attempt"]) == (502, "2")
    assert "2 instances died" in problem["detail"]
    assert "exited: " in problem["detail"]


async def test_a_memory_limit_reaches_the_client(platform: Platform) -> None:
    await platform.deploy("""
        import time

        @headrace.endpoint(name="greedy", idempotent=False, memory="128MiB")
        def greedy() -> int:
            kept = []
            for _ in range(600):
                kept.append(b"x" * (1 << 20))
                time.sleep(0.01)
            return len(kept)
    """)
    status, _, problem = await platform.request("POST", "/e/greedy", json={})
    assert status == 502, problem
    assert "oom: OOM-killed at 128 MiB" in problem["detail"]


async def test_an_instance_that_ends_to_give_a_slot_back_is_told_as_such(platform: Platform) -> None:
    await platform.deploy("""
        import time

        @headrace.endpoint(name="deaf", scaling=headrace.Scaling(max=1))
        def deaf(seconds: float = 0) -> str:
            time.sleep(seconds)
            return "done"
    """)
    status, _, _ = await platform.request(
        "POST", "/e/deaf", json={"seconds": 60}, headers={"X-Headrace-Timeout": "0.2"}
    )
    assert status == 504
    # It waits until the slot comes back, with the next instance.
    assert await platform.call("deaf", {"seconds": 0}) == "done"
    described = await platform.api("GET", "/endpoints/deaf")
    died = [d["reason"] for d in described["decisions"] if d["action"] == "died"]
    assert len(died) == 1, described["decisions"]
    assert died[0].startswith("stuck: a cancelled request still runs after 5 s"), died
