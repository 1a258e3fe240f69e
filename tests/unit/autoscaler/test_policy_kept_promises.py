"""What went wrong once, by hand: each case is a closed loop or one decision whose numbers are worked out."""

import msgspec
import numpy as np
import pytest
from headrace_autoscaler.configs import LimitConfig
from headrace_autoscaler.interface import Policy
from headrace_autoscaler.policy import decide
from headrace_autoscaler.simulate.engine import run
from headrace_autoscaler.simulate.scenario import Draw, Scenario, Supply, Trace, Wish
from headrace_autoscaler.spec import (
    Config,
    EndpointObservation,
    HostObservation,
    InstanceObservation,
    Observation,
    Release,
    ScalingSpec,
    Start,
    State,
    Wait,
)

HOME = HostObservation(host="h", cpu_free=1000.0, memory_free=1 << 50)


def see(scaling, **values):
    return EndpointObservation(endpoint="e", version=1, scaling=scaling, **values)


def ready(**values):
    shown = {"id": "a", "host": "h", "version": 1, "state": "ready", "last_used_at": 100.0, **values}
    return InstanceObservation(**shown)


def decided(now, endpoint, *hosts, config=None, state=None, **values):
    observation = Observation(endpoints=(endpoint,), hosts=hosts, **values)
    return decide(now, observation, state or State(), config or Config())


def kinds(decision):
    return [type(action).__name__ for action in decision.actions]


def every(gap_s, service_s, count, start_s, wish):
    arrivals = np.arange(count) * gap_s
    trace = Trace("even", arrivals, np.full(count, service_s), np.zeros(count, dtype=np.int32))
    scenario = Scenario(trace, (Supply("cloud", 1.0, Draw(start_s, jitter=0.0)),), (wish,), tail_s=60.0)
    return run(scenario, Policy("headrace", decide, State(), Config(), 0.5), 0)


def test_a_budget_holds_on_a_host_that_has_a_price() -> None:
    # 5 $/h for the host of which an instance takes all: at 12 $/h two of the eight.
    host = msgspec.structs.replace(HOME, price=5.0)
    asked = see(ScalingSpec(budget=12.0), queued=8, oldest_wait_s=3.0)
    decision = decided(200.0, asked, host)
    assert kinds(decision) == ["Start", "Start", "Wait"]
    asked = see(ScalingSpec(), queued=8, oldest_wait_s=3.0)
    of_all = decided(200.0, asked, host, config=Config(limits=LimitConfig(budget=12.0)), spending=0.0)
    assert kinds(of_all) == ["Start", "Start", "Wait"]
    assert kinds(decided(200.0, see(ScalingSpec(budget=1.0), queued=8), host)) == ["Wait"]


def test_an_instance_costs_the_part_of_its_host_that_it_takes_most_of() -> None:
    # A quarter of the cores, an eighth of the memory: 2 $/h of 8, so three at 6 $/h.
    host = msgspec.structs.replace(HOME, price=8.0, cpu=4.0, memory=1 << 30)
    asked = see(ScalingSpec(budget=6.0, cpu=1.0, memory=1 << 27), queued=8)
    assert kinds(decided(200.0, asked, host)).count("Start") == 3


def test_an_accelerator_is_a_part_of_its_host_too() -> None:
    # One of four accelerators: 2 $/h of 8. The first of the preferences that is there is the one.
    host = msgspec.structs.replace(HOME, price=8.0, cpu=1000.0, gpu={"A": 4}, gpu_free={"A": 4})
    asked = see(ScalingSpec(budget=6.0, gpu=(("B", 1), ("A", 1))), queued=8)
    assert kinds(decided(200.0, asked, host)).count("Start") == 3


def test_the_last_that_a_budget_allows_may_be_the_dearer_host_s() -> None:
    cheap = msgspec.structs.replace(HOME, host="cheap", price=1.0, cpu_free=0.125)
    dear = msgspec.structs.replace(HOME, host="dear", price=5.0)
    decision = decided(200.0, see(ScalingSpec(budget=3.0), queued=3), cheap, dear)
    assert [a.host for a in decision.actions if isinstance(a, Start)] == ["cheap"]
    assert any(isinstance(a, Wait) and "2 $/h that are left" in a.reason for a in decision.actions)


def test_what_costs_more_than_max_price_is_not_taken_at_home_either() -> None:
    host = msgspec.structs.replace(HOME, price=5.0)
    assert kinds(decided(200.0, see(ScalingSpec(max_price=4.0), queued=1), host)) == ["Wait"]
    assert kinds(decided(200.0, see(ScalingSpec(max_price=5.0), queued=1), host)) == ["Start"]


@pytest.mark.parametrize("learn", [True, False])
def test_nothing_idle_goes_from_a_host_that_was_not_heard_of_lately(learn: bool) -> None:
    endpoint = see(ScalingSpec(learn_idle=learn), start_s=1.0, instances=(ready(),))
    silent = msgspec.structs.replace(HOME, state="suspect")
    assert not decided(1e5, endpoint, silent).actions
    assert kinds(decided(1e5, endpoint, HOME)) == ["Release"]


def test_what_is_idle_elsewhere_stays_for_its_time_though_no_offer_is_shown() -> None:
    endpoint = see(ScalingSpec(idle_timeout_s=600.0), instances=(ready(offer="o"),))
    assert not decided(101.0, endpoint).actions
    rollout = msgspec.structs.replace(endpoint, rollout_from=0)
    assert not decided(101.0, rollout).actions
    assert kinds(decided(701.0, endpoint)) == ["Release"]


def test_starts_that_are_in_time_are_saved_all_the_same() -> None:
    # A request of 0.4 s every 6 s and starts of 9.5 s: holding for 5.6 s is cheaper than 9.5 s of a start.
    found = every(6.0, 0.4, 200, 9.5, Wish())
    assert found.starts <= 3
    assert float(np.mean(found.waits)) < 0.5


def test_with_an_idle_time_out_nothing_is_started_that_it_would_end_again() -> None:
    found = every(0.2, 1.0, 6000, 30.0, Wish(idle_timeout_s=5.0))
    after = every(0.2, 1.0, 6000, 30.0, Wish(idle_timeout_s=60.0))
    assert found.starts <= 3 * after.starts
    assert found.cost.idle <= after.cost.idle


def test_spares_stay_between_requests() -> None:
    scaling = ScalingSpec(learn_idle=True, warm=2, max=5)
    state, config, demand_s = State(), Config(), 0.0
    there = tuple(ready(id=name, last_used_at=90.0) for name in "abc")
    releases = 0
    for second in range(100, 160):
        # A request of 0.5 s each second; looked at when it is over.
        demand_s += 0.5
        used = ready(id="a", last_used_at=second - 0.4)
        seen = see(
            scaling,
            start_s=3.0,
            arrived=second,
            demand_s=demand_s,
            served=(0.5,),
            instances=(used, *there[1:]),
        )
        decision = decided(float(second), seen, HOME, config=config, state=state)
        state = decision.state
        # The first looks know of no minute before.
        releases += sum(isinstance(a, Release) for a in decision.actions) if second > 135 else 0
    assert not releases
