"""Deployments, rollouts, rollbacks, failures, deletion."""

from __future__ import annotations

import asyncio
import hashlib
import sqlite3

import msgspec
import pytest
from headrace import wire
from headrace.control import server
from headrace.control.progress import Deployment, Part
from headrace.control.store import open_store
from headrace.errors import DataDirError
from headrace.sdk.spec import ImageSpec, Scaling
from headrace.sdk.weights import Weights

BROKEN = wire.Death(reason="import-failed", detail="ImportError: no module x", traceback="Traceback: x")


async def test_the_base_is_asked_for_before_the_trial_and_its_refusals_are_notes(platform):
    host = await platform.new_host()
    host.refused = {"grpc": "it starts threads"}
    doc = await platform.gateway.deploy(platform.spec(preload=("grpc",)))
    assert doc["state"] == "succeeded"
    assert doc["endpoints"][0]["notes"] == ["grpc is not preloaded: it starts threads"]
    kinds = [kind for kind, _ in host.log]
    assert kinds.index("warm") < kinds.index("start")
    assert platform.gateway.state("hello") == "ready"
    assert host.warm[-1].bases[0][0].preload == ("grpc",)


async def test_the_same_spec_again_is_a_no_op(platform):
    host = await platform.new_host()
    await platform.gateway.deploy(platform.spec())
    doc = await platform.gateway.deploy(platform.spec())
    part = doc["endpoints"][0]
    assert (doc["state"], part["state"], part["version"], len(host.started)) == (
        "succeeded",
        "unchanged",
        1,
        1,
    )


async def test_a_new_endpoint_that_does_not_import_is_failed_with_the_traceback(platform):
    host = await platform.new_host()
    host.script = lambda start: BROKEN
    doc = await platform.gateway.deploy(platform.spec())
    part = doc["endpoints"][0]
    assert (doc["state"], part["state"], part["traceback"]) == ("failed", "failed", "Traceback: x")
    assert "ImportError: no module x" in part["detail"]
    route = await platform.until(lambda: platform.gateway.endpoints.get("default/hello"))
    await platform.until(lambda: platform.gateway.state("hello") == "failed")
    assert "ImportError" in platform.gateway.endpoints[route.endpoint].reason
    await platform.restart()
    assert "ImportError" in platform.world.endpoints["default/hello"].reason, "also after a restart"
    assert platform.world.endpoints["default/hello"].spec.entry == platform.spec().entry
    for part in platform.parts:
        await part.connect()
    platform.gateway.wake("hello")
    host.script = lambda start: None
    doc = await platform.gateway.deploy(platform.spec())
    assert (doc["state"], doc["endpoints"][0]["version"]) == ("succeeded", 2)
    assert platform.gateway.state("hello") == "ready"


async def test_a_broken_new_version_leaves_the_old_one_serving(platform):
    host = await platform.new_host()
    gateway = platform.gateway
    await gateway.deploy(platform.spec())
    old = gateway.of("hello")[0].id
    host.script = lambda start: BROKEN
    doc = await gateway.deploy(platform.spec(env={"A": "1"}))
    assert doc["state"] == "failed"
    assert [i.id for i in gateway.of("hello")] == [old]
    assert (gateway.state("hello"), gateway.endpoints["default/hello"].version) == ("ready", 1)
    _, shown = await gateway.api("GET", "/endpoints/hello")
    assert [(v["version"], v["verified"]) for v in shown["versions"]] == [(2, False), (1, True)]


