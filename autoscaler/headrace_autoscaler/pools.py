"""How many warm sandboxes each base environment has on each host, and how many warm nodes there are. Pure.

Why a newsvendor (Arrow, Harris, Marschak, Econometrica 1951): a spare must be there before it is asked for,
one that is not asked for costs what it holds, and one that is missing costs somebody the wait until it is
made. What is claimed while one is being made has to come from the pool, so the number is the quantile of
claims within one refill at the ratio miss / (miss + holding). Both costs grow with the time that a refill
takes, which so cancels: the ratio is that of `wait_cost` (what an hour of a request's waiting is worth) to
what a spare costs per hour.

The distribution is learnt from the claims counted per refill window, of all endpoints that share the base,
whether they found a spare or not. It is a histogram that halves itself, so it is bounded and forgets.
Where looks are further apart than a refill takes, windows are as long as that, which asks for more rather
than fewer, as claims come in bursts. With less than `enough` windows, or where a refill's time, the
claims or the costs are not known, the size stays what it is: not known is not zero.

Spares of one host share what memory they may take: it goes, one at a time, to the spare that saves most
for each byte. So that a size does not swing, the last spare of a pool goes only when its chance to be
claimed is below half of what would bring it back.

What is decided is a number, and the host makes the spares by itself, one after the other and at low
priority: a refill never delays a request.

Warm nodes are the same with other words: nodes booted without an instance, claims are launches, a refill is
a boot. They are shared by all endpoints that can run there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from heapq import heapify, heappop, heappush
from itertools import accumulate
from typing import NamedTuple

from headrace_autoscaler.configs import PoolConfig
from headrace_autoscaler.spec import HostObservation, OfferObservation, PoolObservation, Refill, WarmNodes
from headrace_autoscaler.states import PoolState

CAPACITY = 4096.0
"""Windows at which the histogram is halved."""
MOST = 64
"""Spares of one pool; windows with more claims count as this many."""
_STAYS = 0.5
"""A spare goes when its chance to be claimed is below this part of the chance that brings one."""


class Nodes(NamedTuple):
    """What is known of the nodes of one offer that wait without an instance."""

    offer: OfferObservation
    ready: int = 0
    booting: int = 0
    launched: int | None = None
    """Instances that ever were to go on a node of it, a counter; None: not known."""


class _Wish(NamedTuple):
    """One pool while sizes are found."""

    pool: PoolObservation
    exceeds: tuple[float, ...]
    """Part of the windows with at least 1, 2, ... claims."""
    bar: float
    """The chance to be claimed above which a spare is worth its cost."""
    worth: float
    """Dollars per hour that holding and missing one cost together."""


def decide_pools(
    now: float,
    pools: Sequence[PoolObservation],
    states: Mapping[str, PoolState],
    config: PoolConfig,
    *,
    room: Mapping[str, int] | None = None,
) -> tuple[tuple[Refill, ...], dict[str, PoolState]]:
    """The sizes that are to change, and what is remembered, by ``host/base``.

    ``room``: bytes that all spares of a host may take together (`room_of`); hosts that are not in it have no
    bound but `MOST` for each pool. What is remembered of pools that are gone is dropped.
    """
    after: dict[str, PoolState] = {}
    wishes: list[_Wish] = []
    for pool in pools:
        name = f"{pool.host}/{pool.base}"
        after[name] = state = learn(now, pool, states.get(name, PoolState()))
        exceeds = chances(state, config.enough)
        if exceeds is None or pool.refill_s is None:
            continue
        worth = pool.cost + config.wait_cost
        wishes.append(_Wish(pool, exceeds, pool.cost / worth if worth else 1.0, worth))
    refills = [
        refill
        for host in dict.fromkeys(wish.pool.host for wish in wishes)
        for refill in _sized([w for w in wishes if w.pool.host == host], _left(host, pools, wishes, room))
    ]
    return tuple(refills), after


def warm_nodes(
    now: float, nodes: Sequence[Nodes], states: Mapping[str, PoolState], config: PoolConfig
) -> tuple[tuple[WarmNodes, ...], dict[str, PoolState]]:
    """How many nodes of each offer wait without an instance, and what is remembered, by the offer's name.

    For what launches there one by one: an offer that is shared by many endpoints. Each that waits costs its
    price, so only what is launched often enough has any.
    """
    pools = [
        PoolObservation(
            host=one.offer.offer,
            base="node",
            ready=one.ready,
            making=one.booting,
            claimed=one.launched,
            cost=one.offer.price,
            refill_s=one.offer.boot_s,
        )
        for one in nodes
    ]
    before = {f"{name}/node": state for name, state in states.items()}
    refills, after = decide_pools(now, pools, before, config)
    actions = tuple(WarmNodes(offer=r.host, count=r.count, reason=r.reason) for r in refills)
    return actions, {name.removesuffix("/node"): state for name, state in after.items()}


def room_of(
    hosts: Iterable[HostObservation], pools: Iterable[PoolObservation], config: PoolConfig
) -> dict[str, int]:
    """Bytes that all spares of each host may take: what they have, and `memory_share` of what is free."""
    room = {host.host: int(host.memory_free * config.memory_share) for host in hosts}
    for pool in pools:
        if pool.host in room:
            room[pool.host] += pool.ready * pool.memory
    return room


def learn(now: float, pool: PoolObservation, before: PoolState) -> PoolState:
    """What is known of a pool's claims after this look: a window is counted when it is over."""
    if pool.claimed is None or pool.refill_s is None:
        return before
    if before.claimed is None or pool.claimed < before.claimed or now < before.since:
        # The first look, or a counter that began anew.
        return PoolState(since=now, claimed=pool.claimed, windows=before.windows)
    if now <= before.since or now - before.since < pool.refill_s:
        return before
    claims = min(MOST, pool.claimed - before.claimed)
    windows = [*before.windows, *([0.0] * (claims + 1 - len(before.windows)))]
    windows[claims] += 1.0
    if sum(windows) > CAPACITY:
        windows = [count / 2 for count in windows]
    return PoolState(since=now, claimed=pool.claimed, windows=tuple(windows))


