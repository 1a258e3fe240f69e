"""Values of the pure autoscaler: observations in, actions out. All serialise to JSON for replay.

Times are seconds on any one clock that the caller chooses; the autoscaler has none.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from headrace_autoscaler.configs import (
    BurstConfig,
    DemandConfig,
    ForecastConfig,
    KeepConfig,
    LimitConfig,
    PoolConfig,
)
from headrace_autoscaler.states import (
    BurstState,
    DemandState,
    ForecastState,
    KeepState,
    LatenessState,
    PoolState,
)
from headrace_autoscaler.values import Value

MAX_SERVED = 256


class ScalingSpec(Value, frozen=True, kw_only=True):
    """The endpoint's wish, from its spec."""

    min: int = 0
    max: int = 10
    target_concurrency: float = 1.0
    idle_timeout_s: float = 60.0
    warm: int = 0
    concurrency: int = 1
    """Requests that one instance runs at once."""
    cpu: float = 0.125
    memory: int = 0
    gpu: tuple[tuple[str, int], ...] = ()
    """In order of preference; one of them is enough."""
    providers: tuple[str, ...] = ()
    regions: tuple[str, ...] = ()
    spot: Literal["prefer", "never", "only"] = "prefer"
    runtime: str = "process"
    learn_idle: bool = False
    """Keep an idle instance as long as experience says that it pays; ``idle_timeout_s`` counts only until a
    start was seen."""
    max_price: float | None = None
    """Dollars per hour of one instance; offers above it are not taken."""
    balance: float = 0.5
    """0: cheapest. 1: most stable (more spare beside spot, earlier to on-demand)."""
    on_demand: int = 0
    """Of the instances wanted, as many as this are never on spot."""
    budget: float | None = None
    """Dollars per hour that all its instances together may cost."""
    tokens: float | None = None
    """Tokens in flight that one instance takes; None: it is scaled on requests."""


class InstanceObservation(Value, frozen=True, kw_only=True):
    """One instance (or claim in flight: ``starting``)."""

    id: str
    host: str
    version: int
    state: Literal["starting", "ready", "paused", "draining"]
    in_flight: int = 0
    started_at: float = 0.0
    last_used_at: float | None = None
    """None: it has not had its first request yet."""
    cpu: float = 0.0
    """With ``memory`` and ``gpu`` what it gives back when it goes."""
    memory: int = 0
    gpu: tuple[tuple[str, int], ...] = ()
    cpu_used: float | None = None
    """Cores in use, as last seen; None: not known yet. This policy does not look at what is used."""
    memory_used: int | None = None
    """Bytes in use."""
    gpu_used: float | None = None
    """Busy part of its accelerators, 0 to 1 each, together."""
    ready_at: float | None = None
    """Since when it takes requests; None: it is starting, or not known."""
    offer: str = ""
    """The offer that its node was launched from for it; empty: it is on a host that was there."""
    spot: bool = False
    price: float | None = None
    """Dollars per hour that this one instance costs; None: not known."""
    paid_until: float | None = None
    """Until when it is paid for anyway (minimum billing)."""
    lost_at: float | None = None
    """When its node is taken away, once that is known (preemption notice), however it serves until then."""


class EndpointObservation(Value, frozen=True, kw_only=True):
    """What is known of one endpoint now."""

    endpoint: str
    version: int
    """The version that new instances get."""
    scaling: ScalingSpec
    in_flight: int = 0
    queued: int = 0
    oldest_wait_s: float = 0.0
    instances: tuple[InstanceObservation, ...] = ()
    blocked_until: float = 0.0
    """Starts are backed off until then (crash loop)."""
    rollout_from: int | None = None
    """Set while a rollout runs: instances of other versions than ``version`` are being replaced."""
    arrived: int | None = None
    """Requests that ever arrived, a counter. None, here and below: not known, which is not zero."""
    demand_s: float | None = None
    """The integral of ``in_flight + queued`` over time, request-seconds, a counter: an average over any
    window is a difference of two of them, however irregular the looks."""
    served: tuple[float, ...] = ()
    """Seconds of service of requests that finished since the look before; at most `MAX_SERVED`."""
    start_s: float | None = None
    """Seconds that a start takes here, as observed lately (its median)."""
    tokens_in_flight: float | None = None


