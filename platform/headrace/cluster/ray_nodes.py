"""What control may ask of a Ray cluster (`headrace.cluster.ports.NodeOps`), and one host on each node.

Lives in the replica of control. Ray's calls block, so they run in one thread of their own.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import ray

from headrace.cluster import ray_private
from headrace.cluster.ports import GENERIC, KIND_LABEL, NODE_LABEL, ClusterNode, hosts_wanted

log = logging.getLogger("headrace.cluster.nodes")
T = TypeVar("T")

APP = "headrace"
HOST_DEPLOYMENTS = {GENERIC: "Host"}
"""Kind of node -> name of its deployment."""
CALL_TIMEOUT_S = 10.0
WATCH_PERIOD_S = 1.0


def to_node(entry: dict[str, Any], draining: set[str]) -> ClusterNode:
    """One entry of ``ray.nodes()`` as the platform knows nodes."""
    labels = dict(entry.get("Labels") or {})
    resources = entry.get("Resources") or {}
    return ClusterNode(
        id=entry["NodeID"],
        name=labels.get(NODE_LABEL, entry["NodeID"]),
        address=entry.get("NodeManagerAddress", ""),
        alive=bool(entry["Alive"]),
        head="node:__internal_head__" in resources,
        draining=entry["NodeID"] in draining,
        kind=labels.get(KIND_LABEL, GENERIC),
        labels=labels,
        cpu=float(resources.get("CPU", 0.0)),
        memory=int(resources.get("memory", 0)),
    )


def known_nodes() -> list[ClusterNode]:
    """All nodes of the cluster that this process is connected to. Blocks for two calls to the GCS."""
    draining = ray_private.draining_nodes()
    return [to_node(entry, draining) for entry in ray.nodes()]  # type: ignore[no-untyped-call]


class RayNodes:
    """`NodeOps` on Ray. `watch` keeps one host per living node; `close` ends it."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="ray")
        self._controller: Any = None
        self._told: dict[str, int] = {}

    async def nodes(self) -> list[ClusterNode]:
        """See `NodeOps.nodes`."""
        return await self._call(known_nodes)

    async def set_hosts(self, kind: str, count: int) -> None:
        """See `NodeOps.set_hosts`. Raises ``KeyError`` for a kind that has no deployment."""
        deployment = HOST_DEPLOYMENTS[kind]

        def tell() -> None:
            if self._controller is None:
                self._controller = ray_private.serve_controller()
            ray.get(
                ray_private.set_replicas(self._controller, APP, deployment, count), timeout=CALL_TIMEOUT_S / 2
            )

        await self._call(tell)
        self._told[kind] = count

    async def drain_node(self, node_id: str, deadline_s: float) -> None:
        """See `NodeOps.drain_node`."""
        accepted, why = await self._call(
            lambda: ray_private.drain_node(node_id, "removed by headrace", deadline_s)
        )
        if not accepted:
            log.warning("the cluster does not drain node %s: %s", node_id, why)

    def join_address(self) -> str:
        """See `NodeOps.join_address`."""
        return str(ray.get_runtime_context().gcs_address)

    async def watch(self) -> None:
        """Keep the number of hosts at the number of nodes, until cancelled. New trouble is logged."""
        trouble = ""
        while True:
            try:
                nodes = await self.nodes()
                for kind in HOST_DEPLOYMENTS:
                    wanted = hosts_wanted(nodes, kind)
                    if self._told.get(kind) != wanted:
                        await self.set_hosts(kind, wanted)
                        log.info("hosts of kind %s: %d", kind, wanted)
                trouble = ""
            except Exception as error:
                # Ray raises many types here, and all of them mean: not now.
                if repr(error) != trouble:
                    log.warning("the cluster's nodes could not be read", exc_info=True)
                trouble = repr(error)
            await asyncio.sleep(WATCH_PERIOD_S)

    async def close(self) -> None:
        """Give up the thread; a call that hangs in it is left to end with the process."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _call(self, function: Callable[[], T]) -> T:
        try:
            async with asyncio.timeout(CALL_TIMEOUT_S):
                return await asyncio.get_running_loop().run_in_executor(self._thread, function)
        except (ray.exceptions.RayError, RuntimeError, ValueError) as error:
            # As `NodeOps` promises: whoever asks knows nothing of Ray.
            raise OSError(f"Ray: {error}") from error
