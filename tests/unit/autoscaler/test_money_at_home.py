"""Budgets on hosts that have a price: what is started, what makes room, what a rollout does; by hand."""

from __future__ import annotations

import msgspec
from headrace_autoscaler.configs import LimitConfig
from headrace_autoscaler.policy import decide
from headrace_autoscaler.spec import (
    Config,
    Decision,
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

NOW = 1000.0
CHEAP = HostObservation(host="cheap", cpu=10.0, cpu_free=10.0, memory_free=1 << 40, price=1.0)
"""0.1 $/h for a core."""
DEAR = HostObservation(host="dear", cpu=10.0, cpu_free=10.0, memory_free=1 << 40, price=50.0, warm=("e",))
"""5 $/h for a core, and a zygote that is ready."""


def see(scaling: ScalingSpec, **values: object) -> EndpointObservation:
    shown = {"endpoint": "e", "version": 1, "queued": 4} | values
    return EndpointObservation(scaling=scaling, **shown)  # type: ignore[arg-type]


def at(id: str, **values: object) -> InstanceObservation:
    shown = {"host": "cheap", "version": 1, "state": "ready", "last_used_at": 100.0, "price": 1.0} | values
    return InstanceObservation(id=id, **shown)  # type: ignore[arg-type]


def do(endpoint: EndpointObservation, *hosts: HostObservation, **values: object) -> Decision:
    config = values.pop("config", Config())
    observation = Observation(endpoints=(endpoint,), hosts=hosts, **values)  # type: ignore[arg-type]
    return decide(NOW, observation, State(), config)  # type: ignore[arg-type]


def started(decision: Decision) -> list[str]:
    return [action.host for action in decision.actions if isinstance(action, Start)]


def waits(decision: Decision) -> list[str]:
    return [action.reason for action in decision.actions if isinstance(action, Wait)]


def test_a_zygote_that_is_ready_is_no_reason_to_go_beyond_a_budget() -> None:
    assert started(do(see(ScalingSpec(cpu=1.0)), CHEAP, DEAR)) == ["dear"] * 4
    assert started(do(see(ScalingSpec(cpu=1.0, budget=0.35)), CHEAP, DEAR)) == ["cheap"] * 3
    of_all = Config(limits=LimitConfig(budget=0.35))
    assert started(do(see(ScalingSpec(cpu=1.0)), CHEAP, DEAR, config=of_all, spending=0.1)) == ["cheap"] * 2


def test_the_least_price_counts_and_not_that_of_the_host_that_is_liked_best() -> None:
    # A quarter of 5 $/h is more than a hundredth of 10.
    small = msgspec.structs.replace(CHEAP, host="small", cpu=4.0, cpu_free=4.0, price=5.0)
    large = msgspec.structs.replace(CHEAP, host="large", cpu=100.0, cpu_free=100.0, price=10.0)
    assert started(do(see(ScalingSpec(cpu=1.0, budget=1.0)), small, large)) == ["large"] * 4


def test_a_budget_is_for_the_accelerator_that_is_handed_out() -> None:
    host = msgspec.structs.replace(CHEAP, price=0.0)
    hosts = [
        msgspec.structs.replace(host, host=name, price=price, gpu={name: 1}, gpu_free={name: 1})
        for name, price in (("H100", 4.0), ("A100", 2.0))
    ]
    wish = ScalingSpec(gpu=(("H100", 1), ("A100", 1)), budget=3.0)
    assert started(do(see(wish, queued=1), *hosts)) == ["A100"]


def test_what_has_both_kinds_costs_what_is_handed_out() -> None:
    """Of a host with one H100 and four A100 the H100 is all of it, an A100 a quarter."""
    both = msgspec.structs.replace(
        CHEAP, price=8.0, gpu={"H100": 1, "A100": 4}, gpu_free={"H100": 0, "A100": 4}
    )
    wish = ScalingSpec(gpu=(("H100", 1), ("A100", 1)), budget=4.0)
    assert started(do(see(wish), both)) == ["cheap"] * 2


def test_nobody_gives_way_for_what_may_not_be_paid() -> None:
    full = msgspec.structs.replace(CHEAP, price=10.0, cpu_free=0.0)
    donors = tuple(("other", at(f"d{n}", cpu=1.0), ScalingSpec(cpu=1.0)) for n in range(8))
    wish = ScalingSpec(cpu=1.0, budget=2.0)
    decision = do(see(wish, queued=8), full, idle_elsewhere=donors)
    assert len(started(decision)) == 2
    assert sum(isinstance(action, Release) for action in decision.actions) == 2
    none = do(see(ScalingSpec(cpu=1.0, budget=0.5), queued=8), full, idle_elsewhere=donors)
    assert [type(action) for action in none.actions] == [Wait]


def rolling(old: InstanceObservation, **values: object) -> EndpointObservation:
    wish = ScalingSpec(cpu=1.0, budget=1.0, max=1)
    shown = {"version": 2, "queued": 1, "rollout_from": 1, "instances": (old,)} | values
    return see(wish, **shown)


def test_a_rollout_at_its_budget_drains_an_old_one_first() -> None:
    host = msgspec.structs.replace(CHEAP, price=10.0)
    decision = do(rolling(at("old", in_flight=1)), host)
    assert [type(action) for action in decision.actions] == [Release, Wait]
    assert "so one of version 1 drains first" in decision.actions[0].reason
    # While it leaves nothing else does, and when it has left the new one comes.
    leaving = do(rolling(at("old", in_flight=1, state="draining")), host)
    assert [type(action) for action in leaving.actions] == [Wait]
    two = rolling(at("old"), instances=(at("old"), at("older", state="draining")))
    two = msgspec.structs.replace(two, scaling=ScalingSpec(cpu=1.0, budget=2.0, max=2))
    more = do(two, host)
    assert [type(action) for action in more.actions] == [Wait]
    assert "an old instance drains first" in more.actions[0].reason
    assert started(do(rolling(at("old"), instances=()), host)) == ["cheap"]


def test_a_rollout_that_no_draining_would_pay_for_waits() -> None:
    # 5 $/h for the new one; the old one has cost 1.
    decision = do(rolling(at("old")), DEAR)
    assert [type(action) for action in decision.actions] == [Wait]
    assert "its budget of 1 $/h" in waits(decision)[0]
    # What it costs where nothing has room is not known.
    full = msgspec.structs.replace(CHEAP, cpu_free=0.0)
    assert Release not in map(type, do(rolling(at("old", price=None)), full).actions)


def test_an_idle_time_does_not_end_because_its_host_is_silent() -> None:
    endpoint = see(ScalingSpec(learn_idle=True), queued=0, start_s=20.0, instances=(at("a", price=0.0),))
    host = msgspec.structs.replace(CHEAP, price=0.0)
    state = State()
    for now, seen in ((101.0, host), (131.0, msgspec.structs.replace(host, state="suspect"))):
        state = decide(now, Observation(endpoints=(endpoint,), hosts=(seen,)), state, Config()).state
    known = state.endpoints["e"].keep
    assert known is not None
    assert not known.levels
    assert [idle.since for idle in known.idle] == [100.0]


def test_a_clock_that_went_back_is_no_error() -> None:
    endpoint = see(ScalingSpec(learn_idle=True), queued=0, start_s=20.0, instances=(at("a", price=0.0),))
    state = decide(101.0, Observation(endpoints=(endpoint,), hosts=()), State(), Config()).state
    busy = msgspec.structs.replace(endpoint, instances=(at("a", in_flight=1),), in_flight=1)
    after = decide(90.0, Observation(endpoints=(busy,), hosts=()), state, Config()).state
    known = after.endpoints["e"].keep
    assert known is not None
    assert known.levels[1].watched[0] == 1.0


def test_spares_between_requests_say_why_they_are_there() -> None:
    wish = ScalingSpec(learn_idle=True, warm=1)
    busy = see(wish, queued=0, in_flight=1, demand_s=0.0, arrived=1, instances=(at("a", in_flight=1),))
    state = decide(NOW, Observation(endpoints=(busy,), hosts=(CHEAP,)), State(), Config()).state
    idle = msgspec.structs.replace(busy, in_flight=0, demand_s=30.0, instances=())
    decision = decide(NOW + 60, Observation(endpoints=(idle,), hosts=(CHEAP,)), state, Config())
    assert {action.reason for action in decision.actions} == {"0.50 requests of late, and warm=1, ask for 2"}


def test_a_host_that_is_paid_for_anyway_is_within_every_price() -> None:
    own = msgspec.structs.replace(CHEAP, price=0.0)
    assert started(do(see(ScalingSpec(cpu=1.0, max_price=0.0, budget=0.0), queued=1), own)) == ["cheap"]
