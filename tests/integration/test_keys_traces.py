"""Spans at a real OTLP collector endpoint: what a request, a retry and a job look like there."""

from __future__ import annotations

import asyncio
import gzip
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from aiohttp import web
from headrace.cluster.local import LocalCluster
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.integration.conftest import Platform, make_settings, until

pytestmark = pytest.mark.asyncio(loop_scope="module")

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = "00f067aa0ba902b7"
SOURCE = """
    import asyncio, os

    @headrace.endpoint(name="traced")
    def traced(n: int = 0) -> str:
        if n < 0:
            raise ValueError("below zero")
        return headrace.traceparent()

    @headrace.endpoint(name="traced-async", concurrency=4)
    async def traced_async(wait: float = 0.0) -> str:
        await asyncio.sleep(wait)
        return headrace.traceparent()

    @headrace.endpoint(name="traced-stream")
    def traced_stream():
        yield headrace.traceparent()

    @headrace.endpoint(name="traced-asgi")
    async def app(scope, receive, send):
        if scope["type"] != "http":
            return
        found = dict(scope["headers"]).get(b"traceparent", b"")
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": found})

    from opentelemetry import trace

    def current() -> str:
        found = trace.get_current_span().get_span_context()
        return f"{found.trace_id:032x}-{found.span_id:016x}"

    @headrace.endpoint(name="own-spans")
    def own_spans() -> str:
        return current()

    @headrace.endpoint(name="own-spans-async")
    async def own_spans_async() -> str:
        return current()

    @headrace.endpoint(name="mortal")
    def mortal(path: str) -> str:
        if os.path.getsize(path) == 0:
            with open(path, "a") as mark:
                mark.write("died")
            os.kill(os.getpid(), 9)
        return headrace.traceparent()

    @headrace.endpoint(name="failing")
    def failing() -> str:
        raise ValueError("never")
"""


class Collector:
    """An HTTP server that takes OTLP traces."""

    def __init__(self) -> None:
        self.spans: list[Any] = []
        self.resources: list[dict[str, str]] = []
        self.status = 200
        self.posts = 0

    async def take(self, request: web.Request) -> web.Response:
        self.posts += 1
        if self.status != 200:
            return web.Response(status=self.status)
        data = await request.read()
        if request.headers.get("Content-Encoding") == "gzip" and data[:2] == b"\x1f\x8b":
            data = gzip.decompress(data)
        assert request.content_type == "application/x-protobuf"
        message = ExportTraceServiceRequest.FromString(data)
        for found in message.resource_spans:
            self.resources.append({a.key: a.value.string_value for a in found.resource.attributes})
            for scope in found.scope_spans:
                self.spans.extend(scope.spans)
        return web.Response(status=200)

    def of(self, trace: str) -> list[Any]:
        return [span for span in self.spans if span.trace_id.hex() == trace]


def attributes(span: Any) -> dict[str, Any]:
    return {a.key: getattr(a.value, a.value.WhichOneof("value")) for a in span.attributes}


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def collector() -> AsyncIterator[Collector]:
    found = Collector()
    app = web.Application()
    app.router.add_post("/v1/traces", found.take)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{port}")
        patch.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")
        patch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test")
        yield found
    await runner.cleanup()


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def traced(collector: Collector, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Platform]:
    work = tmp_path_factory.mktemp("traces")
    settings = make_settings(work / "data", webhook_private=True)
    async with LocalCluster(settings) as cluster, aiohttp.ClientSession() as http:
        platform = Platform(cluster, http, work)
        done = await platform.deploy(SOURCE)
        assert done["state"] == "succeeded", done
        yield platform


async def whole(collector: Collector, trace: str, names: set[str]) -> dict[str, Any]:
    """The trace's spans by name, once all of ``names`` have come."""

    def there() -> bool:
        return names <= {span.name for span in collector.of(trace)}

    await until(there)
    return {span.name: span for span in collector.of(trace)}


def header(trace: str, sampled: bool = True) -> dict[str, str]:
    return {"traceparent": f"00-{trace}-{PARENT}-{int(sampled):02x}"}


