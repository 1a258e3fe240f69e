"""Plays many scenarios against many policies on a few processes, and prints what they gave as tables."""

from __future__ import annotations

import multiprocessing
import signal
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import FrameType
from typing import Any

from headrace_autoscaler.simulate.scenario import Result, Scenario
from headrace_autoscaler.simulate.sweep import Variant, play

from benchmarks._figures import of_run, over_seeds

CASE_LIMIT_S = 300
"""One run that takes longer is given up: a policy that asks to be looked at all the time would never end."""


@dataclass(frozen=True)
class Case:
    """One setting of one policy in one scenario, to be played with each seed."""

    scenario: str
    """Its name in what `replay` is given; ``{seed}`` in it is filled in."""
    label: str
    """What the table calls it."""
    variant: Variant


@dataclass(frozen=True)
class _Job:
    case: int
    scenario: str
    variant: Variant
    seed: int


_SCENARIOS: dict[str, Scenario] = {}
"""Filled before the processes are forked, so that traces are read and kept once."""


def replay(
    scenarios: Mapping[str, Scenario], cases: Sequence[Case], seeds: int, processes: int, about: str
) -> dict[tuple[str, str], dict[str, Any]]:
    """(scenario, label) to the means over the seeds. Progress goes to stderr; Ctrl-C ends it at once.

    A case that failed is left out of the answer, with the reason on stderr.
    """
    _SCENARIOS.clear()
    _SCENARIOS.update(scenarios)
    jobs = [
        _Job(number, case.scenario.format(seed=seed), case.variant, seed)
        for seed in range(seeds)
        for number, case in enumerate(cases)
    ]
    runs: dict[int, list[dict[str, float]]] = {}
    wrong: dict[int, str] = {}
    began = time.monotonic()
    with multiprocessing.get_context("fork").Pool(min(processes, len(jobs)), _alone) as pool:
        for done, (number, figures, error) in enumerate(pool.imap_unordered(_played, jobs), 1):
            if error:
                wrong[number] = error
            else:
                runs.setdefault(number, []).append(figures)
            _progress(about, done, len(jobs), time.monotonic() - began)
    for number, error in wrong.items():
        print(f"{about}: {cases[number].label} gave nothing: {error}", file=sys.stderr)
    return {
        (cases[number].scenario, cases[number].label): over_seeds(found)
        for number, found in sorted(runs.items())
        if number not in wrong
    }


def _progress(about: str, done: int, count: int, took: float) -> None:
    """One line that is written over on a terminal; elsewhere a line for each tenth."""
    live = sys.stderr.isatty()
    if not live and done * 10 // count == (done - 1) * 10 // count:
        return
    left = took / done * (count - done)
    said = f"{about}: {done} of {count} runs, {took:.0f} s, some {left:.0f} s to go   "
    end = "" if live and done < count else "\n"
    print(f"{chr(13) if live else ''}{said}", end=end, file=sys.stderr, flush=True)


def once(scenario: Scenario, variant: Variant, seed: int) -> Result:
    """One run in this process, with the seconds that it took."""
    began = time.perf_counter()
    result = play(scenario, variant, seed)
    return replace(result, seconds=time.perf_counter() - began)


def _alone() -> None:
    """Ctrl-C is the parent's to handle: it ends the others."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _played(job: _Job) -> tuple[int, dict[str, float], str]:
    def late(_number: int, _frame: FrameType | None) -> None:
        raise TimeoutError(f"given up after {CASE_LIMIT_S} s")

    signal.signal(signal.SIGALRM, late)
    signal.alarm(CASE_LIMIT_S)
    try:
        return job.case, of_run(once(_SCENARIOS[job.scenario], job.variant, job.seed)), ""
    # One policy's mistake must not end the others' runs.
    except Exception as error:
        return job.case, {}, f"{type(error).__name__}: {error}"
    finally:
        signal.alarm(0)


def table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Columns of equal width, the first to the left, the others to the right."""
    lines = [list(header), *([_shown(cell) for cell in row] for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]

    def padded(line: Sequence[str]) -> str:
        cells = (c.rjust(w) if n else c.ljust(w) for n, (c, w) in enumerate(zip(line, widths, strict=True)))
        return "  ".join(cells).rstrip()

    return "\n".join([padded(lines[0]), "  ".join("-" * width for width in widths), *map(padded, lines[1:])])


def _shown(cell: Any) -> str:
    if cell is None:
        return "-"
    return f"{cell:.3f}" if isinstance(cell, float) else str(cell)


def percent(share: float | None, digits: int = 2) -> str:
    """A share as per cent, never rounded up to all; unknown is a dash."""
    if share is None:
        return "-"
    shown = f"{100 * share:.{digits}f}"
    if share < 1 and float(shown) >= 100:
        shown = f"{100 - 10**-digits:.{digits}f}"
    return f"{shown} %"
