"""The states of an instance's probes: every move, and those that must not happen."""

from __future__ import annotations

from dataclasses import replace

import pytest
from headrace import wire
from headrace.host.probes import (
    ROLES,
    Answer,
    Health,
    Move,
    Role,
    Tally,
    answered,
    asked,
    begin,
    name_of,
    plain,
    wait_s,
)
from hypothesis import given
from hypothesis import strategies as st

YES, NO, SILENT = Answer(True), Answer(False, "no"), Answer(False, "no answer", silent=True)
PROBE = wire.Probe(failure_threshold=2)
ALL = wire.Probes(
    startup=PROBE, readiness=wire.Probe(failure_threshold=2, success_threshold=2), liveness=PROBE
)
NEW = Health(began=0.0, started=False, ready=False)
UP = Health(began=0.0, started=True, ready=True)
DOWN = replace(UP, ready=False)


def tally(role: Role, health: Health, **numbers: int) -> Health:
    return replace(health, tallies={role: Tally(**numbers)})


TABLE: list[tuple[Health, Role, Answer, Move, tuple[bool, bool, bool]]] = [
    # state before, who answers, what; the move, (started, ready, over) after it
    (NEW, "startup", YES, "started", (True, False, False)),
    (NEW, "startup", NO, "none", (False, False, False)),
    (tally("startup", NEW, failures=1), "startup", NO, "failed", (False, False, True)),
    (tally("startup", NEW, failures=1), "startup", YES, "started", (True, False, False)),
    (NEW, "readiness", YES, "none", (False, False, False)),
    (NEW, "liveness", NO, "none", (False, False, False)),
    (DOWN, "startup", NO, "none", (True, False, False)),
    (DOWN, "readiness", YES, "none", (True, False, False)),
    (tally("readiness", DOWN, passes=1), "readiness", YES, "ready", (True, True, False)),
    (tally("readiness", DOWN, passes=1), "readiness", NO, "none", (True, False, False)),
    (tally("readiness", DOWN, failures=9), "readiness", NO, "none", (True, False, False)),
    (UP, "readiness", NO, "none", (True, True, False)),
    (tally("readiness", UP, failures=1), "readiness", NO, "unready", (True, False, False)),
    (tally("readiness", UP, failures=1), "readiness", YES, "none", (True, True, False)),
    (tally("readiness", UP, passes=5), "readiness", YES, "none", (True, True, False)),
    (UP, "liveness", NO, "none", (True, True, False)),
    (tally("liveness", UP, failures=1), "liveness", NO, "dead", (True, True, True)),
    (tally("liveness", UP, failures=1), "liveness", SILENT, "dead", (True, True, True)),
    (tally("liveness", UP, failures=1), "liveness", YES, "none", (True, True, False)),
    (tally("liveness", DOWN, failures=1), "liveness", NO, "dead", (True, False, True)),
]


@pytest.mark.parametrize(("before", "role", "answer", "move", "after"), TABLE)
def test_every_move(
    before: Health, role: Role, answer: Answer, move: Move, after: tuple[bool, bool, bool]
) -> None:
    health, moved = answered(ALL, before, role, answer, 1.0)
    assert moved == move
    assert (health.started, health.ready, health.over) == after


def test_a_failure_sets_passes_back_and_a_pass_failures() -> None:
    health, _ = answered(ALL, tally("readiness", DOWN, passes=1), "readiness", NO, 1.0)
    assert health.tallies["readiness"] == Tally(failures=1)
    health, _ = answered(ALL, health, "readiness", YES, 2.0)
    assert health.tallies["readiness"] == Tally(passes=1)


def test_what_is_asked() -> None:
    assert asked(ALL, NEW) == ("startup",)
    assert asked(ALL, UP) == ("readiness", "liveness")
    assert asked(ALL, replace(UP, over=True)) == ()
    assert asked(wire.Probes(), begin(wire.Probes(), 0.0)) == ("liveness",)
    assert asked(wire.Probes(liveness=None), UP) == ()


def test_who_has_no_probe_is_ready_at_once_and_who_has_one_is_not() -> None:
    plain_one = begin(wire.Probes(), 3.0)
    assert (plain_one.started, plain_one.ready) == (True, True)
    asked_first = begin(ALL, 3.0)
    assert (asked_first.started, asked_first.ready) == (False, False)


def test_a_lenient_probe_forgives_silence_of_the_busy() -> None:
    lenient = wire.Probes(liveness=wire.Probe(failure_threshold=2, lenient=True))
    health = begin(lenient, 0.0)
    for now in range(50):
        health, move = answered(lenient, health, "liveness", SILENT, float(now), idle=False, most_s=100.0)
        assert move == "none"
    # Longer than any request may take: it is no work any more.
    health, move = answered(lenient, health, "liveness", SILENT, 101.0, idle=False, most_s=100.0)
    assert move == "none"
    health, move = answered(lenient, health, "liveness", SILENT, 102.0, idle=False, most_s=100.0)
    assert move == "dead"


def test_a_lenient_probe_counts_silence_of_the_idle_and_plain_no() -> None:
    lenient = wire.Probes(liveness=wire.Probe(failure_threshold=2, lenient=True))
    health, _ = answered(lenient, begin(lenient, 0.0), "liveness", SILENT, 1.0, idle=True)
    _, move = answered(lenient, health, "liveness", NO, 2.0, idle=False)
    assert move == "dead"


def test_a_strict_probe_counts_silence_whatever_it_does() -> None:
    health, _ = answered(ALL, UP, "liveness", SILENT, 1.0, idle=False)
    assert answered(ALL, health, "liveness", SILENT, 2.0, idle=False)[1] == "dead"


def test_an_answer_ends_the_silence() -> None:
    lenient = wire.Probes(liveness=wire.Probe(failure_threshold=1, lenient=True))
    health, _ = answered(lenient, begin(lenient, 0.0), "liveness", SILENT, 1.0, most_s=10.0)
    health, _ = answered(lenient, health, "liveness", YES, 9.0, most_s=10.0)
    _, move = answered(lenient, health, "liveness", SILENT, 12.0, most_s=10.0)
    assert move == "none"


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0.1, 100))
def test_periods_are_spread_by_the_jitter_and_no_more(dice: float, jitter: float, period: float) -> None:
    probe = wire.Probe(period_s=period, jitter=jitter, initial_delay_s=7.0)
    assert wait_s(probe, True, dice) == 7.0
    assert period * (1 - jitter) - 1e-9 <= wait_s(probe, False, dice) <= period * (1 + jitter) + 1e-9


@given(st.lists(st.tuples(st.sampled_from(ROLES), st.sampled_from((YES, NO, SILENT))), max_size=60))
def test_nothing_moves_after_the_end_and_nobody_is_ready_before_the_start(
    answers: list[tuple[Role, Answer]],
) -> None:
    health, ended = begin(ALL, 0.0), False
    for now, (role, answer) in enumerate(answers):
        health, move = answered(ALL, health, role, answer, float(now))
        assert not (ended and move != "none")
        ended = ended or move in ("failed", "dead")
        assert health.started or not health.ready
        assert all(not (t.failures and t.passes) for t in health.tallies.values())
        assert health.over == ended


def test_what_people_read() -> None:
    assert name_of(wire.Probe(kind="http", path="/h")) == "GET /h"
    assert name_of(wire.Probe(kind="exec", argv=("test", "-e", "/x"))) == "test -e /x"
    assert name_of(wire.Probe()) == "health()"
    assert name_of(wire.Probe(kind="tcp")) == "a connection"
    assert plain("a\n b") == "a b"
    assert len(plain("x" * 1000)) == 300
