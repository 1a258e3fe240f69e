"""Nodes from providers: launched after their intent is written, drained before they go, never orphaned.

`plan` is the pure part: from what was intended, what providers say exists, and which hosts joined, it says
what to do next. `Nodes` does it, once per `PERIOD_S` and when asked through the API.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec
from headrace_providers.offers import Node

LAUNCH_GRACE_S = 120.0
"""A node whose provider does not know it is given up this long after its launch was written."""
DRAIN_GRACE_S = 30.0

State = Literal["launching", "joining", "ready", "draining", "lost", "failed"]
MOVES: dict[State, tuple[State, ...]] = {
    "launching": ("joining", "ready", "draining", "failed"),
    "joining": ("ready", "draining", "lost", "failed"),
    "ready": ("joining", "draining", "lost"),
    "draining": (),
    "lost": (),
    "failed": (),
}
"""Legal moves. What is terminated is removed from the table; ``lost`` and ``failed`` stay until deleted."""


class Known(msgspec.Struct, frozen=True, kw_only=True):
    """A node as control remembers it."""

    id: str
    provider: str
    state: State
    since: float
    """When it was written, or came into ``draining``."""


class Do(msgspec.Struct, frozen=True, kw_only=True):
    """One thing to do: move the node to ``state``, or ``terminate`` it at its provider, or ``forget`` it."""

    node: str
    provider: str
    what: Literal["move", "terminate", "forget"]
    state: State | None = None
    reason: str = ""


def plan(
    now: float,
    known: Sequence[Known],
    owned: Sequence[Node],
    *,
    joined: frozenset[str],
    busy: frozenset[str],
    asked: frozenset[str],
) -> list[Do]:
    """What to do now. ``joined``: nodes with a live host; ``busy``: those whose host has instances.

    ``asked``: providers that answered this time.

    A provider that did not answer is a reason for nothing: its nodes stay as they are.
    """
    exists = {node.id: node for node in owned}
    mine = {node.id for node in known}
    todo: list[Do] = []
    for node in known:
        if node.provider in asked:
            todo += _next(now, node, exists.get(node.id), node.id in joined, node.id in busy)
    for node_id, stray in exists.items():
        if node_id not in mine and stray.state in ("pending", "running", "failed"):
            todo.append(
                Do(
                    node=node_id,
                    provider=stray.provider,
                    what="terminate",
                    reason="no intent names it: nobody owns it",
                )
            )
    return todo


def _next(now: float, node: Known, there: Node | None, has_host: bool, busy: bool) -> list[Do]:  # noqa: PLR0911 - a table
    def move(state: State, reason: str) -> list[Do]:
        return [Do(node=node.id, provider=node.provider, what="move", state=state, reason=reason)]

    if node.state in ("lost", "failed"):
        if there is None or there.state == "terminating":
            return []
        # Its provider still has something of it, which may cost money.
        return [Do(node=node.id, provider=node.provider, what="terminate", reason=f"it is {node.state}")]
    if node.state == "draining":
        if there is None:
            return [Do(node=node.id, provider=node.provider, what="forget", reason="it is gone")]
        if there.state != "terminating" and (not busy or now - node.since > DRAIN_GRACE_S):
            return [Do(node=node.id, provider=node.provider, what="terminate", reason="drained")]
        return []
    if there is None or there.state in ("failed", "terminated", "terminating"):
        detail = there.detail if there is not None else ""
        if node.state == "launching":
            if there is None and now - node.since < LAUNCH_GRACE_S:
                return []
            return move("failed", detail or "its provider does not know it")
        return move("lost", detail or "its provider does not know it any more")
    if has_host:
        return [] if node.state == "ready" else move("ready", "its host joined")
    if node.state == "launching" and there.state == "running":
        return move("joining", "it runs; its host has not joined yet")
    if node.state == "ready":
        return move("joining", "its host is away")
    return []
