"""A gateway is killed with SIGKILL while it works on jobs: another one finishes them, each once."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from headrace.gateway.jobs import sync

from tests.integration.conftest import Platform, until

pytestmark = pytest.mark.asyncio(loop_scope="module")

SOURCE = """
    import asyncio

    @headrace.endpoint(name="slow", concurrency=4, scaling=headrace.Scaling(max=1), timeout=60)
    async def slow(seconds: float, file: str, n: int = 0) -> int:
        with open(file, "a") as f:
            f.write(f"started {n}\\n")
        await asyncio.sleep(seconds)
        with open(file, "a") as f:
            f.write(f"ended {n}\\n")
        return n
"""


def shared_file(platform: Platform, name: str) -> Path:
    platform.work.chmod(0o711)
    file = platform.work / name
    file.touch()
    file.chmod(0o666)
    return file


@asynccontextmanager
async def second_gateway(platform: Platform, port: int) -> AsyncIterator[asyncio.subprocess.Process]:
    """A gateway in a process of its own, on the same platform."""
    settings = platform.cluster.settings
    environ = {k: v for k, v in os.environ.items() if not k.startswith("HEADRACE_")} | {
        "HEADRACE_DATA_DIR": settings.data_dir,
        "HEADRACE_RUN_DIR": settings.run_dir,
        "HEADRACE_PORT": str(port),
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "headrace.gateway", env=environ, stderr=asyncio.subprocess.DEVNULL
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def ready(platform: Platform, url: str) -> None:
    async def answers() -> bool:
        try:
            async with platform.http.get(f"{url}/readyz") as answer:
                return answer.status == 200
        except aiohttp.ClientError:
            return False

    await until(answers)


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


async def post(
    platform: Platform, url: str, path: str, body: Any, headers: dict[str, str] | None = None
) -> tuple[int, Any]:
    async with platform.http.post(
        url + path, json=body, headers={**platform.auth, **(headers or {})}
    ) as answer:
        return answer.status, json.loads(await answer.read())


async def test_jobs_of_a_killed_gateway_are_finished_once_by_another(platform: Platform) -> None:
    await platform.deploy(SOURCE)
    file = shared_file(platform, "killed.txt")
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    async with second_gateway(platform, port) as process:
        await ready(platform, url)
        jobs = []
        for n in range(12):
            body = {"endpoint": "slow", "input": {"seconds": 0.5, "file": str(file), "n": n}}
            status, job = await post(platform, url, "/api/v1/jobs", body)
            assert status == 202, job
            jobs.append(job["id"])

        store = platform.cluster.gateway.jobs.service.store

        async def theirs() -> bool:
            """Whether the other gateway works on one of them now."""
            mine = platform.cluster.gateway.id
            for id in jobs:
                job = await store.get("default", id)
                assert job is not None
                if job.state == "running" and (await store.attempts(id))[-1].owner != mine:
                    return True
            return False

        await until(theirs)
        process.send_signal(signal.SIGKILL)
        await process.wait()
        for n, id in enumerate(jobs):
            done = await platform.api("GET", f"/jobs/{id}?wait=30")
            assert (done["state"], done["output"]) == ("succeeded", n), done
    ended = Counter(line for line in file.read_text().splitlines() if line.startswith("ended"))
    assert ended == {f"ended {n}": 1 for n in range(12)}
    lost = [a for id in jobs for a in await store.attempts(id) if a.outcome == "lost"]
    assert lost
    assert not (await asyncio.to_thread(lambda: set(os.listdir(platform.work / "data" / "gateways")))) - {
        ".swept",
        platform.cluster.gateway.id,
    }


async def test_a_sync_call_is_answered_by_another_gateway_after_the_death_of_its_own(
    platform: Platform,
) -> None:
    await platform.deploy(SOURCE)
    file = shared_file(platform, "sync-killed.txt")
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    headers = {"Idempotency-Key": "over-death"}
    body = {"seconds": 1.0, "file": str(file), "n": 7}
    async with second_gateway(platform, port) as process:
        await ready(platform, url)
        first = asyncio.create_task(post(platform, url, "/e/slow", body, headers))
        await until(lambda: "started" in file.read_text())
        process.send_signal(signal.SIGKILL)
        with pytest.raises(aiohttp.ClientError):
            await first
    answer = await post(platform, platform.cluster.url, "/e/slow", body, headers)
    assert answer == (200, 7)
    assert file.read_text().count("ended") == 1


COUNT = """
    import time

    @headrace.endpoint(name="count", scaling=headrace.Scaling(max=1))
    def count(n: int):
        for i in range(n):
            time.sleep(0.02)
            yield i
"""


async def test_a_runpod_stream_read_through_two_gateways_gives_each_item_once(platform: Platform) -> None:
    await platform.deploy(COUNT)
    port = free_port()
    items: list[int] = []
    async with second_gateway(platform, port):
        urls = [platform.cluster.url, f"http://127.0.0.1:{port}"]
        await ready(platform, urls[1])
        status, job = await post(platform, urls[0], "/v2/count/run", {"input": {"n": 40}})
        assert status == 200, job
        turn = 0

        async def ended() -> bool:
            nonlocal turn
            turn += 1
            url = f"{urls[turn % 2]}/v2/count/stream/{job['id']}"
            async with platform.http.get(url, headers=platform.auth) as answer:
                page = json.loads(await answer.read())
            items.extend(item["output"] for item in page["stream"])
            return page["status"] == "COMPLETED" and not page["stream"]

        await until(ended)
    assert items == list(range(40))


async def test_a_client_that_comes_back_through_another_gateway_finds_its_call_running(
    platform: Platform,
) -> None:
    await platform.deploy(SOURCE)
    file = shared_file(platform, "moved.txt")
    body = {"seconds": sync.HANG_UP_GRACE_S + 1.0, "file": str(file), "n": 9}
    headers = {"Idempotency-Key": "moved"}
    port = free_port()
    async with second_gateway(platform, port):
        await ready(platform, f"http://127.0.0.1:{port}")
        first = asyncio.create_task(post(platform, f"http://127.0.0.1:{port}", "/e/slow", body, headers))
        await until(lambda: "started" in file.read_text())
        first.cancel()
        with pytest.raises((asyncio.CancelledError, aiohttp.ClientError)):
            await first
        answer = await post(platform, platform.cluster.url, "/e/slow", body, headers)
    assert answer == (200, 9)
    assert file.read_text() == "started 9\nended 9\n"
