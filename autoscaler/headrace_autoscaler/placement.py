"""Where an instance goes: filters, room, preference. Pure; works on one decision's copy of the hosts.

A host qualifies when it is ready, has the runtime, and matches providers, regions and spot. Of those
with room the best is: accelerator earliest in the endpoint's list; zygote ready there; no accelerator
that would lie idle beside a CPU endpoint; spot as preferred; cheapest; most free (spread: instances
of one endpoint land on different hosts, so that losing one host costs the least). Ties go by name.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

import msgspec

from headrace_autoscaler.rooms import EPSILON, Order, Room, kind_of, pick_gpu, price_in, qualifies
from headrace_autoscaler.spec import HostObservation, InstanceObservation, ScalingSpec

__all__ = ["MIB", "Book", "Donor", "Given", "idle_since", "pick_gpu", "qualifies"]

Donor = tuple[str, InstanceObservation, ScalingSpec]
MIB = 1 << 20
FEW = 4
"""So many endpoints are looked for in the hosts' lists; for more it pays to turn those lists round."""


@dataclass(frozen=True)
class Given:
    """One idle instance that gives way: paused, or else released."""

    donor: Donor
    pause: bool = False


class Book:
    """The free resources of all hosts, written down as a decision hands them out."""

    def __init__(self, hosts: Iterable[HostObservation]) -> None:
        self._rooms = {
            h.host: Room(h, h.cpu_free, h.memory_free, dict(h.gpu_free), h.paused_free) for h in hosts
        }
        self._orders: dict[tuple[object, ...], Order] = {}
        self._changed: list[str] = []
        self._warm: dict[str, set[str]] | None = None
        self._asked = 0
        self.paid = 0.0
        """Dollars per hour of what room was taken for last."""

    def place(self, scaling: ScalingSpec, endpoint: str, at_most: float | None = None) -> str | None:
        """Pick the best host with room and take the room; None when there is none.

        ``at_most``: dollars per hour that it may cost there; None, here and below: whatever it costs.
        """
        best = self._order(scaling).best(scaling, self._warm_for(endpoint), at_most)
        if best is not None:
            self._take(self._rooms[best], scaling)
        return best

    def _warm_for(self, endpoint: str) -> Collection[str]:
        """The hosts where the endpoint's zygote is ready."""
        self._asked += 1
        if self._asked <= FEW:
            return {name for name, room in self._rooms.items() if endpoint in room.host.warm}
        if self._warm is None:
            self._warm = {}
            for name, room in self._rooms.items():
                for warm in room.host.warm:
                    self._warm.setdefault(warm, set()).add(name)
        return self._warm.get(endpoint, ())

    def cheapest(self, scaling: ScalingSpec) -> float | None:
        """Dollars per hour of one more where it costs the least; None: it fits nowhere."""
        return self._order(scaling).least(scaling)

    def has_room(self, scaling: ScalingSpec) -> bool:
        """Whether one more fits somewhere."""
        return self._order(scaling).fits(scaling)

    def _order(self, scaling: ScalingSpec) -> Order:
        kind = kind_of(scaling)
        order = self._orders.get(kind)
        if order is None:
            order = self._orders[kind] = Order(scaling, self._rooms, self._changed)
        return order

    def make_room(
        self, scaling: ScalingSpec, donors: Sequence[Donor], at_most: float | None = None
    ) -> tuple[str, list[Given]] | None:
        """Have idle instances of others give way: as few as do, on one host, the longest idle first.

        Returns the host and who goes, with the room already taken; None when nothing helps.
        """
        best: tuple[tuple[float, float, str], str, list[Given]] | None = None
        by_host: dict[str, list[Donor]] = {}
        for donor in donors:
            by_host.setdefault(donor[1].host, []).append(donor)
        for name, here in by_host.items():
            room = self._rooms.get(name)
            if room is None or not qualifies(room.host, scaling):
                continue
            given = self._handed_over(room, scaling, here, at_most)
            if given:
                key = (len(given), idle_since(given[0].donor[1]), name)
                if best is None or key < best[0]:
                    best = (key, name, given)
        if best is None:
            return None
        _, name, given = best
        self._carry_out(self._rooms[name], scaling, given)
        return name, given

    def resume(
        self, paused: InstanceObservation, scaling: ScalingSpec, donors: Sequence[Donor]
    ) -> list[Given] | None:
        """Who gives way so that a paused instance goes on where it is, with the room already taken.

        Empty: there is room; None: nothing helps.
        """
        room = self._rooms.get(paused.host)
        # Its memory it has.
        needs = msgspec.structs.replace(scaling, cpu=paused.cpu, memory=0, gpu=paused.gpu)
        if room is None or not qualifies(room.host, needs):
            return None
        given = [] if self._fit(room, needs) is not None else self._handed_over(room, needs, donors)
        if given is not None:
            self._carry_out(room, needs, given)
            room.paused += paused.memory
        return given

    def _handed_over(
        self, room: Room, scaling: ScalingSpec, donors: Sequence[Donor], at_most: float | None = None
    ) -> list[Given] | None:
        """Who makes room on this host, nobody for nothing, paused where that does: None when nothing does."""
        here = sorted((d for d in donors if d[1].host == room.host.host), key=lambda d: idle_since(d[1]))
        frozen = [d for d in here if d[1].state == "paused"]
        awake = [d for d in here if d[1].state != "paused"]
        trial, given = room.copy(), list[Given]()
        for donor in frozen:
            if trial.memory >= scaling.memory:
                break
            _release(trial, donor)
            given.append(Given(donor))
        if given and self._fits(trial, scaling, at_most):
            return self._needed(room, scaling, given, at_most)
        for donor in awake:
            spare = [d for d in frozen if all(g.donor is not d for g in given)]
            while _can_pause(room.host, donor) and trial.paused < donor[1].memory and spare:
                # Of those that are paused, the one that was used longest ago makes room for this one.
                _release(trial, spare[0])
                given.append(Given(spare.pop(0)))
            pause = _can_pause(room.host, donor) and trial.paused >= donor[1].memory
            given.append(Given(donor, pause))
            (_pause if pause else _release)(trial, donor)
            if trial.memory < scaling.memory and pause:
                # What is short is memory, and a paused one keeps that.
                trial.memory += donor[2].memory
                trial.paused += donor[2].memory
                given[-1] = Given(donor)
            if self._fits(trial, scaling, at_most):
                return self._needed(room, scaling, given, at_most)
        return None

    def _needed(
        self, room: Room, scaling: ScalingSpec, given: list[Given], at_most: float | None
    ) -> list[Given]:
        """Of these, those without whom there is no room: a large one may make that of many small ones."""
        for one in given[:-1]:
            rest, trial = [other for other in given if other is not one], room.copy()
            for other in rest:
                (_pause if other.pause else _release)(trial, other.donor)
            if trial.paused >= 0 and self._fits(trial, scaling, at_most):
                given = rest
        return given

    def _carry_out(self, room: Room, scaling: ScalingSpec, given: Sequence[Given]) -> None:
        for one in given:
            (_pause if one.pause else _release)(room, one.donor)
        self._take(room, scaling)

    def could_run(self, scaling: ScalingSpec) -> bool:
        """Whether some host would run it, were it not full."""
        return any(
            qualifies(room.host, scaling)
            and (not scaling.gpu or any(name in room.gpu for name, _ in scaling.gpu))
            for room in self._rooms.values()
        )

    def why_not(self, scaling: ScalingSpec) -> str:
        """Why `place` found nothing, in words."""
        if not self._rooms:
            return "no host is connected"
        rooms = [r for r in self._rooms.values() if qualifies(r.host, scaling)]
        if not rooms:
            if not any(scaling.runtime in room.host.runtimes for room in self._rooms.values()):
                has = sorted({name for room in self._rooms.values() for name in room.host.runtimes})
                return (
                    f"no host has runtime {scaling.runtime} (there is {', '.join(has) or 'none'}): "
                    "`headrace doctor` on the host says why"
                )
            return f"no ready host matches {_filters(scaling)}"
        # A model that is in no host's table at all is another message than one that is taken.
        if scaling.gpu and not any(name in r.gpu for r in rooms for name, _ in scaling.gpu):
            return f"no host has gpu {' or '.join(name for name, _ in scaling.gpu)}"
        wants = [f"cpu={scaling.cpu:g}", f"memory={scaling.memory // MIB}MiB"]
        if scaling.gpu:
            wants.append("gpu=" + " or ".join(f"{name}:{count}" for name, count in scaling.gpu))
        return f"no host has room for {' '.join(wants)}"

    def state_of(self, host: str) -> str:
        """The host's state, or ``gone``."""
        room = self._rooms.get(host)
        return room.host.state if room else "gone"

    @staticmethod
    def _fit(room: Room, scaling: ScalingSpec) -> tuple[int, tuple[str, int] | None] | None:
        """Whether there is room, on a host that qualifies."""
        if room.cpu + EPSILON < scaling.cpu or room.memory < scaling.memory:
            return None
        return pick_gpu(room.gpu, scaling.gpu)

    def _fits(self, room: Room, scaling: ScalingSpec, at_most: float | None) -> bool:
        """Whether there is room, at no more than this price."""
        if self._fit(room, scaling) is None:
            return False
        return at_most is None or price_in(room, scaling) <= at_most

    def _take(self, room: Room, scaling: ScalingSpec) -> None:
        gpu = pick_gpu(room.gpu, scaling.gpu)
        assert gpu is not None
        self.paid = price_in(room, scaling)
        room.cpu -= scaling.cpu
        room.memory -= scaling.memory
        if gpu[1] is not None:
            room.gpu[gpu[1][0]] -= gpu[1][1]
        self._changed.append(room.host.host)


