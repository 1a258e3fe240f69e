"""A SQLite database with one writer thread and group commit, and reads on a connection of their own.

Writes that arrive while a commit runs go into the next transaction together; each caller hears after
that commit (synchronous=FULL, WAL: what was answered survives a power cut). A write that fails is
undone alone. Nothing here blocks the event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import sqlite3
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from headrace.errors import DataDirError, HeadraceError

T = TypeVar("T")
MAX_BATCH = 512
MAX_QUEUED = 10_000
CLOSE_TIMEOUT_S = 10.0


class StoreBusy(HeadraceError):
    """More writes wait than the store takes."""


class _Write:
    __slots__ = ("error", "fn", "future", "loop", "result")

    def __init__(self, fn: Callable[[sqlite3.Connection], Any], loop: asyncio.AbstractEventLoop) -> None:
        self.fn = fn
        self.loop = loop
        self.future: asyncio.Future[Any] = loop.create_future()
        self.result: Any = None
        self.error: Exception | None = None


class Database:
    """One SQLite file. Make it with `open_database`."""

    def __init__(self, writer: sqlite3.Connection, reader: sqlite3.Connection) -> None:
        self._writer = writer
        self._reader = reader
        self._queue: queue.Queue[_Write | None] = queue.Queue(MAX_QUEUED)
        self._reads = ThreadPoolExecutor(1, "headrace-store-read")
        self._thread = threading.Thread(target=self._write_loop, name="headrace-store-write", daemon=True)
        self._closed = False
        self.commits = 0
        """Transactions committed; fewer than writes when they came together."""
        self._thread.start()

    async def write(self, fn: Callable[[sqlite3.Connection], T]) -> T:
        """Run ``fn`` in the next transaction; returns after its commit, or raises what ``fn`` raised."""
        if self._closed:
            raise StoreBusy("the store is closed.", hint="Control is stopping; try again when it is back.")
        item = _Write(fn, asyncio.get_running_loop())
        try:
            self._queue.put_nowait(item)
        except queue.Full:
            raise StoreBusy(f"{MAX_QUEUED} writes wait already.", hint="Try again in a moment.") from None
        # A caller that is cancelled must not cancel a write that others share a transaction with.
        result: T = await asyncio.shield(item.future)
        return result

    async def read(self, fn: Callable[[sqlite3.Connection], T]) -> T:
        """Run ``fn`` on the reading connection."""
        return await asyncio.get_running_loop().run_in_executor(self._reads, fn, self._reader)

    async def close(self) -> None:
        """Commit what is queued, then close."""
        if self._closed:
            return
        self._closed = True
        await asyncio.get_running_loop().run_in_executor(None, self._close)

    def _close(self) -> None:
        self._queue.put(None)
        self._thread.join(CLOSE_TIMEOUT_S)
        self._reads.shutdown(wait=True)
        self._reader.close()
        self._writer.close()

    def _write_loop(self) -> None:
        done = False
        while not done:
            batch: list[_Write] = []
            item = self._queue.get()
            while True:
                if item is None:
                    done = True
                    break
                batch.append(item)
                if len(batch) == MAX_BATCH:
                    break
                try:
                    item = self._queue.get_nowait()
                except queue.Empty:
                    break
            if batch:
                self._commit(batch)
                _tell(batch)

    def _commit(self, batch: Sequence[_Write]) -> None:
        db = self._writer
        try:
            db.execute("BEGIN IMMEDIATE")
            for item in batch:
                self._run(item)
            db.execute("COMMIT")
            self.commits += 1
        except sqlite3.Error as error:
            if db.in_transaction:
                db.execute("ROLLBACK")
            for item in batch:
                item.error = item.error or error

    def _run(self, item: _Write) -> None:
        self._writer.execute("SAVEPOINT one")
        try:
            item.result = item.fn(self._writer)
        except Exception as error:
            item.error = error
            self._writer.execute("ROLLBACK TO one")
        self._writer.execute("RELEASE one")


def _tell(batch: Sequence[_Write]) -> None:
    by_loop: dict[asyncio.AbstractEventLoop, list[_Write]] = {}
    for item in batch:
        by_loop.setdefault(item.loop, []).append(item)
    for loop, items in by_loop.items():
        # A loop that ended meanwhile has nobody left who waits.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(_resolve, items)


def _resolve(items: Sequence[_Write]) -> None:
    for item in items:
        if item.future.done():
            continue
        if item.error is not None:
            item.future.set_exception(item.error)
            # Whoever waited may have been cancelled: mark it as seen.
            item.future.exception()
        else:
            item.future.set_result(item.result)


def open_database(path: Path, migrations: Sequence[str]) -> Database:
    """Open or make the file and bring its schema up to date (blocking; call it in a thread).

    Raises `DataDirError` when it cannot be opened or was written by a newer version.
    """
    writer: sqlite3.Connection | None = None
    try:
        writer = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=5.0)
        path.chmod(0o600)
        version = int(writer.execute("PRAGMA user_version").fetchone()[0])
        if version > len(migrations):
            writer.close()
            raise DataDirError(
                f"{path} has schema {version}, and this version knows up to {len(migrations)}.",
                hint="Upgrade headrace, or use another --data-dir.",
            )
        writer.execute("PRAGMA journal_mode=WAL")
        writer.execute("PRAGMA synchronous=FULL")
        writer.execute("PRAGMA foreign_keys=ON")
        for number in range(version, len(migrations)):
            writer.executescript(f"BEGIN;\n{migrations[number]}\nPRAGMA user_version={number + 1};\nCOMMIT;")
        reader = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=5.0)
        reader.execute("PRAGMA query_only=ON")
    except (sqlite3.Error, OSError) as error:
        if writer is not None:
            writer.close()
        raise DataDirError(
            f"{path}: {error}.", hint="Check its owner and the free space, or use another --data-dir."
        ) from error
    return Database(writer, reader)
