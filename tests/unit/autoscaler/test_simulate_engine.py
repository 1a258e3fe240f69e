"""Requests and instances in the simulator, on scenarios that were computed by hand."""

from __future__ import annotations

import pytest
from headrace_autoscaler.simulate.scenario import Wish
from headrace_autoscaler.spec import Refill
from simulate_harness import (
    Looks,
    cloud,
    costs,
    exact,
    home,
    launch,
    play,
    release,
    scenario,
    seen,
    start,
    states,
    trace,
)

# Requests


def test_a_request_waits_for_the_start_and_time_is_split_by_what_it_was_used_for() -> None:
    looks: Looks = []
    result = play(scenario(trace((10, 5)), cloud()), {0: [launch()], 30: [release("cloud-1")]}, looks=looks)
    assert result.waits.tolist() == [10.0]
    assert result.cold.tolist() == [True]
    assert result.arrivals.tolist() == [10.0]
    assert costs(result) == {"starting": 20.0, "busy": 5.0, "idle": 5.0}
    assert result.by_supply == {"cloud": pytest.approx(30.0)}
    assert (result.starts, result.errors, result.seconds) == (1, {}, 0.0)
    assert result.decisions == len(looks) == 111
    assert states(looks, 19) == [("cloud-1", "starting", 0)]
    assert states(looks, 20) == [("cloud-1", "ready", 1)]
    assert states(looks, 31) == []


def test_a_request_that_finds_a_free_instance_does_not_wait_and_is_not_cold() -> None:
    result = play(scenario(trace((22, 5)), cloud()), {0: [launch()], 27: [release("cloud-1")]})
    assert result.waits.tolist() == [0.0]
    assert result.cold.tolist() == [False]
    assert costs(result) == {"starting": 20.0, "busy": 5.0, "idle": 2.0}


def test_who_waits_for_a_busy_instance_is_served_in_turn_and_not_cold() -> None:
    result = play(
        scenario(trace((20, 5), (21, 5), (22, 5)), cloud()), {0: [launch()], 40: [release("cloud-1")]}
    )
    assert result.waits.tolist() == [0.0, 4.0, 8.0]
    assert result.cold.tolist() == [False, False, False]


def test_requests_go_to_the_instance_used_last() -> None:
    looks: Looks = []
    plan = {0: [launch(), launch()]}
    play(scenario(trace((30, 2), (31, 6), (40, 1), (40.5, 1)), cloud()), plan, looks=looks)
    # Both got ready together, the second last: it is first, then the other; the other also ends last.
    assert states(looks, 30) == [("cloud-1", "ready", 0), ("cloud-2", "ready", 1)]
    assert states(looks, 31) == [("cloud-1", "ready", 1), ("cloud-2", "ready", 1)]
    assert states(looks, 40) == [("cloud-1", "ready", 1), ("cloud-2", "ready", 0)]
    used = seen(looks, 45).instances
    assert [i.last_used_at for i in used] == [41.0, 41.5]


def test_an_instance_serves_as_many_at_once_as_the_endpoint_says() -> None:
    looks: Looks = []
    given = scenario(
        trace((5, 10), (6, 10), (25, 3), (26, 3), (27, 3)), cloud(), wishes=(Wish(concurrency=2),)
    )
    result = play(given, {0: [launch()], 40: [release("cloud-1")]}, looks=looks)
    # Two run from 20 to 30; one more starts as each ends, and the one that came last waits 6 s.
    assert result.waits.tolist() == [15.0, 14.0, 5.0, 4.0, 6.0]
    assert result.cold.tolist() == [True, True, False, False, False]
    assert states(looks, 29) == [("cloud-1", "ready", 2)]
    assert states(looks, 34) == [("cloud-1", "ready", 1)]
    assert costs(result) == {"starting": 20.0, "busy": 16.0, "idle": 4.0}


def test_one_that_drains_ends_with_the_last_of_the_requests_that_it_shares_its_time_between() -> None:
    looks: Looks = []
    given = scenario(trace((5, 10), (6, 20)), cloud(boot=0.0), wishes=(Wish(concurrency=3),))
    result = play(given, {0: [launch()], 8: [release("cloud-1")]}, looks=looks)
    assert result.waits.tolist() == [0.0, 0.0]
    assert states(looks, 7) == [("cloud-1", "ready", 2)]
    assert states(looks, 15) == [("cloud-1", "draining", 1)]
    assert costs(result) == {"idle": 5.0, "busy": 21.0}


def test_one_that_waited_too_long_leaves_and_one_that_is_due_at_that_moment_is_served() -> None:
    given = scenario(trace((10, 5), (10.5, 5), (11, 1)), cloud(), timeout_s=10.0)
    result = play(given, {0: [launch()], 30: [release("cloud-1")]})
    assert result.waits.tolist() == [10.0]
    assert result.errors == {"timeout": 2}
    assert result.failed_at.tolist() == [10.5, 11.0]


