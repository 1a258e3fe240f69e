"""Status, bundles, deployments, instances and hosts."""

from __future__ import annotations

import asyncio
import contextlib
import heapq
from collections import Counter
from collections.abc import Sequence
from typing import Any

import headrace
from headrace import wire
from headrace.control.api.describe import host_item, instance_item, use_item
from headrace.control.api.replies import page, reply, wait_of
from headrace.control.model import World
from headrace.control.parts import Parts
from headrace.control.pins import pin_images
from headrace.control.specs import checked, parse_deployment
from headrace.control.support import HINT, matrix, refused
from headrace.errors import NotFound, NotRunnable
from headrace.sdk.spec import EndpointSpec

Params = dict[str, str]
GATEWAY = "gateway"
"""Who asks for a scrape, in place of a key's id."""
MAX_IN_USE = 1000
"""Instances whose use a scrape gets by name."""
VERSION = getattr(headrace, "__version__", "0.1.0")


async def status(parts: Parts, call: wire.ApiCall, params: Params) -> wire.ApiReply:
    """Counts, for a first look."""
    world = parts.world
    return reply(
        {
            "version": VERSION,
            "epoch": parts.epoch,
            "started_at": parts.started_at,
            "gateways": parts.routes.gateways,
            "hosts": sum(1 for _ in world.living_hosts()),
            "endpoints": len(world.endpoints),
            "instances": sum(1 for i in world.instances.values() if i.alive),
            "instance_states": Counter(i.state for i in world.instances.values() if i.alive),
            "host_states": Counter(host.state for host in world.hosts.values()),
            "wakes": world.wakes,
            "adopting": parts.reconciler.adopting,
            "history_dropped": parts.history.dropped,
        }
        # Of all projects: not for a client, whatever it asks.
        | (
            {"use": in_use(world), "checkpoints": _checkpoints(world)}
            if call.query.get("use") and call.key_id == GATEWAY
            else {}
        )
    )


def in_use(world: World) -> list[dict[str, Any]]:
    """What the busiest instances of all projects use, for a scrape; `MAX_IN_USE` at most."""
    known = [(i, i.use) for i in world.instances.values() if i.use is not None]
    known = heapq.nlargest(MAX_IN_USE, known, key=lambda one: (one[1].cpu, one[1].memory))
    return [
        {"project": i.endpoint.project, "endpoint": i.endpoint.name, "instance": i.id, "host": i.host.id}
        | (use_item(use) or {})
        for i, use in known
    ]


def _checkpoints(world: World) -> list[dict[str, Any]]:
    return [{"host": host.id} | dict(host.checkpoints) for host in world.living_hosts() if host.checkpoints]


async def head_bundle(parts: Parts, call: wire.ApiCall, params: Params) -> wire.ApiReply:
    """Whether the bundle is here."""
    return wire.ApiReply(status=200 if parts.blobs.has(params["sha256"]) else 404)


async def put_bundle(parts: Parts, call: wire.ApiCall, params: Params) -> wire.ApiReply:
    """Store a bundle under its hash."""
    new = await parts.blobs.put(params["sha256"], call.body)
    return reply({"sha256": params["sha256"], "bytes": len(call.body)}, 201 if new else 200)


async def deploy(parts: Parts, call: wire.ApiCall, params: Params) -> wire.ApiReply:
    """Deploy endpoints; the answer says how to follow it."""
    # In a thread: ten thousand specs take a while, and heartbeats must be read meanwhile.
    request = await asyncio.to_thread(parse_deployment, call.body)
    specs = checked(request.specs, call.project, parts.blobs.has)
    parts.vault.require(specs)
    require_hosts(parts, specs)
    specs = await pin_images(parts.world, parts.blobs, specs, parts.python_image)
    deployment = await parts.deployer.deploy(specs, call.project, verify=request.verify)
    return reply(deployment.to_json(), 202)


def require_hosts(parts: Parts, specs: Sequence[EndpointSpec]) -> None:
    """Raises `NotRunnable` for what none of the hosts could ever run; without hosts nobody knows."""
    if parts.reconciler.adopting:
        # Those that can may not have come back yet.
        return
    hosts = [host.hello for host in parts.world.living_hosts()]
    for spec in specs:
        if why := refused(spec, hosts):
            raise NotRunnable(f"endpoint {spec.name!r}: {why}.", hint=HINT)


async def runtimes(parts: Parts, call: wire.ApiCall, params: Params) -> wire.ApiReply:
    """The support matrix of the living hosts."""
    return page(call, matrix((h.id, h.hello) for h in parts.world.living_hosts()), key="name")


async def show_deployment(parts: Parts, call: wire.ApiCall, params: Params) -> wire.ApiReply:
    """How far it is; with ``?wait=`` not before its end."""
    wait = wait_of(call)
    deployment = parts.deployer.get(params["id"], call.project)
    if wait:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait):
                await deployment.ended.wait()
    return reply(deployment.to_json())


async def cancel_deployment(parts: Parts, call: wire.ApiCall, params: Params) -> wire.ApiReply:
    """Give up what is not current yet; ask for its progress to see the end."""
    return reply(parts.deployer.cancel(params["id"], call.project).to_json(), 202)


async def instances(parts: Parts, call: wire.ApiCall, params: Params) -> wire.ApiReply:
    """All living instances of the project."""
    wanted = call.query.get("endpoint")
    items = [
        instance_item(parts.world, i)
        for i in parts.world.instances.values()
        if i.alive and i.endpoint.project == call.project and wanted in (None, i.endpoint.name)
    ]
    return page(call, items)


async def hosts(parts: Parts, call: wire.ApiCall, params: Params) -> wire.ApiReply:
    """All hosts, also those that died within the last minute."""
    return page(call, [host_item(host) for host in parts.world.hosts.values()])


async def nodes(parts: Parts, call: wire.ApiCall, params: Params) -> wire.ApiReply:
    """Nodes and providers belong to the node manager."""
    if parts.nodes is not None:
        return await parts.nodes.handle_api(call)
    if call.method == "GET" and call.path in ("/nodes", "/providers"):
        if call.path == "/providers":
            return page(call, [])
        seen = {h.hello.node: h for h in parts.world.living_hosts()}
        items = [
            {
                "id": n,
                "provider": h.hello.provider,
                "region": h.hello.region,
                "state": h.state,
                "host": h.id,
                "managed": False,
                "cpu": h.hello.resources.cpu,
                "memory": h.hello.resources.memory,
            }
            for n, h in seen.items()
        ]
        return page(call, items)
    raise NotFound("nodes cannot be changed here.", hint="`headrace up` can; `headrace dev` has one node.")
