"""Checks of what clients do: submit, get, list, cancel, retry, purge, counts."""

from __future__ import annotations

import asyncio
from typing import Any

from headrace.jobs.conformance_bench import PROJECT, Harness, failed, opened, succeeded
from headrace.jobs.model import INLINE_BYTES, NewJob, Payload, Result, Webhook
from headrace.jobs.store import NOTED_S, IdempotencyConflict, JobStore


async def stores_everything(harness: Harness) -> None:
    """A job is what was submitted."""
    async with opened(harness) as bench:
        new = bench.new(
            "j",
            data=b'{"a": 1}',
            version=7,
            method="PUT",
            path="/x?y=z",
            api="runpod",
            key_id="k1",
            fingerprint="f",
            priority="high",
            webhook=Webhook(url="https://example.org/hook", events=("start", "completed")),
            ttl_s=100.0,
            execution_timeout_s=5.0,
            max_attempts=2,
            retention_s=60.0,
            traceparent="00-1-2-01",
            context={"echo": [1, None, "é"]},
        )
        job, is_new = await bench.store.submit(new, bench.now)
        stored = await bench.get("j")
        assert is_new, "a new job is told as known"
        assert stored == job, f"submit gave {job}, get gives {stored}"
        for name in (
            "project",
            "endpoint",
            "input",
            "version",
            "method",
            "path",
            "api",
            "key_id",
            "fingerprint",
        ):
            assert getattr(job, name) == getattr(new, name), f"{name}: {getattr(job, name)}"
        for name in ("priority", "webhook", "execution_timeout_s", "max_attempts", "retention_s", "context"):
            assert getattr(job, name) == getattr(new, name), f"{name}: {getattr(job, name)}"
        assert (job.state, job.created_at, job.deadline_at) == ("queued", bench.now, bench.now + 100.0)
        assert (job.attempts, job.lost, job.retried, job.traceparent) == (0, 0, 0, "00-1-2-01")
        assert await bench.store.get(PROJECT, "unknown") is None


