"""What an endpoint wants and what it no longer needs: each rule by itself, with sums done by hand."""

from __future__ import annotations

import math

import msgspec
import pytest
from headrace_autoscaler.configs import DemandConfig, ForecastConfig, KeepConfig
from headrace_autoscaler.keep import restart_s
from headrace_autoscaler.policy import decide
from headrace_autoscaler.residuals import LEVELS
from headrace_autoscaler.spec import (
    Config,
    EndpointObservation,
    EndpointState,
    HostObservation,
    InstanceObservation,
    Launch,
    Observation,
    OfferObservation,
    Release,
    ScalingSpec,
    Start,
    State,
)
from headrace_autoscaler.states import (
    DemandState,
    ForecastState,
    HorizonState,
    Idle,
    IdleTimes,
    KeepState,
    LatenessState,
    PanicState,
    ResidualState,
    ServiceState,
    WindowState,
)
from headrace_autoscaler.wants import NEW, Crew, Seen, Surplus, asleep, learned, look, remember, wanted

CONFIG = Config(
    scale_down_delay_s=5.0,
    demand=DemandConfig(
        goal_s=10.0,
        spare_starts=2.0,
        staff_share=1.0,
        staff_root=0.5,
        staff_less=1.0,
        spare_s=100.0,
        stable_s=60.0,
        panic_s=6.0,
        trust=True,
        quantile=0.9,
    ),
    forecast=ForecastConfig(gap_s=120.0, enough=30, step_s=10.0, horizons_s=(15.0, 90.0)),
    keep=KeepConfig(restart=0.0, late_s=100.0, prior=10.0, memory=400.0, least_s=2.0),
)
"""A late request costs as much as a spare: `staffing.ahead` is level + 0.5 * sqrt(level) - 1, times the part
of a start beyond 10 s."""
LEARN = ScalingSpec(learn_idle=True, max=20)


def cost(level: int, service_s: float | None, start_s: float = 60.0) -> float:
    """What a restart costs is worked out in test_keep.py; until more is learnt it is kept for as long."""
    return restart_s(level, start_s, service_s, CONFIG.demand, CONFIG.keep)


def one(id: str = "a", **options: object) -> InstanceObservation:
    values = {"host": "h1", "version": 1, "state": "ready"} | options
    return InstanceObservation(id=id, **values)  # type: ignore[arg-type]


def see(scaling: ScalingSpec = LEARN, **options: object) -> EndpointObservation:
    return EndpointObservation(endpoint="e", version=1, scaling=scaling, **options)  # type: ignore[arg-type]


def looked(endpoint: EndpointObservation, before: EndpointState = NEW, now: float = 100.0):
    return look(now, endpoint, Crew(endpoint), before, CONFIG)


def go(endpoint: EndpointObservation, before: EndpointState = NEW, now: float = 100.0):
    seen, before = looked(endpoint, before, now)
    return learned(now, endpoint, Crew(endpoint), seen=seen, before=before, config=CONFIG)


# -- who is there ------------------------------------------------------------------------------


def test_a_crew_is_sorted_out_once() -> None:
    crew = Crew(
        see(
            instances=(
                one("idle"),
                one("busy", in_flight=1),
                one("starting", state="starting"),
                one("launched", offer="o", host="n1"),
                one("lost", offer="o", lost_at=200.0),
                one("old", version=0),
                one("paused", state="paused"),
                one("draining", state="draining"),
            )
        )
    )
    assert [i.id for i in crew.mine] == ["idle", "busy", "starting", "launched", "lost"]
    assert [i.id for i in crew.idle] == ["idle", "launched"]
    assert [i.id for i in crew.old] == ["old"]
    assert [i.id for i in crew.paused] == ["paused"]
    # Ready are idle, busy, launched, lost and old.
    assert (crew.lost, crew.elsewhere, crew.ready) == (1, 1, 5)


