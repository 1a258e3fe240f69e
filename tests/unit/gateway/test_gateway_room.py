from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from headrace import wire
from headrace.gateway.endpoints import EndpointState, Instance
from headrace.gateway.room import make_room


def made(*, slots: int = 0, busy: int = 0, **bounds: Any) -> EndpointState:
    found = EndpointState(
        "default/e", wire.EndpointRoute(endpoint="default/e", version=1, state="ready", **bounds)
    )
    if slots:
        route = wire.InstanceRoute(
            id="i", host="h", endpoint="default/e", version=1, address="unix:/x", token="t", concurrency=slots
        )
        found.instances["i"] = instance = Instance(route, found)
        instance.in_flight = busy
    return found


class Waiting(SimpleNamespace):
    __hash__ = object.__hash__


def waits(state: EndpointState, key: str, size: int = 1, **more: Any) -> Any:
    """One more that waits in the queue."""
    call = Waiting(
        version=None, size=size, queued_at=0.0, order=len(state.queue), rank=1, key=key, alone=False,
        attempts=[], stored=False,
    )  # fmt: skip
    vars(call).update(more)
    state.queue.push(call)  # type: ignore[arg-type]
    return call


@pytest.mark.parametrize(("slots", "busy", "places"), [(0, 0, 3), (4, 4, 3), (4, 1, 6)])
def test_calls_on_their_way_count_with_those_that_wait(slots: int, busy: int, places: int) -> None:
    state = made(slots=slots, busy=busy, queue_requests=3)
    tickets = []
    while make_room(state, "k", 10) == []:
        tickets.append(state.coming.enter("k", 10))
        assert len(tickets) <= places
    assert len(tickets) == places
    assert make_room(state, "other", 10) is None
    tickets[0].leave()
    tickets[0].leave()
    assert make_room(state, "k", 10) == []
    for ticket in tickets:
        ticket.leave()
    assert (state.coming.requests, state.coming.bytes, state.coming.by_key) == (0, 0, {})


def test_bytes_are_bounded_too() -> None:
    state = made(queue_requests=100, queue_bytes=25)
    first = state.coming.enter("k", 20)
    assert make_room(state, "k", 5) == []
    assert make_room(state, "k", 6) is None
    first.leave()
    assert make_room(state, "k", 6) == []
    assert make_room(state, "k", 26) is None, "it can never wait"


def test_what_runs_elsewhere_takes_no_place_here() -> None:
    """Calls that this gateway let in and another one runs: their instance is full without us."""
    state = made(slots=4, queue_requests=1)
    state.instances["i"].full_until = 1e18
    for _ in range(4):
        state.coming.enter("k", 10)
    assert make_room(state, "k", 10) == []


def test_a_queue_above_its_bound_does_not_grow_and_is_fair_all_the_same() -> None:
    """A requeue puts it there: a modest key's request still takes the place of a greedy one's."""
    state = made(queue_requests=3, queue_bytes=1000)
    greedy = [waits(state, "greedy") for _ in range(5)]
    assert make_room(state, "modest", 1) == [greedy[-1]]
    assert make_room(state, "greedy", 1) is None


def test_only_what_was_never_sent_makes_room() -> None:
    state = made(queue_requests=4)
    first = waits(state, "greedy")
    waits(state, "greedy", attempts=["lost"])
    waits(state, "greedy", stored=True)
    waits(state, "greedy", attempts=["lost"])
    assert make_room(state, "modest", 1) == [first]


def test_a_key_cannot_push_out_more_than_it_would_leave_itself() -> None:
    """Those of it that are on their way count as its own."""
    state = made(queue_requests=6)
    for _ in range(6):
        waits(state, "greedy")
    for _ in range(10):
        gone = make_room(state, "modest", 1)
        if gone is None:
            break
        for call in gone:
            state.queue.remove(call)
        state.coming.enter("modest", 1)
    assert (len(state.queue), state.coming.requests) == (3, 3)