class HostObservation(Value, frozen=True, kw_only=True):
    """What a host can still take."""

    host: str
    provider: str = "local"
    region: str = "local"
    spot: bool = False
    price: float = 0.0
    state: Literal["ready", "suspect", "draining"] = "ready"
    cpu_free: float = 0.0
    memory_free: int = 0
    gpu_free: dict[str, int] = msgspec.field(default_factory=dict)
    cpu: float = 0.0
    """With ``memory`` and ``gpu`` all that it has, to share its price by; 0: not known."""
    memory: int = 0
    gpu: dict[str, int] = msgspec.field(default_factory=dict)
    runtimes: tuple[str, ...] = ("process",)
    pauses: tuple[str, ...] = ()
    """Runtimes whose instances can be paused there: they keep their memory and give back the rest."""
    pauses_gpu: bool = False
    """Also those that have accelerators."""
    paused_free: int = 0
    """Bytes that further paused instances may hold."""
    warm: tuple[str, ...] = ()
    """Endpoints whose zygote is ready there."""


class OfferObservation(Value, frozen=True, kw_only=True):
    """What could be launched: nodes of one kind of one provider in one region, each for one instance."""

    offer: str
    provider: str
    region: str = ""
    kind: str = ""
    gpu: tuple[str, int] | None = None
    cpu: float = 0.0
    """With ``memory``: what an instance there may use; 0: enough for any."""
    memory: int = 0
    spot: bool = False
    price: float = 0.0
    """Dollars per hour of one node."""
    min_billing_s: float = 0.0
    boot_s: float | None = None
    """Seconds from launch to ready, as observed lately (median); None: never seen."""
    left: int | None = None
    """How many more the quota allows; None: not known."""
    failures: int = 0
    """Launches that failed since one succeeded."""
    failed_at: float | None = None
    """When the last launch failed."""
    reason: str = ""
    """Why, in the provider's words."""
    preempted_at: float | None = None
    """When a node was last taken away there."""
    waiting: int = 0
    """Nodes of it that are up without an instance, to be there at once,"""
    waiting_booting: int = 0
    """and those of them that still boot."""
    launched: int | None = None
    """Instances that ever were to go on a node of it, a counter; None: not known."""
    launching: int | None = None
    """Launches under way there, for all endpoints; None: not known."""
    runtimes: tuple[str, ...] = ("process", "oci", "docker")


class PoolObservation(Value, frozen=True, kw_only=True):
    """One pool of warm sandboxes: those of one base environment on one host."""

    host: str
    base: str
    ready: int = 0
    making: int = 0
    claimed: int | None = None
    """Claims that ever were made, with those that found none ready, a counter; None: not known."""
    missed: int | None = None
    """Claims that found none ready, a counter."""
    cost: float = 0.0
    """What one that waits costs, dollars per hour (or any unit that all pools share)."""
    memory: int = 0
    """Bytes that one that waits takes."""
    refill_s: float | None = None
    """Seconds that it takes to make one."""


class Observation(Value, frozen=True, kw_only=True):
    """The input of one decision: the endpoints concerned, all hosts, and what could be launched."""

    endpoints: tuple[EndpointObservation, ...]
    hosts: tuple[HostObservation, ...]
    idle_elsewhere: tuple[tuple[str, InstanceObservation, ScalingSpec], ...] = ()
    """(endpoint, instance, its scaling) of idle instances that may give way when no host has room."""
    offers: tuple[OfferObservation, ...] = ()
    pools: tuple[PoolObservation, ...] = ()
    spending: float | None = None
    """Dollars per hour of all instances, with those of endpoints not listed here; None: not known."""


class Start(Value, frozen=True, kw_only=True, tag=True):
    """Start one instance of ``version`` on ``host``."""

    endpoint: str
    version: int
    host: str
    reason: str
    after: tuple[str, ...] = ()
    """Instances that give way to it."""


