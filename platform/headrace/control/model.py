"""What control knows now, in memory: endpoints (from the store), hosts and instances (from the hosts).

Times are of one monotonic clock (`World.now`) unless named ``..._at``.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import msgspec
from headrace_autoscaler.spec import EndpointState, HostObservation

from headrace import wire
from headrace.control.signals import Signals
from headrace.control.state import EndpointFacts
from headrace.link import Link
from headrace.sdk.spec import EndpointSpec, Gpu

UNUSED = EndpointState()
"""The policy's memory of what it has not decided about yet."""
DEMAND_VALID_S = 5.0
"""What a gateway said of an endpoint counts this long without being said again (it says so every 0.5 s)."""

BEAT_COUNTS_AFTER_S = 4.0
"""A host's count of an instance's requests is a sample, up to 2 s old and said again until the next one:
it counts only when no gateway has reported on the instance for longer than that."""
LEAVES_WITHIN_S = 2.0
"""What was idle and takes longer than this to end keeps its room until it has."""
NEVER = float("-inf")


class DecisionNote(msgspec.Struct, frozen=True):
    """One decision, for people."""

    at: float
    action: str
    reason: str


@dataclass(slots=True)
class Seen:
    """What one gateway last said of one endpoint."""

    at: float
    in_flight: int = 0
    queued: int = 0
    oldest_wait_s: float = 0.0
    stored: int = 0
    """Jobs in the store that all gateways see."""
    named: Mapping[int, int] = field(default_factory=dict)
    """Of ``queued``, those that insist on a version, by that."""


@dataclass(slots=True, eq=False)
class Instance:
    """One instance, or a claim in flight."""

    id: str
    endpoint: Endpoint
    version: int
    host: Host
    cpu: float
    memory: int
    gpu: tuple[str, int] | None
    state: wire.InstanceState = "starting"
    report: wire.InstanceReport | None = None
    started: float = 0.0
    ready_since: float | None = None
    last_used: float | None = None
    used_by: dict[Link, int] = field(default_factory=dict)
    told: float = NEVER
    """When a gateway reported on it last."""
    beating: int = 0
    """Requests in flight by the host's last heartbeat, when gateways say nothing."""
    use: wire.InstanceUse | None = None
    """What it uses, as its host said last."""
    resuming: float | None = None
    """Paused, and told to go on: since when."""
    parked: bool = False
    """It has been paused: all that is booked for it is its memory."""
    price: float | None = None
    """Dollars per hour, its part of its host's; None: the host has no price."""
    outcome: asyncio.Future[wire.Death | None] | None = None
    """Set when somebody waits for its start: None when ready, else why not."""

    @property
    def in_flight(self) -> int:
        """Requests in flight: what gateways or the host say, whichever is more."""
        return max(sum(self.used_by.values()), self.beating)

    @property
    def unready(self) -> str:
        """Why its readiness probe fails; empty when it does not."""
        return self.report.unready if self.report is not None else ""

    @property
    def alive(self) -> bool:
        """Whether it runs or starts."""
        return self.state not in ("stopped", "failed")


