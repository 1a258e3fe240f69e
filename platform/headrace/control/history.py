"""What was observed and decided, as JSON lines in ``history/decisions.jsonl``: replayable, bounded.

`record` only puts the value into a bounded queue; encoding and writing happen in a thread. When the
queue is full or the disk is, records are dropped and counted: deciding never waits for them.

Lines have what is not in those before (`headrace_autoscaler.history`); each file begins anew, so that it can
be replayed by itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from pathlib import Path

from headrace_autoscaler.history import Writer
from headrace_autoscaler.spec import Record

log = logging.getLogger("headrace.control")
MAX_QUEUED = 4096
MAX_BYTES = 16 << 20
"""Size at which the file is set aside as ``decisions.1.jsonl`` (which replaces the one before)."""
BLOCK = 1 << 16


class History:
    """The file of one data directory."""

    def __init__(self, directory: Path, *, max_bytes: int = MAX_BYTES) -> None:
        self._dir = directory
        self._path = directory / "decisions.jsonl"
        self._max_bytes = max_bytes
        self._queue: asyncio.Queue[Record] = asyncio.Queue(MAX_QUEUED)
        self._task: asyncio.Task[None] | None = None
        self._writing: asyncio.Future[None] | None = None
        self._writer = Writer()
        """Used by the writing thread alone."""
        self._whole = False
        """Whether the file ends with a whole line, as far as is known."""
        self.dropped = 0

    def start(self) -> None:
        """Begin to write in the background."""
        self._dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._task = asyncio.create_task(self._run(), name="headrace-history")

    async def stop(self) -> None:
        """Write what is queued and end."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None
        if self._writing is not None:
            # Lines keep their order: what a line leaves out is in the one before.
            await asyncio.wait([self._writing])
        await asyncio.to_thread(self._write, self._take())

    def record(self, record: Record) -> None:
        """Keep one decision; never waits."""
        try:
            self._queue.put_nowait(record)
        except asyncio.QueueFull:
            self.dropped += 1

    async def _run(self) -> None:
        while True:
            first = await self._queue.get()
            # Shielded: a batch that left the queue is written even when control stops now.
            self._writing = asyncio.ensure_future(asyncio.to_thread(self._write, [first, *self._take()]))
            await asyncio.shield(self._writing)

    def _take(self) -> list[Record]:
        batch: list[Record] = []
        while not self._queue.empty():
            batch.append(self._queue.get_nowait())
        return batch

    def _write(self, batch: list[Record]) -> None:
        if not batch:
            return
        data = b"".join(self._writer.line(record) for record in batch)
        try:
            if not self._whole:
                _cut_torn_line(self._path)
                self._whole = True
            with self._path.open("ab", buffering=0) as file:
                size = file.tell()
                try:
                    written = 0
                    while written < len(data):
                        written += file.write(data[written:])
                except OSError:
                    # Part of a line would spoil the replay of the next one.
                    file.truncate(size)
                    raise
                size += written
            if size >= self._max_bytes:
                self._path.replace(self._dir / "decisions.1.jsonl")
                self._writer.reset()
        except OSError as error:
            self.dropped += len(batch)
            self._writer.reset()
            log.warning("the history cannot be written: %s", error)


def _cut_torn_line(path: Path) -> None:
    """Take away what a power loss or a kill has left of a last line: nothing behind it could be replayed."""
    try:
        with path.open("rb+") as file:
            end = file.seek(0, os.SEEK_END)
            while end:
                begin = max(0, end - BLOCK)
                file.seek(begin)
                place = file.read(end - begin).rfind(b"\n")
                if place >= 0:
                    end = begin + place + 1
                    break
                end = begin
            file.truncate(end)
    except FileNotFoundError:
        pass
