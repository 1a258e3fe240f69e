"""Secrets from the command line to the handler, on one platform: who gets them, and where they never are."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import sys
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tests.integration.conftest import Platform, make_settings, running_platform, until
from tests.integration.test_runtime_secrets import in_proc, on_disk

pytestmark = pytest.mark.asyncio(loop_scope="module")

CANARY = f"canary-{secrets.token_hex(12)}"
APP = """
    import os

    def seen():
        place = os.environ.get("HEADRACE_SECRETS", "")
        names = sorted(os.listdir(place)) if place else []
        return {{
            "files": {{name: open(os.path.join(place, name)).read() for name in names}},
            "variable": os.environ.get("TOKEN"),
        }}

    @headrace.endpoint(name="{name}"{options})
    class Holder:
        def load(self):
            self.at_load = seen()

        def __call__(self):
            return {{"now": seen(), "load": self.at_load, "pid": os.getpid(), "say": {version}}}
"""


def app(name: str, secrets: str = "", *, more: str = "", version: int = 1) -> str:
    options = f", secrets={secrets}" if secrets else ""
    return APP.format(name=name, options=options + more, version=version)


async def headrace(platform: Platform, *argv: str, stdin: bytes = b"") -> tuple[int, str]:
    """Run a command; (exit code, all that it printed)."""
    env: Mapping[str, str] = {
        **os.environ,
        "HEADRACE_URL": platform.cluster.url,
        "HEADRACE_API_KEY": platform.cluster.admin_key,
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "headrace.cli", *argv, env=env, stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    async with asyncio.timeout(30):
        out, _ = await process.communicate(stdin)
    return process.returncode or 0, out.decode()


async def put(platform: Platform, name: str, value: str) -> dict[str, Any]:
    row: dict[str, Any] = await platform.api("PUT", f"/secrets/{name}", {"value": value})
    return row


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def platform(work: Path, request: pytest.FixtureRequest) -> AsyncIterator[Platform]:
    """With containers, where there can be any."""
    with pytest.MonkeyPatch.context() as patch:
        if os.geteuid() == 0:
            patch.setenv("DOCKER_HOST", request.getfixturevalue("docker_daemon"))
        async with running_platform(make_settings(work / "data"), work) as platform:
            yield platform


@pytest_asyncio.fixture(autouse=True, loop_scope="module")
async def stored(platform: Platform) -> None:
    await put(platform, "FILE_ONLY", f"{CANARY}-file")
    await put(platform, "TOKEN", f"{CANARY}-token")


async def test_the_command_sets_lists_and_deletes(platform: Platform, work: Path) -> None:
    code, out = await headrace(platform, "secrets", "set", "FROM_STDIN", stdin=b"of stdin\n")
    assert (code, out) == (0, "FROM_STDIN is set, version 1\n")
    (work / "value").write_bytes(b"of a file\r\n\n")
    code, out = await headrace(platform, "secrets", "set", "FROM_STDIN", "--file", str(work / "value"))
    assert (code, out) == (0, "FROM_STDIN is set, version 2\n")
    longer = "is longer than 32 KiB"
    for wrong, why in ((b"\n", "is empty"), (b"x" * 32769, longer), ("ä".encode() * 10**5, longer)):
        code, out = await headrace(platform, "secrets", "set", "FROM_STDIN", stdin=wrong)
        assert code == 2
        assert out.startswith(f"headrace: the value {why}."), out
    code, out = await headrace(platform, "secrets", "list")
    assert code == 0
    assert "FROM_STDIN" in out
    assert CANARY not in out
    await platform.deploy(app("reads", '["FROM_STDIN"]'))
    assert (await platform.call("reads"))["now"]["files"] == {"FROM_STDIN": "of a file\n\n"}
    code, out = await headrace(platform, "secrets", "delete", "FROM_STDIN")
    assert code == 1
    assert "used by reads" in out
    await platform.api("DELETE", "/endpoints/reads")
    await until(lambda: platform.cluster.control.parts.world.endpoints.get("default/reads") is None)
    code, out = await headrace(platform, "secrets", "delete", "FROM_STDIN")
    assert (code, out) == (0, "FROM_STDIN is deleted\n")
    code, out = await headrace(platform, "secrets", "delete", "FROM_STDIN")
    assert code == 1
    assert "no secret FROM_STDIN" in out


@pytest.mark.parametrize(
    ("argv", "stdin"),
    [
        (["set", "NAME", CANARY], b""),
        (["set", f"{CANARY}"], b"x"),
        (["set", "NAME"], CANARY.encode() + b"\xff"),
        (["set", "NAME"], CANARY.encode() + b"\0"),
        (["set", "NAME"], CANARY.encode() * 4000),
        (["set", "NAME"], b""),
    ],
    ids=["in the arguments", "in place of a name", "no text", "a zero", "too long", "empty"],
)
async def test_wrong_use_does_not_repeat_the_value(platform: Platform, argv: list[str], stdin: bytes) -> None:
    code, out = await headrace(platform, "secrets", *argv, stdin=stdin)
    assert code in (1, 2)
    assert CANARY not in out
    assert len(out.splitlines()) == 1


@pytest.mark.parametrize(
    "body",
    [f'{{"value": "{CANARY}" x', f'["{CANARY}"]', f'{{"{CANARY}": 1}}', f'{{"value": ["{CANARY}"]}}', ""],
    ids=["cut off", "a list", "another name", "no string", "empty"],
)
async def test_a_body_that_is_refused_is_not_repeated(platform: Platform, body: str) -> None:
    status, _, answer = await platform.request("PUT", "/api/v1/secrets/TOKEN", data=body)
    assert status in (400, 422)
    assert CANARY not in str(answer)


async def test_a_value_is_never_read_back(platform: Platform) -> None:
    for path in ("/secrets", "/secrets/TOKEN", "/status"):
        _, _, answer = await platform.request("GET", f"/api/v1{path}")
        assert CANARY not in str(answer)
    row = next(r for r in (await platform.api("GET", "/secrets"))["items"] if r["name"] == "TOKEN")
    assert set(row) == {"name", "version", "created_at", "updated_at", "used_by"}


async def test_who_may_what(platform: Platform) -> None:
    made = {}
    for scope in ("invoke", "deploy"):
        answer = await platform.api("POST", "/keys", {"name": scope, "scopes": [scope]})
        made[scope] = {"Authorization": f"Bearer {answer['key']}"}
    asked = (
        ("GET", "/secrets"),
        ("PUT", "/secrets/TOKEN"),
        ("DELETE", "/secrets/NO"),
        ("POST", "/secrets/rotate-key"),
    )
    answers = {
        scope: [
            (await platform.request(method, f"/api/v1{path}", headers=auth, json={"value": CANARY}))[0]
            for method, path in asked
        ]
        for scope, auth in made.items()
    }
    assert answers == {"invoke": [403, 403, 403, 403], "deploy": [200, 200, 404, 403]}


async def test_instances_get_what_they_name_and_no_more(platform: Platform) -> None:
    both = '["FILE_ONLY", headrace.Secret("TOKEN", env=True)]'
    await platform.deploy(app("both", both))
    await platform.deploy(app("none"))
    seen = await platform.call("both")
    assert (
        seen["now"]
        == seen["load"]
        == {
            "files": {"FILE_ONLY": f"{CANARY}-file", "TOKEN": f"{CANARY}-token"},
            "variable": f"{CANARY}-token",
        }
    )
    assert (await platform.call("none"))["now"] == {"files": {}, "variable": None}
    described = await platform.endpoint("both")
    assert CANARY not in str(described)
    assert "both" in (await put(platform, "FILE_ONLY", f"{CANARY}-file"))["used_by"]


@pytest.mark.skipif(os.geteuid() != 0, reason="containers need root")
@pytest.mark.parametrize("runtime", ["oci", "docker"])
async def test_containers_get_theirs_in_memory(platform: Platform, runtime: str) -> None:
    both = '["FILE_ONLY", headrace.Secret("TOKEN", env=True)]'
    name = f"contained-{runtime}"
    found = await platform.deploy(app(name, both, more=f', runtime="{runtime}"'))
    assert found["state"] == "succeeded", found
    seen = await platform.call(name)
    assert seen["now"]["files"] == {"FILE_ONLY": f"{CANARY}-file", "TOKEN": f"{CANARY}-token"}
    assert seen["load"]["variable"] == f"{CANARY}-token"


async def test_an_unknown_secret_is_refused_by_name(platform: Platform) -> None:
    with pytest.raises(AssertionError, match="no secret NOT_THERE: `headrace secrets set NOT_THERE`"):
        await platform.deploy(app("lacks", '["TOKEN", "NOT_THERE"]'))


async def test_a_new_version_is_for_new_instances(platform: Platform) -> None:
    await put(platform, "CHANGES", "first")
    await platform.deploy(app("changes", '["CHANGES"]'))
    before = await platform.call("changes")
    await put(platform, "CHANGES", "second")
    again = await platform.call("changes")
    assert (again["pid"], again["now"]["files"]) == (before["pid"], {"CHANGES": "first"})
    await platform.to_zero("changes")
    assert (await platform.call("changes"))["now"]["files"] == {"CHANGES": "second"}


async def test_a_base_that_has_loaded_is_made_again_for_a_new_version(platform: Platform) -> None:
    await put(platform, "LOADED", "first")
    await platform.deploy(app("loaded", '["LOADED"]', more=', snapshot="loaded"'))
    before = await platform.call("loaded")
    assert before["load"]["files"] == {"LOADED": "first"}
    await put(platform, "LOADED", "second")
    assert (await platform.call("loaded"))["pid"] == before["pid"], "it was restarted"
    world = platform.cluster.control.parts.world

    def versions() -> set[int]:
        reports = [r for host in world.living_hosts() for r in host.warm.values() if r.state == "ready"]
        return {ref.version for r in reports if r.base.loaded for ref in r.base.loaded.secrets}

    await until(lambda: 2 in versions())
    await platform.to_zero("loaded")
    after = await platform.call("loaded")
    assert after["load"]["files"] == after["now"]["files"] == {"LOADED": "second"}
    tiers = {i["tier"] for i in await platform.instances("loaded")}
    assert tiers <= {"warm", "forked"}


async def test_a_start_without_its_secret_fails_with_its_name(platform: Platform) -> None:
    await put(platform, "GOES", "x")
    await platform.deploy(app("goes", '["GOES"]'))
    await platform.to_zero("goes")
    # As by hand in the database: the API would refuse it.
    vault = platform.cluster.control.parts.vault
    del vault._rows["default", "GOES"]
    status, _, answer = await platform.request("POST", "/e/goes", json={})
    assert status >= 500
    assert "GOES" in str(answer)


async def test_the_key_is_changed_under_running_endpoints(platform: Platform) -> None:
    await platform.deploy(app("rotates", '["TOKEN"]'))
    key = platform.cluster.settings.data / "secrets.key"
    before = key.read_bytes()
    code, out = await headrace(platform, "secrets", "rotate-key")
    assert code == 0
    assert "sealed with a new key" in out
    assert key.read_bytes() != before
    await platform.to_zero("rotates")
    assert (await platform.call("rotates"))["now"]["files"]["TOKEN"].startswith(CANARY)


async def test_the_value_is_nowhere_on_the_machine(
    platform: Platform, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    await put(platform, "TOKEN", f"{CANARY}-again")
    await platform.deploy(app("holds", '["FILE_ONLY", headrace.Secret("TOKEN", env=True)]', version=7))
    await platform.call("holds")
    settings = platform.cluster.settings
    found = [path for root in (settings.data, settings.run) for path in on_disk(root, CANARY)]
    # The instances' own, where the run directory is in memory.
    assert [path for path in found if "/m/" not in path] == []
    assert in_proc(CANARY) == []
    for path in ("/instances", "/hosts", "/secrets", "/endpoints/holds", "/endpoints/holds/logs"):
        assert CANARY not in str(await platform.api("GET", path)), path
    assert CANARY not in caplog.text