@dataclass(slots=True, eq=False)
class Host:
    """One incarnation of a host."""

    hello: wire.HostHello
    link: Link | None
    state: wire.HostState = "joining"
    last_seen: float = 0.0
    died: float = 0.0
    instances: dict[str, Instance] = field(default_factory=dict)
    warm: dict[wire.BaseSpec, wire.WarmReport] = field(default_factory=dict)
    asked: tuple[tuple[wire.BaseSpec, int], ...] = ()
    """The last `SetWarm` sent on this link."""
    claims: dict[wire.BaseSpec, tuple[int, int]] = field(default_factory=dict)
    """By the base that they asked for: how many starts there were, and how many found no spare."""
    used_cpu: float = 0.0
    used_memory: int = 0
    used_paused: int = 0
    """Of that by paused instances."""
    checkpoints: Mapping[str, int] = field(default_factory=dict)
    """What became of them since it began, by outcome."""
    used_gpu: dict[str, int] = field(default_factory=dict)
    booked: int = 0
    """How often something was handed out or taken back."""
    shown: tuple[tuple[object, ...], wire.HostHello, HostObservation] | None = None
    """What it depends on, and how the autoscaler saw it last (with nothing warm)."""
    leaving: dict[Instance, float] = field(default_factory=dict)
    """Instances that were idle when they were told to end, and when that was."""

    @property
    def id(self) -> str:
        """Of this incarnation."""
        return self.hello.host

    @property
    def usable(self) -> bool:
        """Whether it takes new instances."""
        return self.state == "ready" and self.link is not None and self.link.is_open

    def free(self) -> tuple[float, int, dict[str, int]]:
        """(cpu, memory, accelerators) not handed out."""
        whole = self.hello.resources
        gpu = {name: count - self.used_gpu.get(name, 0) for name, count in whole.gpu.items()}
        return whole.cpu - self.used_cpu, whole.memory - self.used_memory, gpu

    def book(self, instance: Instance, sign: int) -> None:
        """Hand out (1) or take back (-1) what an instance has."""
        self.booked += 1
        self.used_memory += sign * instance.memory
        if instance.parked:
            self.used_paused += sign * instance.memory
            return
        # Exactly nothing is used when nothing runs, whatever sums of fractions left over.
        self.used_cpu = self.used_cpu + sign * instance.cpu if self.instances else 0.0
        if instance.gpu is not None:
            name, count = instance.gpu
            self.used_gpu[name] = self.used_gpu.get(name, 0) + sign * count

    def price_of(self, instance: Instance) -> float | None:
        """What an instance costs per hour: by the part of the host that it takes most of.

        None: nobody said what the host costs.
        """
        whole, price = self.hello.resources, self.hello.price
        if not price:
            return None
        parts = [instance.cpu / whole.cpu if whole.cpu else 1.0]
        parts.append(instance.memory / whole.memory if whole.memory else 1.0)
        if instance.gpu is not None:
            name, count = instance.gpu
            parts.append(count / max(1, whole.gpu.get(name, 0)))
        return price * min(1.0, max(parts))

    def soon_free(self, now: float) -> tuple[float, int]:
        """(cpu, memory) of idle instances that end this moment. An accelerator is free when they have."""
        going = [i for i, at in self.leaving.items() if now - at < LEAVES_WITHIN_S]
        return sum(i.cpu for i in going), sum(i.memory for i in going)

    def warm_for(self, base: wire.BaseSpec) -> bool:
        """Whether the zygote for ``base`` is ready here."""
        report = self.warm.get(base)
        return report is not None and report.state == "ready"


@dataclass(slots=True, frozen=True)
class Ended:
    """How an instance ended by itself."""

    at: float
    """Seconds since the Unix epoch."""
    instance: str
    runtime: str
    death: wire.Death


@dataclass(slots=True)
class Shrink:
    """``scale --to``: of the instances that there were, all but ``count`` go as they become idle."""

    count: int
    ids: frozenset[str]
    until: float
    """After this the rest stays."""


@dataclass(slots=True)
class Failing:
    """Starts (or fresh instances) of an endpoint that failed in a row."""

    count: int
    until: float
    """No start before this."""
    version: int
    reason: str
    traceback: str = ""
    lived: bool = False
    """They had been ready: only starts that no request asks for are held back."""


@dataclass(slots=True)
class Pin:
    """A version that callers name (``/e/name@3``) beside the current one."""

    spec: EndpointSpec
    queued: int = 0
    queued_at: float = 0.0
    memory: EndpointState = UNUSED


