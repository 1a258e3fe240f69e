"""What a job's record tells of its way: where it waited, what it woke, which instances had it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.integration.conftest import Platform, until

pytestmark = pytest.mark.asyncio(loop_scope="module")

SOURCE = """
    import asyncio, os, time
    from pathlib import Path

    @headrace.endpoint(name="mortal", scaling=headrace.Scaling(min=2, max=2))
    def mortal(file: str) -> int:
        path = Path(file)
        if not path.exists():
            path.touch()
            time.sleep(0.5)
            os._exit(3)
        return 1

    @headrace.endpoint(name="sleepy")
    def sleepy() -> int:
        return 1

    @headrace.endpoint(name="hedged", concurrency=1, scaling=headrace.Scaling(min=2, max=2), hedge_after=0.1)
    async def hedged(file: str) -> int:
        path = Path(file)
        if not path.exists():
            path.touch()
            await asyncio.sleep(20)
        return 1
"""


async def deployed(platform: Platform) -> None:
    if "default/mortal" not in platform.cluster.gateway.table.endpoints:
        found = await platform.deploy(SOURCE)
        assert found["state"] == "succeeded", found


async def two(platform: Platform, name: str) -> None:
    async def there() -> bool:
        return len([i for i in await platform.instances(name) if i["state"] == "ready"]) == 2

    await until(there)


async def finished(platform: Platform, endpoint: str, input: Any) -> dict[str, Any]:
    job = await platform.api("POST", "/jobs", {"endpoint": endpoint, "input": input})
    done: dict[str, Any] = await platform.api("GET", f"/jobs/{job['id']}?wait=25")
    assert done["state"] == "succeeded", done
    return done


def mark(work: Path, name: str) -> str:
    """A file that user code of other uids may make."""
    work.chmod(0o711)
    folder = work / name
    folder.mkdir()
    folder.chmod(0o777)
    return str(folder / "mark")


async def test_a_job_that_lost_its_instance_tells_of_both(platform: Platform) -> None:
    await deployed(platform)
    await two(platform, "mortal")
    done = await finished(platform, "mortal", {"file": mark(platform.work, "mortal")})
    receipt = done["receipt"]
    assert [a["outcome"] for a in receipt["attempts"]] == ["lost", "answered"], receipt
    first, second = receipt["attempts"]
    assert first["ran_ms"] >= 400, "it ran there"
    assert first["instance"] != second["instance"] == receipt["instance"]
    assert receipt["queued_ms"] < first["ran_ms"], "what ran was told as queued"
    assert receipt["total_ms"] >= receipt["queued_ms"] + first["ran_ms"]
    assert done["attempts"][-1]["instance"] == receipt["instance"]


async def test_the_loser_of_two_copies_is_told_with_what_it_ran(platform: Platform) -> None:
    await deployed(platform)
    await two(platform, "hedged")
    done = await finished(platform, "hedged", {"file": mark(platform.work, "hedged")})
    tries = done["receipt"]["attempts"]
    assert sorted(a["outcome"] for a in tries) == ["answered", "beaten"], tries
    beaten = next(a for a in tries if a["outcome"] == "beaten")
    assert 0 < beaten["ran_ms"] < 15_000


async def test_a_job_that_woke_its_endpoint_tells_how(platform: Platform) -> None:
    await deployed(platform)
    await platform.to_zero("sleepy")
    state = platform.cluster.gateway.dispatcher.state("default/sleepy")
    assert state is not None
    starts, waits = sum(state.meter.cold_starts.values()), state.meter.queue.total
    done = await finished(platform, "sleepy", {})
    receipt = done["receipt"]
    assert receipt["tier"], receipt
    assert {"claim_ms", "boot_ms", "import_ms", "load_ms", "handler_ms"} <= receipt.keys()
    assert 0 < receipt["queued_ms"] <= receipt["total_ms"]
    assert sum(state.meter.cold_starts.values()) == starts + 1
    assert state.meter.queue.total == waits + 1
    assert done["attempts"][-1]["instance"] == receipt["instance"]
    assert "attempts" not in receipt


async def test_a_call_with_a_key_says_how_often_it_was_sent(platform: Platform) -> None:
    await deployed(platform)
    await two(platform, "mortal")
    body = {"file": mark(platform.work, "keyed")}
    for replayed in (None, "true"):
        status, headers, _ = await platform.request(
            "POST", "/e/mortal", json=body, headers={"Idempotency-Key": "k"}
        )
        assert (status, headers.get("X-Headrace-Attempt")) == (200, "2")
        assert headers.get("Idempotent-Replayed") == replayed
    state = platform.cluster.gateway.dispatcher.state("default/mortal")
    assert state is not None
    assert state.meter.requests[2].total == 2
