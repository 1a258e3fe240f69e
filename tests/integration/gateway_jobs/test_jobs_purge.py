"""A purge takes what waits, and nothing that an instance has, gets meanwhile, or has ended."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from headrace.gateway import attempt
from headrace.gateway.jobs import leases
from headrace.gateway.jobs.lanes import Lane
from headrace.jobs.store import JobStore, StoreUnavailable

from tests.integration.conftest import Platform, until
from tests.integration.gateway_jobs.test_jobs_death import shared_file

pytestmark = pytest.mark.asyncio(loop_scope="module")

SOURCE = """
    import asyncio

    @headrace.endpoint(name="nap", timeout=60, concurrency=8, scaling=headrace.Scaling(max=1))
    async def nap(seconds: float, file: str) -> str:
        with open(file, "a") as f:
            f.write("started ")
        await asyncio.sleep(seconds)
        with open(file, "a") as f:
            f.write("ended ")
        return "rested"
"""


@pytest.fixture(autouse=True)
def unnoted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is written down about what runs, unless a purge asks for it."""
    monkeypatch.setattr(leases, "NOTE_AFTER_S", 60.0)


async def ready(platform: Platform) -> JobStore:
    if "default/nap" not in platform.cluster.gateway.table.endpoints:
        assert (await platform.deploy(SOURCE))["state"] == "succeeded"
    await platform.call("nap", {"seconds": 0, "file": str(shared_file(platform, "warm.txt"))})
    store: JobStore = platform.cluster.gateway.jobs.service.store
    return store


async def submit(platform: Platform, seconds: float, file: Path) -> str:
    job = await platform.api(
        "POST", "/jobs", {"endpoint": "nap", "input": {"seconds": seconds, "file": str(file)}}
    )
    return str(job["id"])


async def rests_once(platform: Platform, job_id: str, file: Path) -> None:
    """The job has run to its end, once, and its result is there."""
    found = await platform.api("GET", f"/jobs/{job_id}?wait=30")
    assert (found["state"], found["output"]) == ("succeeded", "rested"), found
    assert file.read_text() == "started ended "


def lane_of(platform: Platform) -> Lane:
    runner = platform.cluster.gateway.jobs.service._runner
    assert runner is not None
    return runner._lanes.of("default", "nap")


@asynccontextmanager
async def held(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> AsyncIterator[Held]:
    """Calls of a method wait, and are carried out afterwards."""
    with monkeypatch.context() as patch:
        one = Held(getattr(owner, name))
        patch.setattr(owner, name, one)
        try:
            yield one
        finally:
            one.go.set()


class Held:
    def __init__(self, real: Callable[..., Awaitable[Any]]) -> None:
        self.real = real
        self.came, self.go = asyncio.Event(), asyncio.Event()

    async def __call__(self, *args: Any, **more: Any) -> Any:
        self.came.set()
        async with asyncio.timeout(30):
            await self.go.wait()
        return await self.real(*args, **more)


async def test_what_is_sent_while_a_purge_is_under_way_stays(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, file = await ready(platform), shared_file(platform, "meanwhile.txt")
    async with held(monkeypatch, store, "purge") as purge:
        purging = asyncio.create_task(platform.api("POST", "/endpoints/nap/purge"))
        await purge.came.wait()
        job_id = await submit(platform, 0.5, file)
        await until(file.read_text)
        purge.go.set()
        assert (await purging)["removed"] == 0
    await rests_once(platform, job_id, file)
    assert not lane_of(platform).purging


async def test_what_has_ended_and_is_not_stored_yet_stays(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, file = await ready(platform), shared_file(platform, "stored.txt")
    async with held(monkeypatch, store, "finish") as finish:
        job_id = await submit(platform, 0, file)
        await finish.came.wait()
        assert (await platform.api("POST", "/endpoints/nap/purge"))["removed"] == 0
        finish.go.set()
    await rests_once(platform, job_id, file)


async def test_what_was_purged_while_its_lease_was_on_its_way_is_not_sent(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, file = await ready(platform), shared_file(platform, "leased.txt")
    real = store.lease
    leased, go = asyncio.Event(), asyncio.Event()

    async def lease(*args: Any, **more: Any) -> Any:
        found = await real(*args, **more)
        if found:
            leased.set()
            async with asyncio.timeout(30):
                await go.wait()
        return found

    monkeypatch.setattr(store, "lease", lease)
    job_id = await submit(platform, 0, file)
    await leased.wait()
    assert (await platform.api("POST", "/endpoints/nap/purge"))["removed"] == 1
    go.set()
    lane = lane_of(platform)
    await until(lambda: not (lane.leasing or lane.held or lane.sent or lane.settling))
    status, _, _ = await platform.request("GET", f"/api/v1/jobs/{job_id}")
    assert (status, file.read_text()) == (404, "")


async def test_what_is_about_to_be_sent_stays(platform: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    store, file = await ready(platform), shared_file(platform, "about.txt")
    state = platform.cluster.gateway.dispatcher.state("default/nap")
    assert state is not None
    for instance in state.instances.values():
        while (up := instance.checkout()) is not None:
            up.close()
    async with (
        held(monkeypatch, attempt, "open_connection") as connect,
        held(monkeypatch, store, "purge") as purge,
    ):
        job_id = await submit(platform, 0.5, file)
        await connect.came.wait()
        purging = asyncio.create_task(platform.api("POST", "/endpoints/nap/purge"))
        await purge.came.wait()
        connect.go.set()
        await until(file.read_text)
        purge.go.set()
        assert (await purging)["removed"] == 0
    await rests_once(platform, job_id, file)


async def test_a_purge_without_an_answer_may_still_come(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, file = await ready(platform), shared_file(platform, "late.txt")
    monkeypatch.setattr("headrace.gateway.jobs.runner.TAKE_BACK_S", 1.0)
    real = store.purge
    given: list[tuple[Any, Any]] = []

    async def unanswered(*args: Any, **more: Any) -> int:
        given.append((args, more))
        raise StoreUnavailable("the job store does not answer.")

    with monkeypatch.context() as patch:
        patch.setattr(store, "purge", unanswered)
        status, _, _ = await platform.request("POST", "/api/v1/endpoints/nap/purge")
    assert status == 503
    job_id = await submit(platform, 0.5, file)
    await until(file.read_text)
    args, more = given[0]
    assert await real(*args, **more) == 0
    await rests_once(platform, job_id, file)
    await until(lambda: not lane_of(platform).purging)
