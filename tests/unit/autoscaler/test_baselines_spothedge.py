"""SpotHedge: its lists of zones, how many on spot and on demand, its delays, on cases worked out by hand."""

from __future__ import annotations

import pytest
from headrace_autoscaler.baselines.spothedge import SpotHedgeConfig, SpotHedgeState, decide, split, wanted
from headrace_autoscaler.baselines.zones import Zone, available, befallen, next_zone
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

CONFIG = SpotHedgeConfig()
ON_DEMAND = OfferObservation(offer="od", provider="p", price=3.0)


def zone(name, price=1.0, **more):
    return OfferObservation(offer=name, provider="p", price=price, spot=True, **more)


A, B, C = zone("a", 1.0), zone("b", 1.1), zone("c", 1.2)


def one(id, offer="", spot=False, state="ready", ready_at=None, **more):
    return InstanceObservation(
        id=id, host=id, version=1, state=state, offer=offer, spot=spot, ready_at=ready_at, **more
    )


def endpoint(scaling=None, **more):
    return EndpointObservation(endpoint="e", version=1, scaling=scaling or ScalingSpec(max=100), **more)


def act(target, instances=(), offers=(A, B, C, ON_DEMAND), hosts=(), zones=(), now=1000.0, **more):
    """One decision when N is ``target`` and stays there."""
    seen = endpoint(in_flight=target, demand_s=60.0 * target, instances=tuple(instances), **more)
    state = {"e": SpotHedgeState(target=target, samples=((now - 60.0, 0.0),), zones=zones)}
    return decide(now, Observation(endpoints=(seen,), hosts=hosts, offers=offers), state, CONFIG)


def where(plan):
    return [
        a.offer if isinstance(a, Launch) else "home" for a in plan.actions if isinstance(a, Launch | Start)
    ]


def gone(plan):
    return [a.instance for a in plan.actions if isinstance(a, Release)]


# --- zones


def test_the_next_zone_is_the_cheapest_that_holds_none_of_ours_else_the_cheapest():
    assert next_zone([B, A, C], set()) is A
    assert next_zone([A, B, C], {"a"}) is B
    assert next_zone([A, B], {"a", "b"}) is A
    assert next_zone([], set()) is None


def test_a_preemption_or_a_failed_launch_makes_a_zone_preempting_and_a_ready_one_available():
    preempted, failing = zone("a", preempted_at=50.0), zone("b", failures=2, failed_at=60.0)
    offers = (preempted, failing, C, zone("d"))
    zones = befallen((), (), offers)
    assert zones == (Zone(name="a", lost_at=50.0), Zone(name="b", lost_at=60.0))
    assert [o.offer for o in available(zones, offers)] == ["c", "d"]
    # One of before the loss says nothing, one of after it does.
    ready = (one("i", "a", True, ready_at=49.0), one("j", "b", True, ready_at=61.0), one("k", "c", True))
    then = befallen(zones, (*ready, one("l", "b", True, "starting")), offers)
    assert [z.preempting for z in then] == [True, False]
    # What was seen before does not count again, what is new does.
    assert befallen(then, (), offers) == then
    again = befallen(then, (), (preempted, zone("b", failures=3, failed_at=70.0), C, zone("d")))
    assert [(z.lost_at, z.preempting) for z in again] == [(50.0, True), (70.0, True)]
    # A failure that was followed by a success is none.
    assert befallen((), (), (zone("a", failed_at=60.0), B, C)) == ()


def test_with_fewer_than_two_left_all_zones_are_available_again():
    offers = (zone("a", preempted_at=50.0), zone("b", preempted_at=60.0), C)
    zones = befallen((), (), offers)
    assert [z.preempting for z in zones] == [False, False]
    assert available(zones, offers) == list(offers)
    # The same losses do not move them a second time; the next one does.
    assert befallen(zones, (), offers) == zones
    then = befallen(zones, (), (zone("a", preempted_at=70.0), offers[1], C))
    assert [z.preempting for z in then] == [True, False]


# --- how many


@pytest.mark.parametrize(
    ("ready", "expected"), [(0, (5, 4)), (1, (5, 4)), (3, (5, 2)), (5, (5, 0)), (9, (5, 0))]
)
def test_on_demand_fills_in_for_spot_that_is_not_ready(ready, expected):
    # N = 4, N_extra = 1: on demand min(4, 5 - ready).
    scaling = ScalingSpec(max=100)
    assert split(scaling, 4, homes=0, ready_spot=ready, any_zone=True, extra=1) == expected


@pytest.mark.parametrize(
    ("scaling", "homes", "ready", "any_zone", "expected"),
    [
        (ScalingSpec(max=100), 3, 0, True, (2, 1)),
        (ScalingSpec(max=100), 4, 0, True, (0, 0)),
        (ScalingSpec(max=100), 5, 0, True, (0, 0)),
        (ScalingSpec(max=100), 0, 0, False, (0, 4)),
        (ScalingSpec(max=100, on_demand=2), 0, 3, True, (3, 2)),
        (ScalingSpec(max=100, on_demand=9), 0, 0, True, (0, 4)),
        (ScalingSpec(max=100, spot="only"), 0, 0, True, (5, 0)),
        # Short of places: on-demand first, one is left to spot.
        (ScalingSpec(max=4), 0, 0, True, (1, 3)),
        (ScalingSpec(max=4), 0, 2, True, (3, 1)),
        (ScalingSpec(max=4), 0, 5, True, (4, 0)),
        (ScalingSpec(max=1), 0, 0, True, (0, 1)),
    ],
)
def test_homes_a_floor_and_max_bound_both(scaling, homes, ready, any_zone, expected):
    assert split(scaling, 4, homes=homes, ready_spot=ready, any_zone=any_zone, extra=1) == expected


