"""What the autoscaler is shown: one endpoint's lane and all hosts, read from the tables.

A *lane* is what is scaled by itself: an endpoint's current version (with the old one during a
rollout), a version that callers name, or a version on trial.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import msgspec
from headrace_autoscaler.placement import Book, Donor
from headrace_autoscaler.spec import (
    EndpointObservation,
    HostObservation,
    InstanceObservation,
    Observation,
    ScalingSpec,
)

from headrace import wire
from headrace.control.claims import base_of
from headrace.control.failures import blocked_until
from headrace.control.model import Endpoint, Host, Instance, World, gpu_pairs
from headrace.sdk.spec import EndpointSpec

UNLEARNT_IDLE_S = 60.0
"""What ``idle_timeout="auto"`` means to a policy that does not learn."""


@dataclass(frozen=True)
class Lane:
    """One thing to scale: ``key`` names it in the policy's memory."""

    key: str
    version: int
    spec: EndpointSpec
    scaling: ScalingSpec
    instances: tuple[InstanceObservation, ...]
    in_flight: int
    queued: int
    oldest_wait_s: float = 0.0
    blocked_until: float = 0.0
    rollout_from: int | None = None
    arrived: int | None = None
    demand_s: float | None = None
    served: tuple[float, ...] = ()


def main_lane(
    endpoint: Endpoint, now: float, *, least: int | None = None, served: tuple[float, ...] = ()
) -> Lane:
    """The current version; ``least`` raises the minimum for this once (``scale --to``).

    ``served``: service times since the look before.
    """
    assert endpoint.version is not None
    in_flight, queued, oldest = endpoint.seen(now)
    # Who insists on another version is no demand for this one.
    queued = max(0, queued - sum(endpoint.named(version, now) for version in endpoint.pins))
    mine: list[InstanceObservation] = []
    for instance in endpoint.instances.values():
        if not instance.alive:
            continue
        if instance.version in endpoint.pins or instance.version in endpoint.trials:
            in_flight -= instance.in_flight
        else:
            mine.append(instance_seen(instance))
    if queued:
        # Who takes nothing is as good as full: what waits is for others.
        seen = (i for i in endpoint.instances.values() if i.unready and i.state == "ready")
        others = endpoint.pins.keys() | endpoint.trials.keys()
        in_flight += sum(requests_each(endpoint.spec) for i in seen if i.version not in others)
    low, high = endpoint.bounds
    if least is not None:
        low = min(high, max(low, least))
    if endpoint.making_room is not None:
        # One of these has left, or leaves, for the version on trial: it is not replaced by its like.
        high = min(high, sum(1 for i in mine if i.state != "draining"))
        low = min(low, high)
    counted = endpoint.counted(now)
    return Lane(
        key=endpoint.key,
        version=endpoint.version,
        spec=endpoint.spec,
        scaling=_within_budget(scaling_of(endpoint.spec, low, high), endpoint, mine),
        instances=tuple(mine),
        in_flight=max(0, in_flight),
        queued=queued,
        oldest_wait_s=oldest,
        blocked_until=blocked_until(endpoint.failing, endpoint.version, queued),
        rollout_from=endpoint.rollout_from,
        arrived=endpoint.signals.arrived if counted else None,
        demand_s=endpoint.signals.demand_s if counted else None,
        served=served,
    )


def pinned_lane(endpoint: Endpoint, version: int) -> Lane:
    """A version that callers name."""
    pin = endpoint.pins[version]
    mine = tuple(instance_seen(i) for i in endpoint.instances.values() if i.version == version and i.alive)
    return Lane(
        key=f"{endpoint.key}@{version}",
        version=version,
        spec=pin.spec,
        scaling=_within_budget(
            msgspec.structs.replace(scaling_of(pin.spec, 0, endpoint.bounds[1]), warm=0), endpoint, mine
        ),
        instances=mine,
        in_flight=sum(i.in_flight for i in mine),
        queued=pin.queued,
        blocked_until=blocked_until(endpoint.failing, version, pin.queued),
    )


