"""One lane per endpoint that has jobs: what waits in the store, what is leased, how much may be leased."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from headrace.gateway.endpoints import EndpointState, Instance
from headrace.jobs.model import PRIORITY_RANK, Lease, Priority, Waiting

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
OUTRANKED_S = 2 * LOOKAHEAD_S
"""A job that was leased ahead has a slot by then, unless something has come between."""
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
    """When the store was asked for it."""
    sent_at: float = 0.0
    """Since when (Unix epoch) an instance has it; 0: it waits."""
    marked: bool = False
    """The store knows that an instance has it, or gets it next."""
    unmarking: asyncio.Event | None = None
    """The store is told that no instance has it; set when that is done."""
    asking: bool = False
    """Instances are asked whether they have kept the answer of an earlier attempt."""
    borrowed: int = 0
    """Bytes of the budget for large inputs."""

    @property
    def urgent(self) -> bool:
        """Whether it waits in the endpoint's queue at once, beside sync calls, and not behind them."""
        return self.lane.sync or self.lease.job.priority == "high"

    @property
    def rank(self) -> int:
        """Of its priority; 0 comes first."""
        return PRIORITY_RANK[self.lease.job.priority]

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
        if self.lane.purging or self.leased_at < self.lane.purged_at or not self.idempotent:
            return True
        return not self.lane.sync and time.monotonic() - self.leased_at > MARK_FIRST_S

    @property
    def purgeable(self) -> bool:
        """Whether a purge would take it although an instance has it, is about to get it, or has ended it."""
        if self.marked or self.void:
            return False
        # While its connection is made it is not sent, but nothing looks at the store any more.
        return bool(self.sent_at) or (not self.settling and bool(self.instance) and not self.queued)

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
    """Submissions heard of since the store was asked last."""
    urgent: int = 0
    """Of those in the store, the ones of high priority."""
    urgent_hints: int = 0
    """High-priority submissions among the hints."""
    held: deque[Run] = field(default_factory=deque)
    """Leased, waiting for a free slot."""
    sent: set[Run] = field(default_factory=set)
    """With the dispatcher."""
    settling: int = 0
    purging: int = 0
    """Purges under way: they remove what the store does not know of as sent."""
    purged_at: float = 0.0
    """When the last purge was over (monotonic): what was leased before may be gone."""
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
        busy = self.held or self.sent or self.leasing or self.settling or self.purging
        return not (self.waiting or busy)

    def took(self, seconds: float) -> None:
        """A job has run so long."""
        self.service_s = seconds if not self.service_s else self.service_s * 0.8 + seconds * 0.2

    def purged(self) -> None:
        """A purge is over."""
        self.purging -= 1
        self.purged_at = time.monotonic()

    def heard(self, priority: Priority) -> None:
        """A job was stored."""
        self.waiting += 1
        self.hints += 1
        if priority == "high":
            self.urgent += 1
            self.urgent_hints += 1

    def ask(self) -> None:
        """The store is asked now: its answer may not know of what is heard from here on."""
        self.hints = self.urgent_hints = 0

    def told(self, row: Waiting | None) -> None:
        """What waits in the store (None: nothing). A lease that is under way knows better."""
        if self.leasing:
            return
        self.waiting = max(row.queued if row else 0, self.hints)
        self.urgent = max(row.high if row else 0, self.urgent_hints)
        self.oldest_at = row.oldest_at if row else 0.0

    def took_over(self, want: int, leases: Sequence[Lease]) -> None:
        """So many were wanted, and these were leased."""
        all_high = len(leases) == want
        if all_high:
            self.waiting = max(0, self.waiting - want)
        else:
            self.waiting = self.hints
        if self.urgent:
            # High ones come first: with another one among them, there are no more.
            all_high = all_high and all(lease.job.priority == "high" for lease in leases)
            self.urgent = max(0, self.urgent - want) if all_high else self.urgent_hints

    def want(self, state: EndpointState) -> int:
        """How many jobs to lease now."""
        if self.settling >= MAX_UNSTORED:
            return 0
        if self.sync:
            return SYNC_WINDOW - len(self.sent) - len(self.held)
        group = state.group(None)
        now = time.monotonic()
        if not group or not state.circuit.lets_through(now):
            return 0
        slots = shared = free = doubtful = 0
        for instance in group:
            slots += instance.concurrency
            room = max(0, instance.concurrency - instance.in_flight)
            if _contended(instance, now):
                doubtful += room
                shared += instance.concurrency
            else:
                free += room
        # Of what is shared with other gateways we have half or less.
        ahead = 0
        if self.service_s:
            ahead = min(MAX_AHEAD, int((slots - shared / 2) * LOOKAHEAD_S / self.service_s))
        held, urgent = len(self.held), 0
        if state.queue or self.urgent:
            high, lame = self._high(state)
            # They don't stay behind what is held. Those that get no slot soon stay in the store, where every
            # gateway sees them.
            urgent = max(0, min(self.urgent, max(slots, ahead) - high, slots + MAX_AHEAD - high - lame))
            held += high
        if held > ahead // 2:
            return urgent
        # Sync calls that wait, or other gateways, have taken all slots: one job has its turn among them.
        waits = held or not (state.queue or doubtful) or any(run.queued for run in self.sent)
        return max(0 if waits else 1, free + ahead - held, urgent)

    def _high(self, state: EndpointState) -> tuple[int, int]:
        """High-priority jobs that wait in the endpoint's queue, or are about to; and those among them that
        insist on a version without instances, which keep none of the others away."""
        waits = [run for run in self.sent if not run.rank and (run.call is None or run.queued)]
        lame = 0
        for run in waits:
            version = run.lease.job.version
            lame += version is not None and not state.group(version)
        return len(waits) - lame, lame

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

    def stale(self, now: float, best: int | None = None) -> list[Run]:
        """Jobs to be given back: held ones that have found no free slot for `GIVE_BACK_S`, and any that waits
        here for longer than jobs are leased ahead while one of a better rank (``best``) is in the store."""
        found = [run for run in self.held if not run.urgent and now - run.leased_at > GIVE_BACK_S]
        if best is not None and not self.sync:
            waits = (*self.held, *(run for run in self.sent if run.queued and not run.accepted))
            found += [run for run in waits if run.rank > best and now - run.leased_at > OUTRANKED_S]
        return list(dict.fromkeys(found))

    def hold(self, run: Run) -> None:
        """Put a leased job in its place: urgent ones in front, else in the order of the store."""
        if run.urgent:
            at = next((n for n, other in enumerate(self.held) if not other.urgent), len(self.held))
            self.held.insert(at, run)
        else:
            self.held.append(run)


