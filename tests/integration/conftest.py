"""One Ray-free platform per test module, and what a test does with it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import tempfile
import textwrap
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from headrace import wire
from headrace.cluster.dev import inspect
from headrace.cluster.local import LocalCluster
from headrace.config import Settings, default_run_dir
from headrace.sdk.spec import dump_spec

DEADLINE_S = 30.0


@pytest.fixture
def directory() -> Iterator[Path]:
    """Short enough for sockets, which pytest's own may not be; containers' users get through."""
    path = Path(tempfile.mkdtemp(prefix="hrd-"))
    path.chmod(0o711)
    yield path
    shutil.rmtree(path)


async def until(condition: Callable[[], Awaitable[Any] | Any], deadline_s: float = DEADLINE_S) -> Any:
    """Poll until the (possibly async) condition gives something true; fail at the deadline."""
    end = time.monotonic() + deadline_s
    while True:
        value = condition()
        if isinstance(value, Awaitable):
            value = await value
        if value:
            return value
        assert time.monotonic() < end, "condition not met in time"
        await asyncio.sleep(0.02)


def make_settings(data: Path, **changes: Any) -> Settings:
    """Settings of a platform of its own in ``data``."""
    base: dict[str, Any] = {"port": 0, "control_port": 0, "drain_grace": 5.0}
    # Not the machine's: what tests make goes with them.
    base["images_dir"] = str(data.parent / "images")
    return Settings(data_dir=str(data), run_dir=str(default_run_dir(data)), **{**base, **changes})


def _is_json(content_type: str) -> bool:
    return content_type == "application/json" or content_type.endswith("+json")


class Platform:
    """A running `LocalCluster` and an HTTP client."""

    def __init__(self, cluster: LocalCluster, http: aiohttp.ClientSession, work: Path) -> None:
        self.cluster, self.http, self.work = cluster, http, work

    @property
    def auth(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.cluster.admin_key}"}

    async def request(
        self, method: str, path: str, *, headers: dict[str, str] | None = None, **options: Any
    ) -> tuple[int, Any, Any]:
        """(status, headers, body: the JSON value, else bytes)."""
        async with self.http.request(
            method, self.cluster.url + path, headers={**self.auth, **(headers or {})}, **options
        ) as answer:
            data = await answer.read()
            value = json.loads(data) if _is_json(answer.content_type) and data else data
            return answer.status, answer.headers, value

    async def api(self, method: str, path: str, body: Any = None) -> Any:
        status, _, value = await self.request(method, f"/api/v1{path}", json=body)
        assert status < 400, value
        return value

    async def call(self, endpoint: str, body: Any = None, **options: Any) -> Any:
        """The handler's value; fails on anything but 200."""
        status, _, value = await self.request(
            "POST", f"/e/{endpoint}", json={} if body is None else body, **options
        )
        assert status == 200, (status, value)
        return value

    async def deploy(self, source: str, *, verify: bool = True) -> dict[str, Any]:
        """Deploy a file with this content; the finished deployment."""
        folder = Path(tempfile.mkdtemp(dir=self.work))
        file = folder / "app.py"
        file.write_text("import headrace\n" + textwrap.dedent(source))
        found = await inspect(file, self.work / "inspected")
        data = Path(found.bundle.path).read_bytes()
        sha = found.bundle.sha256
        status, _, value = await self.request("PUT", f"/api/v1/bundles/{sha}", data=data)
        assert status in (200, 201), value
        specs = [json.loads(dump_spec(spec)) for spec in found.specs]
        deployment = await self.api("POST", "/deployments", {"specs": specs, "verify": verify})
        return await self.finished(deployment["id"])

    async def finished(self, deployment: str) -> dict[str, Any]:
        end = time.monotonic() + DEADLINE_S
        while True:
            found: dict[str, Any] = await self.api("GET", f"/deployments/{deployment}?wait=2")
            if found["state"] != "running":
                return found
            assert time.monotonic() < end, found

    async def endpoint(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = await self.api("GET", f"/endpoints/{name}")
        return found

    async def instances(self, name: str) -> list[dict[str, Any]]:
        """Those that live."""
        found = (await self.endpoint(name))["instances"]
        return [i for i in found if i["state"] not in ("stopped", "failed")]

    async def to_zero(self, name: str) -> None:
        """Release all idle instances and wait until they are gone."""

        async def gone() -> bool:
            if not await self.instances(name):
                return True
            await self.api("POST", f"/endpoints/{name}/scale", {"to": 0})
            return False

        await until(gone)


@contextlib.asynccontextmanager
async def running_platform(
    settings: Settings, work: Path, *, resources: wire.Resources | None = None
) -> AsyncIterator[Platform]:
    """A platform and its client."""
    async with (
        LocalCluster(settings, resources=resources) as cluster,
        aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=60)
        ) as http,
    ):
        yield Platform(cluster, http, work)


@pytest.fixture(scope="module")
def work() -> Iterator[Path]:
    """A short path (unix sockets), readable by other uids where it lets them."""
    with tempfile.TemporaryDirectory(prefix="hrt-") as path:
        yield Path(path)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def platform(work: Path) -> AsyncIterator[Platform]:
    """One platform for the tests of a module."""
    async with running_platform(make_settings(work / "data"), work) as platform:
        yield platform


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def local_cluster(platform: Platform) -> LocalCluster:
    """The cluster of the module's platform."""
    return platform.cluster
