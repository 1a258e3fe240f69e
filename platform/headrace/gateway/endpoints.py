"""What the gateway knows at run time of an endpoint and its instances, and which instance comes next."""

from __future__ import annotations

import math
import random
import time
from typing import TYPE_CHECKING

from headrace import wire
from headrace.gateway.queue import WaitQueue
from headrace.gateway.upstream import Upstream, idle_usable

if TYPE_CHECKING:
    from headrace.gateway.call import Call

FULL_HOLD_S = 0.05
"""An instance that said "full" gets nothing for so long, or until one of its answers comes back."""


class Instance:
    """An instance in use: its connections, and what runs there from this gateway."""

    __slots__ = (
        "calls",
        "concurrency",
        "full_until",
        "idle",
        "in_flight",
        "route",
        "since",
        "state",
        "token_line",
        "usable",
        "used",
    )

    def __init__(self, route: wire.InstanceRoute, state: EndpointState) -> None:
        self.state = state
        self.route = route
        self.concurrency = max(1, route.concurrency)
        self.token_line = b"X-Headrace-Token: %b\r\n" % route.token.encode()
        self.in_flight = 0
        self.calls: set[Call] = set()
        self.idle: list[Upstream] = []
        self.since = time.monotonic()
        self.usable = True
        self.used = False
        """Whether it had a request since the last report."""
        self.full_until = 0.0

    def update(self, route: wire.InstanceRoute) -> None:
        """Control announced it again."""
        if route.address != self.route.address or route.token != self.route.token:
            self.close_idle()
        self.route = route
        self.concurrency = max(1, route.concurrency)
        self.token_line = b"X-Headrace-Token: %b\r\n" % route.token.encode()
        self.usable = True

    def free(self, now: float) -> bool:
        """Whether it may take one more now."""
        return self.in_flight < self.concurrency and now >= self.full_until

    def checkout(self) -> Upstream | None:
        """A kept connection that is still good."""
        idle = self.idle
        while idle:
            up = idle.pop()
            if idle_usable(up):
                return up
            up.close()
        return None

    def keep(self, up: Upstream) -> None:
        """Keep a connection for the next request."""
        if not self.usable or up.closed or len(self.idle) >= self.concurrency:
            up.close()
            return
        up.idle_since = time.monotonic()
        self.idle.append(up)

    def close_idle(self) -> None:
        """Close what is kept."""
        for up in self.idle:
            up.close()
        self.idle.clear()


class EndpointState:
    """One endpoint: its route, instances, queue and counters since the last report."""

    __slots__ = (
        "_groups",
        "failed",
        "finished",
        "in_flight",
        "instances",
        "key",
        "queue",
        "quiet",
        "route",
        "service",
        "service_s",
        "wakes",
    )

    def __init__(self, key: str, route: wire.EndpointRoute) -> None:
        self.key = key
        self.route = route
        self.instances: dict[str, Instance] = {}
        self.queue: WaitQueue[Call] = WaitQueue()
        self._groups: dict[int | None, list[Instance]] = {}
        self.wakes: dict[int | None, float] = {}
        """Version asked for -> when its wake was sent, in this episode."""
        self.in_flight = 0
        self.finished = 0
        self.failed = 0
        self.service_s = 0.0
        self.service = 0.0
        """Smoothed service time in seconds; 0: nothing finished yet."""
        self.quiet = True

    def regroup(self) -> None:
        """Instances or the current version changed."""
        self._groups.clear()

    def group(self, version: int | None) -> list[Instance]:
        """Instances that a request may go to now: the current version before others, suspects last."""
        group = self._groups.get(version)
        if group is None:
            group = self._groups[version] = self._best(version)
        return group

    def pick(self, version: int | None, avoid: str = "") -> Instance | None:
        """The less loaded of two random free instances (of all, when they are few); None: all are busy."""
        group = self.group(version)
        now = time.monotonic()
        if len(group) == 1:
            return group[0] if group[0].free(now) else None
        if len(group) > 4 and not avoid:
            one, two = random.sample(group, 2)
            best = one if one.in_flight <= two.in_flight else two
            if best.free(now):
                return best
        free = [i for i in group if i.free(now)]
        if avoid and len(free) > 1:
            free = [i for i in free if i.route.id != avoid]
        return min(free, key=lambda i: i.in_flight) if free else None

    def retry_after(self) -> int:
        """Seconds until the queue has probably drained."""
        slots = sum(i.concurrency for i in self.group(None)) or 1
        return min(60, max(1, math.ceil(len(self.queue) * (self.service or 1.0) / slots)))

    def why_waiting(self, version: int | None) -> str:
        """Where a queued request is, for people; the first word is for programs."""
        reason = f" ({self.route.reason})" if self.route.reason else ""
        if self.group(version):
            return f"queued behind {max(0, len(self.queue) - 1)} others for a busy endpoint{reason}"
        return f"waking its endpoint: no instance came{reason}"

    def count(self, seconds: float, ok: bool) -> None:
        """A request ended."""
        self.finished += 1
        self.service_s += seconds
        self.service = seconds if not self.service else self.service * 0.9 + seconds * 0.1
        if not ok:
            self.failed += 1

    def told(self) -> None:
        """Control has been told all of this: count anew."""
        self.finished = self.failed = 0
        self.service_s = 0.0
        for instance in self.instances.values():
            instance.used = instance.in_flight > 0

    def _best(self, version: int | None) -> list[Instance]:
        current = self.route.version if version is None else version
        ranks: list[list[Instance]] = [[], [], [], []]
        for instance in self.instances.values():
            if not instance.usable:
                continue
            other = instance.route.version != current
            if other and version is not None:
                continue
            ranks[2 * instance.route.suspect + other].append(instance)
        return next((rank for rank in ranks if rank), [])


def demand_of(state: EndpointState, now: float) -> wire.EndpointDemand:
    """The report of one endpoint since the last one."""
    oldest = state.queue.oldest()
    return wire.EndpointDemand(
        endpoint=state.key,
        in_flight=state.in_flight,
        queued=len(state.queue),
        oldest_wait_s=max(0.0, now - oldest) if oldest is not None else 0.0,
        finished=state.finished,
        failed=state.failed,
        service_s=state.service_s,
        instances={i.route.id: i.in_flight for i in state.instances.values() if i.in_flight or i.used},
    )
