"""What the baselines share, those that go by idle time, and their names."""

from __future__ import annotations

import json
from dataclasses import replace

import msgspec
import pytest
from headrace_autoscaler.baselines import UnknownPolicy, names, policy_of
from headrace_autoscaler.baselines.base import Market, leavers, resting, suits
from headrace_autoscaler.simulate.engine import run
from headrace_autoscaler.simulate.generators import synthetic
from headrace_autoscaler.simulate.scenario import Draw, Scenario, Supply, Wish
from headrace_autoscaler.spec import (
    EndpointObservation,
    HostObservation,
    InstanceObservation,
    Launch,
    Observation,
    OfferObservation,
    Release,
    ScalingSpec,
    Start,
    Wait,
)
from hypothesis import given, settings
from hypothesis import strategies as st

E = "default/e"
OFFER = OfferObservation(offer="o", provider="p", price=3.0)
ALL = (
    "always-on-3",
    "knative",
    "ray-serve",
    "ray-serve-1",
    "hpa",
    "request-count",
    "request-count-4",
    "queue-delay",
    "hybrid-histogram",
    "keep-alive",
    "keep-alive-60",
    "break-even",
    "spothedge",
)


def one(id="i1", state="ready", **more):
    return InstanceObservation(id=id, host=id, version=1, state=state, **more)


def endpoint(name=E, scaling=None, **more):
    return EndpointObservation(endpoint=name, version=1, scaling=scaling or ScalingSpec(max=100), **more)


def see(*endpoints, hosts=(), offers=(OFFER,)):
    return Observation(endpoints=endpoints, hosts=tuple(hosts), offers=tuple(offers))


def decide(name, now, seen, state=None):
    policy = policy_of(name)
    plan = policy.decide(now, seen, policy.state if state is None else state, policy.config)
    assert all(action.reason for action in plan.actions)
    return plan


def launches(plan):
    return sum(isinstance(a, Launch) for a in plan.actions)


def released(plan):
    return [a.instance for a in plan.actions if isinstance(a, Release)]


# --- names


def test_each_name_makes_its_policy_and_the_list_has_those_of_the_command_line():
    listed = "headrace always-on-N knative ray-serve ray-serve-1 hpa request-count queue-delay "
    listed += "hybrid-histogram keep-alive break-even spothedge"
    assert " ".join(names()) == listed
    for name in (*names(), *ALL):
        asked = name.replace("-N", "-8")
        assert policy_of(asked).name == asked
    assert policy_of("keep-alive-90").config.idle_s == 90.0
    assert policy_of("request-count-4").config.requests == 4
    assert policy_of("queue-delay-2.5").config.delay_s == 2.5
    assert policy_of("ray-serve").config.target == 2.0
    assert policy_of("ray-serve-1").config.target == 1.0
    assert policy_of("always-on-0").config.count == 0


@pytest.mark.parametrize(
    "name",
    [
        "no",
        "",
        "kubernetes",
        "always-on",
        "always-on-x",
        "always-on-N",
        "always-on--1",
        "request-count-0",
        "request-count-1.5",
        "ray-serve-0",
        "keep-alive-1e9",
        "keep-alive-nan",
        "knative-3",
    ],
)
def test_an_unknown_name_is_refused_with_those_that_there_are(name):
    with pytest.raises(UnknownPolicy, match=r"spothedge.*always-on-N") as caught:
        policy_of(name)
    assert isinstance(caught.value, ValueError)
    assert repr(name) in str(caught.value)


# --- what they share