async def bodies_of_any_size(harness: Harness) -> None:
    """Inputs and outputs come back byte for byte, or by the name of their blob."""
    async with opened(harness) as bench:
        for size in (0, 1, 5000, INLINE_BYTES):
            body = bytes(i % 256 for i in range(min(size, 256))) * (size // 256 + 1)
            job = await bench.submit(f"s{size}", data=body[:size], endpoint="sizes")
            assert job.input.data == body[:size]
            lease = await bench.lease_one(endpoint="sizes")
            assert lease.job.input == job.input, f"the lease's input of {size} bytes differs"
            await bench.finish(lease, succeeded(body[:size]))
            done = await bench.get(f"s{size}")
            assert done.input == job.input, f"the input of {size} bytes differs"
            assert done.output == Payload(data=body[:size], size=size), f"the output of {size} bytes differs"
        blob = Payload(content_type="image/png", blob="ab" * 32, size=3 << 20)
        await bench.submit("blob", input=blob)
        lease = await bench.lease_one()
        await bench.finish(lease, Result(state="succeeded", output=blob))
        done = await bench.get("blob")
        assert (lease.job.input, done.input, done.output) == (blob, blob, blob)


async def survives_a_reopening(harness: Harness) -> None:
    """Whatever was returned is there when the data is opened again."""
    async with opened(harness) as bench:
        await bench.submit("queued", idempotency_key="k", fingerprint="f")
        await bench.submit("running", endpoint="r")
        lease = await bench.lease_one(endpoint="r")
        await bench.store.append("running", lease.fence, 0, [b"1", b"2"])
        before = [await bench.get("queued"), await bench.get("running")]
        await bench.reopen()
        assert [await bench.get("queued"), await bench.get("running")] == before
        same, new = await bench.store.submit(
            bench.new("other", idempotency_key="k", fingerprint="f"), bench.now
        )
        assert (same.id, new) == ("queued", False), "the key is forgotten"
        assert [c.data for c in await bench.store.chunks("running")] == [b"1", b"2"]
        assert await bench.finish(lease), "the lease did not survive"


async def one_job_per_key(harness: Harness) -> None:
    """The same key gives the same job, whatever became of it; with another request it is a conflict."""
    async with opened(harness) as bench:
        assert not await bench.store.has_key(PROJECT, "e", "k")
        await bench.submit("a", idempotency_key="k", fingerprint="f")
        assert await bench.store.has_key(PROJECT, "e", "k")
        assert not await bench.store.has_key(PROJECT, "e2", "k")
        assert not await bench.store.has_key("other", "e", "k")
        again, new = await bench.store.submit(bench.new("b", idempotency_key="k", fingerprint="f"), bench.now)
        assert (again.id, new) == ("a", False), "the key gave a second job"
        await bench.finish(await bench.lease_one())
        again, new = await bench.store.submit(bench.new("b", idempotency_key="k", fingerprint="f"), bench.now)
        assert (again.id, again.state, new) == ("a", "succeeded", False)
        assert again.output == Payload(data=b"1", size=1), "a known job comes without its output"
        try:
            await bench.store.submit(bench.new("c", idempotency_key="k", fingerprint="other"), bench.now)
        except IdempotencyConflict:
            pass
        else:
            raise AssertionError("the same key with another request is no conflict")
        await bench.submit("d", idempotency_key="k", fingerprint="x", endpoint="e2")
        await bench.submit("e", idempotency_key="k", fingerprint="x", project="other")


async def waiters_keep_a_call(harness: Harness) -> None:
    """A call is cancelled when its last waiter is gone, wherever they wait; not when another one came."""
    async with opened(harness) as bench:
        second = await bench.open()

        def call(job_id: str, *, at: str, waiter: str, key: str = "k") -> NewJob:
            return bench.new(job_id, idempotency_key=key, fingerprint="f", waiter=(at, waiter))

        async def abandon(store: JobStore, waiter: str, *, free_key: bool = True) -> str | None:
            job = await store.abandon(waiter, bench.now, free_key=free_key)
            return None if job is None else job.id

        try:
            assert (await bench.store.submit(call("a", at="g1", waiter="w1"), bench.now))[1]
            lease = await bench.lease_one()
            same, is_new = await second.submit(call("b", at="g2", waiter="w2"), bench.now)
            assert (same.id, same.state, is_new) == ("a", "running", False)
            assert await abandon(bench.store, "w1") is None, "cancelled, and another one waits"
            assert await abandon(bench.store, "w1") is None
            assert await abandon(bench.store, "unknown") is None
            await bench.expect("a", "running")
            assert await abandon(second, "w2", free_key=False) == "a"
            job = await bench.expect("a", "cancelled")
            assert job.reason
            assert job.finished_at == bench.now
            assert not await bench.finish(lease), "an abandoned call was finished"
            again, is_new = await second.submit(call("c", at="g2", waiter="w3"), bench.now)
            assert (again.id, again.state, is_new) == ("a", "cancelled", False), "its key was freed"

            await bench.store.submit(call("d", at="g1", waiter="w4", key="k2"), bench.now)
            assert await abandon(second, "w4") == "d"
            again, is_new = await second.submit(call("e", at="g2", waiter="w5", key="k2"), bench.now)
            assert (again.id, is_new) == ("e", True), "its key was not freed"
            await bench.finish(await bench.lease_one())
            assert await abandon(second, "w5") is None, "what had ended was abandoned"
            await bench.expect("e", "succeeded")

            await bench.store.submit(call("f", at="g1", waiter="w6", key="k3"), bench.now)
            await bench.store.release_owner("g1", bench.now)
            await bench.expect("f", "queued")
            await second.submit(call("g", at="g2", waiter="w7", key="k3"), bench.now)
            assert await abandon(second, "w7") == "f", "the clients of a gateway that is gone count"
            await bench.submit("plain")
        finally:
            await second.close()


async def waiters_come_while_others_leave(harness: Harness) -> None:
    """Who submits a key while its last waiter leaves has a call that is not cancelled."""
    async with opened(harness) as bench:
        second = await bench.open()
        try:
            for i in range(20):
                key: dict[str, Any] = {"idempotency_key": f"k{i}", "fingerprint": "f"}
                await bench.store.submit(bench.new(f"a{i}", waiter=("g1", f"w{i}"), **key), bench.now)
                new = bench.new(f"b{i}", waiter=("g2", f"x{i}"), **key)
                (job, _), _ = await asyncio.gather(
                    second.submit(new, bench.now),
                    bench.store.abandon(f"w{i}", bench.now, free_key=True),
                )
                await bench.expect(job.id, "queued")
        finally:
            await second.close()


async def one_job_per_key_under_contention(harness: Harness) -> None:
    """Many submits of one key at once, over two stores, make one job."""
    async with opened(harness) as bench:
        second = await bench.open()
        try:
            jobs = [bench.new(f"j{i}", idempotency_key="k", fingerprint="f") for i in range(20)]
            results = await asyncio.gather(
                *(
                    store.submit(new, bench.now)
                    for new, store in zip(jobs, [bench.store, second] * 10, strict=True)
                )
            )
            assert len({job.id for job, _ in results}) == 1, "one key has several jobs"
            assert sum(new for _, new in results) == 1, "several submits were told as new"
            assert (await bench.counts()).queued == 1
        finally:
            await second.close()


async def one_job_per_id(harness: Harness) -> None:
    """A submit that is repeated gives its job; an id of another project or request is a conflict."""
    async with opened(harness) as bench:
        await bench.submit("a", fingerprint="f")
        again, new = await bench.store.submit(bench.new("a", fingerprint="f"), bench.now)
        assert (again.id, new) == ("a", False)
        for other in (bench.new("a", fingerprint="g"), bench.new("a", fingerprint="f", project="other")):
            try:
                await bench.store.submit(other, bench.now)
            except IdempotencyConflict:
                pass
            else:
                raise AssertionError("an id that is taken is no conflict")


async def projects_are_apart(harness: Harness) -> None:
    """A project sees and touches only its own jobs."""
    async with opened(harness) as bench:
        await bench.submit("a")
        assert await bench.store.get("other", "a") is None
        assert await bench.store.cancel("other", "a", bench.now) is None
        assert await bench.store.retry("other", "a", bench.now) is None
        assert await bench.store.purge("other", "e", bench.now) == 0
        assert (await bench.store.list("other"))[0] == []
        assert (await bench.store.counts("other", "e")).queued == 0
        await bench.expect("a", "queued")


async def lists_newest_first(harness: Harness) -> None:
    """Pages are whole, newest first, without data; jobs that come meanwhile don't shift them."""
    async with opened(harness) as bench:
        for i in range(7):
            await bench.submit(f"j{i}", data=b"x" * 5000)
            bench.now += 1
        found: list[str] = []
        cursor = None
        for page in range(3):
            jobs, cursor = await bench.store.list(PROJECT, limit=3, cursor=cursor)
            found += [job.id for job in jobs]
            assert all(job.input.data == b"" and job.input.size == 5000 for job in jobs), "data in a list"
            await bench.submit(f"new{page}")
        assert found == [f"j{i}" for i in reversed(range(7))], f"pages gave {found}"
        assert cursor is None, "a last page that names a next one"
        jobs, cursor = await bench.store.list(PROJECT, limit=10)
        assert (len(jobs), cursor) == (10, None), "an exact last page names a next one"


async def lists_by_endpoint_and_state(harness: Harness) -> None:
    """Filters hold together, and pages work with them."""
    async with opened(harness) as bench:
        for i in range(6):
            await bench.submit(f"j{i}", endpoint=f"e{i % 2}")
            bench.now += 1
        lease = (await bench.lease(1, endpoint="e0"))[0]
        await bench.finish(lease, failed())
        await bench.sent(*await bench.lease(1, endpoint="e1"))

        async def ids(**filters: object) -> list[str]:
            found: list[str] = []
            cursor: str | None = None
            while True:
                jobs, cursor = await bench.store.list(PROJECT, limit=2, cursor=cursor, **filters)  # type: ignore[arg-type]
                found += [job.id for job in jobs]
                if cursor is None:
                    return found

        assert await ids(endpoint="e0") == ["j4", "j2", "j0"]
        assert await ids(states=("failed",)) == ["j0"]
        assert await ids(states=("failed", "running")) == ["j1", "j0"]
        assert await ids(states=("queued",)) == ["j5", "j4", "j3", "j2"]
        assert await ids(endpoint="e1", states=("queued",)) == ["j5", "j3"]
        await bench.submit("j6", endpoint="e2")
        assert await ids(endpoint=("e0", "e1")) == ["j5", "j4", "j3", "j2", "j1", "j0"]
        assert await ids(endpoint=("e0", "e2"), states=("queued",)) == ["j6", "j4", "j2"]
        assert await ids(endpoint="none") == []


async def cancels_what_waits(harness: Harness) -> None:
    """A queued job is cancelled at once, and nothing changes what has ended."""
    async with opened(harness) as bench:
        await bench.submit("a")
        job = await bench.store.cancel(PROJECT, "a", bench.now)
        assert job is not None
        assert (job.state, job.finished_at) == ("cancelled", bench.now)
        assert await bench.lease() == [] or not await bench.lease(), "a cancelled job was leased"
        bench.now += 5
        again = await bench.store.cancel(PROJECT, "a", bench.now)
        assert again == job, "a second cancel changed it"
        assert await bench.store.retry(PROJECT, "a", bench.now) == job, "a cancelled job was retried"
        assert await bench.store.cancel(PROJECT, "unknown", bench.now) is None


async def cancel_voids_the_fence(harness: Harness) -> None:
    """A running job is cancelled at once; its worker has lost it."""
    async with opened(harness) as bench:
        await bench.submit("a")
        lease = await bench.lease_one()
        job = await bench.store.cancel(PROJECT, "a", bench.now + 1)
        assert job is not None
        assert job.state == "cancelled"
        assert not await bench.store.append("a", lease.fence, 0, [b"x"]), "a chunk after the end"
        assert not await bench.store.note("a", lease.fence, progress=b"1"), "progress after the end"
        assert list(await bench.store.heartbeat("w1", [("a", lease.fence)], bench.now + 99)) == ["a"]
        assert not await bench.finish(lease), "a cancelled job was finished"
        assert not await bench.release(lease, lost=True), "a cancelled job was given back"
        assert await bench.get("a") == job, "the late worker changed it"
        assert await bench.store.dropped() == 1
        assert [a.outcome for a in await bench.store.attempts("a")] == ["cancelled"]


async def retries_what_is_dead(harness: Harness) -> None:
    """A failed job is queued again under its id, as if nothing had been; others are left alone."""
    async with opened(harness) as bench:
        await bench.submit("a", ttl_s=50.0)
        assert (await bench.store.retry(PROJECT, "a", bench.now)) == await bench.expect("a", "queued")
        first = await bench.lease_one()
        await bench.store.append("a", first.fence, 0, [b"old"])
        await bench.store.note("a", first.fence, progress=b'{"half": true}')
        await bench.finish(first, failed())
        bench.now += 1000
        job = await bench.store.retry(PROJECT, "a", bench.now)
        assert job is not None
        assert (job.state, job.retried, job.error, job.finished_at) == ("queued", 1, None, None)
        assert (job.output, job.progress, job.reason, job.receipt) == (None, None, "", {})
        assert job.deadline_at == bench.now + 50.0, "the time to live was not given anew"
        assert list(await bench.store.chunks("a")) == [], "chunks of before the retry"
        second = await bench.lease_one()
        assert second.fence > first.fence, "the fence did not grow"
        assert not await bench.finish(first), "an attempt of before the retry finished it"
        assert await bench.finish(second)
        done = await bench.store.retry(PROJECT, "a", bench.now)
        assert done is not None
        assert (done.state, done.retried) == ("succeeded", 1), "a job that succeeded was retried"
        assert await bench.store.retry(PROJECT, "unknown", bench.now) is None


async def a_retry_has_a_new_budget(harness: Harness) -> None:
    """After a retry all attempts are there again."""
    async with opened(harness) as bench:
        await bench.submit("a", max_attempts=2)
        for generation in range(2):
            for attempt in range(2):
                lease = await bench.lease_one()
                assert lease.fence == lease.job.attempts == 2 * generation + attempt + 1
                await bench.release(lease, lost=False)
            await bench.expect("a", "failed")
            await bench.store.retry(PROJECT, "a", bench.now)
        await bench.expect("a", "queued")


async def purges_only_what_waits(harness: Harness) -> None:
    """Purge removes the endpoint's jobs that no instance has, and gives their number."""
    async with opened(harness) as bench:
        await bench.submit("running")
        await bench.sent(await bench.lease_one())
        await bench.submit("leased")
        leased = await bench.lease_one()
        for i in range(249):
            await bench.submit(f"j{i}")
        await bench.submit("other", endpoint="e2")
        assert await bench.store.purge(PROJECT, "e", bench.now) == 250
        assert await bench.store.get(PROJECT, "j0") is None
        assert await bench.store.get(PROJECT, "leased") is None
        assert not await bench.store.note("leased", leased.fence, sent_at=bench.now), "purged, and yet sent"
        await bench.expect("running", "running")
        await bench.expect("other", "queued")
        assert (await bench.counts()).queued == 0
        assert await bench.store.purge(PROJECT, "e", bench.now) == 0


async def purges_no_fresh_lease_of_another(harness: Harness) -> None:
    """What another worker has just leased may run, and the store is not told yet; its own it has noted."""
    async with opened(harness) as bench:
        await bench.submit("old")
        await bench.lease_one(owner="w2")
        bench.now += NOTED_S + 0.1
        for job_id, owner in (("own", "w1"), ("fresh", "w2")):
            await bench.submit(job_id)
            await bench.lease_one(owner=owner)
        await bench.submit("queued")
        assert await bench.store.purge(PROJECT, "e", bench.now, owner="w1") == 3
        await bench.expect("fresh", "running")
        bench.now += NOTED_S + 0.1
        assert await bench.store.purge(PROJECT, "e", bench.now, owner="w1") == 1


async def counts_every_state(harness: Harness) -> None:
    """Counts follow every move and every removal."""
    async with opened(harness) as bench:
        start = bench.now
        for i in range(6):
            await bench.submit(f"j{i}", ttl_s=100.0 if i == 5 else None)
            bench.now += 1
        await bench.finish((await bench.lease(1))[0])
        await bench.finish((await bench.lease(1))[0], failed())
        await bench.store.cancel(PROJECT, "j2", bench.now)
        leases = await bench.lease(1)
        counts = await bench.counts()
        assert (counts.queued, counts.running, counts.succeeded) == (3, 0, 1), f"{counts}"
        await bench.sent(*leases)
        counts = await bench.counts()
        assert (counts.queued, counts.running, counts.succeeded) == (2, 1, 1), f"{counts}"
        assert (counts.failed, counts.cancelled, counts.oldest_queued_at) == (1, 1, start + 4), f"{counts}"
        await bench.store.retry(PROJECT, "j1", bench.now)
        await bench.store.purge(PROJECT, "none", bench.now)
        counts = await bench.counts()
        assert (counts.queued, counts.failed, counts.retried) == (3, 0, 1), f"{counts}"
        bench.now += 100
        await bench.store.sweep(bench.now)
        assert (await bench.counts()).timed_out == 1
        empty = await bench.counts("none")
        assert (empty.queued, empty.oldest_queued_at) == (0, None)
