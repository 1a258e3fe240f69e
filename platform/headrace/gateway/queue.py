"""Requests of one endpoint that wait for a slot: bounded, fair between API keys, by priority.

One line per version asked for, so that a request for ``@3`` does not block those for any. In a line high
comes before normal before low, but every `AGED_SHARE`-th place goes to the one that waits longest, once it
has waited for `AGED_S`: low is not starved for ever. Within a priority the keys take turns.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from itertools import takewhile
from typing import Generic, Protocol, TypeVar

AGED_SHARE = 8
AGED_S = 2.0
RANKS = 3


class Waiting(Protocol):
    """What the queue must know of a request."""

    version: int | None
    """The version it insists on; None: any."""
    size: int
    """Bytes of its body."""
    queued_at: float
    order: int
    """Smaller came first; kept over retries."""
    rank: int
    """0 high, 1 normal, 2 low."""
    key: str
    """Who asks: the id of its API key."""
    alone: bool
    """It runs with no neighbour: out of turn, on an instance of its own; the oldest first."""


W = TypeVar("W", bound=Waiting)


class _Line(Generic[W]):
    """All that insist on one version (or on none)."""

    __slots__ = ("ranks", "taken")

    def __init__(self) -> None:
        self.ranks: tuple[OrderedDict[str, OrderedDict[W, None]], ...] = tuple(
            OrderedDict() for _ in range(RANKS)
        )
        self.taken = 0

    def push(self, item: W, front: bool) -> None:
        keys = self.ranks[item.rank]
        turn = keys.get(item.key)
        if turn is None:
            turn = keys[item.key] = OrderedDict()
        turn[item] = None
        if front:
            turn.move_to_end(item, last=False)
            keys.move_to_end(item.key, last=False)
            # It had no place: had a full instance refused every `AGED_SHARE`-th one, low would starve.
            self.taken = max(0, self.taken - 1)

    def head(self) -> W:
        """Who is next."""
        first = None
        for keys in self.ranks:
            if keys:
                item = next(iter(next(iter(keys.values()))))
                if first is None:
                    first = item
                    if self.taken % AGED_SHARE != AGED_SHARE - 1:
                        break
                elif item.queued_at + AGED_S < first.queued_at:
                    first = item
        assert first is not None
        return first

    def discard(self, item: W, *, turn_over: bool) -> bool:
        """Take one out; with ``turn_over`` its key goes behind the others."""
        keys = self.ranks[item.rank]
        turn = keys.get(item.key)
        if turn is None or item not in turn:
            return False
        del turn[item]
        if not turn:
            del keys[item.key]
        elif turn_over and len(keys) > 1:
            keys.move_to_end(item.key)
        return True

    def items(self) -> list[W]:
        return [item for keys in self.ranks for turn in keys.values() for item in turn]

    def __bool__(self) -> bool:
        return any(self.ranks)


class WaitQueue(Generic[W]):
    """See the module."""

    def __init__(self) -> None:
        self.lines: dict[int | None, _Line[W]] = {}
        self.alone: OrderedDict[W, None] = OrderedDict()
        """Those that run with no neighbour, in their order."""
        self.bytes = 0
        self._by_key: dict[str, int] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def fits(self, size: int, max_requests: int, max_bytes: int) -> bool:
        """Whether one more of ``size`` bytes is within the bounds."""
        return self._count < max_requests and self.bytes + size <= max_bytes

    def push(self, item: W, *, front: bool = False) -> None:
        """Append; ``front`` puts back what was taken out before, ahead of what came after it."""
        if item.alone:
            later = list(takewhile(lambda other: other.order > item.order, reversed(self.alone)))
            self.alone[item] = None
            for other in reversed(later):
                self.alone.move_to_end(other)
        else:
            line = self.lines.get(item.version)
            if line is None:
                line = self.lines[item.version] = _Line()
            line.push(item, front)
        self._count += 1
        self.bytes += item.size
        self._by_key[item.key] = self._by_key.get(item.key, 0) + 1

    def remove(self, item: W) -> bool:
        """Take out wherever it is; False when it is not here."""
        if item in self.alone:
            del self.alone[item]
            self._left(item)
            return True
        line = self.lines.get(item.version)
        if line is None or not line.discard(item, turn_over=False):
            return False
        self._left(item, line)
        return True

    def heads(self) -> list[W]:
        """The next of each line, the one that came first in front; not those that run alone."""
        if len(self.lines) == 1:
            return [line.head() for line in self.lines.values()]
        return sorted((line.head() for line in self.lines.values()), key=lambda item: item.order)

    def pop(self, version: int | None) -> W:
        """Take out the next of a line. Raises ``KeyError`` when there is none."""
        line = self.lines[version]
        item = line.head()
        line.taken += 1
        line.discard(item, turn_over=True)
        self._left(item, line)
        return item

    def shed(
        self,
        key: str,
        size: int = 0,
        max_bytes: int = 0,
        *,
        coming: int = 0,
        may_go: Callable[[W], bool] | None = None,
    ) -> list[W]:
        """When full: the youngest requests of the greediest key, which make room for one of ``key`` with
        ``size`` bytes, and with ``coming`` more on their way. Empty: that one has to go, as no other key has
        more here than it would have.

        They are not taken out. A queue that is above its bounds already (by what was put back) does not
        grow, and that is enough. ``may_go`` is asked for each; without it all may.
        """
        greedy = max(self._by_key, key=lambda k: self._by_key[k], default=key)
        excess = self._by_key.get(greedy, 0) - self._by_key.get(key, 0) - coming - 1
        over = self.bytes + size - max(max_bytes, self.bytes)
        found: list[W] = []
        for item in self._youngest(greedy) if greedy != key else ():
            if len(found) >= excess:
                break
            if may_go is None or may_go(item):
                found.append(item)
                over -= item.size
                if over <= 0:
                    return found
        return []

    def _youngest(self, key: str) -> Iterator[W]:
        for rank in reversed(range(RANKS)):
            for line in self.lines.values():
                yield from reversed(line.ranks[rank].get(key, {}))

    def named(self) -> dict[int, int]:
        """How many insist on a version, by that."""
        found: dict[int, int] = {}
        for version, line in self.lines.items():
            if version is not None:
                found[version] = len(line.items())
        for item in self.alone:
            if item.version is not None:
                found[item.version] = found.get(item.version, 0) + 1
        return found

    def wanted(self) -> set[int | None]:
        """The versions that somebody waits for."""
        found = set(self.lines)
        if self.alone:
            found.update(item.version for item in self.alone)
        return found

    def waiting(self, version: int | None) -> int:
        """How many wait for that version."""
        line = self.lines.get(version)
        return (len(line.items()) if line else 0) + sum(item.version == version for item in self.alone)

    def items(self) -> list[W]:
        """All, in no order."""
        return [*self.alone, *(item for line in self.lines.values() for item in line.items())]

    def drain(self) -> list[W]:
        """Take out all, oldest first."""
        items = sorted(self.items(), key=lambda item: item.order)
        self.lines.clear()
        self.alone.clear()
        self._by_key.clear()
        self._count = self.bytes = 0
        return items

    def oldest(self) -> float | None:
        """When the longest waiting one came."""
        heads = [
            next(iter(turn)).queued_at
            for line in self.lines.values()
            for keys in line.ranks
            for turn in keys.values()
        ]
        heads += [item.queued_at for item in self.alone]
        return min(heads) if heads else None

    def _left(self, item: W, line: _Line[W] | None = None) -> None:
        self._count -= 1
        self.bytes -= item.size
        left = self._by_key[item.key] - 1
        if left:
            self._by_key[item.key] = left
        else:
            del self._by_key[item.key]
        if line is not None and not line:
            del self.lines[item.version]