def test_homes_with_room_come_first_then_the_cheapest_offer_that_suits_and_does_not_fail():
    home = HostObservation(host="home", cpu_free=0.25, memory_free=1)
    offers = (
        OFFER,
        OfferObservation(offer="cheap", provider="p", price=1.0, left=1),
        OfferObservation(offer="failing", provider="p", price=0.5, failures=1, failed_at=95.0),
    )
    plan = decide("always-on-5", 100.0, see(endpoint(), hosts=(home,), offers=offers))
    where = [a.host if isinstance(a, Start) else a.offer for a in plan.actions]
    assert where == ["home", "home", "cheap", "o", "o"]
    assert {a.reason for a in plan.actions} == {"always on: 5"}
    assert plan.look_again_at is None


def test_without_any_place_it_waits_and_looks_again_soon():
    plan = decide("always-on-2", 100.0, see(endpoint(), offers=()))
    assert [type(a) for a in plan.actions] == [Wait]
    assert plan.actions[0].wanted == 2
    assert "no host is connected" in plan.actions[0].reason
    assert plan.look_again_at == 105.0


def test_an_endpoint_whose_starts_fail_waits():
    plan = decide("always-on-2", 100.0, see(endpoint(blocked_until=103.0)))
    assert plan.actions[0].reason == "starts fail: tries again in 3.0 s"


@pytest.mark.parametrize(
    ("failures", "failed_at", "rests"),
    [
        (0, 99.0, False),
        (1, None, False),
        (1, 90.1, True),
        (1, 90.0, False),
        (2, 80.1, True),
        (2, 80.0, False),
        (40, -199.0, True),
        (40, -200.0, False),
    ],
)
def test_an_offer_that_fails_is_left_alone_twice_as_long_each_time(failures, failed_at, rests):
    offer = msgspec.structs.replace(OFFER, failures=failures, failed_at=failed_at)
    assert resting(100.0, offer) is rests


@pytest.mark.parametrize(
    "scaling",
    [
        ScalingSpec(runtime="exotic"),
        ScalingSpec(providers=("q",)),
        ScalingSpec(regions=("moon",)),
        ScalingSpec(spot="only"),
        ScalingSpec(max_price=2.9),
        ScalingSpec(gpu=(("B200", 1),)),
        ScalingSpec(cpu=9.0),
        ScalingSpec(memory=9),
    ],
)
def test_an_offer_must_suit(scaling):
    offer = msgspec.structs.replace(OFFER, gpu=("H100", 1), cpu=8.0, memory=8)
    assert suits(offer, ScalingSpec(gpu=(("H100", 1),), providers=("p",), max_price=3.0))
    assert not suits(offer, scaling)


def test_the_cheapest_may_be_asked_of_spot_or_of_others_only():
    spot = OfferObservation(offer="s", provider="p", price=1.0, spot=True)
    market = Market(0.0, see(offers=(OFFER, spot)))
    assert [market.cheapest(endpoint(), "", spot=s).offer for s in (None, True, False)] == ["s", "s", "o"]


def test_who_goes_first():
    fleet = [
        one("busy", in_flight=2),
        one("less busy", in_flight=1),
        one("idle 5", last_used_at=95.0),
        one("never used", ready_at=90.0),
        one("started long ago"),
        one("starting", "starting", started_at=80.0),
        one("just starting", "starting", started_at=99.0),
    ]
    idle = ["started long ago", "never used", "idle 5"]
    order = [i.id for i in leavers(fleet, 9, starting=True, busy=True)]
    assert order == ["just starting", "starting", *idle, "less busy", "busy"]
    assert [i.id for i in leavers(fleet, 9, starting=False, busy=False)] == idle
    assert [i.id for i in leavers(fleet, 2, starting=False, busy=True)] == idle[:2]


def test_min_is_kept_and_max_wins_over_it():
    idle = [one(f"i{n}", ready_at=0.0) for n in range(3)]
    plan = decide("keep-alive", 1e6, see(endpoint(scaling=ScalingSpec(min=2), instances=tuple(idle))))
    assert released(plan) == ["i0"]
    plan = decide("keep-alive", 0.0, see(endpoint(scaling=ScalingSpec(min=2))))
    assert launches(plan) == 2
    assert plan.actions[0].reason == "min=2"
    assert launches(decide("keep-alive", 0.0, see(endpoint(scaling=ScalingSpec(min=2, max=1))))) == 1
    assert launches(decide("keep-alive", 0.0, see(endpoint(scaling=ScalingSpec(max=3), queued=9)))) == 3


