"""What a sandbox prints, read line by line from its pipes; one that prints too much is slowed down."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable

from headrace_runtimes.instance.mask import Mask

MAX_LINE = 16 << 10
READ_BYTES = 64 << 10
BURST_BYTES = 256 << 10
PAUSE_S = 0.05
"""`BURST_BYTES` are read at most per `PAUSE_S`; meanwhile the pipe is full and the writer waits."""

OnLines = Callable[[list[str]], None]


class LinePipe:
    """Our end of a pipe on the running loop. ``on_lines`` gets complete lines (a long one in pieces)."""

    def __init__(self, fd: int, on_lines: OnLines) -> None:
        os.set_blocking(fd, False)
        self._fd = fd
        self._on_lines = on_lines
        self._loop = asyncio.get_running_loop()
        self._rest = b""
        self.mask = Mask()
        """Of values that no cut of a long line may have in two."""
        self._spent = 0
        self._since = self._loop.time()
        self._resume: asyncio.TimerHandle | None = None
        self.closed = False
        self._loop.add_reader(fd, self._readable)

    def close(self, drain_bytes: int = 1 << 20) -> None:
        """Read what is there (at most ``drain_bytes``), give out the unfinished line, and close."""
        while not self.closed and drain_bytes > 0:
            read = self._read()
            if read == 0:
                break
            drain_bytes -= read
        self._shut()

    def _readable(self) -> None:
        self._spent += self._read()
        if self.closed:
            return
        now = self._loop.time()
        if now - self._since > PAUSE_S:
            self._since, self._spent = now, 0
        elif self._spent >= BURST_BYTES:
            self._loop.remove_reader(self._fd)
            self._resume = self._loop.call_later(PAUSE_S, self._go_on)

    def _go_on(self) -> None:
        self._resume = None
        self._since, self._spent = self._loop.time(), 0
        self._loop.add_reader(self._fd, self._readable)

    def _read(self) -> int:
        """Bytes read now; 0 when there is nothing, and at the end, when everything is closed."""
        try:
            data = os.read(self._fd, READ_BYTES)
        except (BlockingIOError, InterruptedError):
            return 0
        except OSError:
            data = b""
        if not data:
            self._shut()
            return 0
        read = self._rest + data
        if len(read) > MAX_LINE:
            read = self.mask.data(read)
        lines, self._rest = split_lines(read, self.mask.longest)
        if lines:
            self._on_lines(lines)
        return len(data)

    def _shut(self) -> None:
        if self.closed:
            return
        self.closed = True
        if self._resume:
            self._resume.cancel()
        self._loop.remove_reader(self._fd)
        os.close(self._fd)
        if self._rest:
            self._on_lines(_pieces(self.mask.data(self._rest)))
            self._rest = b""


def split_lines(data: bytes, back: int = 0) -> tuple[list[str], bytes]:
    """Complete lines and the unfinished rest, which is always shorter than `MAX_LINE` and ``back``.

    Of an unfinished line, nothing of its last ``back`` bytes is given out: more of a value may follow.
    """
    *complete, rest = data.split(b"\n")
    lines = [piece for line in complete for piece in _pieces(line)]
    while len(rest) >= MAX_LINE + back:
        lines.append(_text(rest[:MAX_LINE]))
        rest = rest[MAX_LINE:]
    return lines, rest


def _pieces(line: bytes) -> list[str]:
    if len(line) <= MAX_LINE:
        return [_text(line)]
    return [_text(line[at : at + MAX_LINE]) for at in range(0, len(line), MAX_LINE)]


def _text(line: bytes) -> str:
    return line.decode("utf-8", "replace").rstrip("\r")
