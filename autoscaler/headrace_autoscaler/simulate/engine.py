"""Plays a scenario against a policy, by events on one heap. Deterministic by seed; see `run`.

At one moment first requests finish, then supplies come and go, then instances become ready, then waiting
requests give up, then new requests arrive, and at last the policy decides. It decides at its ticks, when
its last decision asked to look again, and (with the endpoints concerned only) when a request finds no
free instance; requests that come together are decided on together.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from heapq import heappop, heappush

import numpy as np

from headrace_autoscaler.interface import Policy
from headrace_autoscaler.simulate.fleet import (
    BUSY,
    HOUR_S,
    IDLE,
    PREEMPTED,
    STARTING,
    SUNK,
    Fleet,
    Instance,
    Site,
    scaling_of,
)
from headrace_autoscaler.simulate.look import Looker, sample, spent
from headrace_autoscaler.simulate.scenario import Cost, Result, Scenario, Supply
from headrace_autoscaler.spec import Action, Launch, Refill, Release, Start, Wait

FAILURE_TOLD_S = 5.0
"""Seconds until a launch that fails says so."""
MIN_LOOK_S = 0.001
"""A policy that asks to look again at once is looked at no sooner than this."""

_FINISH, _SUPPLY, _READY, _GIVE_UP = range(4)
_WAITING, _RUNNING, _DONE, _FAILED = range(1, 5)
_INF = math.inf

Handler = Callable[[float, "Fleet | Instance | Site", int, int], None]


def run(scenario: Scenario, policy: Policy, seed: int, *, timeline_step_s: float | None = None) -> Result:
    """Play the whole scenario. Equal arguments give equal results.

    Random draws depend on (seed, supply, how many were drawn there before) only, so that policies are
    compared on equal draws. It ends ``tail_s`` after the last arrival: nothing is decided after that,
    requests that run are finished (their instances' time is counted until then), and those that still
    wait are errors (``unserved``). A launch that fails is shown as starting for `FAILURE_TOLD_S`.
    A request's time-out is how long it waits at a time, so one that is run again has all of it again.

    Args:
        scenario: requests, supplies and limits.
        policy: what decides; its ``state`` is what the first decision is given.
        seed: not negative.
        timeline_step_s: seconds between samples of the timeline; None: no timeline. ``dollars:<supply>``
            is what was spent there until then.

    Raises:
        ValueError: the scenario does not hold together, or the policy did what makes no sense (an
            unknown endpoint, host or offer, or an action that is not simulated).
    """
    return _Run(scenario, policy, seed, timeline_step_s).play()


class _Run:
    def __init__(self, scenario: Scenario, policy: Policy, seed: int, timeline_step_s: float | None) -> None:
        _check(scenario, policy)
        trace = scenario.trace
        names, wishes = trace.names, scenario.wishes
        if len(wishes) == 1:
            wishes = wishes * len(names)
        self.scenario = scenario
        self.policy = policy
        self.seed = seed
        self.end = trace.end + scenario.tail_s
        self.arrivals: list[float] = [*trace.arrivals.tolist(), _INF]
        self.durations: list[float] = trace.durations.tolist()
        self.sites = [Site(s, i, seed, scenario.warm_up_s) for i, s in enumerate(scenario.supplies)]
        self.by_name = {site.name: site for site in self.sites}
        self.fleets = [
            Fleet(n, i, scaling_of(w, scenario.supplies))
            for i, (n, w) in enumerate(zip(names, wishes, strict=True))
        ]
        self.fleet_named = {fleet.name: fleet for fleet in self.fleets}
        self.fleet_of: list[Fleet] = [self.fleets[k] for k in trace.endpoints.tolist()]
        self.looker = Looker(self.fleets, self.sites, self.arrivals)
        requests = len(self.durations)
        self.status = bytearray(requests)
        self.cold = bytearray(requests)
        self.waits = [0.0] * requests
        self.attempts: dict[int, int] = {}
        self.errors: dict[str, int] = {}
        self.heap: list[tuple[float, int, int, Handler, Fleet | Instance | Site, int, int]] = []
        self.pushed = 0
        self.launches = 0
        self.starts = 0
        self.decisions = 0
        self.state = policy.state
        self.woken: dict[Fleet, None] = {}
        self.look_at = _INF
        self.hear = policy.wakes
        self.step = timeline_step_s
        self.timeline: dict[str, list[float]] = {}

    # The loop

    def play(self) -> Result:
        arrivals, heap, step, end = self.arrivals, self.heap, self.policy.tick_s, self.end
        for site in self.sites:
            self.plan(site)
        now = tick = sample_at = 0.0
        ticks = samples = following = 0
        if self.step is None:
            sample_at = _INF
        while True:
            coming = heap[0][0] if heap else _INF
            arrival = arrivals[following]
            coming = min(coming, arrival)
            look_at = self.look_at
            due = now if self.woken else (tick if tick < look_at else look_at)
            if sample_at <= due and sample_at < coming and sample_at <= end and self.step:
                sample(self.fleets, self.sites, sample_at, self.timeline)
                samples += 1
                sample_at = samples * self.step
                continue
            if due < coming:
                if due > end:
                    break
                now = due
                whole = tick <= now or look_at <= now
                if tick <= now:
                    ticks += 1
                    tick = ticks * step
                self.decide(now, whole)
                continue
            if coming > end:
                break
            now = coming
            if heap and heap[0][0] <= arrival:
                _, _, _, handle, on, a, b = heappop(heap)
                handle(now, on, a, b)
            else:
                self.arrive(now, following)
                following += 1
        return self.result()

    def push(
        self, at: float, order: int, handle: Handler, on: Fleet | Instance | Site, a: int = 0, b: int = 0
    ) -> None:
        self.pushed += 1
        heappush(self.heap, (at, order, self.pushed, handle, on, a, b))

    # Requests

    def arrive(self, now: float, request: int) -> None:
        fleet = self.fleet_of[request]
        fleet.count(now)
        fleet.arrived += 1
        if fleet.free:
            self.serve(now, fleet, request)
            return
        cap = self.scenario.queue_cap
        if cap is not None and fleet.queued >= cap:
            self.fail(request, "queue-full")
            return
        fleet.queue.append(request)
        self.wait(now, fleet, request)

    def wait(self, now: float, fleet: Fleet, request: int) -> None:
        fleet.queued += 1
        self.status[request] = _WAITING
        limit = self.scenario.timeout_s
        if limit is not None:
            attempt = self.attempts.get(request, 0)
            self.push(now + limit, _GIVE_UP, self.on_give_up, fleet, request, attempt)
        if self.hear == "queued" or (self.hear == "from-zero" and not fleet.alive()):
            self.woken[fleet] = None

    def serve(self, now: float, fleet: Fleet, request: int, by: Instance | None = None) -> None:
        """Run a request on the free instance that was used last; demand was counted up to now."""
        one = next(reversed(fleet.free)) if by is None else by
        running = one.running
        if one.doing != BUSY:
            self.turn(now, one, BUSY)
        done = now + self.durations[request]
        running[request] = done
        one.last_used_at = now
        if by is None:
            del fleet.free[one]
            if len(running) < fleet.concurrency:
                fleet.free[one] = None
        one.view = None
        fleet.instances_view = None
        fleet.in_flight += 1
        self.status[request] = _RUNNING
        self.waits[request] = now - self.arrivals[request]
        self.push(done, _FINISH, self.on_finish, one, request)

    def on_finish(self, now: float, on: Fleet | Instance | Site, request: int, _: int) -> None:
        assert isinstance(on, Instance)
        if request not in on.running:
            return
        fleet = on.fleet
        fleet.count(now)
        del on.running[request]
        fleet.in_flight -= 1
        fleet.served.append(self.durations[request])
        self.status[request] = _DONE
        on.last_finish = on.last_used_at = now
        on.view = None
        fleet.instances_view = None
        if on.state == "draining":
            if not on.running:
                self.finish(now, on)
            return
        if fleet.queued:
            self.serve(now, fleet, self.first(fleet), on)
            return
        if not on.running:
            self.turn(now, on, IDLE)
        fleet.free.pop(on, None)
        fleet.free[on] = None

    def first(self, fleet: Fleet) -> int:
        """Take the request off the queue whose turn it is."""
        fleet.queued -= 1
        queue, status = fleet.queue, self.status
        request = queue.popleft()
        while queue and status[queue[0]] != _WAITING:
            queue.popleft()
        return request

    def on_give_up(self, now: float, on: Fleet | Instance | Site, request: int, attempt: int) -> None:
        assert isinstance(on, Fleet)
        if self.status[request] != _WAITING or self.attempts.get(request, 0) != attempt:
            return
        on.count(now)
        on.queued -= 1
        self.fail(request, "timeout")
        while on.queue and self.status[on.queue[0]] != _WAITING:
            on.queue.popleft()

    def fail(self, request: int, reason: str) -> None:
        self.status[request] = _FAILED
        if self.arrivals[request] >= self.scenario.warm_up_s:
            self.errors[reason] = self.errors.get(reason, 0) + 1

    # Instances

    def turn(self, now: float, one: Instance, doing: int) -> None:
        site = one.site
        site.spend(one, now, one.doing)
        site.doing[one.doing] -= 1
        site.doing[doing] += 1
        one.doing = doing

    def create(self, now: float, fleet: Fleet, site: Site) -> None:
        """Start an instance, or begin one that will be refused."""
        refusal = site.refusal()
        if refusal and site.supply.owned:
            return
        self.launches += 1
        one = Instance(f"{site.name}-{self.launches}", fleet, site, now)
        fleet.instances[one.id] = one
        fleet.changed(one)
        if refusal:
            one.doomed = refusal
            self.push(now + FAILURE_TOLD_S, _READY, self.on_refused, one)
            return
        if now >= self.scenario.warm_up_s:
            self.starts += 1
        site.instances[one.id] = one
        site.doing[STARTING] += 1
        one.tier = site.tier(fleet.index)
        if site.supply.warm is not None:
            self.claim(now, site)
        site.loaded.add(fleet.index)
        if site.has_slots:
            one.slot = site.free_slots.pop(0)
            site.by_slot[one.slot] = one
        life = site.lifetimes.at(site.started)
        site.started += 1
        if now + life <= self.end:
            self.push(now + life, _SUPPLY, self.on_node_failed, one)
        site.changed()
        self.push(now + site.draw(one.tier), _READY, self.on_ready, one)

    def on_ready(self, now: float, on: Fleet | Instance | Site, _: int, __: int) -> None:
        assert isinstance(on, Instance)
        if on.state != "starting":
            return
        fleet = on.fleet
        fleet.count(now)
        self.turn(now, on, IDLE)
        on.state = "ready"
        on.ready_at = now
        fleet.changed(on)
        fleet.started(now - on.started_at)
        on.site.booted(now - on.started_at)
        while fleet.queued and len(on.running) < fleet.concurrency:
            request = self.first(fleet)
            self.cold[request] = 1
            self.serve(now, fleet, request, on)
        if len(on.running) < fleet.concurrency:
            fleet.free[on] = None

    def on_refused(self, now: float, on: Fleet | Instance | Site, _: int, __: int) -> None:
        assert isinstance(on, Instance)
        on.site.failed(now, on.doomed)
        if on.state == "starting":
            self.forget(on)

    def release(self, now: float, one: Instance) -> None:
        """Stop it; one that runs requests finishes them first."""
        if one.doomed:
            self.forget(one)
        elif one.running:
            one.state = "draining"
            one.fleet.free.pop(one, None)
            one.fleet.changed(one)
        else:
            self.finish(now, one)

    def finish(self, now: float, one: Instance) -> None:
        """Its time is over, and nothing that it did is lost."""
        one.site.spend(one, now, one.doing)
        self.leave(now, one)

    def lose(self, now: float, lost: Iterable[Instance]) -> None:
        """These are gone at once; what they ran is run again, at the head of the queue."""
        again: list[int] = []
        for one in lost:
            if one.doing == BUSY:
                # Until its last request that finished it was of use.
                one.site.spend(one, max(one.since, one.last_finish), BUSY)
            one.site.spend(one, now, IDLE if one.doing == IDLE else PREEMPTED)
            one.fleet.count(now)
            one.fleet.in_flight -= len(one.running)
            again += one.running
            one.running = {}
            self.leave(now, one)
        behind: list[int] = []
        for request in sorted(again):
            attempts = self.attempts[request] = self.attempts.get(request, 0) + 1
            fleet = self.fleet_of[request]
            self.cold[request] = 0
            if attempts > self.scenario.retries:
                self.fail(request, "lost")
            elif fleet.free:
                self.serve(now, fleet, request)
            else:
                behind.append(request)
        for request in reversed(behind):
            self.fleet_of[request].queue.appendleft(request)
            self.wait(now, self.fleet_of[request], request)

    def leave(self, now: float, one: Instance) -> None:
        """Take it out of all books; its time up to now is booked."""
        site = one.site
        site.close(one, now)
        site.doing[one.doing] -= 1
        del site.instances[one.id]
        if one.slot is not None:
            del site.by_slot[one.slot]
            site.free_slot(one.slot)
        site.changed()
        self.forget(one)

    def forget(self, one: Instance) -> None:
        one.state = "gone"
        fleet = one.fleet
        fleet.free.pop(one, None)
        del fleet.instances[one.id]
        fleet.changed(one)

    # Decisions

    def decide(self, now: float, whole: bool) -> None:
        fleets = self.fleets if whole else list(self.woken)
        self.woken.clear()
        observation = self.looker.look(now, fleets)
        outcome = self.policy.decide(now, observation, self.state, self.policy.config)
        self.decisions += 1
        self.state = outcome.state
        for action in outcome.actions:
            self.act(now, action)
        asked = outcome.look_again_at
        at = _INF if asked is None else max(asked, now + MIN_LOOK_S)
        # What concerned only some endpoints does not undo what the others asked for.
        self.look_at = at if whole else min(at, self.look_at)

    def act(self, now: float, action: Action) -> None:
        if isinstance(action, Wait):
            return
        if isinstance(action, Refill):
            self.refill(now, self.site(action.host, owned=True), action.count)
        elif isinstance(action, Release):
            one = self.fleet(action.endpoint).instances.get(action.instance)
            if one is not None and one.state != "draining":
                self.release(now, one)
        elif isinstance(action, Start):
            self.create(now, self.fleet(action.endpoint), self.site(action.host, owned=True))
        elif isinstance(action, Launch):
            self.create(now, self.fleet(action.endpoint), self.site(action.offer, owned=False))
        else:
            raise ValueError(f"{self.policy.name} asks for what is not simulated: {action}")

    def fleet(self, name: str) -> Fleet:
        if name not in self.fleet_named:
            raise ValueError(f"{self.policy.name} names an endpoint that is not there: {name!r}")
        return self.fleet_named[name]

    def site(self, name: str, *, owned: bool) -> Site:
        site = self.by_name.get(name)
        if site is None or site.supply.owned != owned:
            what = "a host (Start needs the name of a home supply)" if owned else "an offer"
            raise ValueError(f"{self.policy.name} names {what} that is not there: {name!r}")
        return site

    # Supplies

    def plan(self, site: Site) -> None:
        """Put all that happens to a supply by itself on the heap."""
        supply = site.supply
        for begin, until in supply.outages:
            self.push(begin, _SUPPLY, self.on_outage, site, 1)
            self.push(until, _SUPPLY, self.on_outage, site, -1)
        if supply.availability is not None:
            for at, there in zip(supply.availability.times, supply.availability.values, strict=True):
                self.push(at, _SUPPLY, self.on_availability, site, there)
        for slot, lives in enumerate(site.slot_lifetimes):
            self.push(lives.at(0), _SUPPLY, self.on_slot_failed, site, slot, 0)

    def on_outage(self, now: float, on: Fleet | Instance | Site, change: int, _: int) -> None:
        assert isinstance(on, Site)
        on.outages += change
        on.changed()
        if change > 0:
            self.lose_all(now, on, f"{on.supply.provider} went away")

    def lose_all(self, now: float, site: Site, reason: str) -> None:
        if any(one.state == "starting" for one in site.instances.values()):
            site.failed(now, reason)
        self.lose(now, list(site.instances.values()))

    def on_availability(self, now: float, on: Fleet | Instance | Site, there: int, _: int) -> None:
        assert isinstance(on, Site)
        before, on.away = on.away, not there
        on.changed()
        if before or there:
            return
        on.preempted_at = now
        if any(one.state == "starting" for one in on.instances.values()):
            on.failed(now, "spot capacity went away during the start")
        gone = [one for one in on.instances.values() if one.state == "starting"]
        self.lose(now, gone)
        for one in list(on.instances.values()):
            if one.state == "ready":
                self.release(now, one)
            if one.state == "draining":
                self.push(now + on.supply.notice_s, _SUPPLY, self.on_taken, one)

    def on_taken(self, now: float, on: Fleet | Instance | Site, _: int, __: int) -> None:
        assert isinstance(on, Instance)
        if on.state != "gone":
            self.lose(now, (on,))

    def on_node_failed(self, now: float, on: Fleet | Instance | Site, _: int, __: int) -> None:
        assert isinstance(on, Instance)
        if on.state == "gone":
            return
        if on.state == "starting":
            on.site.failed(now, "its node failed during the start")
        self.lose(now, (on,))

    def on_slot_failed(self, now: float, on: Fleet | Instance | Site, slot: int, k: int) -> None:
        assert isinstance(on, Site)
        one = on.by_slot.get(slot)
        if one is not None:
            self.lose(now, (one,))
        on.free_slots.remove(slot)
        on.changed()
        self.push(now + on.supply.repair_s, _SUPPLY, self.on_slot_back, on, slot, k + 1)

    def on_slot_back(self, now: float, on: Fleet | Instance | Site, slot: int, k: int) -> None:
        assert isinstance(on, Site)
        on.free_slot(slot)
        on.changed()
        self.push(now + on.slot_lifetimes[slot].at(k), _SUPPLY, self.on_slot_failed, on, slot, k)

    # Warm sandboxes

    def claim(self, now: float, site: Site) -> None:
        """Take a warm sandbox, if one is there; it is made again."""
        if site.sandboxes <= 0:
            site.missed += 1
            return
        site.sandboxes -= 1
        site.claimed += 1
        self.make(now, site)

    def make(self, now: float, site: Site) -> None:
        while site.sandboxes + site.making < site.sandboxes_wanted:
            site.making += 1
            self.push(now + site.refill_draw(), _READY, self.on_sandbox, site)
        site.changed()

    def on_sandbox(self, now: float, on: Fleet | Instance | Site, _: int, __: int) -> None:
        assert isinstance(on, Site)
        on.making -= 1
        if on.sandboxes + on.making < on.sandboxes_wanted:
            on.sandboxes += 1
        on.changed()

    def refill(self, now: float, site: Site, count: int) -> None:
        """Home has room for as many warm sandboxes as the supply says."""
        site.sandboxes_wanted = min(count, site.supply.warm_sandboxes)
        site.sandboxes = min(site.sandboxes, site.sandboxes_wanted)
        self.make(now, site)

    # The end

    def result(self) -> Result:
        for fleet in self.fleets:
            while fleet.queued:
                self.fail(self.first(fleet), "unserved")
            for one in list(fleet.instances.values()):
                if one.doomed:
                    continue
                for request in one.running:
                    self.status[request] = _DONE
                self.finish(max(one.running.values(), default=self.end), one)
        trace, warm_up = self.scenario.trace, self.scenario.warm_up_s
        status = np.frombuffer(self.status, dtype=np.uint8)
        counted = np.asarray(trace.arrivals) >= warm_up
        done, failed = counted & (status == _DONE), counted & (status == _FAILED)
        return Result(
            policy=self.policy.name,
            seed=self.seed,
            cost=_cost(self.sites, self.end),
            waits=np.asarray(self.waits)[done],
            arrivals=np.asarray(trace.arrivals)[done],
            cold=np.frombuffer(self.cold, dtype=np.uint8)[done].astype(np.bool_),
            errors=dict(sorted(self.errors.items())),
            failed_at=np.asarray(trace.arrivals)[failed],
            starts=self.starts,
            by_supply={site.name: _bill(site, self.end) for site in self.sites},
            decisions=self.decisions,
            seconds=0.0,
            timeline={name: np.asarray(series) for name, series in self.timeline.items()},
        )


def _cost(sites: Iterable[Site], end: float) -> Cost:
    dollars = [0.0] * 5
    for site in sites:
        seconds = list(site.seconds)
        if site.supply.standing:
            within = _standing_s(site, end)
            seconds[SUNK] += max(0.0, within - sum(seconds))
        for kind, spent_s in enumerate(seconds):
            dollars[kind] += spent_s * site.supply.price / HOUR_S
    return Cost(
        starting=dollars[STARTING],
        idle=dollars[IDLE],
        busy=dollars[BUSY],
        sunk=dollars[SUNK],
        preempted=dollars[PREEMPTED],
    )


def _standing_s(site: Site, end: float) -> float:
    return (site.supply.capacity or 0) * max(0.0, end - site.warm_up_s)


def _bill(site: Site, end: float) -> float:
    if site.supply.standing:
        return max(spent(site, end), site.billed_s * site.supply.price / HOUR_S)
    return site.billed_s * site.supply.price / HOUR_S


def _check(scenario: Scenario, policy: Policy) -> None:
    trace = scenario.trace
    if not len(trace.arrivals) == len(trace.durations) == len(trace.endpoints):
        raise ValueError("the trace's arrivals, durations and endpoints differ in length: give one of each")
    if len(trace.arrivals) and (trace.arrivals[0] < 0 or np.any(np.diff(trace.arrivals) < 0)):
        raise ValueError("the trace's arrivals are not in order from 0 on: sort them")
    if len(trace.durations) and np.min(trace.durations) < 0:
        raise ValueError("a duration of the trace is negative: leave that request out")
    if len(scenario.wishes) not in (1, len(trace.names)):
        raise ValueError(f"{len(scenario.wishes)} wishes for {len(trace.names)} endpoints: give one of each")
    names = [supply.name for supply in scenario.supplies]
    if len(set(names)) < len(names):
        raise ValueError(f"supplies have the same name: {', '.join(names)}")
    if policy.tick_s <= 0:
        raise ValueError(f"policy {policy.name} has a tick of {policy.tick_s} s: it must be more than 0")
    for supply in scenario.supplies:
        _check_supply(supply)


def _check_supply(supply: Supply) -> None:
    if supply.standing and (not supply.owned or supply.capacity is None):
        raise ValueError(f"supply {supply.name} is standing: it must be owned and have a capacity")
    if supply.owned and supply.availability is not None:
        raise ValueError(f"supply {supply.name} is owned: only offers have an availability")
