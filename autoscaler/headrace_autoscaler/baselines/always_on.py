"""A fixed number of instances, whatever comes: what a reserved fleet does.

Nothing is adapted, but that the endpoint's max bounds it: a lost instance is replaced at the next look.
"""

from __future__ import annotations

from collections.abc import Mapping

from headrace_autoscaler.baselines.base import Fleet, Verdict, bounded, each, to_count
from headrace_autoscaler.interface import Plan, Policy
from headrace_autoscaler.spec import EndpointObservation, Observation
from headrace_autoscaler.values import Value

TICK_S = 10.0


class AlwaysOnConfig(Value, frozen=True, kw_only=True):
    """Its one parameter."""

    count: int
    """Instances."""


def judge(
    now: float, endpoint: EndpointObservation, fleet: Fleet, memory: None, config: AlwaysOnConfig
) -> Verdict:
    """Have ``config.count`` instances."""
    desired = bounded(endpoint.scaling, config.count)
    return to_count(fleet, desired, memory, ("always on: %d", desired), starting=True, busy=False)


def decide(now: float, observation: Observation, state: Mapping[str, None], config: AlwaysOnConfig) -> Plan:
    """One decision, as `headrace_autoscaler.interface.Policy` describes it."""
    return each(now, observation, state, config, judge=judge, fresh=None)


def policy(count: int) -> Policy:
    """``count`` instances of each endpoint."""
    return Policy("always-on", decide, {}, AlwaysOnConfig(count=count), TICK_S, wakes="never")
