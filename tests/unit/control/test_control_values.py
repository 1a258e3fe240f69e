"""Pure parts of control: tables of moves, endpoint state, rollout, backoff, bases, statements."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import get_args

import msgspec
import pytest
from headrace import wire
from headrace.control import deployments, failures, rollout, state, store, stored_secrets
from headrace.control.claims import base_of, instance_spec
from headrace.control.model import Failing
from headrace.control.sql import load_migrations, load_queries
from headrace.control.state import EndpointFacts, endpoint_state
from headrace.sdk.spec import Batch, EndpointSpec
from hypothesis import given
from hypothesis import strategies as st

TABLES = [
    (state.ENDPOINT, wire.EndpointState),
    (state.INSTANCE, wire.InstanceState),
    (state.HOST, wire.HostState),
]
LEGAL = {
    "ENDPOINT": """deploying>ready deploying>idle deploying>failed deploying>updating deploying>deleting
        ready>idle ready>updating ready>failed ready>deleting
        idle>ready idle>updating idle>failed idle>deleting
        updating>ready updating>idle updating>failed updating>deleting
        failed>deploying failed>ready failed>idle failed>updating failed>deleting""",
    "INSTANCE": """starting>ready starting>draining starting>stopped starting>failed
        ready>paused ready>draining ready>stopped ready>failed
        paused>ready paused>draining paused>stopped paused>failed draining>stopped draining>failed""",
    "HOST": """joining>ready joining>dead ready>suspect ready>draining ready>dead
        suspect>ready suspect>draining suspect>dead draining>dead dead>ready""",
}


@pytest.mark.parametrize("name", list(LEGAL))
def test_every_move_is_legal_or_not_as_the_table_says(name):
    table = getattr(state, name)
    legal = {tuple(move.split(">")) for move in LEGAL[name].split()}
    for old, new in itertools.product(table, table):
        if old == new or (old, new) in legal:
            state.check(table, old, new)
        else:
            with pytest.raises(state.IllegalMove, match=f"{old} cannot become {new}"):
                state.check(table, old, new)


@pytest.mark.parametrize(("table", "names"), TABLES)
def test_the_tables_know_all_states(table, names):
    assert set(table) == set(get_args(names))


facts = st.builds(
    EndpointFacts,
    deleting=st.booleans(), has_version=st.booleans(), trial=st.booleans(), old_instances=st.booleans(),
    ready=st.integers(0, 3), failing=st.booleans(),
)  # fmt: skip


@given(facts, facts)
def test_the_derived_states_only_make_legal_moves(before, after):
    # What was deleted stays deleted, and a current version is never lost.
    if before.deleting > after.deleting or before.has_version > after.has_version:
        return
    if before.trial and not before.has_version and not after.has_version and not after.trial:
        assert endpoint_state(after) in ("failed", "deleting")
    state.check(state.ENDPOINT, endpoint_state(before), endpoint_state(after))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"has_version": False, "trial": True}, "deploying"),
        ({"has_version": False}, "failed"),
        ({"ready": 1}, "ready"),
        ({}, "idle"),
        ({"failing": True}, "failed"),
        ({"failing": True, "ready": 1}, "ready"),
        ({"trial": True, "ready": 1}, "updating"),
        ({"old_instances": True}, "updating"),
        ({"deleting": True, "ready": 1}, "deleting"),
    ],
)
def test_the_state_follows_from_the_facts(options, expected):
    assert endpoint_state(EndpointFacts(**options)) == expected


@given(
    st.integers(0, 5),
    st.lists(st.tuples(st.booleans(), st.integers(0, 3)), max_size=6),
    st.integers(0, 6),
)
def test_old_instances_drain_only_when_enough_is_left(new_ready, shapes, wanted):
    old = [rollout.Old(str(n), ready, load) for n, (ready, load) in enumerate(shapes)]
    gone = set(rollout.to_drain(new_ready, old, wanted))
    ready_before = sum(o.ready for o in old)
    left = new_ready + sum(o.ready for o in old if o.id not in gone)
    assert left >= min(wanted, new_ready + ready_before)
    assert not [o for o in old if not o.ready and o.id not in gone]
    if new_ready >= wanted:
        assert len(gone) == len(old)


def test_the_least_busy_drains_first():
    old = [rollout.Old("busy", True, 3), rollout.Old("idle", True, 0)]
    assert rollout.to_drain(1, old, 2) == ["idle"]


def test_backoff_doubles_up_to_a_minute():
    death = wire.Death(reason="load-failed", detail="ValueError: x", traceback="tb")
    failing, now, waits = None, 0.0, []
    for _ in range(9):
        failing = failures.another(failing, 1, death, now, was_ready=False)
        waits.append(failing.until - now)
        now = failing.until
    assert waits == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    told = "crash loop, 9 in a row, the next after 60 s: load-failed: ValueError: x"
    assert (failing.reason, failing.traceback) == (told, "tb")


def test_failures_of_one_burst_are_one_and_a_new_version_starts_anew():
    death = wire.Death(reason="import-failed")
    first = failures.another(None, 1, death, 0.0, was_ready=False)
    assert failures.another(first, 1, death, 0.5, was_ready=False) is first
    assert failures.another(first, 2, death, 0.5, was_ready=False).count == 1


def test_the_first_deaths_while_running_cause_no_backoff():
    death = wire.Death(reason="exited")
    failing: Failing | None = None
    waits = []
    for _ in range(5):
        failing = failures.another(
            failing, 1, death, 0.0 if failing is None else failing.until, was_ready=True
        )
        waits.append(failing.count)
    assert waits == [1, 2, 3, 4, 5]
    fresh = failures.another(None, 1, death, 7.0, was_ready=True)
    assert fresh.until == 7.0


def test_instances_that_die_after_they_were_ready_hold_back_only_what_nobody_waits_for():
    died, broken = wire.Death(reason="exited"), wire.Death(reason="load-failed")
    failing: Failing | None = None
    for _ in range(6):
        failing = failures.another(failing, 1, died, failing.until if failing else 0.0, was_ready=True)
    assert failing is not None
    assert failing.until > 0
    assert failures.blocked_until(failing, 1, 0) == failing.until
    assert failures.blocked_until(failing, 1, 3) == 0
    assert failures.blocked_until(failing, 2, 0) == 0
    # A start that fails begins a row of its own, and holds back every start.
    now = failing.until
    failing = failures.another(failing, 1, broken, now, was_ready=False)
    assert (failing.count, failures.blocked_until(failing, 1, 3)) == (1, now + failures.FIRST_BACKOFF_S)


def test_an_ending_is_told_in_one_line():
    assert failures.describe(wire.Death(reason="exited", detail="a\n  b")) == "exited: a b"
    printed = wire.Death(reason="exited", log=("no licence found", "bye"))
    assert failures.at_length(printed) == "It printed last:\n  no licence found\n  bye"
    assert failures.at_length(wire.Death(reason="load-failed", traceback="T", log=("x",))) == "T"
    assert not failures.at_length(wire.Death(reason="exited"))


@pytest.mark.parametrize(
    ("reason", "ready_for", "counts"),
    [
        ("stopped", None, False),
        ("host-lost", 1.0, False),
        ("oom", 1.0, True),
        ("oom", 11.0, False),
        ("stuck", 6.0, False),
        ("exited", None, True),
    ],
)
def test_what_counts_to_a_crash_loop(reason, ready_for, counts):
    assert failures.counts(wire.Death(reason=reason), ready_for) is counts


SPEC = EndpointSpec(
    name="a", entry="m:f", handler="class", bundle="b", imports=("numpy",), env={"B": "2", "A": "1"}
)


def test_endpoints_share_a_base_unless_they_are_loaded_in_it():
    other = msgspec.structs.replace(SPEC, name="b", bundle="c", env={})
    assert base_of(SPEC, 1) == base_of(other, 9)
    loaded = msgspec.structs.replace(SPEC, snapshot="loaded")
    base = base_of(loaded, 3)
    assert base != base_of(loaded, 4)
    assert base.loaded.env == (("A", "1"), ("B", "2"))
    changed = msgspec.structs.replace(loaded, env={"A": "1"})
    assert base_of(changed, 3).loaded.env_hash != base.loaded.env_hash
    assert hash(base) == hash(base_of(loaded, 3))


def test_an_instance_gets_what_its_spec_says():
    made = instance_spec(msgspec.structs.replace(SPEC, batch=Batch(max_size=3), concurrency=5), 2, ("L4", 1))
    assert (made.endpoint, made.version, made.concurrency) == ("default/a", 2, 5)
    assert (made.batch_max_size, made.gpu, made.base) == (3, (("L4", 1),), base_of(SPEC, 2))


def test_every_statement_is_described_and_used():
    source = "".join(Path(module.__file__).read_text() for module in (deployments, store, stored_secrets))
    assert [name for name in load_queries() if f'"{name}"' not in source] == []
    assert len(load_migrations()) >= 1


def test_who_is_found_unhealthy_soon_after_its_start_counts_to_a_crash_loop():
    unhealthy = wire.Death(reason="unhealthy", detail="health() said no")
    exited = wire.Death(reason="exited", detail="exit code 1")
    assert failures.counts(unhealthy, 60.0)
    assert not failures.counts(unhealthy, 121.0)
    assert not failures.counts(exited, 60.0)
    assert failures.told(exited, 2, 2.0) == "exited: exit code 1"
    assert failures.told(exited, 3, 4.0) == "crash loop, 3 in a row, the next after 4 s: exited: exit code 1"
