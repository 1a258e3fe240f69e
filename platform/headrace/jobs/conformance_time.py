"""Checks of what time does: leases, times to live, retention, blobs without a name."""

from __future__ import annotations

from headrace.jobs.conformance_bench import LEASE_S, PROJECT, Harness, failed, opened, succeeded
from headrace.jobs.model import Payload
from headrace.jobs.store import MAX_LOST

BLOB_A, BLOB_B, BLOB_C = "aa" * 32, "bb" * 32, "cc" * 32


async def an_expired_lease_is_queued_again(harness: Harness) -> None:
    """A worker that is not heard of loses its job, which costs the job nothing."""
    async with opened(harness) as bench:
        await bench.submit("a", max_attempts=1)
        await bench.lease_one()
        bench.now += LEASE_S - 1
        await bench.store.sweep(bench.now)
        await bench.expect("a", "running")
        bench.now += 2
        await bench.store.sweep(bench.now)
        job = await bench.expect("a", "queued")
        assert (job.attempts, job.lost) == (1, 1)
        assert job.reason, "it doesn't say why it waits again"
        (attempt,) = await bench.store.attempts("a")
        assert (attempt.outcome, attempt.ended_at) == ("lost", bench.now)
        assert (await bench.lease_one(owner="w2")).fence == 2


async def a_prolonged_lease_is_not_touched(harness: Harness) -> None:
    """A heartbeat keeps the lease."""
    async with opened(harness) as bench:
        await bench.submit("a")
        lease = await bench.lease_one()
        for _ in range(3):
            bench.now += LEASE_S - 1
            assert not await bench.store.heartbeat("w1", [("a", lease.fence)], bench.now + LEASE_S)
            await bench.store.sweep(bench.now)
        await bench.expect("a", "running")
        assert await bench.finish(lease)


async def a_sweep_may_leave_leases_alone(harness: Harness) -> None:
    """Expired leases stay, and can be prolonged, when their owners could not do so; other work goes on."""
    async with opened(harness) as bench:
        await bench.submit("a")
        lease = await bench.lease_one()
        await bench.submit("late", ttl_s=LEASE_S)
        bench.now += LEASE_S + 1
        before = bench.now
        await bench.store.sweep(before, leases=False)
        await bench.expect("a", "running")
        await bench.expect("late", "timed_out")
        bench.now += 5
        assert not await bench.store.heartbeat("w1", [("a", lease.fence)], bench.now + LEASE_S)
        await bench.store.sweep(before)
        await bench.expect("a", "running")
        assert await bench.finish(lease)


async def lost_attempts_are_bounded(harness: Harness) -> None:
    """A job that loses every worker ends, with a problem that says so."""
    async with opened(harness) as bench:
        ended = bench.ended()
        await bench.submit("a")
        for _ in range(MAX_LOST):
            await bench.expect("a", "queued")
            await bench.lease_one()
            bench.now += LEASE_S + 1
            await bench.store.sweep(bench.now)
        job = await bench.expect("a", "failed")
        assert job.error is not None
        assert job.error["type"] == "urn:headrace:job-lost"
        assert job.reason
        assert (job.attempts, job.lost) == (MAX_LOST, MAX_LOST)
        assert ended == [(PROJECT, job.endpoint, "failed", job.created_at)], f"told: {ended}"


async def the_time_to_live_ends_a_job(harness: Harness) -> None:
    """Queued or running: past its deadline a job is timed out, and its worker has lost it."""
    async with opened(harness) as bench:
        ended = bench.ended()
        await bench.submit("running", ttl_s=8.0)
        lease = await bench.lease_one()
        await bench.submit("queued", ttl_s=8.0)
        await bench.submit("long", ttl_s=100.0)
        bench.now += 7.9
        await bench.store.sweep(bench.now)
        await bench.expect("queued", "queued")
        await bench.expect("running", "running")
        bench.now += 0.2
        await bench.store.sweep(bench.now)
        for job_id in ("queued", "running"):
            job = await bench.expect(job_id, "timed_out")
            assert job.error is not None
            assert job.error["type"] == "urn:headrace:deadline-exceeded", f"{job.error}"
            assert job.reason
            assert job.finished_at == bench.now
        assert [(one.project, one.endpoint, one.state) for one in ended] == [
            (PROJECT, job.endpoint, "timed_out")
        ] * 2, f"told: {ended}"
        await bench.expect("long", "queued")
        assert not await bench.finish(lease), "a timed-out job was finished"
        assert [a.outcome for a in await bench.store.attempts("running")] == ["timed_out"]
        again = await bench.store.retry(PROJECT, "queued", bench.now)
        assert again is not None
        assert (again.state, again.deadline_at) == ("queued", bench.now + 8.0)


async def every_retry_gives_the_time_to_live_anew(harness: Harness) -> None:
    """It does not grow with the time that went by between retries."""
    async with opened(harness) as bench:
        await bench.submit("a", ttl_s=10.0)
        for pause in (3.0, 100.0, 2.0):
            await bench.finish(await bench.lease_one(), failed())
            bench.now += pause
            job = await bench.store.retry(PROJECT, "a", bench.now)
            assert job is not None
            assert job.deadline_at == bench.now + 10.0, f"{job.deadline_at} is not 10 s from {bench.now}"