def test_one_that_gave_up_in_the_middle_of_the_queue_is_passed_over() -> None:
    # The first is lost at 30 and waits again from then, at the head; the second gives up at 31.
    supply = cloud(boot=0.0, outages=((30.0, 33.0),))
    given = scenario(trace((20, 100), (21, 5), (28, 5)), supply, timeout_s=10.0)
    result = play(given, {0: [launch()], 35: [launch(), launch()]})
    assert result.waits.tolist() == [15.0, 7.0]
    assert result.errors == {"timeout": 1}
    assert result.arrivals.tolist() == [20.0, 28.0]


def test_one_that_waits_again_has_all_its_patience_again() -> None:
    # It would have given up at 10, is served at 5, lost at 7, and would give up at 17 now.
    supply = cloud(boot=0.0, outages=((7.0, 8.0),))
    result = play(scenario(trace((0, 100)), supply, timeout_s=10.0), {5: [launch()], 15: [launch()]})
    assert result.waits.tolist() == [15.0]
    assert result.first_waits is not None
    assert result.first_waits.tolist() == [5.0]
    assert result.errors == {}


def test_who_finds_the_queue_full_gets_an_error() -> None:
    given = scenario(trace((1, 1), (2, 1), (3, 1)), cloud(), queue_cap=2)
    result = play(given, {0: [launch()], 30: [release("cloud-1")]})
    assert result.errors == {"queue-full": 1}
    assert result.failed_at.tolist() == [3.0]
    assert result.waits.tolist() == [19.0, 19.0]


def test_at_the_end_those_who_run_are_finished_and_those_who_wait_are_errors() -> None:
    given = scenario(trace((10, 500), (11, 1)), cloud(), tail_s=50.0)
    result = play(given, {0: [launch()]})
    assert result.waits.tolist() == [10.0]
    assert result.errors == {"unserved": 1}
    assert costs(result) == {"starting": 20.0, "busy": 41.0}, "the end is at 61"


def test_what_is_due_after_the_end_and_before_the_next_tick_is_not_played() -> None:
    looks: Looks = []
    result = play(scenario(trace((1, 1)), cloud(boot=0.0), tail_s=0.5), {1: [launch()]}, looks=looks)
    assert result.waits.tolist() == [0.0]
    assert [now for now, _ in looks] == [0.0, 1.0]
    assert costs(result) == {"busy": 0.5}


def test_an_idle_instance_costs_until_the_end() -> None:
    result = play(scenario(trace((10, 5)), cloud(), tail_s=50.0), {0: [launch()]})
    assert costs(result) == {"starting": 20.0, "busy": 5.0, "idle": 35.0}


def test_nothing_arrives_and_nothing_is_done() -> None:
    result = play(scenario(trace(), cloud(), tail_s=5.0), {})
    assert (result.cost.total, len(result.waits), result.decisions) == (0.0, 0, 6)


def test_what_comes_before_the_warm_up_is_not_counted() -> None:
    given = scenario(trace((5, 10), (25, 10), (26, 1)), cloud(boot=10.0), warm_up_s=22.0, queue_cap=0)
    result = play(
        given, {0: [launch(), launch()], 24: [launch()], 40: [release(f"cloud-{k}") for k in (1, 2, 3)]}
    )
    # The first request is refused before the count begins. Two idle from 22; one runs from 25 to 35, one
    # from 26 to 27; the third starts from 24 to 34.
    assert result.errors == {}
    assert result.waits.tolist() == [0.0, 0.0]
    assert result.starts == 1
    assert costs(result) == {"starting": 10.0, "busy": 11.0, "idle": 3 + 4 + 5 + 13 + 6}


# Instances


def test_a_busy_instance_that_is_released_drains_and_gets_no_more() -> None:
    looks: Looks = []
    plan = {0: [launch()], 25: [release("cloud-1")], 26: [release("cloud-1")]}
    result = play(scenario(trace((20, 10), (26, 1)), cloud()), plan, looks=looks)
    assert states(looks, 26) == [("cloud-1", "draining", 1)]
    assert states(looks, 30) == []
    assert result.waits.tolist() == [0.0]
    assert result.errors == {"unserved": 1}
    assert costs(result) == {"starting": 20.0, "busy": 10.0}


def test_a_start_that_is_released_ends_at_once_and_one_that_is_gone_is_passed_over() -> None:
    plan = {0: [launch()], 5: [release("cloud-1")], 6: [release("cloud-1")]}
    assert costs(play(scenario(trace((50, 1)), cloud()), plan)) == {"starting": 5.0}


def test_minimum_billing_is_paid_to_its_end() -> None:
    looks: Looks = []
    given = scenario(trace((1, 1)), cloud(boot=10.0, min_billing_s=60.0))
    result = play(given, {0: [launch()], 15: [release("cloud-1")]}, looks=looks)
    assert costs(result) == {"starting": 10.0, "busy": 1.0, "idle": 4.0, "sunk": 45.0}
    assert seen(looks, 1).instances[0].paid_until == 60.0
    assert looks[1][1].offers[0].min_billing_s == 60.0


