"""Outputs of any size and content are kept, or their absence is told."""

from __future__ import annotations

from typing import Any

import pytest
from headrace.gateway.jobs import sink
from headrace.jobs.model import Result

from tests.integration.conftest import Platform

pytestmark = pytest.mark.asyncio(loop_scope="module")

SOURCE = """
    @headrace.endpoint(name="pieces", timeout=60)
    def pieces(n: int, size: int):
        for i in range(n):
            yield str(i % 10) * size

    @headrace.endpoint(name="boom")
    def boom(text: str) -> None:
        raise ValueError("boom " + text.replace("~", chr(0xD800)))
"""
MB = 1_000_000


async def deployed(platform: Platform) -> None:
    if "default/pieces" not in platform.cluster.gateway.table.endpoints:
        found = await platform.deploy(SOURCE)
        assert found["state"] == "succeeded", found


async def finished(platform: Platform, endpoint: str, input: Any) -> dict[str, Any]:
    job = await platform.api("POST", "/jobs", {"endpoint": endpoint, "input": input})
    done: dict[str, Any] = await platform.api("GET", f"/jobs/{job['id']}?wait=50")
    assert done["state"] not in ("queued", "running"), done
    return done


async def test_the_items_of_a_large_stream_are_its_output(platform: Platform) -> None:
    await deployed(platform)
    done = await finished(platform, "pieces", {"n": 12, "size": MB})
    assert (done["state"], done["output_size"]) == ("succeeded", 12 * (MB + 3) + 1), done["error"]
    status, _, value = await platform.request("GET", f"/api/v1/jobs/{done['id']}/output")
    assert status == 200
    assert [(item[0], len(item)) for item in value] == [(str(i % 10), MB) for i in range(12)]
    body = {"input": {"n": 9, "size": MB}}
    status, _, value = await platform.request("POST", "/v2/pieces/runsync", json=body)
    assert (status, value["status"], len(value["output"])) == (200, "COMPLETED", 9), value.keys()
    body = {"input": {"n": 12, "size": MB}}
    status, _, value = await platform.request("POST", "/cog/pieces/predictions", json=body)
    assert (status, value["status"], len(value["output"])) == (200, "succeeded", 12), value.keys()


async def test_a_stream_above_the_bound_fails_and_says_so(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    await deployed(platform)
    monkeypatch.setattr(sink, "MAX_OUTPUT_BYTES", 3 * MB)
    done = await finished(platform, "pieces", {"n": 9, "size": MB})
    assert (done["state"], done["error"]["type"]) == ("failed", "urn:headrace:body-too-large"), done


@pytest.mark.parametrize("text", ["\0", "a\0b", "~", "\U0001f600" * 400, "x" * 100_000])
async def test_what_a_handler_raises_is_kept_whatever_its_text(platform: Platform, text: str) -> None:
    await deployed(platform)
    done = await finished(platform, "boom", {"text": text})
    assert (done["state"], len(done["attempts"]), done["lost"]) == ("failed", 1, 0), done
    assert done["error"]["type"] == "urn:headrace:handler-error"


async def test_a_result_that_is_refused_is_a_failure_and_not_run_again(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    await deployed(platform)
    store = platform.cluster.gateway.jobs.service.store
    real = store.finish

    async def finish(job_id: str, fence: int, result: Result, now: float) -> bool:
        if result.state == "succeeded":
            raise ValueError("not this one")
        return await real(job_id, fence, result, now)

    monkeypatch.setattr(store, "finish", finish)
    done = await finished(platform, "pieces", {"n": 1, "size": 1})
    assert (done["state"], len(done["attempts"])) == ("failed", 1), done
    assert "cannot be stored" in done["reason"]
