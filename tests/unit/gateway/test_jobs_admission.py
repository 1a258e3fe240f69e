from __future__ import annotations

from typing import Any

import pytest
from headrace import wire
from headrace.gateway.endpoints import EndpointState, Instance
from headrace.gateway.jobs.admission import Admission


def state(*, slots: int, busy: int = 0, **bounds: Any) -> EndpointState:
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


@pytest.mark.parametrize(("slots", "busy", "places"), [(0, 0, 3), (4, 4, 3), (4, 1, 6)])
def test_calls_on_their_way_count_with_those_that_wait(slots: int, busy: int, places: int) -> None:
    admission = Admission()
    endpoint = state(slots=slots, busy=busy, queue_requests=3)
    tickets = []
    while admission.refusal(endpoint, "k", 10) is None:
        tickets.append(admission.enter(endpoint, 10))
        assert len(tickets) <= places
    assert len(tickets) == places
    refusal = admission.refusal(endpoint, "k", 10)
    assert refusal is not None
    assert (refusal.status, refusal.extra["retry_after"] >= 1) == (429, True)
    tickets[0].leave()
    tickets[0].leave()
    assert admission.refusal(endpoint, "k", 10) is None
    for ticket in tickets:
        ticket.leave()
    assert len(admission) == 0


def test_bytes_are_bounded_too() -> None:
    admission = Admission()
    endpoint = state(slots=0, queue_requests=100, queue_bytes=25)
    first = admission.enter(endpoint, 20)
    assert admission.refusal(endpoint, "k", 5) is None
    assert admission.refusal(endpoint, "k", 6) is not None
    first.leave()
    assert admission.refusal(endpoint, "k", 6) is None
    assert admission.refusal(endpoint, "k", 26) is not None, "it can never wait"
