"""The turns of an instance between running and paused: states, and what is done at each event. Pure.

Commands may come twice (a link was lost and the same is said again) and in the middle of the one before:
the last one counts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

Turn = Literal["running", "pausing", "recalled", "parked", "resuming", "leaving"]
"""``recalled``: wanted back while it is being frozen. ``leaving``: it is to end, or has."""
Event = Literal["pause", "resume", "frozen", "busy", "thawed", "lost", "stop"]
"""``busy``: it could not be frozen; ``lost``: it could not go on."""
Effect = Literal["none", "tell", "freeze", "thaw", "end"]
"""``tell``: control hears how it is."""

MOVES: Mapping[Turn, Mapping[Event, tuple[Turn, Effect]]] = {
    "running": {"pause": ("pausing", "freeze"), "resume": ("running", "tell")},
    "pausing": {"resume": ("recalled", "none"), "frozen": ("parked", "tell"), "busy": ("leaving", "end")},
    "recalled": {"pause": ("pausing", "none"), "frozen": ("resuming", "thaw"), "busy": ("running", "tell")},
    "parked": {"pause": ("parked", "tell"), "resume": ("resuming", "thaw")},
    "resuming": {"thawed": ("running", "tell"), "lost": ("leaving", "end")},
    "leaving": {},
}
"""What is not here changes nothing."""


def move(turn: Turn, event: Event) -> tuple[Turn, Effect]:
    """The state after an event, and what is to be done."""
    if event == "stop":
        return "leaving", "none"
    return MOVES[turn].get(event, (turn, "none"))