def chances(state: PoolState, enough: int) -> tuple[float, ...] | None:
    """The part of the windows in which there were at least 1, 2, ... claims; None: too few windows."""
    total = sum(state.windows)
    if total < enough:
        return None
    return tuple(1 - below / total for below in accumulate(state.windows[:-1]))


def _left(
    host: str, pools: Sequence[PoolObservation], wishes: Sequence[_Wish], room: Mapping[str, int] | None
) -> float:
    """Bytes for the pools whose size is to be found: the others keep what they have."""
    if room is None or host not in room:
        return float("inf")
    found = {id(wish.pool) for wish in wishes}
    kept = [p for p in pools if p.host == host and id(p) not in found]
    return room[host] - sum((p.ready + p.making) * p.memory for p in kept)


def _sized(wishes: Sequence[_Wish], left: float) -> list[Refill]:
    """One more to whichever pool saves most for each byte by it, until nothing is saved or left."""
    sizes = [0] * len(wishes)
    turns = [turn for number, wish in enumerate(wishes) if (turn := _turn(number, wish, 0)) is not None]
    heapify(turns)
    short: set[int] = set()
    while turns:
        _, _, number = heappop(turns)
        wish = wishes[number]
        if wish.pool.memory > left:
            short.add(number)
            continue
        left -= wish.pool.memory
        sizes[number] += 1
        if (turn := _turn(number, wish, sizes[number])) is not None:
            heappush(turns, turn)
    return [
        Refill(host=w.pool.host, base=w.pool.base, count=size, reason=_why(w, size, short=number in short))
        for number, (w, size) in enumerate(zip(wishes, sizes, strict=True))
        if size != w.pool.ready + w.pool.making
    ]


def _turn(number: int, wish: _Wish, size: int) -> tuple[float, str, int] | None:
    """What one more saves, as the heap orders it; None: it is not worth it."""
    if size >= len(wish.exceeds):
        return None
    chance, pool = wish.exceeds[size], wish.pool
    bar = wish.bar * (_STAYS if size < pool.ready + pool.making else 1.0)
    if chance <= bar:
        return None
    return -(chance - bar) * wish.worth / max(1, pool.memory), pool.base, number


def _why(wish: _Wish, size: int, *, short: bool) -> str:
    within = 1 - (wish.exceeds[size] if size < len(wish.exceeds) else 0.0)
    text = f"{size} are enough in {within:.1%} of refills of {wish.pool.refill_s:.3g} s"
    bound = "as many as memory is left for; " if short else ""
    return f"{bound}{text}, {1 - wish.bar:.1%} are worth {wish.pool.cost:.3g} $/h each"
