"""Lanes of one endpoint share what it may cost, and each has the requests that are for it."""

from __future__ import annotations

import pytest
from headrace import wire
from headrace.control.model import Endpoint, Host, Instance, Pin, Seen
from headrace.control.observe import main_lane, pinned_lane
from headrace.sdk.spec import EndpointSpec, Scaling


def endpoint(budget: float | None) -> Endpoint:
    """Two instances of version 2 for 3 $/h each, one of version 1, which callers name, for 2 $/h."""
    spec = EndpointSpec(
        name="e", project="p", entry="m:f", handler="function", scaling=Scaling(max=4, budget=budget)
    )
    made = Endpoint(key=spec.key, spec=spec, version=2)
    made.pins[1] = Pin(spec, queued=1)
    host = Host(
        wire.HostHello(host="h", node="n", price=20.0, resources=wire.Resources(cpu=8, memory=1 << 30)), None
    )
    for id, version, price in (("a", 2, 3.0), ("b", 2, 3.0), ("c", 1, 2.0)):
        made.instances[id] = Instance(
            id=id, endpoint=made, version=version, host=host, cpu=1.0, memory=1 << 20, gpu=None,
            state="ready", price=price,
        )  # fmt: skip
    return made


@pytest.mark.parametrize(
    ("budget", "main", "pinned"), [(10.0, 8.0, 4.0), (5.0, 3.0, 0.0), (None, None, None)]
)
def test_a_budget_is_of_all_versions_together(
    budget: float | None, main: float | None, pinned: float | None
) -> None:
    made = endpoint(budget)
    assert main_lane(made, 0.0).scaling.budget == main
    assert pinned_lane(made, 1).scaling.budget == pinned


def test_who_names_a_version_waits_for_that_one_only() -> None:
    made = endpoint(None)
    # The third gateway has not been heard of for too long.
    for link, at in (("one", 99.0), ("two", 99.5), ("three", 0.0)):
        made.demand[link] = Seen(at, queued=5, named={1: 3, 2: 1})  # type: ignore[index]
    assert main_lane(made, 100.0).queued == 4
    assert made.named(1, 100.0) == 6
    made.pins.clear()
    assert main_lane(made, 100.0).queued == 10
