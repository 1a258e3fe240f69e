"""What hosts say that they can run, as it is shown and as it refuses deployments."""

from typing import Any

import msgspec
from headrace import wire
from headrace.sdk.network import Network
from headrace.sdk.probes import Probe, Probes
from headrace.sdk.spec import Gpu
from headrace.sdk.weights import Weights

BOTH = ("process", "oci")
ABLE = {"process": {"isolation": "shares the host's file system"}, "oci": {"isolation": "", "exec": ""}}


async def refusal(platform: Any, **options: Any) -> str:
    """Why a deployment is refused; empty when it is taken."""
    body = {"specs": msgspec.to_builtins([platform.spec(**options)])}
    status, doc = await platform.gateway.api("POST", "/deployments", body)
    assert status in (202, 422), doc
    if status == 202:
        return ""
    assert (status, doc["type"], doc["title"]) == (422, "urn:headrace:not-runnable", "No host can run it")
    assert "headrace runtimes" in doc["hint"]
    return str(doc["detail"])


async def test_the_matrix_of_all_hosts(platform: Any) -> None:
    first = await platform.new_host(
        "n1", capabilities={"process": ABLE["process"]}, missing={"oci": "no runc"}
    )
    second = await platform.new_host("n2", runtimes=BOTH, capabilities=ABLE)
    _, doc = await platform.gateway.api("GET", "/runtimes")
    oci, process = doc["items"]
    assert (process["name"], oci["name"]) == BOTH
    assert set(process["hosts"]) == {first.id, second.id}
    assert process["capabilities"]["isolation"]["hosts"] == []
    assert set(process["capabilities"]["isolation"]["why_not"]) == {first.id, second.id}
    assert (oci["hosts"], oci["missing"]) == ([second.id], {first.id: "no runc"})
    assert oci["capabilities"]["exec"] == {"hosts": [second.id], "why_not": {}}


async def test_a_runtime_that_no_host_has_is_refused_with_the_reason(platform: Any) -> None:
    assert await refusal(platform, runtime="oci") == ""
    await platform.new_host(missing={"oci": "runc is not installed"})
    assert "runc is not installed" in await refusal(platform, runtime="oci")
    assert 'no host has runtime "docker"' in await refusal(platform, runtime="docker")
    await platform.new_host("n2", runtimes=BOTH)
    assert await refusal(platform, runtime="oci") == ""


async def test_the_host_network_is_refused_unless_a_host_allows_it(platform: Any) -> None:
    host = Network("host")
    await platform.new_host("n1", runtimes=BOTH)
    assert "HEADRACE_ALLOW_HOST_NETWORK=1" in await refusal(platform, runtime="oci", network=host)
    assert await refusal(platform, network=host) == "", "process shares it anyway"
    await platform.new_host("n2", runtimes=BOTH, host_network=True)
    assert await refusal(platform, runtime="oci", network=host) == ""


async def test_sources_of_weights_that_no_host_may_read(platform: Any) -> None:
    await platform.new_host("n1", weights_allow=("/srv/models", "s3://models"))
    for source in (
        "http://10.0.0.1/m",
        "https://[::1]/m",
        "http://localhost:80/m",
        "http://169.254.169.254/m",
    ):
        why = await refusal(platform, weights=(Weights(source),))
        assert "private address: set weights_private (HEADRACE_WEIGHTS_PRIVATE=1)" in why
    assert "HEADRACE_WEIGHTS_ALLOW" in await refusal(platform, weights=(Weights("s3://modelsecret/a"),))
    for source in ("https://example.org/m?sig=secret", "/srv/models/a", "s3://models/a"):
        assert await refusal(platform, weights=(Weights(source),)) == ""
    await platform.new_host("n2", weights_private=True)
    assert await refusal(platform, weights=(Weights("http://10.0.0.1/m"),)) == ""


