"""Which sync calls with a key are let in: they are stored first, and the store has no bound.

Those that are on their way to their endpoint's queue count with what waits there, against the same bounds.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from headrace.errors import QueueFull
from headrace.gateway.endpoints import EndpointState


@dataclass(slots=True)
class Coming:
    """Calls of one endpoint that were let in, and have not reached its queue."""

    requests: int = 0
    bytes: int = 0


class Admission:
    """See the module."""

    def __init__(self) -> None:
        self._coming: dict[str, Coming] = {}

    def refusal(self, state: EndpointState, key: str, size: int) -> QueueFull | None:
        """Why a new call of an API key has no place; None: it has one.

        What finds a free slot need not wait. Where another key's request would make room in the queue, the
        call goes on: the dispatcher does that when it comes there.
        """
        coming = self._coming.get(state.key) or Coming()
        queue, route, now = state.queue, state.route, time.monotonic()
        free = sum(i.concurrency - i.in_flight for i in state.group(None) if i.free(now))
        waiting = len(queue) + max(0, coming.requests - free)
        waiting_bytes = queue.bytes + (coming.bytes if waiting else 0)
        if not waiting and coming.requests < free:
            return None
        if waiting < route.queue_requests and waiting_bytes + size <= route.queue_bytes:
            return None
        if size <= route.queue_bytes and queue.shed(key) is not None:
            return None
        after = state.retry_after()
        return QueueFull(
            f"{waiting} requests ({waiting_bytes} bytes) wait for {route.endpoint}.",
            hint=f"Try again in {after} s, or raise its queue or scaling.max.",
            retry_after=after,
        )

    def enter(self, state: EndpointState, size: int) -> Ticket:
        """A call is let in."""
        return Ticket(self, state.key, size)

    def __len__(self) -> int:
        return sum(coming.requests for coming in self._coming.values())


class Ticket:
    """One call that was let in; `leave` when it has reached the queue, or is over."""

    __slots__ = ("_admission", "_key", "_size")

    def __init__(self, admission: Admission, key: str, size: int) -> None:
        self._admission: Admission | None = admission
        self._key, self._size = key, size
        coming = admission._coming.setdefault(key, Coming())
        coming.requests += 1
        coming.bytes += size

    def leave(self) -> None:
        """It is not on its way any more. Does nothing when it was not."""
        admission, self._admission = self._admission, None
        if admission is None:
            return
        coming = admission._coming[self._key]
        coming.requests -= 1
        coming.bytes -= self._size
        if not coming.requests:
            del admission._coming[self._key]
