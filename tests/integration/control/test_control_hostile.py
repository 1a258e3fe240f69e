"""Whoever speaks to the API without the SDK gets no further with it, and harms nobody by trying."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from headrace import wire

HUGE = 10**30
BAD: list[dict[str, Any]] = [
    {"name": "a\n"},
    {"name": "../a"},
    {"name": "a/b"},
    {"name": "default/a"},
    {"spec_version": 999},
    {"spec_version": HUGE},
    {"entry": "../../etc/passwd:x"},
    {"entry": "os:"},
    {"entry": "a b:c"},
    {"entry": "a:b:c"},
    {"entry": ".a:b"},
    {"bundle": "../../control.db"},
    {"bundle": "A" * 64},
    {"cpu": -5},
    {"cpu": 0},
    {"cpu": 1e300},
    {"memory": -(1 << 40)},
    {"memory": 0},
    {"memory": HUGE},
    {"memory_limit": -5},
    {"memory_limit": HUGE},
    {"gpu": [{"name": "x", "count": HUGE}]},
    {"gpu": [{"name": "x", "count": -1}]},
    {"concurrency": 0},
    {"concurrency": -1},
    {"concurrency": 10**9},
    {"timeout": -1},
    {"timeout": 0},
    {"timeout": 1e300},
    {"load_timeout": -4},
    {"retries": -1},
    {"retries": HUGE},
    {"max_body": -1},
    {"max_body": HUGE},
    {"queue": {"max_requests": HUGE}},
    {"queue": {"max_requests": 1, "max_bytes": HUGE}},
    {"queue": {"max_requests": 1, "max_bytes": "9" * 400 + "TiB"}},
    {"scaling": {"min": 0, "max": HUGE}},
    {"scaling": {"min": 10**6, "max": 10**7}},
    {"scaling": {"target_concurrency": 1e-300}},
    {"scaling": {"idle_timeout": 1e300}},
    {"batch": {"max_size": HUGE}},
    {"batch": {"max_wait_ms": -1}},
    {"env": {"": "x"}},
    {"env": {"A=B": "x"}},
    {"env": {"A\0": "x"}},
    {"env": {"A": "x\0"}},
    {"env": {"A\n": "x"}},
    {"env": {"HEADRACE_DATA_DIR": "x"}},
    {"env": {"A": "x" * 200_000}},
    {"preload": [""]},
    {"preload": [".."]},
    {"preload": ["os; import pty"]},
    {"preload": ["a\nb"]},
    {"preload": ["a" * 5000]},
    {"preload": [f"m{n}" for n in range(1000)]},
    {"imports": ["a b"]},
    {"retry_on": ["x y"]},
    {"handler": "shell"},
    {"unknown": 1},
]


@pytest.mark.parametrize("change", BAD, ids=lambda change: "-".join(change)[:20])
async def test_a_spec_that_no_decorator_has_made_is_checked_all_the_same(platform: Any, change: Any) -> None:
    spec = msgspec.to_builtins(platform.spec()) | change
    body = json.dumps({"specs": [spec], "verify": False}).encode()
    status, doc = await platform.gateway.api("POST", "/deployments", body)
    assert (status, doc["type"]) == (422, "urn:headrace:validation-failed"), doc
    assert len(json.dumps(doc)) < 2000
    assert not platform.world.endpoints
    await platform.gateway.deploy(platform.spec(), verify=False)
    # Whoever connects later gets the whole table, as ever.
    another = await platform.new_gateway("g2")
    assert another.state("hello") is not None


async def test_a_spec_does_not_choose_its_project(platform: Any) -> None:
    for project in ("other", "../x", "default/hello"):
        spec = msgspec.to_builtins(platform.spec()) | {"project": project}
        await platform.gateway.api("POST", "/deployments", {"specs": [spec], "verify": False})
    await platform.until(lambda: platform.world.endpoints)
    assert set(platform.world.endpoints) == {"default/hello"}
    assert {e.spec.project for e in platform.world.endpoints.values()} == {"default"}


@pytest.mark.parametrize("scopes", [(), ("invoke",), ("Deploy",), ("admin ",)])
async def test_only_the_scopes_admin_and_deploy_manage(platform: Any, scopes: tuple[str, ...]) -> None:
    call = wire.ApiCall(method="GET", path="/status", scopes=scopes, key_id="k")
    answer = await platform.gateway.link.call(call, 5.0)
    assert answer.status == 403


@pytest.mark.parametrize(
    "body", [{"min": HUGE}, {"max": HUGE}, {"max": 10**9}, {"to": 10**9}, {"max": 10**9, "to": 10**9}]
)
async def test_nobody_scales_beyond_reason(platform: Any, body: Any) -> None:
    await platform.gateway.deploy(platform.spec(), verify=False)
    status, doc = await platform.gateway.api("POST", "/endpoints/hello/scale", json.dumps(body).encode())
    assert (status, doc["type"]) == (422, "urn:headrace:validation-failed"), doc


@pytest.mark.parametrize("path", ["/deployments", "/endpoints/hello/scale", "/endpoints/hello/rollback"])
@pytest.mark.parametrize("body", [b"[" * 200_000, b'{"specs":' * 50_000, b"\xff", b'{"a":"\\ud800"}'])
async def test_a_body_that_is_no_json_is_told_so(platform: Any, path: str, body: bytes) -> None:
    await platform.gateway.deploy(platform.spec(), verify=False)
    status, _ = await platform.gateway.api("POST", path, body)
    assert status in (400, 422)


@pytest.mark.parametrize("limit", ["9" * 5000, "1000000000000"])
async def test_a_limit_of_any_length_is_bounded(platform: Any, limit: str) -> None:
    status, doc = await platform.gateway.api("GET", "/endpoints", limit=limit)
    assert (status, doc["items"]) == (200, [])
    assert (await platform.gateway.api("GET", "/endpoints", limit="000"))[0] == 422


@pytest.mark.parametrize(
    "cursor", ["W1tb" * 20_000, "eyJhIjo5OTk5OTk5OTk5OTk5OTk5OTk5OTk5fQ", "\u0661", "_w"]
)
async def test_a_cursor_of_any_kind_is_survived(platform: Any, cursor: str) -> None:
    await platform.new_host()
    await platform.gateway.deploy(platform.spec(), verify=False)
    for path in ("/endpoints", "/hosts", "/endpoints/hello/logs"):
        status, _ = await platform.gateway.api("GET", path, cursor=cursor)
        assert status in (200, 422)
