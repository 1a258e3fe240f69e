"""Random interleavings of two workers, clients and a clock against the SQLite store and a small model."""

import asyncio
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from headrace.jobs.events import decode_event
from headrace.jobs.model import PRIORITY_RANK, NewJob, Payload, Result, Webhook
from headrace.jobs.sqlite import open_sqlite
from headrace.jobs.state import FINAL, RETRYABLE, may_move
from headrace.jobs.store import MAX_LOST
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

WORKERS = st.sampled_from(["w1", "w2"])
RECENT = st.integers(0, 4)
"""Which job or lease: counted back from the newest one, over all that there ever were."""
LEASE_S = 10.0


@dataclass
class Known:
    """What the model knows of a job."""

    id: str
    place: int
    """In the queue, among those of its rank: all have one key."""
    rank: int
    max_attempts: int
    ttl_s: float | None
    created_at: float
    deadline_at: float | None
    state: str = "queued"
    available_at: float = 0.0
    owner: str = ""
    until: float = 0.0
    attempts: int = 0
    counted: int = 0
    lost: int = 0
    lost_now: int = 0
    retried: int = 0
    expires_at: float = 0.0
    ends: list[int] = field(default_factory=list)
    sent: bool = False

    @property
    def waits(self):
        """Whether no instance has it, and it is not over."""
        return self.state == "queued" or (self.state == "running" and not self.sent)

    def move(self, state, now):
        assert may_move(self.state, state), f"{self.state} -> {state}"
        self.state = state
        self.sent = False
        if state in FINAL:
            self.ends.append(self.retried)
            self.expires_at = now + 60.0


