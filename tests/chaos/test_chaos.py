"""Under load, with real processes and real signals: no request fails, no job is lost or finished twice."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import pytest

from benchmarks._load import root
from benchmarks._storm import PARTS, Storm, Strike, schedule
from benchmarks._victims import Victims
from tests.e2e.conftest import Up

# A run is its load, a start, and the time until all has ended.
pytestmark = [pytest.mark.ray, pytest.mark.timeout(300 + float(os.environ.get("CHAOS_SECONDS") or 0))]
KINDS = {
    "parts": PARTS,
    "gateways": (*PARTS, "gateway"),
    "platform": ("instance", "host", "gateway"),
}


class TwoGateways(Up):
    """Two gateways, and webhooks to loopback."""

    @property
    def options(self) -> list[str]:
        return [*super().options, "--gateways", "2"]

    @property
    def environ(self) -> dict[str, str]:
        return {**super().environ, "HEADRACE_WEBHOOK_PRIVATE": "1"}


@pytest.fixture
def platform():
    """A running platform of its own, with two nodes and both endpoints."""
    with tempfile.TemporaryDirectory(prefix="hrc-") as folder:
        up = TwoGateways(Path(folder))
        Path(folder).chmod(0o711)
        try:
            up.start()
            with contextlib.closing(up.client()) as client:
                done = client.deploy(root() / "benchmarks/apps/storm.py")
            assert done["state"] == "succeeded", done
            yield up
        finally:
            up.destroy()


def report(said: dict[str, Any], flavour: str, seed: int) -> None:
    """For people; what pytest shows with -s, and when it failed."""
    print(json.dumps({"flavour": flavour, "seed": seed, **said}, indent=1))


def check(said: dict[str, Any]) -> None:
    """What the platform promises."""
    assert said["plain"]["failures"] == {}
    assert said["client"]["failures"] == {}
    assert said["submit"]["failures"] == {}
    jobs = said["jobs"]
    assert jobs["lost"] == []
    assert jobs["states"] == {"succeeded": jobs["accepted"]}, jobs["reasons"]
    assert said["not_run"] == []
    assert jobs["not_told"] == []
    assert jobs["finished_twice_in_store"] == 0
    assert jobs["finished_twice_at_receiver"] == []


async def test_nothing_is_lost(platform, flavour, seed, seconds):
    log = platform.folder / "ends"
    log.touch()
    log.chmod(0o666)
    victims = Victims(platform.data, platform.settings.port)
    await asyncio.to_thread(victims.add_node)
    whole = flavour == "platform"
    storm = Storm(
        platform.url,
        platform.key,
        log,
        # Nobody answers while the platform is down; just after it, a gateway may say "not now".
        reconnect=flavour != "parts",
        busy=whole,
        retry_for=45.0 if whole else 10.0,
    )
    strikes = schedule(seed, seconds, KINDS[flavour], rare="platform" if whole else "")

    async def strike(one: Strike) -> str:
        if one.kind != "platform":
            return await victims.strike(one)
        killed = await asyncio.to_thread(victims.kill_all)
        await asyncio.to_thread(platform.wait)
        took = await asyncio.to_thread(platform.start)
        return f"SIGKILL of {killed} processes, up again in {took:.1f} s"

    async with storm.receiver:
        await storm.run(seconds, strikes, strike)
        await victims.settle()
        said = await storm.settle()
    report(said, flavour, seed)
    check(said)
    if not whole:
        # With everything dead at once, nobody is left who knows what had ended just before.
        assert said["ran_twice"]["client"] == []
