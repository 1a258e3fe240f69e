"""The unmodified ``runpod`` client, sync and asyncio, against a running platform; and what it hides."""

from __future__ import annotations

import asyncio
import io
import json
import os
import sys
from typing import Any

import pytest

from tests.integration.conftest import Platform, until

pytestmark = pytest.mark.asyncio(loop_scope="module")

SOURCE = """
    import time

    @headrace.endpoint(name="add", concurrency=4)
    def add(a: int, b: int = 1) -> int:
        return a + b

    @headrace.endpoint(name="count", concurrency=2)
    def count(n: int):
        for i in range(n):
            if i == 13:
                raise ValueError("unlucky")
            yield {"i": i}

    @headrace.endpoint(name="nap", scaling=headrace.Scaling(max=1), timeout=30)
    async def nap(seconds: float) -> str:
        import asyncio
        await asyncio.sleep(seconds)
        return "rested"
"""

SYNC_CLIENT = """
import json, os, time, runpod
runpod.api_key = os.environ["HEADRACE_API_KEY"]
add, count, nap = runpod.Endpoint("add"), runpod.Endpoint("count"), runpod.Endpoint("nap")
out = {}
out["run_sync"] = add.run_sync({"input": {"a": 1, "b": 2}}, timeout=60)
job = add.run({"a": 40, "b": 2})
out["output"] = job.output(timeout=60)
out["status"] = job.status()
out["stream"] = list(count.run({"input": {"n": 3}}).stream())
first = nap.run({"input": {"seconds": 30}})
deadline = time.monotonic() + 30
while first.status() == "IN_QUEUE" and time.monotonic() < deadline:
    time.sleep(0.1)
queued = [nap.run({"input": {"seconds": 0}}) for _ in range(3)]
out["health"] = nap.health()
out["purged"] = nap.purge_queue()
out["cancelled"] = first.cancel()
out["after"] = first.status()
out["cancelled_stream"] = list(first.stream())
failed = count.run({"input": {"n": 20}})
while failed.status() not in ("FAILED", "COMPLETED"):
    time.sleep(0.2)
out["failed"] = failed.status()
try:
    runpod.Endpoint("nothing").run({"input": {}})
except Exception as error:
    out["unknown"] = getattr(getattr(error, "response", None), "status_code", repr(error))
try:
    runpod.Endpoint("add", api_key="wrong").run({"input": {"a": 1}})
except RuntimeError as error:
    out["wrong_key"] = "401" in str(error) or "nauthorized" in str(error)
print(json.dumps(out))
"""

ASYNC_CLIENT = """
import asyncio, json, os, runpod
runpod.api_key = os.environ["HEADRACE_API_KEY"]
from runpod import AsyncioEndpoint, AsyncioJob
from runpod.http_client import AsyncClientSession

async def main():
    out = {}
    async with AsyncClientSession() as session:
        job = await AsyncioEndpoint("add", session).run({"a": 4, "b": 3})
        out["output"] = await job.output(60)
        out["status"] = await job.status()
        counting = await AsyncioEndpoint("count", session).run({"n": 3})
        out["stream"] = [item async for item in counting.stream()]
        nap = AsyncioEndpoint("nap", session)
        sleeping = await nap.run({"seconds": 30})
        out["cancelled"] = await sleeping.cancel()
        out["health"] = await nap.health()
    print(json.dumps(out))

asyncio.run(main())
"""


async def deployed(platform: Platform) -> None:
    if "default/add" not in platform.cluster.gateway.table.endpoints:
        found = await platform.deploy(SOURCE)
        assert found["state"] == "succeeded", found


