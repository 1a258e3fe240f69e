from __future__ import annotations

import pytest
from headrace.observe.metrics import BOUNDS, OTHERS, EndpointFacts, Facts, Histogram, Meter, render, shown
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families as plain


def busy(name: str, requests: int = 1) -> EndpointFacts:
    meter = Meter()
    for _ in range(requests):
        meter.request(200, 0.003)
    meter.attempts = {"answered": requests}
    return EndpointFacts("default", name, meter, in_flight=1, waiting=2, instances={"ready": 1})


def samples(text: str, parse=plain):
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in parse(text)
        for sample in family.samples
    }


def facts(*endpoints: EndpointFacts, **more) -> Facts:
    return Facts(gateway="gw-1", version="1", endpoints=endpoints, **more)


@given(st.lists(st.floats(0, 100), max_size=200))
def test_a_histogram_counts_as_prometheus_does(values):
    histogram, meter = Histogram(), Meter()
    for value in values:
        histogram.add(value)
        meter.request(200, value)
    assert histogram.total == len(values)
    assert histogram.sum == pytest.approx(sum(values))
    for index, bound in enumerate(BOUNDS):
        assert sum(histogram.counts[: index + 1]) == sum(value <= bound for value in values)
    if values:
        assert meter.requests[2].counts == histogram.counts


def test_names_units_and_labels():
    endpoint = busy("hello", 3)
    endpoint.meter.request(503, 12.0)
    endpoint.meter.request(99, 0.5)
    endpoint.meter.retries = {"lost": 2}
    endpoint.meter.cold_start("forked", 0.02)
    endpoint.meter.job("succeeded", 4.0)
    endpoint.meter.late = 1
    endpoint.meter.queue.add(0.2)
    shown_facts = facts(
        endpoint,
        refused={"unauthorized": 4},
        webhooks={"delivered": 5},
        jobs={("default", "hello", "queued"): 7},
        platform={"instances": {"ready": 2, "starting": 1}, "hosts": {"ready": 1}},
    )
    where = {"project": "default", "endpoint": "hello", "gateway": "gw-1"}
    for accept, parse in (("", plain), ("application/openmetrics-text; version=1.0.0", openmetrics)):
        body, content_type = render(shown_facts, accept)
        assert ("openmetrics" in content_type) == bool(accept)
        found = samples(body.decode(), parse)

        def value(name, _found=found, **labels):
            return _found[name, tuple(sorted(labels.items()))]

        duration = "http_server_request_duration_seconds"
        assert value(f"{duration}_count", **where, status_class="2xx") == 3
        assert value(f"{duration}_bucket", **where, status_class="2xx", le="0.005") == 3
        assert value(f"{duration}_bucket", **where, status_class="5xx", le="10.0") == 0
        assert value(f"{duration}_bucket", **where, status_class="5xx", le="+Inf") == 1
        assert value(f"{duration}_sum", **where, status_class="cancelled") == 0.5
        assert value("headrace_requests_in_flight", **where) == 1
        assert value("headrace_queue_length", **where) == 2
        assert value("headrace_queue_wait_seconds_count", **where) == 1
        assert value("headrace_attempts_total", **where, outcome="answered") == 3
        assert value("headrace_retries_total", **where, reason="lost") == 2
        assert value("headrace_cold_starts_total", **where, tier="forked") == 1
        assert value("headrace_job_duration_seconds_count", **where, state="succeeded") == 1
        assert value("headrace_late_results_dropped_total", **where) == 1
        assert value("headrace_jobs", project="default", endpoint="hello", state="queued") == 7
        assert value("headrace_webhook_deliveries_total", gateway="gw-1", outcome="delivered") == 5
        assert value("headrace_requests_refused_total", gateway="gw-1", type="unauthorized") == 4
        assert value("headrace_instances", state="starting") == 1
        assert value("headrace_control_up") == 1


def test_without_control_the_platform_is_left_out():
    found = samples(render(facts(), "")[0].decode())
    assert found["headrace_control_up", ()] == 0
    assert not [name for name, _ in found if name in ("headrace_instances", "headrace_hosts")]


def test_few_endpoints_by_name_and_the_rest_together():
    endpoints = [busy(f"e{n}", n + 1) for n in range(30)]
    names = [e.name for e in shown(endpoints, most=10)]
    assert names == [f"e{n}" for n in range(29, 19, -1)] + [OTHERS]
    others = shown([busy(f"e{n}", n + 1) for n in range(30)], most=10)[-1]
    assert others.meter.requests[2].total == sum(range(1, 21))
    assert others.waiting == 40
    assert others.instances == {"ready": 20}
    assert [e.name for e in shown(endpoints, most=30)][-1] == "e0"


def test_cardinality_is_bounded():
    many = [busy(f"e{n:05}") for n in range(1500)]
    found = samples(render(facts(*many), "")[0].decode())
    named = {dict(labels)["endpoint"] for name, labels in found if name == "headrace_queue_length"}
    assert len(named) == 1001
    assert OTHERS in named


def test_hostile_names_do_not_break_the_format():
    odd = busy('a"b\\c\nd')
    found = samples(render(facts(odd), "")[0].decode())
    assert any(dict(labels).get("endpoint") == 'a"b\\c\nd' for _, labels in found)
