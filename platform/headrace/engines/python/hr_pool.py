"""Threads for sync handlers: made when first needed, never more than the instance's concurrency."""

from __future__ import annotations

import queue
import threading
from typing import Callable


class ThreadPool:
    """``submit`` and ``done`` are called on the loop's thread; jobs catch their own exceptions."""

    def __init__(self, size: int) -> None:
        self._size = size
        # Bounded by the slots of the instance: nothing is submitted without one.
        self._jobs: "queue.SimpleQueue[Callable[[], None]]" = queue.SimpleQueue()
        self._threads = 0
        self._busy = 0

    def submit(self, job: Callable[[], None]) -> None:
        """Run the job on a thread; whoever submits calls `done` after it."""
        self._busy += 1
        if self._busy > self._threads and self._threads < self._size:
            self._threads += 1
            threading.Thread(target=self._work, name=f"handler-{self._threads}", daemon=True).start()
        self._jobs.put(job)

    def done(self) -> None:
        """A job has ended."""
        self._busy -= 1

    def _work(self) -> None:
        while True:
            self._jobs.get()()
