"""Histories: lines that hold what has changed, and give the same records again."""

from __future__ import annotations

import runpy
from typing import Any

import msgspec
import pytest
from headrace_autoscaler.deltas import ITEMS, MEMBERS, SAME, SHIFT, apply, delta
from headrace_autoscaler.history import MAX_LANES, Reader, Writer, read
from headrace_autoscaler.policy import decide
from headrace_autoscaler.replay import DIFFERENT, UNREADABLE, main, replay_file, replay_lines
from headrace_autoscaler.replay import SAME as NOTHING_DIFFERS
from headrace_autoscaler.spec import (
    Config,
    Decision,
    EndpointObservation,
    EndpointState,
    HostObservation,
    Observation,
    Record,
    Release,
    ScalingSpec,
    State,
)
from headrace_autoscaler.states import SLOTS, SPANS, ForecastState, IdleTimes, KeepState, SeasonState
from hypothesis import given
from hypothesis import strategies as st

LEAVES = st.none() | st.integers(-3, 3) | st.floats(allow_nan=False, allow_infinity=False) | st.text("ab")
TREES = st.recursive(
    LEAVES, lambda some: st.lists(some, max_size=5) | st.dictionaries(st.text("abc", max_size=2), some)
)


@given(TREES, TREES)
def test_a_delta_gives_the_new_value_of_any_old_one(old: Any, new: Any) -> None:
    change = msgspec.json.decode(msgspec.json.encode(delta(old, new)))
    again = apply(old, change)
    assert again == new
    if isinstance(new, dict) and list(new) != list(again):
        pytest.fail("the order of members is lost")


@pytest.mark.parametrize(
    ("old", "new", "change"),
    [
        ({"a": [1, 2]}, {"a": [1, 2]}, [SAME]),
        (1, None, [SAME, None]),
        ({"a": 1, "b": 2}, {"b": 3, "c": 4}, [MEMBERS, {"b": [SAME, 3], "c": [SAME, 4]}, ["a"]]),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1, "c": 0}, [SAME, {"b": 2, "a": 1, "c": 0}]),
        ([1, 2, 3], [1, 5, 3], [ITEMS, {"1": [SAME, 5]}]),
        ([1, 2, 3], [2, 3, 4], [SHIFT, 1, [4]]),
        ([1, 2], [1, 2, 3], [SHIFT, 0, [3]]),
        ([1, 2], [3], [SAME, [3]]),
        ([], [1], [SAME, [1]]),
        ((1, 2, 3), (1, 5, 3), [ITEMS, {"1": [SAME, 5]}]),
        ((1, (2, 0)), ((2, 0), 3), [SHIFT, 1, (3,)]),
    ],
)
def test_deltas_are_small(old: Any, new: Any, change: list[Any]) -> None:
    assert delta(old, new) == change
    # As a reader has them.
    old, new, change = (msgspec.json.decode(msgspec.json.encode(each)) for each in (old, new, change))
    assert apply(old, change) == new


@pytest.mark.parametrize("change", [[], ["?"], [MEMBERS, {}, []], [ITEMS, {"0": ["?"]}], [SHIFT, 1]])
def test_what_is_no_change_of_a_value_is_refused(change: list[Any]) -> None:
    with pytest.raises(ValueError, match="change"):
        apply([1, 2], change)


def host(name: str, free: float = 4.0) -> HostObservation:
    return HostObservation(host=name, cpu_free=free, memory_free=1 << 30, price=0.1 + 0.2)


def record(
    now: float,
    state: State,
    *,
    endpoint: str = "p/e",
    queued: int = 1,
    hosts: tuple[HostObservation, ...] = (host("a"), host("b")),
) -> Record:
    seen = EndpointObservation(
        endpoint=endpoint, version=1, scaling=ScalingSpec(), queued=queued, served=(1 / 3,)
    )
    observation = Observation(endpoints=(seen,), hosts=hosts)
    config = Config()
    return Record(
        now=now,
        observation=observation,
        state=state,
        config=config,
        decision=decide(now, observation, state, config),
    )


def remembered(desired: int, endpoint: str = "p/e") -> State:
    return State(endpoints={endpoint: EndpointState(desired=desired, below_since=desired / 7)})


NEVER_IDLE = IdleTimes(watched=(0.0,) * SPANS, needed=(0.0,) * SPANS)
RECORDS = [
    record(1 / 7, remembered(0)),
    record(2 / 7, remembered(3, "p/other"), endpoint="p/other", hosts=(host("a", 3.5), host("b"))),
    record(3 / 7, remembered(5), hosts=(host("a", 3.5), host("b"))),
    record(4 / 7, remembered(5), queued=0, hosts=(host("a"),)),
    record(5 / 7, State()),
    record(
        6 / 7,
        State(endpoints={"p/e": EndpointState(keep=KeepState(levels={1: NEVER_IDLE, -2: NEVER_IDLE}))}),
    ),
]


def test_records_come_back_as_they_were() -> None:
    writer = Writer()
    lines = [writer.line(each) for each in RECORDS]
    assert [each for _, each in read([*lines[:2], b"\n", *lines[2:]])] == RECORDS
    numbers = [number for number, _ in read([*lines[:2], b"\n", *lines[2:]])]
    assert numbers == [1, 2, *range(4, len(RECORDS) + 2)]


