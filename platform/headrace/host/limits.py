"""What instances of runtimes that can hold limits are held to. Pure."""

from __future__ import annotations

from typing import NamedTuple

from headrace import wire

SHARE = 4
"""An instance that declares no memory gets this part of the host's: one quarter."""


class Limits(NamedTuple):
    """``memory`` in bytes, ``cpu`` in cores; None: none."""

    memory: int | None
    cpu: float | None


def limits_of(spec: wire.InstanceSpec, host: wire.Resources, *, held: bool) -> Limits:
    """What one instance may use. ``held``: whether its runtime's kernel limits are there.

    A container always has a memory limit: what it declares, else a share of the host and never less than what
    is reserved for it. Cores are limited when they are declared.
    """
    if not held:
        return Limits(spec.memory_limit, None)
    return Limits(spec.memory_limit or max(spec.memory, host.memory // SHARE), spec.cpu_limit)