async def test_a_rollout_brings_new_up_before_old_drains_and_can_go_back(platform):
    host = await platform.new_host()
    gateway = platform.gateway
    await gateway.deploy(platform.spec(), verify=False)
    gateway.wake("hello", queued=3)
    await platform.until(lambda: len(gateway.of("hello")) == 3)
    # Requests are in flight on all three.
    busy = {i.id: 1 for i in gateway.of("hello")}
    keep = asyncio.create_task(_say(gateway, busy))
    counts: list[int] = []
    handle = gateway.handle

    def watch(link, message):
        handle(link, message)
        counts.append(len(gateway.of("hello")))

    gateway.link._handler = watch
    doc = await gateway.deploy(platform.spec(env={"A": "2"}))
    assert doc["state"] == "succeeded"
    await platform.until(lambda: {i.version for i in gateway.of("hello")} == {2})
    assert min(counts) >= 3
    assert max(counts) <= 5
    assert set(busy) <= {s.id for s in host.stopped}
    assert all(s.grace_s == 600.0 for s in host.stopped)
    await platform.until(lambda: gateway.state("hello") == "ready")
    status, doc = await gateway.api("POST", "/endpoints/hello/rollback", {})
    assert status == 202
    status, doc = await gateway.api("GET", f"/deployments/{doc['id']}", wait="20")
    assert (doc["state"], doc["endpoints"][0]["version"]) == ("succeeded", 1)
    await platform.until(lambda: {i.version for i in gateway.of("hello")} == {1})
    status, doc = await gateway.api("POST", "/endpoints/hello/rollback", {"version": 9})
    assert (status, doc["type"]) == (404, "urn:headrace:version-not-found")
    status, doc = await gateway.api("POST", "/endpoints/hello/rollback", {})
    assert status == 409
    keep.cancel()


async def test_the_openapi_document_says_which_version_it_is_of(platform):
    gateway = platform.gateway
    document = {"openapi": "3.1.0", "info": {"title": "hello", "version": "1"}, "paths": {}}
    for version in (1, 2):
        spec = platform.spec(env={"A": str(version)}, openapi=document)
        await gateway.deploy(spec, verify=False)
        status, found = await gateway.api("GET", "/endpoints/hello/openapi.json")
        assert (status, found["info"]) == (200, {"title": "hello", "version": str(version)})
    await gateway.deploy(platform.spec("odd", openapi={"info": []}), verify=False)
    assert await gateway.api("GET", "/endpoints/odd/openapi.json") == (200, {"info": []})


async def _say(gateway, busy):
    while True:
        alive = {id: 1 for id in busy if id in gateway.instances}
        gateway.demand("hello", in_flight=3, instances=alive)
        await asyncio.sleep(0.1)


async def test_a_rollout_without_room_drains_one_old_first_and_says_so(platform):
    host = await platform.new_host(cpu=1.0)
    gateway = platform.gateway
    await gateway.deploy(platform.spec(cpu=1.0))
    doc = await gateway.deploy(platform.spec(cpu=1.0, env={"A": "2"}))
    assert doc["state"] == "succeeded"
    assert any("drains first" in note for note in doc["endpoints"][0]["notes"])
    assert [k for k, _ in host.log if k != "warm"] == ["start", "stop", "start"]


async def test_a_rollout_without_room_works_with_a_minimum_and_under_load(platform):
    host = await platform.new_host(cpu=2.0)
    host.hold_stops = True
    gateway = platform.gateway
    both = Scaling(min=2, max=2)
    await gateway.deploy(platform.spec(cpu=1.0, scaling=both))
    await platform.until(lambda: len(gateway.of("hello")) == 2)
    gateway.demand("hello", in_flight=2, queued=4)
    first = {start.id for start in host.started}

    async def end_stopped():
        # An instance finishes what it has before it ends, and its end makes the room.
        while True:
            for stop in list(host.stopped):
                host.end(stop.id)
            gateway.demand("hello", in_flight=2, queued=4)
            await asyncio.sleep(0.05)

    ending = asyncio.create_task(end_stopped())
    try:
        doc = await gateway.deploy(platform.spec(cpu=1.0, scaling=both, env={"A": "2"}))
        assert doc["state"] == "succeeded", doc
        await platform.until(lambda: [i.version for i in gateway.of("hello")] == [2, 2])
    finally:
        ending.cancel()
    # One made room for the trial, the other for its fellow; none of the old version was started again.
    assert {stop.id for stop in host.stopped} == first
    assert [s.spec.version for s in host.started] == [1, 1, 2, 2]


async def test_a_trial_that_fails_gives_its_room_back(platform):
    host = await platform.new_host(cpu=1.0)
    gateway = platform.gateway
    one = Scaling(min=1, max=1)
    await gateway.deploy(platform.spec(cpu=1.0, scaling=one))
    host.script = lambda start: BROKEN if start.spec.version == 2 else None
    doc = await gateway.deploy(platform.spec(cpu=1.0, scaling=one, env={"A": "2"}))
    assert doc["state"] == "failed"
    await platform.until(lambda: [i.version for i in gateway.of("hello")] == [1])


