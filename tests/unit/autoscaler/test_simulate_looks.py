"""What a simulated policy sees and when, how draws are made, and what is refused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytest
from headrace_autoscaler.simulate.engine import MIN_LOOK_S, run
from headrace_autoscaler.simulate.scenario import Draw, Scenario, Steps, Supply, Wish
from headrace_autoscaler.spec import Action, Pause, Wait
from simulate_harness import (
    DOLLAR_A_SECOND,
    Looks,
    cloud,
    exact,
    home,
    launch,
    play,
    scenario,
    script,
    seen,
    start,
    trace,
)

# What the policy sees and when


def test_counters_of_an_endpoint() -> None:
    looks: Looks = []
    given = scenario(trace((2.5, 4), (3.5, 1)), cloud(boot=5.0))
    play(given, {0: [launch()]}, looks=looks)
    at4 = seen(looks, 4)
    assert (at4.arrived, at4.queued, at4.in_flight, at4.oldest_wait_s) == (2, 2, 0, 1.5)
    assert at4.demand_s == pytest.approx(1.5 + 0.5)
    assert (at4.start_s, seen(looks, 5).start_s) == (None, 5.0)
    at9 = seen(looks, 9)
    # The first runs from 5 to 9, the second from 9 to 10.
    assert (at9.served, at9.in_flight, at9.queued) == ((4.0,), 1, 0)
    assert at9.demand_s == pytest.approx(6.5 + 5.5)
    assert seen(looks, 10).served == (1.0,)
    assert seen(looks, 11).served == ()
    assert seen(looks, 50).demand_s == pytest.approx(6.5 + 6.5)
    assert looks[6][1].offers[0].boot_s == 5.0
    assert looks[6][1].spending == DOLLAR_A_SECOND


def test_demand_counts_who_gave_up_until_then() -> None:
    looks: Looks = []
    play(scenario(trace((1, 1)), cloud(), timeout_s=2.5), {}, looks=looks)
    assert seen(looks, 3).demand_s == 2.0
    assert seen(looks, 4).demand_s == 2.5


def test_what_did_not_change_is_the_same_object() -> None:
    looks: Looks = []
    play(scenario(trace((50, 1)), cloud(), home()), {}, looks=looks)
    assert looks[1][1] is looks[40][1]
    assert looks[49][1] is not looks[50][1]


@pytest.mark.parametrize(
    ("wakes", "expected"),
    [("queued", [0.5, 1.5, 2.25]), ("from-zero", [0.5]), ("never", [])],
)
def test_of_which_requests_a_policy_hears_at_once(wakes: str, expected: list[float]) -> None:
    looks: Looks = []
    given = scenario(trace((0.5, 1), (1.5, 1), (2.25, 1), (2.25, 1)), cloud())
    play(given, {1: [launch()]}, looks=looks, wakes=wakes)
    assert [now for now, _ in looks if now % 1] == expected


def test_a_policy_looks_again_when_it_said_and_never_twice_at_one_moment() -> None:
    looks: Looks = []
    again = {0.0: 0.25, 0.25: 0.25, 0.25 + MIN_LOOK_S: None, 1.0: 3.5, 2.0: None, 3.0: 4.0}
    given = scenario(trace((0, 1)), cloud(), tail_s=5.0)
    play(given, {}, looks=looks, again=again.get)
    assert [now for now, _ in looks] == [0.0, 0.25, 0.25 + MIN_LOOK_S, 1.0, 2.0, 3.0, 4.0, 5.0]


def test_a_wake_concerns_its_endpoint_alone_and_keeps_what_others_asked_for() -> None:
    looks: Looks = []
    given = scenario(trace((0.5, 1, 1), (30.5, 1, 0), names=("a", "b")), home(4, boot=5.0))
    again = {0.0: 0.75, 0.5: None, 1.0: 9.5, 0.75: 0.9}
    policy_looks = script({0.5: [start(endpoint="b")]}, looks, again=again.get, wakes="queued")
    run(given, policy_looks, 0)
    assert [now for now, _ in looks][:5] == [0.0, 0.5, 0.75, 0.9, 1.0]
    at = dict(looks)
    assert [e.endpoint for e in at[0.5].endpoints] == ["b"]
    assert [e.endpoint for e in at[0.75].endpoints] == ["a", "b"]
    assert [e.endpoint for e in at[30.5].endpoints] == ["a"]
    assert [(name, one.id) for name, one, _ in at[30.5].idle_elsewhere] == [("b", "home-1")]
    assert at[0.75].idle_elsewhere == ()


def test_after_a_look_at_one_endpoint_all_are_seen_as_they_are() -> None:
    looks: Looks = []
    given = scenario(trace((0.5, 1, 1), names=("a", "b")), cloud(), timeout_s=0.0)
    play(given, {}, looks=looks, wakes="queued")
    at = dict(looks)
    assert [(e.endpoint, e.arrived) for e in at[0.0].endpoints] == [("a", 0), ("b", 0)]
    assert [(e.endpoint, e.arrived) for e in at[0.5].endpoints] == [("b", 1)]
    assert [(e.endpoint, e.arrived) for e in at[1.0].endpoints] == [("a", 0), ("b", 1)]


def test_endpoints_have_wishes_queues_and_instances_of_their_own() -> None:
    looks: Looks = []
    wishes = (Wish(max=3), Wish(idle_timeout_s=7.0, spot="never", min=1))
    given = scenario(trace((10, 5, 0), (11, 5, 1), names=("a", "b")), cloud(), wishes=wishes)
    result = play(given, {0: [launch(endpoint="a")], 3: [launch(endpoint="b")]}, looks=looks)
    assert result.waits.tolist() == [10.0, 12.0]
    first, second = looks[0][1].endpoints
    assert (first.scaling.max, first.scaling.learn_idle, first.scaling.spot) == (3, True, "prefer")
    assert (second.scaling.idle_timeout_s, second.scaling.learn_idle, second.scaling.spot) == (
        7.0,
        False,
        "never",
    )
    assert (second.scaling.min, second.scaling.gpu) == (1, (("gpu", 1),))


def test_the_timeline_samples_demand_instances_and_dollars() -> None:
    given = scenario(trace((10, 20), (11, 5)), cloud(boot=5.0), tail_s=29.0)
    policy = script({10: [launch()], 30: [launch()]})
    series = run(given, policy, 0, timeline_step_s=10.0).timeline
    assert series["t"].tolist() == [0.0, 10.0, 20.0, 30.0, 40.0]
    assert series["demand"].tolist() == [0.0, 1.0, 2.0, 2.0, 0.0]
    assert series["queued"].tolist() == [0.0, 1.0, 1.0, 1.0, 0.0]
    assert series["starting:cloud"].tolist() == [0.0, 0.0, 0.0, 0.0, 0.0]
    assert series["busy:cloud"].tolist() == [0.0, 0.0, 1.0, 1.0, 0.0]
    assert series["idle:cloud"].tolist() == [0.0, 0.0, 0.0, 0.0, 2.0]
    assert series["dollars:cloud"].tolist() == pytest.approx([0.0, 0.0, 10.0, 20.0, 40.0])
    assert series["tier:boot"].tolist() == [0.0, 0.0, 1.0, 1.0, 2.0]


# Draws


def test_the_same_seed_gives_the_same_start_times_whatever_the_policy_does() -> None:
    supply = Supply(name="cloud", price=1.0, boot=Draw(90.0, sigma=0.5))
    given = scenario(trace((500, 1)), supply)

    def starts(plan: Mapping[float, Sequence[Action]], seed: int) -> list[float]:
        looks: Looks = []
        run(given, script(plan, looks), seed)
        return [i.ready_at - i.started_at for i in seen(looks, 599).instances if i.ready_at is not None]

    first = starts({0: [launch()] * 3}, 7)
    assert starts({0: [launch()], 5: [launch()], 99: [launch()]}, 7) == pytest.approx(first)
    assert starts({0: [launch()] * 3}, 8) != first
    assert len(set(first)) == 3


@pytest.mark.parametrize(("median", "expected"), [(0.0, {1.0, 2.0, 30.0}), (20.0, {10.0, 20.0, 300.0})])
def test_measured_start_times_are_drawn_as_they_are_or_scaled(median: float, expected: set[float]) -> None:
    looks: Looks = []
    measured = Draw(median, samples=(1.0, 2.0, 30.0))
    supplies = (
        Supply(name="a", price=1.0, boot=measured),
        Supply(name="b", price=1.0, boot=Draw(5.0), mtbf_s=1e9),
    )
    play(scenario(trace((500, 1)), *supplies), {0: [launch("a")] * 40 + [launch("b")]}, looks=looks)
    found = seen(looks, 499).instances
    assert {i.ready_at for i in found if i.offer == "a"} == expected


def test_supplies_have_draws_of_their_own() -> None:
    looks: Looks = []
    supplies = [Supply(name=name, price=1.0, boot=Draw(90.0)) for name in ("a", "b")]
    play(scenario(trace((500, 1)), *supplies), {0: [launch("a"), launch("b")]}, looks=looks)
    first, second = seen(looks, 499).instances
    assert first.ready_at != second.ready_at


# What is refused


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (launch("nowhere"), "an offer that is not there: 'nowhere'"),
        (launch("home"), "an offer that is not there: 'home'"),
        (start("cloud"), "Start needs the name of a home supply"),
        (launch(endpoint="x"), "an endpoint that is not there: 'x'"),
        (Pause(endpoint="e", instance="i", reason="test"), "not simulated"),
    ],
)
def test_an_action_that_makes_no_sense_is_refused(action: Action, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        play(scenario(trace((1, 1)), cloud(), home()), {0: [action]})


def test_waiting_is_only_said() -> None:
    wait = Wait(endpoint="e", wanted=1, reason="test")
    assert play(scenario(trace((1, 1)), cloud()), {0: [wait]}).starts == 0


GOOD = scenario(trace((1, 1), (2, 1)), cloud())


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (replace(GOOD, trace=trace((2, 1), (1, 1))), "not in order"),
        (replace(GOOD, trace=trace((-1, 1))), "not in order"),
        (replace(GOOD, trace=trace((1, -1))), "negative"),
        (replace(GOOD, trace=trace((1, 1, 1))), "without a name"),
        (replace(GOOD, trace=replace(GOOD.trace, durations=np.ones(1))), "differ in length"),
        (replace(GOOD, wishes=(Wish(), Wish())), "2 wishes for 1 endpoints"),
        (replace(GOOD, supplies=(cloud(), cloud())), "same name"),
        (replace(GOOD, supplies=(cloud(standing=True, capacity=1),)), "must be owned"),
        (replace(GOOD, supplies=(home(None, standing=True),)), "have a capacity"),
        (replace(GOOD, supplies=(home(availability=Steps((0.0,), (1,))),)), "only offers"),
        (replace(GOOD, supplies=(cloud(mtbf_s=0.0),)), "mtbf"),
        (replace(GOOD, supplies=(cloud(availability=Steps((0.0,), ())),)), "as many values"),
        (
            replace(GOOD, supplies=(cloud(outages=((5.0, 4.0),)),)),
            "ends before it begins, from 5 to 4 s",
        ),
        (replace(GOOD, supplies=(cloud(cached=exact(1.0)),)), "cloud is an offer: .* leave out cached"),
        (replace(GOOD, supplies=(cloud(warm=exact(1.0)),)), "cloud is an offer"),
        (replace(GOOD, supplies=(cloud(warm_sandboxes=1),)), "cloud is an offer"),
    ],
)
def test_a_scenario_that_does_not_hold_together_is_refused(bad: Scenario, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        play(bad, {})


def test_a_policy_without_time_between_its_ticks_is_refused() -> None:
    with pytest.raises(ValueError, match="more than 0"):
        play(GOOD, {}, tick_s=0.0)


def test_a_policy_that_never_lets_time_go_on_is_refused() -> None:
    with pytest.raises(ValueError, match="a time that is yet to come"):
        play(GOOD, {}, again=lambda now: now, tick_s=50.0)
