"""Hosts that are late, cut off, dead, replaced; control that restarts; logs, lists, blobs."""

from __future__ import annotations

import pytest
from headrace import link, wire
from headrace.errors import LinkRefused
from headrace.sdk.spec import Gpu, Scaling
from headrace_autoscaler.replay import replay_file


async def _one(platform, **options):
    host = await platform.new_host()
    await platform.gateway.deploy(platform.spec(**options), verify=False)
    platform.gateway.wake("hello")
    route = (await platform.until(lambda: platform.gateway.of("hello")))[0]
    return host, route.id


async def test_a_silent_host_is_suspect_then_dead_and_its_work_goes_elsewhere(platform):
    host, first = await _one(platform)
    other = await platform.new_host("n2")
    host.silence()
    states: list[str] = []

    def look():
        state = platform.world.hosts[host.id].state
        if not states or states[-1] != state:
            states.append(state)
        if any(i.suspect for i in platform.gateway.of("hello")):
            states.append("told") if "told" not in states else None
        platform.gateway.demand("hello", in_flight=1, queued=0, instances={first: 1})
        return first in platform.gateway.dead

    await platform.until(look)
    assert states[:2] == ["ready", "suspect"]
    assert "told" in states
    await platform.until(lambda: other.started)


async def test_a_cut_link_kills_nothing_and_the_host_comes_back_with_its_inventory(platform):
    host, first = await _one(platform)
    host.cut()
    await platform.until(lambda: any(i.suspect for i in platform.gateway.of("hello")))
    await host.connect()
    await platform.until(lambda: [i.suspect for i in platform.gateway.of("hello")] == [False])
    assert [i.id for i in platform.gateway.of("hello")] == [first]
    assert first not in platform.gateway.dead
    assert len(host.started) == 1


async def test_an_instance_that_is_not_in_the_inventory_any_more_is_dead(platform):
    host, first = await _one(platform)
    host.cut()
    host.instances.clear()
    await platform.until(lambda: platform.world.hosts[host.id].state == "suspect")
    await host.connect()
    await platform.until(lambda: first in platform.gateway.dead)


async def test_a_new_incarnation_on_a_node_means_the_old_one_is_dead_at_once(platform):
    host, first = await _one(platform)
    second = await platform.new_host("n1")
    await platform.until(lambda: first in platform.gateway.dead)
    assert platform.world.hosts[host.id].state == "dead"
    platform.gateway.wake("hello")
    await platform.until(lambda: second.started)


async def test_a_suspect_host_gets_no_new_claims(platform):
    host = await platform.new_host()
    await platform.gateway.deploy(platform.spec(), verify=False)
    host.cut()
    await platform.until(lambda: platform.world.hosts[host.id].state == "suspect")
    platform.gateway.wake("hello")
    await platform.until(lambda: platform.gateway.endpoints["default/hello"].reason)
    assert not host.started
    await host.connect()
    platform.gateway.wake("hello")
    await platform.until(lambda: host.started)


async def test_a_drained_host_empties_and_takes_nothing_new(platform):
    host, first = await _one(platform, scaling=Scaling(min=1))
    platform.control.drain_host(host.id)
    await platform.until(lambda: not platform.world.hosts[host.id].instances)
    assert first in platform.gateway.removed
    other = await platform.new_host("n2")
    await platform.until(lambda: other.started)
    assert len(host.started) == 1


async def test_a_restarted_control_adopts_before_it_tells_gateways(platform):
    host, first = await _one(platform)
    await platform.until(lambda: platform.control._known_nodes == ["n1"])
    await platform.restart()
    gateway = platform.gateway
    gateway.snapshots.clear()
    await gateway.connect()
    assert (await gateway.api("GET", "/status"))[1]["adopting"] is True
    assert not gateway.snapshots
    await host.connect()
    await platform.until(lambda: gateway.snapshots)
    assert [i.id for i in gateway.of("hello")] == [first]
    assert len(host.started) == 1
    status = (await gateway.api("GET", "/status"))[1]
    assert (status["epoch"], status["hosts"], status["instances"], status["adopting"]) == (2, 1, 1, False)


async def test_an_unfinished_rollout_goes_on_after_a_restart(platform):
    host, first = await _one(platform)
    host.cut()
    await platform.gateway.deploy(platform.spec(env={"A": "2"}), verify=False)
    await platform.restart()
    await platform.gateway.connect()
    await host.connect()
    await platform.until(lambda: first in [s.id for s in host.stopped])
    assert platform.world.endpoints["default/hello"].version == 2


async def test_instances_of_unknown_endpoints_are_stopped(platform):
    host = await platform.new_host()
    host.cut()
    host.instances["ix"] = wire.InstanceReport(id="ix", endpoint="default/gone", version=1, state="ready")
    await platform.until(lambda: platform.world.hosts[host.id].state == "suspect")
    await host.connect()
    await platform.until(lambda: [s.id for s in host.stopped] == ["ix"])


