"""Endpoints with an image of their own on a platform: built on the host before the first instance."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
import tempfile
import zipfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import pytest_asyncio
from headrace.cluster.local import LocalCluster
from headrace.config import Settings
from headrace.errors import EndpointFailed, ValidationFailed
from headrace.sdk.client import Client
from headrace.sdk.inspect import inspect_file

from tests.fixtures_registry import push_python, real_registry

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="containers need root"),
    pytest.mark.asyncio(loop_scope="module"),
]

OTHER = "3.90"
"""A Python that no host has; the registry's of that tag is the host's under another name."""
VERSION = f"{sys.version_info[0]}.{sys.version_info[1]}"
RUNTIMES = ("process", "oci", "docker")
APP = """
import os
import sys
import headrace

image = headrace.Image.python("{version}").pip("{package}").copy("words.txt", "words.txt").env(GREETING="hi")

@headrace.endpoint(runtime="{runtime}", image=image, name="look-{runtime}")
def look() -> dict:
    from importlib.metadata import version
    try:
        import rich
    except ImportError:
        rich = None
    with open(os.path.join(os.environ["HEADRACE_FILES"], "words.txt")) as file:
        words = file.read()
    return {{
        "package": version("tiny-greeter"), "words": words, "greeting": os.environ["GREETING"],
        "platform's packages": rich is not None, "version": "%d.%d" % sys.version_info[:2],
    }}
"""

MORE = """
import headrace

image = headrace.Image.python("{other}").pip("tiny-greeter==1.0")

@headrace.endpoint(runtime="{runtime}", name="other-{runtime}", image=image)
def other() -> str:
    from importlib.metadata import version
    return version("tiny-greeter")

image = headrace.Image().run("echo made > /made")

@headrace.endpoint(runtime="{runtime}", name="made-{runtime}", image=image)
def made() -> str:
    with open("/made") as file:
        return file.read()