def _pause(room: Room, donor: Donor) -> None:
    room.cpu += donor[2].cpu
    # Which of its preferences an instance holds is known by its scaling's first entry: whoever
    # observes narrows the list to what was handed out.
    for name, count in donor[2].gpu[:1]:
        room.gpu[name] = room.gpu.get(name, 0) + count
    room.paused -= donor[2].memory


def _release(room: Room, donor: Donor) -> None:
    if donor[1].state != "paused":
        _pause(room, donor)
    room.paused += donor[2].memory
    room.memory += donor[2].memory


def _can_pause(host: HostObservation, donor: Donor) -> bool:
    return donor[2].runtime in host.pauses and (host.pauses_gpu or not donor[2].gpu)


def idle_since(instance: InstanceObservation) -> float:
    """Since when it has nothing to do: its last use; when it was never used, since it is ready or started."""
    if instance.last_used_at is not None:
        return instance.last_used_at
    return instance.started_at if instance.ready_at is None else instance.ready_at


def _filters(scaling: ScalingSpec) -> str:
    parts = [f"runtime={scaling.runtime}"]
    if scaling.providers:
        parts.append(f"providers={','.join(scaling.providers)}")
    if scaling.regions:
        parts.append(f"regions={','.join(scaling.regions)}")
    if scaling.spot != "prefer":
        parts.append(f"spot={scaling.spot}")
    return " ".join(parts)