def test_those_that_drain_or_are_paused_do_not_count():
    fleet = (one("d", "draining"), one("p", "paused"))
    assert launches(decide("always-on-1", 0.0, see(endpoint(instances=fleet)))) == 1


def test_what_is_remembered_of_others_stays():
    plan = decide("knative", 0.0, see(endpoint("a", queued=1, demand_s=0.0)))
    then = decide("knative", 1.0, see(endpoint("b", queued=1, demand_s=0.0)), plan.state)
    assert set(plan.state) == {"a"}
    assert then.state["a"] is plan.state["a"]
    assert set(then.state) == {"a", "b"}


def test_it_looks_again_when_the_first_of_several_falls_due():
    a = endpoint("a", instances=(one("x", last_used_at=30.0),))
    b = endpoint("b", instances=(one("y", last_used_at=10.0),))
    assert decide("keep-alive-60", 50.0, see(a, b, endpoint("c"))).look_again_at == 70.0


# --- always on, keep-alive, break-even, request count


def test_always_on_replaces_what_is_lost_and_lets_go_what_is_too_much():
    fleet = tuple(one(f"i{n}", last_used_at=float(n)) for n in range(4))
    assert launches(decide("always-on-5", 0.0, see(endpoint(instances=fleet)))) == 1
    assert released(decide("always-on-3", 9.0, see(endpoint(instances=fleet)))) == ["i0"]
    assert decide("always-on-4", 9.0, see(endpoint(instances=fleet))).actions == ()


def test_keep_alive_starts_one_for_each_that_waits_and_keeps_the_idle_for_its_time():
    busy = one("busy", in_flight=1)
    plan = decide("keep-alive-60", 0.0, see(endpoint(in_flight=1, queued=2, instances=(busy,))))
    assert launches(plan) == 2
    assert plan.actions[0].reason == "1 in flight, 2 queued, 1 here"
    # One that starts will take one of them.
    fleet = (busy, one("new", "starting"))
    assert launches(decide("keep-alive-60", 0.0, see(endpoint(in_flight=1, queued=2, instances=fleet)))) == 1
    wide = ScalingSpec(max=9, concurrency=4)
    assert launches(decide("keep-alive-60", 0.0, see(endpoint(scaling=wide, queued=5)))) == 2

    fleet = (busy, one("a", last_used_at=40.0), one("b", last_used_at=30.0), one("c", last_used_at=50.0))
    seen = see(endpoint(in_flight=1, instances=fleet))
    plan = decide("keep-alive-60", 89.9, seen)
    assert plan.actions == ()
    assert plan.look_again_at == 90.0
    plan = decide("keep-alive-60", 100.0, seen)
    assert released(plan) == ["b", "a"]
    assert plan.look_again_at == 110.0
    assert plan.actions[0].reason == "idle for 60 s"


def test_break_even_keeps_as_long_as_a_start_takes():
    slow = msgspec.structs.replace(OFFER, offer="slow", boot_s=90.0)
    fleet = (
        one("on slow", offer="slow", last_used_at=0.0),
        one("on o", offer="o", last_used_at=0.0),
        one("paid", offer="o", last_used_at=0.0, paid_until=45.0),
        one("paid little", offer="o", last_used_at=0.0, paid_until=5.0),
    )
    seen = see(endpoint(instances=fleet, start_s=20.0), offers=(OFFER, slow))
    plan = decide("break-even", 19.9, seen)
    assert plan.look_again_at == 20.0
    assert released(decide("break-even", 20.0, seen)) == ["on o", "paid little"]
    assert released(decide("break-even", 45.0, seen)) == ["on o", "paid", "paid little"]
    assert len(released(decide("break-even", 90.0, seen))) == 4
    unknown = see(endpoint(instances=(one(last_used_at=0.0),)))
    assert decide("break-even", 59.0, unknown).look_again_at == 60.0
    assert launches(decide("break-even", 0.0, see(endpoint(queued=2)))) == 2