"""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def registry() -> AsyncIterator[str]:
    """Where pythons are."""
    folder = Path(tempfile.mkdtemp(prefix="hrp-"))
    try:
        async with real_registry(folder) as host:
            await push_python(folder / "made", f"{host}/python:{VERSION}", f"{host}/python:{OTHER}")
            yield f"{host}/python"
    finally:
        shutil.rmtree(folder)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cluster(docker_daemon: str, registry: str) -> AsyncIterator[LocalCluster]:
    folder = Path(tempfile.mkdtemp(prefix="hri-"))
    folder.chmod(0o711)
    settings = Settings(
        data_dir=str(folder / "d"),
        run_dir=str(folder / "r"),
        images_dir=str(folder / "i"),
        runtimes=",".join(RUNTIMES),
        python_image=f"{registry}:{{version}}",
        port=0,
        control_port=0,
    )
    make_wheel(folder / "wheels")
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("UV_FIND_LINKS", str(folder / "wheels"))
            patch.setenv("UV_OFFLINE", "1")
            patch.setenv("DOCKER_HOST", docker_daemon)
            async with LocalCluster(settings) as cluster:
                yield cluster
    finally:
        shutil.rmtree(folder)


def make_wheel(folder: Path) -> None:
    """A package, so that no index is needed."""
    folder.mkdir()
    about = "tiny_greeter-1.0.dist-info"
    with zipfile.ZipFile(folder / "tiny_greeter-1.0-py3-none-any.whl", "w") as archive:
        archive.writestr("tiny_greeter.py", "WORD = 'hello'\n")
        archive.writestr(f"{about}/METADATA", "Metadata-Version: 2.1\nName: tiny-greeter\nVersion: 1.0\n")
        archive.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{about}/RECORD", "")


async def deploy(
    cluster: LocalCluster, file: Path, seen: list[dict[str, Any]] | None = None
) -> dict[str, Any]:
    with Client(cluster.url, cluster.admin_key, timeout=30) as client:
        told = seen.append if seen is not None else None
        return dict(await asyncio.to_thread(client.deploy, file, timeout=110, on_progress=told))


@pytest.mark.parametrize("runtime", RUNTIMES)
async def test_an_image_of_its_own(cluster: LocalCluster, runtime: str, tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("first")
    file = tmp_path / "app.py"
    file.write_text(APP.format(runtime=runtime, package="tiny-greeter==1.0", version=VERSION))
    assert (await deploy(cluster, file))["state"] == "succeeded"
    expected = {
        "package": "1.0", "words": "first", "greeting": "hi",
        "platform's packages": False, "version": VERSION,
    }  # fmt: skip
    with Client(cluster.url, cluster.admin_key, timeout=60) as client:
        assert await asyncio.to_thread(client.call, f"look-{runtime}") == expected
        again = await deploy(cluster, file)
        assert again["endpoints"][0]["state"] == "unchanged"
        # What a file of the image holds is part of it.
        (tmp_path / "words.txt").write_text("second")
        assert (await deploy(cluster, file))["endpoints"][0]["version"] == 2
        assert (await asyncio.to_thread(client.call, f"look-{runtime}"))["words"] == "second"
        doc = await asyncio.to_thread(client.endpoint, f"look-{runtime}")
    assert doc["spec"]["image"]["context"]


@pytest.mark.parametrize("runtime", RUNTIMES)
async def test_an_image_that_cannot_be_made_says_why(
    cluster: LocalCluster, runtime: str, tmp_path: Path
) -> None:
    (tmp_path / "words.txt").write_text("first")
    file = tmp_path / "app.py"
    file.write_text(APP.format(runtime=runtime, package="tiny-greeter==9.9", version=VERSION))
    seen: list[dict[str, Any]] = []
    for _ in range(2):
        with pytest.raises(EndpointFailed, match=r"tiny-greeter==9\.9"):
            await deploy(cluster, file, seen)
    # The working version goes on, and nothing of the failed one is retried.
    with Client(cluster.url, cluster.admin_key, timeout=60) as client:
        assert (await asyncio.to_thread(client.call, f"look-{runtime}"))["package"] == "1.0"


@pytest.mark.parametrize("runtime", RUNTIMES[1:])
async def test_a_registrys_python_where_the_hosts_own_is_not_enough(
    cluster: LocalCluster, registry: str, runtime: str, tmp_path: Path
) -> None:
    file = tmp_path / "app.py"
    file.write_text(MORE.format(runtime=runtime, other=OTHER))
    doc = await deploy(cluster, file)
    assert doc["state"] == "succeeded", doc
    with Client(cluster.url, cluster.admin_key, timeout=60) as client:
        assert await asyncio.to_thread(client.call, f"other-{runtime}") == "1.0"
        assert await asyncio.to_thread(client.call, f"made-{runtime}") == "made\n"
        for name, version in (("other", OTHER), ("made", VERSION)):
            doc = await asyncio.to_thread(client.endpoint, f"{name}-{runtime}")
            assert doc["versions"][0]["image"]["steps"][0].startswith(
                f"from_registry {registry}:{version}@sha256:"
            )
    file.write_text(MORE.format(runtime=runtime, other="3.91"))
    with pytest.raises(
        ValidationFailed, match=rf"{registry}:3\.91 \(setting python_image\).*hosts have Python"
    ):
        await deploy(cluster, file)


async def test_a_context_that_is_not_there_is_refused(cluster: LocalCluster, tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("first")
    file = tmp_path / "app.py"
    file.write_text(APP.format(runtime="oci", package="tiny-greeter==1.0", version=VERSION))
    found = inspect_file(file, tmp_path / "out")
    spec = msgspec.to_builtins(found.specs[0])
    spec["image"]["context"] = "0" * 64
    with Client(cluster.url, cluster.admin_key, timeout=30) as client:

        def refused() -> None:
            client.put_bundle(Path(found.bundle.path), found.bundle.sha256)
            client._manage("POST", "/deployments", json={"specs": [spec]}).raise_for_problem()

        with pytest.raises(ValidationFailed, match="files 0000"):
            await asyncio.to_thread(refused)
