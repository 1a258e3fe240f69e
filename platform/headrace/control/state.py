"""The legal moves of an endpoint, an instance and a host, as tables: else it is a bug or a stale message."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from headrace import wire
from headrace.errors import HeadraceError

Moves = Mapping[str, frozenset[str]]

ENDPOINT: Moves = {
    "deploying": frozenset({"ready", "idle", "failed", "updating", "deleting"}),
    "ready": frozenset({"idle", "updating", "failed", "deleting"}),
    "idle": frozenset({"ready", "updating", "failed", "deleting"}),
    "updating": frozenset({"ready", "idle", "failed", "deleting"}),
    "failed": frozenset({"deploying", "ready", "idle", "updating", "deleting"}),
    "deleting": frozenset(),
}
"""``deploying`` has no current version yet; ``failed`` leaves by a success, a new deployment, or a wake."""

INSTANCE: Moves = {
    "starting": frozenset({"ready", "draining", "stopped", "failed"}),
    "ready": frozenset({"paused", "draining", "stopped", "failed"}),
    "paused": frozenset({"ready", "draining", "stopped", "failed"}),
    "draining": frozenset({"stopped", "failed"}),
    "stopped": frozenset(),
    "failed": frozenset(),
}

HOST: Moves = {
    "joining": frozenset({"ready", "dead"}),
    "ready": frozenset({"suspect", "draining", "dead"}),
    "suspect": frozenset({"ready", "draining", "dead"}),
    "draining": frozenset({"dead"}),
    "dead": frozenset({"ready"}),
}
"""``dead`` to ``ready``: the same incarnation was only unreachable and is back with its inventory."""


class IllegalMove(HeadraceError):
    """A move that its table does not have."""


def allowed(table: Moves, old: str, new: str) -> bool:
    """Whether ``old`` may become ``new``; staying is always allowed."""
    return old == new or new in table[old]


def check(table: Moves, old: str, new: str) -> None:
    """Raises `IllegalMove` unless `allowed`."""
    if not allowed(table, old, new):
        raise IllegalMove(f"{old} cannot become {new}.", hint="Report this with control's log.")


class EndpointFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What an endpoint's state follows from."""

    deleting: bool = False
    has_version: bool = True
    """It has a current version."""
    trial: bool = False
    """A new version is being verified."""
    old_instances: bool = False
    """Instances of the version before are being replaced."""
    ready: int = 0
    """Ready instances that take requests, of any version."""
    failing: bool = False
    """The last start failed and none has succeeded since."""


def endpoint_state(facts: EndpointFacts) -> wire.EndpointState:
    """The state that follows from the facts."""
    if facts.deleting:
        return "deleting"
    if not facts.has_version:
        return "deploying" if facts.trial else "failed"
    if facts.trial or facts.old_instances:
        return "updating"
    if facts.failing and not facts.ready:
        return "failed"
    return "ready" if facts.ready else "idle"