def test_who_sleeps_has_nothing_left_to_learn() -> None:
    assert asleep(NEW)
    assert asleep(EndpointState(forecast=ForecastState(levels=(0.0, 0.0)), keep=KeepState()))
    assert not asleep(EndpointState(desired=1))
    assert not asleep(EndpointState(forecast=ForecastState(levels=(0.0, 0.1))))
    assert not asleep(EndpointState(keep=KeepState(idle=(Idle(since=1.0, level=1),))))


# -- what demand asks for ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scaling", "demand", "left", "needed", "count"),
    [
        (ScalingSpec(), 3, 0, 0.0, 3),
        (ScalingSpec(target_concurrency=2.0), 3, 0, 0.0, 2),
        # Of five that wait or run, three are served by who is there.
        (ScalingSpec(), 5, 3, 0.0, 2),
        (ScalingSpec(warm=2), 3, 0, 0.0, 5),
        (ScalingSpec(warm=2), 0, 0, 0.0, 0),
        (ScalingSpec(), 1, 0, 3.1, 4),
        (ScalingSpec(), 1, 0, 3.0, 3),
        (ScalingSpec(min=2), 0, 0, 0.0, 2),
        (ScalingSpec(max=4), 9, 0, 6.0, 4),
    ],
)
def test_wanted(scaling: ScalingSpec, demand: int, left: int, needed: float, count: int) -> None:
    assert wanted(see(scaling, in_flight=demand), left, needed) == count


def test_what_is_served_in_time_starts_nothing_and_it_looks_again_when_it_is_not() -> None:
    # Requests take 20 s (forty were seen) and starts 50 s. 5 run, so 2.5 become free within 10 s.
    before = EndpointState(demand=DemandState(service=ServiceState(total=40, seconds=800.0)))
    seen, after = looked(see(in_flight=5, queued=4, start_s=50.0), before)
    assert seen.asked == 5 + 4 - 2
    assert seen.service_s == 20.0
    assert seen.look_s == pytest.approx(2.0)
    assert seen.reason == "5 in flight and 4 queued ask for 7 (2 will be served in time)"
    assert after.level_s == 50.0


def test_a_level_asks_ahead_of_demand() -> None:
    # Nothing was forecast often enough: the level is what was smoothed, 9. 9 + 0.5 * 3 - 1 = 9.5 of it are
    # wanted, times 30 of 40 s: 7.125, so 8.
    known = ForecastState(at=95.0, levels=(9.0, 8.0, 7.0))
    seen, after = looked(see(in_flight=3, start_s=40.0), EndpointState(forecast=known))
    assert (seen.asked, after.level) == (8, 9.0)
    # The level moves while nothing happens: one looks again for the next lesson.
    assert seen.look_s == Config().forecast.step_s
    assert seen.reason == "a level of 9.0 asks for 8, as starts take 40 s"
    # Where starts are not so long it waits for something to happen, and where times are not learnt, too.
    shorter, after = looked(see(in_flight=3, start_s=15.0), EndpointState(forecast=known))
    assert (after.level, shorter.look_s) == (9.0, None)
    plain = see(ScalingSpec(max=20), in_flight=3, start_s=40.0)
    assert looked(plain, EndpointState(forecast=known))[0].look_s is None
    # Two requests at once in each: half of that.
    two = msgspec.structs.replace(LEARN, target_concurrency=2.0)
    assert looked(see(two, in_flight=3, start_s=40.0), EndpointState(forecast=known))[0].asked == 4
    # 120 s later that says nothing any more.
    seen, after = looked(see(in_flight=3, start_s=40.0), EndpointState(forecast=known), now=215.5)
    assert (seen.asked, after.level, seen.look_s) == (3, 0.0, None)
    assert seen.reason == "3 in flight and 0 queued ask for 3"


