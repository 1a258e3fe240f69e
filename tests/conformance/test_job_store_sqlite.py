"""The SQLite job store keeps the contract of job stores."""

import asyncio

import pytest
from headrace.jobs.conformance import CHECKS, Check, Harness
from headrace.jobs.sqlite import open_sqlite


@pytest.fixture
def harness(tmp_path):
    return Harness(open=lambda: open_sqlite(tmp_path / "jobs.db"))


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
async def test_conformance(check: Check, harness: Harness):
    await asyncio.wait_for(check(harness), 60)
