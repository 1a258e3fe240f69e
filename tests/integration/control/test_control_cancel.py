"""A deployment that somebody has thought better of."""

from __future__ import annotations

from typing import Any

import msgspec
from headrace import wire
from headrace.control.images import image_progress


async def begun(platform: Any, spec: Any) -> str:
    body = {"specs": msgspec.to_builtins([spec]), "verify": True}
    status, doc = await platform.gateway.api("POST", "/deployments", body)
    assert status == 202, doc
    return str(doc["id"])


async def ended(platform: Any, id: str) -> dict[str, Any]:
    _, doc = await platform.gateway.api("GET", f"/deployments/{id}", wait="20")
    return dict(doc["endpoints"][0])


async def test_cancelled_while_its_instance_starts_the_old_version_goes_on(platform: Any) -> None:
    host = await platform.new_host()
    await platform.gateway.deploy(platform.spec())
    host.script = lambda start: "hang"
    id = await begun(platform, platform.spec(env={"A": "2"}))
    await platform.until(lambda: len(host.started) == 2)
    status, _ = await platform.gateway.api("DELETE", f"/deployments/{id}")
    assert status == 202
    part = await ended(platform, id)
    assert (part["state"], part["detail"]) == ("failed", "it was cancelled")
    await platform.until(lambda: host.started[1].id in {stop.id for stop in host.stopped})
    _, doc = await platform.gateway.api("GET", "/endpoints/hello")
    assert doc["version"] == 1
    # The next control does not take it up.
    await platform.restart()
    await platform.gateway.connect()
    assert (await ended(platform, id))["detail"] == "it was cancelled"
    # It is no obstacle for the next one.
    host.script = lambda start: None
    await host.connect()
    doc = await platform.gateway.deploy(platform.spec(env={"A": "2"}))
    assert doc["state"] == "succeeded", doc


async def test_cancelled_while_its_base_is_made(platform: Any) -> None:
    host = await platform.new_host()
    host.base_state = "starting"
    id = await begun(platform, platform.spec(preload=("json",)))
    await platform.until(lambda: host.warm)
    await platform.gateway.api("DELETE", f"/deployments/{id}")
    assert (await ended(platform, id))["detail"] == "it was cancelled"
    assert not host.started


async def test_what_is_current_already_stays(platform: Any) -> None:
    await platform.new_host()
    doc = await platform.gateway.deploy(platform.spec())
    status, doc = await platform.gateway.api("DELETE", f"/deployments/{doc['id']}")
    assert (status, doc["state"]) == (202, "succeeded")
    status, doc = await platform.gateway.api("DELETE", "/deployments/dnone")
    assert status == 404


async def test_each_host_that_makes_the_image_is_told(platform: Any) -> None:

    base = wire.BaseSpec(image="a" * 64)
    for number in range(5):
        host = await platform.new_host(f"n{number}")
        report = wire.WarmReport(base=base, unprepared=True, detail=f"layer {number}")
        platform.world.hosts[host.id].warm[base] = report
        if number == 0:
            assert image_progress(platform.world.hosts.values(), base) == "layer 0"
    told = image_progress(platform.world.hosts.values(), base)
    assert told == "n0: layer 0; n1: layer 1; n2: layer 2; and 2 more"
