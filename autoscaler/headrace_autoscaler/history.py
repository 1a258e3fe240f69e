"""Records as lines of a file, each with what is not in the lines before: written by control, read for replay.

A line is a JSON object with ``now``, ``observation`` (without its hosts), ``decision`` (without its
state), and four `deltas`: ``configured`` and ``hosts`` to those of the line before, ``state`` to what the
last line of the same lane gave back, and ``after`` from that to what this decision gives back. What nothing
comes before is written in full, so a file can be read from its first line on. A whole `Record` as a line
is understood, too.

The configuration has its defaults written out: with other defaults, those of a later version, a replay
decides by what was in force.

Floats are kept exactly: JSON has the shortest text that reads back as the same number. There is no text for
infinities and for what is not a number; states must hold None instead.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import msgspec

from headrace_autoscaler.deltas import ITEMS, SAME, apply, delta
from headrace_autoscaler.spec import Config, HostObservation, Record, State

MAX_LANES = 4096
"""Lanes whose last state is remembered while writing; beyond that all are forgotten, and written in full."""


class Writer:
    """Makes the lines of one file, in their order."""

    def __init__(self) -> None:
        self._hosts: tuple[HostObservation, ...] | None = None
        self._config: Config | None = None
        self._given: dict[str, State] = {}
        self._encoder = msgspec.json.Encoder()

    def reset(self) -> None:
        """A new file begins, or the last lines were not written: what comes needs no line before it."""
        self._hosts = self._config = None
        self._given.clear()

    def line(self, record: Record) -> bytes:
        """The record, with a newline."""
        lane, seen = record.lane, record.observation
        hosts = _of_hosts(self._hosts, seen.hosts)
        self._hosts = seen.hosts
        configured = [SAME] if record.config == self._config else [SAME, _in_full(record.config)]
        self._config = record.config
        before = self._given.get(lane)
        if len(self._given) >= MAX_LANES:
            self._given.clear()
        self._given[lane] = record.decision.state
        shown = msgspec.to_builtins(record, str_keys=True)
        state, after = shown.pop("state"), shown["decision"].pop("state")
        shown["observation"].pop("hosts")
        shown.pop("config")
        was = (
            None
            if before is None
            else state
            if before == record.state
            else msgspec.to_builtins(before, str_keys=True)
        )
        line = {
            "configured": configured,
            "hosts": hosts,
            "state": delta(was, state),
            "after": delta(state, after),
        }
        return self._encoder.encode(shown | line) + b"\n"


class Reader:
    """Gives the records of one file, from its first line on."""

    def __init__(self) -> None:
        self._hosts: Any = None
        self._config: Any = None
        self._given: dict[str, Any] = {}

    def record(self, line: bytes | str) -> Record:
        """The record of the next line.

        Raises ``msgspec.DecodeError`` for a line that is none, or needs one before it that is not there.
        """
        shown = msgspec.json.decode(line)
        if isinstance(shown, dict) and "after" in shown:
            try:
                shown = self._whole(shown)
            except (ValueError, LookupError, TypeError, AttributeError) as error:
                raise msgspec.DecodeError(
                    f"the line is none, or needs one before it that is not there ({error}): "
                    "read the file from its beginning"
                ) from error
        record = msgspec.convert(shown, Record, str_keys=True)
        self._hosts, self._config = shown["observation"]["hosts"], shown["config"]
        self._given[record.lane] = shown["decision"]["state"]
        return record

    def _whole(self, shown: dict[str, Any]) -> dict[str, Any]:
        endpoints = shown["observation"]["endpoints"]
        lane = endpoints[0]["endpoint"] if endpoints else ""
        hosts = apply(self._hosts, shown.pop("hosts"))
        state = apply(self._given.get(lane), shown.pop("state"))
        after = apply(state, shown.pop("after"))
        observation = shown["observation"] | {"hosts": hosts}
        config = apply(self._config, shown.pop("configured"))
        return shown | {
            "config": config,
            "observation": observation,
            "state": state,
            "decision": shown["decision"] | {"state": after},
        }


def read(lines: Iterable[bytes | str]) -> Iterator[tuple[int, Record]]:
    """The records of a file with the numbers of their lines, from 1. Empty lines count, and are no records.

    Raises ``msgspec.DecodeError`` that names the line.
    """
    reader = Reader()
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                yield number, reader.record(line)
            except msgspec.DecodeError as error:
                raise msgspec.DecodeError(f"line {number}: {error}") from error


def _in_full(value: Any) -> Any:
    """As JSON, with what is at its default."""
    if isinstance(value, msgspec.Struct):
        return {name: _in_full(getattr(value, name)) for name in value.__struct_fields__}
    return msgspec.to_builtins(value, str_keys=True)


def _of_hosts(old: tuple[HostObservation, ...] | None, new: tuple[HostObservation, ...]) -> list[Any]:
    """As `delta`, but fast for many hosts of which few have changed."""
    if old is None or len(old) != len(new):
        return [SAME, msgspec.to_builtins(new, str_keys=True)]
    pairs = enumerate(zip(old, new, strict=True))
    changed = {
        str(at): [SAME, msgspec.to_builtins(now, str_keys=True)] for at, (was, now) in pairs if was != now
    }
    return [ITEMS, changed] if changed else [SAME]
