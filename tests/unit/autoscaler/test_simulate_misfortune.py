"""Outages, preemption and failing nodes in the simulator, on scenarios that were computed by hand."""

from __future__ import annotations

import pytest
from headrace_autoscaler.simulate.engine import run
from headrace_autoscaler.simulate.scenario import Steps, Wish
from simulate_harness import (
    Looks,
    cloud,
    costs,
    home,
    launch,
    play,
    release,
    scenario,
    script,
    seen,
    start,
    states,
    trace,
)


def test_an_outage_ends_what_runs_which_is_run_again_before_those_that_wait() -> None:
    looks: Looks = []
    supplies = (cloud("a", boot=0.0, outages=((30.0, 50.0),)), cloud("b", boot=0.0))
    plan = {0: [launch("a"), launch("a")], 29: [launch("a")], 35: [launch("a"), launch("b")]}
    given = scenario(trace((20, 15), (25, 1), (29.5, 2), (32, 3)), *supplies, tail_s=68.0)
    result = play(given, plan, looks=looks)
    # The third also ran at 30; both are run again at 35 by b, one after the other, then the last.
    assert result.waits.tolist() == [15.0, 0.0, 20.5, 20.0]
    assert costs(result)["preempted"] == 10.0 + 0.5
    assert costs(result)["busy"] == 15 + 1 + 2 + 3
    assert states(looks, 30) == []
    offers = {now: o.offers[0] for now, o in looks}
    assert offers[40].failed_at == 40.0
    assert offers[40].reason == "cloud does not answer"
    assert result.cold.tolist() == [True, False, False, False]


def test_a_start_that_an_outage_ends_is_a_failed_launch_and_lost_money() -> None:
    looks: Looks = []
    given = scenario(trace((50, 1)), cloud(outages=((10.0, 11.0),)))
    result = play(given, {0: [launch()]}, looks=looks)
    assert costs(result) == {"preempted": 10.0}
    offer = looks[10][1].offers[0]
    assert (offer.failures, offer.failed_at) == (1, 10.0)
    assert offer.reason == "cloud went away during the start"


def test_a_home_that_is_out_is_suspect() -> None:
    looks: Looks = []
    play(scenario(trace((50, 1)), home(outages=((10.0, 12.0),))), {10: [start()]}, looks=looks)
    assert [o.hosts[0].state for _, o in looks[9:13]] == ["ready", "suspect", "suspect", "ready"]
    assert states(looks, 11) == []


def test_a_request_is_run_again_only_so_often() -> None:
    given = scenario(trace((5, 100)), cloud(boot=0.0, outages=((10.0, 11.0), (20.0, 21.0))), retries=1)
    result = play(given, {0: [launch()], 12: [launch()]})
    assert result.errors == {"lost": 1}
    assert result.failed_at.tolist() == [5.0]
    assert costs(result) == {"idle": 5.0, "preempted": 5.0 + 8.0}


def test_a_lost_request_goes_to_a_free_instance_at_once() -> None:
    supplies = (cloud("a", boot=0.0, outages=((10.0, 11.0),)), cloud("b", boot=0.0))
    result = play(scenario(trace((5, 20)), *supplies), {0: [launch("b")], 1: [launch("a")]})
    assert result.waits.tolist() == [5.0]
    assert result.cold.tolist() == [False]


