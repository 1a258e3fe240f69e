"""The platform's own recorded history as a trace: what was observed at each look, turned into requests."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np

from headrace_autoscaler.simulate.scenario import Trace
from headrace_autoscaler.simulate.sketches import Memories, ended_between, typical
from headrace_autoscaler.simulate.traces import MAX_REQUESTS, TraceError, assemble
from headrace_autoscaler.states import ServiceState

PATTERN = "decisions*.jsonl"
DIRECTORY = "history"
LINES_S = 16.0
"""Control writes a line each 15 s while requests arrive, at its next look."""
QUIET_S = 1.0
"""Longer than the time between two looks of control."""
SHUFFLE_SEED = 0
"""In which order requests ended between two lines is not known: it is drawn, always alike."""


class Recorded(NamedTuple):
    """A trace from a history, and in words what of it was not seen but assumed."""

    trace: Trace
    notes: tuple[str, ...]


# Only what is needed of `spec.Record`: a history of millions of lines is read without the rest.
class _Endpoint(msgspec.Struct):
    endpoint: str
    in_flight: int = 0
    queued: int = 0
    arrived: int | None = None
    served: tuple[float, ...] = ()
    demand_s: float | None = None


class _Observation(msgspec.Struct):
    endpoints: tuple[_Endpoint, ...]


class _Line(msgspec.Struct):
    now: float
    observation: _Observation
    decision: dict[str, Any] = msgspec.field(default_factory=dict)
    state: Any = None
    after: Any = None


@dataclass
class _Seen:
    """One endpoint while its history is read."""

    at: float
    arrived: int | None
    here: int
    """Requests that were in flight or queued when arrivals were counted last,"""
    sketch: ServiceState | None
    """and what was known of how long they take; None: it can't be told."""
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(SHUFFLE_SEED))
    times: list[float] = field(default_factory=list)
    served: list[float] = field(default_factory=list)
    sketched: bool = False
    """Whether some of those are from sketches."""
    demand_s: float | None = None
    """The counter of request-seconds, as last seen."""
    present_s: float = 0.0
    """Request-seconds since the first look, of service and of waiting."""


_decoder = msgspec.json.Decoder(_Line)


def read_history(path: str | Path, endpoint: str | None = None) -> Recorded:
    """Requests of the recorded history in ``path``: a data directory, its ``history``, or one file.

    ``endpoint``: only this one (``project/name``, or the name when one project has it); None: all.

    A history says how many requests had arrived at each look, not when each did. So arrivals since the
    line before are spread evenly up to this one (a look that a request caused is at that request); since
    there is a line at least each `LINES_S` while requests arrive, after a longer pause they are taken to
    have come within the last `QUIET_S`.

    How long requests ran is what the sketches in two lines differ by (`sketches`): of all that ended between
    them, in an order that is drawn. Where lines have no sketch, only the services are seen that ended in the
    looks that were recorded. The requests last, in their order, as long as the services that were seen did
    in theirs, each standing for equally many. When none was seen to end: as long as those that the sketch
    knows from before, else as long as they were there on average (by the counter of demand), with waiting.
    Where the recorder's clock starts again, the time between is not known and left out. The notes say
    how often that was so.

    Raises `TraceError` when there is no history, a line is none, or none of it has the counters.
    """
    files = _files(Path(path))
    seen: dict[str, _Seen] = {}
    restarts = 0
    offset, last = 0.0, None
    for line, sketches in _lines(files):
        if last is not None and line.now + offset < last:
            offset = last - line.now
            restarts += 1
        last = line.now + offset
        for each in line.observation.endpoints:
            _look(seen, last, each, sketches[each.endpoint])
    chosen = _choose(seen, endpoint, files[0].parent)
    return _trace(chosen, restarts, files[0].parent)


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    directory = path / DIRECTORY if (path / DIRECTORY).is_dir() else path
    # decisions.2.jsonl is older than decisions.1.jsonl, and that than decisions.jsonl.
    found = sorted(directory.glob(PATTERN), key=_age, reverse=True)
    if not found:
        raise TraceError(
            f"{path}: there is no recorded history ({DIRECTORY}/{PATTERN}): name a data directory"
        )
    return found


def _age(path: Path) -> int:
    middle = path.name.removeprefix("decisions.").removesuffix(".jsonl")
    return int(middle) if middle.isdecimal() else 0


