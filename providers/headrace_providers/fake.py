"""A provider without machines: for simulations, drills and plugin authors. Passes the conformance suite.

Failures are scheduled by `fail_next`, so that an outage or a quota can be rehearsed.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ClassVar

import msgspec

from headrace_providers.errors import InvalidRequest, NodeNotFound, ProviderError
from headrace_providers.offers import GIB, Node, NodeRequest, Offer


class FakeProvider:
    """Nodes that exist only here. A node is ``running`` ``boot_s`` seconds after its launch."""

    name: ClassVar[str] = "fake"

    def __init__(
        self, state_dir: Path | None = None, *, boot_s: float = 0.0, clock: Callable[[], float] = time.time
    ) -> None:
        self._boot_s = boot_s
        self._clock = clock
        self._nodes: dict[str, tuple[str, Node]] = {}
        self._failures: deque[ProviderError] = deque()

    def fail_next(self, *errors: ProviderError) -> None:
        """The next launches raise these, in order."""
        self._failures.extend(errors)

    async def list_offers(self) -> Sequence[Offer]:
        """Two made-up kinds, one of them spot."""
        return [
            Offer(
                provider=self.name, region="here", instance_type="small", cpu=4, memory=16 * GIB, price=0.2
            ),
            Offer(
                provider=self.name,
                region="here",
                instance_type="small",
                cpu=4,
                memory=16 * GIB,
                price=0.06,
                spot=True,
            ),
        ]

    async def launch(self, request: NodeRequest) -> Node:
        """See `Provider.launch`."""
        if request.id in self._nodes:
            return await self.get(request.id)
        if self._failures:
            raise self._failures.popleft()
        if request.cpu <= 0:
            raise InvalidRequest(f"cpu={request.cpu}: ask for more than 0.")
        node = Node(
            id=request.id, provider=self.name, region=request.region, instance_type=request.instance_type,
            state="pending", launched_at=self._clock(), spot=request.spot,
        )  # fmt: skip
        self._nodes[request.id] = (request.cluster, node)
        return await self.get(request.id)

    async def get(self, node_id: str) -> Node:
        """See `Provider.get`."""
        if node_id not in self._nodes:
            raise NodeNotFound(f"no node {node_id!r}: it was terminated or never launched.")
        cluster, node = self._nodes[node_id]
        if node.state == "pending" and self._clock() >= node.launched_at + self._boot_s:
            node = msgspec.structs.replace(node, state="running")
            self._nodes[node_id] = (cluster, node)
        return node

    async def list_owned(self, cluster: str) -> Sequence[Node]:
        """See `Provider.list_owned`."""
        return [
            await self.get(node_id) for node_id, (owner, _) in list(self._nodes.items()) if owner == cluster
        ]

    async def terminate(self, node_id: str) -> None:
        """See `Provider.terminate`."""
        self._nodes.pop(node_id, None)
