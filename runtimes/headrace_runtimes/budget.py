"""The memory that warm bases of one host may use, shared by its runtimes by what each of them holds."""

from __future__ import annotations


class Budget:
    """``total`` bytes for all who take part in it. Who holds much leaves the others their equal part.

    For use in one event loop. A sum above ``total`` lasts until who has more than its part looks again.
    """

    def __init__(self, total: int) -> None:
        self.total = total
        self._held: dict[str, int] = {}

    def room(self, name: str, held: int) -> int:
        """What ``name``, which holds ``held`` bytes now, may hold: what others leave, and at least its part.

        From then on it takes part, until `leave`.
        """
        self._held[name] = held
        others = sum(self._held.values()) - held
        return max(self.total - others, self.total // len(self._held))

    def leave(self, name: str) -> None:
        """It holds nothing any more."""
        self._held.pop(name, None)
