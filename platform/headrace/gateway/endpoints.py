"""What the gateway knows at run time of an endpoint and its instances, and which instance comes next."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING

from headrace import wire
from headrace.gateway.balance import Quantile, Rate, ServiceTime, best, latest
from headrace.gateway.circuit import Circuit, RetryBudget
from headrace.gateway.queue import WaitQueue
from headrace.gateway.room import Coming
from headrace.gateway.tally import Tally
from headrace.gateway.upstream import Upstream, idle_usable
from headrace.observe.metrics import Meter

if TYPE_CHECKING:
    from headrace.gateway.attempt import Attempt
    from headrace.gateway.call import Call
    from headrace.gateway.turns import Turn

FULL_HOLD_S = 0.05
"""An instance that said "full" gets nothing for so long, or until one of its answers comes back."""


class Instance:
    """An instance in use: its connections, and what runs there from this gateway."""

    __slots__ = (
        "asking",
        "blamed",
        "broken",
        "concurrency",
        "contended_until",
        "full_until",
        "greeted",
        "idle",
        "in_flight",
        "losses",
        "reserved",
        "route",
        "running",
        "since",
        "speed",
        "state",
        "target",
        "token_line",
        "turn",
        "usable",
        "used",
    )

    def __init__(self, route: wire.InstanceRoute, state: EndpointState) -> None:
        self.state = state
        self.route = route
        self.concurrency = max(1, route.concurrency)
        self.target = route.target
        self.token_line = b"X-Headrace-Token: %b\r\n" % route.token.encode()
        self.in_flight = 0
        self.running: set[Attempt] = set()
        self.losses: list[Attempt] = []
        """Attempts that broke off here and were charged to their requests, until control says why."""
        self.reserved: Call | None = None
        """Takes nothing but this request, which runs with no neighbour."""
        self.blamed = False
        """Whether its trouble counted for the endpoint's circuit."""
        self.broken = (0, 0.0)
        """How many were lost when it broke, and how long the first of them had run by then."""
        self.greeted = False
        """Whether its start was counted as a cold start."""
        self.speed = ServiceTime()
        self.idle: list[Upstream] = []
        self.since = time.monotonic()
        self.usable = True
        self.used = False
        """Whether it had a request since the last report."""
        self.full_until = 0.0
        self.contended_until = 0.0
        """Other gateways keep it full, too: until then requests may ask for a turn."""
        self.asking: Attempt | None = None
        self.turn: Turn | None = None
        """One of ours has asked, or waits for its turn; there is never more than one."""

    def update(self, route: wire.InstanceRoute) -> None:
        """Control announced it again."""
        if route.address != self.route.address or route.token != self.route.token:
            self.close_idle()
        self.route = route
        self.concurrency = max(1, route.concurrency)
        self.target = route.target
        self.token_line = b"X-Headrace-Token: %b\r\n" % route.token.encode()
        self.usable = True
        if not route.suspect:
            self.blamed = False
            self.broken = (0, 0.0)
            losses, self.losses = self.losses, []
            for attempt in losses:
                attempt.call.losses.survived(attempt)

    def breaks(self, lost: Attempt) -> None:
        """The attempt was lost here: what else runs here will be, too, if it died."""
        if not self.broken[0]:
            now = time.monotonic()
            began = min(a.sent_at or now for a in (lost, *self.running))
            self.broken = (1 + self.in_flight, now - began)

    def free(self, now: float) -> bool:
        """Whether it may take one more now."""
        return self.in_flight < self.concurrency and self.reserved is None and now >= self.full_until

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
        if self.turn is not None:
            self.turn.stop()


