"""Checks that nothing in a job's text and JSON keeps it, or any other job, from coming to its end."""

from __future__ import annotations

import time
from typing import Any

from headrace.jobs.conformance_bench import PROJECT, Harness, failed, opened, succeeded
from headrace.jobs.events import decode_event
from headrace.jobs.model import Result, Webhook

URL = "https://example.org/hook"
ALL = Webhook(url=URL, events=("start", "output", "completed"))
BIG = 2**80
"""JSON knows no bounds of numbers."""
ODD = "a\0b\ud800c"
MENDED = "a\ufffdb\ufffdc"


async def numbers_of_any_size(harness: Harness) -> None:
    """Integers above 64 bits in context, progress, error and receipt are kept, and told."""
    async with opened(harness) as bench:
        await bench.submit("a", webhook=ALL, context={"x": BIG})
        await bench.submit("b", webhook=ALL, context={"x": -BIG})
        first, second = await bench.lease()
        assert await bench.store.note("a", first.fence, progress=b'{"x": %d}' % BIG)
        assert await bench.store.append("a", first.fence, 0, [b"%d" % BIG])
        error: dict[str, Any] = {"type": "urn:headrace:handler-error", "status": 500, "x": BIG}
        assert await bench.finish(first, Result(state="failed", error=error, receipt={"x": BIG}))
        assert await bench.finish(second)
        job = await bench.expect("a", "failed")
        assert (job.context, job.error, job.receipt) == ({"x": BIG}, error, {"x": BIG}), f"kept: {job}"
        assert job.progress == {"x": BIG}, f"kept: {job.progress}"
        due = await bench.store.due("s", max(bench.now, time.time()) + 1, bench.now + 1000)
        told = sorted((d.job, d.event, decode_event(d.body).job.context["x"]) for d in due)
        assert told == [
            ("a", "completed", BIG),
            ("a", "output", BIG),
            ("a", "start", BIG),
            ("b", "completed", -BIG),
            ("b", "start", -BIG),
        ], f"told: {told}"


async def an_end_by_itself_is_told(harness: Harness) -> None:
    """A sweep over jobs with such numbers goes on: what is past its time ends, and is told."""
    async with opened(harness) as bench:
        for name in ("a", "b", "c"):
            await bench.submit(name, webhook=ALL, ttl_s=5.0, context={"x": BIG})
        await bench.lease(1)
        bench.now += 60
        await bench.store.sweep(bench.now)
        for name in ("a", "b", "c"):
            await bench.expect(name, "timed_out")
        due = await bench.store.due("s", max(bench.now, time.time()) + 1, bench.now + 1000)
        assert sorted(d.job for d in due if d.event == "completed") == ["a", "b", "c"]


async def results_of_any_text(harness: Harness) -> None:
    """A NUL or half a character in a result, a reason or a detail is replaced: the job ends all the same."""
    async with opened(harness) as bench:
        await bench.submit("a", webhook=ALL)
        lease = await bench.lease_one()
        assert await bench.store.note("a", lease.fence, instance=ODD)
        assert await bench.finish(lease, failed(ODD)), "the result was not taken"
        job = await bench.expect("a", "failed")
        assert job.reason == MENDED, f"kept: {job.reason!r}"
        assert job.error is not None
        assert job.error["detail"] in (ODD, MENDED), f"kept: {job.error}"
        await bench.submit("b", max_attempts=1)
        assert await bench.release(await bench.lease_one(), lost=False, reason=ODD)
        job = await bench.expect("b", "failed")
        assert MENDED in job.reason, f"kept: {job.reason!r}"
        await bench.submit("c")
        lease = await bench.lease_one()
        deep: Any = 1
        for _ in range(5000):
            deep = [deep]
        result = succeeded()
        odd = Result(state="succeeded", output=result.output, receipt={"deep": deep, "what": object()})
        assert await bench.finish(lease, odd), "the result was not taken"
        assert (await bench.expect("c", "succeeded")).output == result.output
        for delivery in await bench.store.due("s", max(bench.now, time.time()) + 1, bench.now + 1000):
            await bench.store.settle(delivery.id, delivered=False, next_at=None, detail=ODD)
        assert await bench.store.cancel(PROJECT, "a", bench.now) is not None
