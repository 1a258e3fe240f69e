"""The process runtime keeps the runtime contract, with the real engine."""

from __future__ import annotations

import asyncio
from pathlib import Path

import headrace
import pytest
from headrace_runtimes.conformance import CHECKS, Check, workshop
from headrace_runtimes.process import ProcessRuntime

ENGINE = Path(headrace.__file__).parent / "engines" / "python"


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
async def test_conformance(check: Check) -> None:
    with workshop(ProcessRuntime, ENGINE) as harness:
        await asyncio.wait_for(check(harness), 90)
