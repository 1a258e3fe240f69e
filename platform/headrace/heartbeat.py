"""Whether a child of the supervisor still does anything: it writes into a pipe, its silence is counted.

A process that was stopped (SIGSTOP, a debugger) or hangs keeps its listener, its locks and its clients for
ever, and only its end lets others take over. No network: with several gateways on one port the kernel picks
which one answers a question.
"""

from __future__ import annotations

import asyncio
import contextlib
import os

FD_VARIABLE = "HEADRACE_BEAT_FD"
BEAT_S = 1.0
TICK_S = 1.0
SILENT_TICKS = 10
"""So many ticks without a beat, and the process is beyond doubt."""
START_TICKS = 90
"""Until its first beat."""
_BUFFER = 65536


class Heartbeat:
    """The supervisor's end: one pipe for all processes that follow each other in a place."""

    def __init__(self) -> None:
        self._reader, self.fd = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)

    def close(self) -> None:
        """Close both ends."""
        for fd in (self._reader, self.fd):
            with contextlib.suppress(OSError):
                os.close(fd)

    async def silence(self) -> None:
        """Return when the process that was started just now is silent. Cancel it when that one has ended.

        Ticks of this loop are counted, no clock: whoever was stopped together with us is not silent.
        """
        self._heard()
        limit, silent = START_TICKS, 0
        while silent < limit:
            await asyncio.sleep(TICK_S)
            if self._heard():
                limit, silent = SILENT_TICKS, 0
            else:
                silent += 1

    def _heard(self) -> bool:
        try:
            return bool(os.read(self._reader, _BUFFER))
        except BlockingIOError:
            return False


def start_beating() -> None:
    """The child's end: beat for as long as this event loop runs, when a supervisor listens."""
    text = os.environ.get(FD_VARIABLE, "")
    if text.isdigit():
        os.set_inheritable(int(text), False)
        _beat(asyncio.get_running_loop(), int(text))


def _beat(loop: asyncio.AbstractEventLoop, fd: int) -> None:
    # Nobody reads (the supervisor is stopped): what is in the pipe says enough.
    with contextlib.suppress(OSError):
        os.write(fd, b".")
    loop.call_later(BEAT_S, _beat, loop, fd)
