"""What befalls supplies by themselves: outages, spot capacity that goes away, nodes that fail."""

from __future__ import annotations

from headrace_autoscaler.simulate.events import SUPPLY, Events, Handler
from headrace_autoscaler.simulate.fleet import Instance, Site
from headrace_autoscaler.simulate.nodes import Nodes


class Misfortune:
    """Puts a supply's events on the heap, and carries them out."""

    def __init__(self, end: float, events: Events, nodes: Nodes) -> None:
        self._end = end
        self._events = events
        self._nodes = nodes

    def plan(self, site: Site) -> None:
        """To be called once, before time begins."""
        supply = site.supply
        for begin, until in supply.outages:
            self._put(begin, self._on_outage, site, 1)
            self._put(until, self._on_outage, site, -1)
        steps = supply.availability
        if steps is not None:
            for at, there in zip(steps.times, steps.values, strict=True):
                self._put(at, self._on_availability, site, there)
        for slot, lives in enumerate(site.slot_lifetimes):
            self._put(lives.at(0), self._on_slot_failed, site, slot)

    def _put(self, at: float, handle: Handler, on: Instance | Site, a: int = 0, *, b: int = 0) -> None:
        if at <= self._end:
            self._events.put(at, SUPPLY, handle, on, a, b=b)

    def _on_outage(self, now: float, on: Site, change: int, _: int) -> None:
        on.outages += change
        on.changed()
        if change > 0:
            self._nodes.lose_starting(now, on, f"{on.supply.provider} went away during the start")
            self._nodes.lose(now, list(on.instances.values()))

    def _on_availability(self, now: float, on: Site, there: int, _: int) -> None:
        before, on.away = on.away, not there
        on.changed()
        if before or there:
            return
        on.preempted_at = now
        self._nodes.lose_starting(now, on, "spot capacity went away during the start")
        supply = on.supply
        lost_at = now + supply.notice_s
        drain_at = now if supply.drain_s is None else max(now, lost_at - supply.drain_s)
        for one in [each for each in on.instances.values() if each.lost_at is None]:
            self._nodes.warn(one, lost_at)
            self._put(drain_at, self._on_drain, one)
            self._put(lost_at, self._on_taken, one)

    def _on_drain(self, now: float, on: Instance, _: int, __: int) -> None:
        if on.state == "ready":
            self._nodes.release(now, on)

    def _on_taken(self, now: float, on: Instance, _: int, __: int) -> None:
        if on.state != "gone":
            self._nodes.lose(now, (on,))

    def _on_slot_failed(self, now: float, on: Site, slot: int, k: int) -> None:
        one = on.by_slot.get(slot)
        if one is not None:
            self._nodes.lose(now, (one,))
        on.take_slot(slot)
        self._put(now + on.supply.repair_s, self._on_slot_back, on, slot, b=k + 1)

    def _on_slot_back(self, now: float, on: Site, slot: int, k: int) -> None:
        on.give_slot(slot)
        self._put(now + on.slot_lifetimes[slot].at(k), self._on_slot_failed, on, slot, b=k)
