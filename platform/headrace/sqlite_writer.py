"""A SQLite database with one writer thread and group commit, and reads on connections of their own.

Writes that arrive while a commit runs go into the next transaction together; each caller hears after
that commit (synchronous=FULL, WAL: what was answered survives a power cut). A write that fails is
undone alone. Several processes may write the same file: each takes the lock for one short transaction
at a time. Nothing here blocks the event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import queue
import random
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from headrace.errors import DataDirError, HeadraceError

T = TypeVar("T")
MAX_BATCH = 512
MAX_QUEUED = 10_000
TRANSACTION_S = 0.02
"""A transaction takes in no further writes after this time: others wait for the lock."""
LOCK_TIMEOUT_S = 10.0
CLOSE_TIMEOUT_S = 15.0
MIN_SQLITE = (3, 35, 0)
"""RETURNING, and UPDATE ... FROM."""


class StoreBusy(HeadraceError):
    """More writes wait than the store takes."""


def _closed() -> StoreBusy:
    return StoreBusy("the store is closed.", hint="The process is stopping; try again when it is back.")


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

    def __init__(self, writer: sqlite3.Connection, readers: Sequence[sqlite3.Connection]) -> None:
        self._writer = writer
        self._readers: queue.SimpleQueue[sqlite3.Connection] = queue.SimpleQueue()
        for reader in readers:
            self._readers.put(reader)
        self._queue: queue.Queue[_Write | None] = queue.Queue(MAX_QUEUED)
        self._reads = ThreadPoolExecutor(len(readers), "headrace-store-read")
        self._thread = threading.Thread(target=self._write_loop, name="headrace-store-write", daemon=True)
        self._closed = False
        self.commits = 0
        """Transactions committed; fewer than writes when they came together."""
        self._thread.start()

    async def write(self, fn: Callable[[sqlite3.Connection], T]) -> T:
        """Run ``fn`` in the next transaction; returns after its commit, or raises what ``fn`` raised.

        ``fn`` must do nothing but use the connection: it runs again when another write of the same
        transaction fails, or when the lock was lost.
        """
        if self._closed:
            raise _closed()
        item = _Write(fn, asyncio.get_running_loop())
        try:
            self._queue.put_nowait(item)
        except queue.Full:
            raise StoreBusy(f"{MAX_QUEUED} writes wait already.", hint="Try again in a moment.") from None
        # A caller that is cancelled must not cancel a write that others share a transaction with.
        result: T = await asyncio.shield(item.future)
        return result

    async def read(self, fn: Callable[[sqlite3.Connection], T]) -> T:
        """Run ``fn`` on a reading connection."""
        if self._closed:
            raise _closed()
        return await asyncio.get_running_loop().run_in_executor(self._reads, self._read, fn)

    async def close(self) -> None:
        """Commit what is queued, then close."""
        if self._closed:
            return
        self._closed = True
        await asyncio.get_running_loop().run_in_executor(None, self._close)

    def _read(self, fn: Callable[[sqlite3.Connection], T]) -> T:
        # As many connections as threads: there is always one.
        reader = self._readers.get()
        try:
            return fn(reader)
        finally:
            self._readers.put(reader)

    def _close(self) -> None:
        self._queue.put(None)
        self._thread.join(CLOSE_TIMEOUT_S)
        self._reads.shutdown(wait=True)
        while not self._readers.empty():
            self._readers.get().close()
        # A thread that did not end in time still uses the connection; it goes with the process.
        if not self._thread.is_alive():
            self._writer.close()

    def _write_loop(self) -> None:
        while (first := self._queue.get()) is not None:
            batch = [first]
            more = self._commit(batch)
            _tell(batch)
            if not more:
                return

    def _commit(self, batch: list[_Write]) -> bool:
        """Run a transaction; takes further writes into the batch. False: the queue has come to its end."""
        db = self._writer
        more = True
        try:
            _begin(db)
            until = time.monotonic() + TRANSACTION_S
            done = 0
            try:
                while done < len(batch):
                    item = batch[done]
                    item.result = item.fn(db)
                    done += 1
                    if len(batch) < MAX_BATCH and time.monotonic() < until:
                        try:
                            following = self._queue.get_nowait()
                        except queue.Empty:
                            continue
                        if following is None:
                            more = False
                        else:
                            batch.append(following)
            except Exception:
                # Rare, so savepoints are taken only now: everything again, each write by itself.
                _rollback(db)
                _begin(db)
                for item in batch:
                    _run_alone(db, item)
            db.execute("COMMIT")
            self.commits += 1
        except sqlite3.Error as error:
            with contextlib.suppress(sqlite3.Error):
                _rollback(db)
            for item in batch:
                item.error = item.error or error
        return more


def _begin(db: sqlite3.Connection) -> None:
    """Take the write lock. SQLite's own waiting sleeps up to 100 ms between tries: too unfair to a process
    that competes with a busy one."""
    deadline = time.monotonic() + LOCK_TIMEOUT_S
    while True:
        try:
            db.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError as error:
            if not _is_locked(error) or time.monotonic() > deadline:
                raise
            time.sleep(random.uniform(0.0002, 0.001))  # noqa: S311 - spreads tries, no secret
        else:
            return


def _is_locked(error: sqlite3.Error) -> bool:
    return (getattr(error, "sqlite_errorcode", 0) & 0xFF) in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def _rollback(db: sqlite3.Connection) -> None:
    if db.in_transaction:
        db.execute("ROLLBACK")


def _run_alone(db: sqlite3.Connection, item: _Write) -> None:
    db.execute("SAVEPOINT one")
    try:
        item.result = item.fn(db)
    except Exception as error:
        item.error = error
        # Raises when the error has ended the whole transaction (disk full): then nobody's write was kept.
        db.execute("ROLLBACK TO one")
    db.execute("RELEASE one")


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


def disk_is_full(error: Exception) -> bool:
    """Whether a write failed, here or into a file beside the database, because there is no space left."""
    if isinstance(error, sqlite3.Error):
        return getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL
    return isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT}


def open_database(path: Path, migrations: Sequence[str], *, readers: int = 1) -> Database:
    """Open or make the file and bring its schema up to date (blocking; call it in a thread).

    Raises `DataDirError` when it cannot be opened, is damaged, or was written by a newer version.
    """
    if sqlite3.sqlite_version_info < MIN_SQLITE:
        raise DataDirError(
            f"this Python has SQLite {sqlite3.sqlite_version}, and 3.35 is needed.",
            hint="Use a newer Python, or --store postgresql://...",
        )
    opened: list[sqlite3.Connection] = []
    try:
        writer = _connect(path)
        opened.append(writer)
        path.chmod(0o600)
        _set_wal(writer)
        writer.execute("PRAGMA synchronous=FULL")
        writer.execute("PRAGMA foreign_keys=ON")
        _migrate(writer, path, migrations)
        # Waiting for the lock is `_begin`'s.
        writer.execute("PRAGMA busy_timeout=0")
        writer.execute("PRAGMA journal_size_limit=67108864")
        writer.execute("PRAGMA cache_size=-16384")
        for _ in range(readers):
            opened.append(_connect(path))
            opened[-1].execute("PRAGMA query_only=ON")
            opened[-1].execute("PRAGMA cache_size=-8192")
    except (sqlite3.Error, OSError, DataDirError) as error:
        for connection in opened:
            connection.close()
        if isinstance(error, DataDirError):
            raise
        raise _cannot_open(path, error) from error
    return Database(writer, opened[1:])


def _connect(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(
        path, isolation_level=None, check_same_thread=False, timeout=LOCK_TIMEOUT_S, cached_statements=256
    )


def _set_wal(db: sqlite3.Connection) -> None:
    """Changing the journal's mode does not wait for another process that does the same."""
    deadline = time.monotonic() + LOCK_TIMEOUT_S
    while True:
        try:
            db.execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError as error:
            if not _is_locked(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.01)
        else:
            return


