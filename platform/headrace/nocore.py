"""No core dumps of processes through which secrets pass."""

from __future__ import annotations

import contextlib
import resource

NONE = 1
"""Bytes. Less than any dump has; the kernel takes it as "none" also where a program would get it."""


def forbid_core_dumps() -> None:
    """This process, and those that it starts, leave no memory behind when they crash."""
    _, hard = resource.getrlimit(resource.RLIMIT_CORE)
    soft = NONE if hard == resource.RLIM_INFINITY else min(NONE, hard)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_CORE, (soft, hard))