def trial_lane(endpoint: Endpoint, version: int) -> Lane:
    """A version on trial: one instance, beside those of the current version."""
    spec = endpoint.trials[version]
    mine = tuple(
        instance_seen(i)
        for i in endpoint.instances.values()
        if i.alive
        and i.state != "paused"
        and i.version not in endpoint.pins
        and (i.version == version or i.version not in endpoint.trials)
    )
    others = sum(1 for i in mine if i.version != version)
    return Lane(
        key=f"{endpoint.key}@{version}",
        version=version,
        spec=spec,
        # The trial may go one above max; the old instances must not be counted against it.
        scaling=_alone(scaling_of(spec, 0, max(1, spec.scaling.max, others))),
        instances=mine,
        in_flight=0,
        queued=1,
        rollout_from=endpoint.version,
    )


def plain(lane: Lane) -> EndpointObservation:
    """What is wanted of a lane follows from this much of it."""
    return EndpointObservation(
        endpoint=lane.key,
        version=lane.version,
        scaling=lane.scaling,
        in_flight=lane.in_flight,
        queued=lane.queued,
        instances=lane.instances,
    )


def unready(endpoint: Endpoint) -> str:
    """Why nothing takes requests although instances live; empty when something does."""
    living = [i for i in endpoint.instances.values() if i.state == "ready"]
    if not living or any(not i.unready for i in living):
        return ""
    return f"not ready: {living[0].unready}"


def observe(world: World, endpoint: Endpoint, lane: Lane) -> Observation:
    """The input of one decision. Idle instances elsewhere are listed only when no host has room."""
    base = base_of(lane.spec, lane.version, world.secrets_of(lane.spec))
    now = world.now()
    found = (host_seen(host, lane.key, base, now) for host in world.living_hosts())
    hosts = tuple(seen for seen in found if seen is not None)
    donors: tuple[Donor, ...] = ()
    if (
        hosts
        and (lane.queued or lane.in_flight or lane.scaling.min)
        and not Book(hosts).has_room(lane.scaling)
    ):
        donors = idle_elsewhere(world, endpoint)
    observation = EndpointObservation(
        endpoint=lane.key,
        version=lane.version,
        scaling=lane.scaling,
        in_flight=lane.in_flight,
        queued=lane.queued,
        oldest_wait_s=lane.oldest_wait_s,
        instances=lane.instances,
        blocked_until=lane.blocked_until,
        rollout_from=lane.rollout_from,
        arrived=lane.arrived,
        demand_s=lane.demand_s,
        served=lane.served,
        start_s=endpoint.signals.start_s(warm=any(host.warm for host in hosts)),
    )
    return Observation(endpoints=(observation,), hosts=hosts, idle_elsewhere=donors, spending=world.spending)


def requests_each(spec: EndpointSpec) -> int:
    """Requests that one instance stands for."""
    return max(1, math.ceil(spec.scaling.target_concurrency * (spec.batch.max_size if spec.batch else 1)))


def instance_seen(instance: Instance) -> InstanceObservation:
    """One instance as the autoscaler sees it."""
    return InstanceObservation(
        id=instance.id,
        host=instance.host.id,
        version=instance.version,
        state=_state(instance),
        in_flight=instance.in_flight,
        started_at=instance.started if instance.ready_since is None else instance.ready_since,
        last_used_at=instance.last_used,
        cpu=instance.cpu,
        memory=instance.memory,
        gpu=(instance.gpu,) if instance.gpu else (),
        cpu_used=instance.use.cpu if instance.use else None,
        memory_used=instance.use.memory if instance.use else None,
        gpu_used=instance.use.gpu if instance.use else None,
        ready_at=instance.ready_since,
        spot=instance.host.hello.spot,
        price=instance.price,
    )


def _state(instance: Instance) -> Literal["starting", "ready", "paused", "draining"]:
    if instance.state == "paused":
        return "paused" if instance.resuming is None else "starting"
    return instance.state if instance.state in ("starting", "draining") else "ready"


def host_seen(host: Host, lane: str, base: wire.BaseSpec, now: float) -> HostObservation | None:
    """One host as the autoscaler sees it; None when it is not (yet, any more) part of anything."""
    if host.state in ("joining", "dead"):
        return None
    # Looked at for every decision, of which there may be thousands a second: made anew when it has changed.
    key, hello = (host.booked, host.state, host.usable), host.hello
    shown = host.shown
    if host.leaving or shown is None or shown[0] != key or shown[1] is not hello:
        shown = host.shown = key, hello, _host_seen(host, now)
    seen = shown[2]
    return msgspec.structs.replace(seen, warm=(lane,)) if host.warm_for(base) else seen


