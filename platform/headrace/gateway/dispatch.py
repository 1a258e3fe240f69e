"""Which request goes to which instance, when, and what waits: never above an instance's concurrency.

A request that finds no free slot waits in its endpoint's queue; every slot that becomes free takes
one request out of it, the oldest first. Control is woken once for all that wait without capacity.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, Literal

from headrace import wire
from headrace.errors import EndpointNotFound
from headrace.gateway.answer import HOST_LOST
from headrace.gateway.attempt import Attempt
from headrace.gateway.call import Call
from headrace.gateway.circuit import Circuit
from headrace.gateway.endpoints import FULL_HOLD_S, EndpointState, Instance
from headrace.gateway.recent import KEPT, Recent
from headrace.gateway.refusals import circuit_error, failed_error, full_error
from headrace.gateway.reports import Reports
from headrace.gateway.room import make_room
from headrace.gateway.routing import Changes, RoutingTable
from headrace.gateway.telemetry import count_call
from headrace.gateway.turns import CONTENDED_S
from headrace.gateway.verdict import Why, whole_hosts, why_lost
from headrace.observe.tracing import Tracing

log = logging.getLogger("headrace.gateway")

Trouble = Literal["refused", "reset", "timeout"]
WAKE_AGAIN_S = 2.0
TROUBLE_HOLD_S = 1.0
"""Without control, an instance in trouble is left out for so long."""


class Dispatcher:
    """See the module. ``send`` gives a message to control, or drops it and says False.

    ``uncertain``: control has not said yet what died, since it is away or new.
    """

    def __init__(
        self,
        table: RoutingTable,
        send: Callable[[wire.AnyMessage], bool],
        uncertain: Callable[[], bool] = lambda: False,
    ) -> None:
        self._uncertain = uncertain
        self.loop = asyncio.get_running_loop()
        self._table = table
        self._send = send
        self._states: dict[str, EndpointState] = {}
        self._instances: dict[str, Instance] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self.reports = Reports(self.loop, send)
        self._holding = False
        self.on_room: Callable[[EndpointState], None] = _nobody
        """Hears of endpoints that may have a free slot and nobody in their queue."""
        self.recent: Recent = deque(maxlen=KEPT)
        """Requests that have ended."""
        self.tracing: Tracing | None = None
        self.on_finish: Callable[[Call], None] = count_call
        """Hears of every call that has come to its end."""

    # -- requests ---------------------------------------------------------------------------

    def state(self, key: str) -> EndpointState | None:
        """Run-time state of an endpoint of the table."""
        state = self._states.get(key)
        if state is None:
            route = self._table.endpoints.get(key)
            if route is None:
                return None
            state = self._states[key] = EndpointState(key, route)
        return state

    def states(self) -> list[EndpointState]:
        """All endpoints that were asked for, or have instances."""
        return list(self._states.values())

    def submit(self, call: Call) -> None:
        """Send the request to an instance, or let it wait, or fail it with the reason."""
        state = call.state
        self.reports.active(state)
        state.budget.earn()
        if not state.queue and not state.circuit.open:
            instance = state.pick(call.version)
            if instance is not None:
                self._assign(call, instance)
                return
        route = state.route
        if route.state == "failed" and self._hopeless(state, call.version):
            call.fail(failed_error(route))
        elif state.circuit.open and not state.circuit.lets_through(time.monotonic()):
            call.fail(circuit_error(state))
        elif not call.admitted and not self._room_for(call):
            call.fail(full_error(state))
        else:
            call.queue()
            state.queue.push(call)
            self._pump(state)

    def requeue(self, call: Call) -> None:
        """Put a request that was not answered back to where it was: ahead of all that came later."""
        call.queue()
        call.state.queue.push(call, front=True)
        self._pump(call.state)

    def hedge(self, call: Call) -> bool:
        """Send a second copy of a slow request elsewhere, when there is room and nobody waits for it."""
        state, first = call.state, call.live[0].instance
        if state.queue or state.circuit.open:
            return False
        instance = state.pick(call.version, (first.route.id,))
        if instance is None or instance is first or not state.budget.take_for_copy():
            return False
        self._start(call.second(instance), instance)
        return True

    def remove(self, call: Call) -> None:
        """The request does not want to wait any more."""
        state = call.state
        left = state.queue.remove(call)
        if call.alone:
            state.unreserve(call)
            self._pump(state)
        if left:
            self._end_episodes(state)

    def release(self, attempt: Attempt, *, answered: bool, refill: bool = True) -> None:
        """It does not run there any more; with ``refill`` its slot takes the next one."""
        instance, call = attempt.instance, attempt.call
        if attempt not in instance.running:
            return
        instance.running.discard(attempt)
        instance.in_flight -= 1
        state = call.state
        state.in_flight -= 1
        if not instance.in_flight:
            self.reports.idle(state)
        state.filed(instance)
        if state.circuit.probe is attempt:
            state.circuit.probe = None
        if instance.reserved is call:
            instance.reserved = None
        if instance.asking is attempt:
            instance.asking = None
        if answered and instance.full_until:
            instance.full_until = 0.0
        if not instance.usable and not instance.running and instance.route.id not in state.instances:
            self._instances.pop(instance.route.id, None)
        if refill:
            self.fill(state)

    def fill(self, state: EndpointState) -> None:
        """There may be a free slot."""
        if state.queue:
            self._pump(state)
        else:
            self.on_room(state)

    def trouble(self, instance: Instance, what: Trouble, detail: str) -> None:
        """It cannot be used: leave it out until control announces it again."""
        if instance.usable:
            self._unuse(instance)
            self._blame(instance)
            log.warning("instance %s of %s: %s (%s)", instance.route.id, instance.state.key, what, detail)
            if not self._send(
                wire.InstanceTrouble(instance=instance.route.id, what=what, detail=detail[:500])
            ):
                # Nobody is there to announce it again: it may have been a hiccup, so try it again later.
                self.loop.call_later(TROUBLE_HOLD_S, self._try_again, instance)

    def uncertain(self, instance: Instance) -> bool:
        """Whether control may yet say that the instance's host is dead: it is away, new, or suspects it."""
        return self._uncertain() or (instance.route.suspect and instance.route.id in instance.state.instances)

    def drains(self, instance: Instance) -> None:
        """It said that it takes nothing new."""
        self._unuse(instance)

    def full(self, instance: Instance) -> None:
        """It said that it is full, whatever we counted (another gateway uses it, too)."""
        now = time.monotonic()
        instance.contended_until = now + CONTENDED_S
        if instance.turn is not None:
            instance.full_until = math.inf
            return
        instance.full_until = now + FULL_HOLD_S
        self.loop.call_later(FULL_HOLD_S + 0.001, self._pump, instance.state)

    def stored(self, state: EndpointState, jobs: int, age_s: float) -> None:
        """So many jobs of the endpoint wait in the store: control hears of it, and wakes what is at zero."""
        state.stored, state.stored_age_s = jobs, age_s
        if not jobs:
            state.stored_woken = 0.0
            return
        self.reports.active(state)
        now = time.monotonic()
        if state.group(None) or now - state.stored_woken < WAKE_AGAIN_S:
            return
        self.reports.ahead()
        if self._send(wire.Wake(endpoint=state.key, queued=0, stored=jobs)):
            state.stored_woken = now

    def spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """Run something beside; it ends with the gateway."""
        task = self.loop.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # -- control ----------------------------------------------------------------------------

    def apply(self, changes: Changes) -> None:
        """The routing table changed."""
        touched: set[EndpointState] = set()
        for key in changes.endpoints:
            state = self._states.get(key)
            if state is not None:
                if state.route.version != self._table.endpoints[key].version:
                    state.circuit = Circuit()  # what the version before did says nothing of this one
                state.route = self._table.endpoints[key]
                touched.add(state)
        # Until the whole message is read, nothing is sent: not to what died in it, either.
        self._holding = True
        for route in changes.instances:
            state = self.state(route.endpoint)
            if state is not None:
                self._announce(state, route)
                touched.add(state)
        for route in changes.removed:
            if (instance := self._detach(route.id)) is not None:
                touched.add(instance.state)
        self._bury(changes.dead, changes.reasons, touched)
        for key in changes.removed_endpoints:
            state = self._states.pop(key, None)
            if state is not None:
                for call in state.queue.drain():
                    call.fail(EndpointNotFound(f"endpoint {key} was deleted."))
        for state in touched:
            state.regroup()
            self._fail_hopeless(state)
            self._pump(state)
            self.on_room(state)

    def announce_again(self, *, new_leader: bool) -> None:
        """The link to control is new: it must hear again who waits."""
        for state in self._states.values():
            if new_leader:
                state.tally.anew(time.monotonic())
            if state.queue:
                state.wakes.clear()
                self._wake(state)
            if state.in_flight or state.queue:
                self.reports.active(state)
        self.reports.all()

    def tick(self) -> None:
        """Every 0.5 s: report demand, wake again where nothing came."""
        for state in self.reports.waiting():
            self._pump(state)
        self.reports.all()

    async def close(self) -> None:
        """End all that is still under way."""
        self.reports.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for instance in self._instances.values():
            instance.close_idle()

    def in_use(self) -> tuple[int, int]:
        """Requests in flight and waiting."""
        return sum(s.in_flight for s in self._states.values()), sum(
            len(s.queue) for s in self._states.values()
        )

    # -- inside -----------------------------------------------------------------------------

    def _assign(self, call: Call, instance: Instance) -> None:
        attempt = call.claim(instance)
        if call.state.circuit.open:
            call.state.circuit.probe = attempt
        self._start(attempt, instance)

    def _start(self, attempt: Attempt, instance: Instance) -> None:
        instance.in_flight += 1
        instance.state.filed(instance)
        instance.used = True
        instance.running.add(attempt)
        attempt.call.state.in_flight += 1
        attempt.begin()

    def _pump(self, state: EndpointState) -> None:
        queue = state.queue
        while queue and not self._holding:
            if state.circuit.open and not state.circuit.lets_through(time.monotonic()):
                break
            if queue.alone and self._assign_alone(state):
                continue
            for call in queue.heads():
                instance = state.pick(call.version, call.avoid)
                if instance is not None:
                    queue.pop(call.version)
                    self._assign(call, instance)
                    break
            else:
                break
        self._end_episodes(state)
        if queue and not self._holding:
            self._wake(state)

    def _assign_alone(self, state: EndpointState) -> bool:
        for call in state.queue.alone:
            instance = state.pick_alone(call)
            if instance is not None:
                state.queue.remove(call)
                self._assign(call, instance)
                return True
        return False

    def _room_for(self, call: Call) -> bool:
        """Whether the queue has a place; a greedy key's youngest requests make room for another key's."""
        others = make_room(call.state, call.key, call.size)
        for other in others or ():
            other.fail(full_error(call.state))
        return others is not None

    def _blame(self, instance: Instance) -> None:
        """It died under a request, or refused a connection: too many of those open the circuit."""
        state, now = instance.state, time.monotonic()
        if instance.blamed or instance.route.version != state.route.version:
            return
        instance.blamed = True
        if state.circuit.lost(instance.route.host, instance.since, now):
            log.warning("circuit of %s opens for %.1f s", state.key, state.circuit.until - now)
            for call in state.queue.drain() if state.circuit.hopeless else ():
                call.fail(circuit_error(state))
            self.loop.call_later(state.circuit.until - now + 0.001, self._pump, state)

    def _wake(self, state: EndpointState) -> None:
        now = time.monotonic()
        for version in state.queue.wanted():
            if state.group(version):
                continue
            last = state.wakes.get(version)
            if last is not None and now - last < WAKE_AGAIN_S:
                continue
            self.reports.ahead()
            if self._send(
                wire.Wake(endpoint=state.key, version=version, queued=state.queue.waiting(version))
            ):
                state.wakes[version] = now
                self.reports.woken(state)

    def _end_episodes(self, state: EndpointState) -> None:
        for version in [v for v in state.wakes if v not in state.queue.wanted()]:
            del state.wakes[version]

    def _hopeless(self, state: EndpointState, version: int | None) -> bool:
        return not state.group(version) and version in (None, state.route.version)

    def _try_again(self, instance: Instance) -> None:
        if instance.state.instances.get(instance.route.id) is instance and not instance.usable:
            instance.usable = True
            instance.state.regroup()
            self._pump(instance.state)

    def _announce(self, state: EndpointState, route: wire.InstanceRoute) -> None:
        instance = self._instances.get(route.id)
        if instance is None or instance.state is not state:
            instance = self._instances[route.id] = Instance(route, state)
        else:
            instance.update(route)
        state.instances[route.id] = instance
        state.budget.widen(instance.concurrency)
        state.regroup()
        state.wakes.clear()

    def _bury(
        self, routes: list[wire.InstanceRoute], reasons: dict[str, str], touched: set[EndpointState]
    ) -> None:
        dead = [i for route in routes if (i := self._instances.get(route.id)) is not None]
        lost_hosts = whole_hosts(dead, reasons)
        for instance in dead:
            self._detach(instance.route.id)
            touched.add(instance.state)
        # All of a dead host are out of the table before any of their requests looks for another place,
        # and the youngest goes back first, so that the oldest ends up in front.
        ended: list[tuple[Attempt, Why]] = []
        for instance in dead:
            reason = reasons.get(instance.route.id, "")
            why = why_lost(instance, reason, lost_hosts)
            ended.extend((attempt, why) for attempt in instance.running)
            charged, instance.losses = instance.losses, []
            if why == "own":
                if instance.running:
                    self._blame(instance)
                for attempt in charged:
                    attempt.call.losses.convicted(attempt, reason)
                continue
            if instance.blamed:
                instance.state.circuit.excused(instance.route.host)
            for attempt in charged:
                attempt.call.losses.excused(attempt)
        for attempt, why in sorted(ended, key=lambda item: item[0].call.order, reverse=True):
            detail = reasons.get(attempt.instance.route.id) or HOST_LOST
            attempt.call.lost(attempt, detail, why=why, began=attempt.began)
        self._holding = False

    def _fail_hopeless(self, state: EndpointState) -> None:
        if state.route.state != "failed":
            return
        for call in state.queue.drain():
            if self._hopeless(state, call.version):
                call.fail(failed_error(state.route))
            else:
                state.queue.push(call)

    def _detach(self, id: str) -> Instance | None:
        instance = self._instances.get(id)
        if instance is None:
            return None
        self._unuse(instance)
        instance.state.instances.pop(id, None)
        if not instance.running:
            del self._instances[id]
        return instance

    def _unuse(self, instance: Instance) -> None:
        instance.usable = False
        instance.state.filed(instance)
        instance.reserved = None
        instance.close_idle()
        instance.state.regroup()


def _nobody(_: EndpointState) -> None:
    """Nobody has jobs to run."""