def test_spot_capacity_that_goes_away_gives_notice() -> None:
    looks: Looks = []
    spot = cloud("spot", boot=10.0, spot=True, notice_s=30.0, availability=Steps((0, 50, 90), (1, 0, 1)))
    plan = {0: [launch("spot")] * 3, 45: [launch("spot")], 60: [launch("spot")], 92: [launch("spot")]}
    given = scenario(trace((40, 20), (41, 100)), spot, tail_s=79.0)
    result = play(given, plan, looks=looks)
    # At 50: one that is idle ends, the one that starts is lost, two drain. One is done by 60, the other is
    # taken at 80 and its request is run again from 102 on.
    assert states(looks, 49)[3] == ("spot-4", "starting", 0)
    assert states(looks, 50) == [("spot-2", "draining", 1), ("spot-3", "draining", 1)]
    assert seen(looks, 50).instances[0].lost_at == 80.0
    assert [o.offers[0].launching for now, o in looks if now in (9, 10, 49, 50, 61)] == [3, 0, 1, 0, 1]
    assert states(looks, 60) == [("spot-2", "draining", 1)]
    assert states(looks, 80) == []
    offers = {now: o.offers[0] for now, o in looks}
    assert (offers[50].preempted_at, offers[50].failures, offers[50].failed_at) == (50.0, 1, 50.0)
    assert (offers[65].failures, offers[65].reason) == (2, "no spot capacity")
    assert result.waits.tolist() == [0.0, 61.0]
    # Lost: 41 to 80, and the start from 45 to 50. Idle: 10..50, 10..41, 10..40. Counted until 120.
    assert costs(result) == {"starting": 40.0, "idle": 101.0, "busy": 20.0 + 18.0, "preempted": 39.0 + 5.0}
    assert seen(looks, 49).instances[0].spot


def test_after_the_notice_an_instance_may_go_on_as_the_last_choice() -> None:
    looks: Looks = []
    steps = Steps((0, 50), (1, 0))
    spot = cloud("spot", boot=10.0, spot=True, notice_s=30.0, drain_s=10.0, availability=steps)
    given = scenario(trace((55, 5), (56, 30), (72, 1)), spot, cloud("b", boot=0.0), tail_s=38.0)
    plan = {0: [launch("spot")] * 2, 52: [launch("b")]}
    result = play(given, plan, looks=looks)
    # The first and the last go to b; the second finds it busy, is lost at 80 and run again by b.
    assert result.waits.tolist() == [0.0, 24.0, 0.0]
    assert [(i.id, i.state, i.lost_at) for i in seen(looks, 69).instances] == [
        ("spot-1", "ready", 80.0), ("spot-2", "ready", 80.0), ("b-3", "ready", None),
    ]  # fmt: skip
    assert states(looks, 70) == [("spot-2", "draining", 1), ("b-3", "ready", 0)]
    assert states(looks, 80) == [("b-3", "ready", 1)]
    assert costs(result) == {
        "starting": 20.0,
        "idle": 60.0 + 46 + 3 + 12 + 7,
        "busy": 36.0,
        "preempted": 24.0,
    }


def test_an_instance_under_notice_stays_the_last_choice() -> None:
    looks: Looks = []
    steps = Steps((0, 50, 60), (1, 0, 0))
    spot = cloud("spot", boot=10.0, spot=True, notice_s=60.0, drain_s=10.0, availability=steps)
    given = scenario(trace((55, 1), (55.5, 2), (63, 5)), spot, cloud("b", boot=0.0))
    play(given, {0: [launch("spot"), launch("b")]}, looks=looks)
    # It was used last, as b was busy, and b has the next one all the same.
    assert [i.last_used_at for i in seen(looks, 62).instances] == [57.5, 56.0]
    assert states(looks, 64) == [("spot-1", "ready", 0), ("b-2", "ready", 1)]
    assert seen(looks, 64).instances[0].lost_at == 110.0
    assert looks[64][1].offers[0].preempted_at == 50.0


def test_nothing_more_befalls_an_instance_that_is_gone() -> None:
    steps = Steps((0, 50), (1, 0))
    spot = cloud("spot", boot=0.0, spot=True, notice_s=30.0, drain_s=10.0, mtbf_s=20.0, availability=steps)
    plan = {49: [launch("spot")] * 40, 51: [release(f"spot-{k}") for k in range(1, 41)]}
    result = play(scenario(trace((90, 1)), spot), plan)
    # Those whose nodes failed within the two seconds cost less.
    assert 60.0 < result.cost.idle < 80.0
    assert costs(result) == {"idle": round(result.cost.idle, 6)}


