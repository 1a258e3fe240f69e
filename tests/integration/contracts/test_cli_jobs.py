"""``headrace jobs`` against a running platform."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from typing import Any

import pytest

from tests.integration.conftest import Platform, until

pytestmark = pytest.mark.asyncio(loop_scope="module")

SOURCE = """
    import asyncio

    @headrace.endpoint(name="add", concurrency=4)
    def add(a: int, b: int = 1) -> int:
        return a + b

    @headrace.endpoint(name="nap", scaling=headrace.Scaling(max=1))
    async def nap(seconds: float) -> str:
        await asyncio.sleep(seconds)
        return "rested"
"""


async def headrace(platform: Platform, *words: str, given: str = "") -> tuple[int, str, str]:
    """Run the command; (exit code, stdout, stderr)."""
    if "default/add" not in platform.cluster.gateway.table.endpoints:
        found = await platform.deploy(SOURCE)
        assert found["state"] == "succeeded", found
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "headrace.cli", "jobs", *words,
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        env={
            **os.environ,
            "HEADRACE_URL": platform.cluster.url,
            "HEADRACE_API_KEY": platform.cluster.admin_key,
        },
    )  # fmt: skip
    out, err = await asyncio.wait_for(process.communicate(given.encode()), 60)
    assert process.returncode is not None
    return process.returncode, out.decode().strip(), err.decode().strip()


async def test_an_input_is_given_as_for_call(platform: Platform) -> None:
    file = platform.work / "input.json"
    file.write_text('{"a": 3}')
    for words in (['{"a": 3}'], ["a=3"], [f"@{file}"], ["-"], ["a=3", "b=1"]):
        code, out, err = await headrace(platform, "submit", "add", *words, "--wait", given='{"a": 3}')
        assert (code, out) == (0, "4"), (words, err)
    code, _, err = await headrace(platform, "submit", "add", "{")
    assert (code, "not JSON" in err) == (2, True), err


async def test_options_of_submit(platform: Platform) -> None:
    words = ["submit", "nap", "seconds=50", "--ttl", "60", "--timeout", "0.3", "--idempotency-key", "cli"]
    code, first, err = await headrace(platform, *words)
    assert code == 0, err
    _, again, _ = await headrace(platform, *words)
    assert again == first

    async def ended() -> Any:
        return (await platform.api("GET", f"/jobs/{first}"))["state"] == "timed_out"

    await until(ended)
    job = await platform.api("GET", f"/jobs/{first}")
    assert job["deadline_at"] - job["created_at"] == pytest.approx(60, abs=0.1)


async def test_show_tells_the_times_and_the_receipt(platform: Platform) -> None:
    _, job, _ = await headrace(platform, "submit", "add", "a=1", "--priority", "low")
    await platform.api("GET", f"/jobs/{job}?wait=20")
    code, out, err = await headrace(platform, "show", job)
    assert code == 0, err
    for word in ("created 20", "priority low", "started 20", "ended 20", "took", "output: 2"):
        assert word in out, out
    call = asyncio.create_task(platform.request("POST", "/e/nap", json={"seconds": 3}))
    dispatcher = platform.cluster.gateway.dispatcher
    state = dispatcher.state("default/nap")
    assert state is not None
    (request,) = await until(lambda: [a.call.request for i in state.instances.values() for a in i.running])
    code, out, err = await headrace(platform, "show", request.id)
    assert (code, f"{request.id}  nap  running" in out) == (0, True), (out, err)
    await call
    code, out, _ = await headrace(platform, "show", request.id)
    assert f"{request.id}  nap  succeeded" in out


async def test_a_list_goes_on_at_its_cursor(platform: Platform) -> None:
    for _ in range(5):
        await platform.api("POST", "/jobs", {"endpoint": "add", "input": {"a": 1}})
    seen, more = [], []
    while True:
        code, out, err = await headrace(platform, "list", "--endpoint", "add", "-n", "3", *more)
        assert code == 0, err
        seen += [line.split()[0] for line in out.splitlines()[1:]]
        if "--cursor" not in err:
            break
        more = ["--cursor", err.split("--cursor")[1].strip()]
    listed = await platform.api("GET", "/jobs?endpoint=add&limit=1000")
    assert seen == [job["id"] for job in listed["items"]]
    code, _, err = await headrace(platform, "list", "--cursor", "zzz")
    assert (code, "cursor" in err) == (1, True)


async def test_purge_of_an_endpoint_that_is_not_there(platform: Platform) -> None:
    code, _, err = await headrace(platform, "purge", "nothing", "--json")
    assert code == 1, err
    code, out, _ = await headrace(platform, "purge", "add", "--json")
    assert (code, json.loads(out)["removed"]) == (0, 0)
