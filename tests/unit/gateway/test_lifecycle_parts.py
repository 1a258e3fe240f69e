"""The parts of the request lifecycle that decide: phases, circuit, budget, balance, rates, the fair queue."""

from __future__ import annotations

import time
from collections import Counter

import pytest
from headrace import wire
from headrace.gateway.balance import ENOUGH_SAMPLES, SAMPLES, Quantile, Rate, ServiceTime, best
from headrace.gateway.call import Call, IllegalMove
from headrace.gateway.circuit import BURST_S, FIRST_OPEN_S, LONGEST_OPEN_S, OPENS_AFTER, Circuit, RetryBudget
from headrace.gateway.dispatch import Dispatcher
from headrace.gateway.endpoints import EndpointState, Instance
from headrace.gateway.queue import AGED_S, AGED_SHARE, WaitQueue
from headrace.gateway.request import Request
from headrace.gateway.routing import RoutingTable
from headrace.jobs.state import PHASES
from hypothesis import given
from hypothesis import strategies as st

ROUTE = wire.EndpointRoute(endpoint="default/a", version=1, state="ready")


def make_state(count, concurrency=4, **route):
    state = EndpointState(
        "default/a", wire.EndpointRoute(endpoint="default/a", version=1, state="ready", **route)
    )
    for n in range(count):
        made = wire.InstanceRoute(
            id=f"i{n}", endpoint="default/a", version=1, host=f"h{n}", address="unix:/x", token="t",
            concurrency=concurrency,
        )  # fmt: skip
        state.instances[made.id] = Instance(made, state)
    return state


# -- phases ---------------------------------------------------------------------------------------


async def test_a_call_makes_every_legal_move_and_no_other():
    dispatcher = Dispatcher(RoutingTable(), lambda _: True)
    for before, legal in PHASES.items():
        for after in PHASES:
            call = Call(dispatcher, Request(None), EndpointState("default/a", ROUTE), None, b"/", 60.0)
            call._timer.cancel()
            call.phase = before
            if after in legal:
                call._move(after)
                assert call.phase == after
                assert call.done == (not PHASES[after])
            else:
                with pytest.raises(IllegalMove, match=f"from {before} to {after}"):
                    call._move(after)
                assert call.phase == before


# -- circuit and budget ---------------------------------------------------------------------------


def broken(times, now=100.0):
    circuit = Circuit()
    opened = [circuit.lost("h", 0.0, now + n) for n in range(times)]
    return circuit, opened, now + times - 1


def test_the_circuit_opens_after_losses_in_a_row():
    circuit, opened, now = broken(OPENS_AFTER)
    assert opened == [False] * (OPENS_AFTER - 1) + [True]
    assert not circuit.lets_through(now)
    assert circuit.lets_through(now + FIRST_OPEN_S)
    circuit, _, _ = broken(OPENS_AFTER - 1)
    circuit.answered()
    assert not circuit.lost("h", 0.0, 200.0)
    assert not circuit.open


def test_half_open_lets_one_through_and_waits_twice_as_long_when_that_fails():
    circuit, _, now = broken(OPENS_AFTER)
    wait = FIRST_OPEN_S
    for _ in range(8):
        now = circuit.until
        assert circuit.lets_through(now)
        circuit.probe = object()
        assert not circuit.lets_through(now)
        assert circuit.lost("h", 0.0, now)
        wait = min(LONGEST_OPEN_S, wait * 2)
        assert circuit.until == now + wait
    circuit.answered()
    assert not circuit.open
    assert [circuit.lost("h", 0.0, now + n) for n in range(OPENS_AFTER)][-1]
    assert circuit.until == now + OPENS_AFTER - 1 + FIRST_OPEN_S, "it starts anew"


def test_many_losses_on_one_host_at_once_are_one():
    circuit = Circuit()
    for n in range(50):
        circuit.lost("h", 0.0, 100.0 + n * BURST_S / 51)
    assert (circuit.open, circuit.losses) == (False, 1)
    for n in range(OPENS_AFTER):
        circuit.lost(f"other{n}", 0.0, 200.0)
    assert circuit.open


def test_losses_that_do_not_end_are_not_one_however_close_they_are():
    circuit = Circuit()
    first = 100.0
    losses = [first + n * BURST_S / 4 for n in range(OPENS_AFTER * 4)]
    assert any(circuit.lost("h", 0.0, at) for at in losses)
    assert circuit.open


def test_the_death_of_a_replacement_is_another_one():
    circuit = Circuit()
    at, came = 100.0, 0.0
    for _ in range(OPENS_AFTER):
        opened = circuit.lost("h", came, at)
        came, at = at + 0.001, at + BURST_S / 100
    assert opened


def test_a_lost_host_is_excused():
    circuit = Circuit()
    for n in range(OPENS_AFTER):
        circuit.lost(f"h{n}", 0.0, 100.0 + n)
    assert circuit.open
    circuit.excused("h0")
    assert circuit.open, "that was long ago"
    circuit.excused(f"h{OPENS_AFTER - 1}")
    circuit.excused(f"h{OPENS_AFTER - 1}")
    assert not circuit.open
    assert circuit.losses == OPENS_AFTER - 1


