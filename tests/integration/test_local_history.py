"""A run of the whole platform is recorded, and decided again from the record as it was decided."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from headrace_autoscaler.history import read
from headrace_autoscaler.replay import replay_lines
from headrace_autoscaler.spec import Release, Start

from tests.integration.conftest import make_settings, running_platform, until

pytestmark = pytest.mark.asyncio(loop_scope="module")
BURSTS = (6, 12, 3, 9, 1, 5, 8, 2, 4, 10)
LEAST_LINES = 20

SOURCE = """
    import time

    @headrace.endpoint(name="waves", scaling=headrace.Scaling(max=4, idle_timeout=0.3))
    def waves() -> int:
        time.sleep(0.05)
        return 1

    @headrace.endpoint(name="learnt", concurrency=2, scaling=headrace.Scaling(max=3, idle_timeout="auto"))
    def learnt() -> int:
        time.sleep(0.02)
        return 2
"""


async def test_a_recorded_run_decides_the_same_again(work: Path) -> None:
    settings = make_settings(work / "history-data")
    async with running_platform(settings, work) as platform:
        await platform.deploy(SOURCE)
        for size in BURSTS:
            # Up from zero, and down again.
            for name in ("waves", "learnt"):
                await asyncio.gather(*(platform.call(name) for _ in range(size)))

            async def gone() -> bool:
                return not await platform.instances("waves")

            await until(gone)
        await platform.to_zero("learnt")
        shown = await platform.endpoint("waves")
    reasons = {note["action"]: note["reason"] for note in shown["decisions"]}
    assert {"start", "release"} <= reasons.keys()
    assert all(note["reason"] and note["at"] for note in shown["decisions"])

    lines = (settings.data / "history" / "decisions.jsonl").read_bytes().splitlines()
    done = replay_lines(lines)
    assert done.lines == len(lines) >= LEAST_LINES
    assert done.mismatches == []
    actions = [action for _, record in read(lines) for action in record.decision.actions]
    assert sum(isinstance(action, Start) for action in actions) >= len(BURSTS)
    assert sum(isinstance(action, Release) for action in actions) >= len(BURSTS)
    seen = [record.observation.endpoints[0] for _, record in read(lines) if record.observation.endpoints]
    arrived = [each.arrived for each in seen if each.endpoint == "default/waves" and each.arrived is not None]
    assert arrived == sorted(arrived)
    assert sum(BURSTS) - BURSTS[-1] <= arrived[-1] <= sum(BURSTS) + 1
    assert any(each.start_s for each in seen)
    served = [seconds for each in seen if each.endpoint == "default/waves" for seconds in each.served]
    assert served
    assert min(served) >= 0.05