def _lines(files: list[Path]) -> Iterator[tuple[_Line, dict[str, ServiceState | None]]]:
    """Each with the sketches of the endpoints that it is about."""
    for path in files:
        memories = Memories()
        try:
            with path.open("rb") as file:
                for number, text in enumerate(file, start=1):
                    if not text.strip():
                        continue
                    try:
                        line = _decoder.decode(text)
                    except msgspec.DecodeError as error:
                        # The recorder was stopped, or is writing just now.
                        if not text.endswith(b"\n"):
                            break
                        raise TraceError(
                            f"{path}:{number}: is no record of a decision ({error}): remove that line"
                        ) from error
                    names = [each.endpoint for each in line.observation.endpoints]
                    yield line, memories.of(names, line.state, line.after, line.decision)
        except OSError as error:
            raise TraceError(f"{path}: cannot be read: {error.strerror or error}") from error


def _look(seen: dict[str, _Seen], now: float, each: _Endpoint, sketch: ServiceState | None) -> None:
    here = each.in_flight + each.queued
    known = seen.get(each.endpoint)
    if known is None:
        # What arrived before the first look, and what ended before it, is not known in time.
        seen[each.endpoint] = _Seen(now, each.arrived, here, sketch, demand_s=each.demand_s)
        return
    if each.demand_s is not None:
        # One that is less than before began again at 0.
        before = known.demand_s if known.demand_s is not None else each.demand_s
        known.present_s += each.demand_s - (before if each.demand_s >= before else 0.0)
        known.demand_s = each.demand_s
    if sketch is None or known.sketch is None or not sketch.total:
        known.served.extend(each.served)
    if each.arrived is None:
        return
    if known.arrived is not None:
        # A counter that is less than before began again at 0.
        again = each.arrived < known.arrived
        came = each.arrived if again else each.arrived - known.arrived
        ended = came + (0 if again else known.here) - here
        if max(len(known.times) + came, ended) > MAX_REQUESTS:
            raise TraceError(f"{each.endpoint}: more than {MAX_REQUESTS} requests: take fewer files")
        gap = now - known.at
        step = (gap if gap <= LINES_S else QUIET_S) / came if came else 0.0
        known.times.extend(now - step * back for back in range(came - 1, -1, -1))
        if sketch is not None and known.sketch is not None:
            found = known.rng.permutation(ended_between(known.sketch, sketch, ended))
            known.served.extend(found.tolist())
            known.sketched = known.sketched or bool(len(found))
    known.at, known.arrived, known.here, known.sketch = now, each.arrived, here, sketch


def _choose(seen: dict[str, _Seen], endpoint: str | None, directory: Path) -> dict[str, _Seen]:
    if endpoint is None:
        return seen
    found = {name: each for name, each in seen.items() if endpoint in (name, name.rpartition("/")[2])}
    if len(found) != 1:
        what = "is in no record" if not found else "is in several projects"
        raise TraceError(
            f"{directory}: {endpoint} {what}; there are {', '.join(sorted(found or seen)) or 'none'}"
        )
    return found


def _trace(chosen: dict[str, _Seen], restarts: int, directory: Path) -> Recorded:
    if chosen and all(each.arrived is None for each in chosen.values()):
        raise TraceError(
            f"{directory}: its records have no counter of arrivals: they are from an older version; "
            "record again with this one"
        )
    times: list[float] = []
    durations: list[float] = []
    names: list[str] = []
    averaged: list[str] = []
    seen = 0
    for name, each in sorted(chosen.items()):
        count = len(each.times)
        seen += min(count, len(each.served))
        if count and not each.served and each.sketch is not None and each.sketch.total:
            each.served += each.rng.permutation(typical(each.sketch, count)).tolist()
            averaged.append(f"of {name} no service was seen to end: they take as long as those before")
        elif count and not each.served:
            if not each.present_s:
                raise TraceError(
                    f"{directory}: of {name} {count} requests arrived and none was seen to end: "
                    "record for longer"
                )
            mean = each.present_s / count
            each.served.append(mean)
            averaged.append(f"of {name} no service was seen to end: {mean:.3g} s each, waiting included")
        times += each.times
        durations += [each.served[int((i + 0.5) * len(each.served) / count)] for i in range(count)]
        names += [name] * count
    if not times:
        raise TraceError(f"{directory}: no request arrived in what was recorded")
    notes = ["arrivals are spread evenly between the lines of the history"]
    if any(each.sketched for each in chosen.values()):
        notes.append("service times are those of the autoscaler's sketch, each right to 10 %")
    notes += averaged
    if 0 < seen < len(times):
        notes.append(f"{seen} services were seen to end, and stand for those of {len(times)} requests")
    if restarts:
        notes.append(f"the clock began again {restarts} times; the time between is left out")
    return Recorded(assemble("history", _based(times), durations, names), tuple(notes))


def _based(times: list[float]) -> list[float]:
    """From the first request on: the clock of a recording has no days."""
    first = min(times)
    return [each - first for each in times]
