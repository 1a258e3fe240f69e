"""The suite every provider plugin passes: call `run` with a factory and a request that is cheap there.

    async def test_conformance(tmp_path):
        await conformance.run(lambda: MyProvider(tmp_path), request)

Each check is a function of its own, so that a failure names what is wrong.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import msgspec

from headrace_providers.base import Provider
from headrace_providers.errors import InvalidRequest, NodeNotFound
from headrace_providers.offers import Node, NodeRequest

POLL_S = 0.2


async def run(make: Callable[[], Provider], request: NodeRequest, *, boot_timeout_s: float = 60.0) -> None:
    """All checks, in order, on one node. Raises ``AssertionError`` that names what is wrong."""
    provider = make()
    await check_offers(provider)
    await check_unknown(provider)
    await check_invalid(provider, request)
    try:
        await check_launch(provider, request, boot_timeout_s)
        await check_launch_is_idempotent(provider, request)
        await check_owned(provider, make(), request)
    finally:
        await check_terminate(provider, request, boot_timeout_s)


async def check_offers(provider: Provider) -> None:
    """Offers carry the provider's name and possible figures."""
    for offer in await provider.list_offers():
        assert offer.provider == provider.name, f"offer of {offer.provider!r} from {provider.name!r}"
        possible = offer.cpu > 0 and offer.memory > 0 and offer.price >= 0
        assert possible, f"impossible figures: {offer}"


async def check_unknown(provider: Provider) -> None:
    """An unknown node is `NodeNotFound` for get and nothing for terminate."""
    await provider.terminate("n-never-launched")
    try:
        await provider.get("n-never-launched")
    except NodeNotFound:
        return
    raise AssertionError("get of an unknown node must raise NodeNotFound")


async def check_invalid(provider: Provider, request: NodeRequest) -> None:
    """A request that can never work is refused by type and leaves nothing."""
    bad = msgspec.structs.replace(request, id=f"{request.id}-bad", cpu=-1.0)
    try:
        await provider.launch(bad)
    except InvalidRequest:
        owned = {node.id for node in await provider.list_owned(request.cluster)}
        assert bad.id not in owned, "a refused launch left a node"
        return
    raise AssertionError("cpu=-1 must raise InvalidRequest")


async def check_launch(provider: Provider, request: NodeRequest, boot_timeout_s: float) -> Node:
    """A launched node becomes running."""
    node = await provider.launch(request)
    assert (node.id, node.provider) == (request.id, provider.name)
    deadline = time.monotonic() + boot_timeout_s
    while node.state != "running":
        assert node.state == "pending", f"{node.state}: {node.detail}"
        assert time.monotonic() < deadline, f"not running after {boot_timeout_s:g} s"
        await asyncio.sleep(POLL_S)
        node = await provider.get(request.id)
    return node


async def check_launch_is_idempotent(provider: Provider, request: NodeRequest) -> None:
    """The same id again is the same node, not a second one."""
    first, again = await provider.get(request.id), await provider.launch(request)
    assert again.launched_at == first.launched_at, "launch with the same id made a second node"


async def check_owned(provider: Provider, other: Provider, request: NodeRequest) -> None:
    """`list_owned` gives the node to its own cluster only, also through a new object (a restart)."""
    assert request.id in {node.id for node in await provider.list_owned(request.cluster)}
    assert request.id not in {node.id for node in await provider.list_owned(f"{request.cluster}-other")}
    if type(other).name != "fake":
        assert request.id in {node.id for node in await other.list_owned(request.cluster)}, (
            "lost by a restart"
        )


async def check_terminate(provider: Provider, request: NodeRequest, timeout_s: float) -> None:
    """After terminate (twice) the node is gone from `list_owned` within the time-out."""
    await provider.terminate(request.id)
    await provider.terminate(request.id)
    deadline = time.monotonic() + timeout_s
    while any(node.id == request.id for node in await provider.list_owned(request.cluster)):
        assert time.monotonic() < deadline, f"still owned {timeout_s:g} s after terminate"
        await asyncio.sleep(POLL_S)
