"""The option ``network``: one shape, checked before anything is deployed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import headrace
import pytest
from headrace.control.claims import base_of
from headrace.errors import SpecError
from headrace.host.pool import base_key
from headrace.sdk.options import build_spec
from headrace.sdk.spec import EndpointSpec, dump_spec, load_spec


def built(**options: Any) -> EndpointSpec:
    return build_spec(name="x", entry="app:x", handler="function", options=options)


def test_what_it_may_be() -> None:
    assert built().network is None
    assert built(runtime="oci", network="none").network == headrace.Network("none")
    spec = built(
        runtime="oci", network=headrace.Network("egress", allow=["B.example.", "*.a.example", "10.1.2.3/8"])
    )
    assert spec.network is not None
    assert spec.network.allow == ("*.a.example", "10.0.0.0/8", "b.example")
    assert load_spec(dump_spec(spec)) == spec
    assert built(network="host").network == headrace.Network("host")


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("wide-open", '"egress"'),
        (7, "headrace.Network"),
        (["a.example"], "headrace.Network"),
    ],
)
def test_what_it_may_not_be(value: Any, says: str) -> None:
    with pytest.raises(SpecError, match=says):
        built(runtime="oci", network=value)


@pytest.mark.parametrize(
    "entry",
    ["http://a.example/", "a.example:443", "10.1.2", "10.0.0.0/33", "a..b", "", "*.*.x", "a b", 7, "-a.b"],
)
def test_entries_that_are_none(entry: Any) -> None:
    with pytest.raises(SpecError, match="allow"):
        headrace.Network("egress", allow=[entry])  # type: ignore[arg-type]


def test_an_empty_list_is_not_everything() -> None:
    for empty in ([], ()):
        with pytest.raises(SpecError, match="empty"):
            headrace.Network("egress", allow=empty)  # type: ignore[arg-type]
        with pytest.raises(SpecError, match="empty"):
            headrace.Network("egress", empty)  # type: ignore[arg-type]
        with pytest.raises(SpecError, match="empty"):
            headrace.Network(allow=empty)  # type: ignore[arg-type]
    assert headrace.Network("none", allow=()) == headrace.Network("none")
    stored = built(runtime="oci", network="egress")
    assert load_spec(dump_spec(stored)) == stored


@pytest.mark.parametrize("entry", ["127.0.0.1", "127.0.0.0/8", "localhost", "a.localhost", "169.254.169.254"])
def test_what_is_never_reached_is_not_allowed_in_vain(entry: str) -> None:
    with pytest.raises(SpecError, match="never reach"):
        headrace.Network("egress", allow=[entry])
    assert headrace.Network("egress", allow=["0.0.0.0/0"]).allow == ("0.0.0.0/0",)


def test_a_list_needs_egress_and_has_no_ipv6() -> None:
    with pytest.raises(SpecError, match="IPv6"):
        headrace.Network("egress", allow=("2001:db8::/32",))
    with pytest.raises(SpecError, match="only"):
        headrace.Network("none", allow=("a.example",))
    with pytest.raises(SpecError, match="at most"):
        headrace.Network("egress", allow=tuple(f"n{n}.example" for n in range(201)))


@pytest.mark.parametrize("mode", ["none", "egress"])
def test_process_cannot_hold_it(mode: str) -> None:
    with pytest.raises(SpecError, match='runtime="process"'):
        built(network=mode)


def test_bases_with_other_networks_are_others() -> None:
    lists = [None, "none", headrace.Network("egress", allow=("a.example",)), headrace.Network("egress")]
    bases = [base_of(built(runtime="oci", network=value), 1) for value in lists]
    assert len({base_key(base) for base in bases}) == 4
    assert base_key(bases[0]) == "plain"
    same = headrace.Network("egress", allow=("a.example", "A.example."))
    assert base_of(built(runtime="oci", network=same), 1) == bases[2]


def test_the_spec_costs_a_sandbox_nothing_more() -> None:
    code = "import headrace; headrace.Network('none'); import sys; print('ipaddress' in sys.modules)"
    where = {"PYTHONPATH": str(Path(headrace.__file__).parent.parent)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=where, check=True)
    assert done.stdout == "False\n"
