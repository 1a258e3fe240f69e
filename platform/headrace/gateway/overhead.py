"""Bounds what a peer sends beside bodies: heads, chunk lines, trailers, empty lines, interim answers.

llhttp keeps no bound of its own, and puts a header together from all its pieces: one that does not end
costs memory, and more and more time for each piece.
"""

from __future__ import annotations

FREE_PER_BYTE = 8
"""Overhead that each byte of a body makes room for: chunks of one byte are legal."""


class Overhead:
    """Counts for one connection; ``bytes`` is what is held against the peer now."""

    __slots__ = ("_body", "_fresh", "bytes")

    def __init__(self) -> None:
        self.bytes = 0
        self._body = 0
        self._fresh = False

    def body(self, size: int) -> None:
        """The parser gave out so many bytes of a body."""
        self._body += size

    def reset(self) -> None:
        """Something has begun or is complete: count from the next bytes on."""
        self.bytes = 0
        self._fresh = True

    def add(self, size: int) -> int:
        """The parser was fed ``size`` bytes; gives ``bytes``."""
        if self._fresh:
            # Which of these bytes came before the beginning is not known; they are one read at most.
            self._fresh = False
        else:
            self.bytes = max(0, self.bytes + size - self._body * (1 + FREE_PER_BYTE))
        self._body = 0
        return self.bytes
