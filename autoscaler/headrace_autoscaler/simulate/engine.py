"""Plays a scenario against a policy, by events on one heap. Deterministic by seed; see `run`.

At one moment first requests finish, then supplies come and go, then instances become ready, then waiting
requests give up, then new requests arrive, and at last the policy decides. It decides at its ticks, when
its last decision asked to look again, and (with the endpoints concerned only) when a request finds no
free instance; requests that come together are decided on together.
"""

from __future__ import annotations

import math
from heapq import heappop

import numpy as np

from headrace_autoscaler.interface import Policy
from headrace_autoscaler.simulate.bill import bill, cost
from headrace_autoscaler.simulate.check import check
from headrace_autoscaler.simulate.events import Events
from headrace_autoscaler.simulate.fleet import Fleet, Site, scaling_of
from headrace_autoscaler.simulate.look import Looker, sample
from headrace_autoscaler.simulate.misfortune import Misfortune
from headrace_autoscaler.simulate.nodes import Nodes
from headrace_autoscaler.simulate.scenario import Result, Scenario
from headrace_autoscaler.simulate.service import DONE, FAILED, Service
from headrace_autoscaler.spec import Action, Launch, Refill, Release, Start, Wait

MIN_LOOK_S = 0.001
"""A policy that asks to look again at once is asked no sooner than this."""
MAX_AT_ONCE = 10_000
"""A policy that asks for that so often in a row would never let time go on."""
_NEVER = math.inf


def run(scenario: Scenario, policy: Policy, seed: int, *, timeline_step_s: float | None = None) -> Result:
    """Play the whole scenario. Equal arguments give equal results.

    Random draws depend on (seed, supply, how many were drawn there before) only, so that policies are
    compared on equal draws. It ends ``tail_s`` after the last arrival: nothing is decided after that,
    requests that run are finished (what that costs after the end is not counted, as it is not in the lower
    bounds), and those that still wait are errors (``unserved``). A launch that fails is shown as starting for
    `FAILURE_TOLD_S`.
    A request's time-out is how long it waits at a time, so one that is run again has all of it again.
    An instance that drains (it was released, or its spot capacity goes away) ends with its last request.

    Args:
        scenario: requests, supplies and limits.
        policy: what decides; its ``state`` is what the first decision is given.
        seed: not negative.
        timeline_step_s: seconds between samples of the timeline; None: no timeline. ``dollars:<supply>``
            is what was spent there until then; ``tier:<tier>`` how many instances run that started so
            (``warm``, ``cached``, ``boot``).

    Raises:
        ValueError: the scenario does not hold together, or the policy did what makes no sense (an
            unknown endpoint, host or offer, an action that is not simulated, or to be asked again
            at once, for ever).
    """
    check(scenario, policy)
    return _Run(scenario, policy, seed).play(timeline_step_s)