async def test_a_crash_loop_backs_off_tells_why_and_recovers(platform):
    host = await platform.new_host()
    gateway = platform.gateway
    await gateway.deploy(platform.spec(), verify=False)
    host.script = lambda start: BROKEN
    gateway.wake("hello")
    await platform.until(lambda: gateway.state("hello") == "failed")
    assert "ImportError" in gateway.endpoints["default/hello"].reason
    _, doc = await gateway.api("GET", "/endpoints/hello")
    assert (doc["state"], doc["traceback"]) == ("failed", "Traceback: x")
    gateway.demand("hello")
    endpoint = platform.world.endpoints["default/hello"]
    assert (endpoint.failing.count, len(host.started)) == (1, 1)
    gateway.wake("hello")
    await platform.until(lambda: platform.world.wakes == 2)
    assert len(host.started) == 1
    gateway.demand("hello")
    # The backoff over, gateways may try again; another failure doubles it.
    await platform.until(lambda: gateway.state("hello") == "idle")
    gateway.wake("hello")
    await platform.until(lambda: endpoint.failing and endpoint.failing.count == 2)
    await platform.until(lambda: gateway.state("hello") == "failed")
    gateway.demand("hello")
    host.script = lambda start: None
    await platform.until(lambda: gateway.state("hello") == "idle")
    gateway.wake("hello")
    await platform.until(lambda: gateway.state("hello") == "ready")
    assert endpoint.failing is None


async def test_an_instance_that_dies_is_replaced_at_once_when_there_is_demand(platform):
    host = await platform.new_host()
    gateway = platform.gateway
    await gateway.deploy(platform.spec(), verify=False)
    gateway.wake("hello")
    first = (await platform.until(lambda: gateway.of("hello")))[0].id
    gateway.demand("hello", in_flight=1, instances={first: 1})
    host.end(first, wire.Death(reason="exited", detail="exit code 3", exit_code=3))
    await platform.until(lambda: first in gateway.dead)
    await platform.until(lambda: gateway.of("hello") and gateway.of("hello")[0].id != first)
    assert gateway.state("hello") == "ready"


async def test_delete_takes_it_out_of_everything(platform):
    host = await platform.new_host()
    gateway = platform.gateway
    await gateway.deploy(platform.spec())
    host.hold_stops = True
    status, doc = await gateway.api("DELETE", "/endpoints/hello")
    assert (status, doc["state"]) == (202, "deleting")
    await platform.until(lambda: gateway.state("hello") is None and not gateway.of("hello"))
    status, doc = await gateway.api("POST", "/deployments", {"specs": [msgspec.to_builtins(platform.spec())]})
    assert status == 409
    host.end(host.stopped[-1].id)
    await platform.until(lambda: "default/hello" not in platform.world.endpoints)
    status, doc = await gateway.api("GET", "/endpoints/hello")
    assert (status, doc["type"]) == (404, "urn:headrace:endpoint-not-found")
    assert await platform.control.store.load_endpoints() == []


async def test_what_cannot_run_is_refused_before_anything_is_stored(platform):
    host = await platform.new_host()
    assert host.runtimes == ("process",)
    elsewhere = [
        platform.spec(runtime="oci"),
        platform.spec(weights=(Weights("http://127.0.0.1/model"),)),
    ]
    bad = [
        platform.spec(image=ImageSpec(layers=(("pip", ("torch",)),))),
        platform.spec(api="openai"),
        platform.spec(bundle="0" * 64),
        platform.spec(bundle=""),
        platform.spec(entry="nothing"),
    ]
    for spec in (*elsewhere, *bad):
        status, doc = await platform.gateway.api(
            "POST", "/deployments", {"specs": [msgspec.to_builtins(spec)]}
        )
        why = "not-runnable" if spec in elsewhere else "validation-failed"
        assert (status, doc["type"]) == (422, f"urn:headrace:{why}"), doc
        assert "'hello'" in doc["detail"]
    for body in (b"{", b"{}", b'{"specs": []}', b'{"specs": [{"name": "UP"}]}', b"[1]"):
        status, doc = await platform.gateway.api("POST", "/deployments", body)
        assert status in (400, 422), doc
    twice = [msgspec.to_builtins(platform.spec())] * 2
    assert (await platform.gateway.api("POST", "/deployments", {"specs": twice}))[0] == 422
    assert not platform.world.endpoints


