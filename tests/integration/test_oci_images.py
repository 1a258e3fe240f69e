"""Images that were built run as containers, owned as they say, and stay as they are."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable
from pathlib import Path

import headrace
import pytest
from headrace_runtimes.conformance_bench import Harness, call, opened
from headrace_runtimes.containers import roots, runtime
from headrace_runtimes.errors import PrepareFailed
from headrace_runtimes.images.context import pack, unpack
from headrace_runtimes.images.definition import Image
from headrace_runtimes.images.gc import collect
from headrace_runtimes.images.store import Store
from headrace_runtimes.oci import OciRuntime
from headrace_runtimes.oci.driver import context_dir
from headrace_runtimes.spec import Base, RuntimeSettings

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="containers need root")
ENGINE = Path(headrace.__file__).parent / "engines" / "python"
CODE = """
import os

def look(path):
    seen = os.stat(path)
    text = open(path).read()
    with open(path, "a") as file:
        file.write("changed")
    return {"text": text, "uid": seen.st_uid, "env": os.environ.get("GREETING"), "after": open(path).read()}
"""


async def test_an_image_with_layers(directory: Path) -> None:
    source = directory / "source"
    source.mkdir()
    (source / "data.txt").write_text("from the image")
    steps = (("env", ("GREETING=hello",)), ("copy", ("data.txt", "/opt/data.txt")), ("env", ("OTHER=1",)))
    image, packed = pack(Image(steps=steps), source)
    settings = RuntimeSettings(
        run_dir=directory / "o", engine_dir=ENGINE, python=sys.executable, zygote_bytes=1 << 30,
        log_dir=directory / "logs", images_dir=directory / "images",
    )  # fmt: skip
    context = context_dir(directory / "images", image)
    context.parent.mkdir(parents=True)
    unpack(packed, context)
    async with opened(Harness(OciRuntime, settings, directory / "code")) as bench:
        (bench.code / "app.py").write_text(CODE)
        base = Base(key="built", image=image.digest)
        with pytest.raises(PrepareFailed, match="prepare it first"):
            await bench.start("look", base)
        assert await bench.runtime.prepare(image) == image.digest
        for _ in range(2):
            sandbox = await bench.start("look", base)
            status, seen = await call(sandbox, {"path": "/opt/data.txt"})
            assert status == 200, seen
            assert seen == {
                "text": "from the image", "uid": 0, "env": "hello", "after": "from the imagechanged",
            }  # fmt: skip
            await sandbox.stop(0.0)
        await bench.runtime.hold([(base, 1)])
        await bench.base("built", lambda status: status.spares == 1)
        assert (await bench.start("look", base)).tier == "warm"


async def test_what_nothing_uses_any_more_may_be_collected(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(roots, "KEPT_S", 2.0)
    monkeypatch.setattr(runtime, "MEASURE_S", 0.05)
    settings = RuntimeSettings(
        run_dir=directory / "o", engine_dir=ENGINE, python=sys.executable, zygote_bytes=1 << 30,
        log_dir=directory / "logs", images_dir=directory / "images",
    )  # fmt: skip
    images = [Image(steps=(("env", (f"GREETING=hello{n}",)),)) for n in range(2)]
    async with opened(Harness(OciRuntime, settings, directory / "code")) as bench:
        (bench.code / "app.py").write_text(CODE)
        store = Store(directory / "images")
        held, used = (Base(key=f"b{n}", image=image.digest) for n, image in enumerate(images))
        await bench.runtime.hold([(held, 0)])
        await bench.runtime.prepare(images[0])
        await bench.runtime.prepare(images[1])
        sandbox = await bench.start("look", used)
        await asyncio.sleep(2.5)
        assert len(store.pinned()) == 2, "one is named, one has a container"
        await sandbox.stop(0.0)
        await until(lambda: len(store.pinned()) == 1)
        with pytest.raises(PrepareFailed, match="prepare it first"):
            await bench.start("look", used)
        await bench.runtime.hold([])
        await until(lambda: not store.pinned())
        await collect(store, 0, 0.0, grace_s=0.0)
        assert store.references() == {}
        await bench.runtime.hold([(used, 0)])
        assert await bench.runtime.prepare(images[1]) == used.image
        status, seen = await call(await bench.start("look", used), {"path": "/etc/hosts"})
        assert (status, seen["env"]) == (200, "hello1")


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20.0):
        while not condition():
            await asyncio.sleep(0.05)
