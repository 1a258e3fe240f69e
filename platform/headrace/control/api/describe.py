"""Endpoints, instances and hosts as the management API shows them."""

from __future__ import annotations

from typing import Any

import msgspec

from headrace import wire
from headrace.control.model import Ended, Endpoint, Host, Instance, World, wall
from headrace.sdk.spec import EndpointSpec, ImageSpec


def endpoint_item(world: World, endpoint: Endpoint) -> dict[str, Any]:
    """One line of the list."""
    in_flight, queued, _ = endpoint.seen(world.now())
    return {
        "name": endpoint.name,
        "project": endpoint.project,
        "state": endpoint.state,
        "version": endpoint.version,
        "reason": endpoint.reason,
        "runtime": endpoint.spec.runtime,
        "instances": sum(1 for i in endpoint.instances.values() if i.alive),
        "in_flight": in_flight,
        "queued": queued,
        "wakes": endpoint.wakes,
    }


def instance_item(world: World, instance: Instance) -> dict[str, Any]:
    """One instance."""
    report = instance.report
    return {
        "id": instance.id,
        "endpoint": instance.endpoint.name,
        "project": instance.endpoint.project,
        "version": instance.version,
        "state": instance.state,
        "host": instance.host.id,
        "node": instance.host.hello.node,
        "provider": instance.host.hello.provider,
        "runtime": report.runtime if report else instance.endpoint.spec.runtime,
        "pid": report.pid if report else 0,
        "address": report.address if report else "",
        "started_at": report.started_at if report and report.started_at else wall(world, instance.started),
        "tier": report.tier if report else None,
        "in_flight": instance.in_flight,
        "timings": msgspec.to_builtins(report.timings) if report else None,
        "note": report.note if report else "",
        "unready": instance.unready,
        "use": use_item(instance.use),
    }


def environment(spec: EndpointSpec) -> dict[str, Any]:
    """What a version runs in: the same for all its instances, whenever and wherever they start."""
    image = spec.image
    return {
        "runtime": spec.runtime,
        "image": {"digest": image.digest, "steps": image_steps(image)} if image.digest else None,
        "network": msgspec.to_builtins(spec.network),
        "weights": [{"source": w.source.partition("?")[0], "path": w.path} for w in spec.weights],
        "probes": {name: p for name, p in msgspec.to_builtins(spec.probes).items() if p is not None},
    }


def image_steps(image: ImageSpec) -> list[str]:
    """An image in words, one step each; an image of a registry with the digest that was found."""
    start = [f"python {image.python}"] if image.python else []
    return start + [f"{kind} {' '.join(words)}" for kind, words in image.layers]


def use_item(use: wire.InstanceUse | None) -> dict[str, Any] | None:
    """What an instance uses, all members always there; None when nobody has looked yet."""
    return None if use is None else {field: getattr(use, field) for field in use.__struct_fields__}


def death_item(ended: Ended | None) -> dict[str, Any] | None:
    """How the last instance that nobody had asked to end has ended."""
    if ended is None:
        return None
    death = ended.death
    return {
        "at": ended.at,
        "instance": ended.instance,
        "runtime": ended.runtime,
        "reason": death.reason,
        "detail": death.detail,
        "exit_code": death.exit_code,
        "signal": death.signal,
        "traceback": death.traceback,
        "log": list(death.log),
    }


def host_item(host: Host) -> dict[str, Any]:
    """One host; ``cost`` is its price per hour (0 for machines of one's own)."""
    cpu, memory, gpu = host.free()
    hello = host.hello
    return {
        "id": host.id,
        "node": hello.node,
        "provider": hello.provider,
        "region": hello.region,
        "kind": hello.kind,
        "spot": hello.spot,
        "price": hello.price,
        "state": host.state,
        "resources": {
            "cpu": hello.resources.cpu,
            "memory": hello.resources.memory,
            "gpu": hello.resources.gpu,
            "free": {"cpu": cpu, "memory": memory, "gpu": gpu},
        },
        "warm": [
            {
                "runtime": r.base.runtime,
                "preload": list(r.base.preload),
                "imports": list(r.base.imports),
                "loaded": r.base.loaded.endpoint if r.base.loaded else None,
                "version": r.base.loaded.version if r.base.loaded else None,
                "pid": r.pid,
                "state": r.state,
                "spares": r.spares,
                "bytes": r.bytes,
                "refused": r.refused,
                "detail": r.detail,
            }
            for r in host.warm.values()
        ],
        "instances": len(host.instances),
        "cost": hello.price,
        "labels": hello.labels,
    }
