"""User code tries to get at what is not its own. Each attempt runs inside a real instance."""

from __future__ import annotations

import os
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from tests.integration.conftest import Platform

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.skipif(os.geteuid() != 0, reason="own uids for instances need root"),
]

THIEF = """
    import os, socket, subprocess, sys

    def attempt(action):
        try:
            return ["got", repr(action())[:200]]
        except Exception as error:
            return ["refused", type(error).__name__]

    def talk(path):
        with socket.socket(socket.AF_UNIX) as s:
            s.settimeout(5)
            s.connect(path)
            return "connected"

    @headrace.endpoint(name="{name}")
    def thief(what: str, path: str = "") -> object:
        if what == "read":
            return attempt(lambda: open(path, "rb").read())
        if what == "list":
            return attempt(lambda: os.listdir(path))
        if what == "write":
            return attempt(lambda: open(path, "ab").write(b"x"))
        if what == "connect":
            return attempt(lambda: talk(path))
        if what == "kill":
            return attempt(lambda: os.kill(int(path), 0))
        if what == "root":
            return attempt(lambda: os.setuid(0))
        if what == "env":
            return dict(os.environ)
        if what == "fds":
            return [os.readlink(f"/proc/self/fd/{{fd}}") for fd in os.listdir("/proc/self/fd")
                    if os.path.lexists(f"/proc/self/fd/{{fd}}")]
        if what == "status":
            return open("/proc/self/status").read()
        if what == "argv":
            return open("/proc/self/cmdline").read()
        if what == "me":
            return [os.getpid(), os.getuid(), os.getcwd()]
        raise ValueError(what)
"""


async def ask(platform: Platform, what: str, path: object = "") -> Any:
    return await platform.call("thief", {"what": what, "path": str(path)})


@pytest_asyncio.fixture(autouse=True, loop_scope="module")
async def thieves(platform: Platform) -> None:
    if "thief" not in {e["name"] for e in (await platform.api("GET", "/endpoints"))["items"]}:
        await platform.deploy(THIEF.format(name="thief"))
        await platform.deploy(THIEF.format(name="victim"))
    await ask(platform, "me")
    await platform.call("victim", {"what": "me"})


@pytest.mark.parametrize("name", ["admin.key", "cluster.token", "control.db", "control.db-wal", "up.json"])
async def test_the_data_directory_is_closed(platform: Platform, name: str) -> None:
    path = platform.cluster.settings.data / name
    assert (await ask(platform, "read", path))[0] == "refused"
    assert (await ask(platform, "write", path))[0] == "refused"


async def test_data_directory_cannot_be_listed(platform: Platform) -> None:
    verdict, detail = await ask(platform, "list", platform.cluster.settings.data)
    # Covered by an empty mount, or refused.
    assert verdict == "refused" or detail == "[]"


async def test_control_socket_is_closed(platform: Platform) -> None:
    assert (await ask(platform, "connect", platform.cluster.settings.control_socket))[0] == "refused"


async def test_other_instances_are_closed(platform: Platform) -> None:
    (victim,) = await platform.instances("victim")
    socket = victim["address"].removeprefix("unix:")
    folder = str(platform.cluster.host.run_dir / "p" / "s" / victim["id"])
    assert os.path.exists(socket)
    assert os.path.exists(folder)
    assert (await ask(platform, "connect", socket))[0] == "refused"
    assert (await ask(platform, "list", folder))[0] == "refused"
    assert (await ask(platform, "write", folder + "/x"))[0] == "refused"
    assert (await ask(platform, "read", f"/proc/{victim['pid']}/environ"))[0] == "refused"
    assert (await ask(platform, "read", f"/proc/{victim['pid']}/mem"))[0] == "refused"
    assert (await ask(platform, "kill", victim["pid"]))[0] == "refused"


async def test_the_host_is_closed(platform: Platform) -> None:
    for name in ("environ", "mem", "maps"):
        assert (await ask(platform, "read", f"/proc/{os.getpid()}/{name}"))[0] == "refused"
    assert (await ask(platform, "kill", os.getpid()))[0] == "refused"
    verdict, detail = await ask(platform, "list", platform.cluster.settings.run / "hosts/local")
    assert verdict == "refused" or detail == "[]"


async def test_code_and_logs_cannot_be_changed(platform: Platform) -> None:
    bundles = platform.cluster.host.run_dir / "bundles"
    files = list(bundles.rglob("*.py"))
    assert files
    for file in files:
        assert (await ask(platform, "write", file))[0] == "refused"
    for log in platform.cluster.host.log_dir.rglob("*"):
        assert (await ask(platform, "read", log))[0] == "refused"


async def test_it_is_nobody_and_stays_so(platform: Platform) -> None:
    _, uid, _ = await ask(platform, "me")
    _, other, _ = await platform.call("victim", {"what": "me"})
    assert uid not in (0, other)
    assert (await ask(platform, "root"))[0] == "refused"
    status = dict(
        line.split(":\t", 1) for line in (await ask(platform, "status")).splitlines() if ":\t" in line
    )
    assert status["NoNewPrivs"] == "1"
    assert int(status["CapEff"], 16) == int(status["CapPrm"], 16) == 0
    assert status["Groups"].split() in ([], [str(uid)])


async def test_environment_holds_no_secret(platform: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    env = await ask(platform, "env")
    assert not [name for name in env if name.startswith(("HEADRACE_", "RAY_", "AWS_"))], env
    cluster = platform.cluster
    everything = str(env) + await ask(platform, "argv")
    assert cluster.admin_key not in everything
    assert cluster.data.cluster_token not in everything


async def test_descriptors_are_its_own(platform: Platform) -> None:
    cluster = platform.cluster
    for target in await ask(platform, "fds"):
        assert not target.startswith(str(cluster.settings.data)), target
        assert "control" not in target
        assert not target.startswith("/dev/mem")


async def test_an_instance_answers_only_its_gateway(platform: Platform) -> None:

    (victim,) = await platform.instances("victim")
    path = victim["address"].removeprefix("unix:")
    async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(path)) as http:
        for headers in ({}, {"X-Headrace-Token": "wrong"}, {"X-Headrace-Token": "é"}):
            async with http.post("http://instance/", json={"what": "me"}, headers=headers) as answer:
                assert answer.status == 403


async def test_the_api_shows_no_token(platform: Platform) -> None:
    shown = str(await platform.api("GET", "/instances")) + str(await platform.endpoint("thief"))
    for report in platform.cluster.host.instances.inventory():
        assert report.token not in shown
    assert platform.cluster.data.cluster_token not in shown
