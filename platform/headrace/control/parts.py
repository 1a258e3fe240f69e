"""Control's parts, made once the store is open, for those who need several of them."""

from __future__ import annotations

from dataclasses import dataclass

from headrace.control.blobs import Blobs
from headrace.control.claims import Claims
from headrace.control.deploy import Deployer
from headrace.control.history import History
from headrace.control.hosts import Hosts
from headrace.control.lifecycle import Lifecycle
from headrace.control.memory import Memory
from headrace.control.model import World
from headrace.control.pools import Pools
from headrace.control.ports import NodeManager
from headrace.control.reconcile import Reconciler
from headrace.control.routes import Routes
from headrace.control.store import Store
from headrace.control.vault import Vault
from headrace.control.warm import Warm


@dataclass(frozen=True)
class Parts:
    """Everything behind the management API."""

    epoch: int
    started_at: float
    world: World
    store: Store
    vault: Vault
    blobs: Blobs
    history: History
    routes: Routes
    claims: Claims
    warm: Warm
    reconciler: Reconciler
    hosts: Hosts
    pools: Pools
    memory: Memory
    deployer: Deployer
    lifecycle: Lifecycle
    nodes: NodeManager | None
    python_image: str = ""
    """The setting of that name."""
