"""Durable jobs from Python: `Client.submit`, ``fn.submit``, `Job`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import CancelledError
from typing import Any

import headrace
import pytest
from headrace.errors import (
    BadRequest,
    Conflict,
    EndpointNotFound,
    HandlerFailed,
    IdempotencyConflict,
    NotFound,
    UsageError,
)
from headrace.sdk.client import Client

from tests.integration.conftest import Platform

pytestmark = pytest.mark.asyncio(loop_scope="module")

SOURCE = """
    import asyncio

    @headrace.endpoint(name="add", concurrency=4)
    def add(a: int, b: int = 1) -> int:
        if a == 13:
            raise ValueError("unlucky")
        return a + b

    @headrace.endpoint(name="size")
    def size(data: bytes) -> bytes:
        return data * 2

    @headrace.endpoint(name="nap", timeout=60)
    async def nap(seconds: float) -> str:
        await asyncio.sleep(seconds)
        return "rested"

    @headrace.endpoint(name="count")
    def count(n: int):
        yield from range(n)
"""


@headrace.endpoint(name="add")
def add(a: int, b: int = 1) -> int:
    return a + b


@headrace.endpoint(name="size")
def size(data: bytes) -> bytes:
    return data


async def run(platform: Platform, work: Callable[[Client], Any]) -> Any:
    """A user's synchronous code, in a thread."""
    if "default/add" not in platform.cluster.gateway.table.endpoints:
        found = await platform.deploy(SOURCE)
        assert found["state"] == "succeeded", found

    def inside() -> Any:
        with Client(platform.cluster.url, platform.cluster.admin_key) as client:
            return work(client)

    return await asyncio.wait_for(asyncio.to_thread(inside), 60)


async def test_submitted_jobs_are_found_again_by_their_id(platform: Platform) -> None:
    def work(client: Client) -> None:
        jobs = [client.submit("add", a=n) for n in range(10)]
        assert [job.result(30) for job in jobs] == list(range(1, 11))
        again = client.job(jobs[3].id)
        assert (again.state, again.result(1)) == ("succeeded", 4)
        assert again.document["attempts"][0]["outcome"] == "succeeded"
        assert client.submit("size", b"xy").result(30) == b"xyxy"
        assert list(client.submit("count", n=3).result(30)) == [0, 1, 2]
        assert list(client.submit("count", n=3).stream()) == [0, 1, 2]

    await run(platform, work)


async def test_the_same_key_is_the_same_job(platform: Platform) -> None:
    def work(client: Client) -> None:
        one = client.submit("add", a=1, idempotency_key="k-1")
        two = client.submit("add", a=1, idempotency_key="k-1")
        assert one.id == two.id
        with pytest.raises(IdempotencyConflict):
            client.submit("add", a=2, idempotency_key="k-1")

    await run(platform, work)


async def test_failures_are_raised_and_can_be_retried(platform: Platform) -> None:
    def work(client: Client) -> None:
        job = client.submit("add", a=13)
        with pytest.raises(HandlerFailed, match="unlucky"):
            job.result(30)
        job.retry()
        assert job.state == "queued"
        with pytest.raises(HandlerFailed):
            job.result(30)
        assert job.document["retried"] == 1
        done = client.submit("add", a=1)
        done.result(30)
        with pytest.raises(Conflict):
            done.retry()
        with pytest.raises(NotFound):
            client.job("job_none")
        with pytest.raises(EndpointNotFound):
            client.submit("nothing", a=1)
        with pytest.raises(UsageError, match="base64"):
            client.submit("size", b"x", ttl=5.0)

    await run(platform, work)


async def test_cancel_and_time_to_live(platform: Platform) -> None:
    def work(client: Client) -> None:
        job = client.submit("nap", seconds=50)
        assert job.cancel()
        assert not job.cancel()
        with pytest.raises(CancelledError):
            job.result(5)
        late = client.submit("nap", seconds=50, ttl=0.5)
        with pytest.raises(headrace.errors.RequestError):
            late.result(30)
        assert late.state == "timed_out"

    await run(platform, work)


async def test_priorities_and_time_limits(platform: Platform) -> None:
    def work(client: Client) -> None:
        assert client.call("add", a=1, priority="high") == 2
        with pytest.raises(BadRequest, match="Priority"):
            client.call("add", a=1, priority="urgent")  # type: ignore[arg-type]
        for options in ({}, {"ttl": 60.0}):
            job = client.submit("nap", seconds=50, timeout=0.5, **options)
            with pytest.raises(headrace.errors.RequestError):
                job.result(30)
            assert job.state == "timed_out"

    await run(platform, work)


async def test_decorated_functions_submit(platform: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADRACE_URL", platform.cluster.url)
    monkeypatch.setenv("HEADRACE_API_KEY", platform.cluster.admin_key)

    def work(client: Client) -> None:
        assert add.submit(1, b=4).result(30) == 5
        assert size.submit(b"ab").result(30) == b"abab"

    await run(platform, work)
