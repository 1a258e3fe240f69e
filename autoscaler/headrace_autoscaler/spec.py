"""Values of the pure autoscaler: observations in, actions out. All serialise to JSON for replay.

Times are seconds on any one clock that the caller chooses; the autoscaler has none.
"""

from __future__ import annotations

from typing import Literal

import msgspec


class Value(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Base of all values here."""


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
    gpu_free: dict[str, int] = {}
    runtimes: tuple[str, ...] = ("process",)
    pauses: tuple[str, ...] = ()
    """Runtimes whose instances can be paused there: they keep their memory and give back the rest."""
    pauses_gpu: bool = False
    """Also those that have accelerators."""
    paused_free: int = 0
    """Bytes that further paused instances may hold."""
    warm: tuple[str, ...] = ()
    """Endpoints whose zygote is ready there."""


class Observation(Value, frozen=True, kw_only=True):
    """The input of one decision: the endpoints concerned and all hosts."""

    endpoints: tuple[EndpointObservation, ...]
    hosts: tuple[HostObservation, ...]
    idle_elsewhere: tuple[tuple[str, InstanceObservation, ScalingSpec], ...] = ()
    """(endpoint, instance, its scaling) of idle instances that may give way when no host has room."""


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


Action = Start | Resume | Pause | Release | Wait


class EndpointState(Value, frozen=True, kw_only=True):
    """What the policy remembers of an endpoint between decisions."""

    desired: int = 0
    below_since: float | None = None
    """Since when fewer instances than there are would do."""


class State(Value, frozen=True, kw_only=True):
    """The policy's memory; returned by `decide` and given back to it."""

    endpoints: dict[str, EndpointState] = {}


class Config(Value, frozen=True, kw_only=True):
    """The policy's parameters."""

    tick_s: float = 0.5
    scale_down_delay_s: float = 5.0
    """Surplus instances above what demand asks for are kept at least this long."""
    paused_hold_s: float = 600.0
    """An instance that was paused is stopped when nobody has called it for this long."""
    unused_hold_s: float = 1.0
    """An instance that nobody has used yet does not give way to others within this time of its start, and
    never while requests wait for it."""


class Decision(Value, frozen=True, kw_only=True):
    """The output of one decision."""

    actions: tuple[Action, ...]
    state: State


class Record(Value, frozen=True, kw_only=True):
    """One line of the history: everything needed to decide again."""

    now: float
    observation: Observation
    state: State
    config: Config
    decision: Decision
