"""SpotHedge: spot instances across zones, more than needed, and on-demand for those that are not ready.

Source: "SkyServe: Serving AI Models across Regions and Clouds with Spot Instances" (Mao et al., EuroSys
2025; arXiv 2411.01438), and skypilot-org/skypilot: sky/serve/spot_placer.py (zones),
sky/serve/autoscalers.py (how many), sky/serve/constants.py (20 s between decisions, 5 s at zero, window 60
s, upscale delay 300 s, downscale delay 1200 s).

- *Zones*: all begin as available. A preemption or a failed launch moves a zone to the preempting ones; an
  instance that becomes ready there moves it back; when fewer than two are available, all are again. The
  next instance goes to the cheapest available zone that has none of this endpoint, else to the cheapest
  available.
- *How many*: with N wanted, N + N_extra on spot, and on demand min(N, N + N_extra - spot that is *ready*):
  what is starting does not count. So on-demand fills in at once and goes when spot is ready.
- *N*: by load over the last 60 s; when none is wanted so far at once, else when it was wanted without a
  break for the delay.

Adapted:
- SkyServe counts requests per second against the user's rate per replica. That rate is one over the seconds
  of service here, so by Little's law N = ceil(average of requests in flight and queued / concurrency).
- N_extra is the user's there (``num_overprovision``); 1 here, the default of SkyServe's first spot
  policies.
- An offer with ``spot`` is a zone. Homes take from N before any cloud does, and count as neither.
- ``on_demand`` of the endpoint is SkyServe's ``base_ondemand_fallback_replicas``.
- The endpoint's max bounds all instances together; SkyServe's bounds N only. Where that is short, on-demand
  goes before spot that is not ready, but for one place, by which spot can come back.
- Those that go: those that start first, the last started first, as in SkyServe; then idle ones; then busy
  ones, which drain. With ``demand_s`` unknown N stays.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import msgspec

from headrace_autoscaler.baselines.base import (
    RETRY_S,
    Market,
    bounded,
    earlier,
    fleet_of,
    leavers,
)
from headrace_autoscaler.baselines.windows import Samples, average, push
from headrace_autoscaler.baselines.zones import Zone, available, befallen, next_zone
from headrace_autoscaler.interface import Plan, Policy
from headrace_autoscaler.spec import (
    Action,
    EndpointObservation,
    InstanceObservation,
    Observation,
    OfferObservation,
    Release,
    ScalingSpec,
    Wait,
)
from headrace_autoscaler.values import Value

TICK_S = 5.0


class SpotHedgeConfig(Value, frozen=True, kw_only=True):
    """SkyServe's parameters."""

    interval_s: float = 20.0
    window_s: float = 60.0
    upscale_delay_s: float = 300.0
    downscale_delay_s: float = 1200.0
    extra: int = 1
    """N_extra."""


class SpotHedgeState(Value, frozen=True, kw_only=True):
    """What is remembered of one service."""

    samples: Samples = ()
    target: int = 0
    """N."""
    since: float | None = None
    """Since when more or fewer than N are wanted without a break."""
    up: bool = False
    decided_at: float | None = None
    zones: tuple[Zone, ...] = ()
    """Those where something was lost."""


_NEW = SpotHedgeState()
_replace = msgspec.structs.replace


def decide(
    now: float, observation: Observation, state: Mapping[str, SpotHedgeState], config: SpotHedgeConfig
) -> Plan:
    """One decision, as `headrace_autoscaler.interface.Policy` describes it."""
    actions: list[Action] = []
    after: dict[str, SpotHedgeState] | None = None
    soonest: float | None = None
    market: Market | None = None
    for endpoint in observation.endpoints:
        before = state.get(endpoint.endpoint, _NEW)
        memory = wanted(now, endpoint, before, config)
        if memory is before:
            continue
        fleet = fleet_of(endpoint)
        target = bounded(endpoint.scaling, memory.target)
        if target or fleet.alive:
            market = Market(now, observation) if market is None else market
            zones = [o for o in market.offers(endpoint) if o.spot]
            memory = _replace(memory, zones=befallen(memory.zones, fleet.alive, zones))
            steps = _provision(
                now,
                endpoint,
                fleet.alive,
                target,
                zones=available(memory.zones, zones),
                any_zone=bool(zones),
                market=market,
                extra=config.extra,
            )
            if steps and isinstance(steps[-1], Wait):
                soonest = earlier(soonest, now + RETRY_S)
            actions += steps
        after = dict(state) if after is None else after
        after[endpoint.endpoint] = memory
    return Plan(tuple(actions), state if after is None else after, soonest)


