"""What all APIs do alike: odd bodies, deadlines, priorities, keys, hang-ups, receipts."""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import Any

import aiohttp
import pytest

from tests.integration.conftest import Platform, until

pytestmark = pytest.mark.asyncio(loop_scope="module")

SOURCE = """
    import asyncio, os

    @headrace.endpoint(name="add", concurrency=4, max_body="1KiB")
    def add(a: int, b: int = 1) -> int:
        return a + b

    @headrace.endpoint(name="nap", concurrency=8, timeout=30)
    async def nap(seconds: float, mark: str = "") -> str:
        try:
            await asyncio.sleep(seconds)
        except asyncio.CancelledError:
            open(mark, "w").close()
            raise
        return "rested"

    @headrace.endpoint(name="large")
    def large(size: int) -> bytes:
        return bytes(size)
"""
FORMS = {
    "job": ("POST", "/api/v1/jobs", lambda name, value: {"endpoint": name, "input": value}),
    "run": ("POST", "/v2/{}/run", lambda name, value: {"input": value}),
    "runsync": ("POST", "/v2/{}/runsync", lambda name, value: {"input": value}),
    "cog": ("POST", "/cog/{}/predictions", lambda name, value: {"input": value}),
}
NESTED = "[" * 3000 + "]" * 3000


async def deployed(platform: Platform) -> None:
    if "default/add" not in platform.cluster.gateway.table.endpoints:
        found = await platform.deploy(SOURCE)
        assert found["state"] == "succeeded", found


async def ask(
    platform: Platform, form: str, endpoint: str, value: Any, **headers: str
) -> tuple[int, Any, dict[str, Any]]:
    method, path, body = FORMS[form]
    given = {name.replace("_", "-"): text for name, text in headers.items()}
    return await platform.request(method, path.format(endpoint), json=body(endpoint, value), headers=given)


@pytest.mark.parametrize(
    "path",
    ["/api/v1/jobs", "/v2/add/run", "/v2/add/runsync", "/cog/add/predictions", "/v1/chat/completions"],
)
@pytest.mark.parametrize("member", ["input", "other"])
async def test_deeply_nested_json_is_the_callers_mistake(platform: Platform, path: str, member: str) -> None:
    await deployed(platform)
    for levels in (450, 900, 970, 1000, 3000):
        data = f'{{"endpoint": "add", "input": {{}}, "{member}": {"[" * levels + "]" * levels}}}'
        status, _, found = await platform.request(
            "POST", path, data=data, headers={"Content-Type": "application/json", "Prefer": "respond-async"}
        )
        assert status < 500, (levels, found)
        if levels > 500:
            assert status == (400 if path.startswith("/v1") else 422), (levels, found)
        assert ("nested too deeply" in json.dumps(found)) == (levels > 500), (levels, found)


@pytest.mark.parametrize("form", FORMS)
async def test_nonsense_in_headers_is_refused(platform: Platform, form: str) -> None:
    await deployed(platform)
    for headers in (
        {"X_Headrace_Timeout": "abc"},
        {"X_Headrace_Timeout": "-1"},
        {"X_Headrace_Priority": "urgent"},
        {"Idempotency_Key": "k" * 256},
    ):
        status, _, found = await ask(platform, form, "add", {"a": 1}, **headers)
        assert status == 400, (headers, found)


@pytest.mark.parametrize("form", FORMS)
async def test_deadline_and_priority_of_the_headers_hold(platform: Platform, form: str) -> None:
    await deployed(platform)
    status, _, found = await ask(
        platform, form, "nap", {"seconds": 20}, X_Headrace_Timeout="0.5", X_Headrace_Priority="low"
    )
    assert status in (200, 202), found
    job = await until(lambda: ended(platform, found["id"]))
    assert job["state"] == "timed_out"
    assert job["priority"] == "low"
    assert job["finished_at"] - job["created_at"] < 15


async def ended(platform: Platform, job_id: str) -> Any:
    job = await platform.api("GET", f"/jobs/{job_id}")
    return job if job["finished_at"] else None


async def test_what_the_body_says_counts_more(platform: Platform) -> None:
    await deployed(platform)
    body = {"endpoint": "add", "input": {"a": 1}, "priority": "normal", "execution_timeout_s": 7}
    headers = {"X-Headrace-Priority": "high", "X-Headrace-Timeout": "3"}
    _, _, job = await platform.request("POST", "/api/v1/jobs", json=body, headers=headers)
    assert job["priority"] == "normal"
    _, _, run = await platform.request(
        "POST", "/v2/add/run", json={"input": {"a": 1}, "policy": {"lowPriority": True}}, headers=headers
    )
    assert (await platform.api("GET", f"/jobs/{run['id']}"))["priority"] == "high"


