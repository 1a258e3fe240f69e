"""What a handler can ask about the request that it works on."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def traceparent() -> str:
    """The W3C ``traceparent`` of the current request, to be sent on; empty when it has none.

    OpenTelemetry in the handler's process needs no help: its spans belong to the trace already. ASGI apps
    find it in their headers, and requests of a batch have none of their own.
    """
    engine = sys.modules.get("hr_context")
    return str(engine.current()) if engine is not None else ""


def weights(name: str) -> Path:
    """The directory with the weights of that name, on every runtime: for ``load``.

    ``name`` is the last part of their ``path``. Raises ``FileNotFoundError`` where they are not: outside of
    an instance put a copy below ``$HEADRACE_WEIGHTS``.
    """
    found = Path(os.environ.get("HEADRACE_WEIGHTS", "/weights")) / name.removeprefix("/weights/")
    if not found.is_dir():
        raise FileNotFoundError(
            f"there are no weights at {found}: name them with @headrace.endpoint(weights=...), or put them "
            "below $HEADRACE_WEIGHTS when you run without a platform."
        )
    return found
