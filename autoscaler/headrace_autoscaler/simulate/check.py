"""Refuses scenarios that do not hold together, before anything is played."""

from __future__ import annotations

import numpy as np

from headrace_autoscaler.interface import Policy
from headrace_autoscaler.simulate.scenario import Scenario, Supply, Trace


def check(scenario: Scenario, policy: Policy) -> None:
    """Raise ``ValueError``, saying what to change, unless it can be played."""
    _check_trace(scenario.trace)
    wishes, endpoints = len(scenario.wishes), len(scenario.trace.names)
    if wishes not in (1, endpoints):
        raise ValueError(f"{wishes} wishes for {endpoints} endpoints: give one, or one of each")
    names = [supply.name for supply in scenario.supplies]
    if len(set(names)) < len(names):
        raise ValueError(f"supplies have the same name: {', '.join(names)}; name each differently")
    if policy.tick_s <= 0:
        raise ValueError(f"policy {policy.name} has a tick of {policy.tick_s} s: it must be more than 0")
    for supply in scenario.supplies:
        _check_supply(supply)


def _check_trace(trace: Trace) -> None:
    if not len(trace.arrivals) == len(trace.durations) == len(trace.endpoints):
        raise ValueError("the trace's arrivals, durations and endpoints differ in length: give one of each")
    if not len(trace.arrivals):
        return
    if trace.arrivals[0] < 0 or np.any(np.diff(trace.arrivals) < 0):
        raise ValueError("the trace's arrivals are not in order from 0 on: sort them")
    if np.min(trace.durations) < 0:
        raise ValueError("a duration of the trace is negative: leave that request out")
    if np.min(trace.endpoints) < 0 or np.max(trace.endpoints) >= len(trace.names):
        raise ValueError("the trace has an endpoint without a name: name each")


def _check_supply(supply: Supply) -> None:
    if supply.standing and (not supply.owned or supply.capacity is None):
        raise ValueError(f"supply {supply.name} is standing: it must be owned and have a capacity")
    if supply.owned and supply.availability is not None:
        raise ValueError(f"supply {supply.name} is owned: only offers have an availability")
    if not supply.owned and (supply.cached is not None or supply.warm is not None or supply.warm_sandboxes):
        raise ValueError(
            f"supply {supply.name} is an offer: its nodes boot, so leave out cached, warm and warm_sandboxes"
        )
    if supply.mtbf_s is not None and supply.mtbf_s <= 0:
        raise ValueError(f"supply {supply.name} has an mtbf of {supply.mtbf_s} s: it must be more than 0")
    steps = supply.availability
    if steps is not None and len(steps.times) != len(steps.values):
        raise ValueError(f"supply {supply.name}: its availability needs as many values as times")
    for begin, until in supply.outages:
        if until < begin:
            raise ValueError(
                f"supply {supply.name}: an outage ends before it begins, from {begin:g} to {until:g} s: "
                "give its begin first"
            )
