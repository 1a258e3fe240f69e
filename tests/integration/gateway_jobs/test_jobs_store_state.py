"""What ``GET /api/v1/status`` tells of the job store."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import Any

import pytest
from headrace.gateway.jobs import system

from tests.integration.conftest import make_settings, running_platform, until

STUCK_S = 10.0

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_a_store_that_answers_is_reachable(work: Path) -> None:
    async with running_platform(make_settings(work / "here"), work) as platform:
        found = await platform.api("GET", "/status")
        assert found["store"] == {"kind": "sqlite", "reachable": True, "reason": ""}
        assert found["gateways"] == 1, "the rest is control's"


async def test_a_store_that_refuses_or_is_silent_is_told_with_why(
    work: Path, monkeypatch: pytest.MonkeyPatch, unused_tcp_port: int
) -> None:
    monkeypatch.setattr(system, "FIRST_OPEN_S", 0.2)
    monkeypatch.setattr(system, "PROBE_S", 0.2)
    address = f"postgresql://nobody:geheim@127.0.0.1:{unused_tcp_port}/none"
    async with running_platform(make_settings(work / "away", store=address), work) as platform:

        async def state() -> Any:
            return (await platform.api("GET", "/status"))["store"]

        async def refused() -> bool:
            return "does not answer" in (await state())["reason"]

        await until(refused)
        found = await state()
        assert (found["kind"], found["reachable"]) == ("postgresql", False)
        assert str(unused_tcp_port) in found["reason"]
        assert "geheim" not in found["reason"]

        class Silent:
            async def has_key(self, *_: str) -> bool:
                return await asyncio.get_running_loop().create_future()

        class Stuck:
            asked = 0

            async def has_key(self, *_: str) -> bool:
                Stuck.asked += 1
                ended = asyncio.get_running_loop().create_task(asyncio.sleep(STUCK_S))
                # As a connection that cannot even be cancelled.
                while not ended.done():
                    with contextlib.suppress(asyncio.CancelledError):
                        await asyncio.shield(ended)
                return True

        service = platform.cluster.gateway.jobs.service
        service._store = Silent()  # type: ignore[assignment]
        assert "within 0.2 s" in (await state())["reason"]
        service._store = Stuck()  # type: ignore[assignment]
        async with asyncio.timeout(STUCK_S / 2):
            told = await asyncio.gather(*(state() for _ in range(3)))
        assert [s["reachable"] for s in told] == [False] * 3
        assert Stuck.asked == 1
        service._store = None
