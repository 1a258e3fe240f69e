"""Values that cross the provider contract: frozen, without behaviour, serialisable to JSON."""

from __future__ import annotations

from typing import Literal

import msgspec

NodeState = Literal["pending", "running", "terminating", "terminated", "failed"]
GIB = 1 << 30


class Value(msgspec.Struct, frozen=True, kw_only=True):
    """Base of the values here."""


class Offer(Value, frozen=True, kw_only=True):
    """A kind of node that can be had. ``price`` in dollars per hour; 0 is one's own hardware."""

    provider: str
    region: str
    instance_type: str
    cpu: float
    memory: int
    gpu: dict[str, int] = {}
    price: float = 0.0
    spot: bool = False


class JoinInfo(Value, frozen=True, kw_only=True):
    """How a node joins the cluster. The token is named by a file, never in argv."""

    address: str
    """``host:port`` of the Ray head."""
    token_path: str
    """File (0600) that holds the cluster's Ray token."""
    command: tuple[str, ...] = ("ray", "start")
    """``ray start`` for a node on this machine (the platform's own variant keeps its ports on loopback)."""
    alive_path: str = ""
    """File that the platform holds an flock on while it runs; a node on this machine ends when it is free."""


class NodeRequest(Value, frozen=True, kw_only=True):
    """One node to launch. ``id`` is the caller's, written down before, and makes launch idempotent."""

    id: str
    cluster: str
    """Owner mark: `list_owned` gives only nodes that carry it."""
    region: str = "local"
    instance_type: str = "local"
    cpu: float = 1.0
    memory: int = GIB
    gpu: dict[str, int] = {}
    spot: bool = False
    labels: dict[str, str] = {}
    join: JoinInfo


class Node(Value, frozen=True, kw_only=True):
    """A node as the provider knows it."""

    id: str
    provider: str
    region: str
    instance_type: str
    state: NodeState
    launched_at: float = 0.0
    """Seconds since the Unix epoch."""
    price: float = 0.0
    spot: bool = False
    detail: str = ""
    """For people: why it failed, where its log is."""
