"""API keys on a running platform: what each may do, its limits, its end."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import sqlite3
import sys
from typing import Any

import pytest
from headrace.gateway.server import Gateway
from headrace.sdk.client import Client

from tests.integration.conftest import Platform, until

pytestmark = pytest.mark.asyncio(loop_scope="module")

SOURCE = """
    @headrace.endpoint(name="alpha")
    def alpha(n: int = 0) -> int:
        return n

    @headrace.endpoint(name="gamma")
    def gamma(n: int = 0) -> int:
        return -n
"""


async def make(platform: Platform, **body: Any) -> dict[str, Any]:
    made: dict[str, Any] = await platform.api("POST", "/keys", {"name": "test", **body})
    return made


def bearer(made: dict[str, Any]) -> dict[str, str]:
    return {"Authorization": f"Bearer {made['key']}"}


async def test_a_key_is_shown_once_and_stored_as_its_hash(platform: Platform) -> None:
    await platform.deploy(SOURCE)
    made = await make(platform)
    assert made["key"].startswith("hr_")
    assert len(made["key"]) == 3 + 43
    listed = await platform.api("GET", "/keys")
    found = next(item for item in listed["items"] if item["id"] == made["id"])
    assert found == {key: value for key, value in made.items() if key != "key"}
    digest = hashlib.sha256(made["key"].encode()).hexdigest()
    assert made["key"] not in json.dumps(listed)
    assert digest not in json.dumps(listed)
    with sqlite3.connect(platform.cluster.settings.data / "control.db") as db:
        rows = db.execute("SELECT * FROM keys").fetchall()
    assert any(digest in row for row in rows)
    assert made["key"] not in str(rows)
    status, _, value = await platform.request("POST", "/e/alpha", json={"n": 3}, headers=bearer(made))
    assert (status, value) == (200, 3)


async def test_scopes(platform: Platform) -> None:
    keys = {scope: bearer(await make(platform, scopes=[scope])) for scope in ("invoke", "deploy", "metrics")}
    expected = {
        ("POST", "/e/alpha"): {"invoke"},
        ("GET", "/api/v1/endpoints"): {"deploy"},
        ("GET", "/api/v1/jobs"): {"invoke"},
        ("GET", "/metrics"): {"metrics"},
        ("GET", "/api/v1/keys"): set(),
        ("DELETE", "/api/v1/keys/nobody"): set(),
        ("POST", "/api/v1/keys"): set(),
    }
    for (method, path), allowed in expected.items():
        for scope, headers in keys.items():
            body = {"name": "more", "scopes": ["admin"]} if path.endswith("/keys") else {}
            options = {"json": body} if method == "POST" else {}
            status, _, value = await platform.request(method, path, headers=headers, **options)
            assert (status == 200) == (scope in allowed), (path, scope, status, value)
            if status != 200:
                assert status == 403, (path, scope, status, value)
                assert value["type"] == "urn:headrace:forbidden"


async def test_a_list_of_endpoints_is_all_that_is_seen(platform: Platform) -> None:
    made = bearer(await make(platform, endpoints=["alpha", "alpine"]))
    for method, path, body in (
        ("POST", "/e/alpha", {}),
        ("POST", "/v2/alpha/run", {"input": {}}),
        ("POST", "/api/v1/jobs", {"endpoint": "alpha", "input": {}}),
    ):
        status, _, value = await platform.request(method, path, json=body, headers=made)
        assert status in (200, 202), (path, value)
    for name in ("gamma", "gama", "nothing"):
        for path, body in (
            (f"/e/{name}", {}),
            (f"/e/{name}@1/x", {}),
            (f"/v2/{name}/run", {"input": {}}),
            (f"/v2/{name}/purge-queue", {}),
            (f"/api/v1/endpoints/{name}/purge", {}),
            ("/api/v1/jobs", {"endpoint": name, "input": {}}),
        ):
            status, _, value = await platform.request("POST", path, json=body, headers=made)
            assert status == 403, (path, status, value)
            assert "gamma" not in value["hint"]
    # A name that it may call but that is not deployed: nothing else is suggested.
    status, _, value = await platform.request("POST", "/e/alpine", json={}, headers=made)
    assert status == 404
    assert "gamma" not in json.dumps(value)


async def test_jobs_of_other_endpoints_are_not_seen(platform: Platform) -> None:
    made = bearer(await make(platform, endpoints=["alpha"]))
    other = await platform.api("POST", "/jobs", {"endpoint": "gamma", "input": {"n": 1}})
    mine = await platform.api("POST", "/jobs", {"endpoint": "alpha", "input": {"n": 1}})
    for method, tail in (
        ("GET", ""),
        ("GET", "/output"),
        ("GET", "/stream"),
        ("POST", "/cancel"),
        ("POST", "/retry"),
    ):
        status, _, _ = await platform.request(method, f"/api/v1/jobs/{other['id']}{tail}", headers=made)
        assert status == 404, tail
    status, _, value = await platform.request("GET", f"/api/v1/jobs/{mine['id']}?wait=20", headers=made)
    assert (status, value["state"]) == (200, "succeeded")
    assert (await platform.request("GET", "/api/v1/jobs", headers=made))[0] == 403
    assert (await platform.request("GET", "/api/v1/jobs?endpoint=gamma", headers=made))[0] == 403
    status, _, value = await platform.request("GET", "/api/v1/jobs?endpoint=alpha", headers=made)
    assert status == 200
    assert {item["endpoint"] for item in value["items"]} == {"alpha"}


async def test_rate_limit_says_when_to_come_again(platform: Platform) -> None:
    made = bearer(await make(platform, rate_limit={"requests_per_s": 0.01, "burst": 3}))
    answers = [await platform.request("POST", "/e/alpha", json={}, headers=made) for _ in range(5)]
    assert [status for status, _, _ in answers] == [200, 200, 200, 429, 429]
    _, headers, problem = answers[-1]
    assert problem["type"] == "urn:headrace:rate-limited"
    assert 1 <= int(headers["Retry-After"]) <= 100
    # Others are not slowed.
    assert await platform.call("alpha", {"n": 1}) == 1


async def test_a_revoked_key_is_refused_at_once(platform: Platform) -> None:
    for _ in range(5):
        made = await make(platform)
        assert (await platform.request("POST", "/e/alpha", json={}, headers=bearer(made)))[0] == 200
        await platform.api("DELETE", f"/keys/{made['id']}")
        assert (await platform.request("POST", "/e/alpha", json={}, headers=bearer(made)))[0] == 401
        status, _, _ = await platform.request("DELETE", f"/api/v1/keys/{made['id']}")
        assert status == 404


async def test_other_gateways_hear_of_keys_too(platform: Platform) -> None:
    cluster = platform.cluster
    second = Gateway(
        cluster.settings,
        token=cluster.data.cluster_token,
        control_address=f"unix:{cluster.settings.control_socket}",
    )
    await second.start()
    try:
        made = await make(platform)

        async def answers(status: int) -> bool:
            async with platform.http.post(f"{second.url}/e/alpha", json={}, headers=bearer(made)) as answer:
                return answer.status == status

        await until(lambda: answers(200))
        await platform.api("DELETE", f"/keys/{made['id']}")
        # Told before the caller had its answer; this process has only to read it.
        await until(lambda: answers(401), deadline_s=2.0)
    finally:
        await second.stop(0)


async def test_the_admin_key_cannot_be_revoked_here(platform: Platform) -> None:
    other = bearer(await make(platform, scopes=["admin"]))
    for headers in ({}, other):
        status, _, value = await platform.request("DELETE", "/api/v1/keys/admin", headers=headers)
        assert status == 409
        assert "admin.key" in value["hint"]
    assert (await platform.api("GET", "/status"))["version"]


async def test_keys_survive_control_and_gateway(platform: Platform) -> None:
    made = await make(platform, rate_limit={"requests_per_s": 100})
    gone = await make(platform)
    await platform.api("DELETE", f"/keys/{gone['id']}")
    await platform.cluster.restart_control()
    await platform.cluster.wait_ready()
    assert (await platform.request("POST", "/e/alpha", json={}, headers=bearer(made)))[0] == 200
    assert (await platform.request("POST", "/e/alpha", json={}, headers=bearer(gone)))[0] == 401
    listed = {item["id"]: item for item in (await platform.api("GET", "/keys"))["items"]}
    assert listed[made["id"]]["rate_limit"] == {"requests_per_s": 100, "burst": 100}
    assert gone["id"] not in listed


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"name": ""},
        {"name": "x" * 101},
        {"name": "a\nb"},
        {"name": "x", "scopes": []},
        {"name": "x", "scopes": ["root"]},
        {"name": "x", "endpoints": ["Not A Name"]},
        {"name": "x", "endpoints": ["alpha"], "scopes": ["admin"]},
        {"name": "x", "endpoints": ["alpha"], "scopes": ["invoke", "deploy"]},
        {"name": "x", "rate_limit": {"requests_per_s": 0}},
        {"name": "x", "rate_limit": {"requests_per_s": 1, "burst": 0}},
        {"name": "x", "rate_limit": {}},
        {"name": "x", "hash": "00"},
    ],
)
async def test_a_wrong_key_is_refused_with_the_reason(platform: Platform, body: dict[str, Any]) -> None:
    status, _, problem = await platform.request("POST", "/api/v1/keys", json=body)
    assert status == 422, problem
    assert problem["detail"]


async def test_the_client_and_the_command_line(platform: Platform) -> None:
    url, admin = platform.cluster.url, platform.cluster.admin_key

    def by_client() -> None:
        with Client(url, admin) as client:
            made = client.create_key("from python", endpoints=["alpha"], requests_per_s=5)
            listed = client.keys()
            assert made["id"] in {key["id"] for key in listed}
            client.revoke_key(made["id"])
            listed = client.keys()
            assert made["id"] not in {key["id"] for key in listed}

    await asyncio.to_thread(by_client)

    async def headrace(*words: str) -> tuple[int, str, str]:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "headrace.cli", *words, "--url", url,
            env={**os.environ, "HEADRACE_API_KEY": admin},
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        async with asyncio.timeout(30):
            out, err = await process.communicate()
        assert process.returncode is not None
        return process.returncode, out.decode(), err.decode()

    code, out, err = await headrace("keys", "create", "cli", "--endpoint", "alpha", "--rate", "2", "--json")
    assert code == 0, err
    made = json.loads(out)
    assert made["rate_limit"] == {"requests_per_s": 2, "burst": 2}
    code, out, err = await headrace("keys", "create", "shown", "--scope", "metrics", "--scope", "invoke")
    assert code == 0, err
    assert out.strip().splitlines()[-1].startswith("hr_")
    assert "shown only now" in err
    code, out, _ = await headrace("keys", "list")
    assert code == 0
    assert made["id"] in out
    assert made["key"] not in out
    code, out, _ = await headrace("keys", "revoke", made["id"])
    assert code == 0
    code, _, err = await headrace("keys", "revoke", made["id"])
    assert code == 1
    assert "headrace keys list" in err
