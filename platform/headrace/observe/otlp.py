"""Spans to an OTLP collector over HTTP: batched, bounded, in a thread of the OpenTelemetry SDK."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Mapping

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import Decision
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import (
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    set_span_in_context,
)

from headrace.observe.tracing import Kind, Span, SpanRef

log = logging.getLogger("headrace.observe")

CLOSE_TIMEOUT_S = 5.0
_KINDS: dict[Kind, SpanKind] = {
    "server": SpanKind.SERVER,
    "client": SpanKind.CLIENT,
    "consumer": SpanKind.CONSUMER,
    "internal": SpanKind.INTERNAL,
}


class OtlpTracing:
    """See `headrace.observe.tracing.Tracing`. Endpoint, headers, sampler, batches: as ``OTEL_*`` says."""

    def __init__(self, environ: Mapping[str, str], instance: str, version: str) -> None:
        if environ.get("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf") != "http/protobuf":
            log.warning("OTEL_EXPORTER_OTLP_PROTOCOL: only http/protobuf is spoken here")
        about = {"service.instance.id": instance, "service.version": version}
        if "OTEL_SERVICE_NAME" not in environ and "service.name=" not in environ.get(
            "OTEL_RESOURCE_ATTRIBUTES", ""
        ):
            about["service.name"] = "headrace-gateway"
        self._provider = TracerProvider(resource=Resource.create(dict(about)), shutdown_on_exit=False)
        self._processor = BatchSpanProcessor(OTLPSpanExporter())
        self._scope = InstrumentationScope("headrace.gateway", version)
        self._closed = False

    def begin(self, parent: SpanRef | None, name: str) -> SpanRef:
        """See `Tracing.begin`."""
        ids = self._provider.id_generator
        trace_id = parent.trace_id if parent is not None else ids.generate_trace_id()
        above = (
            Context()
            if parent is None
            else set_span_in_context(NonRecordingSpan(_context(parent, remote=True)))
        )
        decision = self._provider.sampler.should_sample(above, trace_id, name).decision
        sampled = decision is Decision.RECORD_AND_SAMPLE
        return SpanRef(trace_id, ids.generate_span_id(), sampled)

    def child(self, parent: SpanRef) -> SpanRef:
        """See `Tracing.child`."""
        return SpanRef(parent.trace_id, self._provider.id_generator.generate_span_id(), parent.sampled)

    def record(self, span: Span) -> None:
        """See `Tracing.record`."""
        if not span.ref.sampled or self._closed:
            return
        self._processor.on_end(
            ReadableSpan(
                name=span.name,
                context=_context(span.ref),
                parent=_context(span.parent) if span.parent is not None else None,
                resource=self._provider.resource,
                attributes=span.attributes,
                kind=_KINDS[span.kind],
                instrumentation_scope=self._scope,
                status=Status(StatusCode.ERROR, span.error) if span.error else Status(),
                start_time=span.start,
                end_time=max(span.start, span.end),
            )
        )

    async def close(self) -> None:
        """See `Tracing.close`."""
        self._closed = True
        loop, done = asyncio.get_running_loop(), asyncio.Event()

        def run() -> None:
            self._processor.shutdown()  # type: ignore[no-untyped-call]
            with contextlib.suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(done.set)

        # A thread that nobody waits for: a collector that hangs must not hold up the end of the process.
        threading.Thread(target=run, name="headrace-spans-end", daemon=True).start()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                await done.wait()


def _context(ref: SpanRef, *, remote: bool = False) -> SpanContext:
    return SpanContext(ref.trace_id, ref.span_id, remote, TraceFlags(int(ref.sampled)))
