"""Which runtimes a host offers, when they are opened, what their instances are held to, and their images."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from headrace import wire
from headrace.errors import SettingsError
from headrace.host.images import Images
from headrace.host.latecomers import admit_latecomers, pauses
from headrace.host.limits import Limits, limits_of
from headrace.host.runtimes import Runtimes, offered
from headrace_runtimes.base import Runtime
from headrace_runtimes.errors import ImageFailed, PrepareFailed
from headrace_runtimes.images.context import pack
from headrace_runtimes.images.definition import Image

GIB = 1 << 30
HOST = wire.Resources(cpu=4, memory=8 * GIB)


class Plain:
    """A runtime of which only what a host decides by is there."""

    def __init__(self, name: str, why: str = "") -> None:
        self.name, self.why = name, why
        self.opened = self.closed = 0
        self.prepared: list[Image] = []
        self.fail: Exception | None = None
        self.gone: set[str] = set()

    def has_image(self, digest: str) -> bool:
        return digest not in self.gone

    def capabilities(self) -> Mapping[str, str]:
        return {"isolation": self.why, "limits": self.why}

    async def open(self, settings: Any, on_base: Any) -> None:
        await asyncio.sleep(0)
        self.opened += 1
        if self.fail is not None:
            raise self.fail

    async def close(self) -> None:
        self.closed += 1

    async def prepare(self, image: Image, progress: Any = None) -> str:
        await asyncio.sleep(0)
        progress("step 1 of 1: pip x", 0, 0)
        self.prepared.append(image)
        if self.fail is not None:
            raise self.fail
        return image.digest


def makes(**whys: str) -> Any:
    return lambda name: Plain(name, whys.get(name, ""))


def spec(**changes: Any) -> wire.InstanceSpec:
    base = {"endpoint": "default/a", "version": 1, "base": wire.BaseSpec(), "bundle": "", "entry": "a:b"}
    return wire.InstanceSpec(**{**base, "handler": "function", **changes})


@pytest.mark.parametrize(
    ("wish", "whys", "found"),
    [
        ("auto", {"process": "no"}, ["process", "oci", "docker"]),
        ("auto", {"oci": "no runc"}, ["process", "docker"]),
        ("process", {}, ["process"]),
        (" oci, process ,oci", {}, ["oci", "process"]),
    ],
)
def test_what_is_offered(wish: str, whys: dict[str, str], found: list[str]) -> None:
    assert list(offered(wish, makes(**whys), ("process", "oci", "docker"))) == found


def test_a_broken_plugin_is_left_out() -> None:
    def make(name: str) -> Any:
        if name == "oci":
            raise PrepareFailed("it cannot be imported")
        return Plain(name)

    assert list(offered("auto", make, ("oci", "process"))) == ["process"]
    with pytest.raises(SettingsError, match="cannot be imported"):
        offered("oci", make)


@pytest.mark.parametrize(("wish", "says"), [("oci", "cannot work here: no runc"), (" , ", "at least one")])
def test_what_is_named_must_work(wish: str, says: str) -> None:
    with pytest.raises(SettingsError, match=says):
        offered(wish, makes(oci="no runc"))


async def test_a_runtime_is_opened_once_when_it_is_needed() -> None:
    oci = Plain("oci")
    runtimes = Runtimes({"process": Plain("process", "no"), "oci": oci}, lambda name: None)  # type: ignore[arg-type, return-value]
    assert runtimes.now("oci") is None
    assert not runtimes.found_out
    assert "docker" not in runtimes
    found = await asyncio.gather(*(runtimes.get("oci") for _ in range(5)))
    assert set(map(id, found)) == {id(oci)}
    assert oci.opened == 1
    assert runtimes.found_out
    assert list(runtimes.opened()) == ["oci"]
    assert runtimes.holds_limits("oci")
    assert not runtimes.holds_limits("process")
    with pytest.raises(PrepareFailed, match="no runtime 'docker'"):
        await runtimes.get("docker")
    await runtimes.close()
    assert oci.closed == 1
    with pytest.raises(PrepareFailed, match="closing"):
        await runtimes.get("process")


async def test_an_opening_that_failed_is_tried_again() -> None:
    oci = Plain("oci")
    oci.fail = PrepareFailed("no disk")
    runtimes = Runtimes({"oci": oci}, lambda name: None)  # type: ignore[arg-type, return-value]
    with pytest.raises(PrepareFailed, match="no disk"):
        await runtimes.get("oci")
    assert runtimes.now("oci") is None
    oci.fail = None
    assert await runtimes.get("oci") is oci  # type: ignore[comparison-overlap]
    await runtimes.close()
    assert oci.closed == 1


@pytest.mark.parametrize(
    ("given", "held", "limits"),
    [
        ({}, False, Limits(None, None)),
        ({"memory_limit": GIB, "cpu_limit": 2.0}, False, Limits(GIB, None)),
        ({"memory_limit": GIB, "cpu_limit": 2.0}, True, Limits(GIB, 2.0)),
        ({}, True, Limits(2 * GIB, None)),
        ({"memory": 3 * GIB}, True, Limits(3 * GIB, None)),
    ],
)
def test_what_instances_are_held_to(given: dict[str, Any], held: bool, limits: Limits) -> None:
    assert limits_of(spec(**given), HOST, held=held) == limits


class Blobs:
    """Gives out one blob."""

    def __init__(self, data: bytes) -> None:
        self.data, self.asked = data, 0

    async def archive(self, sha256: str) -> bytes:
        self.asked += 1
        assert hashlib.sha256(self.data).hexdigest() == sha256
        return self.data


def image_of(tmp_path: Path) -> tuple[Image, bytes, wire.BaseSpec]:
    (tmp_path / "words.txt").write_text("first")
    image, data = pack(Image(steps=(("copy", ("words.txt", "words.txt")),)), tmp_path)
    context = hashlib.sha256(data).hexdigest()
    return image, data, wire.BaseSpec(runtime="oci", image=image.digest, context=context)


async def test_an_image_is_fetched_and_prepared_once(tmp_path: Path) -> None:
    image, data, base = image_of(tmp_path)
    oci, blobs, told = Plain("oci"), Blobs(data), []
    runtimes = Runtimes({"oci": oci}, lambda name: None)  # type: ignore[arg-type, return-value]
    root = tmp_path / "images"
    images = Images(root, runtimes, blobs, lambda *what: told.append(what))  # type: ignore[arg-type]
    assert not images.has(base)
    assert images.has(wire.BaseSpec())
    await asyncio.gather(*(images.ensure(base) for _ in range(3)))
    await asyncio.sleep(0)
    assert images.has(base)
    assert oci.prepared == [image]
    assert (root / "contexts" / image.digest / "words.txt").read_text() == "first"
    assert {what[:2] for what in told} == {("oci", image.digest)}
    assert any("pip x" in far for _, _, far in told)
    oci.gone.add(image.digest)
    assert not images.has(base), "its runtime has let go of it"
    await images.ensure(base)
    assert oci.prepared == [image, image]
    oci.prepared.pop()
    # Another host of the machine, or this one after a restart, finds the files.
    await Images(root, runtimes, blobs, lambda *_: None).ensure(base)  # type: ignore[arg-type]
    assert blobs.asked == 1
    assert oci.prepared == [image, image]
    await runtimes.close()


async def test_an_image_that_failed_is_tried_again(tmp_path: Path) -> None:
    image, data, base = image_of(tmp_path)
    oci = Plain("oci")
    runtimes = Runtimes({"oci": oci}, lambda name: None)  # type: ignore[arg-type, return-value]
    images = Images(tmp_path / "images", runtimes, Blobs(data), lambda *_: None)  # type: ignore[arg-type]
    await runtimes.get("oci")
    oci.fail = ImageFailed("step 1")
    with pytest.raises(ImageFailed, match="step 1"):
        await images.ensure(base)
    assert not images.has(base)
    oci.fail = None
    await images.ensure(base)
    assert oci.prepared == [image, image]
    await images.close()
    await runtimes.close()


async def test_files_of_another_image_are_refused(tmp_path: Path) -> None:
    _, data, base = image_of(tmp_path)
    runtimes = Runtimes({"oci": Plain("oci")}, lambda name: None)  # type: ignore[arg-type, return-value]
    images = Images(tmp_path / "images", runtimes, Blobs(data), lambda *_: None)  # type: ignore[arg-type]
    wrong = wire.BaseSpec(runtime="oci", image="0" * 64, context=base.context)
    with pytest.raises(ImageFailed, match="another image"):
        await images.ensure(wrong)
    assert not list((tmp_path / "images/contexts").iterdir())
    await runtimes.close()


async def test_what_could_not_work_at_the_start_is_offered_when_it_can() -> None:
    runtimes = Runtimes({"process": Plain("process", "no")}, lambda name: None)  # type: ignore[arg-type, return-value]
    missing = {"docker": "it is down", "oci": "no runc"}
    state = {"docker": "it is down", "oci": "no runc"}
    came: list[str] = []
    looks = 0

    def make(name: str) -> Runtime:
        nonlocal looks
        looks += 1
        if looks == 4:
            raise PrepareFailed("broken for a moment")
        if looks > 6:
            state["docker"] = ""
        if looks > 10:
            state["oci"] = ""
        return Plain(name, state[name])  # type: ignore[return-value]

    waits = iter([0.0] * 50)
    await asyncio.wait_for(
        admit_latecomers("auto", missing, runtimes, make, on_come=came.append, waits=waits), 10
    )
    assert came == ["docker", "oci"]
    assert missing == {}
    assert runtimes.found_out
    assert set(runtimes.capabilities()) == {"process", "docker", "oci"}
    assert (await runtimes.get("docker")).name == "docker"
    await runtimes.close()


async def test_what_the_setting_leaves_out_stays_out_and_looks_become_seldom() -> None:
    runtimes = Runtimes({"process": Plain("process", "no")}, lambda name: None)  # type: ignore[arg-type, return-value]
    missing, came = {"oci": "left out"}, list[str]()
    await admit_latecomers("process", missing, runtimes, makes(), on_come=came.append, waits=iter([0.0]))
    assert missing == {"oci": "left out"}
    assert came == []
    assert runtimes.names == ("process",)
    assert list(itertools.islice(pauses(), 6)) == [10.0, 20.0, 40.0, 80.0, 120.0, 120.0]