class EndpointState:
    """One endpoint: its route, instances, queue and counters since the last report."""

    __slots__ = (
        "_groups",
        "_hedge_times",
        "_rate",
        "budget",
        "circuit",
        "coming",
        "failed",
        "filling",
        "finished",
        "held",
        "idle",
        "in_flight",
        "instances",
        "key",
        "meter",
        "queue",
        "quiet",
        "route",
        "service",
        "service_s",
        "stored",
        "stored_age_s",
        "stored_woken",
        "tally",
        "wakes",
    )

    def __init__(self, key: str, route: wire.EndpointRoute) -> None:
        self.key = key
        self.route = route
        self.instances: dict[str, Instance] = {}
        self.idle: dict[Instance, None] = {}
        """Those that were used and are idle now, the one used last at the end."""
        self.filling: dict[Instance, None] = {}
        """Those in use with fewer requests than they are to have, the one used last at the end."""
        self.queue: WaitQueue[Call] = WaitQueue()
        self.coming = Coming()
        self.circuit = Circuit()
        self.meter = Meter()
        self.tally = Tally()
        self.budget = RetryBudget()
        self._rate = Rate()
        self._hedge_times: Quantile | None = None
        self._groups: dict[int | None, list[Instance]] = {}
        self.wakes: dict[int | None, float] = {}
        """Version asked for -> when its wake was sent, in this episode."""
        self.in_flight = 0
        self.finished = 0
        self.failed = 0
        self.service_s = 0.0
        self.service = 0.0
        """Smoothed service time in seconds, of answers that were no errors; 0: there was none yet."""
        self.quiet = True
        self.held = 0
        """Jobs that this gateway has leased and that wait here for a free slot."""
        self.stored = 0
        """Jobs in the store that nobody has leased."""
        self.stored_age_s = 0.0
        self.stored_woken = 0.0

    def regroup(self) -> None:
        """Instances or the current version changed."""
        self._groups.clear()

    def group(self, version: int | None) -> list[Instance]:
        """Instances that a request may go to now: the current version before others, suspects last."""
        group = self._groups.get(version)
        if group is None:
            group = self._groups[version] = self._best(version)
        return group

    def pick(self, version: int | None, avoid: tuple[str, ...] = ()) -> Instance | None:
        """The one used last of those that are not full yet, then of the idle ones; else the better of two
        random ones (of all, if they are few).

        Full is who has as many requests as the autoscaler reckons with (`wire.InstanceRoute.target`). So
        those that are too many become and stay idle, and can be released. None: all are busy.
        """
        group = self.group(version)
        now = time.monotonic()
        if len(group) == 1:
            return group[0] if group[0].free(now) else None
        if group and not avoid:
            for choice in (self.filling, self.idle):
                if choice:
                    found = latest(choice, group[0].route, now, self.service)
                    if found is not None:
                        return found
        return best(group, now, self.service, avoid)

    def filed(self, instance: Instance) -> None:
        """How many requests it has has changed: what `pick` goes by."""
        has = instance.in_flight
        if has or not instance.usable:
            self.idle.pop(instance, None)
        else:
            self.idle[instance] = None
        if instance.target > 1:
            self.filling.pop(instance, None)
            if 0 < has < instance.target and instance.usable:
                self.filling[instance] = None

    def pick_alone(self, call: Call) -> Instance | None:
        """An instance where nothing runs, reserved for the call; else one is kept free of new requests."""
        group = self.group(call.version)
        mine = next((i for i in group if i.reserved is call), None)
        if mine is None:
            choice = [i for i in group if i.reserved is None and i.route.id not in call.avoid]
            choice = choice or [i for i in group if i.reserved is None]
            if not choice:
                return None
            mine = min(choice, key=lambda i: i.in_flight)
            # One at a time is emptied; those that are empty anyway are taken as they are.
            if mine.in_flight and any(i.reserved is not None and i.in_flight for i in group):
                return None
            mine.reserved = call
        now = time.monotonic()
        return mine if not mine.in_flight and now >= mine.full_until else None

    def unreserve(self, call: Call) -> None:
        """The call does not run alone any more, or will not."""
        for instance in self.instances.values():
            if instance.reserved is call:
                instance.reserved = None

    def hedge_delay(self) -> float:
        """Seconds after which a second copy goes out; 0: none."""
        route = self.route
        if route.hedge_quantile:
            return (self._hedge_times.get() or 0.0) if self._hedge_times is not None else 0.0
        return route.hedge_after_s

    def retry_after(self) -> int:
        """Seconds until the queue has probably drained: as fast as of late, else by the service time."""
        waiting = len(self.queue) + self.coming.requests
        rate = self._rate.get(time.monotonic())
        if rate:
            return min(60, max(1, math.ceil(waiting / rate)))
        slots = sum(i.concurrency for i in self.group(None)) or 1
        return min(60, max(1, math.ceil(waiting * (self.service or 1.0) / slots)))

    def why_waiting(self, version: int | None) -> str:
        """Where a queued request is, for people; the first word is for programs."""
        reason = f" ({self.route.reason})" if self.route.reason else ""
        if self.circuit.open:
            return (
                "queued until one request has shown that the endpoint works again: its instances kept failing"
                + reason
            )
        group = self.group(version)
        if not group:
            return f"waking its endpoint: no instance came{reason}"
        slots = sum(i.concurrency for i in group)
        return (
            f"queued behind {max(0, len(self.queue) - 1)} others for a busy endpoint "
            f"({len(group)} instances, {slots} slots){reason}"
        )

    def count(self, seconds: float, ok: bool, now: float) -> None:
        """A request ended."""
        self._rate.count(now)
        quantile = self.route.hedge_quantile
        if quantile and ok:
            if self._hedge_times is None or self._hedge_times.q != quantile:
                self._hedge_times = Quantile(quantile)
            self._hedge_times.add(seconds)
        self.finished += 1
        self.service_s += seconds
        self.tally.serve(seconds)
        if not ok:
            self.failed += 1
        else:
            self.service = seconds if not self.service else self.service * 0.9 + seconds * 0.1

    def told(self) -> None:
        """Control has been told all of this: count anew."""
        self.finished = self.failed = 0
        self.service_s = 0.0
        self.tally.told()
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
        queued=len(state.queue) + state.held,
        named=state.queue.named(),
        stored=state.stored,
        oldest_wait_s=max(0.0, state.stored_age_s, now - oldest if oldest is not None else 0.0),
        finished=state.finished,
        failed=state.failed,
        service_s=state.service_s,
        arrived=state.tally.arrived,
        demand_s=state.tally.demand_s(now, state.held),
        served=state.tally.served(),
        instances={i.route.id: i.in_flight for i in state.instances.values() if i.in_flight or i.used},
    )