def test_request_count_has_a_worker_for_every_k_requests_and_stops_it_after_5_idle_seconds():
    assert launches(decide("request-count", 0.0, see(endpoint(queued=5)))) == 5
    assert launches(decide("request-count-4", 0.0, see(endpoint(queued=5)))) == 2
    fleet = (one("busy", in_flight=1), one("idle", last_used_at=10.0))
    seen = see(endpoint(in_flight=1, instances=fleet))
    assert decide("request-count", 14.0, seen).look_again_at == 15.0
    assert released(decide("request-count", 15.0, seen)) == ["idle"]


# --- queue delay


def test_queue_delay_adds_the_first_worker_at_once_and_more_for_who_waited_four_seconds():
    plan = decide("queue-delay", 100.0, see(endpoint(queued=1, arrived=1)))
    assert launches(plan) == 1
    assert plan.look_again_at == 104.0
    # One worker is busy; 3 come before 102, 2 more before 104, none after.
    busy = (one("busy", in_flight=1),)

    def look(now, queued, arrived, wait, state, fleet=busy):
        seen = endpoint(in_flight=1, queued=queued, arrived=arrived, oldest_wait_s=wait, instances=fleet)
        return decide("queue-delay", now, see(seen), state)

    plan = look(102.0, 3, 10, 2.0, {})
    assert plan.actions == ()
    assert plan.look_again_at == 104.0
    plan = look(104.0, 5, 12, 4.0, plan.state)
    # Those of 100 to 102 came linearly: at 100 none had, so only the oldest is due.
    assert launches(plan) == 1
    starting = (*busy, one("new", "starting"))
    plan = look(106.0, 5, 12, 6.0, plan.state, starting)
    # By 102 the first 3 had come; for one of them a worker starts.
    assert launches(plan) == 2
    assert plan.actions[0].reason == "3 of 5 requests waited 4 s"
    plan = look(108.0, 5, 12, 8.0, plan.state, (*starting, one("n2", "starting"), one("n3", "starting")))
    assert launches(plan) == 2
    empty = decide("queue-delay", 110.0, see(endpoint(instances=(one(last_used_at=100.0),))), plan.state)
    assert released(empty) == ["i1"]
    assert empty.state[E].samples == ()


def test_queue_delay_knows_only_the_oldest_where_arrivals_are_not_known():
    seen = endpoint(queued=5, oldest_wait_s=9.0, instances=(one("busy", in_flight=1),))
    assert launches(decide("queue-delay", 100.0, see(seen))) == 1


def test_queue_delay_of_nothing_adds_a_worker_for_each_request_that_waits():
    config = msgspec.structs.replace(policy_of("queue-delay").config, delay_s=0.0)
    for now in (100.0, 100.5):
        plan = policy_of("queue-delay-0").decide(now, see(endpoint(queued=3, arrived=3)), {}, config)
        assert launches(plan) == 3


# --- all of them

