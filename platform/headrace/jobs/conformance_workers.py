"""Checks of what workers do: lease, heartbeat, note, append, finish, release."""

from __future__ import annotations

import asyncio

from headrace.jobs.conformance_bench import LEASE_S, PROJECT, Harness, failed, opened, succeeded
from headrace.jobs.model import HIGH_COUNTED, Lease, Result


async def leases_by_priority_then_age(harness: Harness) -> None:
    """High before normal before low, then the oldest; the job is running then."""
    async with opened(harness) as bench:
        for i, priority in enumerate(("low", "normal", "high", "low", "high", "normal")):
            await bench.submit(f"j{i}", priority=priority)
            bench.now += 1
        found = [lease.job.id for lease in await bench.lease(4)]
        assert found == ["j2", "j4", "j1", "j5"], f"leased {found}"
        leases = await bench.lease(4)
        assert [lease.job.id for lease in leases] == ["j0", "j3"]
        job = leases[0].job
        assert (job.state, job.attempts, job.started_at) == ("running", 1, None)
        assert (leases[0].owner, leases[0].until) == ("w1", bench.now + LEASE_S)
        assert await bench.get("j0") == job, "the lease tells another job than get"
        assert not await bench.lease(4)
        assert not await bench.lease(0)


async def keys_take_turns(harness: Harness) -> None:
    """A key with many queued jobs gets one leased for each of another key; nothing is owed for the past."""
    async with opened(harness) as bench:
        second = await bench.open()

        async def take(limit: int) -> list[str]:
            return [lease.job.id for lease in await bench.lease(limit)]

        try:
            for i in range(20):
                await bench.submit(f"a{i}", key_id="a")
            assert await take(5) == ["a0", "a1", "a2", "a3", "a4"]
            for i in range(3):
                new = bench.new(f"b{i}", key_id="b")
                await second.submit(new, bench.now)
            await bench.submit("c0", key_id="c")
            assert await take(5) == ["a5", "b0", "c0", "a6", "b1"], "keys don't take turns"
            await bench.submit("low", key_id="d", priority="low")
            await bench.submit("high", key_id="a", priority="high")
            await bench.submit("c1", key_id="c")
            assert await take(4) == ["high", "a7", "b2", "c1"]
            for i in range(8, 20):
                await bench.store.cancel(PROJECT, f"a{i}", bench.now)
            for key in ("b3", "b4", "a20", "e0"):
                await bench.submit(key, key_id=key[0])
            assert await take(9) == ["b3", "a20", "e0", "b4", "low"], (
                "cancelled jobs are held against their key"
            )
        finally:
            await second.close()


async def a_retry_takes_a_new_turn(harness: Harness) -> None:
    """Retried jobs queue behind those of their key; a job that was given back stays in front."""
    async with opened(harness) as bench:
        for i in range(3):
            await bench.submit(f"a{i}", key_id="a")
        lost, *dead = await bench.lease(3)
        for lease in dead:
            await bench.finish(lease, failed())
        await bench.submit("a3", key_id="a")
        for lease in dead:
            await bench.store.retry(PROJECT, lease.job.id, bench.now)
        await bench.submit("b0", key_id="b")
        await bench.release(lost, lost=True)
        assert [lease.job.id for lease in await bench.lease(9)] == ["a0", "a3", "b0", "a1", "a2"]


async def leases_are_exclusive(harness: Harness) -> None:
    """Two workers over two stores that take at once never have the same job, and together have all."""
    async with opened(harness) as bench:
        second = await bench.open()
        try:
            total = 120
            for i in range(total):
                await bench.submit(f"j{i}")
            taken: list[Lease] = []

            async def work(owner: str, turn: int) -> None:
                store = (bench.store, second)[turn % 2]
                while leases := await bench.lease(7, owner=owner, store=store):
                    taken.extend(leases)
                    assert all(lease.owner == owner for lease in leases)

            # Twice: with SKIP LOCKED a worker may see nothing while another holds the last ones.
            for _ in range(2):
                await asyncio.gather(*(work(f"w{i}", i) for i in range(6)))
            ids = [lease.job.id for lease in taken]
            assert len(ids) == len(set(ids)), "a job was leased twice"
            assert len(ids) == total, f"{len(ids)} of {total} were leased"
            assert (await bench.counts()).queued == total, "no instance has one"
        finally:
            await second.close()


async def leases_only_one_endpoint(harness: Harness) -> None:
    """A lease takes jobs of its project and endpoint only."""
    async with opened(harness) as bench:
        await bench.submit("a", endpoint="e2")
        await bench.submit("b", project="other")
        assert not await bench.lease()
        assert [lease.job.id for lease in await bench.lease(endpoint="e2")] == ["a"]


