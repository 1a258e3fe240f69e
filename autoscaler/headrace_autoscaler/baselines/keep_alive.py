"""Fixed keep-alive: a request that finds nothing free starts an instance, which stays a fixed time when idle.

Source: what function platforms do, and what "Serverless in the Wild" (Shahrad et al., USENIX ATC 2020)
compares with: AWS Lambda keeps idle containers about 10 minutes, Azure Functions 20; 10 minutes is the
default here.

An instance is started for each request that waits beyond those that start already (of ``concurrency``
requests each). None is cancelled, and none goes before it was idle for the whole time.
"""

from __future__ import annotations

from collections.abc import Mapping

from headrace_autoscaler.baselines.base import Fleet, Verdict, each, expire
from headrace_autoscaler.interface import Plan, Policy
from headrace_autoscaler.spec import EndpointObservation, Observation
from headrace_autoscaler.values import Value

TICK_S = 5.0
DEFAULT_S = 600.0


class KeepAliveConfig(Value, frozen=True, kw_only=True):
    """Its one parameter."""

    idle_s: float = DEFAULT_S
    """Seconds that an idle instance is kept."""


def needed(endpoint: EndpointObservation) -> int:
    """Instances that run all that is there at once."""
    return -(-(endpoint.in_flight + endpoint.queued) // endpoint.scaling.concurrency)


def judge(
    now: float, endpoint: EndpointObservation, fleet: Fleet, memory: None, config: KeepAliveConfig
) -> Verdict:
    """Start what is missing; release what was idle for ``config.idle_s``."""
    missing = needed(endpoint) - len(fleet.alive)
    if missing > 0:
        why = ("%d in flight, %d queued, %d here", endpoint.in_flight, endpoint.queued, len(fleet.alive))
        return Verdict(memory, start=missing, why=why)
    due, soonest = expire(now, fleet, lambda _: config.idle_s)
    return Verdict(memory, release=due, gone=("idle for %g s", config.idle_s), look_again_at=soonest)


def decide(now: float, observation: Observation, state: Mapping[str, None], config: KeepAliveConfig) -> Plan:
    """One decision, as `headrace_autoscaler.interface.Policy` describes it."""
    return each(now, observation, state, config, judge=judge, fresh=None)


def policy(idle_s: float = DEFAULT_S) -> Policy:
    """Idle instances are kept ``idle_s`` seconds."""
    return Policy("keep-alive", decide, {}, KeepAliveConfig(idle_s=idle_s), TICK_S)
