"""What is left of hosts while a decision is made, and in which order hosts are preferred. Pure.

Why an order that is kept: with hundreds of hosts, looking at each for each start is most of a decision. What
is preferred hangs on the wish only by its filters, its accelerators and whether it may be on spot, so
endpoints share few orders, and what one start takes moves one host in each. An order is made when it
is first asked for, and catches up with what changed when it is asked again.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import msgspec

from headrace_autoscaler.spec import HostObservation, ScalingSpec

EPSILON = 1e-9
"""Cores that may be missing."""


@dataclass
class Room:
    """What is left of one host while a decision is being made."""

    host: HostObservation
    cpu: float
    memory: int
    gpu: dict[str, int]
    paused: int = 0
    """Bytes that further paused instances may hold."""

    def copy(self) -> Room:
        """To try something with."""
        return Room(self.host, self.cpu, self.memory, dict(self.gpu), self.paused)


def qualifies(host: HostObservation, scaling: ScalingSpec) -> bool:
    """Whether the host may run it at all, apart from room."""
    return (
        host.state == "ready"
        and scaling.runtime in host.runtimes
        and (not scaling.providers or host.provider in scaling.providers)
        and (not scaling.regions or host.region in scaling.regions)
        and (scaling.spot == "prefer" or host.spot == (scaling.spot == "only"))
        and (scaling.max_price is None or price_on(host, scaling) <= scaling.max_price + EPSILON)
    )


def price_on(host: HostObservation, scaling: ScalingSpec) -> float:
    """Dollars per hour of one instance there: the host's, by the part of it that it takes most of."""
    if not host.price:
        return 0.0
    parts = [0.0]
    if host.cpu:
        parts.append(scaling.cpu / host.cpu)
    if host.memory:
        parts.append(scaling.memory / host.memory)
    for name, count in scaling.gpu:
        if name in host.gpu:
            parts.append(count / max(1, host.gpu[name]))
            break
    # A host of which nobody said what it has is taken by one instance.
    part = max(parts) if host.cpu or host.memory or host.gpu else 1.0
    return host.price * min(1.0, part)


def price_in(room: Room, scaling: ScalingSpec) -> float:
    """Dollars per hour of one more there, with the accelerator that it would get now."""
    if not room.host.price:
        return 0.0
    gpu = pick_gpu(room.gpu, scaling.gpu)
    held = scaling if gpu is None or gpu[1] is None else msgspec.structs.replace(scaling, gpu=(gpu[1],))
    return price_on(room.host, held)


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


def kind_of(scaling: ScalingSpec) -> tuple[object, ...]:
    """Wishes that are equal in this have hosts in the same `Order`."""
    dear = None if scaling.max_price is None else (scaling.max_price, scaling.cpu, scaling.memory)
    return scaling.runtime, scaling.providers, scaling.regions, scaling.spot, scaling.gpu, dear


_Key = tuple[int, int, int, float, float, int, str]
"""Rank of the accelerator, would it waste one, is it not spot, price, -cpu, -memory, name."""


class Order:
    """The hosts that could run wishes of one kind, the best first, apart from where zygotes are ready.

    ``changed`` is the caller's list of hosts whose room changed, oldest first; it only grows.
    """

    def __init__(self, scaling: ScalingSpec, rooms: Mapping[str, Room], changed: Sequence[str]) -> None:
        self._rooms = rooms
        self._scaling = scaling
        self._changed = changed
        self._seen = len(changed)
        self._hosts = {name for name, room in rooms.items() if qualifies(room.host, scaling)}
        self._keys = {name: key for name in self._hosts if (key := self._key(name)) is not None}
        self._sorted = sorted(self._keys.values())

    def best(self, scaling: ScalingSpec, warm: Collection[str], at_most: float | None = None) -> str | None:
        """The best host with room for this wish of the order's kind; ``warm``: where its zygote is ready;
        ``at_most``: dollars per hour that it may cost there."""
        self._catch_up()
        cpu, memory = scaling.cpu, scaling.memory
        first: tuple[int, str] | None = None
        for rank, _, _, price, minus_cpu, minus_memory, name in self._sorted:
            if EPSILON - minus_cpu < cpu or -minus_memory < memory:
                continue
            if at_most is not None and price and price_in(self._rooms[name], scaling) > at_most:
                continue
            if first is None:
                if not warm:
                    return name
                first = rank, name
            # A better accelerator comes before a zygote that is ready, and that before all else.
            if rank != first[0]:
                break
            if name in warm:
                return name
        return None if first is None else first[1]

    def least(self, scaling: ScalingSpec) -> float | None:
        """Dollars per hour of one more where it costs the least; None: it fits nowhere."""
        self._catch_up()
        found: float | None = None
        for _, _, _, price, minus_cpu, minus_memory, name in self._sorted:
            if EPSILON - minus_cpu < scaling.cpu or -minus_memory < scaling.memory:
                continue
            if not price:
                return 0.0
            found = min(price_in(self._rooms[name], scaling), math.inf if found is None else found)
        return found

    def fits(self, scaling: ScalingSpec) -> bool:
        """Whether one more fits somewhere."""
        return self.best(scaling, ()) is not None

    def _catch_up(self) -> None:
        if self._seen == len(self._changed):
            return
        for name in set(self._changed[self._seen :]) & self._hosts:
            if (old := self._keys.pop(name, None)) is not None:
                del self._sorted[bisect_left(self._sorted, old)]
            if (new := self._key(name)) is not None:
                self._keys[name] = new
                insort(self._sorted, new)
        self._seen = len(self._changed)

    def _key(self, name: str) -> _Key | None:
        """None: its accelerators are taken."""
        room, scaling = self._rooms[name], self._scaling
        gpu = pick_gpu(room.gpu, scaling.gpu)
        if gpu is None:
            return None
        host = room.host
        wasted = 0 if scaling.gpu or not host.gpu_free else 1
        spot = 0 if scaling.spot == "never" or host.spot else 1
        return gpu[0], wasted, spot, host.price, -room.cpu, -room.memory, name
