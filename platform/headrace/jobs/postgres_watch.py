"""Hints from gateway to gateway by LISTEN and NOTIFY: what changed, so that nobody waits for a poll.

A hint may be lost (with a connection, with a gateway): it makes things faster, and nothing depends on it.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import secrets
from collections.abc import Callable
from typing import Literal

import asyncpg  # type: ignore[import-untyped]
import msgspec

from headrace.jobs.postgres_link import Connection, Link
from headrace.jobs.store import StoreUnavailable

Hint = Literal["queued", "chunks", "final", "resync"]
WatchCallback = Callable[[Hint, str, str], None]
"""``queued``: project, endpoint; ``chunks`` and ``final``: project (or empty), job id; ``resync``: hints may
have been missed, look at everything once."""

CHANNEL = "headrace_jobs"
FLUSH_S = 0.02
MAX_PENDING = 10_000
MAX_PAYLOAD = 7000
"""Bytes; PostgreSQL takes 7999."""
PROBE_S = 15.0
RECONNECT_MAX_S = 2.0


class _Message(msgspec.Struct, array_like=True, frozen=True):
    origin: str
    hints: list[tuple[Hint, str, str]]


class Watch:
    """Sends this gateway's hints and hears those of others."""

    def __init__(self, link: Link, notify: str) -> None:
        self._link = link
        self._notify = notify
        self._origin = secrets.token_hex(4)
        self._pending: dict[tuple[Hint, str, str], None] = {}
        self._task: asyncio.Task[None] | None = None

    def tell(self, hint: Hint, project: str, subject: str) -> None:
        """Send a hint soon; the same one is sent once."""
        if len(self._pending) >= MAX_PENDING:
            return
        self._pending[hint, project, subject] = None
        if self._task is None:
            self._task = asyncio.create_task(self._flush())

    async def run(self, callback: WatchCallback) -> None:
        """Call ``callback`` for others' hints, and with ``resync`` after each connect, until cancelled."""
        pause = 0.05
        while True:
            lost = asyncio.Event()
            connection: Connection | None = None
            try:
                connection = await self._link.listen(
                    CHANNEL, lambda text: self._hear(text, callback), lost.set
                )
                pause = 0.05
                callback("resync", "", "")
                await self._until_lost(connection, lost)
            except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
                pass
            finally:
                if connection is not None:
                    connection.terminate()
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311 - spreads reconnects
            pause = min(RECONNECT_MAX_S, pause * 2)

    async def close(self) -> None:
        """Stop sending."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _until_lost(self, connection: Connection, lost: asyncio.Event) -> None:
        while not lost.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(lost.wait(), PROBE_S)
                return
            # A peer that vanished without a word is noticed only by asking.
            await connection.fetchval("SELECT 1", timeout=PROBE_S)

    def _hear(self, text: str, callback: WatchCallback) -> None:
        try:
            message = msgspec.json.decode(text, type=_Message)
        except msgspec.DecodeError:
            return
        if message.origin != self._origin:
            for hint, project, subject in message.hints:
                callback(hint, project, subject)

    async def _flush(self) -> None:
        try:
            while self._pending:
                await asyncio.sleep(FLUSH_S)
                hints, self._pending = list(self._pending), {}
                with contextlib.suppress(StoreUnavailable):
                    await self._send(self._payloads(hints))
        finally:
            self._task = None

    async def _send(self, payloads: list[str]) -> None:
        async def work(connection: Connection, _: bool) -> None:
            await connection.fetch(self._notify, CHANNEL, payloads)

        await self._link.run(work, retry=False)

    def _payloads(self, hints: list[tuple[Hint, str, str]]) -> list[str]:
        payloads: list[str] = []
        some: list[tuple[Hint, str, str]] = []
        size = 0
        for hint in hints:
            length = len(msgspec.json.encode(hint)) + 1
            if length > MAX_PAYLOAD:
                continue
            if size + length > MAX_PAYLOAD:
                payloads.append(msgspec.json.encode(_Message(self._origin, some)).decode())
                some, size = [], 0
            some.append(hint)
            size += length
        payloads.append(msgspec.json.encode(_Message(self._origin, some)).decode())
        return payloads
