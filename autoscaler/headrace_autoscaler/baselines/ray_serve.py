"""Ray Serve's request-based autoscaling with its defaults.

Source: ray-project/ray, python/ray/serve/autoscaling_policy.py and ``AutoscalingConfig``: target of 2 ongoing
requests per replica (1 before Ray 2.32: ``ray-serve-1``), look-back 30 s, upscale delay 30 s, downscale delay
600 s, scaling factors 1.

The rule: wanted = ceil(average of ongoing requests, running and queued, over the look-back / target), within
min and max. It is applied when it has been above the present target for all of the upscale delay, or below
for all of the downscale delay. Only from 1 does it go to 0. While no replica runs and there are requests,
the target is at least 1, at once, and nothing more until one runs.

Adapted:
- The real loop looks every 0.1 s, and this one every second; both take the time since (older ones counted
  looks).
- The average is exact and fresh. The real one rests on pushes every 10 s: up to 10 s later than here.
- ``min_replicas`` is the endpoint's min (Serve's own default is 1).
- With ``demand_s`` unknown the target stays.
- Replicas that go: those that start first, as in Serve; then idle ones; then busy ones, which drain.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from headrace_autoscaler.baselines.base import Fleet, Verdict, bounded, each, to_count
from headrace_autoscaler.baselines.windows import Samples, average, push
from headrace_autoscaler.interface import Plan, Policy
from headrace_autoscaler.spec import EndpointObservation, Observation
from headrace_autoscaler.values import Value

TICK_S = 1.0
DEFAULT_TARGET = 2.0


class RayServeConfig(Value, frozen=True, kw_only=True):
    """The fields of ``AutoscalingConfig``."""

    target: float = DEFAULT_TARGET
    look_back_s: float = 30.0
    upscale_delay_s: float = 30.0
    downscale_delay_s: float = 600.0


class RayServeState(Value, frozen=True, kw_only=True):
    """What is remembered of one deployment."""

    samples: Samples = ()
    target: int = 0
    since: float | None = None
    """Since when the same direction is wanted without a break."""
    up: bool = False
    """Which direction."""


_ZERO = RayServeState()


def judge(
    now: float, endpoint: EndpointObservation, fleet: Fleet, memory: RayServeState, config: RayServeConfig
) -> Verdict:
    """One look of Serve's controller."""
    ongoing = endpoint.in_flight + endpoint.queued
    scaling = endpoint.scaling
    floor = bounded(scaling, memory.target)
    if endpoint.demand_s is None:
        return to_count(fleet, floor, memory, ("no data: stays at %d", floor), starting=True, busy=True)
    if not ongoing and not fleet.alive and not floor:
        return Verdict(memory if memory == _ZERO else _ZERO)
    samples = push(memory.samples, now, endpoint.demand_s, config.look_back_s)
    found = average(samples, now, endpoint.demand_s, config.look_back_s)
    mean = float(ongoing) if found is None else found
    if not fleet.ready:
        # Serve's short cut for a cold start, past all delays.
        target = bounded(scaling, max(1, floor) if mean > 0 or ongoing else floor)
        after = RayServeState(samples=samples, target=target, since=memory.since, up=memory.up)
        return to_count(
            fleet, target, after, ("%d requests and no replica runs", ongoing), starting=True, busy=True
        )
    wanted = bounded(scaling, math.ceil(mean / config.target))
    up = wanted > floor
    since = None if wanted == floor else memory.since if memory.since is not None and memory.up == up else now
    target = floor
    if since is not None:
        delay = config.upscale_delay_s if up else config.downscale_delay_s
        if now - since >= delay:
            target, since = (wanted if floor == 1 else max(1, wanted)), None
    why = ("%.2f ongoing over %g s, %g each, ask for %d", mean, config.look_back_s, config.target, target)
    after = RayServeState(samples=samples, target=target, since=since, up=up)
    return to_count(fleet, bounded(scaling, target), after, why, starting=True, busy=True)


def decide(
    now: float, observation: Observation, state: Mapping[str, RayServeState], config: RayServeConfig
) -> Plan:
    """One decision, as `headrace_autoscaler.interface.Policy` describes it."""
    return each(now, observation, state, config, judge=judge, fresh=_ZERO)


def policy(target: float = DEFAULT_TARGET) -> Policy:
    """Serve with ``target`` ongoing requests per replica."""
    return Policy("ray-serve", decide, {}, RayServeConfig(target=target), TICK_S, wakes="from-zero")
