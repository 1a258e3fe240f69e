"""What the benchmark of jobs runs: a no-op, and an endpoint whose only instance never has room."""

import asyncio

import headrace


@headrace.endpoint(name="noop", scaling=headrace.Scaling(min=1, max=1, idle_timeout=3600), concurrency=64)
async def noop(x: int) -> dict[str, int]:
    """Answer the number that it is given."""
    return {"echo": x}


@headrace.endpoint(
    name="blocked", scaling=headrace.Scaling(min=0, max=1, idle_timeout=3600), concurrency=1, timeout=3600
)
async def blocked(x: int) -> int:
    """Take the slot for as long as the benchmark runs."""
    await asyncio.sleep(3000)
    return x
