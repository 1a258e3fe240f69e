"""The trace that a request belongs to, for its handler and for OpenTelemetry in the handler's process."""

from __future__ import annotations

import contextvars
import sys
from typing import Any, Callable

TRACEPARENT: "contextvars.ContextVar[str]" = contextvars.ContextVar("headrace_traceparent", default="")


def current() -> str:
    """The W3C ``traceparent`` of the request that this task or thread works on; empty: it has none."""
    return TRACEPARENT.get()


def run_in(header: bytes, work: Callable[..., None], *args: Any) -> None:
    """Run ``work``, and all tasks that it makes, in a context that has the trace."""
    contextvars.copy_context().run(_enter, header, work, args)


def _enter(header: bytes, work: Callable[..., None], args: Any) -> None:
    TRACEPARENT.set(header.decode("latin-1"))
    if "opentelemetry.trace" in sys.modules:
        _join(header.decode("latin-1"))
    work(*args)


def bound(job: Callable[[], None]) -> Callable[[], None]:
    """The job, to be run on another thread in the context of now, when that has a trace."""
    if not TRACEPARENT.get():
        return job
    context = contextvars.copy_context()
    return lambda: context.run(job)


def _join(value: str) -> None:
    """Spans that the user's code makes become children of ours."""
    try:
        from opentelemetry import context, propagate  # noqa: PLC0415 - the user's, when it is there

        context.attach(propagate.extract({"traceparent": value}))
    except Exception as error:
        print(f"headrace: OpenTelemetry did not take the trace: {error}", file=sys.stderr)