INSTANCES = st.lists(
    st.builds(
        one,
        id=st.integers(0, 10**6).map(str),
        state=st.sampled_from(["ready", "starting", "draining", "paused"]),
        in_flight=st.integers(0, 1),
        started_at=st.floats(0, 100),
        ready_at=st.none() | st.floats(0, 100),
        last_used_at=st.none() | st.floats(0, 100),
        offer=st.sampled_from(["", "o", "s1", "s2"]),
        spot=st.booleans(),
        paid_until=st.none() | st.floats(0, 900),
    ),
    max_size=8,
    unique_by=lambda i: i.id,
)
OFFERS = st.lists(
    st.builds(
        OfferObservation,
        offer=st.sampled_from(["o", "s1", "s2", "s3"]),
        provider=st.just("p"),
        spot=st.booleans(),
        price=st.floats(0.1, 9),
        left=st.none() | st.integers(0, 3),
        failures=st.integers(0, 3),
        failed_at=st.none() | st.floats(0, 100),
        preempted_at=st.none() | st.floats(0, 100),
        boot_s=st.none() | st.floats(1, 100),
    ),
    max_size=4,
    unique_by=lambda o: o.offer,
)
LOOKS = st.lists(
    st.tuples(st.floats(0.1, 400), st.integers(0, 12), INSTANCES, st.booleans()), min_size=1, max_size=6
)


@settings(max_examples=120, deadline=None)
@given(
    name=st.sampled_from(ALL),
    least=st.integers(0, 3),
    most=st.integers(0, 9),
    looks=LOOKS,
    offers=OFFERS,
    room=st.integers(0, 3),
    spot=st.sampled_from(["prefer", "only", "never"]),
)
def test_never_above_max_never_below_min_and_pure(name, least, most, looks, offers, room, spot):
    policy = policy_of(name)
    state, now, demand_s, arrived = policy.state, 100.0, 0.0, 0
    scaling = ScalingSpec(min=least, max=max(least, most), spot=spot, on_demand=1)
    home = HostObservation(host="h", cpu_free=0.125 * room, memory_free=1)
    for step, queued, fleet, known in looks:
        now += step
        demand_s += step * queued
        arrived += queued
        in_flight = sum(i.in_flight for i in fleet)
        seen = see(
            endpoint(
                scaling=scaling,
                in_flight=in_flight,
                queued=queued,
                oldest_wait_s=step if queued else 0.0,
                instances=tuple(fleet),
                demand_s=demand_s if known else None,
                arrived=arrived if known else None,
            ),
            hosts=(home,),
            offers=offers,
        )
        before = msgspec.json.encode((seen, state))
        plan = policy.decide(now, seen, state, policy.config)
        assert plan == policy.decide(now, seen, state, policy.config)
        assert msgspec.json.encode((seen, state)) == before
        json.loads(msgspec.json.encode(plan.state))
        alive = sum(i.state in ("ready", "starting") for i in fleet)
        starts = sum(isinstance(a, Start | Launch) for a in plan.actions)
        gone = released(plan)
        assert len(set(gone)) == len(gone)
        assert set(gone) <= {i.id for i in fleet if i.state in ("ready", "starting")}
        assert not starts or alive + starts <= scaling.max
        assert not gone or alive - len(gone) >= scaling.min
        short = alive + starts < scaling.min
        assert not short or any(isinstance(a, Wait) for a in plan.actions) or name == "spothedge"
        assert all(a.reason for a in plan.actions)
        state = plan.state


@pytest.mark.parametrize("name", ALL)
def test_each_serves_a_generated_trace_and_its_memory_stays_small(name):
    trace = synthetic("on-off", 0.25, seed=1, requests_per_day=3000.0)
    supplies = (
        Supply("home", 1.0, Draw(5.0), capacity=2, owned=True),
        Supply("cloud", 3.0, Draw(20.0), provider="a"),
        Supply("spot", 1.0, Draw(20.0), provider="a", spot=True),
    )
    policy, sizes = policy_of(name), []

    def watched(now, seen, state, config):
        plan = policy.decide(now, seen, state, config)
        sizes.append(len(msgspec.json.encode(plan.state)))
        return plan

    scenario = Scenario(trace=trace, supplies=supplies, wishes=(Wish(max=40),))
    result = run(scenario, replace(policy, decide=watched), 1)
    assert len(result.waits) == len(trace.arrivals)
    assert not result.errors
    assert result.cost.busy > 0
    assert max(sizes) < 4000
