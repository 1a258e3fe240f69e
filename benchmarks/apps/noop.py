"""The endpoint that does nothing: what is left is the platform's own time."""

import headrace


@headrace.endpoint(name="noop", scaling=headrace.Scaling(min=0, max=1, idle_timeout=3600), concurrency=64)
async def noop(x: int) -> dict[str, int]:
    """Answer the number that it is given."""
    return {"echo": x}
