"""The pure part of node management: every state against every finding."""

from __future__ import annotations

import itertools

import pytest
from headrace.control.nodes import DRAIN_GRACE_S, LAUNCH_GRACE_S, MOVES, Do, Known, State, plan
from headrace_providers.offers import Node, NodeState
from hypothesis import given
from hypothesis import strategies as st

NOW = 1000.0
HERE = frozenset({"local"})


def known(state: State, age: float = 1.0) -> Known:
    return Known(id="n-1", provider="local", state=state, since=NOW - age)


def there(state: NodeState, node_id: str = "n-1") -> Node:
    return Node(id=node_id, provider="local", region="r", instance_type="t", state=state, detail="why")


def one(node: Known, found: Node | None, joined: bool, busy: bool = True) -> Do | None:
    here = frozenset({"n-1"} if joined else ())
    todo = plan(
        NOW, [node], [found] if found else [], joined=here, busy=here if busy else frozenset(), asked=HERE
    )
    assert len(todo) <= 1
    return todo[0] if todo else None


@pytest.mark.parametrize(
    ("state", "age", "found", "joined", "expected"),
    [
        ("launching", 1, None, False, None),
        ("launching", LAUNCH_GRACE_S + 1, None, False, ("move", "failed")),
        ("launching", 1, "pending", False, None),
        ("launching", 1, "running", False, ("move", "joining")),
        ("launching", 1, "running", True, ("move", "ready")),
        ("launching", 1, "failed", False, ("move", "failed")),
        ("joining", 1, "running", False, None),
        ("joining", 1, "running", True, ("move", "ready")),
        ("joining", 1, None, False, ("move", "lost")),
        ("ready", 1, "running", True, None),
        ("ready", 1, "running", False, ("move", "joining")),
        ("ready", 1, "failed", True, ("move", "lost")),
        ("ready", 1, None, True, ("move", "lost")),
        ("draining", 1, "running", True, None),
        ("draining", 1, "running", False, ("terminate", None)),
        ("draining", DRAIN_GRACE_S + 1, "running", True, ("terminate", None)),
        ("draining", DRAIN_GRACE_S + 1, "terminating", False, None),
        ("draining", 1, None, False, ("forget", None)),
        ("lost", 1, None, False, None),
        ("lost", 1, "running", False, ("terminate", None)),
        ("lost", 1, "terminating", False, None),
        ("failed", 1, "failed", False, ("terminate", None)),
    ],
)
def test_every_state(
    state: State, age: float, found: NodeState | None, joined: bool, expected: tuple[str, State | None] | None
) -> None:
    todo = one(known(state, age), there(found) if found else None, joined)
    assert (None if todo is None else (todo.what, todo.state)) == expected


def test_an_empty_host_is_not_waited_for() -> None:
    todo = one(known("draining"), there("running"), joined=True, busy=False)
    assert todo is not None
    assert todo.what == "terminate"


@pytest.mark.parametrize("state", ["pending", "running", "failed"])
def test_a_node_that_no_intent_names_is_terminated(state: NodeState) -> None:
    (todo,) = plan(NOW, [], [there(state, "n-stray")], joined=frozenset(), busy=frozenset(), asked=HERE)
    assert (todo.what, todo.node) == ("terminate", "n-stray")
    assert "nobody owns it" in todo.reason


STATES = st.sampled_from(sorted(MOVES))
FOUND = st.sampled_from([None, "pending", "running", "terminating", "terminated", "failed"])


@given(STATES, FOUND, st.booleans(), st.floats(0, 1000))
def test_moves_are_legal_and_a_silent_provider_is_a_reason_for_nothing(
    state: State, found: NodeState | None, joined: bool, age: float
) -> None:
    node = known(state, age)
    todo = one(node, there(found) if found else None, joined)
    if todo is not None and todo.what == "move":
        assert todo.state in MOVES[state]
    assert plan(NOW, [node], [], joined=frozenset(), busy=frozenset(), asked=frozenset()) == []


def test_every_state_comes_to_rest() -> None:
    """No finding that stays the same makes a node move for ever."""
    for state, found, joined in itertools.product(MOVES, [None, "running", "failed"], [False, True]):
        node = known(state, 10_000)
        for _ in range(5):
            todo = one(node, there(found) if found else None, joined)  # type: ignore[arg-type]
            if todo is None or todo.what != "move":
                break
            assert todo.state is not None
            node = Known(id="n-1", provider="local", state=todo.state, since=NOW)
        else:
            pytest.fail(f"{state} with {found}, joined={joined} never rests")