@given(st.lists(st.sampled_from(["earn", "take", "back"]), max_size=400))
def test_the_budget_never_gives_more_than_it_got(steps):
    budget = RetryBudget()
    given_, burst = 0, budget.burst
    earned = 0.0
    for step in steps:
        if step == "earn":
            budget.earn()
            earned += 0.2
        elif step == "take":
            given_ += budget.take()
        elif given_:
            budget.give_back()
            given_ -= 1
    assert given_ <= burst + earned + 1e-6


def test_the_burst_holds_the_requests_of_two_full_instances():
    budget = RetryBudget()
    budget.widen(64)
    budget.widen(8)
    assert all(budget.take() for _ in range(128))


def test_copies_leave_half_of_the_burst_for_what_is_lost():
    budget = RetryBudget()
    budget.widen(8)
    copies = 0
    while budget.take_for_copy():
        copies += 1
    assert copies == budget.burst / 2
    assert all(budget.take() for _ in range(budget.burst // 2))
    assert not budget.take()


# -- balance --------------------------------------------------------------------------------------


def test_a_slow_instance_gets_its_share_only():
    state = make_state(2, concurrency=100)
    fast, slow = state.instances.values()
    for _ in range(50):
        fast.speed.observe(0.010, 100.0)
        slow.speed.observe(0.050, 100.0)
    for _ in range(60):
        best([fast, slow], 100.0, 0.02).in_flight += 1
    assert fast.in_flight == pytest.approx(50, abs=2)
    assert slow.in_flight == pytest.approx(10, abs=2)


def test_what_was_slow_once_gets_another_chance():
    speed = ServiceTime()
    speed.observe(5.0, 100.0)
    assert speed.get(105.0) == 5.0
    assert speed.get(200.0) == 0.0
    speed.at_least(0.5, 200.0)
    speed.at_least(0.1, 200.0)
    assert speed.get(200.0) == 0.5


def test_of_many_two_at_random_and_the_concurrency_is_never_exceeded():
    state = make_state(20, concurrency=3)
    group = list(state.instances.values())
    for _ in range(60):
        chosen = best(group, 100.0, 0.0)
        chosen.in_flight += 1
        assert chosen.in_flight <= 3
    assert best(group, 100.0, 0.0) is None
    state = make_state(30, concurrency=100)
    group = list(state.instances.values())
    for _ in range(300):
        best(group, 100.0, 0.0).in_flight += 1
    assert max(i.in_flight for i in group) <= 15, "two choices keep the load even"


def test_the_one_that_failed_is_avoided_while_there_is_another():
    state = make_state(6)
    group = list(state.instances.values())
    assert {best(group, 1.0, 0.0, ("i0",)).route.id for _ in range(100)} == {f"i{n}" for n in range(1, 6)}
    for one in group[1:]:
        one.in_flight = 4
    assert best(group, 1.0, 0.0, ("i0",)).route.id == "i0"


def test_quantiles_of_recent_values():
    quantile = Quantile(0.95)
    for n in range(ENOUGH_SAMPLES - 1):
        quantile.add(float(n))
    assert quantile.get() is None
    for n in range(SAMPLES):
        quantile.add(float(n))
    assert quantile.get() == pytest.approx(0.95 * SAMPLES, abs=2)
    for _ in range(SAMPLES):
        quantile.add(1.0)
    assert quantile.get() == 1.0


def test_rates_follow_the_last_seconds():
    rate = Rate()
    assert rate.get(50.0) == 0.0
    for n in range(100):
        rate.count(100.0 + n / 10)
    assert rate.get(110.0) == pytest.approx(10, rel=0.3)
    assert rate.get(130.0) == 0.0
    rate.count(200.0)
    assert 0 < rate.get(200.1) <= 5


async def test_retry_after_is_how_fast_the_queue_drains():
    state = make_state(1)
    for n in range(40):
        state.queue.push(Item(n))
    start = time.monotonic()
    state._rate.count(start - 4)
    for _ in range(39):
        state._rate.count(start - 4)
    assert 3 <= state.retry_after() <= 6, "40 wait, 40 ended in the last four seconds"


# -- queue ----------------------------------------------------------------------------------------


class Item:
    alone = False

    def __init__(self, order, key="k", rank=1, size=1, queued_at=None, version=None):
        self.order, self.key, self.rank, self.size, self.version = order, key, rank, size, version
        self.queued_at = float(order) if queued_at is None else queued_at


def filled(*items):
    queue = WaitQueue()
    for item in items:
        queue.push(item)
    return queue


def taken(queue, count):
    found = []
    for _ in range(count):
        head = queue.heads()[0]
        popped = queue.pop(head.version)
        assert popped is head
        found.append(popped)
    return found


def test_keys_take_turns():
    queue = filled(*[Item(n, "greedy") for n in range(100)], Item(100, "modest"), Item(101, "modest"))
    assert [i.key for i in taken(queue, 5)] == ["greedy", "modest", "greedy", "modest", "greedy"]
    assert [i.order for i in taken(queue, 3)] == [3, 4, 5]


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 2)), min_size=1, max_size=60))
def test_the_first_n_places_are_shared_evenly_and_nothing_is_lost(wanted):
    queue = filled(*[Item(n, key, 1) for n, (key, _) in enumerate(wanted)])
    counts = Counter(key for key, _ in wanted)
    seen: Counter[str] = Counter()
    for item in taken(queue, len(wanted)):
        seen[item.key] += 1
        hungry = [k for k in counts if seen[k] < counts[k]]
        assert all(seen[k] >= seen[item.key] - 1 for k in hungry)
    assert seen == counts
    assert (len(queue), queue.bytes, queue.oldest(), queue.lines) == (0, 0, None, {})


