"""The Kubernetes horizontal pod autoscaler (HPA) with its defaults.

Source: the Kubernetes documentation ("Horizontal Pod Autoscaling": algorithm details, configurable scaling
behaviour) and kubernetes/kubernetes, pkg/controller/podautoscaler: sync every 15 s, tolerance 10 %, at
least 1 pod, scale up per 15 s by 4 pods or to twice, whichever is more, without stabilisation; scale down
by the largest recommendation of the last 300 s; target 80 % where none is set.

The rule (of a metric with a target per pod): ratio = total / (target * pods); within the tolerance of 1 the
pods stay, else ceil(total / target).

Adapted:
- The metric is the requests in flight and queued, averaged from sync to sync; an HPA on GPUs is given such
  a custom metric, since utilisation cannot show more than is there. Target: 80 % of ``concurrency`` per
  pod.
- With ``demand_s`` unknown the count stays, as it does when a metric cannot be fetched.
- Pods that go: those that start first, then idle ones, then busy ones, which drain (see `knative`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from headrace_autoscaler.baselines.base import Fleet, Verdict, each, to_count
from headrace_autoscaler.interface import Plan, Policy
from headrace_autoscaler.spec import EndpointObservation, Observation
from headrace_autoscaler.values import Value

TICK_S = 15.0


class HpaConfig(Value, frozen=True, kw_only=True):
    """The controller's flags and the default behaviour."""

    sync_s: float = TICK_S
    tolerance: float = 0.1
    utilization: float = 0.8
    stabilization_s: float = 300.0
    up_pods: int = 4
    up_factor: float = 2.0
    min: int = 1


class HpaState(Value, frozen=True, kw_only=True):
    """What the controller remembers of one HPA."""

    target: int | None = None
    """Pods asked for; None: it has not looked yet."""
    synced_at: float = 0.0
    counter: float | None = None
    """``demand_s`` then."""
    recommended: tuple[tuple[float, int], ...] = ()
    """(when, how many), those of the stabilisation window."""


_NEW = HpaState()


def judge(
    now: float, endpoint: EndpointObservation, fleet: Fleet, memory: HpaState, config: HpaConfig
) -> Verdict:
    """One sync, or nothing between two."""
    least = max(config.min, endpoint.scaling.min)
    pods = min(endpoint.scaling.max, least if memory.target is None else max(least, memory.target))
    if memory.target is not None and now - memory.synced_at < config.sync_s:
        return to_count(fleet, pods, memory, ("%d pods", pods), starting=True, busy=True)
    counter = endpoint.demand_s
    if counter is None or memory.counter is None or memory.target is None or counter < memory.counter:
        seed = memory.recommended or ((now, pods),)
        after = HpaState(target=pods, synced_at=now, counter=counter, recommended=seed)
        return to_count(fleet, pods, after, ("no metric yet: %d pods", pods), starting=True, busy=True)
    mean = (counter - memory.counter) / (now - memory.synced_at)
    each_one = config.utilization * endpoint.scaling.concurrency
    status = len(fleet.alive)
    advised = status
    if not status or abs(mean / (each_one * status) - 1.0) > config.tolerance:
        advised = math.ceil(mean / each_one)
    begin = now - config.stabilization_s
    recommended = (*(one for one in memory.recommended if one[0] > begin), (now, advised))
    highest = max(count for _, count in recommended)
    # Up at once, down to the highest of the window.
    desired = min(max(pods, advised), highest)
    desired = min(desired, max(pods + config.up_pods, math.ceil(pods * config.up_factor)))
    desired = min(endpoint.scaling.max, max(least, desired))
    why = ("%.2f requests, %g per pod: %d advised, %d at most lately", mean, each_one, advised, highest)
    after = HpaState(target=desired, synced_at=now, counter=counter, recommended=recommended)
    return to_count(fleet, desired, after, why, starting=True, busy=True)


def decide(now: float, observation: Observation, state: Mapping[str, HpaState], config: HpaConfig) -> Plan:
    """One decision, as `headrace_autoscaler.interface.Policy` describes it."""
    return each(now, observation, state, config, judge=judge, fresh=_NEW)


def policy() -> Policy:
    """The HPA as it comes."""
    return Policy("hpa", decide, {}, HpaConfig(), TICK_S, wakes="never")