def wanted(
    now: float, endpoint: EndpointObservation, memory: SpotHedgeState, config: SpotHedgeConfig
) -> SpotHedgeState:
    """N by load, with its delays; the same object while no decision is due."""
    requests = endpoint.in_flight + endpoint.queued
    zero = not memory.target and not endpoint.scaling.min
    if zero and not requests:
        if not endpoint.instances and not memory.samples:
            return memory
        return _replace(memory, samples=(), decided_at=now)
    if not zero and memory.decided_at is not None and now - memory.decided_at < config.interval_s:
        return memory
    if endpoint.demand_s is None:
        return _replace(memory, decided_at=now)
    samples = push(memory.samples, now, endpoint.demand_s, config.window_s)
    found = average(samples, now, endpoint.demand_s, config.window_s)
    mean = float(requests) if found is None else found
    count = bounded(endpoint.scaling, math.ceil(mean / endpoint.scaling.concurrency))
    target, since, up = memory.target, memory.since, count > memory.target
    if not target or count == target:
        target, since = count, None
    else:
        since = now if since is None or memory.up != up else since
        if now - since >= (config.upscale_delay_s if up else config.downscale_delay_s):
            target, since = count, None
    return _replace(memory, samples=samples, target=target, since=since, up=up, decided_at=now)


def split(
    scaling: ScalingSpec, target: int, *, homes: int, ready_spot: int, any_zone: bool, extra: int
) -> tuple[int, int]:
    """(spot instances to have, on-demand ones), when ``homes`` of ``target`` are at home.

    ``ready_spot``: spot instances that are ready; ``any_zone``: whether there is spot to be had at all.
    """
    rest = max(0, target - homes)
    on_demand = rest if not any_zone else 0 if scaling.spot == "only" else min(scaling.on_demand, rest)
    on_spot = rest - on_demand
    if not on_spot:
        return 0, on_demand
    spot = on_spot + extra
    if scaling.spot != "only":
        on_demand += min(on_spot, max(0, spot - ready_spot))
    places = scaling.max - homes
    if spot + on_demand > places:
        left_to_spot = 1 if places > 1 and ready_spot < spot else 0
        on_demand = min(on_demand, max(0, places - ready_spot - left_to_spot))
        spot = places - on_demand
    return spot, on_demand


def _provision(
    now: float,
    endpoint: EndpointObservation,
    alive: Sequence[InstanceObservation],
    target: int,
    *,
    zones: Sequence[OfferObservation],
    any_zone: bool,
    market: Market,
    extra: int,
) -> list[Action]:
    """What makes ``target`` of what there is."""
    home = [i for i in alive if not i.offer]
    spot = [i for i in alive if i.offer and i.spot]
    regular = [i for i in alive if i.offer and not i.spot]
    ready_spot = sum(1 for i in spot if i.state == "ready")
    places = endpoint.scaling.max - len(alive) if now >= endpoint.blocked_until else 0
    starts: list[Action] = []

    for _ in range(min(places, target - len(home))):
        start = market.home(endpoint, f"{target} wanted, and there is room at home")
        if start is None:
            break
        starts.append(start)
    homes = len(home) + len(starts)
    to_spot, to_regular = split(
        endpoint.scaling,
        target,
        homes=homes,
        ready_spot=ready_spot,
        any_zone=any_zone or bool(spot),
        extra=extra,
    )
    why = f"{target} wanted, {homes} at home, {ready_spot} spot ready: "
    for _ in range(min(places - len(starts), to_regular - len(regular))):
        launch = market.cheapest(endpoint, f"{why}{to_regular} on demand", spot=False)
        if launch is None:
            break
        starts.append(launch)
    used = {i.offer for i in spot}
    for _ in range(min(places - len(starts), to_spot - len(spot))):
        zone = next_zone([z for z in zones if market.has(z)], used)
        if zone is None:
            break
        used.add(zone.offer)
        starts.append(market.launch(endpoint, zone, f"{why}{to_spot} on spot"))

    going = [
        (one, keep)
        for kind, keep in ((spot, to_spot), (regular, to_regular), (home, target))
        for one in leavers(kind, max(0, len(kind) - keep), starting=True, busy=True)
    ]
    spare = max(0, len(alive) - endpoint.scaling.min)
    releases = [
        Release(endpoint=endpoint.endpoint, instance=one.id, reason=f"{why}{keep} of its sort do")
        for one, keep in going[:spare]
    ]
    missing = target - len(alive) - len(starts)
    waits = [market.short(endpoint, missing)] if missing > 0 else []
    return [*starts, *releases, *waits]


def policy() -> Policy:
    """SpotHedge with SkyServe's defaults."""
    return Policy("spothedge", decide, {}, SpotHedgeConfig(), TICK_S, wakes="from-zero")
