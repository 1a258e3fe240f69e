"""Tags of images are looked up once, at the deployment."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import msgspec
from headrace.control import pins
from headrace.sdk.image import Image
from headrace.sdk.pack import pack_image
from headrace.sdk.spec import ImageSpec
from headrace_runtimes.images.context import definition_in, unpack

TAG = "docker.io/library/python:3.12"
OLD, NEW = f"sha256:{'1' * 64}", f"sha256:{'2' * 64}"


async def packed(platform: Any, root: Path, image: Image) -> ImageSpec:
    """As a deploy sends it."""
    found = pack_image(image.spec, root)
    assert found is not None
    status, _ = await platform.gateway.api("PUT", f"/bundles/{found.spec.context}", found.data)
    assert status in (200, 201)
    return found.spec


async def test_the_tag_is_looked_up_once_and_going_back_means_the_old_image(
    platform: Any, tmp_path: Path
) -> None:
    (tmp_path / "data.txt").write_text("hello")
    host = await platform.new_host(runtimes=("process", "oci"))
    host.registry = {TAG: {"digest": OLD}}
    image = await packed(platform, tmp_path, Image.from_registry("python:3.12").copy("data.txt", "data.txt"))
    one, two = (platform.spec(name, runtime="oci", image=image) for name in ("hello", "other"))
    doc = await platform.gateway.deploy(one, two)
    assert doc["state"] == "succeeded", doc
    assert host.log.count(("find", TAG)) == 1
    bases = {start.spec.base for start in host.started}
    assert len({(base.image, base.context) for base in bases}) == 1
    first = bases.pop()
    assert first.image not in ("", image.digest)
    # What hosts fetch is the definition under its new name, with its files.
    size, data = await platform.control.parts.blobs.read(first.context, 0, 1 << 20)
    assert (size, hashlib.sha256(data).hexdigest()) == (len(data), first.context)
    (tmp_path / "out").mkdir()
    definition = unpack(data, tmp_path / "out")
    assert definition.digest == first.image
    assert definition.steps[0] == ("from_registry", (f"{TAG}@{OLD}",))
    assert (tmp_path / "out/data.txt").read_text() == "hello"
    # The same file, deployed again: nothing new, unless the tag has moved.
    doc = await platform.gateway.deploy(one)
    assert doc["endpoints"][0]["state"] == "unchanged"
    host.registry = {TAG: {"digest": NEW}}
    doc = await platform.gateway.deploy(one)
    assert (doc["endpoints"][0]["state"], doc["endpoints"][0]["version"]) == ("ready", 2)
    _, shown = await platform.gateway.api("GET", "/endpoints/hello")
    steps = [v["image"]["steps"][0] for v in shown["versions"]]
    assert steps == [f"from_registry {TAG}@{NEW}", f"from_registry {TAG}@{OLD}"]
    # Nobody is asked on the way back.
    host.registry, before = {}, len(host.log)
    status, doc = await platform.gateway.api("POST", "/endpoints/hello/rollback", {})
    assert status == 202, doc
    _, doc = await platform.gateway.api("GET", f"/deployments/{doc['id']}", wait="30")
    assert doc["state"] == "succeeded", doc
    assert not [entry for entry in host.log[before:] if entry[0] == "find"]
    assert host.started[-1].spec.base.image == first.image


async def test_a_tag_that_cannot_be_looked_up_is_told(
    platform: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    image = await packed(platform, tmp_path, Image.from_registry("python:3.12"))
    body = {"specs": msgspec.to_builtins([platform.spec(runtime="oci", image=image)])}
    monkeypatch.setattr(pins, "HOST_WAIT_S", 0.2)
    status, doc = await platform.gateway.api("POST", "/deployments", body)
    assert status == 422
    assert 'no host with runtime "oci"' in doc["detail"]
    await platform.new_host(runtimes=("process", "oci"))
    status, doc = await platform.gateway.api("POST", "/deployments", body)
    assert status == 422
    assert "404: no such image" in doc["detail"]
    assert not platform.world.endpoints


async def test_nobody_is_asked_for_what_is_named_by_its_digest(platform: Any, tmp_path: Path) -> None:
    host = await platform.new_host(runtimes=("process", "oci"))
    image = await packed(platform, tmp_path, Image.from_registry(f"python@{OLD}").pip("six"))
    doc = await platform.gateway.deploy(platform.spec(runtime="oci", image=image))
    assert doc["state"] == "succeeded", doc
    assert host.started[0].spec.base.image == image.digest
    assert not [entry for entry in host.log if entry[0] == "find"]


BASE = "docker.io/library/python:{}-slim"


async def steps_of(platform: Any, root: Path, image: Image, runtime: str = "oci") -> list[str]:
    """Steps of what is deployed; of a new endpoint, so that nothing is unchanged."""
    name = f"e{len(platform.world.endpoints)}"
    spec = platform.spec(name, runtime=runtime, image=await packed(platform, root, image))
    doc = await platform.gateway.deploy(spec)
    assert doc["state"] == "succeeded", doc
    _, shown = await platform.gateway.api("GET", f"/endpoints/{name}")
    return list(shown["versions"][0]["image"]["steps"])


async def test_a_python_that_hosts_do_not_have_comes_from_a_registry(platform: Any, tmp_path: Path) -> None:
    host = await platform.new_host(runtimes=("process", "oci"), python="3.11.2")
    host.registry = {BASE.format(v): {"digest": NEW} for v in ("3.11", "3.12", "3.11.9")}
    for image in (Image.python("3.11").pip("six"), Image().pip("six"), Image.python("3.11.2").pip("six")):
        assert (await steps_of(platform, tmp_path, image))[-1:] == ["pip six"]
    image = Image.python("3.12").pip("six")
    assert await steps_of(platform, tmp_path, image, "process") == ["python 3.12", "pip six"]
    assert not [entry for entry in host.log if entry[0] == "find"]
    for image, version in (
        (Image.python("3.12"), "3.12"),
        (Image.python("3.11.9").pip("six"), "3.11.9"),
        (Image.python("3.11").run("true"), "3.11"),
        (Image().apt("curl").pip("six"), "3.11"),
    ):
        steps = await steps_of(platform, tmp_path, image)
        assert steps[0] == f"from_registry {BASE.format(version)}@{NEW}"
        assert len(steps) == 1 + len(image.spec.layers)
    # What hosts fetch is that definition.
    base = host.started[-1].spec.base
    _, data = await platform.control.parts.blobs.read(base.context, 0, 1 << 20)
    assert definition_in(data).digest == base.image
    assert definition_in(data).python is None


async def test_hosts_with_different_pythons_have_one_image(platform: Any, tmp_path: Path) -> None:
    host = await platform.new_host("n1", runtimes=("process", "oci"), python="3.11.2")
    image = Image.python("3.11").pip("six")
    assert await steps_of(platform, tmp_path, image) == ["python 3.11", "pip six"]
    other = await platform.new_host("n2", runtimes=("process", "oci"), python="3.13.1")
    host.registry = other.registry = {BASE.format("3.11"): {"digest": NEW}}
    assert (await steps_of(platform, tmp_path, image))[0] == f"from_registry {BASE.format('3.11')}@{NEW}"


async def test_what_each_host_resolves_is_noted_where_there_are_several(
    platform: Any, tmp_path: Path
) -> None:
    await platform.new_host("n1", runtimes=("process", "oci"))
    loose = ("six", "numpy>=2", "torch==2.*", "idna ; python_version == '3.11'")
    fixed = ("anyio==4.1", "rich[x] == 14.0 ; python_version > '3'", "https://example.org/a.whl")
    image = await packed(platform, tmp_path, Image().pip(*loose, *fixed))
    doc = await platform.gateway.deploy(platform.spec("one", runtime="oci", image=image))
    assert doc["endpoints"][0]["notes"] == []
    await platform.new_host("n2", runtimes=("process", "oci"))
    doc = await platform.gateway.deploy(platform.spec("two", runtime="oci", image=image))
    assert doc["endpoints"][0]["notes"] == [
        f"image: pip takes {', '.join(loose)} as each host finds it when it builds: pin it with =="
    ]


async def test_a_registry_that_cannot_be_reached_says_what_was_wanted_there(
    platform: Any, tmp_path: Path
) -> None:
    host = await platform.new_host(runtimes=("process", "oci"), python="3.11.2")
    host.registry = {BASE.format("3.12"): {"why": "registry-1.docker.io cannot be reached: no route"}}
    image = await packed(platform, tmp_path, Image.python("3.12").pip("six"))
    body = {"specs": msgspec.to_builtins([platform.spec(runtime="oci", image=image)])}
    status, doc = await platform.gateway.api("POST", "/deployments", body)
    assert status == 422
    assert doc["detail"] == (
        "endpoint 'hello': image: it starts from docker.io/library/python:3.12-slim (setting python_image), "
        "for hosts have Python 3.11.2, not 3.12: registry-1.docker.io cannot be reached: no route."
    )


def test_the_name_of_the_pinned_image_is_that_of_its_definition(tmp_path: Path) -> None:
    found = pack_image(Image.from_registry("python:3.12").spec, tmp_path)
    assert found is not None
    assert definition_in(found.data).digest == found.spec.digest
