"""Where an instance goes: filters, room, preference. Pure; works on one decision's copy of the hosts.

A host qualifies when it is ready, has the runtime, and matches providers, regions and spot. Of those
with room the best is: accelerator earliest in the endpoint's list; zygote ready there; no accelerator
that would lie idle beside a CPU endpoint; spot as preferred; cheapest; most free (spread: instances
of one endpoint land on different hosts, so that losing one host costs the least). Ties go by name.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from headrace_autoscaler.spec import HostObservation, InstanceObservation, ScalingSpec

Donor = tuple[str, InstanceObservation, ScalingSpec]
_EPSILON = 1e-9
MIB = 1 << 20


@dataclass
class _Room:
    """What is left of one host while a decision is being made."""

    host: HostObservation
    cpu: float
    memory: int
    gpu: dict[str, int]


def qualifies(host: HostObservation, scaling: ScalingSpec) -> bool:
    """Whether the host may run it at all, apart from room."""
    return (
        host.state == "ready"
        and scaling.runtime in host.runtimes
        and (not scaling.providers or host.provider in scaling.providers)
        and (not scaling.regions or host.region in scaling.regions)
        and (scaling.spot == "prefer" or host.spot == (scaling.spot == "only"))
    )


def pick_gpu(
    free: dict[str, int], wanted: Sequence[tuple[str, int]]
) -> tuple[int, tuple[str, int] | None] | None:
    """The first preference that is free: (its rank, it); (0, None) when none is wanted; None: not free."""
    if not wanted:
        return 0, None
    for rank, (name, count) in enumerate(wanted):
        if free.get(name, 0) >= count:
            return rank, (name, count)
    return None


class Book:
    """The free resources of all hosts, written down as a decision hands them out."""

    def __init__(self, hosts: Iterable[HostObservation]) -> None:
        self._rooms = {h.host: _Room(h, h.cpu_free, h.memory_free, dict(h.gpu_free)) for h in hosts}

    def place(self, scaling: ScalingSpec, endpoint: str) -> str | None:
        """Pick the best host with room and take the room; None when there is none."""
        best: tuple[tuple[object, ...], _Room] | None = None
        for room in self._rooms.values():
            gpu = self._fit(room, scaling)
            if gpu is None:
                continue
            key = _preference(room, scaling, endpoint, gpu[0])
            if best is None or key < best[0]:
                best = (key, room)
        if best is None:
            return None
        self._take(best[1], scaling)
        return best[1].host.host

    def has_room(self, scaling: ScalingSpec) -> bool:
        """Whether one more fits somewhere."""
        return any(self._fit(room, scaling) is not None for room in self._rooms.values())

    def make_room(self, scaling: ScalingSpec, donors: Sequence[Donor]) -> tuple[str, list[Donor]] | None:
        """Give up idle instances of others: the fewest on one host, the longest idle first.

        Returns the host and whom to release, with the room already taken; None when nothing helps.
        """
        best: tuple[tuple[float, float, str], _Room, list[Donor]] | None = None
        for room in self._rooms.values():
            if not qualifies(room.host, scaling):
                continue
            here = sorted((d for d in donors if d[1].host == room.host.host), key=lambda d: idle_since(d[1]))
            trial = _Room(room.host, room.cpu, room.memory, dict(room.gpu))
            given: list[Donor] = []
            for donor in here:
                self._give_back(trial, donor[2])
                given.append(donor)
                if self._fit(trial, scaling) is not None:
                    key = (len(given), idle_since(given[0][1]), room.host.host)
                    if best is None or key < best[0]:
                        best = (key, room, given)
                    break
        if best is None:
            return None
        _, room, given = best
        for donor in given:
            self._give_back(room, donor[2])
        self._take(room, scaling)
        return room.host.host, given

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
    def _fit(room: _Room, scaling: ScalingSpec) -> tuple[int, tuple[str, int] | None] | None:
        if room.cpu + _EPSILON < scaling.cpu or room.memory < scaling.memory:
            return None
        if not qualifies(room.host, scaling):
            return None
        return pick_gpu(room.gpu, scaling.gpu)

    def _take(self, room: _Room, scaling: ScalingSpec) -> None:
        gpu = pick_gpu(room.gpu, scaling.gpu)
        assert gpu is not None
        room.cpu -= scaling.cpu
        room.memory -= scaling.memory
        if gpu[1] is not None:
            room.gpu[gpu[1][0]] -= gpu[1][1]

    @staticmethod
    def _give_back(room: _Room, scaling: ScalingSpec) -> None:
        room.cpu += scaling.cpu
        room.memory += scaling.memory
        # Which of its preferences an instance holds is known by its scaling's first entry: whoever
        # observes narrows the list to what was handed out.
        for name, count in scaling.gpu[:1]:
            room.gpu[name] = room.gpu.get(name, 0) + count


def idle_since(instance: InstanceObservation) -> float:
    """Since when it has nothing to do: its last use, or its start when it was never used."""
    return instance.started_at if instance.last_used_at is None else instance.last_used_at


def _preference(room: _Room, scaling: ScalingSpec, endpoint: str, rank: int) -> tuple[object, ...]:
    host = room.host
    spot = 0 if scaling.spot == "never" or host.spot else 1
    wasted = 0 if scaling.gpu or not host.gpu_free else 1
    return rank, endpoint not in host.warm, wasted, spot, host.price, -room.cpu, -room.memory, host.host


def _filters(scaling: ScalingSpec) -> str:
    parts = [f"runtime={scaling.runtime}"]
    if scaling.providers:
        parts.append(f"providers={','.join(scaling.providers)}")
    if scaling.regions:
        parts.append(f"regions={','.join(scaling.regions)}")
    if scaling.spot != "prefer":
        parts.append(f"spot={scaling.spot}")
    return " ".join(parts)