def test_a_request_that_is_done_when_the_outage_begins_is_served() -> None:
    supply = cloud(boot=0.0, outages=((15.0, 16.0),))
    result = play(scenario(trace((5, 10)), supply, retries=0), {0: [launch()]})
    assert result.waits.tolist() == [0.0]
    assert costs(result) == {"idle": 5.0, "busy": 10.0}


def test_whether_a_request_that_is_run_again_was_cold_is_said_of_its_last_run() -> None:
    supplies = (cloud("a", boot=10.0, outages=((15.0, 16.0),)), cloud("b", boot=12.0))
    result = play(scenario(trace((5, 20)), *supplies), {0: [launch("a"), launch("b")]})
    assert result.waits.tolist() == [10.0]
    assert result.cold.tolist() == [False]


@pytest.mark.parametrize(("hears", "expected"), [(False, []), (True, [25.5, 30.5, 60.5, 80.5])])
def test_a_policy_may_hear_of_losses_at_once(hears: bool, expected: list[float]) -> None:
    looks: Looks = []
    supplies = (
        cloud("a", boot=0.0, outages=((30.5, 40.0),)),
        cloud("b", boot=0.0, notice_s=20.0, drain_s=0.0, spot=True, availability=Steps((0, 60.5), (1, 0))),
        cloud("c", boot=0.0, capacity=0),
    )
    plan = {20.5: [launch("c")], 0: [launch("a"), launch("b")]}
    play(
        scenario(trace((50, 100)), *supplies), plan, looks=looks, hears_losses=hears,
        again=lambda now: 20.5 if now == 20 else None,
    )  # fmt: skip
    assert [now for now, _ in looks if now % 1 and now != 20.5] == expected


def test_an_instance_that_shares_its_time_was_of_use_until_its_last_request_was_done() -> None:
    given = scenario(
        trace((0, 30), (5, 10)), cloud(boot=0.0, outages=((20.0, 21.0),)), wishes=(Wish(concurrency=2),),
        retries=0,
    )  # fmt: skip
    result = play(given, {0: [launch()]})
    assert costs(result) == {"busy": 15.0, "preempted": 5.0}
    assert result.errors == {"lost": 1}


def test_nodes_of_an_offer_fail_by_their_lifetimes() -> None:
    given = scenario(trace((1, 1)), cloud(boot=0.0, mtbf_s=50.0), tail_s=5000.0)
    result = run(given, script({0: [launch()] * 400}), 1)
    # 400 lifetimes of 50 s on average: their sum is 20,000 s, give or take 3 times 1,000 s.
    assert result.cost.total == pytest.approx(20_000, abs=3_000)


def test_a_node_that_fails_takes_its_start_or_its_request_with_it() -> None:
    looks: Looks = []
    given = scenario(trace((0, 2000)), cloud(boot=5.0, mtbf_s=50.0), tail_s=2000.0, retries=1000)
    result = play(given, {float(t): [launch()] for t in range(0, 2001, 20)}, looks=looks)
    whys = {o.offers[0].reason for _, o in looks}
    assert whys == {"", "its node failed during the start"}
    # It is run again and again; the end lets the last one finish, and counts it until then.
    assert result.errors == {}
    assert 0.0 < result.cost.busy < 2000.0
    assert result.cost.preempted > 1000.0


def test_places_at_home_fail_whether_used_or_not_and_come_back() -> None:
    looks: Looks = []
    supply = home(3, boot=0.0, mtbf_s=100.0, repair_s=40.0)
    given = scenario(trace((5000, 1)), supply, tail_s=0.0)
    play(given, {0: [start()] * 3}, looks=looks)
    free = [o.hosts[0].gpu_free["gpu"] for _, o in looks]
    used = [len(o.endpoints[0].instances) for _, o in looks]
    assert max(f + u for f, u in zip(free, used, strict=True)) == 3
    assert min(free) == 0
    assert used[-1] == 0
    # Up 100 s and away 40 s on average.
    assert sum(free) / len(free) == pytest.approx(3 * 100 / 140, abs=0.4)
    other: Looks = []
    play(given, {}, looks=other)
    assert [o.hosts[0].gpu_free["gpu"] for _, o in other][1000:] == free[1000:]
