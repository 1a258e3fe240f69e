"""Tells plainly why something ended, and how long to wait before it is started again."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from signal import Signals

from headrace_runtimes.spec import Exit

RESTART_FIRST_S = 0.1
RESTART_MAX_S = 30.0
TAIL_LINES = 20
TAIL_LINE = 300
"""Characters."""


def restart_delay(failures: int) -> float:
    """Seconds before a zygote that ended ``failures`` times in a row is started again."""
    return min(RESTART_FIRST_S * 2.0 ** min(max(failures - 1, 0), 20), RESTART_MAX_S)


def size(count: int) -> str:
    """Bytes for people: ``512 MiB``."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if count == int(count) else f"{count:.1f} {unit}"
        count = count / 1024  # type: ignore[assignment]
    return f"{count:.4g} GiB"


class Tail:
    """The last lines that somebody printed, bounded."""

    def __init__(self) -> None:
        self._lines: deque[str] = deque(maxlen=TAIL_LINES)

    def add(self, lines: Sequence[str]) -> None:
        """More of them."""
        self._lines.extend(line[:TAIL_LINE] for line in lines[-TAIL_LINES:])

    def lines(self) -> tuple[str, ...]:
        """Oldest first."""
        return tuple(self._lines)


def explain(
    code: int | None, signal: int | None, *, stopping: bool = False, limit: int | None = None, note: str = ""
) -> Exit:
    """Why a process ended, told plainly. ``limit``: the memory limit that it was killed for."""
    if signal is not None:
        try:
            how = f"killed by {Signals(signal).name}"
        except ValueError:
            how = f"killed by signal {signal}"
    else:
        how = f"exit code {code}" if code is not None else "ended"
    detail = f"{how}: {note}" if note else how
    if limit is not None:
        return Exit("oom", f"OOM-killed at {size(limit)}", code=code, signal=signal)
    if stopping:
        return Exit("stopped", "" if code == 0 and not note else detail, code=code, signal=signal)
    return Exit("exited" if signal is None else "signalled", detail, code=code, signal=signal)
