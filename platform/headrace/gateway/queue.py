"""Requests of one endpoint that wait for a slot: first in, first out, bounded in number and bytes."""

from __future__ import annotations

from collections import OrderedDict
from typing import Generic, Protocol, TypeVar


class Waiting(Protocol):
    """What the queue must know of a request."""

    version: int | None
    """The version it insists on; None: any."""
    size: int
    """Bytes of its body."""
    queued_at: float
    order: int
    """Smaller came first; kept over retries."""


W = TypeVar("W", bound=Waiting)


class WaitQueue(Generic[W]):
    """One line per version asked for, so that a request for ``@3`` does not block those for any."""

    def __init__(self) -> None:
        self.lines: dict[int | None, OrderedDict[W, None]] = {}
        self.bytes = 0
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def fits(self, size: int, max_requests: int, max_bytes: int) -> bool:
        """Whether one more of ``size`` bytes is within the bounds."""
        return self._count < max_requests and self.bytes + size <= max_bytes

    def push(self, item: W, *, front: bool = False) -> None:
        """Append; ``front`` puts back what was taken out before, ahead of all that came after it."""
        line = self.lines.setdefault(item.version, OrderedDict())
        line[item] = None
        if front:
            line.move_to_end(item, last=False)
        self._count += 1
        self.bytes += item.size

    def remove(self, item: W) -> bool:
        """Take out wherever it is; False when it is not here."""
        line = self.lines.get(item.version)
        if line is None or item not in line:
            return False
        del line[item]
        self._left(item, line)
        return True

    def head(self, version: int | None) -> W | None:
        """First of one line."""
        line = self.lines.get(version)
        return next(iter(line)) if line else None

    def heads(self) -> list[W]:
        """First of each line, the one that came first in front."""
        if len(self.lines) == 1:
            return [next(iter(line)) for line in self.lines.values()]
        return sorted((next(iter(line)) for line in self.lines.values()), key=lambda item: item.order)

    def pop(self, version: int | None) -> W:
        """Take out the first of a line. Raises ``KeyError`` when there is none."""
        line = self.lines[version]
        item, _ = line.popitem(last=False)
        self._left(item, line)
        return item

    def drain(self) -> list[W]:
        """Take out all, oldest first."""
        items = sorted((item for line in self.lines.values() for item in line), key=lambda item: item.order)
        self.lines.clear()
        self._count = self.bytes = 0
        return items

    def oldest(self) -> float | None:
        """When the longest waiting one came."""
        heads = [next(iter(line)).queued_at for line in self.lines.values()]
        return min(heads) if heads else None

    def _left(self, item: W, line: OrderedDict[W, None]) -> None:
        self._count -= 1
        self.bytes -= item.size
        if not line:
            del self.lines[item.version]