def test_high_before_normal_before_low():
    queue = filled(*[Item(n, rank=2 - n % 3) for n in range(6)])
    assert [i.rank for i in taken(queue, 6)] == [0, 0, 1, 1, 2, 2]


def test_low_is_not_starved_for_ever():
    low = Item(0, rank=2, queued_at=0.0)
    queue = filled(low)
    order = []
    for n in range(1, 3 * AGED_SHARE):
        queue.push(Item(n, rank=0, queued_at=AGED_S + n))
        order += taken(queue, 1)
        if low in order:
            break
    assert order[-1] is low
    assert len(order) <= AGED_SHARE
    young = filled(
        Item(0, rank=2, queued_at=0.0), *[Item(n, rank=0, queued_at=AGED_S / 2) for n in range(1, 20)]
    )
    assert [i.rank for i in taken(young, 20)] == [0] * 19 + [2]


def test_a_place_that_was_refused_was_none():
    """An instance that other gateways keep full refuses every other one."""
    low = Item(0, rank=2, queued_at=0.0)
    for begun in range(2):
        queue = filled(low)
        order = []
        for n in range(1, 3 * AGED_SHARE):
            queue.push(Item(n, rank=0, queued_at=AGED_S + n))
            if n > begun:
                queue.push(*taken(queue, 1), front=True)
            order += taken(queue, 1)
            if low in order:
                break
        assert order[-1] is low
        assert len(order) <= AGED_SHARE


def test_what_was_put_back_is_next_and_room_is_made_by_the_greediest():
    items = [Item(n, "greedy") for n in range(5)]
    queue = filled(*items, Item(9, "modest"))
    (first,) = taken(queue, 1)
    queue.push(first, front=True)
    assert taken(queue, 1) == [first]
    assert queue.shed("new") == [items[-1]]
    assert queue.shed("new", may_go=lambda item: item is not items[-1]) == [items[-2]]
    assert queue.shed("new", may_go=lambda item: False) == []
    assert queue.shed("greedy") == []
    even = filled(Item(0, "a"), Item(1, "b"))
    assert even.shed("a") == []
    assert even.shed("c") == [], "nobody has more than the newcomer would"


def test_as_many_make_room_as_the_newcomers_bytes_need():
    items = [Item(n, "greedy") for n in range(5)]
    queue = filled(*items)
    size = items[0].size
    assert queue.bytes == 5 * size
    assert queue.shed("new", size, queue.bytes) == items[:-2:-1]
    assert queue.shed("new", 2 * size, queue.bytes) == items[:-3:-1]
    assert queue.shed("new", 2 * size, queue.bytes + size) == items[:-2:-1]
    assert queue.shed("new", size, 0) == items[:-2:-1], "above its bound, it only must not grow"
    assert queue.shed("new", 5 * size, queue.bytes) == [], "the greedy one would have less than the newcomer"


def test_those_that_run_alone_are_out_of_turn():
    alone = Item(0, version=3)
    alone.alone = True
    queue = filled(alone, Item(1))
    assert len(queue) == 2
    assert queue.wanted() == {3, None}
    assert queue.waiting(3) == 1
    assert [i.order for i in queue.heads()] == [1]
    assert queue.remove(alone)
    assert not queue.remove(alone)
    assert len(queue) == 1


# -- alone ----------------------------------------------------------------------------------------


class Lonely:
    version = None
    avoid = ()


def test_an_instance_is_emptied_for_a_request_that_runs_alone():
    state = make_state(2, concurrency=2)
    busy, busier = state.instances.values()
    busy.in_flight, busier.in_flight = 1, 2
    call, other = Lonely(), Lonely()
    assert state.pick_alone(call) is None
    assert busy.reserved is call
    assert not busy.free(100.0)
    assert state.pick_alone(other) is None
    assert busier.reserved is None, "one at a time is emptied"
    busy.in_flight = 0
    assert state.pick_alone(call) is busy
    state.unreserve(call)
    assert busy.free(100.0)


def test_idle_instances_are_taken_at_once_but_not_the_one_that_failed():
    state = make_state(3)
    call = Lonely()
    call.avoid = ("i0",)
    assert state.pick_alone(call).route.id == "i1"
    assert state.pick_alone(Lonely()).route.id == "i0"
