"""Pieces of RunPod's contract that need no platform."""

from __future__ import annotations

import pytest
from headrace.gateway.api.runpod import spread
from headrace.gateway.jobs.service import Workers


@pytest.mark.parametrize(
    ("seen", "jobs", "slots", "running"),
    [(0, 1, 1, 1), (1, 1, 1, 1), (0, 5, 1, 3), (0, 5, 4, 2), (2, 1, 4, 2), (0, 0, 1, 0)],
)
def test_workers_run_what_other_gateways_gave_them(seen: int, jobs: int, slots: int, running: int) -> None:
    found = spread(Workers(idle=3 - seen, running=seen, ready=3, unhealthy=1), jobs, slots)
    assert (found.running, found.idle, found.ready, found.unhealthy) == (running, 3 - running, 3, 1)