def test_lateness_that_has_become_dearer_asks_for_more() -> None:
    """At four times its price of 100 s, so at the quantile of 4/5 in place of 1/2."""
    known = ForecastState(at=95.0, levels=(9.0, 8.0, 7.0))
    dear = EndpointState(forecast=known, lateness=LatenessState(power=math.log(4.0)))
    seen, after = looked(see(in_flight=3, start_s=40.0), dear)
    # 9 + (0.5 + 0.8416) * 3 - 1 = 12.02 of it, times 3/4: 9.02, so 10.
    assert (seen.asked, seen.late_s, after.lateness) == (10, 400.0, dear.lateness)
    # Five run for 20 s, so 2.5 end within 10 s: to be so sure of one takes 2.3, and of two 3.6.
    requests = DemandState(service=ServiceState(total=40, seconds=800.0))
    dear = msgspec.structs.replace(dear, demand=requests, forecast=None)
    assert looked(see(in_flight=5, queued=4, start_s=50.0), dear)[0].asked == 5 + 4 - 1
    # An idle instance is kept for as long as a restart costs: 60 s, 50 of a queue, and 100 or 400 s.
    idle = see(instances=(one(last_used_at=0.0),), start_s=60.0)
    kept = KeepState(idle=(Idle(since=0.0, level=1),), total=1)
    before = EndpointState(desired=1, keep=kept)
    for late_s, held in ((None, 210.0), (400.0, 510.0)):
        told = Seen(endpoint=idle, asked=0, start_s=60.0, late_s=late_s)
        _, surplus = learned(100.0, idle, Crew(idle), seen=told, before=before, config=CONFIG)
        assert surplus.look_again_at == pytest.approx(held)


def test_somebody_looks_when_the_oldest_is_late() -> None:
    # Nothing is left to anybody, so only lateness is due: 4 s have gone of 10.
    assert looked(see(queued=1, arrived=1, oldest_wait_s=4.0))[0].look_s == 6.0
    assert looked(see(queued=1, oldest_wait_s=4.0))[0].look_s is None


def test_who_was_late_is_remembered() -> None:
    # The one that waits came 15 s ago, when nobody had come before.
    window = WindowState(samples=((40.0, 0.0, 0), (85.0, 0.0, 1)))
    before = EndpointState(demand=DemandState(window=window), lateness=LatenessState(at=85.0))
    late = see(queued=1, oldest_wait_s=15.0, arrived=1, demand_s=15.0)
    _, after = looked(late, before)
    assert after.lateness is not None
    assert (after.lateness.aged, after.lateness.seen, after.lateness.power > 0.0) == (1.0, 1.0, True)
    # Nothing more is known a moment later.
    assert looked(late, after)[1] is after


def test_a_level_is_what_is_forecast_where_that_is_known() -> None:
    # No hint has a weight, so what was last seen is forecast for all horizons; it was right thirty times.
    record = ResidualState(offsets=(0.0,) * len(LEVELS), seen=30, square=0.1, unchanged=1.0)
    horizons = tuple(HorizonState(seconds=s, weights=(0.0,) * 4, residuals=record) for s in (15.0, 90.0))
    known = ForecastState(at=95.0, last=16.0, levels=(9.0, 9.0, 9.0), horizons=horizons)
    seen, after = looked(see(in_flight=3, start_s=40.0), EndpointState(forecast=known))
    # 16 + 0.5 * 4 - 1 = 17, times 3/4: 12.75.
    assert (seen.asked, after.level) == (13, 16.0)
    trusting = CONFIG
    doubting = msgspec.structs.replace(trusting, demand=msgspec.structs.replace(trusting.demand, trust=False))
    endpoint = see(in_flight=3, start_s=40.0)
    assert look(100.0, endpoint, Crew(endpoint), EndpointState(forecast=known), doubting)[1].level == 9.0


def test_a_level_is_found_once_per_lesson() -> None:
    known = ForecastState(at=95.0, levels=(9.0, 8.0, 7.0))
    before = EndpointState(forecast=known, level=4.0, level_s=40.0)
    seen, after = looked(see(start_s=40.0), before)
    # 4 + 0.5 * 2 - 1 = 4, times 3/4.
    assert seen.asked == 3
    assert after is before
    # Starts take as long as they should, now: nothing is needed ahead.
    seen, after = looked(see(start_s=10.0), before)
    assert (seen.asked, seen.reason, after.level) == (0, "nothing asks for any", 0.0)


