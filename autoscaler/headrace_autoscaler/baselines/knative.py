"""Knative's pod autoscaler (KPA) with its defaults.

Source: knative/serving, pkg/autoscaler/scaling/autoscaler.go (the rule), pkg/autoscaler/aggregation
(windows), pkg/reconciler/autoscaling/kpa/scaler.go (to zero), config/core/configmaps/autoscaler.yaml
(defaults): tick 2 s, stable window 60 s, panic window 10 % of it, target utilisation 70 % of the
container's concurrency, panic threshold 200 %, scale up at most x1000 and down at most to 1/2 of the ready
ones per tick, scale to zero 30 s after the last pod became superfluous.

The rule: wanted = ceil(average concurrency / target) over the stable and over the panic window, both within
[ready / 2, ready * 1000] with ready taken as 1 at least. When the panic window wants twice what is ready,
it panics: it takes the larger of both and never goes down, until the stable window has passed since the
last such moment. To zero: the last one stays until it was active for a stable window, and then for the
grace period.

Adapted:
- Averages are exact, from the integral of concurrency, where the KPA takes the mean of one value per
  second; with looks every 2 s and a panic window of 6 s the two differ by less than a bucket. Like the
  KPA's windows they begin with the first data after it was at zero. Within the first second of that the
  concurrency itself is the average, as the first bucket has it: one request at zero asks for ceil(1 / 0.7)
  = 2.
- At zero the activator pokes the autoscaler at once; at all other times it looks every 2 s.
- The grace period is kept whole. Knative may cut it short when the activator is in the path already.
- With no data (``demand_s`` unknown) the count stays, as ``ErrNoData`` does there.
- Pods that go: those that start first, then idle ones, then busy ones, which drain (Kubernetes prefers pods
  that are not ready; among ready ones it does not know which are idle: this is kinder).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import msgspec

from headrace_autoscaler.baselines.base import Fleet, Verdict, bounded, each, to_count
from headrace_autoscaler.baselines.windows import Samples, average, push
from headrace_autoscaler.interface import Plan, Policy
from headrace_autoscaler.spec import EndpointObservation, Observation
from headrace_autoscaler.values import Value

TICK_S = 2.0
_DIGITS = 6
"""The KPA rounds its averages to as many."""


class KnativeConfig(Value, frozen=True, kw_only=True):
    """The keys of ``config-autoscaler``."""

    stable_window_s: float = 60.0
    panic_window_s: float = 6.0
    utilization: float = 0.7
    panic_threshold: float = 2.0
    max_scale_up: float = 1000.0
    max_scale_down: float = 2.0
    grace_s: float = 30.0


class KnativeState(Value, frozen=True, kw_only=True):
    """What the KPA remembers of one revision."""

    samples: Samples = ()
    target: int = 0
    """The scale that was last applied."""
    panic_at: float | None = None
    """When it last was over the panic threshold; None: it does not panic."""
    panic_pods: int = 0
    active_at: float | None = None
    """When the first one became ready after zero."""
    zero_at: float | None = None
    """Since when none is wanted."""


_ZERO = KnativeState()


def judge(
    now: float, endpoint: EndpointObservation, fleet: Fleet, memory: KnativeState, config: KnativeConfig
) -> Verdict:
    """One tick of the KPA."""
    concurrency = endpoint.in_flight + endpoint.queued
    counter = endpoint.demand_s
    if counter is None:
        return _have(endpoint, fleet, memory, memory.target, ("no data: stays at %d", memory.target))
    if not concurrency and not fleet.alive and not memory.target and not endpoint.scaling.min:
        return Verdict(memory if memory == _ZERO else _ZERO)
    samples = push(memory.samples, now, counter, config.stable_window_s)
    stable = _average(samples, now, counter, config.stable_window_s, concurrency)
    panic = _average(samples, now, counter, config.panic_window_s, concurrency)
    target = config.utilization * endpoint.scaling.concurrency
    ready = max(1, fleet.ready)
    low, high = math.floor(ready / config.max_scale_down), math.ceil(ready * config.max_scale_up)
    asked = math.ceil(panic / target)
    in_stable = min(max(math.ceil(stable / target), low), high)
    in_panic = min(max(asked, low), high)

    panic_at, panic_pods = memory.panic_at, memory.panic_pods
    if asked / ready >= config.panic_threshold:
        panic_at = now
    elif panic_at is not None and panic_at + config.stable_window_s < now:
        panic_at, panic_pods = None, 0
    desired = in_stable
    if panic_at is not None:
        desired = panic_pods = max(in_stable, in_panic, panic_pods)
    why = (
        "%s: %.2f on average over %g s, %.2f over %g s, ask for %d of %g each",
        "stable" if panic_at is None else "panic",
        stable,
        config.stable_window_s,
        panic,
        config.panic_window_s,
        desired,
        target,
    )
    active_at = memory.active_at
    if active_at is None and fleet.ready:
        active_at = now
    desired = bounded(endpoint.scaling, desired)
    desired, zero_at = _to_zero(now, fleet, desired, active_at=active_at, memory=memory, config=config)
    if not desired and not fleet.alive:
        active_at = None
    after = KnativeState(
        samples=samples,
        target=desired,
        panic_at=panic_at,
        panic_pods=panic_pods,
        active_at=active_at,
        zero_at=zero_at,
    )
    return _have(endpoint, fleet, after, desired, why)


def _average(samples: Samples, now: float, counter: float, window_s: float, concurrency: int) -> float:
    found = average(samples, now, counter, window_s)
    return concurrency if found is None else round(found, _DIGITS)


def _to_zero(
    now: float,
    fleet: Fleet,
    desired: int,
    *,
    active_at: float | None,
    memory: KnativeState,
    config: KnativeConfig,
) -> tuple[int, float | None]:
    """(how many after the rules about the last one, since when none is wanted)."""
    if desired or not fleet.alive:
        return desired, None
    if active_at is None:
        # It is being activated: whether it is needed is known when it is ready.
        return memory.target, None
    if now - active_at < config.stable_window_s:
        return 1, None
    zero_at = now if memory.zero_at is None else memory.zero_at
    return (0 if now - zero_at >= config.grace_s else memory.target), zero_at


def _have(
    endpoint: EndpointObservation, fleet: Fleet, memory: KnativeState, count: int, why: tuple[object, ...]
) -> Verdict:
    desired = bounded(endpoint.scaling, count)
    if desired != memory.target:
        memory = msgspec.structs.replace(memory, target=desired)
    return to_count(fleet, desired, memory, why, starting=True, busy=True)


def decide(
    now: float, observation: Observation, state: Mapping[str, KnativeState], config: KnativeConfig
) -> Plan:
    """One decision, as `headrace_autoscaler.interface.Policy` describes it."""
    return each(now, observation, state, config, judge=judge, fresh=_ZERO)


def policy() -> Policy:
    """The KPA as it comes."""
    return Policy("knative", decide, {}, KnativeConfig(), TICK_S, wakes="from-zero")
