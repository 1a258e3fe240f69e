"""When the old version's instances drain: after enough new ones are ready. A pure decision."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Old:
    """One living instance of a version that is being replaced."""

    id: str
    ready: bool
    in_flight: int


def to_drain(new_ready: int, old: Sequence[Old], wanted: int) -> list[str]:
    """Ids of the old instances to drain now, so that ready new ones plus kept old ones reach ``wanted``.

    Those that still start go first (nobody uses them), then the least busy. Draining lets requests
    finish: being busy keeps none.
    """
    keep = max(0, wanted - new_ready)
    starting = [o.id for o in old if not o.ready]
    ready = sorted((o for o in old if o.ready), key=lambda o: (o.in_flight, o.id))
    return starting + [o.id for o in ready[: max(0, len(ready) - keep)]]
