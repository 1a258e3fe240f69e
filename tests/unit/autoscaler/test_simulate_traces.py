"""Tables of requests: each layout, times of each kind, and what is said of files that are wrong."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
from headrace_autoscaler.simulate import traces
from headrace_autoscaler.simulate.generators import DAY_S
from headrace_autoscaler.simulate.traces import TraceError, between, read_trace
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st


def table(path: Path, *lines: str, name: str = "trace.csv") -> Path:
    file = path / name
    text = "".join(f"{line}\n" for line in lines).encode()
    file.write_bytes(gzip.compress(text) if name.endswith(".gz") else text)
    return file


@pytest.mark.parametrize("name", ["trace.csv", "trace.csv.gz"])
def test_a_table_of_times_and_durations(tmp_path: Path, name: str) -> None:
    read = read_trace(table(tmp_path, "time,duration", "3,1.5", "", "0.5,2", name=name))
    assert read.arrivals.tolist() == [0.5, 3.0]
    assert read.durations.tolist() == [2.0, 1.5]
    assert (read.name, read.names, read.endpoints.tolist()) == (name, ("endpoint",), [0, 0])


def test_endpoints_are_those_of_the_column(tmp_path: Path) -> None:
    read = read_trace(table(tmp_path, "Time, Duration ,endpoint", "1,1,b", "2,1,a", "3,1, b"))
    assert read.names == ("a", "b")
    assert read.endpoints.tolist() == [1, 0, 1]
    assert read.endpoints.dtype == np.int32


def test_a_model_is_an_endpoint_when_asked(tmp_path: Path) -> None:
    file = table(tmp_path, "t,exec_s,model", "652.34,17,M2", "700,9,M1")
    assert read_trace(file).names == ("endpoint",)
    assert read_trace(file, endpoint_column="model").names == ("M1", "M2")
    with pytest.raises(TraceError, match=r":1: the header line has no column owner"):
        read_trace(file, endpoint_column="owner")


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("2026-01-31T01:00:00Z", "2026-02-01T00:00:10Z"),
        ("2026-01-31 01:00:00", "2026-02-01 00:00:10.0000000"),
        ("2026-01-31T02:00:00+01:00", "2026-02-01T00:00:10+00:00"),
        ("1769821200", "1769904010"),
        ("1769821200000", "1769904010000"),
    ],
)
def test_dates_count_from_the_first_midnight(tmp_path: Path, first: str, second: str) -> None:
    read = read_trace(table(tmp_path, "timestamp,duration", f"{second},1", f"{first},2"))
    assert read.arrivals.tolist() == [3600.0, DAY_S + 10]
    assert read.durations.tolist() == [2.0, 1.0]


def test_tokens_are_seconds_at_the_rates_given(tmp_path: Path) -> None:
    file = table(
        tmp_path,
        "TIMESTAMP,ContextTokens,GeneratedTokens",
        "2023-11-16 18:15:46.6805900,1000,60",
        "2023-11-16 18:15:50.0000000,500,30",
    )
    read = read_trace(file)
    assert read.durations.tolist() == pytest.approx([0.2 + 2, 0.1 + 1])
    assert np.diff(read.arrivals)[0] == pytest.approx(3.31941)
    assert read_trace(file, prefill=100, decode=10).durations.tolist() == pytest.approx([16, 8])
    with pytest.raises(TraceError, match="tokens per second"):
        read_trace(file, decode=0)


def test_gpus_in_use_are_a_load_that_keeps_as_many_busy(tmp_path: Path) -> None:
    file = table(tmp_path, "t,gpus", "0,4", "300,2", "600,0")
    read = read_trace(file, request_s=30)
    assert len(read.arrivals) == (4 + 2) * 300 / 30
    assert (read.durations == 30).all()
    moments = np.asarray([100.0, 200.0, 299.0, 400.0, 500.0])
    running = [((read.arrivals <= t) & (t < read.arrivals + 30)).sum() for t in moments]
    assert running == [4, 4, 4, 2, 2]
    for arguments, words in (({"request_s": 0}, "request_s"), ({"request_s": 1e-6}, "take longer ones")):
        with pytest.raises(TraceError, match=words):
            read_trace(file, **arguments)
    with pytest.raises(TraceError, match="two lines"):
        read_trace(table(tmp_path, "t,gpus", "0,4"))


def test_days_are_cut_out_and_begin_at_zero(tmp_path: Path) -> None:
    lines = [f"{day * DAY_S + 5},{day},{'ab'[day % 2]}" for day in range(4)]
    read = read_trace(table(tmp_path, "time,duration,endpoint", *lines))
    cut = between(read, 1, 3)
    assert cut.arrivals.tolist() == [5.0, DAY_S + 5]
    assert cut.durations.tolist() == [1.0, 2.0]
    assert cut.endpoints.tolist() == [1, 0]
    assert cut.names == read.names
    assert between(read).arrivals.tolist() == read.arrivals.tolist()
    assert len(between(read, from_day=2).arrivals) == len(between(read, to_day=2).arrivals) == 2
    with pytest.raises(
        TraceError, match=r"no request from day 7 on and before day 9; it has 4 in 3\.00 days"
    ):
        between(read, 7, 9)


@given(
    st.lists(st.tuples(st.floats(0, 1e6), st.floats(0, 1e4), st.sampled_from(["x", "y,z", 'q"'])), min_size=1)
)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_was_written_is_read(tmp_path: Path, rows: list[tuple[float, float, str]]) -> None:
    quoted = [f'{t!r},{d!r},"{e.replace(chr(34), chr(34) * 2)}"' for t, d, e in rows]
    read = read_trace(table(tmp_path, "time,duration,endpoint", *quoted))
    found = zip(
        read.arrivals.tolist(), read.durations.tolist(), (read.names[i] for i in read.endpoints), strict=True
    )
    assert sorted(found) == sorted(rows)
    assert (np.diff(read.arrivals) >= 0).all()


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ((), ":1: the header line has no column duration"),
        (("1,2", "3,4"), ":1: the header line has no column duration"),
        (("when,duration", "1,2"), ":1: the header line has no column time or t or timestamp"),
        (("time,duration",), "no request below the header"),
        (("time,duration", "1,2", "2,fast"), ":3: duration is 'fast', which is not a number"),
        (("time,duration", "1,-2"), ":2: duration is '-2': it must be 0 or more"),
        (("time,duration", "1,inf"), ":2: duration is 'inf': it must be 0 or more, and finite"),
        (("time,duration", "noon,1"), ":2: the time is 'noon': write seconds"),
        (("time,duration", "-1,1"), ":2: the time is '-1': it must be 0 or more"),
        (("time,duration", "1970-05-01T00:00:00Z,1"), ":2: '1970-05-01T00:00:00Z' is before 1974"),
        (("time,duration", "1", "2,2"), ":2: has 1 columns, and duration is column 2"),
        (("time,duration,endpoint", "1,2"), ":2: has 2 columns, and endpoint is column 3"),
        (("time,duration", "5,1", "2026-01-01,1"), ":3: .* and the time in line 2 are not on one clock"),
        (("time,duration", "1,2", '"unended' + "x" * 200_000), "is not a CSV file"),
    ],
)
def test_what_is_wrong_with_a_table_is_said_with_its_line(
    tmp_path: Path, lines: tuple[str, ...], words: str
) -> None:
    with pytest.raises(TraceError, match=words):
        read_trace(table(tmp_path, *lines))


def test_too_many_requests_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(traces, "MAX_REQUESTS", 2)
    with pytest.raises(TraceError, match=":4: more than 2 requests"):
        read_trace(table(tmp_path, "time,duration", "1,1", "2,1", "3,1"))


def test_files_that_are_no_tables(tmp_path: Path) -> None:
    whole = table(tmp_path, "time,duration", *(f"{i},1" for i in range(5000)), name="t.csv.gz").read_bytes()
    binary = tmp_path / "b"
    for content, words in (
        (whole[: len(whole) // 2], "damaged or cut off"),
        (whole[:3] + b"\xff" * 30, "damaged or cut off"),
        (b"time,duration\n1,2\n\xff\xfe", "UTF-8"),
    ):
        binary.write_bytes(content)
        with pytest.raises(TraceError, match=words):
            read_trace(binary)
    with pytest.raises(TraceError, match="cannot be read: Is a directory"):
        read_trace(tmp_path)
    with pytest.raises(TraceError, match="cannot be read: No such file"):
        read_trace(tmp_path / "none")


def test_a_byte_order_mark_is_no_part_of_the_header(tmp_path: Path) -> None:
    file = tmp_path / "bom.csv"
    file.write_bytes("\ufefftime,duration\r\n1,2\r\n".encode())
    assert read_trace(file).arrivals.tolist() == [1.0]
