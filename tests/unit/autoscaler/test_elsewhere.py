"""What is launched for what home does not hold, and what is given back; all through `decide`."""

from __future__ import annotations

import msgspec
from headrace_autoscaler.configs import BurstConfig, DemandConfig, KeepConfig, LimitConfig
from headrace_autoscaler.keep import restart_s
from headrace_autoscaler.policy import decide
from headrace_autoscaler.spec import (
    Config,
    EndpointObservation,
    EndpointState,
    HostObservation,
    InstanceObservation,
    Launch,
    Observation,
    OfferObservation,
    PoolObservation,
    Refill,
    Release,
    ScalingSpec,
    Start,
    State,
    Wait,
    WarmNodes,
)
from headrace_autoscaler.states import PoolState

NOW = 1000.0
CONFIG = Config(
    demand=DemandConfig(goal_s=10.0),
    keep=KeepConfig(restart=0.0, late_s=0.0),
    burst=BurstConfig(need_s=600.0, capacity_base_s=60.0, saving=0.2),
)
HELD = restart_s(1, 60.0, None, CONFIG.demand, CONFIG.keep)
"""For so long what is idle is kept, whichever it is; how much that is is worked out in test_keep.py."""
LONG = NOW - HELD - 50.0
"""Idle since then is idle for 50 s too long."""
WISH = ScalingSpec(learn_idle=True, cpu=1.0, balance=0.0)
"""At balance 0 there is no hedge: what is wanted is what is launched."""
PLAIN = OfferObservation(offer="plain", provider="p", price=3.0, boot_s=60.0)
SPOT = OfferObservation(offer="spot", provider="p", price=1.0, boot_s=60.0, spot=True)


def home(cpu: float) -> HostObservation:
    return HostObservation(host="h1", cpu_free=cpu, memory_free=1 << 40)


def one(id: str, **options: object) -> InstanceObservation:
    values = {"host": "h1", "version": 1, "state": "ready", "cpu": 1.0} | options
    return InstanceObservation(id=id, **values)  # type: ignore[arg-type]


def node(id: str, **options: object) -> InstanceObservation:
    return one(id, **({"host": id, "offer": "plain", "price": 3.0} | options))


def do(scaling=WISH, cpu=0.0, offers=(PLAIN,), before=None, config=CONFIG, spending=None, now=NOW, **options):
    values = {"endpoint": "e", "version": 1, "start_s": 60.0, "scaling": scaling} | options
    seen = Observation(
        endpoints=(EndpointObservation(**values),), hosts=(home(cpu),), offers=offers, spending=spending
    )
    state = State(endpoints={} if before is None else {"e": before})
    return decide(now, seen, state, config)


def what(decision) -> list[str]:
    """The actions in short."""
    shown = {Launch: "offer", Release: "instance", Start: "host"}
    found = []
    for action in decision.actions:
        name = type(action)
        found.append(f"{name.__name__} {getattr(action, shown[name]) if name in shown else action.wanted}")
    return found


# -- launches ----------------------------------------------------------------------------------


def test_home_is_filled_first() -> None:
    decision = do(cpu=2.0, queued=3)
    assert what(decision) == ["Start h1", "Start h1", "Launch plain"]
    reason = decision.actions[2].reason
    assert reason.startswith("0 in flight and 3 queued ask for 3; ")
    assert "plain (p , on demand, 3 $/h)" in reason
    assert what(do(cpu=3.0, queued=3)) == ["Start h1"] * 3


def test_the_cheapest_that_fits_is_launched() -> None:
    assert what(do(queued=2, offers=(PLAIN, SPOT))) == ["Launch spot", "Launch spot"]
    never = msgspec.structs.replace(WISH, spot="never")
    assert what(do(never, queued=2, offers=(PLAIN, SPOT))) == ["Launch plain", "Launch plain"]


def test_no_more_than_max_are_launched() -> None:
    bound = msgspec.structs.replace(WISH, max=3)
    there = (one("a", in_flight=1), node("n1", in_flight=1))
    assert what(do(bound, queued=5, in_flight=2, instances=there)) == ["Launch plain"]


def test_where_no_offer_matches_it_says_so() -> None:
    picky = msgspec.structs.replace(WISH, gpu=(("H100", 1),))
    decision = do(picky, queued=2)
    assert what(decision) == ["Wait 2"]
    assert decision.actions[0].reason == "2 more wanted: no offer matches"


def test_a_crash_loop_launches_nothing_and_gives_nothing_back() -> None:
    there = (node("n1", in_flight=1),)
    decision = do(queued=3, in_flight=1, instances=there, blocked_until=NOW + 9.0)
    assert what(decision) == ["Wait 3"]
    assert decision.actions[0].reason == "starts fail: tries again in 9.0 s"