@dataclass(slots=True, eq=False)
class Endpoint:
    """One endpoint. ``spec`` is the current version's without its OpenAPI document (that stays on disk)."""

    key: str
    spec: EndpointSpec
    version: int | None = None
    digest: bytes = b""
    """Of the current version's canonical spec."""
    versions: tuple[int, ...] = ()
    """Versions that callers may name: those that were current once."""
    min_override: int | None = None
    max_override: int | None = None
    created_at: float = 0.0
    state: wire.EndpointState = "deploying"
    reason: str = ""
    """Why it failed, or why its requests wait."""
    told: tuple[object, ...] = ()
    """State and reason as last pushed to gateways."""
    deleting: bool = False
    trials: dict[int, EndpointSpec] = field(default_factory=dict)
    """Versions being verified: their instances take no requests."""
    making_room: int | None = None
    """The trial that an old instance has made room for: nothing else of the endpoint may take that room."""
    tried: Instance | None = None
    """The instance of the trial that runs, until the deployer has taken note of it."""
    rollout_from: int | None = None
    """Set while instances of the version before are being replaced."""
    shrink: Shrink | None = None
    pins: dict[int, Pin] = field(default_factory=dict)
    instances: dict[str, Instance] = field(default_factory=dict)
    demand: dict[Link, Seen] = field(default_factory=dict)
    last_death: Ended | None = None
    """Of the last instance that nobody had asked to end."""
    failing: Failing | None = None
    recovering: Failing | None = None
    """Failures in a row before a start that succeeded; forgotten when an instance has lived a while."""
    memory: EndpointState = UNUSED
    notes: deque[DecisionNote] | None = None
    wakes: int = 0
    last_actions: dict[str, object] = field(default_factory=dict)
    """What was decided last in each lane, so that a repeated wait is not recorded again."""
    recorded: tuple[float, int | None] = (NEVER, None)
    """When the history had its last line of the current version, and what had arrived by then."""
    signals: Signals = field(default_factory=Signals)

    @property
    def project(self) -> str:
        """The project it belongs to."""
        return self.spec.project

    @property
    def name(self) -> str:
        """Unique in its project."""
        return self.spec.name

    @property
    def bounds(self) -> tuple[int, int]:
        """(min, max) with the overrides of ``scale``."""
        scaling = self.spec.scaling
        low = scaling.min if self.min_override is None else self.min_override
        high = scaling.max if self.max_override is None else self.max_override
        return low, max(low, high)

    def spec_of(self, version: int) -> EndpointSpec | None:
        """The spec of a version that is current, tried or pinned; None for another."""
        if version == self.version:
            return self.spec
        if version in self.trials:
            return self.trials[version]
        pin = self.pins.get(version)
        return pin.spec if pin else None

    def seen(self, now: float) -> tuple[int, int, float]:
        """(in flight, queued, oldest wait) over all gateways and hosts."""
        in_flight = queued = stored = 0
        oldest = 0.0
        for said in self.demand.values():
            if now - said.at <= DEMAND_VALID_S:
                in_flight += said.in_flight
                queued += said.queued
                stored = max(stored, said.stored)
                oldest = max(oldest, said.oldest_wait_s)
        return max(in_flight, sum(i.in_flight for i in self.instances.values())), queued + stored, oldest

    def named(self, version: int, now: float) -> int:
        """Of what is queued, how many insist on this version."""
        fresh = (said for said in self.demand.values() if now - said.at <= DEMAND_VALID_S)
        return sum(said.named.get(version, 0) for said in fresh)

    def counted(self, now: float) -> bool:
        """Whether all that came for the current version is known: not while callers name another one."""
        heard = all(now - said.at <= DEMAND_VALID_S for said in self.demand.values())
        return heard and not self.pins and self.signals.known(now)

    def routable(self, instance: Instance) -> bool:
        """Whether gateways may send requests to this instance."""
        takes = instance.state == "ready" and not instance.unready
        return takes and instance.version not in self.trials and not self.deleting

    def old_instances(self) -> list[Instance]:
        """Living instances that a rollout replaces."""
        if self.rollout_from is None:
            return []
        return [
            i
            for i in self.instances.values()
            if i.version != self.version
            and i.version not in self.trials
            and i.version not in self.pins
            and i.state not in ("draining", "stopped", "failed")
        ]

    def note(self, action: str, reason: str) -> None:
        """Remember a decision for people; the last fifty are kept."""
        if self.notes is None:
            self.notes = deque(maxlen=50)
        self.notes.append(DecisionNote(time.time(), action, reason))

    def facts(self) -> EndpointFacts:
        """What its state follows from."""
        return EndpointFacts(
            deleting=self.deleting,
            has_version=self.version is not None,
            trial=bool(self.trials),
            old_instances=bool(self.old_instances()),
            ready=sum(1 for i in self.instances.values() if self.routable(i)),
            failing=self.failing is not None
            and self.failing.version == self.version
            and not self.failing.lived,
        )