def _host_seen(host: Host, now: float) -> HostObservation:
    cpu, memory, gpu = host.free()
    soon_cpu, soon_memory = host.soon_free(now)
    return HostObservation(
        host=host.id,
        provider=host.hello.provider,
        region=host.hello.region,
        spot=host.hello.spot,
        price=host.hello.price,
        state="ready" if host.usable else "draining" if host.state == "draining" else "suspect",
        cpu_free=cpu + soon_cpu,
        memory_free=memory + soon_memory,
        gpu_free=gpu,
        cpu=host.hello.resources.cpu,
        memory=host.hello.resources.memory,
        gpu=dict(host.hello.resources.gpu),
        runtimes=host.hello.runtimes,
        pauses=host.hello.pauses,
        pauses_gpu=host.hello.pauses_gpu,
        paused_free=host.hello.paused_bytes - host.used_paused,
    )


def _alone(scaling: ScalingSpec) -> ScalingSpec:
    """For a trial: one instance is wanted, whatever the target and the spares."""
    return msgspec.structs.replace(scaling, target_concurrency=1.0, warm=0)


def _within_budget(
    scaling: ScalingSpec, endpoint: Endpoint, mine: Sequence[InstanceObservation]
) -> ScalingSpec:
    """What the instances of the endpoint's other lanes leave of its budget."""
    if scaling.budget is None:
        return scaling
    ids = {one.id for one in mine}
    others = (i.price or 0.0 for i in endpoint.instances.values() if i.alive and i.id not in ids)
    return msgspec.structs.replace(scaling, budget=max(0.0, scaling.budget - sum(others)))


def scaling_of(spec: EndpointSpec, low: int, high: int) -> ScalingSpec:
    """The scaling wish of a spec between these bounds. A batch counts as one: else none would ever fill."""
    batch = spec.batch.max_size if spec.batch else 1
    idle, place = spec.scaling.idle_timeout, spec.placement
    return ScalingSpec(
        min=low,
        max=high,
        target_concurrency=spec.scaling.target_concurrency * batch,
        idle_timeout_s=UNLEARNT_IDLE_S if isinstance(idle, str) else idle,
        warm=spec.scaling.warm,
        concurrency=spec.concurrency * batch,
        cpu=spec.cpu,
        memory=spec.memory,
        gpu=gpu_pairs(spec.gpu),
        providers=place.providers,
        regions=place.regions,
        spot=place.spot,
        runtime=spec.runtime,
        learn_idle=isinstance(idle, str),
        max_price=place.max_price,
        balance=place.balance,
        on_demand=place.on_demand,
        budget=spec.scaling.budget,
    )


def idle_elsewhere(world: World, asking: Endpoint) -> tuple[Donor, ...]:
    """Idle instances of other endpoints, above their minimum and in no rollout."""
    found: list[Donor] = []
    for endpoint in world.active.values():
        if endpoint is asking or endpoint.trials or endpoint.rollout_from is not None or endpoint.deleting:
            continue
        alive = [i for i in endpoint.instances.values() if i.state in ("starting", "ready")]
        idle = [i for i in alive if i.state == "ready" and not i.in_flight and i.host.usable]
        spare = len(alive) - endpoint.bounds[0]
        if endpoint.seen(world.now())[1]:
            continue
        idle = sorted(idle, key=lambda i: i.last_used or i.started)[: max(0, spare)]
        paused = (i for i in endpoint.instances.values() if i.state == "paused" and i.resuming is None)
        for instance in [*idle, *(i for i in paused if i.host.usable)]:
            gpu = (instance.gpu,) if instance.gpu else ()
            scaling = scaling_of(endpoint.spec, *endpoint.bounds)
            scaling = msgspec.structs.replace(scaling, cpu=instance.cpu, memory=instance.memory, gpu=gpu)
            found.append((endpoint.key, instance_seen(instance), scaling))
    return tuple(found)
