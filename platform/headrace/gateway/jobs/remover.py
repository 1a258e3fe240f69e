"""Deletes blobs that nothing names, beside the sweep that found them: a blob store that hangs must keep no
lease from being given back.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Iterable

from headrace.errors import RequestError
from headrace.jobs.blobs import FRESH_S, BlobStore
from headrace.jobs.store import JobStore

log = logging.getLogger("headrace.gateway.jobs")

BATCH = 32
BATCH_S = 60.0
USABLE_S = FRESH_S / 2
"""That nothing names a blob is known for so long only. A job that came to name it since has put it again, and
what was put within `FRESH_S` is not deleted."""
AGAIN_S = 900.0
MAX_PENDING = 100_000
"""With more the rest waits until the store offers it again."""


class Remover:
    """See the module. What could not be deleted is offered again, however often that happens."""

    def __init__(self, store: JobStore, blobs: BlobStore) -> None:
        self._store = store
        self._blobs = blobs
        self._pending: deque[tuple[float, str]] = deque()
        self._wake = asyncio.Event()

    def take(self, names: Iterable[str]) -> None:
        """Nothing names these now."""
        now = time.monotonic()
        self._pending.extend((now, name) for name in names)
        while len(self._pending) > MAX_PENDING:
            self._pending.pop()
        self._wake.set()

    async def run(self) -> None:
        """Delete for ever."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._pending:
                await self._some()

    async def _some(self) -> None:
        oldest = self._pending[0][0]
        names = [self._pending.popleft()[1] for _ in range(min(BATCH, len(self._pending)))]
        try:
            if time.monotonic() - oldest < USABLE_S:
                async with asyncio.timeout(BATCH_S):
                    await self._blobs.delete(names)
                return
            log.warning("%d blobs are not deleted yet: it was too long until their turn", len(names))
        except (RequestError, TimeoutError) as error:
            log.warning("%d blobs are not deleted yet: %s", len(names), str(error) or "no answer in time")
        except Exception:
            log.exception("%d blobs are not deleted yet", len(names))
        try:
            for name in names:
                await self._store.announce_blob(name, time.time() + AGAIN_S)
        except RequestError as error:
            # The store offers each twice by itself.
            log.warning("blobs are not noted for later: %s", error)
