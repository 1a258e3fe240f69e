"""Images that were built run as containers of Docker, owned as they say, and stay as they are."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import headrace
import pytest
from headrace_runtimes.conformance_bench import Harness, call, opened
from headrace_runtimes.docker import DockerRuntime, sweeper
from headrace_runtimes.errors import PrepareFailed
from headrace_runtimes.images.context import directory as context_directory
from headrace_runtimes.images.context import pack, unpack
from headrace_runtimes.images.definition import Image
from headrace_runtimes.oci.network import LoopbackOnly
from headrace_runtimes.spec import Base, RuntimeSettings

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="containers need root")
ENGINE = Path(headrace.__file__).parent / "engines" / "python"
CODE = """
import os

def look(path):
    seen = os.stat(path)
    try:
        with open(path, "a") as file:
            file.write("changed")
    except OSError as error:
        failed = type(error).__name__
    text, greeting = open(path).read(), os.environ.get("GREETING")
    return {"text": text, "uid": seen.st_uid, "env": greeting, "failed": failed}
"""


def names(address: str) -> set[str]:
    told = json.loads(sweeper.ask(address.removeprefix("unix://"), "GET", "/images/json"))
    return {tag for image in told for tag in image["RepoTags"] or ()}


async def test_an_image_with_layers(directory: Path, docker_daemon: str) -> None:
    # The daemon is shared with other tests, which leave images that they may use again.
    others = names(docker_daemon)
    source = directory / "source"
    source.mkdir()
    (source / "data.txt").write_text("from the image")
    steps = (("env", ("GREETING=hello",)), ("copy", ("data.txt", "/opt/data.txt")), ("env", ("OTHER=1",)))
    image, packed = pack(Image(steps=steps), source)
    images = directory / "images"
    settings = RuntimeSettings(
        run_dir=directory / "o", engine_dir=ENGINE, python=sys.executable, zygote_bytes=1 << 30,
        log_dir=directory / "logs", images_dir=images,
    )  # fmt: skip
    context = context_directory(images, image.digest)
    context.parent.mkdir(parents=True)
    unpack(packed, context)
    made = Harness(lambda: DockerRuntime(docker_daemon, LoopbackOnly()), settings, directory / "code")
    async with opened(made) as bench:
        (bench.code / "app.py").write_text(CODE)
        base = Base(key="built", image=image.digest)
        with pytest.raises(PrepareFailed, match="prepare it first"):
            await bench.start("look", base)
        assert await bench.runtime.prepare(image) == image.digest
        sandbox = await bench.start("look", base)
        status, seen = await call(sandbox, {"path": "/opt/data.txt"})
        assert status == 200, seen
        assert seen.pop("failed") in {"PermissionError", "OSError"}
        assert seen == {"text": "from the image", "uid": 0, "env": "hello"}
        await sandbox.stop(0.0)
        await bench.runtime.hold([(base, 1)])
        await bench.base("built", lambda status: status.spares == 1)
        assert (await bench.start("look", base)).tier == "warm"
    kept = {name for name in names(docker_daemon) if name.startswith("headrace/image:")} - others
    assert len(kept) == 1, "kept for the next time"
    async with opened(made) as bench:
        assert await bench.runtime.prepare(image) == image.digest
    assert {name for name in names(docker_daemon) if name.startswith("headrace/image:")} - others == kept


async def test_images_of_a_run_go_with_it(directory: Path, docker_daemon: str) -> None:
    before = names(docker_daemon)
    settings = RuntimeSettings(
        run_dir=directory / "o", engine_dir=ENGINE, python=sys.executable, zygote_bytes=1 << 30,
        log_dir=directory / "logs",
    )  # fmt: skip
    made = Harness(lambda: DockerRuntime(docker_daemon, LoopbackOnly()), settings, directory / "code")
    async with opened(made) as bench:
        assert (await call(await bench.start(), {}))[0] == 200
        assert len(names(docker_daemon) - before) == 1
    assert names(docker_daemon) == before


async def test_weights_are_shown_where_the_image_has_nothing(directory: Path, docker_daemon: str) -> None:
    weights = directory / "w"
    weights.mkdir()
    (weights / "data").write_text("of the weights")
    settings = RuntimeSettings(
        run_dir=directory / "o", engine_dir=ENGINE, python=sys.executable, zygote_bytes=1 << 30,
        log_dir=directory / "logs",
    )  # fmt: skip
    made = Harness(lambda: DockerRuntime(docker_daemon, LoopbackOnly()), settings, directory / "code")
    async with opened(made) as bench:
        (bench.code / "app.py").write_text(CODE)
        sandbox = await bench.start("look", mounts=((weights, "/weights/model/v1"),))
        _, seen = await call(sandbox, {"path": "/weights/model/v1/data"})
        assert seen["text"] == "of the weights"
        assert seen["failed"] in {"PermissionError", "OSError"}, "they are read-only"
        with pytest.raises(PrepareFailed, match="cannot be shown"):
            await bench.start("look", mounts=((weights, "/elsewhere/model"),))
    assert (weights / "data").read_text() == "of the weights"
