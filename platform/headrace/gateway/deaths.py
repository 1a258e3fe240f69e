"""What instance deaths mean for a request that was there: whether it goes on, and whether it does so alone.

Pure decisions: `Call` asks them, after each loss and whenever control has said what a loss was.
"""

from __future__ import annotations

import math
from typing import Literal

ALONE_AFTER = 2
"""Instance deaths that a request was present at, before it runs with no neighbour."""
ALONE_S = 1.0
"""What was present at one death waits at most so long to run alone; then it is sent with others."""

Loss = Literal["", "doubted", "death", "broken"]
"""What the loss of an attempt is to its request. ``doubted``: a death, until control says otherwise.
``death``: by control's word. ``broken``: only the connection, as far as is known. All but the empty one cost
a retry."""

Next = Literal["again", "killed", "retries"]
"""Another instance gets it; it has killed alone; its retries are spent."""


def is_death(loss: Loss) -> bool:
    """Whether it counts as the death of an instance."""
    return loss in {"doubted", "death"}


def goes_on(*, alone: bool, died: bool, deaths: int, used: int, retries: int) -> Next:
    """What becomes of a request that was lost: ``alone`` it was, and ``died`` its last instance, the last of
    ``deaths``. ``used`` includes the retry that this loss costs."""
    if alone and died and deaths >= ALONE_AFTER:
        return "killed"
    return "again" if used <= retries else "retries"


def runs_alone(deaths: int, used: int, retries: int) -> bool:
    """Whether it may have no neighbour any more: it has seen two deaths, or one and has one try left.

    Without the second, a request that kills would take the last try of all that run beside it.
    """
    return deaths >= ALONE_AFTER or (deaths > 0 and used >= retries)


def joins_at(
    deaths: int,
    lost_at: float,
    deadline: float,
    came_at: float,
    *,
    suspects: int,
    instances: int,
    service_s: float,
) -> float:
    """Until when it waits for an instance of its own; there was one to wait for since ``came_at``.

    After one death most of those who were there are innocent, and they wait for each other, as newcomers
    do for them. So each of the ``suspects`` runs alone only if that is soon over for all: if an instance is
    left for the others, or they are done one by one, each in ``service_s``, within `ALONE_S` and half of
    the time that it has left. Else it is sent with others at once, as it is if that takes longer in the end.
    """
    if deaths >= ALONE_AFTER:
        return math.inf
    begin = max(lost_at, came_at)
    until = min((lost_at + deadline) / 2, begin + ALONE_S)
    if suspects >= instances and math.ceil(suspects / max(1, instances)) * service_s > until - begin:
        return lost_at
    return until
