"""Instances: they are started, become ready, are released, are lost. Their time is booked, all of it."""

from __future__ import annotations

from collections.abc import Iterable

from headrace_autoscaler.simulate.events import READY, SUPPLY, Events
from headrace_autoscaler.simulate.fleet import BUSY, IDLE, PREEMPTED, STARTING, Fleet, Instance, Site
from headrace_autoscaler.simulate.scenario import Scenario
from headrace_autoscaler.simulate.service import Service

FAILURE_TOLD_S = 5.0
"""Seconds until a launch that fails says so."""


class Nodes:
    """The instances of one run."""

    def __init__(self, scenario: Scenario, end: float, events: Events, service: Service) -> None:
        self._warm_up_s = scenario.warm_up_s
        self._end = end
        self._events = events
        self._service = service
        service.drained = self.finish
        self._created = 0
        self.starts = 0
        """Counted, without those that were refused."""

    def create(self, now: float, fleet: Fleet, site: Site) -> None:
        """Start one. A home that is full does nothing; an offer that refuses says so a little later."""
        refusal = site.refusal()
        if refusal and site.supply.owned:
            return
        self._created += 1
        one = Instance(f"{site.name}-{self._created}", fleet, site, now)
        fleet.instances[one.id] = one
        fleet.changed(one)
        if refusal:
            one.doomed = refusal
            site.refused += 1
            site.changed()
            self._events.put(now + FAILURE_TOLD_S, READY, self._on_refused, one)
            return
        self.starts += now >= self._warm_up_s
        life = site.lifetimes.at(site.started)
        site.enter(one)
        if now + life <= self._end:
            self._events.put(now + life, SUPPLY, self._on_node_failed, one)
        if site.supply.warm is not None:
            self._claim(now, site, warm=one.tier == "warm")
        self._events.put(now + site.draw(one.tier), READY, self._on_ready, one)

    def release(self, now: float, one: Instance) -> None:
        """Stop it; one that runs requests finishes them first."""
        if one.doomed:
            self._forget(one)
        elif one.running:
            one.state = "draining"
            one.fleet.take(one)
            one.fleet.changed(one)
        else:
            self.finish(now, one)

    def warn(self, one: Instance, lost_at: float) -> None:
        """It is to be taken away then; it goes on, as the last choice."""
        one.lost_at = lost_at
        self._service.lost(one.fleet)
        one.fleet.changed(one)
        if one in one.fleet.free:
            one.fleet.take(one)
            one.fleet.put(one)

    def finish(self, now: float, one: Instance) -> None:
        """Its time is over, and nothing that it did is lost."""
        one.site.spend(one, now, one.doing)
        self._leave(now, one)

    def lose(self, now: float, lost: Iterable[Instance]) -> None:
        """These are gone at once; what they ran is run again."""
        requests: list[int] = []
        for one in lost:
            if one.doing == BUSY:
                # Until its last request that finished it was of use.
                one.site.spend(one, max(one.since, one.last_finish), BUSY)
            one.site.spend(one, now, IDLE if one.doing == IDLE else PREEMPTED)
            one.fleet.count(now)
            one.fleet.in_flight -= len(one.running)
            requests += one.running
            one.running = {}
            self._service.lost(one.fleet)
            self._leave(now, one)
        self._service.again(now, requests)

    def lose_starting(self, now: float, site: Site, reason: str) -> None:
        """Those that are being started there come to nothing."""
        lost = [one for one in site.instances.values() if one.doing == STARTING]
        if lost:
            site.failed(now, reason)
            self.lose(now, lost)

    def refill(self, now: float, site: Site, count: int) -> None:
        """Keep so many warm sandboxes, as far as the home has room for them."""
        site.sandboxes_wanted = min(count, site.supply.warm_sandboxes)
        site.sandboxes = min(site.sandboxes, site.sandboxes_wanted)
        self._make(now, site)

    def _on_ready(self, now: float, on: Instance, _: int, __: int) -> None:
        if on.state != "starting":
            return
        on.turn(now, IDLE)
        on.state = "ready"
        on.ready_at = now
        on.fleet.changed(on)
        on.fleet.started(now - on.started_at)
        on.site.booted(now - on.started_at)
        self._service.ready(now, on)

    def _on_refused(self, now: float, on: Instance, _: int, __: int) -> None:
        on.site.failed(now, on.doomed)
        self._service.lost(on.fleet)
        if on.state != "gone":
            self._forget(on)

    def _on_node_failed(self, now: float, on: Instance, _: int, __: int) -> None:
        if on.state == "gone":
            return
        if on.state == "starting":
            on.site.failed(now, "its node failed during the start")
        self.lose(now, (on,))

    def _leave(self, now: float, one: Instance) -> None:
        one.site.leave(one, now)
        self._forget(one)

    def _forget(self, one: Instance) -> None:
        if one.doomed:
            one.site.refused -= 1
            one.site.changed()
        one.state = "gone"
        one.fleet.take(one)
        del one.fleet.instances[one.id]
        one.fleet.changed(one)

    def _claim(self, now: float, site: Site, *, warm: bool) -> None:
        """Take a warm sandbox, if one is there; it is made again."""
        site.claimed += 1
        if warm:
            site.sandboxes -= 1
        else:
            site.missed += 1
        self._make(now, site)

    def _make(self, now: float, site: Site) -> None:
        while site.sandboxes + site.making < site.sandboxes_wanted:
            site.making += 1
            self._events.put(now + site.refill_s, READY, self._on_sandbox, site)
        site.changed()

    def _on_sandbox(self, now: float, on: Site, _: int, __: int) -> None:
        on.making -= 1
        on.sandboxes = min(on.sandboxes + 1, on.sandboxes_wanted)
        on.changed()