class Pause(Value, frozen=True, kw_only=True, tag=True):
    """Freeze an idle instance: it gives way, and keeps its memory."""

    endpoint: str
    instance: str
    reason: str


class Resume(Value, frozen=True, kw_only=True, tag=True):
    """Let a paused instance go on."""

    endpoint: str
    instance: str
    reason: str
    after: tuple[str, ...] = ()
    """Instances that give way to it."""


class Release(Value, frozen=True, kw_only=True, tag=True):
    """Drain and stop an instance."""

    endpoint: str
    instance: str
    reason: str


class Wait(Value, frozen=True, kw_only=True, tag=True):
    """Wanted, but it cannot be done now; shown to whoever waits."""

    endpoint: str
    wanted: int
    reason: str
    no_room: bool = False
    """A host that could run it is there, and is full."""


class Launch(Value, frozen=True, kw_only=True, tag=True):
    """Launch one node of ``offer`` for one instance of ``version``."""

    endpoint: str
    version: int
    offer: str
    reason: str


class Refill(Value, frozen=True, kw_only=True, tag=True):
    """Keep ``count`` sandboxes warm in one pool from now on."""

    host: str
    base: str
    count: int
    reason: str


class WarmNodes(Value, frozen=True, kw_only=True, tag=True):
    """Keep ``count`` nodes without an instance booted, of one offer."""

    offer: str
    count: int
    reason: str


Action = Start | Resume | Pause | Release | Wait | Launch | Refill | WarmNodes


class EndpointState(Value, frozen=True, kw_only=True):
    """What the policy remembers of an endpoint between decisions."""

    desired: int = 0
    below_since: float | None = None
    """Since when fewer instances than there are would do."""
    demand: DemandState | None = None
    forecast: ForecastState | None = None
    keep: KeepState | None = None
    lateness: LatenessState | None = None
    burst: BurstState | None = None
    level: float = 0.0
    """The level of demand that instances are to be there for, ahead of it,"""
    level_s: float | None = None
    """as it will be in so many seconds."""
    up_at: float | None = None
    """When more were wanted than before, and when fewer; only while cool-downs are set."""
    down_at: float | None = None


class State(Value, frozen=True, kw_only=True):
    """The policy's memory; returned by `decide` and given back to it."""

    endpoints: dict[str, EndpointState] = msgspec.field(default_factory=dict)
    pools: dict[str, PoolState] = msgspec.field(default_factory=dict)
    """By ``host/base``."""
    nodes: dict[str, PoolState] = msgspec.field(default_factory=dict)
    """Of nodes that wait, by offer."""


class Config(Value, frozen=True, kw_only=True):
    """The policy's parameters."""

    tick_s: float = 0.5
    """For callers that have no rhythm of their own; nothing is decided by it."""
    scale_down_delay_s: float = 5.0
    """Surplus instances above what demand asks for are kept at least this long."""
    paused_hold_s: float = 600.0
    """An instance that was paused is stopped when nobody has called it for this long."""
    unused_hold_s: float = 1.0
    """An instance that nobody has used yet does not give way to others within this time of its start, and
    never while requests wait for it."""
    demand: DemandConfig = DemandConfig()
    forecast: ForecastConfig = ForecastConfig()
    keep: KeepConfig = KeepConfig()
    burst: BurstConfig = BurstConfig()
    limits: LimitConfig = LimitConfig()
    pools: PoolConfig = PoolConfig()


class Decision(Value, frozen=True, kw_only=True):
    """The output of one decision."""

    actions: tuple[Action, ...]
    state: State
    look_again_at: float | None = None
    """When something falls due if nothing else happens; None: only at the next tick."""


class Record(Value, frozen=True, kw_only=True):
    """One line of the history: everything needed to decide again."""

    now: float
    observation: Observation
    state: State
    config: Config
    decision: Decision

    @property
    def lane(self) -> str:
        """Whose memory the state is: the first endpoint's; empty where only pools are decided."""
        return self.observation.endpoints[0].endpoint if self.observation.endpoints else ""
