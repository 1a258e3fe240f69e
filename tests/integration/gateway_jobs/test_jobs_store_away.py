"""A gateway whose job store does not answer when it starts."""

from __future__ import annotations

import socket
from pathlib import Path

import msgspec
import pytest
from headrace.cluster.local import LocalCluster
from headrace.errors import SettingsError
from headrace.gateway.jobs import system

from tests.integration.conftest import make_settings, running_platform, until

pytestmark = pytest.mark.asyncio(loop_scope="module")

SOURCE = """
    @headrace.endpoint(name="add")
    def add(a: int) -> int:
        return a + 1
"""


async def test_plain_calls_are_served_and_jobs_are_refused_until_it_answers(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(system, "FIRST_OPEN_S", 0.2)
    monkeypatch.setattr(system, "OPEN_TIMEOUT_S", 1.0)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    settings = make_settings(work / "away", store=f"postgresql://nobody@127.0.0.1:{port}/none")
    async with running_platform(settings, work) as platform:
        assert (await platform.deploy(SOURCE))["state"] == "succeeded"
        assert await platform.call("add", {"a": 1}) == 2
        for path, body, headers in (
            ("/api/v1/jobs", {"endpoint": "add", "input": {"a": 1}}, {}),
            ("/e/add", {"a": 1}, {"Prefer": "respond-async"}),
            ("/e/add", {"a": 1}, {"Idempotency-Key": "k"}),
        ):
            status, _, problem = await platform.request("POST", path, json=body, headers=headers)
            assert (status, problem["type"]) == (503, "urn:headrace:store-unavailable"), problem
        jobs = platform.cluster.gateway.jobs
        jobs._settings = msgspec.structs.replace(settings, store="")

        async def taken() -> bool:
            status, _, _ = await platform.request("POST", "/api/v1/jobs", json={"endpoint": "add"})
            return status == 202

        await until(taken)


async def test_a_store_that_cannot_be_meant_ends_the_start(work: Path) -> None:
    with pytest.raises(SettingsError, match="is no store"):
        await LocalCluster(make_settings(work / "odd", store="mysql://x/y")).start()
