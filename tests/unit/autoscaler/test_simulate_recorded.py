"""A recorded history as a trace: what was counted is there, and what was not seen is said."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from headrace_autoscaler.simulate import recorded
from headrace_autoscaler.simulate.recorded import read_history
from headrace_autoscaler.simulate.traces import TraceError
from headrace_autoscaler.spec import (
    Config,
    Decision,
    EndpointObservation,
    Observation,
    Record,
    ScalingSpec,
    State,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

Look = tuple[float, int | None, tuple[float, ...]]


def line(now: float, *seen: tuple[str, int | None, tuple[float, ...]]) -> bytes:
    endpoints = tuple(
        EndpointObservation(endpoint=name, version=1, scaling=ScalingSpec(), arrived=arrived, served=served)
        for name, arrived, served in seen
    )
    record = Record(
        now=now,
        observation=Observation(endpoints=endpoints, hosts=()),
        state=State(),
        config=Config(),
        decision=Decision(actions=(), state=State()),
    )
    return msgspec.json.encode(record) + b"\n"


def history(path: Path, *lines: bytes, name: str = "decisions.jsonl") -> Path:
    (path / "history").mkdir(exist_ok=True)
    (path / "history" / name).write_bytes(b"".join(lines))
    return path


def looks(*each: Look, endpoint: str = "default/e") -> list[bytes]:
    return [line(now, (endpoint, arrived, served)) for now, arrived, served in each]


def test_arrivals_are_spread_between_looks_and_last_as_long_as_was_seen(tmp_path: Path) -> None:
    lines = looks((100, 5, (9.0,)), (110, 7, ()), (120, 7, (3.0,)), (130, 8, (4.0, 5.0)))
    trace, notes = read_history(history(tmp_path, *lines))
    # Two until 110, one at 130; times are from the first of them. What ended before is not theirs.
    assert trace.arrivals.tolist() == [0.0, 5.0, 25.0]
    assert trace.durations.tolist() == [3.0, 4.0, 5.0]
    assert (trace.name, trace.names) == ("history", ("default/e",))
    assert notes == ("arrivals are spread evenly between the lines of the history",)


def test_after_a_pause_requests_came_just_now(tmp_path: Path) -> None:
    trace, _ = read_history(history(tmp_path, *looks((0, 0, ()), (15, 1, (1.0,)), (600, 5, (2.0,)))))
    assert trace.arrivals.tolist() == pytest.approx([0, 584.25, 584.5, 584.75, 585])


def test_the_services_that_were_seen_stand_for_all(tmp_path: Path) -> None:
    trace, notes = read_history(history(tmp_path, *looks((0, 0, ()), (10, 3, (2.0,)), (20, 5, (4.0,)))))
    assert trace.durations.tolist() == [2.0, 2.0, 4.0, 4.0, 4.0]
    assert "2 services were seen to end, and stand for those of 5 requests" in notes


def test_endpoints_are_apart_and_one_can_be_chosen(tmp_path: Path) -> None:
    lines = [
        line(0, ("default/a", 0, ()), ("default/b", 10, ())),
        line(10, ("default/a", 1, (1.0,))),
        line(20, ("default/b", 11, (2.0,)), ("other/b", None, ())),
    ]
    trace, _ = read_history(history(tmp_path, *lines))
    assert trace.names == ("default/a", "default/b")
    assert trace.arrivals.tolist() == [0.0, 10.0]
    assert trace.endpoints.tolist() == [0, 1]
    for name in ("a", "default/a"):
        chosen, _ = read_history(tmp_path, name)
        assert (chosen.names, chosen.durations.tolist()) == (("default/a",), [1.0])
    with pytest.raises(TraceError, match="b is in several projects; there are default/b, other/b"):
        read_history(tmp_path, "b")
    with pytest.raises(TraceError, match="c is in no record; there are default/a, default/b, other/b"):
        read_history(tmp_path, "c")


def test_older_files_come_first(tmp_path: Path) -> None:
    history(tmp_path, *looks((0, 0, ()), (10, 1, (1.0,))), name="decisions.10.jsonl")
    history(tmp_path, *looks((20, 2, (2.0,))), name="decisions.2.jsonl")
    history(tmp_path, *looks((30, 3, (3.0,))))
    trace, notes = read_history(tmp_path / "history")
    assert trace.arrivals.tolist() == [0.0, 10.0, 20.0]
    assert trace.durations.tolist() == [1.0, 2.0, 3.0]
    assert len(notes) == 1
    alone, _ = read_history(tmp_path / "history" / "decisions.10.jsonl")
    assert len(alone.arrivals) == 1


def test_clocks_and_counters_that_begin_again(tmp_path: Path) -> None:
    lines = looks((1000, 50, ()), (1010, 51, (1.0,)), (5, 1, (2.0,)), (15, 2, (3.0,)))
    trace, notes = read_history(history(tmp_path, *lines))
    assert trace.arrivals.tolist() == [0.0, 0.0, 10.0]
    assert trace.durations.tolist() == [1.0, 2.0, 3.0]
    assert "the clock began again 1 times; the time between is left out" in notes


def test_looks_that_did_not_know_are_passed_over(tmp_path: Path) -> None:
    lines = looks((0, None, ()), (10, 4, ()), (17, None, (1.0,)), (24, 6, (2.0,)))
    trace, _ = read_history(history(tmp_path, *lines))
    assert trace.arrivals.tolist() == [0.0, 7.0]
    assert trace.durations.tolist() == [1.0, 2.0]


@given(
    st.lists(
        st.tuples(st.floats(0.1, 100), st.integers(0, 20), st.lists(st.floats(0.1, 50), max_size=20)),
        min_size=1,
        max_size=20,
    )
)
@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_request_is_lost_or_made_up(tmp_path: Path, steps: list[tuple[float, int, list[float]]]) -> None:
    now, arrived = 5.0, 3
    lines = looks((now, arrived, ()))
    moments = [now]
    for step, came, served in steps:
        now, arrived = now + step, arrived + came
        moments.append(now)
        lines += looks((now, arrived, tuple(served)))
    path = history(tmp_path, *lines)
    if arrived == 3 or not any(served for _, _, served in steps):
        with pytest.raises(TraceError):
            read_history(path)
        return
    trace, _ = read_history(path)
    assert len(trace.arrivals) == arrived - 3
    assert trace.end <= now - 5.0 + 1e-6
    ended = [each for _, _, served in steps for each in served]
    assert set(trace.durations.tolist()) <= set(ended)
    if len(ended) == len(trace.durations):
        assert sorted(trace.durations.tolist()) == sorted(ended)


def test_a_last_line_that_is_cut_off_is_left_out_and_another_is_named(tmp_path: Path) -> None:
    good = looks((0, 0, ()), (10, 1, (1.0,)))
    trace, _ = read_history(history(tmp_path, *good, b"\n", good[0][:30]))
    assert len(trace.arrivals) == 1
    with pytest.raises(TraceError, match=r"decisions\.jsonl:2: is no record of a decision"):
        read_history(history(tmp_path, good[0], b'{"now": 3}\n', good[1]))


def test_without_any_end_requests_last_as_long_as_they_were_there(tmp_path: Path) -> None:
    counters = ((0, None, None), (10, 1, 4.0), (20, 4, 9.0), (30, 2, 3.0))  # began again before the last
    lines = []
    for now, arrived, demand_s in counters:
        seen = EndpointObservation(
            endpoint="default/e", version=1, scaling=ScalingSpec(), arrived=arrived, demand_s=demand_s
        )
        lines.append(msgspec.json.encode({"now": now, "observation": {"endpoints": [seen]}}) + b"\n")
    trace, notes = read_history(history(tmp_path, *lines))
    # 5 and 3 request-seconds, by 3 and 2 requests.
    assert trace.durations.tolist() == [1.6] * 5
    assert "no service was seen to end: 1.6 s each, waiting included" in notes[1]
    assert len(notes) == 2


def test_histories_that_say_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TraceError, match="there is no recorded history"):
        read_history(tmp_path)
    for lines, words in (
        ((), "no request arrived"),
        (looks((0, 5, ()), (9, 5, ())), "no request arrived"),
        (looks((0, None, ()), (9, None, ())), "no counter of arrivals"),
        (looks((0, 5, ()), (9, 6, ())), "none was seen to end"),
    ):
        with pytest.raises(TraceError, match=words):
            read_history(history(tmp_path, *lines))
    (tmp_path / "history" / "decisions.jsonl").unlink()
    (tmp_path / "history" / "decisions.jsonl").mkdir()
    with pytest.raises(TraceError, match="cannot be read"):
        read_history(tmp_path)
    (tmp_path / "history" / "decisions.jsonl").rmdir()
    monkeypatch.setattr(recorded, "MAX_REQUESTS", 3)
    with pytest.raises(TraceError, match="more than 3 requests"):
        read_history(history(tmp_path, *looks((0, 0, ()), (9, 4, (1.0,)))))