async def a_dead_job_is_not_leased(harness: Harness) -> None:
    """What is past its deadline is not leased, even before a sweep has seen it."""
    async with opened(harness) as bench:
        await bench.submit("a", ttl_s=5.0)
        await bench.submit("b")
        bench.now += 6
        assert [lease.job.id for lease in await bench.lease()] == ["b"]


async def finished_jobs_go_after_their_retention(harness: Harness) -> None:
    """A job is kept for its retention after its end, with all that belongs to it; then nothing is left."""
    async with opened(harness) as bench:
        await bench.submit("a", retention_s=60.0, data=b"x" * 9000)
        await bench.submit("b", retention_s=600.0)
        await bench.submit("waits", retention_s=1.0)
        leases = await bench.lease(2)
        for lease in leases:
            await bench.store.append(lease.job.id, lease.fence, 0, [b"c"])
            await bench.finish(lease, succeeded(b"y" * 9000))
        bench.now += 59
        await bench.store.sweep(bench.now)
        await bench.expect("a", "succeeded")
        bench.now += 2
        await bench.store.sweep(bench.now)
        assert await bench.store.get(PROJECT, "a") is None
        assert list(await bench.store.attempts("a")) == []
        assert list(await bench.store.chunks("a")) == []
        await bench.expect("b", "succeeded")
        await bench.expect("waits", "queued")
        counts = await bench.counts()
        assert (counts.succeeded, counts.queued) == (1, 1), f"{counts}"


async def a_removed_job_frees_its_key(harness: Harness) -> None:
    """A key is known for as long as its job is kept."""
    async with opened(harness) as bench:
        await bench.submit("a", idempotency_key="k", retention_s=10.0)
        await bench.finish(await bench.lease_one())
        bench.now += 11
        await bench.store.sweep(bench.now)
        await bench.submit("b", idempotency_key="k")


async def blobs_that_nobody_names_are_given(harness: Harness) -> None:
    """A removed job's blobs are given, unless another job names them."""
    async with opened(harness) as bench:
        await bench.submit("a", retention_s=10.0, input=Payload(blob=BLOB_A, size=1))
        await bench.finish(await bench.lease_one(), succeeded(blob=BLOB_B, size=1))
        await bench.submit("c", retention_s=1000.0, input=Payload(blob=BLOB_B, size=1))
        await bench.submit("d", input=Payload(blob=BLOB_C, size=1), endpoint="purged")
        bench.now += 5
        assert list(await bench.store.sweep(bench.now)) == []
        bench.now += 6
        assert list(await bench.store.sweep(bench.now)) == [BLOB_A]
        await bench.store.purge(PROJECT, "purged", bench.now)
        assert BLOB_C in await bench.store.sweep(bench.now), "a purged job's blob was not given"
        await bench.store.cancel(PROJECT, "c", bench.now)
        bench.now += 1001
        assert BLOB_B in await bench.store.sweep(bench.now)


async def blobs_of_dropped_results_are_given(harness: Harness) -> None:
    """The blob of a late result, and of a result that a retry has thrown away, have no name."""
    async with opened(harness) as bench:
        await bench.submit("a")
        lease = await bench.lease_one()
        await bench.release(lease, lost=True)
        await bench.finish(lease, succeeded(blob=BLOB_A, size=1))
        assert BLOB_A in await bench.store.sweep(bench.now)


async def announced_blobs_are_given_unless_named(harness: Harness) -> None:
    """A blob that was put for a job which was then not stored does not stay."""
    async with opened(harness) as bench:
        for blob in (BLOB_A, BLOB_B):
            await bench.store.announce_blob(blob, bench.now + 600.0)
        await bench.submit("a", input=Payload(blob=BLOB_B, size=1), retention_s=10.0)
        bench.now += 599
        assert list(await bench.store.sweep(bench.now)) == []
        await bench.store.announce_blob(BLOB_A, bench.now + 600.0)
        bench.now += 2
        assert list(await bench.store.sweep(bench.now)) == [], "it was announced again"
        bench.now += 600
        assert list(await bench.store.sweep(bench.now)) == [BLOB_A]
        await bench.finish(await bench.lease_one())
        bench.now += 11
        assert BLOB_B in await bench.store.sweep(bench.now)


async def a_sweep_is_bounded(harness: Harness) -> None:
    """A sweep does about as much as it is told, and the next ones do the rest."""
    async with opened(harness) as bench:
        for i in range(300):
            await bench.submit(f"j{i}", ttl_s=1.0)
        bench.now += 2
        await bench.store.sweep(bench.now, limit=100)
        assert 100 <= (await bench.counts()).timed_out < 300, f"{await bench.counts()}"
        for _ in range(3):
            await bench.store.sweep(bench.now, limit=100)
        assert (await bench.counts()).timed_out == 300
