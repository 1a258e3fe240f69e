"""``headrace images``: what a host has made gets to a registry, and back."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from headrace_runtimes.images import context
from headrace_runtimes.images.build import Builder, BuildSettings
from headrace_runtimes.images.definition import Image
from headrace_runtimes.images.store import Store

from tests.fixtures_registry import HTPASSWD, PASSWORD, real_registry

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="layers of containers need root"),
    pytest.mark.asyncio,
]


async def headrace(home: Path, *words: str) -> tuple[int, str, str]:
    """Run the command with the images below ``home``."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "headrace.cli", *words, cwd=home,
        env=os.environ | {"HOME": str(home), "HEADRACE_IMAGES_DIR": str(home / "images")},
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    async with asyncio.timeout(120):
        out, err = await process.communicate()
    return process.returncode or 0, out.decode(), err.decode()


@pytest_asyncio.fixture
async def built(tmp_path: Path) -> Image:
    """An image with a file, as a host keeps it: built, its definition beside."""
    files = tmp_path / "files"
    files.mkdir()
    (files / "words.txt").write_text("from here")
    image, packed = context.pack(Image(steps=(("copy", ("words.txt", "/words.txt")),)), files)
    place = context.directory(tmp_path / "images", image.digest)
    place.mkdir(parents=True)
    context.unpack(packed, place)
    place.with_name(f"{image.digest}.json").write_bytes(image.encode())
    store = Store(tmp_path / "images")
    await store.open()
    await Builder(store, BuildSettings(host_python=sys.executable)).build(image, place)
    return image


async def test_what_was_built_here_is_pushed_and_can_be_started_from(tmp_path: Path, built: Image) -> None:
    code, out, _ = await headrace(tmp_path, "images", "list")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()] == ["IMAGE", built.digest[:12]]
    assert "copy words.txt /words.txt" in out
    async with real_registry(tmp_path, HTPASSWD) as registry:
        target = f"{registry}/team/words:1"
        push = "images", "push", built.digest[:12], target, "--json"
        code, out, err = await headrace(tmp_path, *push)
        assert (code, "401" in err) == (1, True), err
        assert "docker login" in json.loads(out)["error"]["message"]
        login = base64.b64encode(f"ali:{PASSWORD}".encode()).decode()
        (tmp_path / ".docker").mkdir()
        config = tmp_path / ".docker/config.json"
        config.write_text(json.dumps({"auths": {registry: {"auth": login}}}))
        code, out, err = await headrace(tmp_path, *push)
        assert code == 0, err
        answer: dict[str, Any] = json.loads(out)
        assert answer["pinned"] == f"{target}@{answer['digest']}"
        # Again: all is there already.
        code, out, _ = await headrace(tmp_path, "images", "push", answer["digest"], target)
        assert (code, out.strip()) == (0, f'pushed: headrace.Image.from_registry("{answer["pinned"]}")')
        other = Store(tmp_path / "other")
        await other.open()
        start = Image(steps=(("from_registry", (answer["pinned"],)),))
        settings = BuildSettings(host_python=sys.executable, docker_config=config)
        builder = Builder(other, settings)
        stored = await builder.build(start, None)
        assert stored.digest == answer["digest"]
        layers = await builder.layers(stored)
        assert (layers[0] / "words.txt").read_text() == "from here"
        assert await builder.python_of(stored, layers, None)
        # It is known there by where it came from.
        shutil.rmtree(tmp_path / "images")
        (tmp_path / "other").rename(tmp_path / "images")
        code, out, _ = await headrace(tmp_path, "images", "list", "--json")
        items = json.loads(out)["items"]
        assert {item["name"] for item in items} == {start.digest, answer["pinned"]}
        assert {item["digest"] for item in items} == {answer["digest"]}


async def test_what_cannot_be_pushed_is_told_in_one_line(tmp_path: Path, built: Image) -> None:
    for words, code, why in (
        (("0000", "127.0.0.1:9/a:1"), 2, "there is no image 0000"),
        (("", "127.0.0.1:9/a:1"), 2, "there is no image"),
        ((built.digest, "A B"), 2, "no image reference"),
        ((built.digest, f"127.0.0.1:9/a@sha256:{'0' * 64}"), 2, "Name it by a tag"),
        ((built.digest, "127.0.0.1:9/a:1"), 1, "127.0.0.1:9/a:1 was not pushed: "),
    ):
        found, out, err = await headrace(tmp_path, "images", "push", *words)
        assert (found, out) == (code, ""), err
        assert why in err
        assert "internal error" not in err
    shutil.rmtree(tmp_path / "images")
    assert (await headrace(tmp_path, "images", "list"))[1] == f"no images in {tmp_path}/images\n"
    assert not (tmp_path / "images").exists()
