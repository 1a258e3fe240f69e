"""Whether an endpoint's queue has a place for one more request, and who makes room for it. Pure.

Sync calls with a key are stored before they come to the queue, and the store has no bound. So they are let in
before that, and count here with those that wait, against the same bounds.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from headrace.gateway.call import Call
    from headrace.gateway.endpoints import EndpointState


@dataclass(slots=True)
class Coming:
    """Calls of one endpoint that were let in, and have not reached its queue in this gateway."""

    requests: int = 0
    bytes: int = 0
    by_key: dict[str, int] = field(default_factory=dict)

    def enter(self, key: str, size: int) -> Ticket:
        """One of an API key is let in."""
        self.requests += 1
        self.bytes += size
        self.by_key[key] = self.by_key.get(key, 0) + 1
        return Ticket(self, key, size)


class Ticket:
    """One call that was let in; `leave` when it has reached the queue, or is over."""

    __slots__ = ("_coming", "_key", "_size")

    def __init__(self, coming: Coming, key: str, size: int) -> None:
        self._coming: Coming | None = coming
        self._key, self._size = key, size

    def leave(self) -> None:
        """It is not on its way any more. Does nothing when it was not."""
        coming, self._coming = self._coming, None
        if coming is None:
            return
        coming.requests -= 1
        coming.bytes -= self._size
        left = coming.by_key[self._key] - 1
        if left:
            coming.by_key[self._key] = left
        else:
            del coming.by_key[self._key]


def ahead(state: EndpointState) -> int:
    """How many of those that are coming will have to wait; negative: so many slots are free for others.

    What we don't use of an instance counts as free, also when it says that it is full: other gateways may run
    there what was let in here.
    """
    return state.coming.requests - sum(max(0, i.concurrency - i.in_flight) for i in state.group(None))


def make_room(state: EndpointState, key: str, size: int) -> list[Call] | None:
    """Those that have to go so that one more of an API key can wait, mostly nobody; None: it has no place."""
    queue, route, coming = state.queue, state.route, state.coming
    requests = size_ahead = 0
    if coming.requests and (requests := max(0, ahead(state))):
        size_ahead = coming.bytes
    max_bytes = route.queue_bytes - size_ahead
    if queue.fits(size, route.queue_requests - requests, max_bytes):
        return []
    if size > route.queue_bytes:
        return None
    return queue.shed(key, size, max_bytes, coming=coming.by_key.get(key, 0), may_go=_may_go) or None


def _may_go(call: Call) -> bool:
    """Whether it may be refused yet; a job was promised its run, and what was sent has one."""
    return not call.attempts and not call.stored
