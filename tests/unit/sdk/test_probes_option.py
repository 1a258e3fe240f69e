"""Probes as users declare them: what is refused, what it becomes for hosts, and how long a start may take."""

from __future__ import annotations

from typing import Any

import headrace
import pytest
from headrace import wire
from headrace.control.probing import probes_of, start_s
from headrace.errors import SpecError
from headrace.sdk.options import check_spec
from headrace.sdk.spec import EndpointSpec, dump_spec, load_spec


def spec(**changes: Any) -> EndpointSpec:
    return EndpointSpec(**({"name": "a", "entry": "a:b", "handler": "asgi"} | changes))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"http": "healthz"}, "use a path"),
        ({"http": "/a b"}, "use a path"),
        ({"http": "/a\r\nX: y"}, "use a path"),
        ({"http": 8080}, "use a path"),
        ({"tcp": 80}, "use True or False"),
        ({"exec": "test -e /x"}, "use a list"),
        ({"exec": ["a\0"]}, "use a list"),
        ({"exec": [""]}, "name a command"),
        ({"http": "/a", "tcp": True}, "one question each"),
        ({"period": 0}, "0.1 or more"),
        ({"timeout": 61}, "60 or less"),
        ({"timeout": float("nan")}, "use a number"),
        ({"failure_threshold": 0}, "use 1 or more"),
        ({"success_threshold": 1.5}, "a whole number"),
        ({"initial_delay": -1}, "0 or more"),
        ({"jitter": 2}, "0 to 1"),
        ({"perid": 3}, "Did you mean 'period'?"),
    ],
)
def test_a_wrong_probe_is_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(SpecError) as failed:
        headrace.Probe(**options)
    assert words in f"{failed.value} {failed.value.hint}"


def test_wrong_probes_are_refused() -> None:
    with pytest.raises(SpecError, match=r"use headrace\.Probe"):
        headrace.Probes(startup="/healthz")  # type: ignore[arg-type]
    with pytest.raises(SpecError, match="success_threshold is 1"):
        headrace.Probes(liveness=headrace.Probe(success_threshold=2))
    with pytest.raises(SpecError, match="only an ASGI app has paths"):
        check_spec(spec(handler="class", probes=headrace.Probes(readiness=headrace.Probe(http="/x"))))
    with pytest.raises(SpecError, match="runs no commands"):
        check_spec(spec(probes=headrace.Probes(liveness=headrace.Probe(exec=["true"]))))
    with pytest.raises(SpecError, match="only an ASGI app"):
        headrace.endpoint(name="a", probes=headrace.Probes(startup=headrace.Probe(http="/x")))(lambda: 1)


def test_they_survive_the_store_and_reach_the_host() -> None:
    probes = headrace.Probes(
        startup=headrace.Probe(http="/up", period=1, failure_threshold=60),
        readiness=headrace.Probe(tcp=True, success_threshold=2, initial_delay=3, jitter=0),
        liveness=headrace.Probe(exec=["test", "-e", "/x"], timeout=2),
    )
    one = spec(runtime="oci", probes=probes)
    assert load_spec(dump_spec(one)) == one
    assert probes_of(probes) == wire.Probes(
        startup=wire.Probe(kind="http", path="/up", period_s=1.0, failure_threshold=60),
        readiness=wire.Probe(kind="tcp", success_threshold=2, initial_delay_s=3.0, jitter=0.0),
        liveness=wire.Probe(kind="exec", argv=("test", "-e", "/x"), timeout_s=2.0),
    )


def test_without_a_word_health_is_asked_leniently_and_ones_own_is_strict() -> None:
    assert probes_of(headrace.Probes()).liveness == wire.Probe(lenient=True)
    own = probes_of(headrace.Probes(liveness=headrace.Probe())).liveness
    assert own is not None
    assert not own.lenient


def test_a_start_has_time_for_its_probes() -> None:
    assert start_s(spec(load_timeout=10.0)) == 10.0
    startup = headrace.Probe(http="/up", period=1, timeout=1, failure_threshold=60, jitter=0)
    assert start_s(spec(load_timeout=10.0, probes=headrace.Probes(startup=startup))) == 130.0
    readiness = headrace.Probes(readiness=headrace.Probe())
    assert start_s(spec(load_timeout=10.0, probes=readiness)) == 20.0