def _migrate(db: sqlite3.Connection, path: Path, migrations: Sequence[str]) -> None:
    db.execute("BEGIN IMMEDIATE")  # another process may be doing the same: the version is read under the lock
    try:
        version = int(db.execute("PRAGMA user_version").fetchone()[0])
        if version > len(migrations):
            raise _too_new(path, version, len(migrations))  # noqa: TRY301 - the lock is given back below
        for migration in migrations[version:]:
            for statement in _statements(migration):
                db.execute(statement)
        if version < len(migrations):
            db.execute(f"PRAGMA user_version={len(migrations)}")
    except BaseException:
        _rollback(db)
        raise
    db.execute("COMMIT")


def _statements(script: str) -> list[str]:
    """Its statements; ``executescript`` would commit the transaction that it is called in."""
    found: list[str] = []
    pending = ""
    for line in script.splitlines(keepends=True):
        pending += line
        if sqlite3.complete_statement(pending):
            found.append(pending)
            pending = ""
    if pending.strip():
        found.append(pending)
    return found


def _too_new(path: Path, version: int, known: int) -> DataDirError:
    return DataDirError(
        f"{path} has schema {version}, and this version knows up to {known}.",
        hint="Upgrade headrace, or use another --data-dir.",
    )


def _cannot_open(path: Path, error: Exception) -> DataDirError:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return DataDirError(
            f"{path} is damaged ({error}).",
            hint="Put back a copy of it, or move it (with its -wal and -shm) away to start empty.",
        )
    return DataDirError(
        f"{path}: {error}.", hint="Check its owner and the free space, or use another --data-dir."
    )
