"""W3C trace context, and what the gateway needs of a tracer. Nothing here imports OpenTelemetry."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from contextvars import ContextVar
from typing import Literal, NamedTuple, Protocol

log = logging.getLogger("headrace.observe")

CURRENT: ContextVar[str] = ContextVar("headrace_traceparent", default="")
"""The traceparent under which this task works; empty: none."""
MAX_TRACEPARENT = 512
_TRACEPARENT = re.compile(
    rb"(?!ff)([0-9a-f]{2})-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(-.*)?"
)
_SAMPLED = 0x01

Kind = Literal["server", "client", "consumer", "internal"]
Attributes = Mapping[str, str | int | float | bool]


class SpanRef(NamedTuple):
    """What names a span to others."""

    trace_id: int
    span_id: int
    sampled: bool

    def header(self) -> str:
        """As a ``traceparent``."""
        return f"00-{self.trace_id:032x}-{self.span_id:016x}-{int(self.sampled):02x}"


class Span(NamedTuple):
    """A span that has ended. Times are nanoseconds since the Unix epoch."""

    ref: SpanRef
    parent: SpanRef | None
    name: str
    kind: Kind
    start: int
    end: int
    attributes: Attributes
    error: str = ""
    """Why it failed; empty: it did not."""


class Tracing(Protocol):
    """Makes ids, and takes spans. Never blocks, never raises."""

    def begin(self, parent: SpanRef | None, name: str) -> SpanRef:
        """A span that continues the caller's trace, or begins one; the sampler says whether it is kept."""

    def child(self, parent: SpanRef) -> SpanRef:
        """A span below another one of ours."""

    def record(self, span: Span) -> None:
        """Keep a span for export; dropped when it was not sampled, or when too many wait."""

    async def close(self) -> None:
        """Export what waits, within a few seconds."""


def parse(value: bytes) -> SpanRef | None:
    """A ``traceparent`` header; None when it is not well-formed, which starts a new trace."""
    if len(value) > MAX_TRACEPARENT:
        return None
    match = _TRACEPARENT.fullmatch(value)
    if match is None or (match[5] and match[1] == b"00"):
        return None
    return SpanRef(int(match[2], 16), int(match[3], 16), bool(int(match[4], 16) & _SAMPLED))


def wanted(environ: Mapping[str, str]) -> bool:
    """Whether spans are to be exported: an OTLP endpoint is configured, and nothing turns it off."""
    if environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return False
    if environ.get("OTEL_TRACES_EXPORTER", "otlp").strip().lower() not in ("", "otlp"):
        return False
    return bool(
        environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") or environ.get("OTEL_EXPORTER_OTLP_ENDPOINT")
    )


def open_tracing(environ: Mapping[str, str], instance: str, version: str) -> Tracing | None:
    """The exporter that ``OTEL_*`` asks for; None when none is configured or its package is missing."""
    if not wanted(environ):
        return None
    try:
        from headrace.observe.otlp import OtlpTracing  # noqa: PLC0415 - optional, and 100 ms to import
    except ImportError as error:
        log.warning(
            "OTEL_EXPORTER_OTLP_ENDPOINT is set, but %s is not installed: no traces. Use headrace[otel].",
            error.name,
        )
        return None
    return OtlpTracing(environ, instance, version)
