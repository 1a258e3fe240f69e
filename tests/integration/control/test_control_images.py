"""Images and runtimes as control sees them: who is asked, what is told while it is made, what is refused."""

from __future__ import annotations

import asyncio
import hashlib
from typing import Any

import msgspec
from headrace import wire
from headrace.control import trial
from headrace.sdk.spec import ImageSpec

CONTEXT = b"a definition"
SHA = hashlib.sha256(CONTEXT).hexdigest()
IMAGE = ImageSpec(layers=(("pip", ("six",)),), digest="a" * 64, context=SHA)


def warm(base: wire.BaseSpec, **told: Any) -> wire.WarmEvent:
    return wire.WarmEvent(warm=wire.WarmReport(base=base, **told))


async def upload(platform: Any) -> None:
    assert (await platform.gateway.api("PUT", f"/bundles/{SHA}", CONTEXT))[0] == 201


async def started(platform: Any, spec: Any) -> str:
    body = {"specs": msgspec.to_builtins([spec]), "verify": True}
    status, doc = await platform.gateway.api("POST", "/deployments", body)
    assert status == 202, doc
    return str(doc["id"])


async def part_of(platform: Any, id: str, **query: str) -> dict[str, Any]:
    _, doc = await platform.gateway.api("GET", f"/deployments/{id}", **query)
    return dict(doc["endpoints"][0])


async def refusal(platform: Any, **options: Any) -> str:
    body = {"specs": msgspec.to_builtins([platform.spec(**options)])}
    status, doc = await platform.gateway.api("POST", "/deployments", body)
    assert status == 422, doc
    return str(doc["detail"])


async def test_what_was_not_packed_or_uploaded_is_refused(platform: Any) -> None:
    await platform.new_host()
    assert f"files {SHA} are not here" in await refusal(platform, runtime="oci", image=IMAGE)
    await upload(platform)
    bare = ImageSpec(layers=IMAGE.layers)
    assert "not packed" in await refusal(platform, image=bare)
    assert "not packed" in await refusal(platform, image=ImageSpec(digest="a" * 64, context=SHA))
    short = msgspec.structs.replace(IMAGE, digest="abc")
    assert "SHA-256" in await refusal(platform, image=short)
    apt = msgspec.structs.replace(IMAGE, layers=(("apt", ("ffmpeg",)),))
    assert 'runtime="oci"' in await refusal(platform, image=apt)


