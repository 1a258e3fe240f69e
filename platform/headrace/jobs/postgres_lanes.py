"""Group commit: calls of one kind that come while a statement runs go into the next one together.

A lane has one statement under way at most; PostgreSQL lets the lanes' commits share their syncs to disk.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Hashable, Sequence
from typing import Generic, TypeVar

from headrace.jobs.store import StoreUnavailable

A = TypeVar("A")
R = TypeVar("R")
MAX_BATCH = 256
MAX_BATCH_BYTES = 8 << 20
MAX_QUEUED = 10_000


class Lane(Generic[A, R]):
    """One kind of write.

    ``run`` stores a batch, all or nothing, and gives one result per item; one that is an exception is raised.
    ``key``: items with the same key are not in one batch. ``size``: bytes of an item.
    """

    def __init__(
        self,
        run: Callable[[Sequence[A]], Awaitable[Sequence[R | Exception]]],
        *,
        key: Callable[[A], Hashable] | None = None,
        size: Callable[[A], int] | None = None,
        max_batch: int = MAX_BATCH,
    ) -> None:
        self._run = run
        self._key = key
        self._size = size
        self._max_batch = max_batch
        self._queue: deque[tuple[A, asyncio.Future[R]]] = deque()
        self._task: asyncio.Task[None] | None = None
        self.batches = 0
        """Batches sent so far; fewer than items when they came together."""

    async def __call__(self, item: A) -> R:
        """Store one item with the next batch. Raises what ``run`` raises, and `StoreUnavailable`."""
        if len(self._queue) >= MAX_QUEUED:
            raise StoreUnavailable(f"{MAX_QUEUED} writes wait for it already.", hint="Try again in a moment.")
        future: asyncio.Future[R] = asyncio.get_running_loop().create_future()
        self._queue.append((item, future))
        if self._task is None:
            self._task = asyncio.create_task(self._work())
        # Whoever waits may be cancelled; what others share a batch with is not.
        return await asyncio.shield(future)

    async def drain(self) -> None:
        """Wait until nothing is queued or under way."""
        while self._task is not None:
            await asyncio.wait([self._task])

    async def _work(self) -> None:
        try:
            while self._queue:
                batch = self._take()
                self.batches += 1
                await self._store(batch)
        finally:
            self._task = None

    def _take(self) -> list[tuple[A, asyncio.Future[R]]]:
        batch: list[tuple[A, asyncio.Future[R]]] = []
        later: list[tuple[A, asyncio.Future[R]]] = []
        keys: set[Hashable] = set()
        room = MAX_BATCH_BYTES
        while self._queue and len(batch) < self._max_batch:
            entry = self._queue.popleft()
            if self._key is not None:
                key = self._key(entry[0])
                if key in keys:
                    later.append(entry)
                    continue
                keys.add(key)
            room -= self._size(entry[0]) if self._size is not None else 0
            if batch and room < 0:
                later.append(entry)
                break
            batch.append(entry)
        self._queue.extendleft(reversed(later))
        return batch

    async def _store(self, batch: Sequence[tuple[A, asyncio.Future[R]]]) -> None:
        try:
            results = await self._run([item for item, _ in batch])
        except StoreUnavailable as error:
            # What came meanwhile has waited for it too: each batch in turn would wait as long again.
            waiting = [*batch, *self._queue]
            self._queue.clear()
            for _, future in waiting:
                _fail(future, error)
        except Exception as error:
            if len(batch) == 1:
                _fail(batch[0][1], error)
                return
            # One of them cannot be stored; it must not take the others with it.
            for entry in batch:
                await self._store([entry])
        else:
            for (_, future), result in zip(batch, results, strict=True):
                if isinstance(result, Exception):
                    _fail(future, result)
                elif not future.done():
                    future.set_result(result)


def _fail(future: asyncio.Future[R], error: BaseException) -> None:
    if not future.done():
        future.set_exception(error)
        # Whoever waited may have been cancelled: mark it as seen.
        future.exception()