def test_what_one_endpoint_took_is_not_there_for_the_next() -> None:
    last = msgspec.structs.replace(PLAIN, left=1)
    ask = [
        EndpointObservation(endpoint=name, version=1, start_s=60.0, scaling=WISH, queued=1) for name in "ab"
    ]
    decision = decide(NOW, Observation(endpoints=tuple(ask), hosts=(), offers=(last,)), State(), CONFIG)
    launch, wait = decision.actions
    assert isinstance(launch, Launch)
    assert isinstance(wait, Wait)
    assert (launch.endpoint, wait.endpoint) == ("a", "b")
    assert "quota of plain is used up" in wait.reason


# -- refusals ----------------------------------------------------------------------------------


def test_a_cloud_that_says_no_is_remembered_until_it_says_yes() -> None:
    full = msgspec.structs.replace(PLAIN, failures=1, failed_at=NOW - 1.0, reason="no capacity")
    refused = do(queued=1, offers=(full,))
    assert what(refused) == ["Wait 1"]
    assert "plain backed off until" in refused.actions[0].reason
    known = refused.state.endpoints["e"].burst
    assert known is not None
    (refusal,) = known.refusals.values()
    # A pause of 60 s after the first refusal, less a quarter at most so that not all come back together.
    assert NOW - 1.0 + 45.0 <= refusal.until <= NOW - 1.0 + 60.0
    assert refused.look_again_at == refusal.until
    again = do(queued=1, offers=(full,), before=refused.state.endpoints["e"], now=refusal.until)
    assert what(again) == ["Launch plain"]
    # It launched: nothing refuses any more, and nothing is remembered of it.
    after = do(
        in_flight=1,
        instances=(node("n1", in_flight=1),),
        before=again.state.endpoints["e"],
        now=refusal.until + 60.0,
    )
    assert after.actions == ()
    assert after.state.endpoints["e"].burst is None


# -- budgets -----------------------------------------------------------------------------------


def test_what_is_too_dear_is_left_and_less_sure_is_taken() -> None:
    # Balance 1: all that may be on spot has to be there without its zone, so on demand is wanted, too. For
    # that the budget is too small.
    sure = msgspec.structs.replace(WISH, balance=1.0, budget=1.5, min=1)
    decision = do(sure, queued=1, offers=(PLAIN, SPOT))
    assert "Launch spot" in what(decision)
    assert "Launch plain" not in what(decision)
    # Only on demand, which it cannot pay: nothing cheaper is there.
    never = msgspec.structs.replace(WISH, budget=1.5, spot="never")
    assert what(do(never, queued=1, offers=(PLAIN, SPOT))) == ["Wait 1"]


def test_launches_of_all_count_against_the_budget_of_all() -> None:
    config = msgspec.structs.replace(CONFIG, limits=LimitConfig(budget=7.0))
    ask = [
        EndpointObservation(endpoint=name, version=1, start_s=60.0, scaling=WISH, queued=2) for name in "ab"
    ]
    seen = Observation(endpoints=tuple(ask), hosts=(), offers=(PLAIN,), spending=0.0)
    decision = decide(NOW, seen, State(), config)
    # 7 $/h are two at 3: one for each.
    assert [a.endpoint for a in decision.actions if isinstance(a, Launch)] == ["a", "b"]


# -- giving back -------------------------------------------------------------------------------


def test_what_is_idle_elsewhere_goes_before_what_is_idle_at_home() -> None:
    # Home is idle for longer, yet it is the launched one that costs: one goes, and that is it.
    there = (one("a", last_used_at=LONG), node("n1", last_used_at=NOW - 10.0))
    decision = do(instances=there, before=EndpointState(desired=2))
    assert what(decision) == ["Release n1"]
    why = f"idle for {HELD + 50:.1f} s (number 2 is kept for {HELD:.0f} s); "
    assert decision.actions[0].reason.startswith(why)
    # The level that is left is idle since 10 s ago, and kept from then.
    state = decision.state.endpoints["e"]
    assert what(do(instances=there[:1], before=state, now=NOW + HELD - 11.0)) == []
    assert what(do(instances=there[:1], before=state, now=NOW + HELD - 10.0)) == ["Release a"]


