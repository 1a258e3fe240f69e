"""Calls in the background, by threads of this process: what ``map`` is made of."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

from headrace.errors import QueueFull

R = TypeVar("R")

WORKERS = 32
MAX_WAITING = 1000
"""Jobs that run or wait in this process; more are refused."""


class Cancel:
    """Ends a call that runs in another thread, by closing its connection."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._event = threading.Event()

    @property
    def cancelled(self) -> bool:
        """Whether `cancel` was called."""
        return self._event.is_set()

    def wait(self, seconds: float) -> bool:
        """Sleep; True at once when the call is cancelled."""
        return self._event.wait(seconds)

    def watch(self, connection: socket.socket | None) -> None:
        """This connection carries the call now."""
        with self._lock:
            self._socket = connection
            if self.cancelled:
                self._close()

    def cancel(self) -> None:
        """End the call; closing its connection frees the slot of the instance that works on it."""
        with self._lock:
            self._event.set()
            self._close()

    def _close(self) -> None:
        if self._socket is not None:
            with contextlib.suppress(OSError):  # it is closed already
                self._socket.shutdown(socket.SHUT_RDWR)
            self._socket = None


class Background(Generic[R]):
    """A call in the background. It ends with this process."""

    def __init__(self, future: Future[R], cancel: Cancel) -> None:
        self._future = future
        self._cancel = cancel

    def result(self, timeout: float | None = None) -> R:
        """Wait for the answer, at most ``timeout`` seconds.

        Raises what the call raised, ``TimeoutError``, or ``concurrent.futures.CancelledError``.
        """
        try:
            return self._future.result(timeout)
        except TimeoutError:
            if self._future.done():
                raise
            raise TimeoutError(f"the call was not done within {timeout:g} s.") from None

    def done(self) -> bool:
        """Whether it has ended, well or not."""
        return self._future.done()

    def cancel(self) -> bool:
        """Stop it; False when it has ended already."""
        if self._future.done():
            return False
        self._future.cancel()
        self._cancel.cancel()
        return True

    def cancelled(self) -> bool:
        """Whether `cancel` came in time."""
        return self._cancel.cancelled


class _Pool:
    """Threads and their bound; made at the first submit, so that importing starts nothing."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._executor: ThreadPoolExecutor | None = None
        self._waiting = 0

    def submit(self, call: Callable[[Cancel], R]) -> Background[R]:
        cancel = Cancel()
        with self._lock:
            if self._waiting >= MAX_WAITING:
                raise QueueFull(
                    f"{MAX_WAITING} jobs wait in this process.", hint="Collect some results first."
                )
            if self._executor is None:
                self._executor = ThreadPoolExecutor(WORKERS, thread_name_prefix="headrace-job")
            self._waiting += 1
            future = self._executor.submit(call, cancel)
        future.add_done_callback(self._ended)
        return Background(future, cancel)

    def _ended(self, _future: Future[R]) -> None:
        with self._lock:
            self._waiting -= 1


_pool = _Pool()


def submit(call: Callable[[Cancel], R]) -> Background[R]:
    """Run ``call`` in the pool. Raises `QueueFull`."""
    return _pool.submit(call)
