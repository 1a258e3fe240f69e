"""Two endpoints that note each call that ran to its end: what the chaos suite counts."""

import asyncio
import os

import headrace


async def _work(call: str, log: str, work_ms: float) -> str:
    await asyncio.sleep(work_ms / 1000)
    # One write with O_APPEND: lines of several processes never mix.
    line = os.open(log, os.O_WRONLY | os.O_APPEND)
    try:
        os.write(line, f"{call}\n".encode())
    finally:
        os.close(line)
    return call


@headrace.endpoint(
    name="storm", scaling=headrace.Scaling(min=2, max=4, idle_timeout=300), concurrency=16, timeout=90
)
async def storm(call: str, log: str, work_ms: float = 20.0) -> str:
    """Answer the call's id, after some time."""
    return await _work(call, log, work_ms)


@headrace.endpoint(
    name="storm-job", scaling=headrace.Scaling(min=1, max=3, idle_timeout=300), concurrency=16, timeout=90
)
async def storm_job(call: str, log: str, work_ms: float = 20.0) -> str:
    """The same, for jobs."""
    return await _work(call, log, work_ms)
