"""Decide again what was decided: a recorded history must give the same decisions.

    python -m headrace_autoscaler.replay FILE...

prints how many lines were decided again and each one that differs; exit status 1 when one does, 2 when a file
cannot be read.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from headrace_autoscaler.history import read
from headrace_autoscaler.policy import decide
from headrace_autoscaler.spec import Action, Decision

SAME, DIFFERENT, UNREADABLE = 0, 1, 2
"""Exit statuses."""


@dataclass(frozen=True)
class Mismatch:
    """Line ``line`` (from 1) of the history, what it says, and what `decide` says now."""

    line: int
    recorded: Decision
    decided: Decision


@dataclass(frozen=True)
class Replayed:
    """``lines`` were decided again, and these differ."""

    lines: int
    mismatches: list[Mismatch]


def replay_lines(lines: Iterable[bytes | str]) -> Replayed:
    """Decide each line again, each from the state that was recorded (not from what is decided now).

    Raises ``msgspec.DecodeError`` for a line that is not a record, or that needs a line before which is not
    there.
    """
    found: list[Mismatch] = []
    count = 0
    for number, record in read(lines):
        count += 1
        again = decide(record.now, record.observation, record.state, record.config)
        if again != record.decision:
            found.append(Mismatch(number, record.decision, again))
    return Replayed(count, found)


def replay(lines: Iterable[bytes | str]) -> list[Mismatch]:
    """The lines that differ. Raises as `replay_lines`."""
    return replay_lines(lines).mismatches


def replay_file(path: Path) -> list[Mismatch]:
    """`replay` of a file of JSON lines. Raises ``OSError`` when it cannot be read."""
    with path.open("rb") as file:
        return replay(file)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; gives its exit status."""
    parser = argparse.ArgumentParser(prog="python -m headrace_autoscaler.replay", description=__doc__)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="such as history/decisions.jsonl")
    status = SAME
    for path in parser.parse_args(arguments).files:
        try:
            with path.open("rb") as file:
                done = replay_lines(file)
        except (OSError, msgspec.DecodeError) as error:
            print(f"{path}: {error}", file=sys.stderr)
            return UNREADABLE
        print(f"{path}: {done.lines} decisions, {len(done.mismatches)} of them different now")
        for one in done.mismatches:
            print(f"  line {one.line}: {_shown(one.recorded)}\n    now: {_shown(one.decided)}")
            status = DIFFERENT
    return status


def _shown(decision: Decision) -> str:
    return "; ".join(map(_words, decision.actions)) or "nothing is done (its state may differ)"


def _words(action: Action) -> str:
    return f"{type(action).__name__.lower()}: {action.reason}"


if __name__ == "__main__":
    sys.exit(main())
