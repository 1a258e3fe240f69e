"""The lines of every endpoint on this host: appended to bounded segment files, read by a cursor.

The cursor is the position in all that was ever written for the endpoint here: it only grows, also
over restarts, as each segment file is named by the position of its first byte. Old segments go.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal
from urllib.parse import quote, unquote

from headrace_runtimes.spec import LogLine

KEEP_SEGMENTS = 3
TOTAL_SEGMENTS = 128
"""Times the size of a segment: what all endpoints may keep together, those that write now aside."""
TRIM_EVERY_S = 30.0
READ_BYTES = 4 << 20
"""Read at most per page, so that a search for one sandbox's lines stays bounded."""
MIN_SEGMENT = 4 << 10

Stream = Literal["stdout", "stderr", "system"]
_CODES: dict[Stream, bytes] = {"stdout": b"out", "stderr": b"err", "system": b"sys"}
_STREAMS: dict[bytes, Stream] = {code: stream for stream, code in _CODES.items()}


def encode_line(at: float, stream: Stream, sandbox: str, text: str) -> bytes:
    """One record: a line that people can read too."""
    clean = text.replace("\n", "\\n")
    return b"%.6f\t%s\t%s\t%s\n" % (at, _CODES[stream], sandbox.encode(), clean.encode("utf-8", "replace"))


def decode_line(endpoint: str, record: bytes) -> LogLine | None:
    """The line of a record; None when it was cut by a crash."""
    parts = record.split(b"\t", 3)
    if len(parts) != 4 or parts[1] not in _STREAMS:
        return None
    try:
        at = float(parts[0])
    except ValueError:
        return None
    text = parts[3].decode("utf-8", "replace")
    return LogLine(at=at, sandbox=parts[2].decode(), endpoint=endpoint, stream=_STREAMS[parts[1]], text=text)


def read_page(
    endpoint: str,
    segments: Sequence[tuple[int, Path]],
    end: int,
    after: int,
    *,
    limit: int,
    sandbox: str | None,
) -> tuple[list[LogLine], int]:
    """Lines in ``[after, end)`` and the cursor behind them. Blocks; a segment that went is skipped."""
    lines: list[LogLine] = []
    budget = READ_BYTES
    cursor = max(after, segments[0][0]) if segments else end
    for index, (start, path) in enumerate(segments):
        stop = segments[index + 1][0] if index + 1 < len(segments) else end
        if stop <= cursor:
            continue
        cursor = max(cursor, start)
        try:
            with path.open("rb") as file:
                file.seek(cursor - start)
                data = file.read(min(stop - cursor, budget))
        except OSError:
            cursor = stop
            continue
        budget -= len(data)
        for record in data.split(b"\n")[:-1]:
            cursor += len(record) + 1
            line = decode_line(endpoint, record)
            if line and line.sandbox.startswith(sandbox or ""):
                lines.append(line)
                if len(lines) >= limit:
                    return lines, cursor
        if budget <= 0:
            break
    return lines, cursor


def too_much(files: Sequence[tuple[float, int, Path]], budget: int) -> list[Path]:
    """Which of (time of change, bytes, path) go, oldest first, so that the rest fits. Pure."""
    over = sum(size for _, size, _ in files) - budget
    going: list[Path] = []
    for _, size, path in sorted(files):
        if over <= 0:
            break
        going.append(path)
        over -= size
    return going


def trim(root: Path, keep: Callable[[str], bool], budget: int) -> None:
    """Remove the oldest segments of endpoints that are not to be kept at that moment. Blocks."""
    found: list[tuple[float, int, Path]] = []
    with contextlib.suppress(OSError):
        for folder in root.iterdir():
            if keep(unquote(folder.name)):
                continue
            with contextlib.suppress(OSError):
                for path in folder.iterdir():
                    seen = path.stat()
                    found.append((seen.st_mtime, seen.st_size, path))
    for path in too_much(found, budget):
        if not keep(unquote(path.parent.name)):
            with contextlib.suppress(OSError):
                path.unlink()


def _file_name(endpoint: str) -> str:
    """One directory name per endpoint, whatever the name."""
    return quote(endpoint, safe="").replace(".", "%2E") or "_"


@dataclass
class _Log:
    """One endpoint's files. ``fd`` is open while ``writers`` > 0."""

    path: Path
    segments: list[tuple[int, Path]] = field(default_factory=list)
    end: int = 0
    fd: int = -1
    writers: int = 0
    waiters: set[asyncio.Future[None]] = field(default_factory=set)