class Lanes:
    """All lanes of a gateway."""

    def __init__(self) -> None:
        self._lanes: dict[tuple[str, str], Lane] = {}
        self._by_key: dict[str, Lane] = {}

    def of(self, project: str, stored_as: str) -> Lane:
        """The lane, which is made when there is none."""
        lane = self._lanes.get((project, stored_as))
        if lane is None:
            lane = self._lanes[project, stored_as] = Lane(project, stored_as)
            if not lane.sync:
                self._by_key[lane.key] = lane
        return lane

    def get(self, project: str, stored_as: str) -> Lane | None:
        """The lane, if there is one."""
        return self._lanes.get((project, stored_as))

    def at(self, key: str) -> Lane | None:
        """The lane of an endpoint's jobs (not that of its sync calls), if there is one."""
        return self._by_key.get(key)

    def all(self) -> list[Lane]:
        """Those that there are now."""
        return list(self._lanes.values())

    def drop(self, lane: Lane) -> None:
        """Nothing is left of it."""
        del self._lanes[lane.project, lane.stored_as]
        if not lane.sync:
            self._by_key.pop(lane.key, None)


def _contended(instance: Instance, now: float) -> bool:
    """Whether other gateways fill it, too: slots that we don't use are not free then."""
    return now < instance.contended_until or now < instance.full_until