def test_tokens_ask_for_more_than_requests() -> None:
    llm = ScalingSpec(learn_idle=True, max=20, tokens=1000.0, target_concurrency=8.0)
    # 4 run with 3000 tokens, as many wait: 6000 tokens, of 1000 each.
    seen, _ = looked(see(llm, in_flight=4, queued=4, tokens_in_flight=3000.0))
    assert seen.asked == 6
    assert seen.reason == "a level of 0.0 asks for 6"
    # Tokens are not known: 8 requests of 8.
    seen, _ = looked(see(llm, in_flight=4, queued=4))
    assert seen.asked == 1


def test_min_says_so() -> None:
    least = ScalingSpec(min=3, learn_idle=True)
    assert looked(see(least))[0].reason == "min=3"
    assert looked(see(least, in_flight=1))[0].reason == "min=3"
    assert looked(see(least, in_flight=3))[0].reason == "3 in flight and 0 queued ask for 3"


def test_what_is_read_is_remembered() -> None:
    seen, first = looked(see(in_flight=1, demand_s=10.0, arrived=3), now=100.0)
    assert first.demand == DemandState(window=WindowState(samples=((100.0, 10.0, 3),)))
    # 6 requests at once over 6 s with one that is ready: three times what is there is a burst.
    seen, after = looked(
        see(in_flight=1, queued=5, demand_s=46.0, arrived=8, start_s=60.0, instances=(one(in_flight=1),)),
        first,
        now=106.0,
    )
    assert seen.burst
    assert after.demand is not None
    assert after.demand.panic == PanicState(until=166.0, most=6.0)
    # Where starts are in time it may shrink all the same: what is let go too soon is soon back.
    assert not looked(see(start_s=10.0), after, now=107.0)[0].burst


# -- down by an idle time-out ------------------------------------------------------------------


def test_demand_is_followed_up_at_once_and_down_after_a_while() -> None:
    def asks(count: int, now: float, before: EndpointState, limit: int = 9) -> EndpointState:
        there = tuple(one(f"i{n}") for n in range(5))
        seen = looked(see(in_flight=count, instances=there))[0]
        return remember(now, seen, before, limit, CONFIG)

    up = asks(5, 100.0, NEW)
    assert (up.desired, up.below_since) == (5, None)
    assert asks(5, 100.5, up) is up
    less = asks(2, 101.0, up)
    assert (less.desired, less.below_since) == (5, 101.0)
    assert asks(2, 105.9, less) is less
    assert asks(2, 106.0, less).desired == 2
    # Whoever lowers max is not made to wait.
    assert asks(2, 101.0, up, limit=3).desired == 3


def test_nothing_shrinks_in_a_burst() -> None:
    before = EndpointState(desired=5, below_since=100.0)
    seen = looked(see(in_flight=2, instances=(one("a"), one("b"))))[0]
    assert remember(200.0, msgspec.structs.replace(seen, burst=True), before, 9, CONFIG).desired == 5
    assert remember(200.0, seen, before, 9, CONFIG).desired == 2


# -- down by what was learnt -------------------------------------------------------------------


def test_what_is_idle_goes_when_a_restart_would_have_cost_as_much() -> None:
    service = DemandState(service=ServiceState(total=40, seconds=400.0))
    before = EndpointState(demand=service, desired=1)
    endpoint = see(start_s=60.0, instances=(one(last_used_at=100.0),))
    held = cost(1, 10.0)
    # The 50 s of a start that are too long, its 60 s, and 100 s for the late request.
    assert held == 210.0
    state, surplus = go(endpoint, before, now=101.0)
    assert surplus.gone == ()
    assert surplus.look_again_at == pytest.approx(310.0)
    assert state.desired == 1
    assert state.keep == KeepState(idle=(Idle(since=100.0, level=1),), total=1)
    state, surplus = go(endpoint, state, now=309.9)
    assert not surplus.gone
    state, surplus = go(endpoint, state, now=310.0)
    assert [(i.id, why) for i, why in surplus.gone] == [
        ("a", "idle for 210.0 s (number 1 is kept for 210 s)")
    ]
    # Scale to zero is what is left, and what was learnt: it was watched for 210 s and not needed.
    assert state.desired == 0
    assert state.keep is not None
    assert state.keep.idle == ()
    assert state.keep.levels[1].needed == (0.0,) * 11
    assert state.keep.levels[1].watched[:9] == (1.0,) * 7 + (round(82 / 128, 4), 0.0)