def test_a_configuration_is_written_whole_and_once() -> None:
    """Who replays it with other defaults decides by what was in force."""
    writer = Writer()
    first, second, third = (msgspec.json.decode(writer.line(each)) for each in RECORDS[:3])
    assert first["configured"][1]["keep"]["late_s"] == Config().keep.late_s
    assert first["configured"][1]["forecast"]["horizons_s"] == list(Config().forecast.horizons_s)
    assert msgspec.convert(first["configured"][1], Config) == Config()
    assert [second["configured"], third["configured"]] == [[SAME]] * 2
    assert not any("config" in line for line in (first, second, third))
    changed = msgspec.structs.replace(RECORDS[3], config=Config(paused_hold_s=7.0))
    assert msgspec.json.decode(writer.line(changed))["configured"][1]["paused_hold_s"] == 7.0
    writer = Writer()
    lines = [writer.line(each) for each in (*RECORDS[:3], changed)]
    assert [each for _, each in read(lines)] == [*RECORDS[:3], changed]


def test_a_line_has_only_what_is_new() -> None:
    writer = Writer()
    first = record(0.0, remembered(0))
    after = record(1.0, first.decision.state)
    writer.line(first)
    line = msgspec.json.decode(writer.line(after))
    assert (line["hosts"], line["state"]) == ([SAME], [SAME])
    assert len(writer.line(after)) < len(msgspec.json.encode(after))


def test_a_long_state_of_which_little_has_changed_is_a_short_line() -> None:
    long = tuple(float(number) / 7 for number in range(SLOTS))
    states = [
        State(endpoints={"p/e": EndpointState(forecast=ForecastState(season=season))})
        for season in (SeasonState(workdays=(*long[:-1], last)) for last in (1.0, 2.0))
    ]
    writer = Writer()
    first, second = (
        msgspec.structs.replace(record(0.0, each), decision=Decision(actions=(), state=each))
        for each in states
    )
    assert len(writer.line(first)) > 15 * len(long)
    assert len(writer.line(second)) < 3 * len(long)


def test_what_comes_after_a_reset_needs_no_line_before() -> None:
    writer = Writer()
    writer.line(RECORDS[0])
    writer.reset()
    assert Reader().record(writer.line(RECORDS[0])) == RECORDS[0]


def test_more_lanes_than_are_remembered_are_written_in_full() -> None:
    writer, reader = Writer(), Reader()
    for number in range(MAX_LANES + 2):
        each = record(float(number), State(), endpoint=f"p/{number}", hosts=())
        assert reader.record(writer.line(each)) == each
    again = record(0.5, State(), endpoint="p/0", hosts=())
    line = writer.line(again)
    assert msgspec.json.decode(line)["state"] == [SAME, {}]
    assert reader.record(line) == again


def test_decisions_without_an_endpoint_have_a_lane_of_their_own() -> None:
    observation = Observation(endpoints=(), hosts=())
    made = Record(
        now=1.0,
        observation=observation,
        state=State(),
        config=Config(),
        decision=decide(1.0, observation, State(), Config()),
    )
    assert made.lane == ""
    assert Reader().record(Writer().line(made)) == made


def test_whole_records_are_read_as_well() -> None:
    lines = [msgspec.json.encode(each) for each in RECORDS]
    assert [each for _, each in read(lines)] == RECORDS


@pytest.mark.parametrize("line", [b"{", b"[1]", b'{"now": 1}', b'{"after": [], "observation": 5}'])
def test_what_is_no_record_is_told_with_its_line(line: bytes) -> None:
    with pytest.raises(msgspec.DecodeError, match="line 2"):
        list(read([msgspec.json.encode(RECORDS[0]), line]))


def test_a_file_without_its_beginning_is_refused() -> None:
    writer = Writer()
    lines = [writer.line(each) for each in RECORDS]
    with pytest.raises(msgspec.DecodeError, match="beginning"):
        replay_lines(lines[2:])


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_the_command_tells_what_differs(
    tmp_path: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "h.jsonl"
    writer = Writer()
    path.write_bytes(b"".join(writer.line(each) for each in RECORDS))
    assert main([str(path)]) == NOTHING_DIFFERS
    assert f"{len(RECORDS)} decisions, 0 of them different" in capsys.readouterr().out
    wrong = [
        Decision(actions=(Release(endpoint="p/e", instance="i", reason="never decided"),), state=State()),
        Decision(actions=(), state=State()),
    ]
    made = [msgspec.structs.replace(RECORDS[0], decision=each) for each in wrong]
    path.write_bytes(b"".join(msgspec.json.encode(each) + b"\n" for each in made))
    assert main([str(path)]) == DIFFERENT
    out = capsys.readouterr().out
    assert "line 1: release: never decided" in out
    assert "line 2: nothing is done" in out
    assert [each.line for each in replay_file(path)] == [1, 2]
    assert "now: start: " in out
    assert main([str(path), str(tmp_path / "none")]) == UNREADABLE
    monkeypatch.setattr("sys.argv", ["replay", str(tmp_path / "none")])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("headrace_autoscaler.replay", run_name="__main__")
    assert ended.value.code == UNREADABLE
