"""What a handler can ask about the request that it works on."""

from __future__ import annotations

import sys


def traceparent() -> str:
    """The W3C ``traceparent`` of the current request, to be sent on; empty when it has none.

    OpenTelemetry in the handler's process needs no help: its spans belong to the trace already. ASGI apps
    find it in their headers, and requests of a batch have none of their own.
    """
    engine = sys.modules.get("hr_context")
    return str(engine.current()) if engine is not None else ""
