from __future__ import annotations

import asyncio
import os
import socket
import time

from headrace.observe import otlp
from headrace.observe.tracing import Span


async def test_a_collector_that_hangs_holds_up_neither_requests_nor_the_end(monkeypatch):
    loop = asyncio.get_running_loop()
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setblocking(False)
    port = listener.getsockname()[1]
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "3")
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "512")
    monkeypatch.setattr(otlp, "CLOSE_TIMEOUT_S", 0.1)
    tracing = otlp.OtlpTracing(os.environ, "gw", "1")
    now = time.time_ns()

    def tell() -> None:
        ref = tracing.begin(None, "x")
        tracing.record(Span(ref, None, "x", "server", now, now + 1, {}))

    tell()
    async with asyncio.timeout(20):
        accepted, _ = await loop.sock_accept(listener)  # and never answers
        # Far more than the queue takes, while its thread waits for the collector.
        for _ in range(5000):
            tell()
        await tracing.close()
    tell()  # after the end it does nothing
    accepted.close()
    listener.close()