@pytest.mark.parametrize("form", FORMS)
async def test_an_input_above_the_endpoints_bound_is_refused_at_once(platform: Platform, form: str) -> None:
    await deployed(platform)
    status, _, found = await ask(platform, form, "add", {"a": 1, "b": "x" * 2000})
    assert status == 413, found
    assert found["limit"] == 1024


async def test_the_same_key_is_the_same_prediction(platform: Platform) -> None:
    await deployed(platform)
    _, _, first = await ask(platform, "cog", "add", {"a": 4}, Idempotency_Key="cog-key")
    _, _, again = await ask(platform, "cog", "add", {"a": 4}, Idempotency_Key="cog-key")
    assert (again["id"], again["output"]) == (first["id"], 5)
    status, _, found = await ask(platform, "cog", "add", {"a": 5}, Idempotency_Key="cog-key")
    assert status == 422, found


async def test_the_same_prediction_in_other_spacing(platform: Platform) -> None:
    await deployed(platform)
    for text in ('{"input": {"a": 1, "b": 2}}', '{"input":{"b":2,"a":1}}'):
        status, _, found = await platform.request(
            "PUT", "/cog/add/predictions/spaced", data=text, headers={"Content-Type": "application/json"}
        )
        assert (status, found["output"]) == (200, 3), found


async def test_an_input_with_a_large_number_is_echoed(platform: Platform) -> None:
    await deployed(platform)
    number = 123456789012345678901234567890
    _, _, found = await ask(platform, "cog", "add", {"a": 1, "b": number})
    assert found["input"] == {"a": 1, "b": number}


@pytest.mark.parametrize("form", ["runsync", "cog"])
async def test_a_hang_up_cancels_what_nobody_can_ask_for(platform: Platform, form: str) -> None:
    await deployed(platform)
    mark = platform.work / f"cancelled-{form}"
    assert await hung_up(platform, form, str(mark)) == "cancelled"


@pytest.mark.parametrize("form", ["runsync", "cog"])
async def test_a_hang_up_lets_go_on_what_has_a_key(platform: Platform, form: str) -> None:
    await deployed(platform)
    assert await hung_up(platform, form, "", Idempotency_Key=f"left-{form}") == "succeeded"


async def hung_up(platform: Platform, form: str, mark: str, **headers: str) -> str:
    """How a job ends whose client left while it ran."""
    before = {job["id"] for job in (await platform.api("GET", "/jobs?endpoint=nap"))["items"]}
    seconds = 20 if mark else 1.5
    async with aiohttp.ClientSession() as session:
        method, path, body = FORMS[form]
        given = {name.replace("_", "-"): text for name, text in headers.items()} | platform.auth
        url = platform.cluster.url + path.format("nap")

        async def call() -> None:
            async with session.request(
                method, url, json=body("nap", {"seconds": seconds, "mark": mark}), headers=given
            ) as reply:
                await reply.read()

        task = asyncio.create_task(call())

        async def running() -> Any:
            items = (await platform.api("GET", "/jobs?endpoint=nap&state=running"))["items"]
            return [job for job in items if job["id"] not in before]

        (job,) = await until(running)
        await asyncio.sleep(0.5)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
    done = await until(lambda: ended(platform, job["id"]))
    return str(done["state"])


@pytest.mark.parametrize("form", ["runsync", "cog"])
async def test_synchronous_answers_carry_the_receipt(platform: Platform, form: str) -> None:
    await deployed(platform)
    _, headers, found = await ask(platform, form, "add", {"a": 1})
    timing = headers["Server-Timing"]
    assert "queue;dur=" in timing, found
    assert "handler;dur=" in timing
    assert "total;dur=" in timing


async def test_a_runsync_result_is_given_whole_later_too(platform: Platform) -> None:
    await deployed(platform)
    _, _, run = await platform.request("POST", "/v2/large/runsync", json={"input": {"size": 9_000_000}})
    status, _, found = await platform.request("GET", f"/v2/large/status/{run['id']}")
    assert status == 200, found
    assert len(found["output"]) == 12_000_000
    _, _, run = await platform.request("POST", "/v2/large/run", json={"input": {"size": 11_000_000}})
    await until(lambda: ended(platform, run["id"]))
    assert (await platform.request("GET", f"/v2/large/status/{run['id']}"))[0] == 413


async def test_nulls_in_a_policy_are_as_if_absent(platform: Platform) -> None:
    await deployed(platform)
    policy = {"lowPriority": None, "ttl": None, "executionTimeout": None}
    status, _, found = await platform.request(
        "POST", "/v2/add/runsync", json={"input": {"a": 1}, "policy": policy, "webhook": None}
    )
    assert (status, found["output"]) == (200, 2), found