async def test_options_that_need_a_capability(platform: Any) -> None:
    unable = {"exec": "no exec here", "networks": "nft is not installed", "devices": "no devices here"}
    await platform.new_host("n1", runtimes=BOTH, capabilities={"process": {}, "oci": unable})
    probes = Probes(liveness=Probe(exec=("true",)))
    assert "no exec here" in await refusal(platform, runtime="oci", probes=probes)
    assert "nft is not installed" in await refusal(platform, runtime="oci", network=Network("none"))
    assert "no devices here" in await refusal(platform, runtime="oci", gpu=(Gpu(name="H100"),))
    await platform.new_host("n2", runtimes=BOTH, gpu={"X1": 1}, capabilities={"process": {}, "oci": unable})
    assert await refusal(platform, runtime="oci", gpu=(Gpu(name="X1"),)) == ""
    # What nobody asked for is not refused: the host gives what it has.
    assert await refusal(platform, runtime="oci") == ""


async def test_what_a_runtime_found_out_after_the_hello_counts(platform: Any) -> None:
    host = await platform.new_host("n1", runtimes=BOTH, capabilities=ABLE)
    assert await refusal(platform, runtime="oci", network=Network("none")) == ""
    later = ABLE | {"oci": {"isolation": "", "networks": "nft is not installed"}}
    host.send(wire.Heartbeat(at=0.0, capabilities=later, pauses=("oci",)))
    hello = platform.world.hosts[host.id]
    await platform.until(lambda: hello.hello.capabilities == later)
    assert hello.hello.pauses == ("oci",)
    assert "nft is not installed" in await refusal(platform, runtime="oci", network=Network("none"))
    # Heartbeats without a word of it change nothing.
    host.send(wire.Heartbeat(at=0.0, rss={"nobody": 1}))
    await platform.until(lambda: "oci" in hello.hello.pauses)
    _, doc = await platform.gateway.api("GET", "/runtimes")
    assert doc["items"][0]["capabilities"]["networks"]["why_not"] == {host.id: "nft is not installed"}


async def test_a_runtime_that_came_after_the_hello_is_offered(platform: Any) -> None:
    host = await platform.new_host(
        "n1", runtimes=("process",), capabilities={"process": {}}, missing={"oci": "no runc"}
    )
    assert "no runc" in await refusal(platform, runtime="oci")
    host.send(wire.Heartbeat(at=0.0, capabilities=ABLE))
    known = platform.world.hosts[host.id]
    await platform.until(lambda: "oci" in known.hello.runtimes)
    assert known.hello.missing == {}
    assert await refusal(platform, runtime="oci") == ""


async def test_a_version_that_no_host_can_run_any_more_is_no_way_back(platform: Any) -> None:
    first = await platform.new_host("n1", runtimes=BOTH)
    await platform.gateway.deploy(platform.spec(runtime="oci"))
    await platform.gateway.deploy(platform.spec())
    first.runtimes = ("process",)
    await first.close()
    await first.connect()
    await platform.until(lambda: platform.world.hosts[first.id].hello.runtimes == ("process",))
    status, doc = await platform.gateway.api("POST", "/endpoints/hello/rollback", {})
    assert (status, doc["type"]) == (422, "urn:headrace:not-runnable")
    assert 'no host has runtime "oci"' in doc["detail"]


async def test_each_version_tells_what_it_runs_in(platform: Any) -> None:
    await platform.new_host("n1", runtimes=BOTH, weights_private=True)
    await platform.gateway.deploy(platform.spec())
    options = {
        "runtime": "oci", "network": Network("egress", ("example.org",)),
        "weights": (Weights("https://example.org/m?sig=secret"),), "probes": Probes(liveness=Probe(tcp=True)),
    }  # fmt: skip
    await platform.gateway.deploy(platform.spec(**options))
    _, doc = await platform.gateway.api("GET", "/endpoints/hello")
    assert doc["runtime"] == "oci"
    second, first = doc["versions"]
    assert (first["runtime"], first["image"], first["network"]) == ("process", None, None)
    assert (first["weights"], first["probes"]) == ([], {})
    assert (second["runtime"], second["network"]["allow"]) == ("oci", ["example.org"])
    assert second["weights"] == [{"source": "https://example.org/m", "path": "/weights/m"}]
    assert second["probes"]["liveness"]["tcp"] is True
    assert {i["runtime"] for i in doc["instances"]} <= {"oci", "process"}
