"""How far hosts are with the images that instances wait for."""

from __future__ import annotations

from collections.abc import Iterable

from headrace import wire
from headrace.control.model import Host

TOLD_HOSTS = 3
"""So many are told by name."""
IMAGE_TIMEOUT_S = 3600.0
"""So long an instance or a trial waits for its image to be pulled or built, as long as that goes on."""


def image_progress(hosts: Iterable[Host], base: wire.BaseSpec) -> str:
    """How far the image of a base is, on each host that makes it; empty when it is made nowhere."""
    found: list[tuple[str, str]] = []
    for host in hosts:
        report = host.warm.get(base)
        if report is not None and report.unprepared and report.state == "starting":
            found.append((host.hello.node, report.detail))
    if len(found) < 2:
        return found[0][1] if found else ""
    told = "; ".join(f"{node}: {detail}" for node, detail in found[:TOLD_HOSTS])
    more = len(found) - TOLD_HOSTS
    return told + (f"; and {more} more" if more > 0 else "")
