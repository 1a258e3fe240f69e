"""Environments of the process runtime: made once by uv, whole or not there, removed when nobody uses them."""

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from headrace_runtimes.errors import ImageFailed, NotSupported, PrepareFailed
from headrace_runtimes.images.definition import Image
from headrace_runtimes.images.pyenv import WHOLE, Environments, PyEnvSettings

from tests.fixtures_wheels import wheel

OWN = f"{sys.version_info.major}.{sys.version_info.minor}"


@pytest.fixture
def settings(tmp_path):
    wheels = wheel(tmp_path / "wheels")
    wheel(wheels, "other")
    return PyEnvSettings(sys.executable, env={"UV_OFFLINE": "1", "UV_FIND_LINKS": str(wheels)}, timeout_s=100)


@pytest.fixture
async def environments(tmp_path, settings):
    found = Environments(tmp_path / "envs", settings)
    await found.open()
    yield found
    assert list((tmp_path / "envs/locks").iterdir()) == []


def images(*names):
    return [Image(OWN, (("pip", (name,)),)) for name in names]


async def test_what_was_asked_for_is_there_compiled_and_made_once(environments, settings, tmp_path):
    (tmp_path / "ctx/pkg").mkdir(parents=True)
    (tmp_path / "ctx/pkg/mine.py").write_text("X = 7\n")
    (tmp_path / "ctx/one").write_text("1")
    image = Image(
        OWN,
        (
            ("pip", ("tinything==1.0",)), ("env", ("A=1", "B=two words")),
            ("copy", ("pkg", "lib")), ("copy", ("one", "deep/")),
        ),
    )  # fmt: skip
    told = []
    second = Environments(environments.directory, settings)
    found, same = await asyncio.gather(
        environments.prepare(image, tmp_path / "ctx", lambda *a: told.append(a[0])),
        second.prepare(image, tmp_path / "ctx", lambda *a: told.append(a[0])),
    )
    assert found == same == await environments.prepare(image)
    assert sum("Installed 1 package" in line for line in told) == 1
    assert (found.env["A"], found.env["B"]) == ("1", "two words")
    assert found.paths == (found.env["HEADRACE_FILES"],)
    code = "import tinything, lib.mine, os; print(tinything.ANSWER, lib.mine.X, tinything.__cached__)"
    out = subprocess.run(
        [found.python, "-c", code],
        env={"PYTHONPATH": found.paths[0]},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    assert out[:2] == ["42", "7"]
    assert os.path.exists(out[2])
    assert (Path(found.paths[0]) / "deep/one").read_text() == "1"


async def test_what_fails_leaves_nothing_and_says_why(environments):
    with pytest.raises(ImageFailed, match="nosuchthing"):
        await environments.prepare(images("nosuchthing")[0])
    with pytest.raises(ImageFailed, match="not here"):
        await environments.prepare(Image(OWN, (("copy", ("a", "b")),)))
    for step in (("apt", ("x",)), ("run", ("x",)), ("copy", ("a", "/b"))):
        with pytest.raises(NotSupported, match="host"):
            await environments.prepare(Image(steps=(step,)))
    assert environments._environments() == []


async def test_what_a_dead_builder_left_is_not_used(environments, settings):
    image = images("tinything")[0]
    found = await environments.prepare(image)
    place = environments.directory / found.name
    (place / WHOLE).unlink()
    next(place.rglob("tinything.py")).unlink()
    again = Environments(environments.directory, settings)
    await again.open()
    assert not place.exists()
    assert (await again.prepare(image)).name == found.name
    assert list(place.rglob("tinything.py"))


async def test_a_build_that_is_cancelled_leaves_nothing(environments):
    begun = asyncio.Event()
    image = images("tinything")[0]
    task = asyncio.create_task(environments.prepare(image, None, lambda *_: begun.set()))
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert environments._environments() == []


async def test_what_is_used_stays_and_what_is_old_or_too_much_goes(environments):
    first, second = [await environments.prepare(image) for image in images("tinything", "other")]
    size = json.loads((environments.directory / first.name / WHOLE).read_bytes())["bytes"]
    assert size > 0
    for age, name in ((1e9, first.name), (1.1e9, second.name)):
        os.utime(environments.directory / name / WHOLE, (age, age))
    assert await environments.collect(1 << 40, 1e12) == []
    with environments.hold(first.name):
        assert await environments.collect(1, 1e12) == [second.name]
        assert os.path.exists(first.python)
    assert await environments.collect(1 << 40, 1e12, pins=[first.name]) == []
    os.utime(environments.directory / first.name / WHOLE, (1e9, 1e9))
    assert await environments.collect(1 << 40, 60.0) == [first.name]
    with pytest.raises(PrepareFailed, match="not here"), environments.hold(first.name):
        pass
