"""The provider contract. Everything else a provider may be able to do is a small capability class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Protocol, runtime_checkable

from headrace_providers.offers import Node, NodeRequest, Offer


@runtime_checkable
class Provider(Protocol):
    """Offers, launches, lists and terminates nodes. Raises only the types of `errors`.

    A plugin is constructed with ``state_dir``, a directory of its own (0700) that survives restarts
    of the platform on this machine; a provider that can ask its cloud needs nothing in it.
    """

    name: ClassVar[str]

    async def list_offers(self) -> Sequence[Offer]:
        """What can be had now, with prices."""
        ...

    async def launch(self, request: NodeRequest) -> Node:
        """Start a node and return at once, normally ``pending``. Idempotent by ``request.id``.

        Raises `InvalidRequest`, `QuotaExceeded`, `NoCapacity`, `AuthFailed`, `ProviderUnavailable`.
        """
        ...

    async def get(self, node_id: str) -> Node:
        """The node now. Raises `NodeNotFound`."""
        ...

    async def list_owned(self, cluster: str) -> Sequence[Node]:
        """Every node of this cluster that exists (costs money), whoever launched it."""
        ...

    async def terminate(self, node_id: str) -> None:
        """End the node. Returns when the provider has accepted; idempotent, also for a node that is gone."""
        ...


@runtime_checkable
class NoticesPreemption(Protocol):
    """Capability: knows some time ahead that a spot node will be taken."""

    async def preemption_notice(self, node_id: str) -> float | None:
        """Seconds until the node is taken, or None. Raises `NodeNotFound`."""
        ...
