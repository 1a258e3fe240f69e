"""Service times from the sketches in a history: by hand, and what cannot be told is not made up."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import msgspec
import numpy as np
import pytest
from headrace_autoscaler import service
from headrace_autoscaler.history import Writer
from headrace_autoscaler.service import CAPACITY, add
from headrace_autoscaler.simulate import recorded
from headrace_autoscaler.simulate.recorded import read_history
from headrace_autoscaler.simulate.sketches import HALVED, Memories, ended_between, typical
from headrace_autoscaler.simulate.traces import TraceError
from headrace_autoscaler.spec import (
    Config,
    Decision,
    EndpointObservation,
    EndpointState,
    Observation,
    Record,
    ScalingSpec,
    State,
)
from headrace_autoscaler.states import DemandState, ServiceState
from hypothesis import given
from hypothesis import strategies as st

NONE = ServiceState()
TIMES = st.lists(st.floats(0.001, 80_000), max_size=40)


def sketch(*served: float) -> ServiceState:
    return add(NONE, served)


def state(served: Iterable[float], name: str = "p/e") -> State:
    return State(endpoints={name: EndpointState(demand=DemandState(service=add(NONE, served)))})


def record(now: float, arrived: int | None, before: State, after: State, *, here: int = 0) -> Record:
    """Of a look in which no service was seen to end."""
    seen = EndpointObservation(endpoint="p/e", version=1, scaling=ScalingSpec(), arrived=arrived, queued=here)
    return Record(
        now=now,
        observation=Observation(endpoints=(seen,), hosts=()),
        state=before,
        config=Config(),
        decision=Decision(actions=(), state=after),
    )


def written(path: Path, *looks: tuple[float, int | None, list[float]]) -> Path:
    """A history of looks: (when, arrived, all service times until then)."""
    writer, before, lines = Writer(), State(), b""
    for now, arrived, served in looks:
        after = state(served)
        lines += writer.line(record(now, arrived, before, after))
        before = after
    (path / "decisions.jsonl").write_bytes(lines)
    return path


def test_what_two_sketches_differ_by_ended_between_them() -> None:
    before, after = sketch(0.4, 7.0), sketch(0.4, 7.0, 0.4, 3.0)
    found = ended_between(before, after, 2)
    # 0.4 and 3 s are each within a bin of 10 %, and their sum is exact.
    assert found.tolist() == pytest.approx([0.4, 3.0], rel=0.1)
    assert found.sum() == pytest.approx(3.4)
    # One alone is exact.
    assert ended_between(before, sketch(0.4, 7.0, 1.2345), 1).tolist() == pytest.approx([1.2345])
    assert ended_between(before, before, 0).tolist() == ended_between(NONE, NONE, 5).tolist() == []
    # Others ended without being served: what was served is known all the same.
    assert ended_between(before, after, 2 + HALVED).tolist() == found.tolist()


@given(TIMES, TIMES)
def test_all_that_ended_is_there_with_its_sum(past: list[float], new: list[float]) -> None:
    found = ended_between(sketch(*past), sketch(*past, *new), len(new))
    assert len(found) == len(new)
    assert found.sum() == pytest.approx(sum(new), rel=0.1, abs=1e-6)
    for mine, true in zip(found.tolist(), sorted(new), strict=True):
        # A bin's width, and where much was served before the sum of the new is not known to the last digit.
        assert true / 1.22 <= mine <= true * 1.22


def test_when_counts_were_halved_recent_services_stand_for_all_that_ended() -> None:
    before = add(NONE, [1.0] * (CAPACITY - 100))
    after = add(before, [4.0] * 300)
    assert after.total < before.total
    found = ended_between(before, after, 300)
    assert len(found) == 300
    assert set(np.round(found).tolist()) == {1.0, 4.0}
    assert found.mean() == pytest.approx(after.seconds / after.total, rel=0.01)
    # Halved, and grown beyond what it was: it is seen by how many ended.
    again = add(add(NONE, [1.0] * 600), [1.0] * 900)
    assert again.total > 600
    assert ended_between(add(NONE, [1.0] * 600), again, 900).tolist() == pytest.approx([1.0] * 900)


def test_another_sketch_that_has_begun_stands_for_what_ended_since() -> None:
    assert ended_between(sketch(5.0, 5.0), sketch(0.4), 1).tolist() == pytest.approx([0.4])
    assert ended_between(sketch(5.0, 5.0), sketch(0.4), -3).tolist() == []
    assert ended_between(sketch(5.0), NONE, 4).tolist() == []


def test_what_is_typical() -> None:
    known = sketch(*[1.0] * 60, *[9.0] * 40)
    found = typical(known, 10)
    assert found.tolist() == pytest.approx([1.0] * 6 + [9.0] * 4, rel=0.1)
    assert found.mean() == pytest.approx(4.2)
    assert typical(NONE, 3).tolist() == typical(known, 0).tolist() == []
    # Seconds that cannot be those of the bins move nothing beyond them.
    wrong = msgspec.structs.replace(known, seconds=1e9)
    assert typical(wrong, 10).max() < 9.0 * 1.25


def test_lines_are_of_their_lane_and_build_on_those_before() -> None:
    memories, writer = Memories(), Writer()
    one, two, other = state([1.0]), state([1.0, 2.0]), state([3.0], "p/f")
    lines = [
        record(1.0, 1, State(), one),
        msgspec.structs.replace(
            record(2.0, 1, State(), other),
            observation=Observation(
                endpoints=(EndpointObservation(endpoint="p/f", version=1, scaling=ScalingSpec()),), hosts=()
            ),
        ),
        record(3.0, 2, one, two),
    ]
    found = []
    for each in lines:
        shown = msgspec.json.decode(writer.line(each))
        names = [seen.endpoint for seen in each.observation.endpoints]
        found.append(memories.of(names, shown["state"], shown["after"], shown["decision"]))
    assert found == [{"p/e": sketch(1.0)}, {"p/f": sketch(3.0)}, {"p/e": sketch(1.0, 2.0)}]
    assert memories.of([], None, None, {}) == {}
    # A record as a whole, as an older version wrote it; without a state nothing is known.
    whole = msgspec.to_builtins(lines[2], str_keys=True)
    assert memories.of(["p/e", "p/x"], None, None, whole["decision"]) == {
        "p/e": sketch(1.0, 2.0),
        "p/x": NONE,
    }
    assert memories.of(["p/e"], None, None, {}) == {"p/e": None}


@pytest.mark.parametrize(
    "demand",
    [
        {"service": {"bins": [[5, "a"]], "total": 1}},
        {"service": {"bins": [[5, 2]], "total": 1, "seconds": 1.0}},
        {"service": {"bins": [[5, 1], [5, 1]], "total": 2, "seconds": 1.0}},
        {"service": {"bins": [[service.BINS + 1, 1]], "total": 1, "seconds": 1.0}},
        {"service": {"bins": [[5, 2], [6, -1]], "total": 1, "seconds": 1.0}},
        {"service": 3},
        4,
    ],
)
def test_what_is_no_sketch_says_nothing(demand: object) -> None:
    after = ["=", {"endpoints": {"p/e": {"demand": demand}}}]
    assert Memories().of(["p/e"], ["="], after, {}) == {"p/e": None}


def test_service_times_are_read_without_their_looks(tmp_path: Path) -> None:
    """No line has seen a service end: the sketches have."""
    trace, notes = read_history(
        written(tmp_path, (0, 1, []), (12, 2, [0.4]), (30, 4, [0.4, 2.0]), (40, 4, [0.4, 2.0, 0.4, 5.0]))
    )
    assert len(trace.durations) == 3
    # Four ended, one of them had come before the first line; those that came stand in their order.
    assert trace.durations[0] == pytest.approx(0.4)
    assert set(np.round(trace.durations, 1).tolist()) <= {0.4, 2.0, 5.0}
    assert notes[1:] == ("service times are those of the autoscaler's sketch, each right to 10 %",)


def test_a_count_that_is_not_known_is_made_up_for_by_the_next(tmp_path: Path) -> None:
    trace, _ = read_history(
        written(tmp_path, (0, 0, []), (10, None, [1.0]), (15, 2, [1.0, 3.0]), (20, 2, [1.0, 3.0]))
    )
    assert sorted(trace.durations.tolist()) == pytest.approx([1.0, 3.0], rel=0.1)
    assert trace.durations.sum() == pytest.approx(4.0)


def test_counters_that_begin_again_do_not_lose_what_ended_since(tmp_path: Path) -> None:
    """Control was started again, with what it had saved of the sketch a while before."""
    past = [1.0] * 50
    trace, _ = read_history(
        written(tmp_path, (0, 50, past), (10, 51, [*past, 7.0]), (20, 2, [*past[:-5], 1.0, 1.0]))
    )
    assert len(trace.durations) == 3
    assert trace.durations.tolist() == pytest.approx([7.0, 1.0, 1.0])


def test_where_nothing_ended_requests_take_as_long_as_those_before(tmp_path: Path) -> None:
    trace, notes = read_history(written(tmp_path, (0, 5, [2.0] * 5), (10, 8, [2.0] * 5)))
    assert trace.durations.tolist() == pytest.approx([2.0] * 3)
    assert notes[1:] == ("of p/e no service was seen to end: they take as long as those before",)


def test_a_line_whose_line_before_is_gone_is_read_without_its_sketch(tmp_path: Path) -> None:
    written(tmp_path, (0, 0, []), (5, 0, [1.0]), (10, 1, [1.0, 1.0]), (20, 2, [1.0, 1.0, 6.0]))
    file = tmp_path / "decisions.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join(lines[2:]))
    with pytest.raises(TraceError, match="none was seen to end"):
        read_history(tmp_path)
    file.write_bytes(lines[0] + lines[3])
    with pytest.raises(TraceError, match="none was seen to end"):
        read_history(tmp_path)


def test_counters_that_cannot_be_are_no_reason_to_fill_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorded, "MAX_REQUESTS", 100)
    writer, lines = Writer(), b""
    for number, here in enumerate((10**12, 0)):
        lines += writer.line(record(10.0 * number, 5, State(), state([1.0]), here=here))
    (tmp_path / "decisions.jsonl").write_bytes(lines)
    with pytest.raises(TraceError, match="more than 100 requests"):
        read_history(tmp_path)
