"""What hosts can run: the support matrix, and why an endpoint would run on none of them. Pure."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence
from typing import Any
from urllib.parse import urlsplit

from headrace_runtimes.addresses import is_public

from headrace import wire
from headrace.sdk.spec import EndpointSpec

PROCESS = "process"
HINT = "`headrace runtimes` shows what hosts can run, and why not."


def refused(spec: EndpointSpec, hosts: Sequence[wire.HostHello]) -> str:
    """Why none of these hosts could ever run it, in one line; empty when one could, or there are none.

    Only what follows from runtimes and settings: room and accelerators may come.
    """
    reasons = [_why_not(spec, hello) for hello in hosts]
    return "" if not all(reasons) or not reasons else reasons[0]


def _why_not(spec: EndpointSpec, hello: wire.HostHello) -> str:
    name = spec.runtime
    if name not in hello.runtimes:
        why = hello.missing.get(name) or "it is not among those that the host offers (setting runtimes)"
        return f'no host has runtime "{name}" (there is {", ".join(hello.runtimes)}): {why}'
    if name != PROCESS:
        unable = hello.capabilities.get(name, {})
        for capability, option in _needs(spec, hello):
            if why := unable.get(capability, ""):
                return f'{option}: no host\'s runtime "{name}" can do that: {why}'
        if spec.network is not None and spec.network.mode == "host" and not hello.host_network:
            return (
                'network="host": no host allows it, for the instance would reach the host\'s own services: '
                'set allow_host_network (HEADRACE_ALLOW_HOST_NETWORK=1) there, or use "egress"'
            )
    for weights in spec.weights:
        if why := _source_refused(weights.source, hello):
            return f"weights {weights.source.partition('?')[0]}: {why}"
    return ""


def _needs(spec: EndpointSpec, hello: wire.HostHello) -> Iterable[tuple[str, str]]:
    """(capability, the option that needs it) of a container."""
    if spec.image.digest:
        yield "images", "image"
    if spec.network is not None and spec.network.mode != "host":
        yield "networks", f'network="{spec.network.mode}"'
    if spec.gpu and not hello.resources.gpu:
        # A host that counts accelerators has been told of them, or has found them.
        yield "devices", "gpu"
    probes = (spec.probes.startup, spec.probes.readiness, spec.probes.liveness)
    if any(probe is not None and probe.exec for probe in probes):
        yield "exec", "probes: exec"


def _source_refused(source: str, hello: wire.HostHello) -> str:
    """What can be said without asking anybody: names are looked up, and links followed, by the host."""
    allowed = (
        "no host may read there for endpoints: add it to weights_allow (HEADRACE_WEIGHTS_ALLOW) of hosts"
    )
    if source.startswith("/"):
        known = any(_below(source, prefix) for prefix in hello.weights_allow if prefix.startswith("/"))
        # Below none of them it may still lead to one, by a link: the host knows.
        return "" if known or any(p.startswith("/") for p in hello.weights_allow) else allowed
    if source.startswith("s3://"):
        return "" if any(_below(source, prefix) for prefix in hello.weights_allow) else allowed
    host = urlsplit(source).hostname or ""
    if hello.weights_private or not _is_private(host):
        return ""
    return (
        f"{host} is a private address: set weights_private (HEADRACE_WEIGHTS_PRIVATE=1) of hosts to allow it"
    )


def _below(source: str, prefix: str) -> bool:
    return source == prefix or source.startswith(prefix.rstrip("/") + "/")


def _is_private(host: str) -> bool:
    try:
        return not is_public(ipaddress.ip_address(host))
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def matrix(hosts: Iterable[tuple[str, wire.HostHello]]) -> list[dict[str, Any]]:
    """Each runtime that a host offers or has installed: where it is, what it can do there, and why not."""
    rows: dict[str, dict[str, Any]] = {}
    for id, hello in hosts:
        for name in (*hello.runtimes, *hello.missing):
            row = rows.setdefault(name, {"name": name, "hosts": [], "capabilities": {}, "missing": {}})
            if name not in hello.runtimes:
                row["missing"][id] = hello.missing[name]
                continue
            row["hosts"].append(id)
            for capability, why in hello.capabilities.get(name, {}).items():
                able = row["capabilities"].setdefault(capability, {"hosts": [], "why_not": {}})
                if why:
                    able["why_not"][id] = why
                else:
                    able["hosts"].append(id)
    return list(rows.values())
