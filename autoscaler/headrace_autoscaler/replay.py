"""Decide again what was decided: a recorded history must give the same decisions."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from headrace_autoscaler.policy import decide
from headrace_autoscaler.spec import Decision, Record

_decoder = msgspec.json.Decoder(Record)


@dataclass(frozen=True)
class Mismatch:
    """Line ``line`` (from 1) of the history, what it says, and what `decide` says now."""

    line: int
    recorded: Decision
    decided: Decision


def replay(lines: Iterable[bytes | str]) -> list[Mismatch]:
    """Decide each line again. Raises ``msgspec.DecodeError`` for a line that is not a record."""
    found: list[Mismatch] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        record = _decoder.decode(line)
        again = decide(record.now, record.observation, record.state, record.config)
        if again != record.decision:
            found.append(Mismatch(number, record.decision, again))
    return found


def replay_file(path: Path) -> list[Mismatch]:
    """`replay` of a file of JSON lines. Raises ``OSError`` when it cannot be read."""
    with path.open("rb") as file:
        return replay(file)