def test_it_starts_on_demand_and_across_zones_at_once():
    plan = act(2)
    assert where(plan) == ["od", "od", "a", "b", "c"]
    assert plan.actions[0].reason == "2 wanted, 0 at home, 0 spot ready: 2 on demand"
    assert plan.actions[2].reason == "2 wanted, 0 at home, 0 spot ready: 3 on spot"


def test_when_spot_is_ready_on_demand_goes():
    spot = [one(f"s{z}", z, True, ready_at=1.0) for z in "abc"]
    regular = [one("o1", "od", last_used_at=9.0), one("o2", "od", "", "starting")]
    assert gone(act(2, (*spot, *regular))) == ["o2", "o1"]
    # With two of three ready one is needed still.
    starting = [*spot[:2], one("sc", "c", True, "starting")]
    assert gone(act(2, (*starting, *regular))) == ["o2"]


def test_when_spot_is_lost_on_demand_fills_in_and_another_zone_is_tried():
    spot = [one("sb", "b", True, ready_at=1.0), one("sc", "c", True, ready_at=1.0)]
    lost = zone("a", 1.0, preempted_at=990.0)
    plan = act(2, spot, (lost, B, C, zone("d", 2.0), ON_DEMAND))
    assert where(plan) == ["od", "d"]
    assert plan.state["e"].zones == (Zone(name="a", lost_at=990.0),)


def test_home_comes_first_and_a_quota_ends():
    home = HostObservation(host="h", cpu_free=0.125, memory_free=1)
    offers = (zone("a", left=1), zone("b", 2.0, left=0))
    plan = act(3, offers=offers, hosts=(home,))
    assert where(plan) == ["home", "a"]
    assert isinstance(plan.actions[-1], Wait)
    assert plan.actions[-1].wanted == 1
    assert plan.look_again_at == 1005.0


def test_what_is_too_much_goes_the_cloud_first_and_min_stays():
    fleet = [one("h1"), one("h2"), one("s1", "a", True, ready_at=1.0), one("o1", "od")]
    assert gone(act(1, fleet)) == ["s1", "o1", "h1"]
    assert gone(act(1, fleet, scaling=ScalingSpec(min=1, max=9))) == ["s1", "o1", "h1"]
    regular = [one(f"o{n}", "od") for n in range(4)]
    # A place is made for spot to come back, but for min.
    assert gone(act(4, regular, scaling=ScalingSpec(max=4))) == ["o0"]
    assert gone(act(4, regular, scaling=ScalingSpec(min=4, max=4))) == []


def test_starts_that_are_blocked_wait():
    plan = act(2, blocked_until=1001.0)
    assert [type(a) for a in plan.actions] == [Wait]


# --- N


def after(now, target, mean, scaling=None, requests=1, **memory):
    before = SpotHedgeState(**({"target": target, "samples": ((now - 60.0, 0.0),)} | memory))
    seen = endpoint(scaling, queued=requests, demand_s=60.0 * mean)
    return wanted(now, seen, before, CONFIG)


def test_from_none_it_goes_at_once():
    assert after(100.0, 0, 2.5).target == 3
    first = wanted(100.0, endpoint(queued=2, demand_s=0.0), SpotHedgeState(), CONFIG)
    assert (first.target, first.decided_at) == (2, 100.0)


@pytest.mark.parametrize(
    ("now", "mean", "up", "target"),
    [(399.9, 4.0, True, 2), (400.0, 4.0, True, 4), (1299.9, 0.5, False, 2), (1300.0, 0.5, False, 1)],
)
def test_up_after_five_minutes_and_down_after_twenty(now, mean, up, target):
    then = after(now, 2, mean, since=100.0, up=up)
    assert then.target == target
    assert then.since == (None if target != 2 else 100.0)


def test_a_break_or_another_direction_begins_the_delay_again():
    assert after(300.0, 2, 2.0, since=100.0, up=True).since is None
    assert after(300.0, 2, 1.0, since=100.0, up=True).since == 300.0
    assert after(300.0, 2, 3.0).since == 300.0


def test_it_decides_every_20_seconds_and_rests_at_zero():
    before = SpotHedgeState(target=2, decided_at=90.0)
    seen = endpoint(queued=9, demand_s=1.0)
    assert wanted(109.9, seen, before, CONFIG) is before
    assert wanted(110.0, seen, before, CONFIG) is not before
    rest = SpotHedgeState()
    assert wanted(100.0, endpoint(demand_s=1.0), rest, CONFIG) is rest
    assert wanted(100.0, endpoint(), SpotHedgeState(samples=((1.0, 1.0),)), CONFIG).samples == ()
    # What is still there at zero goes.
    seen = endpoint(instances=(one("s", "a", True),), demand_s=0.0)
    plan = decide(100.0, Observation(endpoints=(seen,), hosts=(), offers=(A,)), {}, CONFIG)
    assert gone(plan) == ["s"]
    assert decide(100.0, Observation(endpoints=(endpoint(),), hosts=()), {}, CONFIG).actions == ()


def test_without_data_n_stays_within_min_and_max():
    before = SpotHedgeState(target=2)
    assert wanted(100.0, endpoint(queued=9), before, CONFIG).target == 2
    seen = Observation(endpoints=(endpoint(ScalingSpec(min=1, max=9)),), hosts=(), offers=(ON_DEMAND,))
    assert where(decide(100.0, seen, {}, CONFIG)) == ["od"]
    lost = endpoint(demand_s=1.0)
    plan = decide(
        100.0, Observation(endpoints=(lost,), hosts=()), {"e": SpotHedgeState(samples=((0, 1),))}, CONFIG
    )
    assert plan.state["e"].samples == ()
