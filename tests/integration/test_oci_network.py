"""What code in a container reaches: the same as tried in namespaces, with the container's own eyes."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import sys
import tempfile
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import headrace
import pytest
import pytest_asyncio
from fixtures_world import INNER, MAIL, METADATA, NAMES, PORT, SHOP, World
from headrace_runtimes.base import Sandbox
from headrace_runtimes.conformance_bench import TOKEN, call
from headrace_runtimes.images.build import BuildSettings
from headrace_runtimes.images.hostroot import host_root
from headrace_runtimes.images.step import Step, run_step
from headrace_runtimes.images.store import Store
from headrace_runtimes.network.egress import Egress
from headrace_runtimes.network.space import Space
from headrace_runtimes.oci import OciRuntime
from headrace_runtimes.oci.network import for_builds
from headrace_runtimes.spec import Assignment, Base, Network, RuntimeSettings

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="containers need root")
ENGINE = Path(headrace.__file__).parent / "engines" / "python"
CODE = '''
import errno, os, socket, time

def reach(where):
    """What answers at a name or an address, or why nothing does; and the seconds that took."""
    began = time.monotonic()
    try:
        with socket.create_connection((where, PORT), 5) as end:
            said = end.recv(100).decode()
    except socket.gaierror as error:
        known = {socket.EAI_NONAME: "no such name", socket.EAI_NODATA: "no address"}
        said = known.get(error.args[0], str(error))
    except OSError as error:
        said = errno.errorcode.get(error.errno, str(error))
    return [said, time.monotonic() - began]

def run(asked):
    if "reach" in asked:
        return reach(asked["reach"])
    if "raw" in asked:
        found = []
        kinds = ((2, 3, 1), (2, 3, 255), (10, 3, 58), (17, 3, 768), (17, 2, 768), (2, 10, 0))
        for family, kind, number in kinds:
            try:
                socket.socket(family, kind, number).close()
                found.append([family, kind, number])
            except OSError:
                pass
        return found
    if "seen" in asked:
        return {
            "links": sorted(os.listdir("/sys/class/net")), "resolv": open("/etc/resolv.conf").read(),
            "writable": os.access("/sys/class/net/eth0/mtu", os.W_OK), "ipv6": socket.has_ipv6 and _ipv6(),
            "localhost": socket.gethostbyname("localhost"),
        }

def _ipv6():
    try:
        with open("/proc/net/if_inet6") as file:
            return file.read()
    except OSError:
        return ""
'''.replace("PORT", str(PORT))


@dataclass
class Cell:
    """An open runtime on the world's machine."""

    runtime: OciRuntime
    code: Path
    networks: Egress
    settings: RuntimeSettings

    async def start(self, network: Network, **options: Any) -> Sandbox:
        """An instance with this network."""
        assignment = Assignment(
            id=f"i{uuid.uuid4().hex[:8]}", endpoint="default/net", version=1, code_dir=self.code,
            entry="app:run", handler="function", token=TOKEN, **options,
        )  # fmt: skip
        return await self.runtime.claim(Base(key=f"{network}"[:60], network=network), assignment)


@pytest_asyncio.fixture
async def cell(world: World) -> AsyncIterator[Cell]:
    directory = Path(tempfile.mkdtemp(prefix="hrn-"))
    directory.chmod(0o711)
    (directory / "code").mkdir()
    (directory / "code" / "app.py").write_text(CODE)
    settings = RuntimeSettings(
        run_dir=directory / "o", engine_dir=ENGINE, python=sys.executable, zygote_bytes=1 << 30,
        log_dir=directory / "logs",
    )  # fmt: skip
    networks = Egress(world.machine.path, [NAMES])
    runtime = OciRuntime(networks=networks)
    await runtime.open(settings, lambda _: None)
    try:
        yield Cell(runtime, directory / "code", networks, settings)
    finally:
        await runtime.close()
        assert await runtime.list_owned() == []
        assert await world.machine.run(("nft", "list", "tables")) == ""
        assert "hrn-" not in await world.machine.run(("ip", "link"))
        shutil.rmtree(directory)


async def tell(sandbox: Sandbox, **asked: Any) -> Any:
    status, body = await call(sandbox, asked)
    assert status == 200, body
    return body


async def reach(sandbox: Sandbox, where: str) -> str:
    """What answers there; nothing that is refused takes long, next to the time a connection would wait."""
    said, took = await tell(sandbox, reach=where)
    assert took < 4.0, f"{where}: {said} after {took} s"
    return str(said)