class Jobs(RuleBasedStateMachine):
    @initialize()
    def start(self):
        self.loop = asyncio.new_event_loop()
        self.dir = Path(tempfile.mkdtemp(prefix="hr-jobs-"))
        self.stores = [self.do(open_sqlite(self.dir / "jobs.db")) for _ in range(2)]
        self.now = 1000.0
        self.known: dict[str, Known] = {}
        self.removed: list[Known] = []
        self.leases: list[tuple[str, int]] = []
        self.dropped = 0
        self.turn = self.places = 0
        for priority in ("normal", "low", "high"):
            self.submit(priority, 2, None, 1)

    def do(self, coroutine):
        return self.loop.run_until_complete(asyncio.wait_for(coroutine, 20))

    @property
    def store(self):
        # Alternately through two stores on one file, as two gateways are.
        self.turn += 1
        return self.stores[self.turn % 2]

    @rule(
        priority=st.sampled_from(["low", "normal", "high"]),
        max_attempts=st.integers(1, 3),
        ttl=st.sampled_from([None, None, 5.0, 30.0]),
        number=st.integers(1, 3),
    )
    def submit(self, priority, max_attempts, ttl, number):
        for _ in range(number):
            self.submit_one(priority, max_attempts, ttl)

    def submit_one(self, priority, max_attempts, ttl):
        order = len(self.known) + len(self.removed)
        new = NewJob(
            id=f"j{order}",
            project="p",
            endpoint="e",
            input=Payload(data=b"{}", size=2),
            priority=priority,
            max_attempts=max_attempts,
            ttl_s=ttl,
            retention_s=60.0,
            webhook=Webhook(url="https://example.org"),
        )
        _, is_new = self.do(self.store.submit(new, self.now))
        assert is_new
        self.known[new.id] = Known(
            id=new.id,
            place=self.next_place(),
            rank=PRIORITY_RANK[priority],
            max_attempts=max_attempts,
            ttl_s=ttl,
            created_at=self.now,
            deadline_at=None if ttl is None else self.now + ttl,
        )

    def next_place(self):
        self.places += 1
        return self.places

    def id_of(self, recent):
        return f"j{max(0, len(self.known) + len(self.removed) - 1 - recent)}"

    @rule(owner=WORKERS, limit=st.integers(0, 4))
    def lease(self, owner, limit):
        free = [
            k
            for k in self.known.values()
            if k.state == "queued"
            and k.available_at <= self.now
            and (k.deadline_at is None or k.deadline_at > self.now)
        ]
        expected = sorted(free, key=lambda k: (k.rank, k.place))[:limit]
        taken = self.do(
            self.store.lease(owner, "p", "e", limit=limit, now=self.now, until=self.now + LEASE_S)
        )
        assert [lease.job.id for lease in taken] == [k.id for k in expected]
        for k, lease in zip(expected, taken, strict=True):
            k.move("running", self.now)
            k.attempts += 1
            k.owner, k.until = owner, self.now + LEASE_S
            assert lease.fence == k.attempts
            self.leases.append((lease.job.id, lease.fence))

    def pick(self, recent):
        """A lease that was given once (none: one that never was), and the job that it still holds."""
        lease = self.leases[max(0, len(self.leases) - 1 - recent)] if self.leases else ("none", 1)
        k = self.known.get(lease[0])
        return lease, k if k is not None and k.state == "running" and k.attempts == lease[1] else None

    @rule(recent=RECENT, state=st.sampled_from(["succeeded", "failed", "cancelled", "timed_out"]))
    def finish(self, recent, state):
        lease, k = self.pick(recent)
        assert self.do(self.store.finish(*lease, Result(state=state), self.now)) == (k is not None)
        if k is None:
            self.dropped += 1
        else:
            k.move(state, self.now)

    @rule(owner=WORKERS, state=st.sampled_from(["succeeded", "failed", "timed_out"]), twice=st.booleans())
    def work(self, owner, state, twice):
        self.lease(owner, 2)
        self.finish(1, state)
        if twice:
            self.finish(1, "succeeded")
        if state in RETRYABLE:
            self.retry(0, True)

    @rule(recent=RECENT, lost=st.booleans(), delay=st.sampled_from([0.0, 0.0, 7.0]))
    def release(self, recent, lost, delay):
        lease, k = self.pick(recent)
        done = self.do(self.store.release(*lease, self.now, reason="r", lost=lost, delay_s=delay))
        assert done == (k is not None)
        if k is not None:
            self.ended_without_result(k, lost, delay)

    def ended_without_result(self, k, lost, delay):
        k.lost += lost
        k.lost_now += lost
        k.counted += not lost
        over = k.counted >= k.max_attempts or k.lost_now >= MAX_LOST
        k.move("failed" if over else "queued", self.now)
        k.available_at = self.now + delay

    @rule(recent=RECENT, owner=WORKERS, fresh=st.booleans())
    def heartbeat(self, recent, owner, fresh):
        if fresh:
            self.lease(owner, 1)
            owner = "w2" if owner == "w1" else owner
        lease, k = self.pick(recent)
        valid = k is not None and k.owner == owner
        gone = self.do(self.store.heartbeat(owner, [lease], self.now + LEASE_S))
        assert list(gone) == ([] if valid else [lease[0]])
        if valid:
            k.until = self.now + LEASE_S

    @rule(recent=RECENT)
    def append(self, recent):
        lease, k = self.pick(recent)
        held = k is not None
        assert self.do(self.store.append(*lease, 0, [b"%d" % lease[1]])) == held
        if held:
            assert [c.data for c in self.do(self.store.chunks(lease[0]))] == [b"%d" % lease[1]]

    @rule(recent=RECENT)
    def cancel(self, recent):
        job = self.id_of(recent)
        found = self.do(self.store.cancel("p", job, self.now))
        k = self.known.get(job)
        assert (found is None) == (k is None)
        if k is not None and k.state in ("queued", "running"):
            k.move("cancelled", self.now)

    @rule(recent=RECENT, dead=st.booleans())
    def retry(self, recent, dead):
        found = [k.id for k in self.known.values() if k.state in RETRYABLE]
        job = found[-1 - recent % len(found)] if found and dead else self.id_of(recent)
        found = self.do(self.store.retry("p", job, self.now))
        k = self.known.get(job)
        assert (found is None) == (k is None)
        if k is not None and k.state in RETRYABLE:
            k.move("queued", self.now)
            k.retried += 1
            k.counted = k.lost_now = 0
            k.place = self.next_place()
            k.available_at = self.now
            k.deadline_at = None if k.ttl_s is None else self.now + k.ttl_s

    @rule(owner=WORKERS)
    def worker_is_gone(self, owner):
        held = [k for k in self.known.values() if k.state == "running" and k.owner == owner]
        assert self.do(self.store.release_owner(owner, self.now)) == len(held)
        for k in held:
            self.ended_without_result(k, True, 0.0)

    @rule(recent=RECENT)
    def send(self, recent):
        (job_id, fence), k = self.pick(recent)
        assert self.do(self.store.note(job_id, fence, instance="i", sent_at=self.now)) == (k is not None)
        if k is not None:
            k.sent = True

    @rule(really=st.integers(0, 3))
    def purge(self, really):
        if really != 3:
            return
        queued = [k for k in self.known.values() if k.waits]
        assert self.do(self.store.purge("p", "e", self.now)) == len(queued)
        for k in queued:
            self.removed.append(self.known.pop(k.id))

    @rule(seconds=st.sampled_from([1.0, 6.0, 11.0, 11.0, 61.0]))
    def time_passes(self, seconds):
        self.now += seconds

    @rule()
    def sweep(self):
        assert self.do(self.store.sweep(self.now)) == []
        for k in list(self.known.values()):
            if k.state in ("queued", "running") and k.deadline_at is not None and k.deadline_at <= self.now:
                k.move("timed_out", self.now)
            elif k.state == "running" and k.until <= self.now:
                self.ended_without_result(k, True, 0.0)
            elif k.state in FINAL and k.expires_at <= self.now:
                self.removed.append(self.known.pop(k.id))

    @rule()
    def reopen(self):
        self.do(self.stores[0].close())
        self.stores[0] = self.do(open_sqlite(self.dir / "jobs.db"))

    @invariant()
    def the_store_is_as_the_model(self):
        if not hasattr(self, "stores"):
            return
        found, _ = self.do(self.store.list("p", limit=1000))
        assert {j.id for j in found} == set(self.known), "jobs were lost or came from nowhere"
        for job in found:
            k = self.known[job.id]
            assert (job.state, job.attempts, job.lost, job.retried) == (
                k.state,
                k.attempts,
                k.lost,
                k.retried,
            )
            assert (job.finished_at is not None) == (job.state in FINAL)
            assert job.created_at == k.created_at
            assert len(k.ends) == len(set(k.ends)), "two ends in one generation"
        counts = self.do(self.store.counts("p", "e"))
        shown = ["queued" if k.waits else k.state for k in self.known.values()]
        for state in ("queued", "running", "succeeded", "failed", "cancelled", "timed_out"):
            assert getattr(counts, state) == shown.count(state), state
        assert self.do(self.store.dropped()) == self.dropped

    def teardown(self):
        if not hasattr(self, "stores"):
            return
        try:
            due = self.do(self.store.due("s", self.now + 1, self.now + 2, 10_000))
            told = sorted((d.job, decode_event(d.body).job.retried) for d in due)
            every = [*self.known.values(), *self.removed]
            assert told == sorted((k.id, generation) for k in every for generation in k.ends)
        finally:
            for store in self.stores:
                self.do(store.close())
            self.loop.run_until_complete(self.loop.shutdown_default_executor())
            self.loop.close()
            shutil.rmtree(self.dir)


Jobs.TestCase.settings = settings(
    max_examples=25,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
TestJobsKeepTheModel = Jobs.TestCase
