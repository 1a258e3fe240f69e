"""One accelerator changes hands between endpoints: who gives way is paused, keeps its state, and goes on."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import aiohttp
import pytest
import pytest_asyncio
from headrace import wire
from headrace.cluster.local import LocalCluster

from tests.integration.conftest import Platform, make_settings, until

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="containers need root")
RESOURCES = wire.Resources(cpu=4, memory=8 << 30, gpu={"X1": 1})
APP = """
    import os, time

    @headrace.endpoint(name="{name}", runtime="{runtime}", gpu="X1")
    class Counts:
        def load(self):
            self.calls = 0
        def __call__(self, wait: float = 0.0) -> dict:
            time.sleep(wait)
            self.calls += 1
            return {{"calls": self.calls, "gpu": os.environ["CUDA_VISIBLE_DEVICES"]}}
"""


@pytest.fixture(scope="module")
def directory() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="hrw-"))
    path.chmod(0o711)
    yield path
    shutil.rmtree(path)


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def platform(directory: Path, docker_daemon: str) -> AsyncIterator[Platform]:
    settings = make_settings(
        directory / "data", pause_accelerators=True, runtimes="process,oci,docker",
        images_dir=str(directory / "images"), weights_dir=str(directory / "weights"),
        weights_allow=str(directory / "models"),
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DOCKER_HOST", docker_daemon)
        async with LocalCluster(settings, resources=RESOURCES) as cluster, aiohttp.ClientSession() as http:
            yield Platform(cluster, http, directory)


async def states(platform: Platform, name: str) -> list[str]:
    return [i["state"] for i in await platform.instances(name)]


async def deploy(platform: Platform, *names: str, runtimes: tuple[str, str] = ("oci", "oci")) -> None:
    for name, runtime in zip(names, runtimes, strict=True):
        found = await platform.deploy(APP.format(name=name, runtime=runtime))
        assert found["state"] == "succeeded", found


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("runtimes", [("oci", "oci"), ("docker", "docker"), ("docker", "oci")])
async def test_it_changes_hands_and_comes_back(platform: Platform, runtimes: tuple[str, str]) -> None:
    one, two = names = tuple(f"{which}-{'-'.join(runtimes)}" for which in ("one", "two"))
    await deploy(platform, *names, runtimes=runtimes)
    for turn in range(1, 5):
        for name, other in ((one, two), (two, one)):
            answer = await platform.call(name)
            # The same instance each time: it has counted.
            assert answer == {"calls": turn, "gpu": "0"}
            assert await states(platform, name) == ["ready"]
            if turn > 1 or name == two:
                assert await states(platform, other) == ["paused"]
    doc = await platform.endpoint(one)
    assert any(note["action"] == "pause" for note in doc["decisions"])
    hosts = await platform.api("GET", "/hosts")
    assert hosts["items"][0]["state"] == "ready"
    for name in names:
        await platform.to_zero(name)


@pytest.mark.asyncio(loop_scope="module")
async def test_a_request_that_runs_is_not_frozen(platform: Platform) -> None:
    await deploy(platform, "one", "two")
    await platform.call("one")
    slow = asyncio.create_task(platform.call("one", {"wait": 1.0}))
    await until(lambda: _busy(platform, "one"))
    second = asyncio.create_task(platform.call("two"))
    assert (await slow)["calls"] >= 2
    assert (await second)["gpu"] == "0"


async def _busy(platform: Platform, name: str) -> bool:
    return any(i["in_flight"] for i in await platform.instances(name))


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("runtime", ["oci", "docker"])
async def test_a_paused_one_is_ended_by_hand_by_its_deletion_and_by_a_new_version(
    platform: Platform, runtime: str
) -> None:
    await deploy(platform, "one", "two", runtimes=(runtime, runtime))
    await platform.call("one")
    await platform.call("two")
    assert await states(platform, "one") == ["paused"]
    await platform.to_zero("one")
    await platform.call("one")
    assert await states(platform, "two") == ["paused"]
    await platform.deploy(
        APP.format(name="two", runtime=runtime).replace('gpu="X1"', 'gpu="X1", env={"A": "1"}')
    )
    assert (await platform.call("two"))["calls"] == 1
    await until(lambda: _are(platform, "two", ["ready"]))
    await platform.api("DELETE", "/endpoints/one")
    assert await platform.call("two")


async def _are(platform: Platform, name: str, wanted: list[str]) -> bool:
    return await states(platform, name) == wanted


@pytest.mark.asyncio(loop_scope="module")
async def test_weights_are_shown_on_every_runtime(platform: Platform, directory: Path) -> None:
    models = directory / "models" / "small"
    models.mkdir(parents=True, exist_ok=True)
    data = random.Random(1).randbytes(1 << 20)
    (models / "model.bin").write_bytes(data)
    for runtime in ("process", "oci", "docker"):
        for source, path in ((models, "model.bin"), (models / "model.bin", "model.bin")):
            name = f"w-{runtime}-{source.stem}"
            found = await platform.deploy(f"""
                import os, pathlib

                @headrace.endpoint(name="{name}", runtime="{runtime}", weights="{source}")
                def look() -> dict:
                    file = pathlib.Path(os.environ["HEADRACE_WEIGHTS"]) / "{source.stem}" / "{path}"
                    try:
                        file.open("ab").close()
                        writable = True
                    except OSError:
                        writable = False
                    return {{"size": len(file.read_bytes()), "writable": writable}}
            """)
            assert found["state"] == "succeeded", found
            assert await platform.call(name) == {"size": len(data), "writable": False}
            await platform.to_zero(name)


@pytest.mark.asyncio(loop_scope="module")
async def test_weights_that_cannot_be_had_are_told_at_the_deployment(
    platform: Platform, directory: Path
) -> None:
    source = """
        @headrace.endpoint(name="refused", weights="{source}")
        def refused() -> int:
            return 1
    """
    for wrong, said in (
        ("http://127.0.0.1:9/model.bin", "private address"), ("http://localhost/m", "private address"),
        ("s3://bucket/key", "WEIGHTS_ALLOW"),
    ):  # fmt: skip
        # By its name alone: no host is asked.
        with pytest.raises(AssertionError, match=said):
            await platform.deploy(source.format(source=wrong))
    (directory / "models").mkdir(exist_ok=True)
    for wrong, said in (
        (f"{directory}/models/missing", "nothing there"), ("/etc", "weights_allow"),
    ):  # fmt: skip
        found = await platform.deploy(source.format(source=wrong))
        assert found["state"] == "failed"
        assert said in found["endpoints"][0]["detail"], found