def test_what_is_idle_at_home_goes_when_nothing_is_left_elsewhere() -> None:
    there = (one("a", last_used_at=LONG), one("b", last_used_at=LONG), node("n1", last_used_at=LONG))
    decision = do(instances=there, before=EndpointState(desired=3))
    assert sorted(what(decision)) == ["Release a", "Release b", "Release n1"]
    # Without any elsewhere, with offers there.
    decision = do(instances=there[:2], before=EndpointState(desired=2))
    assert what(decision) == ["Release a", "Release b"]


def test_what_is_paid_for_is_not_given_back_before_that_ends() -> None:
    there = (node("n1", last_used_at=LONG, paid_until=NOW + 30.0),)
    decision = do(instances=there, before=EndpointState(desired=1))
    assert decision.actions == ()
    assert decision.look_again_at == NOW + 30.0
    assert what(do(instances=there, before=decision.state.endpoints["e"], now=NOW + 30.0)) == ["Release n1"]


def test_what_was_launched_is_given_back_though_no_offer_is_left() -> None:
    there = (node("n1", last_used_at=LONG),)
    assert what(do(instances=there, offers=(), before=EndpointState(desired=1))) == ["Release n1"]


def test_what_is_about_to_be_taken_away_is_replaced_while_it_serves() -> None:
    there = (node("n1", in_flight=1, lost_at=NOW + 120.0),)
    assert what(do(in_flight=1, instances=there)) == ["Launch plain"]


# -- rollouts ----------------------------------------------------------------------------------


def test_a_rollout_launches_the_new_version_where_home_is_full() -> None:
    there = (node("old", in_flight=1, version=1),)
    decision = do(in_flight=1, version=2, rollout_from=1, instances=there)
    (launch,) = decision.actions
    assert isinstance(launch, Launch)
    assert (launch.version, launch.offer) == (2, "plain")
    # It is on its way: nothing more is launched, and the old one serves.
    there = (*there, node("new", version=2, state="starting"))
    assert what(do(in_flight=1, version=2, rollout_from=1, instances=there)) == []


def test_a_rollout_where_nothing_can_be_launched_waits() -> None:
    gone = msgspec.structs.replace(PLAIN, left=0)
    there = (node("old", in_flight=1, version=1),)
    decision = do(in_flight=1, version=2, rollout_from=1, instances=there, offers=(gone,))
    assert what(decision) == ["Wait 1"]
    assert "quota of plain is used up" in decision.actions[0].reason


# -- what waits for whoever comes --------------------------------------------------------------


def test_nodes_that_are_launched_often_are_kept_warm_and_what_was_learnt_is_remembered() -> None:
    # 40 windows of a boot (60 s) with one launch each: at 10 $ for an hour of waiting and 3 $/h it pays.
    offer = msgspec.structs.replace(PLAIN, launched=41)
    state = State(nodes={"plain": PoolState(since=NOW - 60.0, claimed=40, windows=(0.0, 40.0))})
    decision = decide(NOW, Observation(endpoints=(), hosts=(), offers=(offer,)), state, CONFIG)
    (warm,) = decision.actions
    assert isinstance(warm, WarmNodes)
    assert (warm.offer, warm.count) == ("plain", 1)
    assert decision.state.nodes["plain"].claimed == 41
    assert decision.state.nodes["plain"].since == NOW
    # Within the window nothing is learnt, and the state is the same object.
    soon = decide(
        NOW + 1.0,
        Observation(endpoints=(), hosts=(), offers=(msgspec.structs.replace(offer, waiting=1),)),
        decision.state,
        CONFIG,
    )
    assert soon.state is decision.state


def test_what_is_not_known_of_launches_keeps_nothing_warm() -> None:
    decision = decide(NOW, Observation(endpoints=(), hosts=(), offers=(PLAIN,)), State(), CONFIG)
    assert (decision.actions, decision.state) == ((), State())


def test_sandboxes_that_are_claimed_often_are_kept_warm() -> None:
    pool = PoolObservation(host="h1", base="b", claimed=41, cost=0.01, memory=1 << 20, refill_s=2.0)
    state = State(pools={"h1/b": PoolState(since=NOW - 2.0, claimed=40, windows=(0.0, 40.0))})
    seen = Observation(endpoints=(), hosts=(home(4.0),), pools=(pool,))
    decision = decide(NOW, seen, state, CONFIG)
    (refill,) = decision.actions
    assert isinstance(refill, Refill)
    assert (refill.host, refill.base) == ("h1", "b")
    assert refill.count >= 1
    assert decision.state.pools["h1/b"].claimed == 41
    ready = msgspec.structs.replace(pool, ready=refill.count)
    again = decide(NOW + 0.5, msgspec.structs.replace(seen, pools=(ready,)), decision.state, CONFIG)
    assert again.state is decision.state