async def waiting_endpoints_are_told(harness: Harness) -> None:
    """Endpoints with queued jobs, how many, and since when."""
    async with opened(harness) as bench:
        start = bench.now
        for i in range(3):
            await bench.submit(f"j{i}", endpoint=f"e{i % 2}", priority="high" if i == 2 else "normal")
            bench.now += 1
        await bench.submit("k", project="other", endpoint="e0")
        rows = await bench.store.waiting(bench.now)
        found = sorted((row.project, row.endpoint, row.queued, row.oldest_at) for row in rows)
        assert found == [
            ("other", "e0", 1, start + 3),
            (PROJECT, "e0", 2, start),
            (PROJECT, "e1", 1, start + 1),
        ]
        await bench.lease(endpoint="e0")
        assert len(await bench.store.waiting(bench.now)) == 2
        assert len(await bench.store.waiting(bench.now, limit=1)) == 1


async def waiting_tells_what_comes_next(harness: Harness) -> None:
    """The rank of the next job that may be leased, and how many high ones may be; what is delayed may not."""
    async with opened(harness) as bench:

        async def seen() -> tuple[int, int | None, int]:
            (row,) = await bench.store.waiting(bench.now)
            return row.queued, row.best, row.high

        await bench.submit("low", priority="low")
        assert await seen() == (1, 2, 0)
        await bench.submit("normal")
        assert await seen() == (2, 1, 0)
        for i in range(3):
            await bench.submit(f"high{i}", priority="high")
        assert await seen() == (5, 0, 3)
        first, second = await bench.lease(2)
        assert await seen() == (3, 0, 1)
        await bench.release(first, lost=True)
        await bench.release(second, lost=True, delay_s=50.0)
        assert await seen() == (5, 0, 2)
        assert len(await bench.lease(3)) == 3
        await bench.lease(1)
        assert await seen() == (1, None, 0)
        bench.now += 60
        assert await seen() == (1, 0, 1)
        for i in range(HIGH_COUNTED):
            await bench.submit(f"more{i}", priority="high")
        assert await seen() == (1 + HIGH_COUNTED, 0, HIGH_COUNTED)


async def a_result_is_stored_once(harness: Harness) -> None:
    """The first result counts; a second one of the same attempt is dropped."""
    async with opened(harness) as bench:
        await bench.submit("a")
        lease = await bench.lease_one()
        bench.now += 2
        result = Result(
            state="succeeded",
            output=succeeded(b"first").output,
            receipt={"queued": 1.5},
            started_at=bench.now - 1,
            instance="i-3",
        )
        assert await bench.finish(lease, result)
        job = await bench.expect("a", "succeeded")
        assert (job.output, job.receipt, job.error) == (result.output, {"queued": 1.5}, None)
        assert (job.finished_at, job.started_at) == (bench.now, bench.now - 1)
        assert not await bench.finish(lease, failed()), "a second result was taken"
        assert await bench.get("a") == job
        assert not await bench.store.finish("unknown", 1, failed(), bench.now)
        (attempt,) = await bench.store.attempts("a")
        assert (attempt.number, attempt.owner, attempt.outcome) == (1, "w1", "succeeded")
        assert attempt.instance == "i-3"
        assert (attempt.started_at, attempt.ended_at) == (bench.now - 2, bench.now)


async def failures_are_kept_with_their_reason(harness: Harness) -> None:
    """A dead job is kept and listed, with the problem document and the reason."""
    async with opened(harness) as bench:
        await bench.submit("a")
        await bench.finish(await bench.lease_one(), failed("no such model"))
        (job,), _ = await bench.store.list(PROJECT, states=("failed",))
        assert job.reason == "no such model"
        assert job.error == {"type": "urn:headrace:handler-error", "detail": "no such model"}


async def late_results_are_dropped_and_counted(harness: Harness) -> None:
    """An attempt whose lease ended changes nothing any more, whatever it tries."""
    async with opened(harness) as bench:
        await bench.submit("a")
        late = await bench.lease_one()
        bench.now += LEASE_S + 1
        await bench.store.sweep(bench.now)
        assert not await bench.finish(late), "a result for a job that is queued again"
        current = await bench.lease_one(owner="w2")
        assert current.fence > late.fence
        assert not await bench.finish(late, failed()), "the late attempt finished the new one's job"
        assert not await bench.store.append("a", late.fence, 0, [b"late"])
        assert not await bench.store.note("a", late.fence, instance="i", progress=b"1")
        assert not await bench.release(late, lost=False)
        assert list(await bench.store.heartbeat("w1", [("a", late.fence)], bench.now + 99)) == ["a"]
        assert await bench.store.dropped() == 2
        assert await bench.finish(current)
        job = await bench.expect("a", "succeeded")
        assert (job.attempts, job.lost) == (2, 1)
        outcomes = [a.outcome for a in await bench.store.attempts("a")]
        assert outcomes == ["fenced", "succeeded"], f"attempts ended {outcomes}"