async def test_a_runtime_that_no_host_has_any_more(platform: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(trial, "ROOM_TIMEOUT_S", 0.3)
    # Without a host nobody knows what there will be: the trial sees.
    body = {"specs": msgspec.to_builtins([platform.spec(runtime="oci")])}
    status, doc = await platform.gateway.api("POST", "/deployments", body)
    assert status == 202, doc
    await platform.new_host()
    _, doc = await platform.gateway.api("GET", f"/deployments/{doc['id']}", wait="30")
    assert 'no host has runtime "oci"' in doc["endpoints"][0]["detail"]
    assert "doctor" in doc["endpoints"][0]["detail"]


async def test_only_hosts_with_the_runtime_get_instances(platform: Any) -> None:
    await platform.new_host("n1", cpu=64.0)
    second = await platform.new_host("n2", runtimes=("process", "oci"))
    await upload(platform)
    doc = await platform.gateway.deploy(platform.spec(runtime="oci", image=IMAGE, cpu_limit=0.5))
    assert doc["state"] == "succeeded"
    (start,) = second.started
    assert start.spec.base.runtime == "oci"
    assert (start.spec.base.image, start.spec.base.context) == (IMAGE.digest, SHA)
    assert start.spec.cpu_limit == 0.5


async def test_how_far_an_image_is_and_why_it_failed(platform: Any) -> None:
    host = await platform.new_host(runtimes=("process", "oci"))
    host.base_state = "starting"
    await upload(platform)
    spec = platform.spec(runtime="oci", image=IMAGE)
    id = await started(platform, spec)
    await platform.until(lambda: any(s.image for m in host.warm for s, _ in m.bases))
    base = next(s for m in host.warm for s, _ in m.bases if s.image)
    host.send(warm(base, state="starting", unprepared=True, detail="its image is made: step 1 of 1"))

    async def shown(words: str) -> None:
        async with asyncio.timeout(10):
            while words not in (await part_of(platform, id))["detail"]:
                await asyncio.sleep(0.01)

    await shown("step 1 of 1")
    host.send(warm(base, state="failed", unprepared=True, detail="pip six failed"))
    part = await part_of(platform, id, wait="10")
    assert (part["state"], part["detail"]) == ("failed", "pip six failed")
    assert not host.started
    # Hosts are asked anew by the next deployment.
    await platform.until(lambda: host.warm and not any(s.image for s, _ in host.warm[-1].bases))
    host.base_state = "ready"
    doc = await platform.gateway.deploy(spec)
    assert doc["state"] == "succeeded"


async def test_requests_that_wait_for_an_image_hear_of_it(platform: Any) -> None:
    host = await platform.new_host(runtimes=("process", "oci"))
    await upload(platform)
    await platform.gateway.deploy(platform.spec(runtime="oci", image=IMAGE))
    base = next(s for m in host.warm for s, _ in m.bases if s.image)
    for id in list(host.instances):
        host.end(id)
    host.script = lambda start: "hang"
    host.send(warm(base, state="starting", unprepared=True, detail="its image is made: layer 2 of 3"))
    platform.gateway.wake("hello")
    await platform.until(lambda: len(host.started) == 2)
    await platform.until(lambda: "layer 2" in platform.gateway.endpoints["default/hello"].reason)
    host.ready(host.started[-1].id)
    await platform.until(lambda: not platform.gateway.endpoints["default/hello"].reason)


async def test_the_files_of_images_are_kept_as_long_as_a_version_needs_them(platform: Any) -> None:
    await platform.new_host(runtimes=("process", "oci"))
    await upload(platform)
    await platform.gateway.deploy(platform.spec(runtime="oci", image=IMAGE))
    needed = await platform.control.parts.store.bundles()
    assert {SHA, platform.sha} <= needed
    assert "" not in needed


async def test_waiting_containers_are_for_versions_that_somebody_may_call(platform: Any) -> None:
    host = await platform.new_host(runtimes=("process", "oci"))
    await upload(platform)
    other = msgspec.structs.replace(IMAGE, digest="b" * 64)
    for name, image in (("one", IMAGE), ("two", IMAGE), ("plain", ImageSpec())):
        runtime = "oci" if image.digest else "process"
        doc = await platform.gateway.deploy(platform.spec(name, runtime=runtime, image=image))
        assert doc["state"] == "succeeded", doc

    def held() -> list[str]:
        return sorted(base.image[:1] for base, _ in host.warm[-1].bases)

    await platform.until(lambda: held() == ["", "a"])
    await platform.gateway.deploy(platform.spec("one", runtime="oci", image=other))
    await platform.until(lambda: held() == ["", "a", "b"])
    # Who calls the version before by its number goes on with it.
    platform.gateway.wake("one", version=1)
    await platform.until(lambda: 1 in platform.world.endpoints["default/one"].pins)
    await platform.gateway.deploy(platform.spec("two", runtime="oci", image=other))
    await platform.until(lambda: platform.world.endpoints["default/two"].version == 2)
    assert held() == ["", "a", "b"]
    platform.world.endpoints["default/one"].pins.clear()
    await platform.gateway.deploy(platform.spec("plain", preload=("json",)))
    await platform.until(lambda: held() == ["", "", "b"])
    told = platform.world.hosts[host.id].warm
    assert sorted(base.image[:1] for base in told) == ["", "", "b"], "what is gone is ready no more"
    for name in ("two", "plain", "one"):
        assert held() == ["", "", "b"]
        assert (await platform.gateway.api("DELETE", f"/endpoints/{name}"))[0] < 300
    await platform.until(lambda: held() == ["", ""])
