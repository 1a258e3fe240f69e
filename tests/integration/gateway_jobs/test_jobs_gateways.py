"""Two gateways: each tells of the other's calls and ends them, and a cancel reaches the code at once."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from headrace.gateway.jobs import leases

from tests.integration.conftest import Platform, until
from tests.integration.gateway_jobs.test_jobs_death import free_port, post, ready, second_gateway, shared_file

pytestmark = pytest.mark.asyncio(loop_scope="module")

SOURCE = """
    import asyncio

    @headrace.endpoint(name="nap", timeout=60, concurrency=8, scaling=headrace.Scaling(max=1))
    async def nap(seconds: float, file: str) -> str:
        def write(text: str) -> None:
            with open(file, "a") as f:
                f.write(text)
        write("started")
        try:
            await asyncio.sleep(seconds)
        except asyncio.CancelledError:
            write(" cancelled")
            raise
        return "rested"
"""


class Two:
    """The platform's own gateway (``first``), and one in a process of its own (``second``)."""

    def __init__(self, platform: Platform, second: str, process: asyncio.subprocess.Process) -> None:
        self.platform, self.process = platform, process
        self.first, self.second = platform.cluster.url, second

    async def ask(
        self, url: str, id: str, action: str = "", method: str = "GET", **headers: str
    ) -> tuple[int, Any]:
        async with self.platform.http.request(
            method, f"{url}/api/v1/jobs/{id}{action}", headers={**self.platform.auth, **headers}
        ) as answer:
            return answer.status, await answer.json(content_type=None)

    def call(
        self, url: str, seconds: float, file: str
    ) -> tuple[asyncio.Task[tuple[int, Any]], asyncio.Future[str]]:
        """A call without a key: its answer, and its id once that has come."""
        id: asyncio.Future[str] = asyncio.get_running_loop().create_future()

        async def work() -> tuple[int, Any]:
            async with self.platform.http.post(
                f"{url}/e/nap", json={"seconds": seconds, "file": file}, headers=self.platform.auth
            ) as answer:
                id.set_result(answer.headers["X-Headrace-Request-Id"])
                return answer.status, await answer.json(content_type=None)

        return asyncio.create_task(work()), id


@asynccontextmanager
async def two(platform: Platform) -> AsyncIterator[Two]:
    if "default/nap" not in platform.cluster.gateway.table.endpoints:
        found = await platform.deploy(SOURCE)
        assert found["state"] == "succeeded", found
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    async with second_gateway(platform, port) as process:
        await ready(platform, url)
        yield Two(platform, url, process)


def living(platform: Platform) -> list[str]:
    """Ids of what runs for clients of the platform's own gateway."""
    state = platform.cluster.gateway.dispatcher.state("default/nap")
    assert state is not None
    return [a.call.request.id for i in state.instances.values() for a in i.running]


async def test_any_gateway_tells_of_a_call_and_ends_it(platform: Platform) -> None:
    file = str(shared_file(platform, "told.txt"))
    async with two(platform) as both:
        # One that has ended, of each.
        for url in (both.first, both.second):
            answer, told = both.call(url, 0, file)
            assert await answer == (200, "rested")
            shown = [await both.ask(at, await told) for at in (both.first, both.second)]
            assert [status for status, _ in shown] == [200, 200]
            assert shown[0][1]["state"] == "succeeded"
            attempts = [doc["attempts"][0] for _, doc in shown]
            assert attempts[0]["gateway"] == attempts[1]["gateway"]
        # One that runs.
        answer, _ = both.call(both.first, 60, file)
        (id,) = await until(lambda: living(platform))
        status, shown_there = await both.ask(both.second, id)
        assert (status, shown_there["state"]) == (200, "running")
        assert (await both.ask(both.second, id, "/retry", "POST"))[0] == 409
        waiting = asyncio.create_task(both.ask(both.second, id, "?wait=30"))
        status, ended = await both.ask(both.second, id, "/cancel", "POST")
        assert (status, ended["state"]) == (200, "cancelled")
        assert (await answer)[0] == 409
        assert (await waiting)[1]["state"] == "cancelled"
        # Nobody's.
        for url in (both.first, both.second):
            assert (await both.ask(url, "0" * 18))[0] == 404
            assert (await both.ask(url, id[:10] + "0" * 8))[0] == 404


async def test_a_key_may_no_more_at_another_gateway(platform: Platform) -> None:
    file = str(shared_file(platform, "keys.txt"))
    async with two(platform) as both:
        answer, _ = both.call(both.first, 60, file)
        (id,) = await until(lambda: living(platform))
        for scopes, endpoints, expected in (
            (["invoke"], ["other"], 404),
            (["metrics"], [], 403),
            (["invoke"], ["nap"], 200),
        ):
            body = {"name": "k", "scopes": scopes, "endpoints": endpoints}
            key = (await platform.api("POST", "/keys", body))["key"]
            headers = {"Authorization": f"Bearer {key}"}
            for url in (both.first, both.second):
                assert (await both.ask(url, id, **headers))[0] == expected
            if expected != 200:
                assert (await both.ask(both.second, id, "/cancel", "POST", **headers))[0] == expected
                assert living(platform) == [id]
        assert (await both.ask(both.second, id, "/cancel", "POST", **headers))[0] == 200
        assert (await answer)[0] == 409


async def test_gateways_tell_without_control_and_say_when_one_is_away(platform: Platform) -> None:
    file = str(shared_file(platform, "away.txt"))
    async with two(platform) as both:
        answer, told = both.call(both.second, 0, file)
        assert await answer == (200, "rested")
        id = await told
        await platform.cluster.control.abandon()
        assert (await both.ask(both.first, id))[0] == 200
        await platform.cluster.restart_control()
        both.process.send_signal(signal.SIGSTOP)
        try:
            status, problem = await both.ask(both.first, id)
            assert (status, problem["type"]) == (503, "urn:headrace:gateway-away")
        finally:
            both.process.send_signal(signal.SIGCONT)
        assert (await both.ask(both.first, id))[0] == 200
        both.process.kill()
        await both.process.wait()
        assert (await both.ask(both.first, id))[0] == 404
        # It left its socket, which is nobody's now.
        sockets = platform.cluster.settings.run / "gateways"
        await until(lambda: len(list(sockets.iterdir())) == 1)


async def test_a_cancel_at_another_gateway_reaches_the_handler_without_a_heartbeat(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = shared_file(platform, "cancel.txt")
    async with two(platform) as both:
        # Once a heartbeat of before has gone by, there are none.
        monkeypatch.setattr(leases, "HEARTBEAT_S", 600.0)
        await platform.cluster.restart_gateway()
        await platform.cluster.wait_ready()
        runner = platform.cluster.gateway.jobs._runner
        assert runner is not None
        body = {"endpoint": "nap", "input": {"seconds": 60, "file": str(file)}}
        status, job = await post(platform, both.first, "/api/v1/jobs", body)
        assert status == 202, job
        # What is noted as running finds out by itself, too, that it is not wanted any more.
        await until(lambda: (run := runner.run_of(job["id"])) is not None and run.noted)
        await until(lambda: file.read_text() == "started")
        waiting = asyncio.create_task(both.ask(both.first, job["id"], "?wait=30"))
        assert (await both.ask(both.second, job["id"], "/cancel", "POST"))[1]["state"] == "cancelled"
        await until(lambda: file.read_text() == "started cancelled")
        assert (await waiting)[1]["state"] == "cancelled"
