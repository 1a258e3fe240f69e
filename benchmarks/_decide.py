"""How long one decision takes in a large installation, and how fast the simulator is."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import msgspec
import numpy as np
from headrace_autoscaler.baselines import policy_of
from headrace_autoscaler.interface import Outcome
from headrace_autoscaler.simulate.engine import run
from headrace_autoscaler.simulate.generators import SIGMA, synthetic
from headrace_autoscaler.simulate.scenario import Draw, Scenario, Supply, Trace, Wish
from headrace_autoscaler.simulate.sweep import Variant
from headrace_autoscaler.spec import Config, Observation, State

from benchmarks._replays import once

PLACES = 8
"""Instances that one host holds."""
OFFERS = 20
BUSY = 600.0
"""Requests that run at once on average, over all endpoints."""
SERVICE_S = 26.5
POPULARITY = 1.0
"""Zipf: the k-th endpoint has 1/k of the first one's requests."""
TICK_S = 2.0
"""Between looks at everything; in a simulation of few endpoints the policy asks for fewer."""
REQUESTS = 200_000
WEEK_DAYS = 7.0


def installation(endpoints: int, hosts: int, seconds: float) -> Scenario:
    """Many endpoints, few of them busy, on hosts of their own and with offers beside them."""
    random = np.random.default_rng(3)
    count = round(BUSY * seconds / SERVICE_S)
    chances = 1 / np.arange(1, endpoints + 1) ** POPULARITY
    trace = Trace(
        "installation",
        np.sort(random.random(count) * seconds),
        SERVICE_S * np.exp(SIGMA * random.standard_normal(count) - SIGMA**2 / 2),
        random.choice(endpoints, count, p=chances / chances.sum()).astype(np.int32),
        tuple(f"endpoint-{number}" for number in range(endpoints)),
    )
    boot = Draw(12.0)
    homes = [
        Supply(f"host-{n}", 2.0, boot, capacity=PLACES, owned=True, provider="home") for n in range(hosts)
    ]
    offers = [
        Supply(f"offer-{n}", 3.0 + n / 10, boot, provider=f"provider-{n % 3}", region=f"region-{n % 5}")
        for n in range(OFFERS)
    ]
    return Scenario(trace, (*homes, *offers), (Wish(),), tail_s=0.0)


def decisions(endpoints: int, hosts: int, seconds: float = 300.0) -> dict[str, Any]:
    """Milliseconds of decisions on the whole installation, as a simulation of it asks for them.

    ``cpu``: of this process alone, where others disturb. The first looks, when everything is to be started,
    count too.
    """
    policy = policy_of("headrace")
    wall, cpu, instances, actions = [], [], [], []
    last = policy.state

    def timed(now: float, seen: Observation, state: State, config: Config) -> Outcome:
        nonlocal last
        began, worked = time.perf_counter(), time.process_time()
        outcome = policy.decide(now, seen, state, config)
        if len(seen.endpoints) == endpoints:
            wall.append(1000 * (time.perf_counter() - began))
            cpu.append(1000 * (time.process_time() - worked))
            instances.append(sum(len(one.instances) for one in seen.endpoints))
            actions.append(len(outcome.actions))
            last = outcome.state
        return outcome

    run(installation(endpoints, hosts, seconds), replace(policy, decide=timed, tick_s=TICK_S), 0)
    figures = {
        f"{part}_ms": {
            **{f"p{p}": round(float(np.percentile(times, p)), 2) for p in (50, 99)},
            "max": round(max(times), 2),
        }
        for part, times in (("wall", wall), ("cpu", cpu))
    }
    return {
        "endpoints": endpoints,
        "hosts": hosts,
        "decisions": len(wall),
        "instances": round(float(np.mean(instances))),
        "actions_per_decision": round(float(np.mean(actions)), 1),
        "state_bytes": len(msgspec.json.encode(last)),
        **figures,
    }


def speed(policies: tuple[str, ...], boot: Draw, requests: int = REQUESTS) -> dict[str, Any]:
    """Seconds that a week of so many requests takes to simulate, per policy."""
    trace = synthetic("diurnal", WEEK_DAYS, 1, requests_per_day=requests / WEEK_DAYS)
    scenario = Scenario(trace, (Supply("cloud", 3.29, boot),), (Wish(),))
    found: dict[str, Any] = {"requests": len(trace.arrivals), "days": WEEK_DAYS}
    for name in policies:
        worked = time.process_time()
        result = once(scenario, Variant(name), 0)
        found[name] = {
            "seconds": round(result.seconds, 2),
            "cpu_seconds": round(time.process_time() - worked, 2),
            "decisions": result.decisions,
        }
    return found
