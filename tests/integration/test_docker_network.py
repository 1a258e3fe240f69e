"""What a container of Docker reaches with ``egress``: what may be reached, by name, and nothing else."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import headrace
import pytest
from fixtures_world import INNER, METADATA, NAMES, PORT, SHOP, World
from headrace_runtimes.conformance_bench import Harness, call, opened
from headrace_runtimes.docker import DockerRuntime
from headrace_runtimes.errors import PrepareFailed
from headrace_runtimes.network.egress import Egress
from headrace_runtimes.spec import Base, Network, RuntimeSettings

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="containers need root")
ENGINE = Path(headrace.__file__).parent / "engines" / "python"
CODE = """
import socket

def reach(address, port):
    try:
        with socket.create_connection((address, port), 2) as end:
            return end.recv(100).decode()
    except OSError as error:
        return type(error).__name__
"""
MakeHarness = Callable[[Egress], Harness]


@pytest.fixture
def make(docker_daemon: str) -> Iterator[MakeHarness]:
    path = Path(tempfile.mkdtemp(prefix="hrn-"))
    path.chmod(0o711)
    settings = RuntimeSettings(
        run_dir=path / "o", engine_dir=ENGINE, python=sys.executable, zygote_bytes=1 << 30,
        log_dir=path / "logs",
    )  # fmt: skip
    yield lambda networks: Harness(lambda: DockerRuntime(docker_daemon, networks), settings, path / "code")
    shutil.rmtree(path)


async def test_egress(make: MakeHarness, world: World) -> None:
    world.zone["shop.example"] = [(SHOP, 60)]
    networks = Egress(world.machine.path, servers=[NAMES])
    async with opened(make(networks)) as bench:
        assert bench.runtime.capabilities()["networks"] == ""
        (bench.code / "app.py").write_text(CODE)
        await bench.base("plain", lambda status: status.spares > 0)
        sandbox = await bench.start("reach")
        assert sandbox.tier == "warm"

        async def reach(address: str) -> str:
            status, told = await call(sandbox, {"address": address, "port": PORT})
            assert status == 200, told
            return str(told)

        assert await reach("shop.example") == SHOP
        assert await reach(SHOP) == SHOP
        for address in (INNER, *METADATA, "127.0.0.1"):
            assert (await reach(address)) not in {address, SHOP}, address
        only = Base(key="only", network=Network("egress", allow=("203.0.113.0/24",)))
        await sandbox.stop(0.0)
        sandbox = await bench.start("reach", only)
        assert await reach("203.0.113.10") == "203.0.113.10"
        assert await reach(SHOP) != SHOP
    assert await networks.list_owned() == []


async def test_what_cannot_be_had_is_refused_with_the_reason(make: MakeHarness) -> None:
    async with opened(make(Egress("/nowhere"))) as bench:
        assert "nowhere" in bench.runtime.capabilities()["networks"]
        with pytest.raises(PrepareFailed, match='"egress" is not available'):
            await bench.start()
        with pytest.raises(PrepareFailed, match="allow_host_network"):
            await bench.start(base=Base(key="host", network=Network("host")))
        alone = Base(key="alone", network=Network("none"))
        assert (await call(await bench.start(base=alone), {}))[0] == 200
