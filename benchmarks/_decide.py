"""How long one decision takes, and how fast the simulator is."""

from __future__ import annotations

import random
import statistics
import time
from dataclasses import replace
from typing import Any

import msgspec
from headrace_autoscaler.baselines import policy_of
from headrace_autoscaler.simulate.generators import synthetic
from headrace_autoscaler.simulate.scenario import Draw, Scenario, Supply, Wish
from headrace_autoscaler.simulate.sweep import Variant
from headrace_autoscaler.spec import (
    EndpointObservation,
    HostObservation,
    InstanceObservation,
    Observation,
    OfferObservation,
    ScalingSpec,
)

from benchmarks._replays import once

KIND = "gpu"
ROUNDS = 60
FIRST_ROUNDS = 20
"""The first looks are not counted: the policy fills its windows."""
REQUESTS = 200_000
WEEK_DAYS = 7.0


def observation(endpoints: int, hosts: int, now: float, seed: int = 1) -> Observation:
    """Endpoints of which most are idle and some are busy, hosts of 8 GPUs, and twenty offers."""
    chance = random.Random(f"{seed}/{now}")
    made = []
    for number in range(endpoints):
        lively = number % 5 == 0
        count = number % 3 if lively else int(number % 7 == 0)
        busy = chance.randrange(count + 1) if count else 0
        queued = chance.randrange(3) if lively else 0
        made.append(
            EndpointObservation(
                endpoint=f"endpoint-{number}",
                version=1,
                scaling=ScalingSpec(max=20, gpu=((KIND, 1),), runtime="oci", learn_idle=True),
                in_flight=busy,
                queued=queued,
                oldest_wait_s=chance.random() if queued else 0.0,
                instances=tuple(_instance(number, n, hosts, now, busy) for n in range(count)),
                arrived=int(now) * (1 + number % 5),
                demand_s=now * (busy + 0.3),
                served=tuple(chance.uniform(1, 60) for _ in range(2 if lively else 0)),
                start_s=12.0,
            )
        )
    free = [
        HostObservation(
            host=f"host-{n}", price=2.0, gpu_free={KIND: n % 9}, runtimes=("process", "oci"), cpu_free=64.0,
            memory_free=1 << 38,
        )
        for n in range(hosts)
    ]  # fmt: skip
    offers = [
        OfferObservation(
            offer=f"offer-{n}", provider=f"provider-{n % 3}", region=f"region-{n % 5}", kind=KIND,
            gpu=(KIND, 1), spot=n % 2 == 0, price=2.0 + n / 10, boot_s=12.0,
        )
        for n in range(20)
    ]  # fmt: skip
    return Observation(endpoints=tuple(made), hosts=tuple(free), offers=tuple(offers))


def _instance(endpoint: int, number: int, hosts: int, now: float, busy: int) -> InstanceObservation:
    return InstanceObservation(
        id=f"i-{endpoint}-{number}", host=f"host-{(endpoint + number) % hosts}", version=1, state="ready",
        in_flight=int(number < busy), started_at=0.0, ready_at=10.0, gpu=((KIND, 1),), price=2.0,
        last_used_at=now - (0.0 if number < busy else 5.0 * (endpoint % 11)),
    )  # fmt: skip


def decisions(endpoints: int, hosts: int, rounds: int = ROUNDS) -> dict[str, Any]:
    """Milliseconds of whole decisions on observations that change from look to look."""
    policy = policy_of("headrace")
    state, times, actions = policy.state, [], 0
    for turn in range(FIRST_ROUNDS + rounds):
        now = 1000.0 + turn * policy.tick_s
        seen = observation(endpoints, hosts, now)
        began = time.perf_counter()
        outcome = policy.decide(now, seen, state, policy.config)
        if turn >= FIRST_ROUNDS:
            times.append(1000 * (time.perf_counter() - began))
        state, actions = outcome.state, actions + len(outcome.actions)
    ordered = sorted(times)
    return {
        "endpoints": endpoints,
        "hosts": hosts,
        "instances": sum(len(one.instances) for one in seen.endpoints),
        "p50_ms": round(statistics.median(times), 2),
        "p99_ms": round(ordered[int(0.99 * (len(ordered) - 1))], 2),
        "max_ms": round(ordered[-1], 2),
        "actions_per_look": round(actions / (FIRST_ROUNDS + rounds), 1),
        "state_bytes": len(msgspec.json.encode(state)),
    }


def speed(policies: tuple[str, ...], boot: Draw, requests: int = REQUESTS) -> dict[str, Any]:
    """Seconds that a week of so many requests takes to simulate, per policy."""
    trace = synthetic("diurnal", WEEK_DAYS, 1, requests_per_day=requests / WEEK_DAYS)
    scenario = Scenario(trace, (Supply("cloud", 3.29, boot),), (Wish(),))
    found: dict[str, Any] = {"requests": len(trace.arrivals), "days": WEEK_DAYS}
    for name in policies:
        result = once(replace(scenario), Variant(name), 0)
        found[name] = {"seconds": round(result.seconds, 2), "decisions": result.decisions}
    return found