async def client(platform: Platform, script: str) -> dict[str, Any]:
    """Run a script as a user would: settings in the environment, before the import."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", script,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        env={
            **os.environ,
            "RUNPOD_ENDPOINT_BASE_URL": f"{platform.cluster.url}/v2",
            "HEADRACE_API_KEY": platform.cluster.admin_key,
        },
    )  # fmt: skip
    out, err = await asyncio.wait_for(process.communicate(), 100)
    assert process.returncode == 0, err.decode()[-3000:]
    return json.loads(out.decode().strip().splitlines()[-1])


async def test_the_sync_client(platform: Platform) -> None:
    await deployed(platform)
    out = await client(platform, SYNC_CLIENT)
    assert out["run_sync"] == 3
    assert (out["output"], out["status"]) == (42, "COMPLETED")
    assert out["stream"] == [{"i": 0}, {"i": 1}, {"i": 2}]
    assert set(out["health"]) == {"jobs", "workers"}
    assert set(out["health"]["jobs"]) == {"completed", "failed", "inProgress", "inQueue", "retried"}
    assert set(out["health"]["workers"]) == {
        "idle", "running", "initializing", "ready", "throttled", "unhealthy",
    }  # fmt: skip
    assert out["health"]["jobs"]["inQueue"] + out["health"]["jobs"]["inProgress"] == 4
    assert out["purged"]["status"] == "completed"
    assert out["purged"]["removed"] >= 1
    assert out["cancelled"]["status"] == "CANCELLED"
    assert out["after"] == "CANCELLED"
    assert out["cancelled_stream"] == []
    assert out["failed"] == "FAILED"
    assert out["unknown"] == 404
    assert out["wrong_key"]


async def test_the_asyncio_client(platform: Platform) -> None:
    await deployed(platform)
    out = await client(platform, ASYNC_CLIENT)
    assert (out["output"], out["status"]) == (7, "COMPLETED")
    assert out["stream"] == [{"i": 0}, {"i": 1}, {"i": 2}]
    assert out["cancelled"]["status"] == "CANCELLED"
    assert "workers" in out["health"]


async def test_documents_and_refusals(platform: Platform) -> None:
    await deployed(platform)

    async def post(path: str, body: Any = None) -> tuple[int, Any]:
        status, _, value = await platform.request("POST", f"/v2/{path}", json=body)
        return status, value

    assert (await post("add/run", {"inputs": 1}))[0] == 422
    assert (await post("add/runsync?wait=5", {"input": {"a": 1}}))[0] == 422
    assert (await post("add/status/x"))[0] == 405
    assert (await post("add/cancel/nothing"))[0] == 404
    assert (await post("add/cancel"))[0] == 404
    large = io.BytesIO(b'{"input": {"a": "%b"}}' % (b"x" * 10_000_001))
    status, _, value = await platform.request(
        "POST", "/v2/add/run", data=large, headers={"Content-Type": "application/json"}
    )
    assert status == 413, value
    status, value = await post("add/runsync?wait=60000", {"input": {"a": "seven"}})
    assert (status, value["status"]) == (200, "FAILED")
    assert value["error"].startswith("a: ")
    assert "executionTime" in value
    status, again = await post(f"add/retry/{value['id']}")
    assert (status, again["id"], again["status"]) == (200, value["id"], "IN_QUEUE")

    async def final() -> Any:
        _, _, found = await platform.request("GET", f"/v2/add/status/{value['id']}")
        return found if found["status"] == "FAILED" else None

    found = await until(final)
    assert found["retries"] == 1
    status, done = await post(
        "add/runsync", {"input": {"a": 1}, "policy": {"lowPriority": True, "ttl": 60_000}}
    )
    assert (status, done["status"], done["output"]) == (200, "COMPLETED", 2)
    assert (await post(f"add/retry/{done['id']}"))[0] == 409
    status, late = await post("nap/runsync?wait=1000", {"input": {"seconds": 20}})
    assert (status, late["status"]) == (200, "IN_PROGRESS")
    assert (await post(f"nap/cancel/{late['id']}"))[1]["status"] == "CANCELLED"
    _, _, other = await platform.request("GET", f"/v2/count/status/{done['id']}")
    assert other["status"] == 404


async def test_an_execution_timeout_is_timed_out(platform: Platform) -> None:
    await deployed(platform)
    body = {"input": {"seconds": 20}, "policy": {"executionTimeout": 300}}
    status, _, value = await platform.request("POST", "/v2/nap/runsync", json=body)
    assert (status, value["status"]) == (200, "TIMED_OUT")
