"""Checks of what a lease is not: that an instance has the job."""

from __future__ import annotations

from headrace.jobs.conformance_bench import LEASE_S, PROJECT, Harness, failed, opened
from headrace.jobs.state import JobState
from headrace.jobs.store import MAX_LOST


async def a_lease_is_no_start(harness: Harness) -> None:
    """A job has begun when an instance has it; the store keeps in which lease one may have begun last."""
    async with opened(harness) as bench:
        await bench.submit("a", max_attempts=9)
        lease = await bench.lease_one()
        assert (lease.job.started_at, lease.job.sent) == (None, 0)
        bench.now += 3
        await bench.sent(lease)
        job = await bench.expect("a", "running")
        assert (job.started_at, job.sent) == (bench.now, 1)
        bench.now += 1
        await bench.release(lease, lost=True, reason="its gateway died")
        job = await bench.expect("a", "queued")
        assert (job.started_at, job.sent, job.queued_at) == (None, 1, bench.now)
        second = await bench.lease_one()
        assert (second.job.started_at, second.job.sent, second.fence) == (None, 1, 2)
        assert second.job.reason == "its gateway died", "why it waits again is forgotten"
        await bench.sent(second)
        job = await bench.get("a")
        assert (job.sent, job.reason) == (2, "")
        await bench.finish(second, failed())
        await bench.store.retry(PROJECT, "a", bench.now)
        job = await bench.get("a")
        assert (job.started_at, job.sent, job.queued_at) == (None, 0, bench.now)


async def lists_what_waits_in_a_gateway_as_queued(harness: Harness) -> None:
    """Lists by state follow the counts: leased is not running."""
    async with opened(harness) as bench:
        for name in ("done", "has", "held", "waits"):
            await bench.submit(name)
        done, has, _ = await bench.lease(3)
        await bench.sent(has)
        await bench.finish(done)

        async def found(*states: JobState, endpoint: str | None = "e") -> list[str]:
            page, _ = await bench.store.list(PROJECT, endpoint=endpoint, states=states)
            return [job.id for job in page]

        assert await found("queued") == ["waits", "held"]
        assert await found("queued", endpoint=None) == ["waits", "held"]
        assert await found("running") == ["has"]
        assert await found("running", "succeeded") == ["has", "done"]
        assert await found("queued", "running") == ["waits", "held", "has"]
        assert await found() == ["waits", "held", "has", "done"]


async def a_refused_job_was_not_sent(harness: Harness) -> None:
    """What was noted as sent before it was refused is taken back."""
    async with opened(harness) as bench:
        await bench.submit("a")
        lease = await bench.lease_one()
        await bench.sent(lease)
        assert await bench.store.note("a", lease.fence, sent_at=0.0)
        job = await bench.get("a")
        assert (job.started_at, job.sent) == (None, 0)
        bench.now += LEASE_S + 1
        await bench.store.sweep(bench.now)
        assert (await bench.lease_one()).job.sent == 0
        assert not await bench.store.note("a", lease.fence, sent_at=bench.now), "a void fence was noted"


async def unsent_leases_do_not_count(harness: Harness) -> None:
    """A job that is given back before an instance had it keeps its attempts, its age, and its place."""
    async with opened(harness) as bench:
        await bench.submit("a", max_attempts=1)
        await bench.submit("b")
        await bench.release((await bench.lease(1))[0], lost=True, reason="node n1 is gone")
        at = bench.now
        for n in range(MAX_LOST + 5):
            bench.now += 1
            lease = (await bench.lease(1))[0]
            assert (lease.job.id, lease.fence, lease.job.unsent) == ("a", n + 2, n)
            reason = "the queue is full" if n == 7 else ""
            assert await bench.release(lease, lost=True, unsent=True, reason=reason)
            job = await bench.expect("a", "queued")
            assert job.reason == ("node n1 is gone" if n < 7 else "the queue is full")
        assert (job.lost, job.unsent, job.queued_at, job.error) == (1, MAX_LOST + 5, at, None)
        assert [a.number for a in await bench.store.attempts("a")] == [1], "an unused lease is an attempt"
        assert not await bench.release(lease, lost=True, unsent=True), "given back twice"
        last = (await bench.lease(1))[0]
        await bench.sent(last)
        await bench.release(last, lost=False, reason="its instance died")
        await bench.expect("a", "failed")
        assert [a.number for a in await bench.store.attempts("a")] == [1, last.fence]


async def leases_without_an_answer_are_taken_back(harness: Harness) -> None:
    """What a lease call took whose answer was lost waits again as if it had not been leased, and nothing
    else: not what another call or owner has, nor what an instance has, nor what has ended."""
    async with opened(harness) as bench:
        for name in ("had", "ended", "lost", "lost2"):
            await bench.submit(name, max_attempts=1)
        await bench.submit("other", endpoint="f")
        call = (PROJECT, "e", bench.now + 0.1)
        bench.now = call[2]
        had, ended, lost, _ = await bench.lease()
        other = await bench.lease_one(endpoint="f")
        await bench.sent(had)
        await bench.finish(ended)
        bench.now += 0.3
        await bench.submit("later")
        later = await bench.lease_one()
        assert not await bench.store.take_back("w1", [], bench.now)
        assert not await bench.store.take_back("w2", [call], bench.now), "another worker's were taken back"
        assert not await bench.store.take_back("w1", [("q", "e", call[2])], bench.now)
        assert await bench.store.take_back("w1", [("nobody", "x", 1.0), call], bench.now) == 2
        assert await bench.store.take_back("w1", [call], bench.now) == 0, "taken back twice"
        for lease in (had, other, later):
            assert not await bench.store.heartbeat("w1", [(lease.job.id, lease.fence)], bench.now + LEASE_S)
        await bench.expect("ended", "succeeded")
        job = await bench.expect("lost", "queued")
        assert (job.lost, job.unsent, job.queued_at, job.reason) == (0, 1, None, "")
        assert not await bench.store.attempts("lost"), "an unused lease is an attempt"
        assert not await bench.finish(lost), "its old fence holds"
        again = await bench.lease()
        assert [lease.job.id for lease in again] == ["lost", "lost2"]
        assert await bench.finish(again[0])
        await bench.expect("lost", "succeeded")