class LogStore:
    """Writes and reads the logs below ``root``; each endpoint keeps at most three ``segment_bytes``."""

    def __init__(self, root: Path, segment_bytes: int) -> None:
        self._root = root
        self._segment_bytes = max(segment_bytes, MIN_SEGMENT)
        self._logs: dict[str, _Log] = {}
        self._trimmed = 0.0
        self._trimming: asyncio.Task[None] | None = None

    def attach(self, endpoint: str) -> None:
        """Somebody is about to write; keep the file open until as many `detach`."""
        self._get(endpoint).writers += 1

    def detach(self, endpoint: str) -> None:
        """One writer less."""
        log = self._logs.get(endpoint)
        if log is None:
            return
        log.writers -= 1
        if log.writers <= 0:
            self._shut(log)
            if not log.waiters:
                del self._logs[endpoint]

    def write(self, endpoint: str, sandbox: str, stream: Stream, lines: Sequence[str]) -> None:
        """Append lines, stamped now. A full disk loses lines, never the platform."""
        now = time.time()
        data = b"".join(encode_line(now, stream, sandbox, line) for line in lines)
        log = self._get(endpoint)
        with contextlib.suppress(OSError):
            self._append(log, data)
        if log.writers <= 0:
            self._shut(log)
        for waiter in log.waiters:
            if not waiter.done():
                waiter.set_result(None)

    async def read(
        self, endpoint: str, sandbox: str | None, after: int, limit: int, wait_s: float
    ) -> tuple[list[LogLine], int]:
        """A page after the cursor; waits up to ``wait_s`` seconds for a first line."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + wait_s
        limit = max(1, limit)
        log = self._get(endpoint)
        # A cursor beyond the end is of logs that were removed: begin again instead of waiting for ever.
        cursor = after if 0 <= after <= log.end else 0
        try:
            while True:
                # Noted before reading, so that a line written meanwhile ends the wait.
                waiter: asyncio.Future[None] = loop.create_future()
                log.waiters.add(waiter)
                try:
                    end = log.end
                    page, reached = await asyncio.to_thread(
                        read_page,
                        endpoint,
                        tuple(log.segments),
                        end,
                        cursor,
                        limit=limit,
                        sandbox=sandbox,
                    )
                    # No step forward: the rest of the file is not there any more.
                    cursor = reached if page or reached > cursor else end
                    if page:
                        return page, cursor
                    if cursor < log.end:
                        continue  # nothing for this reader in what was read, but there is more
                    left = deadline - loop.time()
                    if left <= 0:
                        return page, cursor
                    await asyncio.wait([waiter], timeout=left)
                finally:
                    log.waiters.discard(waiter)
        finally:
            if log.writers <= 0 and not log.waiters and self._logs.get(endpoint) is log:
                del self._logs[endpoint]

    def close(self) -> None:
        """Close all files."""
        for log in self._logs.values():
            self._shut(log)
        self._logs.clear()

    def _trim_soon(self) -> None:
        """Disks are bounded also when endpoints come and go: what is oldest goes, off the loop."""
        busy = self._trimming is not None and not self._trimming.done()
        if busy or time.monotonic() - self._trimmed < TRIM_EVERY_S:
            return
        self._trimmed = time.monotonic()
        budget = self._segment_bytes * TOTAL_SEGMENTS
        work = asyncio.to_thread(trim, self._root, self._busy, budget)
        try:
            self._trimming = asyncio.get_running_loop().create_task(work)
        except RuntimeError:  # no loop runs: the last line at an end
            work.close()
        else:
            self._trimming.add_done_callback(self._forget)

    def _busy(self, endpoint: str) -> bool:
        log = self._logs.get(endpoint)
        return log is not None and (log.writers > 0 or bool(log.waiters))

    def _forget(self, done: asyncio.Task[None]) -> None:
        """Segments of those that nobody uses may be gone: they are looked for when they are needed."""
        self._logs = {endpoint: log for endpoint, log in self._logs.items() if self._busy(endpoint)}

    def _get(self, endpoint: str) -> _Log:
        log = self._logs.get(endpoint)
        if log is None:
            log = self._logs[endpoint] = _Log(self._root / _file_name(endpoint))
            with contextlib.suppress(OSError, ValueError):
                found = [p for p in log.path.iterdir() if p.suffix == ".log" and p.stem.isdigit()]
                log.segments = sorted((int(p.stem), p) for p in found)
                if log.segments:
                    start, last = log.segments[-1]
                    log.end = start + last.stat().st_size
        return log

    def _append(self, log: _Log, data: bytes) -> None:
        if log.fd < 0 or log.end - log.segments[-1][0] + len(data) > self._segment_bytes:
            self._next_file(log, len(data))
        before = log.end
        try:
            while data:
                written = os.write(log.fd, data)
                log.end += written
                data = data[written:]
        except OSError:
            # What fitted of it would swallow the next line.
            os.ftruncate(log.fd, before - log.segments[-1][0])
            log.end = before
            raise

    def _next_file(self, log: _Log, coming: int) -> None:
        """Open the last segment, or a new one when there is none or it would get too large."""
        self._shut(log)
        full = not log.segments or log.end - log.segments[-1][0] + coming > self._segment_bytes
        if full:
            for path in (self._root, log.path):  # the mode is of the last one only, each must be closed
                path.mkdir(parents=True, exist_ok=True, mode=0o700)
            log.segments.append((log.end, log.path / f"{log.end:020d}.log"))
            self._trim_soon()
        path = log.segments[-1][1]
        log.fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        if (
            not full
            and log.end > log.segments[-1][0]
            and os.pread(log.fd, 1, log.end - log.segments[-1][0] - 1) != b"\n"
        ):
            log.end += os.write(log.fd, b"\n")  # the end of a record that a crash cut
        for _, old in log.segments[:-KEEP_SEGMENTS]:
            with contextlib.suppress(OSError):
                old.unlink()
        del log.segments[:-KEEP_SEGMENTS]

    @staticmethod
    def _shut(log: _Log) -> None:
        if log.fd >= 0:
            os.close(log.fd)
            log.fd = -1