async def test_lists_have_the_promised_members(platform):
    _, first = await _one(platform)
    _, doc = await platform.gateway.api("GET", "/instances")
    names = "id endpoint version state host node provider runtime pid address started_at tier in_flight"
    assert set(names.split()) <= set(doc["items"][0])
    assert (doc["items"][0]["id"], doc["next"]) == (first, None)
    _, doc = await platform.gateway.api("GET", "/hosts")
    names = "id node provider region kind spot price state resources warm instances cost"
    assert set(names.split()) <= set(doc["items"][0])
    assert doc["items"][0]["resources"]["free"]["cpu"] == 4.0 - 0.125
    _, doc = await platform.gateway.api("GET", "/nodes")
    assert [n["id"] for n in doc["items"]] == ["n1"]
    assert (await platform.gateway.api("POST", "/nodes", {}))[0] == 404


async def test_logs_of_all_hosts_are_merged_and_the_cursor_goes_on(platform):
    host, first = await _one(platform)
    other = await platform.new_host("n2")
    host.lines = [wire.LogLine(at=at, instance=first, stream="stdout", text=f"a{at:g}") for at in (1.0, 3.0)]
    other.lines = [wire.LogLine(at=2.0, instance="other", stream="stderr", text="b2")]
    _, doc = await platform.gateway.api("GET", "/endpoints/hello/logs")
    assert [i["text"] for i in doc["items"]] == ["a1", "b2", "a3"]
    other.lines.append(wire.LogLine(at=4.0, instance="other", stream="stdout", text="b4"))
    _, doc = await platform.gateway.api("GET", "/endpoints/hello/logs", cursor=doc["next"], wait="5")
    assert [i["text"] for i in doc["items"]] == ["b4"]
    _, doc = await platform.gateway.api("GET", "/endpoints/hello/logs", cursor=doc["next"], wait="0.1")
    assert doc["items"] == []
    assert (await platform.gateway.api("GET", "/endpoints/hello/logs", cursor="%%%"))[0] == 422


async def test_blobs_are_served_in_chunks(platform):
    host = await platform.new_host()
    chunk = await host.link.call(wire.FetchBlob(sha256=platform.sha, offset=4), 5.0)
    assert (chunk.total, chunk.data) == (len(platform.bundle), platform.bundle[4:])
    error = await host.link.call(wire.FetchBlob(sha256="0" * 64), 5.0)
    assert (error.slug, type(error).__name__) == ("not-found", "Error")
    bad = await host.link.call(wire.FetchBlob(sha256="../control.db"), 5.0)
    assert bad.slug == "validation-failed"
    status, _ = await platform.gateway.api("PUT", f"/bundles/{'0' * 64}", b"x")
    assert status == 422
    assert (await platform.gateway.api("HEAD", f"/bundles/{platform.sha}"))[0] == 200
    assert (await platform.gateway.api("HEAD", f"/bundles/{'0' * 64}"))[0] == 404


async def test_wrong_names_methods_keys_and_cursors_are_told(platform):
    await platform.gateway.deploy(platform.spec(), verify=False)
    status, doc = await platform.gateway.api("GET", "/endpoints/helo")
    assert (status, doc["closest"]) == (404, "hello")
    status, doc = await platform.gateway.api("PATCH", "/endpoints/hello")
    assert (status, doc["hint"], doc["allow"]) == (405, "Use GET or DELETE.", ["GET", "DELETE"])
    assert (await platform.gateway.api("GET", "/endpoints", limit="x"))[0] == 422
    assert (await platform.gateway.api("GET", "/endpoints", cursor="x"))[0] == 422
    call = wire.ApiCall(method="GET", path="/status", scopes=("call",), key_id="k")
    assert (await platform.gateway.link.call(call, 5.0)).status == 403
    status, doc = await platform.gateway.api("GET", "/openapi.json")
    assert "/api/v1/endpoints/{name}/scale" in doc["paths"]
    with pytest.raises(LinkRefused):
        await link.connect(platform.control.address, role="host", id="x", token="wrong")
    tcp = await link.connect(
        f"tcp:127.0.0.1:{platform.control.port}", role="gateway", id="t", token="the-cluster-token"
    )
    tcp.close()


async def test_the_recorded_history_decides_the_same_again(platform):
    host, _ = await _one(platform, scaling=Scaling(idle_timeout=0.2))
    platform.gateway.demand("hello", finished=1)
    await platform.until(lambda: host.stopped)
    await platform.control.stop()
    path = platform.settings.data / "history" / "decisions.jsonl"
    assert len(path.read_bytes().splitlines()) >= 2
    assert replay_file(path) == []


async def test_an_adopted_instance_has_the_accelerator_that_it_has(platform):
    """Not the one that would be picked for it now."""
    host = await platform.new_host(gpu={"L4": 1, "H100": 1})
    gateway = platform.gateway
    gpu = (Gpu(name="H100"), Gpu(name="L4"))
    await gateway.deploy(platform.spec("first", gpu=gpu))
    await gateway.deploy(platform.spec("second", gpu=gpu))
    held = {i.endpoint.name: i.gpu for i in platform.world.instances.values()}
    assert held == {"first": ("H100", 1), "second": ("L4", 1)}
    first = next(i.id for i in platform.world.instances.values() if i.endpoint.name == "first")
    host.end(first)
    await platform.until(lambda: first not in platform.world.instances)
    await platform.restart()
    await gateway.connect()
    await host.connect()
    await platform.until(lambda: platform.world.instances)
    assert [i.gpu for i in platform.world.instances.values()] == [("L4", 1)]
    (there,) = platform.control.hosts()
    assert there.free()[2] == {"L4": 0, "H100": 1}