def test_the_more_there_are_the_sooner_one_goes() -> None:
    # Requests of 10 s: hardly anybody misses the tenth, the first is missed by all.
    held = cost(10, 10.0)
    assert held < 51.0 < cost(1, 10.0)
    service = DemandState(service=ServiceState(total=40, seconds=400.0))
    there = (*(one(f"b{n}", in_flight=1) for n in range(9)), one("z", last_used_at=100.0))
    endpoint = see(start_s=60.0, in_flight=9, instances=there)
    before = EndpointState(demand=service, desired=10)
    _, surplus = go(endpoint, before, now=100.0 + held - 0.1)
    assert not surplus.gone
    state, surplus = go(endpoint, before, now=100.0 + held + 0.1)
    assert [i.id for i, _ in surplus.gone] == ["z"]
    assert state.desired == 9


def test_idle_times_that_were_learnt_count_instead() -> None:
    # Of a hundred, none was needed again: in the first span that a lesson tells apart it is let go.
    never = IdleTimes(watched=(90.0,) * 11, needed=(0.0,) * 11)
    before = EndpointState(desired=1, keep=KeepState(levels={1: never}))
    endpoint = see(start_s=30.0, instances=(one(last_used_at=100.0),))
    # Each span's hazard is 5 in a hundred, so a = -ln(0.95) / ln(2), and holding pays up to a * cost.
    _, surplus = go(endpoint, before, now=100.0)
    held = -math.log(0.95) / math.log(2) * cost(1, None, 30.0)
    assert 4.0 < held < 16.0
    assert surplus.look_again_at == pytest.approx(100.0 + held)


def test_without_learning_the_idle_time_out_counts() -> None:
    timed = ScalingSpec(idle_timeout_s=30.0)
    endpoint = see(timed, instances=(one(last_used_at=100.0),))
    assert go(endpoint, now=129.0)[1].look_again_at == 130.0
    assert [i.id for i, _ in go(endpoint, now=130.0)[1].gone] == ["a"]


def test_while_no_start_was_seen_the_idle_time_out_counts() -> None:
    # How long a start takes is not known, which is not zero: it isn't let go as if a start were free.
    unseen = ScalingSpec(learn_idle=True, idle_timeout_s=30.0)
    endpoint = see(unseen, instances=(one(last_used_at=100.0),))
    assert go(endpoint, now=129.0)[1].look_again_at == 130.0
    assert go(endpoint, now=130.0)[1].gone
    # One that is known to take no time is free: nothing is held for longer than `KeepConfig.least_s`.
    free = msgspec.structs.replace(endpoint, start_s=0.0)
    assert go(free, now=101.9)[1].look_again_at == 102.0
    assert go(free, now=102.0)[1].gone


def test_nobody_goes_below_what_is_asked_for_nor_while_requests_wait_nor_in_a_burst() -> None:
    there = (one("a", last_used_at=0.0), one("b", last_used_at=0.0))
    late = 5000.0
    assert len(go(see(instances=there), now=late)[1].gone) == 2
    assert [
        i.id for i, _ in go(see(ScalingSpec(learn_idle=True, min=1), instances=there), now=late)[1].gone
    ] == ["a"]
    assert go(see(instances=there, queued=1), now=late)[1] == Surplus()
    burst = EndpointState(demand=DemandState(panic=PanicState(until=late + 30.0, most=1.0)))
    assert go(see(start_s=60.0, instances=there), burst, now=late)[1] == Surplus()


