"""How far hosts are with the images that instances wait for."""

from __future__ import annotations

from collections.abc import Iterable

from headrace import wire
from headrace.control.model import Host

IMAGE_TIMEOUT_S = 3600.0
"""So long an instance or a trial waits for its image to be pulled or built, as long as that goes on."""


def image_progress(hosts: Iterable[Host], base: wire.BaseSpec) -> str:
    """How far the image of a base is, where it is being made; empty when it is made nowhere."""
    for host in hosts:
        report = host.warm.get(base)
        if report is not None and report.unprepared and report.state == "starting":
            return report.detail
    return ""
