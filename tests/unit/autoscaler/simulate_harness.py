"""Small scenarios, and policies that do what is written down. One second of an instance costs a dollar."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from headrace_autoscaler.interface import Plan, Policy
from headrace_autoscaler.simulate.engine import run
from headrace_autoscaler.simulate.scenario import Draw, Result, Scenario, Supply, Trace
from headrace_autoscaler.spec import (
    Action,
    EndpointObservation,
    Launch,
    Observation,
    Release,
    Start,
)

DOLLAR_A_SECOND = 3600.0
Looks = list[tuple[float, Observation]]


def exact(seconds: float) -> Draw:
    return Draw(seconds, jitter=0.0)


def cloud(name: str = "cloud", boot: float = 20.0, **changes: Any) -> Supply:
    return Supply(name=name, price=DOLLAR_A_SECOND, boot=exact(boot), **changes)


def home(capacity: int | None = 2, boot: float = 20.0, **changes: Any) -> Supply:
    return cloud("home", boot, owned=True, capacity=capacity, **changes)


def trace(*requests: tuple[float, float] | tuple[float, float, int], names: Sequence[str] = ("e",)) -> Trace:
    """Requests as (arrival, duration[, endpoint])."""
    return Trace(
        name="t",
        arrivals=np.array([r[0] for r in requests], dtype=np.float64),
        durations=np.array([r[1] for r in requests], dtype=np.float64),
        endpoints=np.array([r[2] if len(r) == 3 else 0 for r in requests], dtype=np.int32),
        names=tuple(names),
    )


def scenario(given: Trace, *supplies: Supply, **changes: Any) -> Scenario:
    return Scenario(trace=given, supplies=supplies, **({"tail_s": 100.0} | changes))


def launch(offer: str = "cloud", endpoint: str = "e") -> Launch:
    return Launch(endpoint=endpoint, version=1, offer=offer, reason="test")


def start(host: str = "home", endpoint: str = "e") -> Start:
    return Start(endpoint=endpoint, version=1, host=host, reason="test")


def release(instance: str, endpoint: str = "e") -> Release:
    return Release(endpoint=endpoint, instance=instance, reason="test")


def script(
    what: Mapping[float, Sequence[Action]],
    looks: Looks | None = None,
    again: Callable[[float], float | None] = lambda now: None,
    **changes: Any,
) -> Policy:
    """Does what is written down for a time when it is called then; ``looks`` takes down what it saw."""

    def decide(now: float, observation: Observation, state: Any, config: Any) -> Plan:
        if looks is not None:
            looks.append((now, observation))
        return Plan(tuple(what.get(now, ())), state, again(now))

    return Policy(**({"name": "script", "decide": decide, "state": None, "config": None, "tick_s": 1.0,
                      "wakes": "never"} | changes))  # fmt: skip


def play(given: Scenario, what: Mapping[float, Sequence[Action]], **changes: Any) -> Result:
    return run(given, script(what, **changes), 0)


def costs(result: Result) -> dict[str, float]:
    parts = {name: getattr(result.cost, name) for name in ("starting", "idle", "busy", "sunk", "preempted")}
    assert result.cost.total == pytest.approx(sum(result.by_supply.values()))
    return {name: round(dollars, 6) for name, dollars in parts.items() if dollars}


def seen(looks: Looks, at: float, endpoint: int = 0) -> EndpointObservation:
    return next(o for now, o in looks if now == at).endpoints[endpoint]


def states(looks: Looks, at: float) -> list[tuple[str, str, int]]:
    return [(i.id, i.state, i.in_flight) for i in seen(looks, at).instances]