async def heartbeats_tell_what_is_gone(harness: Harness) -> None:
    """A heartbeat prolongs what is the owner's, and names what is not."""
    async with opened(harness) as bench:
        for i in range(3):
            await bench.submit(f"j{i}")
        leases = await bench.lease()
        await bench.finish(leases[1])
        held = [(lease.job.id, lease.fence) for lease in leases]
        gone = await bench.store.heartbeat("w1", [*held, ("unknown", 1)], bench.now + 100)
        assert sorted(gone) == ["j1", "unknown"], f"told as gone: {gone}"
        gone = await bench.store.heartbeat("w2", held[:1], bench.now + 200)
        assert list(gone) == ["j0"], "another worker's heartbeat was taken"
        assert not await bench.store.heartbeat("w1", [], bench.now)


async def notes_need_the_fence(harness: Harness) -> None:
    """Where an attempt runs, and its progress, are told while it holds the lease."""
    async with opened(harness) as bench:
        await bench.submit("a")
        lease = await bench.lease_one()
        assert await bench.store.note("a", lease.fence, instance="i-7")
        assert await bench.store.note("a", lease.fence, progress=b'{"step": 3}')
        assert (await bench.get("a")).progress == {"step": 3}
        assert [a.instance for a in await bench.store.attempts("a")] == ["i-7"]
        await bench.finish(lease)
        assert not await bench.store.note("a", lease.fence, progress=b'{"step": 4}'), "progress after the end"
        assert (await bench.get("a")).progress == {"step": 3}
        assert not await bench.store.note("unknown", 1, instance="i")


async def chunks_of_a_new_attempt_replace_the_old(harness: Harness) -> None:
    """A reader that followed the old attempt gets the new one from its first chunk."""
    async with opened(harness) as bench:
        await bench.submit("a")
        first = await bench.lease_one()
        assert await bench.store.append("a", first.fence, 0, [b"old0", b"old1"])
        await bench.release(first, lost=True)
        second = await bench.lease_one()
        assert list(await bench.store.chunks("a")) == [], "chunks of the old attempt"
        assert await bench.store.append("a", second.fence, 0, [b"new0"])
        assert await bench.store.append("a", second.fence, 1, [b"new1"])
        found = await bench.store.chunks("a", attempt=first.fence, after=1)
        assert [(c.attempt, c.seq, c.data) for c in found] == [(2, 0, b"new0"), (2, 1, b"new1")]
        await bench.finish(second)
        assert [c.data for c in await bench.store.chunks("a")] == [b"new0", b"new1"]


async def chunks_are_read_in_pages(harness: Harness) -> None:
    """After a chunk come those behind it, up to the limit; a repeated append changes nothing."""
    async with opened(harness) as bench:
        await bench.submit("a")
        lease = await bench.lease_one()
        items = [b"%d" % i for i in range(10)]
        assert await bench.store.append("a", lease.fence, 0, items)
        assert await bench.store.append("a", lease.fence, 8, items[8:])
        assert await bench.store.append("a", lease.fence, 10, [])
        found = await bench.store.chunks("a", attempt=1, after=3, limit=4)
        assert [(c.seq, c.data) for c in found] == [(i, b"%d" % i) for i in range(4, 8)]
        assert [c.seq for c in await bench.store.chunks("a", attempt=1, after=7)] == [8, 9]
        assert list(await bench.store.chunks("unknown")) == []


