"""A platform that has learned new options, over the store of the one before."""

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from headrace.control.deployments import NewVersion
from headrace.control.specs import digest
from headrace.sdk.network import Network
from headrace.sdk.probes import Probe, Probes
from headrace.sdk.spec import EndpointSpec, dump_spec
from headrace.sdk.weights import Weights

OLD = Path(__file__).with_name("data") / "spec_before_runtimes.json"
"""As the version before probes, networks, secrets, weights and built images stored it."""


def upgraded(sha: str) -> tuple[bytes, EndpointSpec]:
    """(what was stored, what today's SDK makes of the same file)."""
    old = OLD.read_text().replace(json.loads(OLD.read_text())["bundle"], sha).encode()
    # Today's SDK gives the limit whenever cores are asked for.
    spec = msgspec.structs.replace(msgspec.json.decode(old, type=EndpointSpec), cpu_limit=0.5)
    return old, spec


async def test_the_first_deployment_after_an_upgrade_makes_no_new_version(platform: Any) -> None:
    old, spec = upgraded(platform.sha)
    assert dump_spec(spec) != old
    store = platform.control.parts.store
    assert await store.deployments.register([NewVersion("default", "hello", old, platform.sha)]) == [1]
    await platform.restart()
    await platform.gateway.connect()
    doc = await platform.gateway.deploy(spec)
    assert [(p["state"], p["version"]) for p in doc["endpoints"]] == [("unchanged", 1)]
    assert len(await platform.control.parts.store.versions("default", "hello")) == 1


async def test_a_new_option_that_is_used_makes_one(platform: Any) -> None:
    host = await platform.new_host()
    _, spec = upgraded(platform.sha)
    await platform.gateway.deploy(spec)
    other = msgspec.structs.replace(spec, probes=Probes(liveness=Probe(period=30.0)))
    doc = await platform.gateway.deploy(other)
    assert [(p["state"], p["version"]) for p in doc["endpoints"]] == [("ready", 2)], host.log


@pytest.mark.parametrize(
    "change",
    [
        {"cpu_limit": None, "cpu": 0.25},
        {"memory_limit": None},
        {"network": Network("host")},
        {"probes": Probes(startup=Probe())},
        {"weights": (Weights("https://example.org/a"),)},
        {"env": {}},
        {"env": {"A": ""}},
        {"idempotent": False},
        {"openapi": {}},
        {"bundle": "f" * 64},
        {"spec_version": 2},
    ],
    ids=",".join,
)
def test_what_is_chosen_counts(change: dict[str, Any]) -> None:
    _, spec = upgraded("0" * 64)
    assert digest(msgspec.structs.replace(spec, **change)) != digest(spec)
    # The order in which things are written does not.
    assert digest(msgspec.json.decode(dump_spec(spec), type=EndpointSpec)) == digest(spec)
