from __future__ import annotations

import logging
import sys

import pytest
from headrace.cluster.processes import child_environment
from headrace.config import Settings
from headrace.gateway.head import read_head
from headrace.observe.tracing import SpanRef, open_tracing, parse, wanted
from hypothesis import given
from hypothesis import strategies as st

GOOD = b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def test_a_header_is_what_w3c_says():
    ref = parse(GOOD)
    assert ref == SpanRef(0x4BF92F3577B34DA6A3CE929D0E0E4736, 0x00F067AA0BA902B7, True)
    assert ref.header().encode() == GOOD
    assert parse(GOOD[:-2] + b"00").sampled is False
    assert parse(GOOD[:-2] + b"03").sampled is True
    # A later version may say more.
    assert parse(b"01" + GOOD[2:] + b"-more") == ref


@pytest.mark.parametrize(
    "wrong",
    [
        b"",
        b"nonsense",
        GOOD[:-1],
        GOOD + b"-more",
        GOOD + b" ",
        GOOD.upper(),
        b"ff" + GOOD[2:],
        b"00-" + b"0" * 32 + GOOD[35:],
        GOOD[:36] + b"0" * 16 + b"-01",
        GOOD + b"\n",
        b"01" + GOOD[2:] + b"-" + b"x" * 600,
    ],
)
def test_anything_else_starts_a_new_trace(wrong):
    assert parse(wrong) is None


@given(st.integers(1, 2**128 - 1), st.integers(1, 2**64 - 1), st.booleans())
def test_what_is_written_is_read(trace, span, sampled):
    ref = SpanRef(trace, span, sampled)
    assert parse(ref.header().encode()) == ref


@given(st.binary(max_size=80))
def test_no_bytes_break_it(data):
    parse(data)


def head(*headers):
    return read_head(b"POST", b"/e/x", "1.1", [(b"Host", b"h"), *headers])


def test_one_good_header_is_kept_beside_the_others():
    found = head((b"Traceparent", GOOD), (b"tracestate", b"a=b"))
    assert found.traceparent == GOOD
    assert b"raceparent" not in found.forward
    assert b"tracestate: a=b\r\n" in found.forward
    for wrong in ([(b"traceparent", b"no")], [(b"traceparent", GOOD), (b"traceparent", GOOD)]):
        assert head(*wrong).traceparent == b""


@pytest.mark.parametrize(
    ("environ", "on"),
    [
        ({}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://c:4318/v1/traces"}, True),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318", "OTEL_SDK_DISABLED": "TRUE"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318", "OTEL_TRACES_EXPORTER": "none"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": ""}, False),
    ],
)
def test_when_it_is_on(environ, on):
    assert wanted(environ) is on


def test_off_means_that_opentelemetry_is_not_even_imported():
    assert open_tracing({}, "gw", "1") is None


def test_a_missing_package_is_said_and_costs_nothing(monkeypatch, caplog):
    monkeypatch.delitem(sys.modules, "headrace.observe.otlp", raising=False)
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with caplog.at_level(logging.WARNING):
        assert open_tracing({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"}, "gw", "1") is None
    assert "headrace[otel]" in caplog.text


def test_the_platforms_processes_get_the_settings_of_opentelemetry(tmp_path):
    settings = Settings(data_dir=str(tmp_path), run_dir=str(tmp_path / "run"))
    base = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318", "OTEL_SERVICE_NAME": "mine"}
    assert base.items() <= child_environment(settings, base).items()
