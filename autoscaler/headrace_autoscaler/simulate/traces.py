"""Reads traces of requests: tables (CSV, plain or gzip) in the known layouts, and picks days of them.

Layouts are told by their header line:

===============================================  ==================================================
``time,duration[,endpoint]``                     a user's own; also ``t`` or ``timestamp``, ``exec_s``
``t,exec_s[,model]``                             the same, as shared by the project
``TIMESTAMP,ContextTokens,GeneratedTokens``      Azure's LLM inference traces
``t,gpus``                                       GPUs in use at each time, as a flat load of requests
===============================================  ==================================================
"""

from __future__ import annotations

import csv
import gzip
import math
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TextIO

import numpy as np

from headrace_autoscaler.simulate.generators import DAY_S
from headrace_autoscaler.simulate.scenario import Floats, Trace

TIME_COLUMNS = ("time", "t", "timestamp")
DURATION_COLUMNS = ("duration", "exec_s", "duration_s")
ENDPOINT_COLUMN = "endpoint"
CONTEXT_COLUMN, GENERATED_COLUMN = "contexttokens", "generatedtokens"
GPUS_COLUMN = "gpus"
MAX_REQUESTS = 20_000_000
EPOCH_FROM_S = 1e8
"""Numbers from here on are seconds since 1970 (this is in 1973), below seconds since the trace's begin."""
EPOCH_MS_FROM = 1e11
"""Numbers from here on are milliseconds since 1970."""
PREFILL_TOKENS_PER_S = 5_000.0
DECODE_TOKENS_PER_S = 30.0
"""What one request sees on one busy GPU; an assumption, to be set to one's own."""
FLAT_REQUEST_S = 60.0
_GZIP_MAGIC = b"\x1f\x8b"


class TraceError(ValueError):
    """A file that is no trace: which line, what is wrong there, and what to do."""


def read_trace(
    path: str | Path,
    *,
    endpoint_column: str | None = None,
    prefill: float = PREFILL_TOKENS_PER_S,
    decode: float = DECODE_TOKENS_PER_S,
    request_s: float = FLAT_REQUEST_S,
) -> Trace:
    """Read a table in one of the layouts above.

    Times are seconds since the begin, or since 1970 (also in milliseconds), or ISO 8601 (without a zone:
    UTC); the latter two then count from the first midnight (UTC) at or before the first request, so that
    days are calendar days. Rows may come in any order. ``endpoint_column`` names the column whose values
    are endpoints; without it that is ``endpoint`` when there is one, else all is one endpoint.

    Tokens last ``ContextTokens / prefill + GeneratedTokens / decode`` seconds. GPUs in use become requests
    of ``request_s`` that come evenly, so that as many run at once as GPUs were in use.

    Raises `TraceError`.
    """
    path = Path(path)
    with _table(path) as rows:
        header = [name.strip().lower() for name in next(rows, (1, []))[1]]
        if GPUS_COLUMN in header:
            if request_s <= 0:
                raise TraceError(f"request_s is {request_s}: it must be above 0")
            return _flat(path, header, rows, request_s)
        return _requests(path, header, rows, endpoint_column, _duration(path, header, prefill, decode))


def between(trace: Trace, from_day: float | None = None, to_day: float | None = None) -> Trace:
    """The requests that arrive from the begin of ``from_day`` until before the begin of ``to_day``.

    Days count from 0; times are then seconds from the begin of ``from_day``. None: from the
    trace's begin, to its end. Raises `TraceError` when no request is left.
    """
    begin = 0.0 if from_day is None else from_day * DAY_S
    end = math.inf if to_day is None else to_day * DAY_S
    chosen = slice(*np.searchsorted(trace.arrivals, (begin, end)))
    if chosen.start >= chosen.stop:
        until = "" if to_day is None else f" and before day {to_day:g}"
        raise TraceError(
            f"{trace.name}: no request from day {begin / DAY_S:g} on{until}; "
            f"it has {len(trace.arrivals)} in {trace.end / DAY_S:.2f} days"
        )
    return Trace(
        trace.name,
        trace.arrivals[chosen] - begin,
        trace.durations[chosen],
        trace.endpoints[chosen],
        trace.names,
    )


def assemble(name: str, times: list[float], durations: list[float], endpoints: list[str]) -> Trace:
    """A trace of these requests, in any order; ``endpoints`` per request, or empty: there is one."""
    arrivals = np.asarray(times, dtype=np.float64)
    if len(arrivals) and arrivals.min() >= EPOCH_FROM_S:
        arrivals -= arrivals.min() // DAY_S * DAY_S
    order = np.argsort(arrivals, kind="stable")
    if endpoints:
        names, index = np.unique(np.asarray(endpoints), return_inverse=True)
    else:
        names, index = np.asarray(["endpoint"]), np.zeros(len(arrivals), np.int32)
    return Trace(
        name,
        arrivals[order],
        np.asarray(durations, dtype=np.float64)[order],
        index.astype(np.int32)[order],
        tuple(str(each) for each in names),
    )


Rows = Iterator[tuple[int, list[str]]]


@contextmanager
def _table(path: Path) -> Iterator[Rows]:
    """Rows with the numbers of their lines; what is wrong with the file as a whole is a `TraceError`."""
    try:
        with path.open("rb") as raw:
            packed = raw.read(len(_GZIP_MAGIC)) == _GZIP_MAGIC
        with (
            gzip.open(path, "rt", encoding="utf-8-sig", newline="")
            if packed
            else path.open(encoding="utf-8-sig", newline="")
        ) as file:
            yield _lines(file)
    except UnicodeDecodeError as error:
        raise TraceError(f"{path}: is not text in UTF-8 ({error.reason}): save it as CSV in UTF-8") from error
    except csv.Error as error:
        raise TraceError(f"{path}: is not a CSV file: {error}") from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise TraceError(f"{path}: the gzip file is damaged or cut off ({error}): copy it again") from error
    except OSError as error:
        raise TraceError(f"{path}: cannot be read: {error.strerror or error}") from error


