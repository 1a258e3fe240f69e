"""What a command prints: its answer on stdout (text or one JSON document), everything else on stderr."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import click


class Output:
    """Where a command's answer and progress go. ``as_json``: one JSON document instead of text."""

    def __init__(self, as_json: bool) -> None:
        self.as_json = as_json

    def answer(self, document: Any, text: Callable[[], str] | str) -> None:
        """Print the answer: ``document`` as JSON, or ``text`` for people (a function is called only then)."""
        if self.as_json:
            click.echo(json.dumps(document, indent=2, ensure_ascii=False, default=str))
            return
        shown = text if isinstance(text, str) else text()
        if shown:
            click.echo(shown)

    def note(self, text: str) -> None:
        """One line for people, on stderr."""
        click.echo(text, err=True)

    @contextmanager
    def progress(self, doing: str) -> Iterator[Callable[[str], None]]:
        """Show that ``doing`` goes on; the function given back changes the words.

        On a terminal a spinner with the seconds so far; otherwise one line per change, after the first second
        (a short command stays silent).
        """
        if sys.stderr.isatty():
            with _spinner(doing) as change:
                yield change
            return
        started = time.monotonic()

        def change_line(words: str) -> None:
            if time.monotonic() - started > 1.0:
                click.echo(f"{words} ({time.monotonic() - started:.0f} s)", err=True)

        yield change_line


@contextmanager
def _spinner(doing: str) -> Iterator[Callable[[str], None]]:
    # Rich takes 60 ms to import, which a command that is not watched need not pay.
    from rich.console import Console  # noqa: PLC0415
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn  # noqa: PLC0415

    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(doing, total=None)
        yield lambda words: bar.update(task, description=words)


def table(columns: Sequence[str], rows: Sequence[Sequence[Any]], empty: str) -> str:
    """Aligned columns without borders, never cut, so that they can be piped; ``empty`` without a row."""
    if not rows:
        return empty
    cells = [
        [str(column) for column in columns],
        *[["-" if c is None else str(c) for c in row] for row in rows],
    ]
    widths = [max(len(row[i]) for row in cells) for i in range(len(columns))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in cells
    ]
    return "\n".join(lines)


def facts(pairs: Mapping[str, Any]) -> str:
    """``name  value`` lines, aligned; what is None or empty is left out."""
    shown = {name: value for name, value in pairs.items() if value not in (None, "", [], {})}
    width = max((len(name) for name in shown), default=0)
    return "\n".join(f"{name.ljust(width)}  {value}" for name, value in shown.items())


def size(count: float | None) -> str:
    """Bytes for people."""
    if count is None:
        return "-"
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(value) < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def moment(at: float | None) -> str:
    """Seconds since the epoch as local date and time."""
    if not at:
        return "-"
    return datetime.fromtimestamp(at, UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def duration(seconds: float) -> str:
    """A duration for people: ``12.3 ms``, ``1.25 s``."""
    return f"{seconds * 1000:.1f} ms" if seconds < 1 else f"{seconds:.2f} s"