def steady_clock() -> Callable[[], float]:
    """A monotonic clock that began at the Unix time of now: what is learnt of days and hours stays true.

    When the system's clock is set, this one is not.
    """
    began = time.time() - time.monotonic()
    return lambda: began + time.monotonic()


class World:
    """All of it, and the clock."""

    def __init__(self, now: Callable[[], float] | None = None) -> None:
        self.now = now or steady_clock()
        self.endpoints: dict[str, Endpoint] = {}
        self.active: dict[str, Endpoint] = {}
        """Endpoints that a tick looks at: with instances, demand, a minimum, or a change in progress."""
        self.hosts: dict[str, Host] = {}
        self.instances: dict[str, Instance] = {}
        self.secrets: dict[tuple[str, str], int] = {}
        """(project, name) -> version of those that have a value."""
        self.wakes = 0
        self._spending = 0.0

    @property
    def spending(self) -> float | None:
        """Dollars per hour of all instances; None: no host has a price."""
        priced = any(host.hello.price for host in self.living_hosts())
        return self._spending if priced else None

    def secrets_of(self, spec: EndpointSpec) -> tuple[wire.SecretRef, ...]:
        """The secrets of an endpoint as they are now."""
        known = self.secrets
        return tuple(
            wire.SecretRef(name=s.name, version=known.get((spec.project, s.name), 0), env=s.env)
            for s in spec.secrets
        )

    def touch(self, endpoint: Endpoint) -> None:
        """Let ticks look at this endpoint until it is quiet again."""
        self.active[endpoint.key] = endpoint

    def remove(self, instance: Instance) -> None:
        """Forget an instance that ended."""
        self.instances.pop(instance.id, None)
        instance.endpoint.instances.pop(instance.id, None)
        instance.host.leaving.pop(instance, None)
        if instance.host.instances.pop(instance.id, None) is not None:
            instance.host.book(instance, -1)
            # Exactly nothing when nothing runs, whatever sums of fractions left over.
            self._spending = self._spending - (instance.price or 0.0) if self.instances else 0.0

    def add(self, instance: Instance) -> None:
        """Enter an instance in all tables."""
        self.instances[instance.id] = instance
        instance.endpoint.instances[instance.id] = instance
        instance.host.instances[instance.id] = instance
        instance.host.book(instance, 1)
        instance.price = instance.host.price_of(instance)
        self._spending += instance.price or 0.0
        self.touch(instance.endpoint)

    def turn(self, instance: Instance, new: wire.InstanceState, *, resuming: bool = False) -> None:
        """Pause or resume an instance in the tables: what it gives back or takes is booked."""
        instance.host.book(instance, -1)
        instance.state = new
        instance.resuming = self.now() if resuming else None
        instance.parked = new == "paused" and not resuming
        instance.host.book(instance, 1)

    def living_hosts(self) -> Iterator[Host]:
        """Hosts that are not dead."""
        return (h for h in self.hosts.values() if h.state != "dead")


def gpu_pairs(gpus: tuple[Gpu, ...]) -> tuple[tuple[str, int], ...]:
    """Accelerators as messages have them."""
    return tuple((g.name, g.count) for g in gpus)


def wall(world: World, at: float) -> float:
    """A time of the world's clock as seconds since the Unix epoch."""
    return time.time() - (world.now() - at)