def test_what_was_launched_as_a_hedge_is_left_to_who_launched_it() -> None:
    # Two were wanted; three are there, two of them launched. What was idle for longest is the hedge.
    there = (
        one("h", offer="o", last_used_at=10.0),
        one("x", offer="o", last_used_at=40.0),
        one("home", last_used_at=90.0),
    )
    state, surplus = go(see(start_s=60.0, instances=there), EndpointState(desired=2), now=100.0)
    assert state.keep is not None
    assert state.keep.idle == (Idle(since=40.0, level=2), Idle(since=90.0, level=1))
    assert not surplus.gone
    assert state.desired == 2


def test_what_was_lost_and_is_not_missed_is_not_replaced() -> None:
    there = (one("a", last_used_at=99.0), one("b", offer="o", lost_at=130.0))
    assert go(see(start_s=60.0, instances=there), EndpointState(desired=2))[0].desired == 1
    # All are busy: then two are wanted.
    busy = (one("a", in_flight=1), one("b", in_flight=1, offer="o", lost_at=130.0))
    assert go(see(instances=busy, in_flight=1), EndpointState(desired=2))[0].desired == 2


# -- through the whole decision ----------------------------------------------------------------


def test_a_burst_at_an_empty_home_is_launched_and_is_gone_when_it_is_over() -> None:
    """From nothing to two launched ones to nothing, with every number from the rules above."""
    offer = OfferObservation(offer="o", provider="p", price=2.0, boot_s=60.0)
    state = State()

    def step(now: float, **options: object):
        nonlocal state
        observation = Observation(
            endpoints=(see(start_s=60.0, **options),),
            hosts=(HostObservation(host="h1"),),
            offers=(offer,),
        )
        decision = decide(now, observation, state, CONFIG)
        state = decision.state
        return decision

    def node(n: int, **options: object) -> InstanceObservation:
        return one(f"n{n}", host=f"n{n}", offer="o", price=2.0, **options)

    first = step(0.0, queued=2)
    assert [type(a) for a in first.actions] == [Launch, Launch]
    busy = step(60.0, in_flight=2, instances=(node(1, in_flight=1), node(2, in_flight=1)))
    assert busy.actions == ()
    # How long requests take is not known: nobody is expected to become free, whichever is missing.
    held = cost(2, None)
    assert held == cost(1, None)
    idle = (node(1, last_used_at=80.0), node(2, last_used_at=90.0))
    looks = step(100.0, instances=idle)
    assert looks.actions == ()
    assert looks.look_again_at == pytest.approx(80.0 + held)
    (gone,) = step(80.0 + held, instances=idle).actions
    assert isinstance(gone, Release)
    assert gone.instance == "n1"
    assert gone.reason.startswith(f"idle for {held:.1f} s (number 2 is kept for {held:.0f} s); ")
    # For the last one that time begins when it was used last.
    assert step(85.0 + held, instances=idle[1:]).actions == ()
    (gone,) = step(90.0 + held, instances=idle[1:]).actions
    assert gone.instance == "n2"
    assert step(91.0 + held).actions == ()
    assert state.endpoints["e"].desired == 0


def test_what_ended_by_itself_is_missed_only_when_demand_asks_for_it() -> None:
    def seen(**options: object) -> Observation:
        return Observation(
            endpoints=(see(in_flight=1, instances=(one(in_flight=1),), **options),),
            hosts=(HostObservation(host="h1", cpu_free=8.0, memory_free=1 << 30),),
        )

    before = State(endpoints={"e": EndpointState(desired=2)})
    decision = decide(100.0, seen(), before, CONFIG)
    assert decision.actions == ()
    assert decision.state.endpoints["e"].desired == 1
    (start,) = decide(100.0, seen(queued=1), before, CONFIG).actions
    assert isinstance(start, Start)
    assert start.reason == "1 in flight and 1 queued ask for 2"
