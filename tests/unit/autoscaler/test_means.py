"""What endpoints may have for the money there is, and how often that may change; all through `decide`."""

from __future__ import annotations

import msgspec
import pytest
from headrace_autoscaler.configs import KeepConfig, LimitConfig
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
    Release,
    ScalingSpec,
    Start,
    State,
    Wait,
)

NOW = 1000.0
HOME = HostObservation(host="h1", cpu_free=64.0, memory_free=1 << 40)
CHEAP = OfferObservation(offer="cheap", provider="p", price=2.0, boot_s=30.0)
DEAR = OfferObservation(offer="dear", provider="p", price=5.0, boot_s=30.0)
FREE = KeepConfig(restart=0.0, late_s=0.0)
"""A late request costs nothing: what is idle goes as soon as it may."""


def see(name: str = "e", **options: object) -> EndpointObservation:
    values = {"endpoint": name, "version": 1, "scaling": ScalingSpec()} | options
    return EndpointObservation(**values)  # type: ignore[arg-type]


def there(*prices: float | None, offer: str = "cheap", **options: object) -> tuple[InstanceObservation, ...]:
    values = {"host": "n", "version": 1, "state": "ready", "in_flight": 1, "offer": offer} | options
    return tuple(
        InstanceObservation(id=f"i{n}", price=price, **values)  # type: ignore[arg-type]
        for n, price in enumerate(prices)
    )


def do(*endpoints, limits: LimitConfig, offers=(), hosts=(), spending=None, state=None, keep=None):
    observation = Observation(endpoints=endpoints, hosts=hosts, offers=offers, spending=spending)
    config = Config(limits=limits, keep=keep or KeepConfig())
    return decide(NOW, observation, state or State(), config)


def of(decision, kind) -> dict[str, int]:
    """How many actions of the kind each endpoint gets."""
    counts: dict[str, int] = {}
    for action in decision.actions:
        if isinstance(action, kind):
            counts[action.endpoint] = counts.get(action.endpoint, 0) + 1
    return counts


def waits(decision) -> dict[str, tuple[int, str]]:
    return {a.endpoint: (a.wanted, a.reason) for a in decision.actions if isinstance(a, Wait)}


# -- budgets -----------------------------------------------------------------------------------


def test_an_endpoints_budget_is_spent_at_the_cheapest_offers_price_and_no_further() -> None:
    # 6 $/h, of which 2 are spent: two more at 2 $/h, of the four that are wanted.
    one = see(scaling=ScalingSpec(budget=6.0), in_flight=1, queued=3, instances=there(2.0))
    decision = do(one, limits=LimitConfig(), offers=(CHEAP, DEAR))
    assert [a.offer for a in decision.actions if isinstance(a, Launch)] == ["cheap", "cheap"]
    assert waits(decision) == {"e": (1, "4 wanted, its budget of 6 $/h has 4 left, one more costs 2")}


def test_without_offers_one_more_costs_what_its_dearest_does() -> None:
    one = see(scaling=ScalingSpec(budget=9.0), in_flight=2, queued=3, instances=there(2.0, 3.0))
    decision = do(one, limits=LimitConfig(), hosts=(HOME,))
    # 4 $/h are left: one more at 3.
    assert of(decision, Start) == {"e": 1}
    assert waits(decision)["e"] == (2, "5 wanted, its budget of 9 $/h has 4 left, one more costs 3")
    # What costs nothing that is known is not bounded.
    unknown = msgspec.structs.replace(one, instances=there(None, None))
    assert of(do(unknown, limits=LimitConfig(), hosts=(HOME,)), Start) == {"e": 3}


def test_the_budget_of_all_is_shared_between_those_who_ask() -> None:
    # 12 $/h, 2 spent by somebody else: 10 for two endpoints that want four nodes each at 2 $/h.
    ask = [see(name, queued=4) for name in ("a", "b")]
    decision = do(*ask, limits=LimitConfig(budget=12.0), offers=(CHEAP,), spending=2.0)
    # In turns a, b, a, b, a: the fifth is the last.
    assert of(decision, Launch) == {"a": 3, "b": 2}
    text = "the budget of all endpoints of 12 $/h is shared: {} of 4 more"
    assert waits(decision) == {"a": (1, text.format(3)), "b": (2, text.format(2))}
    # Who wants less than its part gets all of it.
    modest = [see("a", queued=4), see("b", queued=1)]
    decision = do(*modest, limits=LimitConfig(budget=12.0), offers=(CHEAP,), spending=2.0)
    assert of(decision, Launch) == {"a": 4, "b": 1}
    assert waits(decision) == {}


