"""The PostgreSQL job store keeps the contract of job stores."""

import asyncio

import pytest
from headrace.jobs.conformance import CHECKS, Check, Harness
from headrace.jobs.postgres import open_postgres


@pytest.fixture
def harness(postgres_server):
    dsn = postgres_server.empty_database()
    return Harness(open=lambda: open_postgres(dsn))


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
async def test_conformance(check: Check, harness: Harness):
    await asyncio.wait_for(check(harness), 60)