async def test_a_request_continues_its_callers_trace(traced: Platform, collector: Collector) -> None:
    value = await traced.call("traced", {"n": 1}, headers=header(TRACE))
    spans = await whole(collector, TRACE, {"POST /e/traced", "attempt", "claim", "handler"})
    root, attempt = spans["POST /e/traced"], spans["attempt"]
    assert root.parent_span_id.hex() == PARENT
    assert root.kind == root.SPAN_KIND_SERVER
    assert attempt.parent_span_id == root.span_id
    assert attempt.kind == attempt.SPAN_KIND_CLIENT
    assert spans["claim"].parent_span_id == spans["handler"].parent_span_id == attempt.span_id
    # The user's code sees the attempt as its parent.
    assert value == f"00-{TRACE}-{attempt.span_id.hex()}-01"
    assert root.start_time_unix_nano <= attempt.start_time_unix_nano
    assert attempt.start_time_unix_nano <= spans["handler"].start_time_unix_nano
    assert spans["handler"].end_time_unix_nano <= attempt.end_time_unix_nano <= root.end_time_unix_nano
    about = attributes(root)
    assert about["http.response.status_code"] == 200
    assert about["http.route"] == "/e/traced"
    assert attributes(attempt)["headrace.outcome"] == "answered"
    resource = collector.resources[-1]
    assert resource["service.name"] == "headrace-gateway"
    assert resource["deployment.environment.name"] == "test"


async def test_every_kind_of_handler_gets_it(traced: Platform) -> None:
    for name in ("traced", "traced-async"):
        assert (await traced.call(name, {}, headers=header(TRACE))).startswith(f"00-{TRACE}-")
    _, _, body = await traced.request("POST", "/e/traced-stream", json={}, headers=header(TRACE))
    assert f"00-{TRACE}-".encode() in body
    _, _, body = await traced.request("GET", "/e/traced-asgi", headers=header(TRACE))
    assert body.startswith(f"00-{TRACE}-".encode())
    many = [f"{n:032x}" for n in range(1, 9)]
    found = await asyncio.gather(
        *(traced.call("traced-async", {"wait": 0.05}, headers=header(trace)) for trace in many)
    )
    assert [value.split("-")[1] for value in found] == many


async def test_opentelemetry_in_a_handlers_process_joins_the_trace(traced: Platform) -> None:
    for name in ("own-spans", "own-spans-async"):
        for trace in ("1" * 32, "2" * 32):
            found = await traced.call(name, {}, headers=header(trace))
            assert found.startswith(f"{trace}-"), name
            assert not found.endswith("0" * 16)


async def test_without_a_callers_trace_one_begins_here(traced: Platform, collector: Collector) -> None:
    value = await traced.call("traced", {})
    _, trace, _, flags = value.split("-")
    assert flags == "01"
    spans = await whole(collector, trace, {"POST /e/traced", "attempt"})
    assert not spans["POST /e/traced"].parent_span_id


async def test_what_the_caller_does_not_sample_is_not_exported(
    traced: Platform, collector: Collector
) -> None:
    quiet, loud = "a" * 32, "b" * 32
    assert (await traced.call("traced", {}, headers=header(quiet, sampled=False))).endswith("-00")
    await traced.call("traced", {}, headers=header(loud))
    await whole(collector, loud, {"POST /e/traced"})
    assert not collector.of(quiet)


async def test_failures_and_the_time_in_the_queue(traced: Platform, collector: Collector) -> None:
    trace = "c" * 32
    await traced.to_zero("traced")
    status, _, _ = await traced.request("POST", "/e/traced", json={"n": -1}, headers=header(trace))
    assert status == 500
    spans = await whole(collector, trace, {"POST /e/traced", "attempt", "queue"})
    assert spans["POST /e/traced"].status.code == 2
    assert attributes(spans["POST /e/traced"])["http.response.status_code"] == 500
    queue = spans["queue"]
    assert queue.end_time_unix_nano > queue.start_time_unix_nano
    assert attributes(queue)["headrace.tier"] in ("warm", "forked", "cached", "cold")


async def test_each_attempt_has_a_span(traced: Platform, collector: Collector) -> None:
    trace = "d" * 32
    # The instance has a uid of its own, and what it makes in /tmp goes with it.
    with tempfile.TemporaryDirectory(prefix="hrt-") as folder:
        Path(folder).chmod(0o711)
        mark = Path(folder, "mark")
        mark.touch()
        mark.chmod(0o666)
        value = await traced.call("mortal", {"path": str(mark)}, headers=header(trace))
    await whole(collector, trace, {"POST /e/mortal", "attempt"})
    await until(lambda: len([s for s in collector.of(trace) if s.name == "attempt"]) == 2)
    first, second = sorted(
        (s for s in collector.of(trace) if s.name == "attempt"), key=lambda s: s.start_time_unix_nano
    )
    assert (attributes(first)["headrace.outcome"], attributes(second)["headrace.outcome"]) == (
        "lost",
        "answered",
    )
    assert first.status.code == 2
    assert second.span_id.hex() == value.split("-")[2]