async def chunks_are_taken_once(harness: Harness) -> None:
    """Whoever takes chunks, and through whichever store: each is given once, those of a new attempt anew."""
    async with opened(harness) as bench:
        second = await bench.open()
        try:
            await bench.submit("a", retention_s=10.0)
            assert list(await bench.store.take_chunks("a")) == []
            assert list(await bench.store.take_chunks("unknown")) == []
            lease = await bench.lease_one()
            await bench.store.append("a", lease.fence, 0, [b"%d" % i for i in range(6)])
            found = [*await bench.store.take_chunks("a", limit=2), *await second.take_chunks("a", limit=3)]
            assert [(c.attempt, c.seq, c.data) for c in found] == [(1, i, b"%d" % i) for i in range(5)]
            await bench.reopen()
            assert [c.seq for c in await bench.store.take_chunks("a")] == [5], "not after a restart"
            assert list(await second.take_chunks("a")) == []
            await bench.store.append("a", lease.fence, 6, [b"%d" % i for i in range(6, 46)])
            pages = await asyncio.gather(
                *(store.take_chunks("a", limit=3) for store in [bench.store, second] * 10)
            )
            seqs = [chunk.seq for page in pages for chunk in page]
            assert sorted(seqs) == list(range(6, 46)), f"takes at once gave {sorted(seqs)}"
            assert len(await bench.store.chunks("a")) == 46, "what was taken is not kept"
            await bench.store.append("a", lease.fence, 46, [b"x" * 10 for _ in range(5)])
            for bound, expected in ((1, [46]), (11, [47, 48]), (10, [49])):
                found = [*await second.take_chunks("a", max_bytes=bound)]
                assert [c.seq for c in found] == expected, f"{bound} bytes gave {found}"
            await bench.release(lease, lost=True)
            again = await bench.lease_one()
            assert list(await second.take_chunks("a")) == [], "chunks of the old attempt"
            await bench.store.append("a", again.fence, 0, [b"new"])
            assert [(c.attempt, c.data) for c in await second.take_chunks("a")] == [(2, b"new")]
            await bench.finish(again)
            bench.now += 11
            await bench.store.sweep(bench.now)
            assert list(await second.take_chunks("a")) == []
            await bench.submit("a")
            await bench.store.append("a", (await bench.lease_one()).fence, 0, [b"other"])
            assert [c.data for c in await second.take_chunks("a")] == [b"other"], "an old place is known"
        finally:
            await second.close()


async def released_jobs_come_again(harness: Harness) -> None:
    """A job that was given back is queued with the reason, before younger ones, and costs nothing if lost."""
    async with opened(harness) as bench:
        await bench.submit("a", max_attempts=1)
        bench.now += 1
        await bench.submit("b")
        lease = (await bench.lease(1))[0]
        assert await bench.release(lease, lost=True, reason="node n1 is gone")
        job = await bench.expect("a", "queued")
        assert (job.attempts, job.lost, job.reason) == (1, 1, "node n1 is gone")
        assert not await bench.release(lease, lost=True), "given back twice"
        again = (await bench.lease(1))[0]
        assert (again.job.id, again.fence) == ("a", 2)
        assert [a.outcome for a in await bench.store.attempts("a")] == ["lost", ""]


async def released_jobs_wait_for_their_delay(harness: Harness) -> None:
    """A job that was given back with a delay is not leased before, and doesn't stop others."""
    async with opened(harness) as bench:
        await bench.submit("a")
        bench.now += 1
        await bench.submit("b")
        await bench.release((await bench.lease(1))[0], lost=True, delay_s=5.0)
        assert await bench.finish(await bench.lease_one()), "b is not leased"
        bench.now += 4.9
        assert not await bench.lease(), "leased before its delay was over"
        assert (await bench.counts()).queued == 1
        bench.now += 0.2
        assert [lease.job.id for lease in await bench.lease()] == ["a"]


async def releases_that_count_are_bounded(harness: Harness) -> None:
    """The last of ``max_attempts`` makes the job failed, as lost, with the reason."""
    async with opened(harness) as bench:
        ended = bench.ended()
        await bench.submit("a", max_attempts=2)
        await bench.release(await bench.lease_one(), lost=False)
        await bench.release(await bench.lease_one(), lost=True)
        await bench.expect("a", "queued")
        assert not ended, f"told: {ended}"
        assert await bench.release(await bench.lease_one(), lost=False, reason="instance i-1 was killed")
        assert [one.state for one in ended] == ["failed"], f"told: {ended}"
        job = await bench.expect("a", "failed")
        assert job.error is not None
        assert job.error["type"] == "urn:headrace:job-lost", f"{job.error}"
        assert "instance i-1 was killed" in job.reason
        assert "instance i-1 was killed" in job.error["detail"]
        assert (job.attempts, job.lost, job.finished_at) == (3, 1, bench.now)


async def a_gone_worker_loses_its_jobs(harness: Harness) -> None:
    """What a worker held that is known to be gone is queued again at once; others keep theirs."""
    async with opened(harness) as bench:
        for i in range(5):
            await bench.submit(f"j{i}")
        gone = await bench.lease(3, owner="w1")
        kept = await bench.lease(2, owner="w2")
        assert await bench.store.release_owner("w1", bench.now) == 3
        assert await bench.store.release_owner("w1", bench.now) == 0
        await bench.sent(*kept)
        counts = await bench.counts()
        assert (counts.queued, counts.running) == (3, 2)
        assert (await bench.get(gone[0].job.id)).lost == 1
        assert not await bench.finish(gone[0])
        assert await bench.finish(kept[0])
