"""Checks of webhook events: queued with the move that causes them, delivered at least once."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

from headrace.jobs.conformance_bench import LEASE_S, PROJECT, Bench, Harness, failed, opened, succeeded
from headrace.jobs.events import decode_event
from headrace.jobs.model import Delivery, Webhook

URL = "https://example.org/hook"
ALL = Webhook(url=URL, events=("start", "output", "completed"))
DEFAULT = Webhook(url=URL)


async def _due(bench: Bench, owner: str = "s1", limit: int = 100) -> Sequence[Delivery]:
    # Chunks come without the caller's clock: whichever is later counts as now.
    return await bench.store.due(owner, max(bench.now, time.time()) + 1, bench.now + 1000, limit)


async def events_follow_the_moves(harness: Harness) -> None:
    """Start at the lease, completed at the end; each with the job as it was then, also after a reopening."""
    async with opened(harness) as bench:
        await bench.submit("a", webhook=ALL, data=b'{"secret": 1}', context={"x": 1})
        assert not await _due(bench), "an event before a move"
        lease = await bench.lease_one()
        (start,) = await _due(bench)
        assert (start.event, start.job, start.project, start.url) == ("start", "a", PROJECT, URL)
        event = decode_event(start.body)
        assert (event.event, event.job.state, event.job.context) == ("start", "running", {"x": 1})
        assert event.job.input.data == b"", "an event holds the input's data"
        assert event.job.input.size == 13
        bench.now += 1
        await bench.finish(lease, succeeded(b"y" * 5000))
        await bench.reopen()
        (completed,) = [d for d in await _due(bench) if d.event == "completed"]
        event = decode_event(completed.body)
        assert (event.job.state, event.job.finished_at) == ("succeeded", bench.now)
        assert event.job.output == succeeded(b"y" * 5000).output
        assert completed.id != start.id
        assert completed.tries == 1


async def events_default_to_completed(harness: Harness) -> None:
    """Without a filter only the end is told; without a webhook nothing is."""
    async with opened(harness) as bench:
        await bench.submit("a", webhook=DEFAULT)
        await bench.submit("b")
        for lease in await bench.lease():
            await bench.store.append(lease.job.id, lease.fence, 0, [b"c"])
            await bench.finish(lease)
        assert [(d.job, d.event) for d in await _due(bench)] == [("a", "completed")]


async def every_end_is_told(harness: Harness) -> None:
    """Failed, cancelled, timed-out, lost jobs are told as completed too; each end of a retried job once."""
    async with opened(harness) as bench:
        await bench.submit("failed", webhook=DEFAULT)
        await bench.finish(await bench.lease_one(), failed())
        await bench.submit("queued-cancelled", webhook=DEFAULT)
        await bench.store.cancel(PROJECT, "queued-cancelled", bench.now)
        await bench.store.cancel(PROJECT, "queued-cancelled", bench.now)
        await bench.submit("lost", webhook=DEFAULT, max_attempts=1)
        await bench.release(await bench.lease_one(), lost=False)
        await bench.submit("running-cancelled", webhook=DEFAULT)
        late = await bench.lease_one()
        await bench.store.cancel(PROJECT, "running-cancelled", bench.now)
        await bench.finish(late)
        await bench.submit("timed-out", webhook=DEFAULT, ttl_s=5.0)
        bench.now += 6
        await bench.store.sweep(bench.now)
        found = {d.job: decode_event(d.body).job.state for d in await _due(bench)}
        assert found == {
            "failed": "failed",
            "queued-cancelled": "cancelled",
            "lost": "failed",
            "running-cancelled": "cancelled",
            "timed-out": "timed_out",
        }, f"told: {found}"
        await bench.store.retry(PROJECT, "failed", bench.now)
        await bench.finish(await bench.lease_one())
        assert [(d.job, decode_event(d.body).job.state) for d in await _due(bench)] == [
            ("failed", "succeeded")
        ]


async def output_is_told_in_batches(harness: Harness) -> None:
    """Each append is one event with its items, for those that asked."""
    async with opened(harness) as bench:
        await bench.submit("a", webhook=Webhook(url=URL, events=("output",)))
        lease = await bench.lease_one()
        await bench.store.append("a", lease.fence, 0, [b"1", b"2"])
        await bench.store.append("a", lease.fence, 2, [b"3"])
        await bench.store.append("a", lease.fence, 2, [b"3"])
        await bench.finish(lease)
        found = [(d.event, decode_event(d.body).chunks) for d in await _due(bench)]
        assert sorted(found) == [("output", (b"1", b"2")), ("output", (b"3",))], f"told: {found}"


async def a_start_is_told_once(harness: Harness) -> None:
    """A rescheduled job does not start twice for its receiver; a retried one does."""
    async with opened(harness) as bench:
        await bench.submit("a", webhook=Webhook(url=URL, events=("start",)))
        for _ in range(3):
            await bench.release(await bench.lease_one(), lost=True)
        assert len(await _due(bench)) == 1
        await bench.finish(await bench.lease_one(), failed())
        await bench.store.retry(PROJECT, "a", bench.now)
        await bench.lease_one()
        assert len(await _due(bench)) == 1


async def a_delivery_comes_again_until_settled(harness: Harness) -> None:
    """Taken and not settled: again at ``until``. Settled: at the time that was told, or never; same id."""
    async with opened(harness) as bench:
        await bench.submit("a", webhook=DEFAULT)
        await bench.store.cancel(PROJECT, "a", bench.now)
        now = bench.now
        store = bench.store
        (first,) = await store.due("s1", now, now + LEASE_S)
        assert not await store.due("s1", now + LEASE_S - 1, now + 99), "taken twice"
        (second,) = await store.due("s1", now + LEASE_S + 1, now + 2 * LEASE_S)
        assert (second.id, second.body, second.tries) == (first.id, first.body, 2)
        await store.settle(first.id, delivered=False, next_at=now + 500, detail="503")
        assert not await store.due("s1", now + 499, now + 600)
        (third,) = await store.due("s1", now + 501, now + 600)
        assert (third.id, third.tries) == (first.id, 3)
        await store.settle(first.id, delivered=True, next_at=None)
        assert not await store.due("s1", now + 9999, now + 10000), "delivered, and there again"
        await bench.submit("b", webhook=DEFAULT)
        await store.cancel(PROJECT, "b", now)
        (given_up,) = await store.due("s1", now, now + 1)
        await store.settle(given_up.id, delivered=False, next_at=None, detail="gone")
        assert not await store.due("s1", now + 9999, now + 10000), "given up, and there again"
        await store.settle("unknown", delivered=True, next_at=None)


async def what_was_not_delivered_is_told(harness: Harness) -> None:
    """Each event with its tries and what came of the last, until it is delivered or its job is gone."""
    async with opened(harness) as bench:
        store = bench.store
        await bench.submit("a", webhook=ALL, retention_s=10.0)
        await bench.submit("other", webhook=ALL)
        lease = await bench.lease(limit=1)
        assert [lease[0].job.id] == ["a"]
        assert [(u.event, u.tries, u.detail) for u in await store.undelivered("a")] == [("start", 0, "")]
        bench.now += 1
        await bench.finish(lease[0])
        start, completed = sorted(await _due(bench), key=lambda delivery: delivery.created_at)
        await store.settle(start.id, delivered=False, next_at=None, detail="HTTP 410")
        await store.settle(completed.id, delivered=False, next_at=bench.now + 50, detail="no answer")
        found = await bench.store.undelivered("a")
        assert [(u.event, u.tries, u.next_at, u.detail) for u in found] == [
            ("start", 1, None, "HTTP 410"),
            ("completed", 1, bench.now + 50, "no answer"),
        ], f"told: {found}"
        await store.settle(completed.id, delivered=True, next_at=None)
        assert [u.event for u in await store.undelivered("a")] == ["start"], "a delivered one is told"
        bench.now += 11
        await store.sweep(bench.now)
        assert not await store.undelivered("a"), "a given-up one outlives its job"
        assert not await store.undelivered("unknown")


async def two_senders_never_have_the_same(harness: Harness) -> None:
    """Two senders over two stores share the deliveries."""
    async with opened(harness) as bench:
        second = await bench.open()
        try:
            for i in range(40):
                await bench.submit(f"j{i}", webhook=DEFAULT)
                await bench.store.cancel(PROJECT, f"j{i}", bench.now)
            taken: list[str] = []

            async def send(turn: int) -> None:
                store = (bench.store, second)[turn % 2]
                while due := await store.due(f"s{turn}", bench.now, bench.now + 100, limit=3):
                    taken.extend(delivery.id for delivery in due)

            for _ in range(2):
                await asyncio.gather(*(send(turn) for turn in range(4)))
            assert len(taken) == len(set(taken)) == 40, f"{len(taken)} taken, {len(set(taken))} of them once"
        finally:
            await second.close()


async def deliveries_survive_their_job(harness: Harness) -> None:
    """What was not delivered yet is kept when the job is removed, and so is the blob that it names."""
    async with opened(harness) as bench:
        blob = "dd" * 32
        await bench.submit("a", webhook=DEFAULT, retention_s=10.0)
        await bench.finish(await bench.lease_one(), succeeded(blob=blob, size=1))
        bench.now += 11
        assert blob not in await bench.store.sweep(bench.now), "a webhook's output was given away"
        assert await bench.store.get(PROJECT, "a") is None
        (delivery,) = await bench.store.due("s", bench.now, bench.now + 10)
        assert decode_event(delivery.body).job.output is not None
        await bench.store.settle(delivery.id, delivered=True, next_at=None)
        assert blob in await bench.store.sweep(bench.now), "the output of a delivered webhook stays"
