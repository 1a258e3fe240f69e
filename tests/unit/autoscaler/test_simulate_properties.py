"""What holds in every simulation, whatever the scenario and the policy."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from headrace_autoscaler.interface import Plan, Policy
from headrace_autoscaler.simulate.engine import run
from headrace_autoscaler.simulate.scenario import Draw, Scenario, Steps, Supply, Trace, Wish
from headrace_autoscaler.spec import Action, EndpointObservation, Launch, Observation, Refill, Release, Start
from hypothesis import given, settings
from hypothesis import strategies as st
from simulate_harness import Looks, launch, script

SECONDS = st.floats(0, 200).map(lambda s: round(s, 1))
DRAWS = st.builds(
    Draw,
    median=st.sampled_from([0.0, 1.0, 15.0]),
    jitter=st.sampled_from([0.0, 0.1, 1.0]),
    sigma=st.sampled_from([0.0, 0.5]),
    samples=st.sampled_from([(), (1.0, 2.0, 30.0)]),
)
PERIODS = st.tuples(SECONDS, SECONDS).map(lambda two: (min(two), max(two)))
FAILING: dict[str, Any] = {
    "outages": st.lists(PERIODS, max_size=2).map(tuple),
    "mtbf_s": st.sampled_from([None, 20.0, 300.0]),
    "repair_s": st.sampled_from([0.0, 30.0]),
}
HOMES = st.builds(
    Supply,
    name=st.just("home"),
    price=st.just(1.0),
    boot=DRAWS,
    warm=st.none() | DRAWS,
    cached=st.none() | DRAWS,
    warm_sandboxes=st.integers(0, 2),
    capacity=st.integers(0, 4),
    owned=st.just(True),
    standing=st.booleans(),
    **FAILING,
)
OFFERS = st.builds(
    Supply,
    name=st.sampled_from(["a", "b", "c"]),
    price=st.sampled_from([2.0, 3.5]),
    boot=DRAWS,
    capacity=st.none() | st.integers(0, 3),
    spot=st.just(True),
    min_billing_s=st.sampled_from([0.0, 60.0]),
    availability=st.none() | st.just(Steps((0.0, 40.0, 90.0, 91.0), (1, 0, 1, 0))),
    notice_s=st.sampled_from([0.0, 10.0]),
    drain_s=st.sampled_from([None, 0.0, 4.0]),
    **FAILING,
)


@st.composite
def scenarios(draw: st.DrawFn) -> Scenario:
    arrivals = sorted(draw(st.lists(SECONDS, max_size=25)))
    durations = draw(st.lists(SECONDS, min_size=len(arrivals), max_size=len(arrivals)))
    endpoints = draw(st.lists(st.integers(0, 1), min_size=len(arrivals), max_size=len(arrivals)))
    supplies = draw(st.lists(OFFERS, max_size=3, unique_by=lambda s: s.name))
    supplies += draw(st.lists(HOMES, max_size=1))
    return Scenario(
        trace=Trace(
            name="t",
            arrivals=np.array(arrivals, dtype=np.float64),
            durations=np.array(durations, dtype=np.float64),
            endpoints=np.array(endpoints, dtype=np.int32),
            names=("e", "f"),
        ),
        supplies=tuple(supplies),
        wishes=(Wish(concurrency=draw(st.integers(1, 3))),),
        timeout_s=draw(st.sampled_from([None, 0.0, 20.0])),
        queue_cap=draw(st.sampled_from([None, 0, 3])),
        retries=draw(st.integers(0, 2)),
        warm_up_s=draw(st.sampled_from([0.0, 50.0])),
        tail_s=draw(st.sampled_from([0.0, 60.0])),
    )


def erratic(seed: int, looks: Looks, **changes: Any) -> Policy:
    """Starts and releases at random; what it does follows from its state alone."""

    def decide(now: float, observation: Observation, state: int, config: Any) -> Plan:
        looks.append((now, observation))
        random = np.random.default_rng([seed, state])
        actions: list[Action] = []
        for endpoint in observation.endpoints:
            for _ in range(random.integers(3)):
                actions += _start(random, observation, endpoint)
            for one in endpoint.instances:
                if random.random() < 0.1:
                    actions.append(Release(endpoint=endpoint.endpoint, instance=one.id, reason="test"))
        for pool in observation.pools:
            count = int(random.integers(4))
            actions.append(Refill(host=pool.host, base=pool.base, count=count, reason="test"))
        again = now + float(random.integers(3)) if random.random() < 0.5 else None
        return Plan(tuple(actions), state + 1, again)

    return Policy(
        **({"name": "erratic", "decide": decide, "state": 0, "config": None, "tick_s": 5.0} | changes)
    )


def _start(
    random: np.random.Generator, observation: Observation, endpoint: EndpointObservation
) -> list[Action]:
    name, places = endpoint.endpoint, [*observation.hosts, *observation.offers]
    if not places:
        return []
    place = places[random.integers(len(places))]
    if hasattr(place, "offer"):
        return [Launch(endpoint=name, version=1, offer=place.offer, reason="test")]
    return [Start(endpoint=name, version=1, host=place.host, reason="test")]


def same(one: object, other: object) -> bool:
    if isinstance(one, np.ndarray):
        return np.array_equal(one, other)
    return one == other


WAKES = st.sampled_from(["queued", "from-zero", "never"])


@settings(max_examples=70, deadline=None)
@given(scenarios(), st.integers(0, 9), WAKES)
def test_costs_add_up_and_each_request_ends_once(given: Scenario, seed: int, wakes: str) -> None:
    result = run(given, erratic(seed, [], wakes=wakes), seed)
    assert result.cost.total == pytest.approx(sum(result.by_supply.values()))
    assert min(result.cost.busy, result.cost.idle, result.cost.starting, result.cost.sunk) >= 0
    assert result.cost.preempted >= 0
    arrived = given.trace.arrivals[given.trace.arrivals >= given.warm_up_s]
    assert sorted([*result.arrivals, *result.failed_at]) == arrived.tolist()
    assert sum(result.errors.values()) == len(result.failed_at)
    assert len(result.waits) == len(result.cold) == len(result.arrivals)
    assert np.all(result.waits >= 0)
    assert np.all(result.waits[result.cold] >= 0)


@settings(max_examples=70, deadline=None)
@given(scenarios(), st.integers(0, 9), WAKES)
def test_what_a_policy_sees_is_consistent(given: Scenario, seed: int, wakes: str) -> None:
    looks: Looks = []
    result = run(given, erratic(seed, looks, wakes=wakes), seed)
    assert result.decisions == len(looks)
    times = [now for now, _ in looks]
    assert times == sorted(times)
    capacities = {s.name: s.capacity for s in given.supplies if s.capacity is not None}
    last: dict[str, EndpointObservation] = {}
    served = dict.fromkeys(given.trace.names, 0)
    for now, observation in looks:
        there: dict[str, int] = {}
        for endpoint in observation.endpoints:
            assert sum(i.in_flight for i in endpoint.instances) == endpoint.in_flight
            assert all(i.in_flight <= endpoint.scaling.concurrency for i in endpoint.instances)
            free = [i for i in endpoint.instances if i.state == "ready"]
            if endpoint.queued:
                assert all(i.in_flight == endpoint.scaling.concurrency for i in free)
                assert 0 <= endpoint.oldest_wait_s <= now
            for one in free:
                there[one.offer or one.host] = there.get(one.offer or one.host, 0) + 1
            before = last.get(endpoint.endpoint, endpoint)
            assert endpoint.arrived is not None
            assert before.arrived is not None
            assert endpoint.demand_s is not None
            assert before.demand_s is not None
            mine = given.trace.endpoints == given.trace.names.index(endpoint.endpoint)
            assert endpoint.arrived == np.count_nonzero(given.trace.arrivals[mine] <= now)
            assert endpoint.demand_s >= before.demand_s - 1e-9
            last[endpoint.endpoint] = endpoint
            served[endpoint.endpoint] += len(endpoint.served)
            assert served[endpoint.endpoint] + endpoint.in_flight + endpoint.queued <= endpoint.arrived
        assert all(count <= capacities.get(name, count) for name, count in there.items())
        assert all(min(host.gpu_free.values()) >= 0 for host in observation.hosts)
        assert all(offer.left is None or offer.left >= 0 for offer in observation.offers)


@settings(max_examples=40, deadline=None)
@given(scenarios(), st.integers(0, 9))
def test_the_same_seed_gives_the_same_result(given: Scenario, seed: int) -> None:
    first, second = (run(given, erratic(seed, []), seed, timeline_step_s=7.0) for _ in range(2))
    fields = [{**vars(one), **one.timeline, "timeline": ()} for one in (first, second)]
    assert fields[0].keys() == fields[1].keys()
    assert [name for name, value in fields[0].items() if not same(value, fields[1][name])] == []


@settings(max_examples=60, deadline=None)
@given(scenarios(), st.integers(0, 9))
def test_where_nothing_is_lost_what_is_busy_is_what_was_served(given: Scenario, seed: int) -> None:
    calm = replace(given, supplies=(Supply(name="cloud", price=3600.0, boot=Draw(5.0)),), warm_up_s=0.0)
    result = run(calm, erratic(seed, []), seed)
    assert result.cost.preempted == result.cost.sunk == 0
    if result.errors:
        assert result.cost.busy <= sum(given.trace.durations) + 1e-6
    elif given.wishes[0].concurrency == 1:
        ends = given.trace.arrivals + result.waits + given.trace.durations
        after_the_end = np.maximum(0.0, ends - (given.trace.end + given.tail_s)).sum()
        assert result.cost.busy == pytest.approx(sum(given.trace.durations) - after_the_end)
    if given.timeout_s is not None:
        assert np.all(result.waits <= given.timeout_s + 1e-9)


def by_hand(given: Scenario, servers: int) -> tuple[list[float], dict[str, int]]:
    """Waits and errors of a queue before so many servers, by the recursion of Kiefer and Wolfowitz (1955)."""
    free = [0.0] * servers
    leaves: list[float] = []
    waits: list[float] = []
    errors = {"queue-full": 0, "timeout": 0}
    patience = float("inf") if given.timeout_s is None else given.timeout_s
    for arrival, duration in zip(given.trace.arrivals, given.trace.durations, strict=True):
        waiting = sum(left > arrival for left in leaves)
        begin = max(arrival, min(free))
        if begin > arrival and given.queue_cap is not None and waiting >= given.queue_cap:
            errors["queue-full"] += 1
            continue
        leaves.append(min(begin, arrival + patience))
        if begin > arrival + patience:
            errors["timeout"] += 1
            continue
        free[free.index(min(free))] = begin + duration
        waits.append(begin - arrival)
    return waits, {reason: count for reason, count in errors.items() if count}


@settings(max_examples=70, deadline=None)
@given(scenarios(), st.integers(1, 4))
def test_a_fleet_that_does_not_change_is_a_queue_before_servers(given: Scenario, servers: int) -> None:
    later, alone = given.trace.arrivals + 1.0, np.zeros(len(given.trace.arrivals), np.int32)
    one = replace(given.trace, arrivals=later, endpoints=alone, names=("e",))
    supply = Supply(name="cloud", price=3600.0, boot=Draw(0.0))
    plain = replace(given, trace=one, supplies=(supply,), wishes=(Wish(),), warm_up_s=0.0, tail_s=1e6)
    result = run(plain, script({0: [launch()] * servers}, tick_s=1e5), 0)
    waits, errors = by_hand(plain, servers)
    assert result.waits.tolist() == pytest.approx(waits)
    assert result.errors == errors
    assert result.cost.idle + result.cost.busy == pytest.approx(servers * (one.end + 1e6))
