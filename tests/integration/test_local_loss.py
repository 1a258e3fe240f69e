"""Parts are lost without a goodbye; endpoints go on or come back."""

from __future__ import annotations

import asyncio
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import psutil
import pytest
from headrace.cluster.local import LocalCluster
from headrace.datadir import open_data_dir
from headrace.errors import PortInUse

from tests.integration.conftest import Platform, make_settings, running_platform, until

pytestmark = pytest.mark.asyncio(loop_scope="module")

ECHO = """
    import os

    @headrace.endpoint(name="{name}", concurrency=4)
    def echo(x: int = 0) -> list:
        return [x, os.getpid()]
"""


async def test_control_is_lost_and_requests_go_on(platform: Platform) -> None:
    await platform.deploy(ECHO.format(name="steady"))
    await platform.deploy(ECHO.format(name="asleep"))
    await platform.to_zero("asleep")
    _, pid = await platform.call("steady", {"x": 1})
    failures: list[object] = []
    stop = asyncio.Event()

    async def load() -> None:
        while not stop.is_set():
            status, _, value = await platform.request("POST", "/e/steady", json={"x": 2})
            if (status, value) != (200, [2, pid]):
                failures.append((status, value))
            await asyncio.sleep(0.01)

    running = asyncio.create_task(load())
    epoch = platform.cluster.host.link.epoch
    await platform.cluster.restart_control()
    # A wake right now waits for control's return; it is not refused.
    assert (await platform.call("asleep", {"x": 3}))[0] == 3
    await platform.cluster.wait_ready()
    assert platform.cluster.host.link.epoch > epoch
    stop.set()
    await running
    assert failures == []
    assert (await platform.call("steady", {"x": 4})) == [4, pid]


async def test_host_is_lost_and_requests_are_answered_again(platform: Platform) -> None:
    await platform.deploy(ECHO.format(name="reborn"))
    _, pid = await platform.call("reborn")
    await platform.cluster.restart_host()
    _, other = await platform.call("reborn")
    assert other != pid
    assert not Path(f"/proc/{pid}").exists()

    async def one() -> bool:
        return len(await platform.api("GET", "/hosts")) > 0 and [
            h["id"] for h in (await platform.api("GET", "/hosts"))["items"] if h["state"] == "ready"
        ] == [platform.cluster.host.host]

    await until(one)


async def test_a_host_that_was_taken_for_dead_comes_back(platform: Platform) -> None:
    await platform.deploy(ECHO.format(name="cut"))
    await platform.call("cut")
    link = platform.cluster.host.link
    await link.stop()

    async def dead() -> bool:
        hosts = (await platform.api("GET", "/hosts"))["items"]
        return [h["state"] for h in hosts if h["id"] == platform.cluster.host.host] != ["ready"] and not (
            await platform.instances("cut")
        )

    await until(dead)
    # Its instances live on meanwhile, and the request that finds none waits for the host.
    assert len(platform.cluster.host.instances.inventory()) >= 1
    waiting = asyncio.create_task(platform.call("cut", {"x": 6}))
    link.start()
    assert (await asyncio.wait_for(waiting, 30))[0] == 6
    await platform.cluster.wait_ready()

    async def agreed() -> bool:
        listed = {i["id"] for i in (await platform.api("GET", "/instances"))["items"]}
        return listed == {i.id for i in platform.cluster.host.instances.inventory()}

    await until(agreed)


async def test_gateway_is_lost_and_comes_back(platform: Platform) -> None:
    await platform.deploy(ECHO.format(name="gated"))
    _, pid = await platform.call("gated")
    await platform.cluster.restart_gateway()
    await platform.cluster.wait_ready()
    assert await platform.call("gated", {"x": 5}) == [5, pid]


async def test_everything_is_back_from_the_data_directory(work: Path) -> None:
    settings = make_settings(work / "again")
    async with running_platform(settings, work) as first:
        key = first.cluster.admin_key
        await first.deploy(ECHO.format(name="one"))
        await first.deploy(ECHO.format(name="two"))
        _, pid = await first.call("one")
    assert not Path(f"/proc/{pid}").exists()
    assert not settings.run.exists()
    async with running_platform(settings, work) as second:
        assert second.cluster.admin_key == key
        for name in ("one", "two"):
            assert (await second.call(name, {"x": 7}))[0] == 7


CHILD = """
import asyncio, sys
from headrace.cluster.local import LocalCluster
from headrace.datadir import open_data_dir
from headrace.errors import PortInUse
from headrace.config import Settings

async def main():
    settings = Settings(data_dir=sys.argv[1], run_dir=sys.argv[2], port=0, control_port=0)
    async with LocalCluster(settings) as cluster:
        print(cluster.url, cluster.admin_key, flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""


@dataclass
class Elsewhere:
    """A platform in another process."""

    url: str
    admin_key: str


async def test_sigkill_leaves_nothing_that_the_next_start_keeps(work: Path, platform: Platform) -> None:
    settings = make_settings(work / "killed")
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-c", CHILD, settings.data_dir, settings.run_dir, stdout=asyncio.subprocess.PIPE
    )
    try:
        assert child.stdout is not None
        url, key = (await asyncio.wait_for(child.stdout.readline(), 30)).decode().split()
        there = Platform(cast(LocalCluster, Elsewhere(url, key)), platform.http, work)
        await there.deploy(ECHO.format(name="one"))
        _, pid = await there.call("one")
        (instance,) = await there.instances("one")
        assert instance["pid"] == pid
        children = psutil.Process(child.pid).children(recursive=True)
    finally:
        child.kill()
        await child.wait()
    assert len(children) >= 2  # the zygote and the instance
    await until(lambda: not [c for c in children if c.is_running() and c.status() != "zombie"])
    async with running_platform(settings, work) as again:
        assert (await again.call("one", {"x": 8}))[0] == 8
        assert not Path(instance["address"].removeprefix("unix:")).exists()
    assert not settings.run.exists()


async def test_a_start_that_fails_leaves_nothing(work: Path, platform: Platform) -> None:
    settings = make_settings(work / "late", port=platform.cluster.gateway.port)
    before = {c.pid for c in psutil.Process().children(recursive=True)}
    with pytest.raises(PortInUse, match=str(settings.port)):
        await LocalCluster(settings).start()
    await until(lambda: {c.pid for c in psutil.Process().children(recursive=True)} <= before)
    assert not settings.run.exists()
    assert not settings.control_socket.exists()
    open_data_dir(settings).close()
