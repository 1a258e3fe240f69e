"""One lane per endpoint that has jobs: what waits in the store, what is leased, how much may be leased."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from headrace.gateway.endpoints import EndpointState
from headrace.jobs.model import Lease

if TYPE_CHECKING:
    from headrace.gateway.call import Call
    from headrace.gateway.jobs.sink import JobClient

SYNC_PREFIX = "sync:"
"""Sync calls with a key are stored under this and their endpoint's name: a queue of their own, which
neither purge nor the counts of an endpoint's jobs see. No endpoint's name holds a colon."""
LOOKAHEAD_S = 0.25
"""Jobs for so long a time are leased ahead, so that slots don't wait for the store."""
MAX_AHEAD = 128
SYNC_WINDOW = 512
GIVE_BACK_S = 10.0
"""A job that got no slot here for so long goes back to the store: for other gateways, and for what has come
before it in the order of the store meanwhile."""
MARK_FIRST_S = 1.0
"""A lease this old is looked at again before its job is sent: it may have been cancelled, or purged. Not that
of a sync call: its client is here, and a write would keep its slot waiting."""
MAX_UNSTORED = 512
"""Results whose storing is under way, per lane; with more, nothing new is leased."""
_NOT_BEGUN = ("refused", "not-accepted")


@dataclass(slots=True, eq=False)
class Run:
    """One leased job."""

    lease: Lease
    lane: Lane
    client: JobClient | None = None
    call: Call | None = None
    noted: str = ""
    """The instance that the store knows of."""
    settling: bool = False
    void: bool = False
    """Its fence is void: nothing of it may be stored."""
    pending: list[bytes] = field(default_factory=list)
    """Stream items on their way to the store."""
    batch: list[bytes] = field(default_factory=list)
    """Those that are being stored."""
    flushed: asyncio.Event = field(default_factory=asyncio.Event)
    seq: int = 0
    flushing: bool = False
    idempotent: bool = True
    leased_at: float = field(default_factory=time.monotonic)
    sent_at: float = 0.0
    """Since when (Unix epoch) an instance has it; 0: it waits."""
    marked: bool = False
    """The store knows that an instance has it, or gets it next."""
    asking: bool = False
    """Instances are asked whether they have kept the answer of an earlier attempt."""
    borrowed: int = 0
    """Bytes of the budget for large inputs."""

    @property
    def urgent(self) -> bool:
        """Whether it waits in the endpoint's queue at once, beside sync calls, and not behind them."""
        return self.lane.sync or self.lease.job.priority == "high"

    @property
    def queued(self) -> bool:
        """Whether it waits in the endpoint's queue."""
        return self.call is not None and self.call.phase == "queued"

    @property
    def accepted(self) -> bool:
        """Whether an instance may have begun with it, in this attempt."""
        attempts = self.call.attempts if self.call is not None else ()
        return any(a.sent_at and a.outcome not in _NOT_BEGUN for a in attempts)

    @property
    def marks_first(self) -> bool:
        """Whether the store must know of it before an instance gets it: what may run only once, and what
        may not be ours any more."""
        if self.marked:
            return False
        old = not self.lane.sync and time.monotonic() - self.leased_at > MARK_FIRST_S
        return old or not self.idempotent

    @property
    def instance(self) -> str:
        """Id of the instance that has, or had, the attempt; empty: none yet."""
        attempts = self.call.attempts if self.call is not None else ()
        return attempts[-1].instance.route.id if attempts else ""

    @property
    def key(self) -> tuple[str, int]:
        """What names it to the store."""
        return self.lease.job.id, self.lease.fence


@dataclass(slots=True, eq=False)
class Lane:
    """See the module."""

    project: str
    stored_as: str
    """The endpoint's name in the store."""
    waiting: int = 0
    """Queued jobs in the store as known last; hints are added to it."""
    oldest_at: float = 0.0
    hints: int = 0
    """Submissions heard of since the last look at the store."""
    urgent: int = 0
    """High-priority submissions heard of since the last lease."""
    held: deque[Run] = field(default_factory=deque)
    """Leased, waiting for a free slot."""
    sent: set[Run] = field(default_factory=set)
    """With the dispatcher."""
    settling: int = 0
    leasing: bool = False
    retry_at: float = 0.0
    missing_since: float = 0.0
    service_s: float = 0.0

    @property
    def sync(self) -> bool:
        """Whether these are sync calls."""
        return self.stored_as.startswith(SYNC_PREFIX)

    @property
    def key(self) -> str:
        """``project/name`` of the endpoint."""
        return f"{self.project}/{self.stored_as.removeprefix(SYNC_PREFIX)}"

    @property
    def idle(self) -> bool:
        """Whether nothing is left of it."""
        return not (self.waiting or self.held or self.sent or self.leasing or self.settling)

    def took(self, seconds: float) -> None:
        """A job has run so long."""
        self.service_s = seconds if not self.service_s else self.service_s * 0.8 + seconds * 0.2

    def want(self, state: EndpointState) -> int:
        """How many jobs to lease now."""
        if self.settling >= MAX_UNSTORED:
            return 0
        if self.sync:
            return SYNC_WINDOW - len(self.sent) - len(self.held)
        group = state.group(None)
        if not group or not state.circuit.lets_through(time.monotonic()):
            return 0
        slots = sum(i.concurrency for i in group)
        free = sum(max(0, i.concurrency - i.in_flight) for i in group)
        ahead = min(MAX_AHEAD, int(slots * LOOKAHEAD_S / self.service_s)) if self.service_s else 0
        held = len(self.held)
        # Sync calls that wait have taken all slots: one job has its turn among them.
        turn = 1 if state.queue and not held and not any(run.queued for run in self.sent) else 0
        if held > ahead // 2 and not self.urgent:
            return turn
        return max(turn, free + ahead - held, min(self.urgent, slots))

    def place(self, state: EndpointState) -> Run | None:
        """The next held job that may go to the dispatcher now.

        Without a free slot that is one at a time, to wait in the queue with the sync calls that are there: it
        comes after them, but has its share when it has waited for long.
        """
        if not self.held:
            return None
        run = self.held[0]
        if run.urgent:
            return run
        version = run.lease.job.version
        group = state.group(version)
        if version is not None and not group:
            return run
        now = time.monotonic()
        if not state.circuit.lets_through(now):
            return None
        if state.queue:
            return None if any(r.queued for r in self.sent if not r.urgent) else run
        return run if any(i.free(now) for i in group) else None

    def stale(self, now: float) -> list[Run]:
        """Held jobs that have found no free slot for `GIVE_BACK_S`."""
        return [run for run in self.held if not run.urgent and now - run.leased_at > GIVE_BACK_S]

    def hold(self, run: Run) -> None:
        """Put a leased job in its place: urgent ones in front, else in the order of the store."""
        if run.urgent:
            at = next((n for n, other in enumerate(self.held) if not other.urgent), len(self.held))
            self.held.insert(at, run)
        else:
            self.held.append(run)
