"""Work that an instance finishes after its gateway was killed is not done again: its answer is asked for."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.integration.conftest import Platform, until
from tests.integration.gateway_jobs.test_jobs_death import free_port, post, ready, second_gateway, shared_file

pytestmark = pytest.mark.asyncio(loop_scope="module")

SOURCE = """
    import time

    @headrace.endpoint(name="thread", concurrency=4, scaling=headrace.Scaling(max=1), timeout=60)
    def thread(seconds: float, file: str, n: int = 0) -> int:
        with open(file, "a") as f:
            f.write("started\\n")
        time.sleep(seconds)
        with open(file, "a") as f:
            f.write("ended\\n")
        return n
"""


def lines(file: Path) -> list[str]:
    return file.read_text().split()


@pytest.mark.parametrize("kind", ["job", "call"])
async def test_a_thread_that_ends_after_its_gateway_is_not_run_again(platform: Platform, kind: str) -> None:
    await platform.deploy(SOURCE)
    file = shared_file(platform, f"thread-{kind}.txt")
    body = {"seconds": 1.0, "file": str(file), "n": 7}
    status, value = await post(platform, platform.cluster.url, "/e/thread", {**body, "seconds": 0})
    assert (status, value) == (200, 7)
    file.write_text("")
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    key = {"Idempotency-Key": f"recall-{kind}"}
    first: asyncio.Task[tuple[int, object]] | None = None
    async with second_gateway(platform, port) as process:
        await ready(platform, url)
        if kind == "job":
            # Both gateways may take it: high priority goes to the one that has it, at once.
            document = {"endpoint": "thread", "input": body, "priority": "high"}
            first = asyncio.create_task(post(platform, url, "/api/v1/jobs", document, key))
        else:
            first = asyncio.create_task(post(platform, url, "/e/thread", body, key))
        await until(lambda: "started" in lines(file))
        process.kill()
        await process.wait()
    (came,) = await asyncio.gather(first, return_exceptions=True)
    if kind == "job":
        assert isinstance(came, tuple)
        job_id = came[1]["id"]  # type: ignore[index]
        found = await platform.api("GET", f"/jobs/{job_id}?wait=30")
        assert (found["state"], found["output"]) == ("succeeded", 7), found
    else:
        assert await post(platform, platform.cluster.url, "/e/thread", body, key) == (200, 7)
    assert lines(file) == ["started", "ended"]
