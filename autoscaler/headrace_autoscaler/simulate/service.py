"""Requests: they arrive, wait, are served, give up, fail. Each ends exactly once."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from headrace_autoscaler.interface import Policy
from headrace_autoscaler.simulate.events import FINISH, GIVE_UP, Events
from headrace_autoscaler.simulate.fleet import BUSY, IDLE, Fleet, Instance
from headrace_autoscaler.simulate.scenario import Scenario

WAITING, RUNNING, DONE, FAILED = range(1, 5)
"""What may become of a request; 0: it has not arrived."""


class Service:
    """The requests of one run, by their index in the trace."""

    def __init__(self, scenario: Scenario, policy: Policy, fleets: Sequence[Fleet], events: Events) -> None:
        trace = scenario.trace
        self._events = events
        self._hear = policy.wakes
        self._hear_losses = policy.hears_losses
        self._timeout_s = scenario.timeout_s
        self._queue_cap = scenario.queue_cap
        self._retries = scenario.retries
        self._warm_up_s = scenario.warm_up_s
        self._fleet_of = [fleets[k] for k in trace.endpoints.tolist()]
        self._arrivals: list[float] = trace.arrivals.tolist()
        self._durations: list[float] = trace.durations.tolist()
        self._attempts: dict[int, int] = {}
        self.status = bytearray(len(self._durations))
        self.cold = bytearray(len(self._durations))
        self.waits = [0.0] * len(self._durations)
        self.first_waits: dict[int, float] = {}
        """Arrival to the first start of those that were run again."""
        self.errors: dict[str, int] = {}
        self.woken: dict[Fleet, None] = {}
        """Endpoints that the policy shall look at, now."""
        self.drained: Callable[[float, Instance], None]
        """What to do with an instance whose last request is done while it drains; `Nodes` says it."""

    def arrive(self, now: float, request: int) -> None:
        """Serve it, or let it wait."""
        fleet = self._fleet_of[request]
        fleet.count(now)
        fleet.arrived += 1
        if fleet.free or fleet.leaving:
            self._serve_first(now, fleet, request)
        elif self._queue_cap is not None and fleet.queued >= self._queue_cap:
            self._fail(request, "queue-full")
        else:
            fleet.queue.append(request)
            self._wait(now, fleet, request)

    def ready(self, now: float, one: Instance) -> None:
        """A new instance takes what waits."""
        fleet = one.fleet
        fleet.count(now)
        while fleet.queued and len(one.running) < fleet.concurrency:
            request = self._next(fleet)
            self.cold[request] = 1
            self._serve(now, fleet, request, one)
        if len(one.running) < fleet.concurrency:
            fleet.put(one)

    def again(self, now: float, lost: Sequence[int]) -> None:
        """Run requests again whose instances are gone, before those that wait; or give them up."""
        behind: list[int] = []
        for request in sorted(lost):
            attempts = self._attempts[request] = self._attempts.get(request, 0) + 1
            fleet = self._fleet_of[request]
            self.first_waits.setdefault(request, self.waits[request])
            self.cold[request] = 0
            if attempts > self._retries:
                self._fail(request, "lost")
            elif fleet.free or fleet.leaving:
                self._serve_first(now, fleet, request)
            else:
                behind.append(request)
        for request in reversed(behind):
            fleet = self._fleet_of[request]
            fleet.queue.appendleft(request)
            self._wait(now, fleet, request)

    def lost(self, fleet: Fleet) -> None:
        """It lost an instance, or will, or gets none that was launched."""
        if self._hear_losses:
            self.woken[fleet] = None

    def close(self, fleet: Fleet) -> None:
        """At the end: who waits fails, who runs is served."""
        while fleet.queued:
            self._fail(self._next(fleet), "unserved")
        for one in fleet.instances.values():
            for request in one.running:
                self.status[request] = DONE

    def _wait(self, now: float, fleet: Fleet, request: int) -> None:
        fleet.queued += 1
        self.status[request] = WAITING
        if self._timeout_s is not None:
            attempt = self._attempts.get(request, 0)
            self._events.put(now + self._timeout_s, GIVE_UP, self._on_give_up, fleet, request, b=attempt)
        if self._hear == "queued" or (self._hear == "from-zero" and not fleet.alive()):
            self.woken[fleet] = None

    def _serve_first(self, now: float, fleet: Fleet, request: int) -> None:
        """By the free instance that was used last; by one that is to be taken away only if no other is."""
        slots = fleet.free or fleet.leaving
        one = next(reversed(slots))
        if len(one.running) + 1 >= fleet.concurrency:
            del slots[one]
        self._serve(now, fleet, request, one)

    def _serve(self, now: float, fleet: Fleet, request: int, one: Instance) -> None:
        one.turn(now, BUSY)
        done = now + self._durations[request]
        one.running[request] = done
        one.last_used_at = now
        fleet.changed(one)
        fleet.in_flight += 1
        self.status[request] = RUNNING
        self.waits[request] = now - self._arrivals[request]
        self._events.put(done, FINISH, self._on_finish, one, request)

    def _on_finish(self, now: float, on: Instance, request: int, _: int) -> None:
        if request not in on.running:
            return  # It was lost with its instance.
        fleet = on.fleet
        fleet.count(now)
        del on.running[request]
        fleet.in_flight -= 1
        fleet.served.append(self._durations[request])
        self.status[request] = DONE
        on.last_finish = on.last_used_at = now
        fleet.changed(on)
        if on.state == "draining":
            if not on.running:
                self.drained(now, on)
        elif fleet.queued:
            self._serve(now, fleet, self._next(fleet), on)
        else:
            if not on.running:
                on.turn(now, IDLE)
            fleet.put(on)

    def _next(self, fleet: Fleet) -> int:
        """Take the request off the queue whose turn it is."""
        fleet.queued -= 1
        request = fleet.queue.popleft()
        self._trim(fleet)
        return request

    def _trim(self, fleet: Fleet) -> None:
        """Let the queue begin with one that still waits."""
        while fleet.queue and self.status[fleet.queue[0]] != WAITING:
            fleet.queue.popleft()

    def _on_give_up(self, now: float, on: Fleet, request: int, attempt: int) -> None:
        if self.status[request] != WAITING or self._attempts.get(request, 0) != attempt:
            return
        on.count(now)
        on.queued -= 1
        self._fail(request, "timeout")
        self._trim(on)

    def _fail(self, request: int, reason: str) -> None:
        self.status[request] = FAILED
        if self._arrivals[request] >= self._warm_up_s:
            self.errors[reason] = self.errors.get(reason, 0) + 1
