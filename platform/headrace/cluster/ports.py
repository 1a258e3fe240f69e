"""What control may ask of the cluster that it runs on, without knowing which cluster that is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import msgspec

KIND_LABEL = "headrace.kind"
NODE_LABEL = "headrace.node"
PROVIDER_LABEL = "headrace.provider"
GENERIC = "generic"


class ClusterNode(msgspec.Struct, frozen=True, kw_only=True):
    """One node as the cluster knows it. ``memory`` in bytes."""

    id: str
    """The cluster's own id of the node (Ray: hex); `NodeOps.drain_node` takes it."""
    name: str
    """The platform's name of the node: label ``headrace.node``, else the id. A host's ``node`` is this."""
    address: str
    alive: bool
    head: bool
    draining: bool = False
    kind: str = GENERIC
    labels: dict[str, str] = {}
    cpu: float = 0.0
    memory: int = 0


class NodeOps(Protocol):
    """Given to Control; every call is bounded in time and raises ``TimeoutError`` or ``OSError``."""

    async def nodes(self) -> Sequence[ClusterNode]:
        """All nodes that the cluster knows, dead ones included."""

    async def set_hosts(self, kind: str, count: int) -> None:
        """Run ``count`` hosts on the nodes of ``kind``, at most one on each."""

    async def drain_node(self, node_id: str, deadline_s: float) -> None:
        """Take no new work on the node; the cluster ends it after ``deadline_s``. Unknown ids are ignored."""

    def join_address(self) -> str:
        """``host:port`` that a new node joins with."""


def hosts_wanted(nodes: Sequence[ClusterNode], kind: str) -> int:
    """One host for each living node of the kind that is not on its way out; never below one."""
    return max(1, sum(1 for n in nodes if n.alive and not n.draining and n.kind == kind))
