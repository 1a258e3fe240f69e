"""A gateway on PostgreSQL hears at once what another one did to a job."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest
from headrace.gateway.jobs import leases
from headrace.jobs.postgres import open_postgres

from tests.integration.conftest import make_settings, running_platform, until

pytestmark = pytest.mark.asyncio(loop_scope="module")

SOURCE = """
    import asyncio

    @headrace.endpoint(name="slow", timeout=60)
    async def slow(file: str) -> None:
        with open(file, "a") as f:
            f.write("started")
        try:
            await asyncio.sleep(50)
        except asyncio.CancelledError:
            with open(file, "a") as f:
                f.write(" cancelled")
            raise
"""


async def test_a_cancel_elsewhere_reaches_the_handler_without_a_heartbeat(
    work: Path, postgres_server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "HEARTBEAT_S", 600.0)
    dsn = postgres_server.empty_database()
    other = await open_postgres(dsn)
    try:
        async with running_platform(make_settings(work / "hints", store=dsn), work) as platform:
            await platform.deploy(SOURCE)
            work.chmod(0o711)
            file = work / "hints.txt"
            file.touch()
            file.chmod(0o666)
            job = await platform.api("POST", "/jobs", {"endpoint": "slow", "input": {"file": str(file)}})
            waiting = asyncio.create_task(platform.api("GET", f"/jobs/{job['id']}?wait=30"))
            await until(lambda: file.read_text() == "started")
            await other.cancel("default", job["id"], time.time())
            await until(lambda: file.read_text() == "started cancelled")
            assert (await waiting)["state"] == "cancelled"
    finally:
        await other.close()
