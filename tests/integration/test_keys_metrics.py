"""``/metrics`` of a running platform, asked with a key of its own scope."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from headrace.jobs.model import NewJob, Payload
from prometheus_client.parser import text_string_to_metric_families

from tests.integration.conftest import Platform, until

pytestmark = pytest.mark.asyncio(loop_scope="module")


class Scrape:
    """One answer of ``/metrics``."""

    def __init__(self, text: str) -> None:
        self.samples = [s for family in text_string_to_metric_families(text) for s in family.samples]

    def sum(self, name: str, **labels: str) -> float:
        return sum(
            s.value for s in self.samples if s.name == name and labels.items() <= dict(s.labels).items()
        )


async def scrape(platform: Platform, headers: dict[str, str] | None = None) -> Scrape:
    status, answered, body = await platform.request("GET", "/metrics", headers=headers)
    assert status == 200, body
    assert answered["Content-Type"].startswith("text/plain; version=")
    return Scrape(body.decode())


async def test_requests_attempts_starts_and_states(platform: Platform) -> None:
    await platform.deploy("""
        @headrace.endpoint(name="counted")
        def counted(n: int = 0) -> int:
            if n < 0:
                raise ValueError("below zero")
            return n
    """)
    made = await platform.api("POST", "/keys", {"name": "scraper", "scopes": ["metrics"]})
    key = {"Authorization": f"Bearer {made['key']}"}
    await platform.to_zero("counted")
    before = await scrape(platform, key)
    for n in (1, 2, 3, -1):
        status, _, _ = await platform.request("POST", "/e/counted", json={"n": n})
        assert status == (500 if n < 0 else 200)
    await platform.request("POST", "/e/counted", json={}, headers={"Authorization": "Bearer hr_wrong"})
    await platform.request("POST", "/e/nobody", json={})
    status, _, value = await platform.request(
        "POST", "/e/counted", json={"n": 7}, headers={"Idempotency-Key": "once"}
    )
    assert (status, value) == (200, 7)
    after = await scrape(platform, key)

    def grown(name: str, **labels: str) -> float:
        return after.sum(name, **labels) - before.sum(name, **labels)

    count = "http_server_request_duration_seconds_count"
    assert grown(count, endpoint="counted", status_class="2xx") == 4
    assert grown(count, endpoint="counted", status_class="5xx") == 1
    assert grown("headrace_attempts_total", endpoint="counted", outcome="answered") == 5
    assert grown("headrace_cold_starts_total", endpoint="counted") == 1
    assert grown("headrace_cold_start_duration_seconds_count", endpoint="counted") == 1
    assert grown("headrace_queue_wait_seconds_count", endpoint="counted") >= 1
    assert grown("headrace_requests_refused_total", type="unauthorized") == 1
    assert grown("headrace_requests_refused_total", type="endpoint-not-found") == 1
    assert after.sum("headrace_instances", state="ready") >= 1
    assert after.sum("headrace_hosts", state="ready") == 1
    assert after.sum("headrace_endpoint_instances", endpoint="counted", state="ready") == 1
    assert after.sum("headrace_control_up") == 1


async def test_a_key_with_a_list_of_endpoints_sees_these_only(platform: Platform) -> None:
    await platform.deploy("""
        @headrace.endpoint(name="hidden")
        def hidden() -> int:
            return 1
    """)
    await platform.call("hidden")
    job = await platform.api("POST", "/jobs", {"endpoint": "hidden", "input": {}})
    await platform.api("GET", f"/jobs/{job['id']}?wait=20")
    made = await platform.api(
        "POST", "/keys", {"name": "one", "scopes": ["invoke", "metrics"], "endpoints": ["counted"]}
    )
    seen = await scrape(platform, {"Authorization": f"Bearer {made['key']}"})
    assert {s.labels["endpoint"] for s in seen.samples if "endpoint" in s.labels} == {"counted"}
    assert not [
        s for s in seen.samples if s.name.startswith(("headrace_instances", "headrace_requests_refused"))
    ]
    everything = await scrape(platform)
    assert "hidden" in {s.labels.get("endpoint") for s in everything.samples}


async def test_jobs_by_state(platform: Platform) -> None:
    job = await platform.api("POST", "/jobs", {"endpoint": "counted", "input": {"n": 1}})
    await platform.api("GET", f"/jobs/{job['id']}?wait=20")

    async def counted() -> Any:
        found = await scrape(platform)
        return found.sum("headrace_jobs", endpoint="counted", state="succeeded") >= 1 and found.sum(
            "headrace_job_duration_seconds_count", endpoint="counted", state="succeeded"
        )

    assert await until(counted) == 1
    state = platform.cluster.gateway.dispatcher.state("default/counted")
    assert state is not None
    # A gateway that has seen none of an endpoint's jobs names it, too.
    found = await scrape(platform)
    assert {s.labels["endpoint"] for s in found.samples if s.name == "headrace_jobs"} >= {"counted", "hidden"}
    await platform.deploy("""
        import asyncio

        @headrace.endpoint(name="napper")
        async def napper() -> int:
            await asyncio.sleep(30)
            return 1
    """)
    job = await platform.api("POST", "/jobs", {"endpoint": "napper", "input": {}})
    for _ in range(2):
        done = await platform.api("POST", f"/jobs/{job['id']}/cancel")
        assert done["state"] == "cancelled"
    found = await scrape(platform)
    assert found.sum("headrace_job_duration_seconds_count", endpoint="napper", state="cancelled") == 1


async def test_jobs_that_end_in_the_store_are_counted(platform: Platform) -> None:
    late = NewJob(id="late", project="default", endpoint="counted", input=Payload(data=b"{}"), ttl_s=1.0)
    # It is past its time to live when it is stored: no gateway takes it, and the next sweep ends it.
    await platform.cluster.gateway.jobs.service.store.submit(late, time.time() - 60.0)

    async def counted() -> bool:
        found = await scrape(platform)
        count = found.sum("headrace_job_duration_seconds_count", endpoint="counted", state="timed_out")
        seconds = found.sum("headrace_job_duration_seconds_sum", endpoint="counted", state="timed_out")
        return count == 1 and seconds >= 60.0

    await until(counted)


async def test_other_formats_and_methods(platform: Platform) -> None:
    status, headers, body = await platform.request(
        "GET", "/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"}
    )
    assert status == 200
    assert headers["Content-Type"].startswith("application/openmetrics-text")
    assert body.endswith(b"# EOF\n")
    assert (await platform.request("POST", "/metrics", json={}))[0] == 405
    status, _, body = await platform.request("HEAD", "/metrics")
    assert (status, body) == (200, b"")


async def test_without_control_the_gateway_still_tells(platform: Platform) -> None:
    await platform.cluster.control.abandon()
    try:
        found = await scrape(platform)
        assert found.sum("headrace_control_up") == 0
        assert found.sum("http_server_request_duration_seconds_count", endpoint="counted") > 0
    finally:
        await platform.cluster.restart_control()
        await platform.cluster.wait_ready()


async def test_a_client_that_leaves_is_counted_as_such(platform: Platform) -> None:
    await platform.deploy("""
        import asyncio

        @headrace.endpoint(name="sleeper")
        async def sleeper() -> int:
            await asyncio.sleep(30)
            return 1
    """)
    task = asyncio.create_task(platform.request("POST", "/e/sleeper", json={}))

    async def running() -> bool:
        return (await scrape(platform)).sum("headrace_requests_in_flight", endpoint="sleeper") == 1

    await until(running)
    task.cancel()

    async def left() -> bool:
        found = await scrape(platform)
        name = "http_server_request_duration_seconds_count"
        return found.sum(name, endpoint="sleeper", status_class="cancelled") == 1

    await until(left)


async def test_without_a_collector_a_clients_trace_passes_as_it_is(platform: Platform) -> None:
    await platform.deploy("""
        @headrace.endpoint(name="told")
        def told() -> str:
            return headrace.traceparent()
    """)
    assert platform.cluster.gateway.dispatcher.tracing is None
    value = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    assert await platform.call("told", {}, headers={"traceparent": value}) == value
    assert await platform.call("told", {}, headers={"traceparent": "nonsense"}) == ""
    assert await platform.call("told", {}) == ""