async def test_without_a_host_the_trial_says_so(platform, monkeypatch):
    monkeypatch.setattr("headrace.control.trial.ROOM_TIMEOUT_S", 0.2)
    doc = await platform.gateway.deploy(platform.spec())
    assert doc["state"] == "failed"
    assert "no host joined" in doc["endpoints"][0]["detail"]


async def test_killed_before_the_switch_the_old_version_is_current_and_the_next_control_goes_on(platform):
    host = await platform.new_host()
    gateway = platform.gateway
    await gateway.deploy(platform.spec(), verify=False)
    host.script = lambda start: "hang"
    body = {"specs": msgspec.to_builtins([platform.spec(env={"A": "2"})]), "verify": True}
    _, doc = await gateway.api("POST", "/deployments", body)
    await platform.until(lambda: host.started)
    await platform.restart()
    await gateway.connect()
    path = f"/deployments/{doc['id']}"
    status, there = await gateway.api("GET", path)
    assert (status, there["state"]) == (200, "running")
    _, shown = await gateway.api("GET", "/endpoints/hello")
    assert (shown["version"], [v["version"] for v in shown["versions"]]) == (1, [2, 1])
    # The instance that was tried then is stopped when its host is back, and another one is tried.
    (before,) = [s.id for s in host.started]
    host.script = lambda start: None
    await host.connect()
    await platform.until(lambda: before in [s.id for s in host.stopped])
    _, done = await gateway.api("GET", path, wait="20")
    assert done["state"] == "succeeded", done
    assert any("restarted" in note for note in done["endpoints"][0]["notes"])
    _, shown = await gateway.api("GET", "/endpoints/hello")
    assert shown["version"] == 2


async def test_what_a_deployment_came_to_is_known_after_a_restart(platform):
    host = await platform.new_host()
    gateway = platform.gateway
    good = await gateway.deploy(platform.spec())
    host.script = lambda start: BROKEN
    bad = await gateway.deploy(platform.spec(env={"A": "2"}))
    # What is not kept any more is not tried again.
    store = platform.control.store
    cut = Deployment("d-cut", "default", [Part("hello", 1), Part("gone", 4)])
    await store.deployments.begin(cut, {})
    await platform.until(lambda: not platform.control.parts.deployer._tasks)
    await platform.restart()
    await gateway.connect()
    for doc in (good, bad):
        status, again = await gateway.api("GET", f"/deployments/{doc['id']}")
        assert (status, again) == (200, doc)
    _, cut = await gateway.api("GET", "/deployments/d-cut", wait="10")
    assert [part["state"] for part in cut["endpoints"]] == ["unchanged", "failed"]
    status, problem = await gateway.api("GET", "/deployments/d-never")
    assert (status, "last hundred" in problem["hint"]) == (404, True)


async def test_deployments_of_one_endpoint_are_tried_one_at_a_time(platform):
    host = await platform.new_host()
    gateway = platform.gateway
    host.script = lambda start: "hang"
    ids = []
    for n in range(4):
        body = {"specs": msgspec.to_builtins([platform.spec(env={"A": str(n)})]), "verify": True}
        _, doc = await gateway.api("POST", "/deployments", body)
        ids.append(doc["id"])
    for number in range(1, 5):
        await platform.until(lambda number=number: len(host.started) == number)
        assert [s.spec.version for s in host.started] == list(range(1, number + 1))
        assert len(platform.world.endpoints["default/hello"].trials) == 1
        host.ready(host.started[-1].id)
    for id in ids:
        assert (await gateway.api("GET", f"/deployments/{id}", wait="20"))[1]["state"] == "succeeded"
    _, shown = await gateway.api("GET", "/endpoints/hello")
    assert shown["version"] == 4


