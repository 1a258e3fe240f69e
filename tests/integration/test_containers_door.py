"""An engine that does not come up in its container is told at once, with its exit code and its last lines."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from pathlib import Path
from typing import Any

import pytest
from headrace_runtimes.base import Runtime
from headrace_runtimes.conformance_bench import Harness, opened
from headrace_runtimes.containers import maker
from headrace_runtimes.containers.door import NAME, Door, NobodyKnocked
from headrace_runtimes.containers.driver import Container, ContainerSpec, Driver
from headrace_runtimes.docker import DockerRuntime
from headrace_runtimes.docker.driver import DockerDriver
from headrace_runtimes.errors import PrepareFailed
from headrace_runtimes.oci import OciRuntime
from headrace_runtimes.oci.driver import OciDriver
from headrace_runtimes.oci.network import LoopbackOnly
from headrace_runtimes.spec import Base, RuntimeSettings

root = pytest.mark.skipif(os.geteuid() != 0, reason="containers need root")
ENDS = {
    "print('no such library', flush=True); sys.exit(7)": (
        "exit code 7", "no such library",
    ),
    "print('first\\nsecond', flush=True); raise RuntimeError('broken')": (
        "exit code 1", "RuntimeError: broken",
    ),
    "import ctypes; ctypes.string_at(0)": ("killed by SIGSEGV", ""),
}  # fmt: skip


def engine_that(source: str, directory: Path, name: str, request: pytest.FixtureRequest) -> Harness:
    """A runtime whose containers begin with this program in the place of the engine."""

    def make() -> Runtime:
        if name == "oci":
            return OciRuntime(networks=LoopbackOnly())
        return DockerRuntime(request.getfixturevalue("docker_daemon"), LoopbackOnly())

    engine = directory / "engine"
    engine.mkdir()
    (engine / "container.py").write_text(source)
    settings = RuntimeSettings(
        run_dir=directory / "o", engine_dir=engine, python=sys.executable, zygote_bytes=1 << 30,
        log_dir=directory / "logs",
    )  # fmt: skip
    return Harness(make, settings, directory / "code")


@root
@pytest.mark.parametrize("name", ["oci", "docker"])
async def test_an_engine_that_ends(directory: Path, name: str, request: pytest.FixtureRequest) -> None:
    async with opened(engine_that("import sys; sys.exit(7)", directory, name, request)) as bench:
        # Those that wait are made by the same hand.
        status = await bench.base("plain", lambda status: status.state == "failed")
        assert "before it was up" in status.detail
        await bench.runtime.hold([(Base("plain"), 0)])
        for source, (code, said) in ENDS.items():
            # Who is reaped before anybody has looked at it leaves no code behind.
            (directory / "engine/container.py").write_text(f"import sys, time\ntime.sleep(1)\n{source}\n")
            async with asyncio.timeout(maker.UP_TIMEOUT_S / 2):
                with pytest.raises(PrepareFailed, match="ended in its container before it was up") as failed:
                    await bench.start()
            assert code in str(failed.value)
            assert said in str(failed.value)
        assert [owned for owned in await bench.runtime.list_owned() if owned.kind == "container"] == []


@root
@pytest.mark.parametrize("name", ["oci", "docker"])
async def test_an_engine_that_is_gone_before_it_is_looked_at(
    directory: Path, name: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its process is reaped by another, at any time: also between its start and our first look."""
    driver: type[Any] = OciDriver if name == "oci" else DockerDriver
    create = driver.create

    async def late(self: Driver, spec: ContainerSpec) -> Container:
        container: Container = await create(self, spec)
        async with asyncio.timeout(20):
            while Path(f"/proc/{container.pid}").exists():
                await asyncio.sleep(0.01)
        return container

    monkeypatch.setattr(driver, "create", late)

    source = "import sys, time; time.sleep(1); sys.exit('no such library')"
    async with opened(engine_that(source, directory, name, request)) as bench:
        await bench.runtime.hold([(Base("plain"), 0)])
        with pytest.raises(
            PrepareFailed, match=r"ended in its container before it was up \(.*no such library"
        ):
            await bench.start()
        assert [owned for owned in await bench.runtime.list_owned() if owned.kind == "container"] == []


async def test_who_knocks_from_inside_gets_what_is_handed_over(directory: Path) -> None:
    door = Door(directory / "door")
    reading, writing = os.pipe()
    ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as visitor:
        visitor.connect(str(directory / "door" / NAME))
        assert await door.hand_over(os.getpid(), [writing], 5.0, ended) == os.getpid()
        _, descriptors, _, _ = socket.recv_fds(visitor, 10, 2)
        os.write(descriptors[0], b"through")
        assert os.read(reading, 10) == b"through"
        for fd in (reading, writing, *descriptors):
            os.close(fd)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as visitor:
        visitor.connect(str(directory / "door" / NAME))
        with pytest.raises(NobodyKnocked, match="within 0 s"):
            await door.hand_over(os.getpid() + 1, [], 0.1, ended)
        assert visitor.recv(10) == b"", "nothing is handed to him, and he is sent away"
    door.close()


async def test_who_is_not_meant_keeps_nobody_out(directory: Path) -> None:
    door = Door(directory / "door")
    place = str(directory / "door" / NAME)
    come = f"import socket; s = socket.socket(1, 5); s.connect({place!r})"
    knock = f"{come}; print(s.recv(10), flush=True); s.recv(1)"
    for _ in range(5):
        stranger = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        stranger.connect(place)
        stranger.close()
    meant = await asyncio.create_subprocess_exec(sys.executable, "-c", knock, stdout=asyncio.subprocess.PIPE)
    assert meant.stdout is not None
    ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    assert await door.hand_over(meant.pid, [0], 30.0, ended) == meant.pid
    assert (await meant.stdout.readline()).strip() == b"b'{}'"
    await meant.wait()
    door.close()


async def test_nobody_knocks(directory: Path) -> None:
    door = Door(directory / "door")
    ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    with pytest.raises(NobodyKnocked, match="within 0 s") as late:
        await door.hand_over(1, [], 0.05, ended)
    assert not late.value.ended
    asyncio.get_running_loop().call_later(0.05, ended.set_result, None)
    with pytest.raises(NobodyKnocked, match="ended") as dead:
        await door.hand_over(1, [], 60.0, ended)
    assert dead.value.ended
    waiting = asyncio.create_task(door.hand_over(1, [], 60.0, asyncio.get_running_loop().create_future()))
    await asyncio.sleep(0.01)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    door.close()