class _Run:
    def __init__(self, scenario: Scenario, policy: Policy, seed: int) -> None:
        trace, wishes = scenario.trace, scenario.wishes
        if len(wishes) == 1:
            wishes = wishes * len(trace.names)
        self.scenario = scenario
        self.policy = policy
        self.seed = seed
        self.end = trace.end + scenario.tail_s
        self.sites = [Site(supply, seed, scenario.warm_up_s, self.end) for supply in scenario.supplies]
        self.fleets = [
            Fleet(name, index, scaling_of(wish, scenario.supplies))
            for index, (name, wish) in enumerate(zip(trace.names, wishes, strict=True))
        ]
        self.site_named = {site.name: site for site in self.sites}
        self.fleet_named = {fleet.name: fleet for fleet in self.fleets}
        self.arrivals: list[float] = trace.arrivals.tolist()
        self.looker = Looker(self.fleets, self.sites, self.arrivals)
        self.events = Events()
        self.service = Service(scenario, policy, self.fleets, self.events)
        self.nodes = Nodes(scenario, self.end, self.events, self.service)
        misfortune = Misfortune(self.end, self.events, self.nodes)
        for site in self.sites:
            misfortune.plan(site)
        self.state = policy.state
        self.look_at = _NEVER
        self.decisions = self.at_once = 0
        self.timeline: dict[str, list[float]] = {}

    def play(self, step: float | None) -> Result:
        """The loop: what comes next is an event, an arrival, a decision or a sample."""
        heap, woken, arrive, end = self.events.heap, self.service.woken, self.service.arrive, self.end
        arrivals = [*self.arrivals, _NEVER]
        now = tick = 0.0
        following = ticks = samples = 0
        sample_at = _NEVER if step is None else 0.0
        while True:
            arrival = arrivals[following]
            coming = heap[0][0] if heap else _NEVER
            is_event = coming <= arrival
            if not is_event:
                coming = arrival
            # All that happens at one moment has happened before the policy looks.
            due = now if woken else min(tick, self.look_at)
            if sample_at <= due and sample_at < coming and sample_at <= end:
                sample(self.fleets, self.sites, sample_at, self.timeline)
                samples += 1
                sample_at = samples * (step or _NEVER)
            elif due < coming:
                if due > end:
                    break
                now = due
                self._decide(now, whole=tick <= now or self.look_at <= now)
                if tick <= now:
                    ticks += 1
                    tick = ticks * self.policy.tick_s
            elif coming > end:
                break
            elif is_event:
                now, _, _, handle, on, a, b = heappop(heap)
                handle(now, on, a, b)
            else:
                now = arrival
                arrive(now, following)
                following += 1
        return self._result()

    def _decide(self, now: float, *, whole: bool) -> None:
        fleets = self.fleets if whole else list(self.service.woken)
        self.service.woken.clear()
        observation = self.looker.look(now, fleets)
        outcome = self.policy.decide(now, observation, self.state, self.policy.config)
        self.decisions += 1
        self.state = outcome.state
        for action in outcome.actions:
            self._act(now, action)
        asked = outcome.look_again_at
        self.at_once = self.at_once + 1 if asked is not None and asked <= now else 0
        if self.at_once > MAX_AT_ONCE:
            raise ValueError(
                f"{self.policy.name} asks at {now:g} s to look again at {asked:g} s, and has done so for"
                f" {MAX_AT_ONCE} decisions in a row: it must ask for a time that is yet to come"
            )
        at = _NEVER if asked is None else max(asked, now + MIN_LOOK_S)
        # What concerned only some endpoints does not undo what the others asked for.
        self.look_at = at if whole or len(fleets) == len(self.fleets) else min(at, self.look_at)

    def _act(self, now: float, action: Action) -> None:
        match action:
            case Wait():
                pass
            case Start():
                self.nodes.create(now, self._fleet(action.endpoint), self._site(action.host, owned=True))
            case Launch():
                self.nodes.create(now, self._fleet(action.endpoint), self._site(action.offer, owned=False))
            case Release():
                one = self._fleet(action.endpoint).instances.get(action.instance)
                if one is not None and one.state != "draining":
                    self.nodes.release(now, one)
            case Refill():
                self.nodes.refill(now, self._site(action.host, owned=True), action.count)
            case _:
                raise ValueError(f"{self.policy.name} asks for what is not simulated: {action}")

    def _fleet(self, name: str) -> Fleet:
        if name not in self.fleet_named:
            raise ValueError(f"{self.policy.name} names an endpoint that is not there: {name!r}")
        return self.fleet_named[name]

    def _site(self, name: str, *, owned: bool) -> Site:
        site = self.site_named.get(name)
        if site is None or site.supply.owned != owned:
            what = "a host (Start needs the name of a home supply)" if owned else "an offer"
            raise ValueError(f"{self.policy.name} names {what} that is not there: {name!r}")
        return site

    def _result(self) -> Result:
        for fleet in self.fleets:
            self.service.close(fleet)
            for one in [i for i in fleet.instances.values() if not i.doomed]:
                self.nodes.finish(self.end, one)
        arrivals = np.asarray(self.scenario.trace.arrivals)
        status = np.frombuffer(self.service.status, dtype=np.uint8)
        counted = arrivals >= self.scenario.warm_up_s
        done = counted & (status == DONE)
        waits = np.asarray(self.service.waits)
        first = waits.copy()
        first[list(self.service.first_waits)] = list(self.service.first_waits.values())
        return Result(
            policy=self.policy.name,
            seed=self.seed,
            cost=cost(self.sites, self.end),
            waits=waits[done],
            arrivals=arrivals[done],
            cold=np.frombuffer(self.service.cold, dtype=np.uint8)[done].astype(np.bool_),
            errors=dict(sorted(self.service.errors.items())),
            failed_at=arrivals[counted & (status == FAILED)],
            starts=self.nodes.starts,
            by_supply={site.name: bill(site, self.end) for site in self.sites},
            decisions=self.decisions,
            seconds=0.0,
            first_waits=first[done],
            timeline={name: np.asarray(series) for name, series in self.timeline.items()},
        )
