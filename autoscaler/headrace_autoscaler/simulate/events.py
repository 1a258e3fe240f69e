"""What will happen, in order: one heap."""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappush
from typing import Any

FINISH, SUPPLY, READY, GIVE_UP = range(4)
"""What goes first of what happens at one moment."""

Handler = Callable[[float, Any, int, int], None]
Event = tuple[float, int, int, Handler, Any, int, int]
"""(when, order, number, what to call with: when, on what, and two numbers)."""


class Events:
    """Handlers to be called at their times; those at one time by order, then as they were put in."""

    def __init__(self) -> None:
        self.heap: list[Event] = []
        self._put = 0

    def put(self, at: float, order: int, handle: Handler, on: Any, a: int = 0, *, b: int = 0) -> None:
        """Call ``handle(at, on, a, b)`` then, with two numbers of the handler's own."""
        self._put += 1
        heappush(self.heap, (at, order, self._put, handle, on, a, b))