async def test_a_job_and_its_webhook_stay_in_the_trace(traced: Platform, collector: Collector) -> None:
    trace = "e" * 32
    told: list[str] = []

    async def hook(request: web.Request) -> web.Response:
        told.append(request.headers.get("traceparent", ""))
        return web.Response()

    app = web.Application()
    app.router.add_post("/hook", hook)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}/hook"
    try:
        for path, body in (
            ("/api/v1/jobs", {"endpoint": "traced", "input": {}, "webhook": url}),
            ("/v2/traced/run", {"input": {}, "webhook": url}),
        ):
            seen = len(told)
            status, _, _ = await traced.request("POST", path, json=body, headers=header(trace))
            assert status in (200, 202)
            await until(lambda seen=seen: len(told) > seen)
            assert told[-1].startswith(f"00-{trace}-")
    finally:
        await runner.cleanup()
    spans = await whole(
        collector, trace, {"POST /api/v1/jobs", "POST /v2/traced/run", "job traced", "attempt"}
    )
    submits = {spans["POST /api/v1/jobs"].span_id, spans["POST /v2/traced/run"].span_id}
    assert all(span.parent_span_id.hex() == PARENT for span in collector.of(trace) if span.span_id in submits)
    await until(lambda: len([s for s in collector.of(trace) if s.name == "job traced"]) == 2)
    jobs = [s for s in collector.of(trace) if s.name == "job traced"]
    assert {s.parent_span_id for s in jobs} == submits
    assert all(s.kind == s.SPAN_KIND_CONSUMER for s in jobs)


async def test_a_sync_call_with_a_key_stays_in_the_trace(traced: Platform, collector: Collector) -> None:
    trace = "9" * 32
    value = await traced.call("traced", {}, headers={**header(trace), "Idempotency-Key": "t"})
    assert value.startswith(f"00-{trace}-")
    spans = await whole(collector, trace, {"attempt", "POST /e/traced"})
    assert spans["attempt"].span_id.hex() == value.split("-")[2]
    about = attributes(spans["POST /e/traced"])
    assert (about["http.response.status_code"], about["http.route"]) == (200, "/e/traced")


async def test_a_stored_call_that_fails_is_an_error_and_a_job_tells_its_wait(
    traced: Platform, collector: Collector
) -> None:
    trace = "8" * 32
    status, _, _ = await traced.request(
        "POST", "/e/failing", headers={**header(trace), "Idempotency-Key": "f"}
    )
    assert status == 500
    root = (await whole(collector, trace, {"POST /e/failing"}))["POST /e/failing"]
    assert (root.status.code, attributes(root)["http.response.status_code"]) == (2, 500)
    trace = "7" * 32
    await traced.to_zero("traced")
    body = {"endpoint": "traced", "input": {}}
    status, _, _ = await traced.request("POST", "/api/v1/jobs", json=body, headers=header(trace))
    assert status == 202
    spans = await whole(collector, trace, {"POST /api/v1/jobs", "job traced", "queue", "attempt"})
    wait, whole_job = spans["queue"], spans["job traced"]
    assert wait.parent_span_id == whole_job.span_id
    assert attributes(wait)["headrace.tier"]
    assert whole_job.start_time_unix_nano <= wait.start_time_unix_nano < wait.end_time_unix_nano
    assert wait.end_time_unix_nano <= spans["attempt"].start_time_unix_nano + 50_000_000
    assert attributes(spans["POST /api/v1/jobs"])["http.response.status_code"] == 202


async def test_a_collector_that_fails_slows_nobody(traced: Platform, collector: Collector) -> None:
    collector.status, before = 503, collector.posts
    try:
        for _ in range(20):
            await traced.call("traced-async", {})
        await until(lambda: collector.posts > before)
        assert (await traced.call("traced-async", {})).startswith("00-")
    finally:
        collector.status = 200
