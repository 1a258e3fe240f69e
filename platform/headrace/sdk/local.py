"""Runs a decorated class in place: one loaded instance per endpoint and process."""

from __future__ import annotations

import threading
from typing import Any

from headrace.errors import UsageError

_lock = threading.RLock()


def loaded_instance(owner: Any, cls: type) -> Any:
    """The endpoint's instance, made and loaded by the first caller. Raises what ``load`` raises."""
    with _lock:
        if owner._instance is not None:
            return owner._instance
        instance = cls()
        load = getattr(instance, "load", None)
        if load is not None:
            _finish(load(), cls)
        return instance


def _finish(result: Any, cls: type) -> None:
    """Wait for an async ``load``."""
    if not hasattr(result, "__await__"):
        return
    import asyncio  # noqa: PLC0415 - most handlers need no loop here, and it is slow to import

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        asyncio.run(_awaited(result))
        return
    result.close()
    raise UsageError(
        f"{cls.__name__}.load is async and an event loop runs here already.",
        hint="Call .local(...) once outside of it, for example in a thread.",
    )


async def _awaited(result: Any) -> None:
    await result