def test_an_offer_that_refuses_says_so_a_little_later_and_costs_nothing() -> None:
    looks: Looks = []
    given = scenario(trace((50, 1)), cloud(capacity=1, boot=10.0))
    plan = {0: [launch(), launch()], 12: [release("cloud-1")], 20: [launch()], 40: [release("cloud-3")]}
    result = play(given, plan, looks=looks)
    assert states(looks, 4) == [("cloud-1", "starting", 0), ("cloud-2", "starting", 0)]
    assert states(looks, 5) == [("cloud-1", "starting", 0)]
    offers = {now: o.offers[0] for now, o in looks}
    assert (offers[0].left, offers[1].left, offers[13].left) == (1, 0, 1)
    assert (offers[4].failures, offers[4].failed_at) == (0, None)
    assert (offers[5].failures, offers[5].failed_at) == (1, 5.0)
    assert offers[5].reason == "quota of 1 is used up"
    assert (offers[10].failures, offers[10].failed_at, offers[10].reason) == (0, 5.0, "")
    assert result.starts == 2
    assert costs(result) == {"starting": 20.0, "idle": 2 + 10}


def test_a_refused_launch_may_be_released_before_it_is_known() -> None:
    looks: Looks = []
    given = scenario(trace((50, 1)), cloud(capacity=0))
    play(given, {0: [launch()], 2: [release("cloud-1")], 149: [launch()]}, looks=looks)
    assert states(looks, 3) == []
    assert looks[6][1].offers[0].failures == 1


def test_a_home_that_is_full_starts_nothing() -> None:
    looks: Looks = []
    result = play(scenario(trace((50, 1)), home(1)), {0: [start(), start()]}, looks=looks)
    assert [o.hosts[0].gpu_free for _, o in looks[:2]] == [{"gpu": 1}, {"gpu": 0}]
    assert result.starts == 1
    assert seen(looks, 1).instances[0].host == "home"


def test_home_starts_from_a_warm_sandbox_then_from_what_is_cached_else_it_boots() -> None:
    looks: Looks = []
    supply = home(5, boot=40.0, warm=exact(1.0), cached=exact(10.0), warm_sandboxes=1)
    given = scenario(trace((90, 1)), supply)
    result = play(given, {0: [start(), start()], 30: [start()], 60: [release("home-1")]}, looks=looks)
    ready = {i.id: i.ready_at for i in seen(looks, 59).instances}
    # The sandbox is made again by 10 and claimed at 30; the second start found what the first had loaded.
    assert ready == {"home-1": 1.0, "home-2": 10.0, "home-3": 31.0}
    pools = {now: o.pools[0] for now, o in looks}
    assert [(p.ready, p.making, p.claimed, p.missed) for p in (pools[0], pools[1], pools[10], pools[31])] == [
        (1, 0, 0, 0), (0, 1, 2, 1), (1, 0, 2, 1), (0, 1, 3, 1),
    ]  # fmt: skip
    assert pools[0].refill_s == 10.0
    assert result.starts == 3


def test_the_first_start_of_an_endpoint_at_home_boots() -> None:
    looks: Looks = []
    given = scenario(trace((90, 1)), home(2, boot=40.0, cached=exact(10.0)))
    play(given, {0: [start()], 1: [start()]}, looks=looks)
    assert [i.ready_at for i in seen(looks, 60).instances] == [40.0, 11.0]
    assert seen(looks, 10).start_s is None
    assert seen(looks, 11).start_s == 10.0
    assert seen(looks, 40).start_s == 25.0


def test_a_pool_may_be_made_smaller_and_larger_again_as_far_as_there_is_room() -> None:
    looks: Looks = []
    supply = home(5, warm=exact(1.0), cached=exact(10.0), warm_sandboxes=3)
    refills = [Refill(host="home", base="base", count=n, reason="test") for n in (1, 9)]
    play(scenario(trace((90, 1)), supply), {5: refills[:1], 10: refills[1:], 15: refills[:1]}, looks=looks)
    pools = {now: o.pools[0] for now, o in looks}
    assert [(pools[t].ready, pools[t].making) for t in (5, 6, 11, 16, 25)] == [
        (3, 0), (1, 0), (1, 2), (1, 2), (1, 0),
    ]  # fmt: skip


def test_standing_capacity_is_paid_for_without_an_instance_and_one_more_costs_nothing() -> None:
    looks: Looks = []
    given = scenario(trace((30, 5)), home(2, standing=True), tail_s=70.0)
    result = play(given, {0: [start()], 50: [release("home-1")]}, looks=looks)
    assert costs(result) == {"starting": 20.0, "busy": 5.0, "idle": 25.0, "sunk": 150.0}
    assert result.by_supply == {"home": 200.0}
    assert looks[1][1].hosts[0].price == 0.0
    assert seen(looks, 1).instances[0].price == 0.0
    assert looks[1][1].spending == 0.0