async def test_out_by_name_and_nowhere_else(world: World, cell: Cell) -> None:
    world.zone |= {
        "shop.example": [(SHOP, 60)],
        "mail.example": [(MAIL, 60)],
        "evil.example": [(METADATA[0], 60)],
    }
    assert cell.runtime.capabilities()["networks"] == ""
    listed = await cell.start(Network("egress", ("shop.example",)))
    assert await reach(listed, SHOP) == "ECONNREFUSED"
    assert await reach(listed, "shop.example") == SHOP
    assert await reach(listed, SHOP) == SHOP
    assert await reach(listed, "mail.example") == "no such name"
    assert await reach(listed, MAIL) == "ECONNREFUSED"
    public = await cell.start(Network())
    assert await reach(public, "mail.example") == MAIL
    assert await reach(public, "evil.example") in {"no address", "no such name"}
    for address in (INNER, *METADATA, "192.0.2.2", "127.0.0.1"):
        assert await reach(public, address) == "ECONNREFUSED"
    alone = await cell.start(Network("none"))
    assert await reach(alone, SHOP) == "ENETUNREACH"
    assert await reach(alone, "localhost") == "ECONNREFUSED", "its own, which has a name"
    # A mode that was not allowed is refused before anything is made.
    with pytest.raises(Exception, match="allow_host_network"):
        await cell.start(Network("host"), fresh=True)


LOOK = """
import json, os, socket, sys
found = {}
for where in sys.argv[1:]:
    try:
        with socket.create_connection((where, PORT), 5) as end:
            found[where] = end.recv(100).decode()
    except OSError as error:
        found[where] = type(error).__name__
print(json.dumps({"found": found, "links": sorted(os.listdir("/sys/class/net"))}))
""".replace("PORT", str(PORT))


async def test_steps_of_builds_reach_no_more_than_they_may(world: World, cell: Cell, tmp_path: Path) -> None:
    world.zone |= {"shop.example": [(SHOP, 60)], "inner.example": [(INNER, 60)]}
    networks, settings = cell.networks, cell.settings
    root = await host_root(sys.executable, tmp_path)
    asked = ("shop.example", INNER, *METADATA, "inner.example")
    venv = ((Path(sys.prefix), sys.prefix),)
    step = Step("look", [sys.executable, "-c", LOOK, *asked], [root], binds=venv)

    async def look(*allow: str, **env: str) -> dict[str, Any]:
        said: list[str] = []
        build = BuildSettings(sys.executable, step_env=env)
        lent = for_builds(networks, replace(settings, build_allow=allow), build)
        with Store(tmp_path / "i").scratch() as scratch:
            async with lent.lend() as reach:
                assert reach is not None
                await run_step(step, "runc", scratch, 60.0, lambda text, *_: said.append(text), reach=reach)
        told = json.loads(said[-1].partition(": ")[2])
        assert told["links"] == ["eth0", "lo"]
        return dict(told["found"])

    await Store(tmp_path / "i").open()
    refused = dict.fromkeys(METADATA, "ConnectionRefusedError")
    found = await look()
    assert found.pop("inner.example") in {"gaierror", "ConnectionRefusedError"}
    assert found == {"shop.example": SHOP, INNER: "ConnectionRefusedError", **refused}
    found = await look("inner.example")
    assert found["inner.example"] == INNER
    assert found | refused == found
    # What the host gets packages by.
    found = await look(https_proxy=f"http://me:secret@{INNER}:3128")
    assert found[INNER] == INNER
    # Without the setting they see what the host sees.
    async with for_builds(networks, settings, BuildSettings(sys.executable)).lend() as reach:
        assert reach is None


async def test_what_it_sees_of_its_network(cell: Cell) -> None:
    sandbox = await cell.start(Network())
    assert await tell(sandbox, raw=True) == [], "no raw sockets, no packets, no other kinds"
    seen = await tell(sandbox, seen=True)
    assert seen.pop("resolv").startswith("nameserver 198.18.0.1\n")
    assert seen == {
        "links": ["eth0", "lo"], "writable": False, "ipv6": "", "localhost": "127.0.0.1",
    }  # fmt: skip
    ran = await sandbox.exec([sys.executable, "-c", "import os; print(os.listdir('/sys/class/net'))"])
    assert b"eth0" in ran.stdout


async def test_others_do_not_hear_it(world: World, cell: Cell) -> None:
    one, two = await cell.start(Network("egress", ("198.18.0.0/15",))), await cell.start(Network())
    with open(f"/proc/{two.pid}/net/fib_trie", encoding="utf-8") as file:
        own = [line.split()[-1] for line in file if "|-- 198.18." in line]
    space = Space(f"/proc/{two.pid}/ns/net")
    await space.open()
    listener = await space.call(socket.create_server, ("", PORT))
    try:
        assert own
        for address in set(own):
            assert await reach(one, address) == "ECONNREFUSED"
    finally:
        listener.close()
        await space.close()


async def test_the_dead_leave_no_way_out(world: World, cell: Cell) -> None:
    sandbox = await cell.start(Network())
    assert await reach(sandbox, SHOP) == SHOP
    before = {owned.name for owned in await cell.runtime.list_owned() if owned.kind == "interface"}
    await sandbox.stop(0.0)

    async def gone() -> None:
        while True:
            now = {owned.name for owned in await cell.runtime.list_owned() if owned.kind == "interface"}
            if before - now:
                return
            await asyncio.sleep(0.02)

    await asyncio.wait_for(gone(), 20)