def _lines(file: TextIO) -> Rows:
    reader = csv.reader(file)
    for row in reader:
        if row:
            yield reader.line_num, row


def _column(path: Path, header: list[str], names: tuple[str, ...]) -> int:
    for name in names:
        if name in header:
            return header.index(name)
    raise TraceError(
        f"{path}:1: the header line has no column {' or '.join(names)}; it says {','.join(header)!r}. "
        f"The first line must name the columns, such as: time,duration,endpoint"
    )


Duration = Callable[[int, list[str]], float]


def _duration(path: Path, header: list[str], prefill: float, decode: float) -> Duration:
    if CONTEXT_COLUMN in header and GENERATED_COLUMN in header:
        context, generated = header.index(CONTEXT_COLUMN), header.index(GENERATED_COLUMN)
        if prefill <= 0 or decode <= 0:
            raise TraceError(f"tokens per second are {prefill} and {decode}: both must be above 0")
        return lambda line, row: (
            _number(path, line, row, context, "ContextTokens") / prefill
            + _number(path, line, row, generated, "GeneratedTokens") / decode
        )
    column = _column(path, header, DURATION_COLUMNS)
    return lambda line, row: _number(path, line, row, column, header[column])


def _requests(
    path: Path, header: list[str], rows: Rows, endpoint_column: str | None, duration: Duration
) -> Trace:
    time = _column(path, header, TIME_COLUMNS)
    endpoint = None
    if endpoint_column is not None:
        endpoint = _column(path, header, (endpoint_column.lower(),))
    elif ENDPOINT_COLUMN in header:
        endpoint = header.index(ENDPOINT_COLUMN)
    times: list[float] = []
    durations: list[float] = []
    endpoints: list[str] = []
    epoch: tuple[bool, int] | None = None
    for line, row in rows:
        moment = _moment(path, line, row, time)
        if epoch is None:
            epoch = moment >= EPOCH_FROM_S, line
        elif epoch[0] != (moment >= EPOCH_FROM_S):
            raise TraceError(
                f"{path}:{line}: {row[time]!r} and the time in line {epoch[1]} are not on one clock: "
                "one is a date, the other seconds from the begin; use one of them throughout"
            )
        times.append(moment)
        durations.append(duration(line, row))
        if endpoint is not None:
            endpoints.append(_cell(path, line, row, endpoint, header[endpoint]))
        if len(times) > MAX_REQUESTS:
            raise TraceError(f"{path}:{line}: more than {MAX_REQUESTS} requests: take a part of the file")
    if not times:
        raise TraceError(f"{path}: there is no request below the header line")
    return assemble(path.name, times, durations, endpoints)


def _flat(path: Path, header: list[str], rows: Rows, request_s: float) -> Trace:
    time, gpus = _column(path, header, TIME_COLUMNS), header.index(GPUS_COLUMN)
    steps = sorted(
        (_moment(path, line, row, time), _number(path, line, row, gpus, GPUS_COLUMN)) for line, row in rows
    )
    if len(steps) < 2:
        raise TraceError(f"{path}: a series of GPUs needs two lines or more below the header")
    times: Floats = np.asarray([each[0] for each in steps])
    # The last value holds as long as the one before it.
    times = np.append(times, 2 * times[-1] - times[-2])
    times -= times[0]
    served = np.concatenate([[0.0], np.cumsum(np.diff(times) * [each[1] for each in steps]) / request_s])
    count = int(served[-1] + 0.5)
    if count > MAX_REQUESTS:
        raise TraceError(f"{path}: that makes {count} requests: take longer ones (request_s)")
    arrivals = np.interp(np.arange(count) + 0.5, served, times)
    return Trace(path.name, arrivals, np.full(count, request_s), np.zeros(count, np.int32))


def _cell(path: Path, line: int, row: list[str], column: int, name: str) -> str:
    if column >= len(row):
        raise TraceError(f"{path}:{line}: has {len(row)} columns, and {name} is column {column + 1}")
    return row[column].strip()


def _number(path: Path, line: int, row: list[str], column: int, name: str) -> float:
    text = _cell(path, line, row, column, name)
    try:
        value = float(text)
    except ValueError:
        raise TraceError(f"{path}:{line}: {name} is {text!r}, which is not a number") from None
    if not 0 <= value < math.inf:
        raise TraceError(f"{path}:{line}: {name} is {text!r}: it must be 0 or more, and finite")
    return value


def _moment(path: Path, line: int, row: list[str], column: int) -> float:
    """Seconds: since the begin, or (from `EPOCH_FROM_S` on) since 1970."""
    text = _cell(path, line, row, column, "the time")
    try:
        value = float(text)
    except ValueError:
        try:
            parsed = datetime.fromisoformat(text)
        except ValueError:
            raise TraceError(
                f"{path}:{line}: the time is {text!r}: write seconds (12.5), seconds since 1970, or a date "
                "such as 2026-01-31T13:45:00Z"
            ) from None
        # A date without a zone means UTC: the machine's own zone would give other days elsewhere.
        value = (parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)).timestamp()
        if value < EPOCH_FROM_S:
            raise TraceError(f"{path}:{line}: {text!r} is before 1974: correct its year") from None
    if not 0 <= value < math.inf:
        raise TraceError(f"{path}:{line}: the time is {text!r}: it must be 0 or more, and finite")
    return value / 1000 if value >= EPOCH_MS_FROM else value