async def test_ten_versions_are_kept_and_old_bundles_go(platform):
    gateway = platform.gateway
    for number in range(13):
        data = f"bundle {number}".encode()
        sha = hashlib.sha256(data).hexdigest()
        assert (await gateway.api("PUT", f"/bundles/{sha}", data))[0] == 201
        await gateway.deploy(platform.spec(bundle=sha), verify=False)
    _, doc = await gateway.api("GET", "/endpoints/hello")
    assert [v["version"] for v in doc["versions"]] == list(range(13, 3, -1))
    blobs = platform.control.parts.blobs
    needed = await platform.control.store.bundles()
    assert await blobs.collect(lambda sha: sha in needed) == 0
    assert await blobs.collect(lambda sha: sha in needed, grace_s=-1) == 4


async def test_the_scale_of_ten_thousand(platform):
    gateway = platform.gateway
    specs = [platform.spec(f"e-{n:05}", scaling=Scaling()) for n in range(10_000)]
    doc = await gateway.deploy(*specs, verify=False)
    assert doc["state"] == "succeeded"
    await platform.until(lambda: len(gateway.endpoints) == 10_000)
    names, cursor = [], ""
    while cursor is not None:
        query = {"limit": "1000"} | ({"cursor": cursor} if cursor else {})
        _, page = await gateway.api("GET", "/endpoints", **query)
        names += [item["name"] for item in page["items"]]
        cursor = page["next"]
    assert names == [s.name for s in specs]
    assert not platform.world.active
    host = await platform.new_host()
    gateway.wake("e-09999")
    await platform.until(lambda: gateway.of("e-09999"))
    assert len(host.started) == 1
    assert len(host.warm[0].bases) == 1


async def test_a_restarted_control_has_everything_and_a_higher_epoch(platform):
    await platform.gateway.deploy(platform.spec(), verify=False)
    first = platform.control.parts.epoch
    await platform.restart()
    gateway = await platform.new_gateway("g2")
    assert gateway.snapshots[0].epoch == first + 1
    assert gateway.state("hello") == "idle"
    assert server.HOSTS_KEY == "hosts"


async def test_a_newer_store_is_refused(tmp_path):
    path = tmp_path / "control.db"
    store = await open_store(path)
    await store.close()
    db = sqlite3.connect(path)
    db.execute("PRAGMA user_version=99")
    db.close()
    with pytest.raises(DataDirError, match="schema 99"):
        await open_store(path)


async def test_many_trials_give_way_to_each_other_on_a_small_host(platform):
    host = await platform.new_host(cpu=2.0)
    specs = [platform.spec(f"e{n}", cpu=1.0) for n in range(6)]
    doc = await platform.gateway.deploy(*specs)
    assert doc["state"] == "succeeded", doc
    assert len(host.started) == 6
    assert len(host.instances) <= 2


async def test_a_start_that_never_ends_is_given_up(platform, monkeypatch):
    monkeypatch.setattr("headrace.control.reconcile.START_MARGIN_S", 0.1)
    host = await platform.new_host()
    await platform.gateway.deploy(platform.spec(load_timeout=0.1), verify=False)
    host.script = lambda start: "hang"
    platform.gateway.wake("hello")
    await platform.until(lambda: platform.gateway.state("hello") == "failed")
    assert "start-timeout" in platform.gateway.endpoints["default/hello"].reason
    assert [s.id for s in host.stopped] == [s.id for s in host.started]


async def test_deploying_again_unchanged_ends_the_backoff(platform):
    host = await platform.new_host()
    await platform.gateway.deploy(platform.spec(), verify=False)
    host.script = lambda start: BROKEN
    platform.gateway.wake("hello")
    await platform.until(lambda: platform.gateway.state("hello") == "failed")
    host.script = lambda start: None
    doc = await platform.gateway.deploy(platform.spec())
    assert doc["endpoints"][0]["state"] == "unchanged"
    await platform.until(lambda: platform.gateway.state("hello") == "ready")


async def test_two_deployments_of_one_endpoint_come_one_after_the_other(platform):
    await platform.new_host()
    first, second = (platform.spec(env={"A": str(n)}) for n in range(2))
    docs = await asyncio.gather(platform.gateway.deploy(first), platform.gateway.deploy(second))
    assert [d["state"] for d in docs] == ["succeeded", "succeeded"]
    await platform.until(lambda: [i.version for i in platform.gateway.of("hello")] == [2])
    assert platform.world.endpoints["default/hello"].version == 2