def test_one_who_asks_alone_gets_what_is_left() -> None:
    decision = do(see(queued=4), limits=LimitConfig(budget=7.0), offers=(CHEAP,), spending=2.0)
    assert of(decision, Launch) == {"e": 2}
    assert "the budget of all endpoints of 7 $/h has 5 left" in waits(decision)["e"][1]
    # What all spend is not known: the budget of all says nothing, which is not that nothing is left.
    decision = do(see(queued=4), limits=LimitConfig(budget=7.0), offers=(CHEAP,))
    assert of(decision, Launch) == {"e": 4}


def test_a_budget_counts_what_the_endpoints_before_took_at_its_real_price() -> None:
    # The cheap offer has one node left. Both want one; 7 $/h are left for 2 + 5.
    last = msgspec.structs.replace(CHEAP, left=1)
    ask = [see(name, queued=1) for name in ("a", "b")]
    decision = do(*ask, limits=LimitConfig(budget=7.0), offers=(last, DEAR), spending=0.0)
    assert [(a.endpoint, a.offer) for a in decision.actions] == [("a", "cheap"), ("b", "dear")]
    decision = do(*ask, limits=LimitConfig(budget=6.0), offers=(last, DEAR), spending=0.0)
    assert of(decision, Launch) == {"a": 1}
    assert "is above a budget" in waits(decision)["b"][1]


@pytest.mark.parametrize(
    "closed", [{"max_price": 1.0}, {"providers": ("q",)}, {"spot": "only"}, {"runtime": "wasm"}]
)
def test_offers_it_may_not_use_have_no_price(closed: dict[str, object]) -> None:
    one = see(scaling=ScalingSpec(budget=1.0, **closed), queued=2)  # type: ignore[arg-type]
    # Nothing costs anything that is known: the budget holds nothing back, the offers do.
    assert "budget" not in waits(do(one, limits=LimitConfig(), offers=(CHEAP,)))["e"][1]


# -- cool-downs --------------------------------------------------------------------------------


def test_changes_are_written_down_while_cool_downs_are_set() -> None:
    slow = LimitConfig(up_cool_down_s=60.0, down_cool_down_s=300.0)
    up = do(see(in_flight=2, instances=there(0.0, offer="")), limits=slow, hosts=(HOME,))
    assert of(up, Start) == {"e": 1}
    assert (up.state.endpoints["e"].up_at, up.state.endpoints["e"].down_at) == (NOW, None)
    # Without any, nothing is.
    up = do(see(in_flight=2, instances=there(0.0, offer="")), limits=LimitConfig(), hosts=(HOME,))
    assert up.state.endpoints["e"].up_at is None


def test_an_increase_waits_for_the_last_one_unless_requests_wait() -> None:
    slow = LimitConfig(up_cool_down_s=60.0)
    state = State(endpoints={"e": EndpointState(up_at=NOW - 50.0)})
    busy = see(in_flight=2, instances=there(0.0, offer=""))
    held = do(busy, limits=slow, hosts=(HOME,), state=state)
    assert of(held, Start) == {}
    assert waits(held) == {"e": (1, "2 wanted, cooling down 10 s more after the last increase")}
    urgent = msgspec.structs.replace(busy, queued=1)
    assert of(do(urgent, limits=slow, hosts=(HOME,), state=state), Start) == {"e": 2}


def test_a_decrease_waits_for_the_last_change() -> None:
    slow = LimitConfig(down_cool_down_s=300.0)
    wish = ScalingSpec(learn_idle=True)
    idle = see(
        scaling=wish, start_s=0.0, instances=there(0.0, 0.0, offer="", in_flight=0, last_used_at=900.0)
    )
    state = State(endpoints={"e": EndpointState(desired=2, up_at=NOW - 299.0)})
    # Nothing is gained by holding them, but it is a second too early.
    held = do(idle, limits=slow, hosts=(HOME,), state=state, keep=FREE)
    assert held.actions == ()
    state = State(endpoints={"e": EndpointState(desired=2, up_at=NOW - 300.0)})
    gone = do(idle, limits=slow, hosts=(HOME,), state=state, keep=FREE)
    assert of(gone, Release) == {"e": 2}
    assert gone.state.endpoints["e"].down_at == NOW
