"""One accelerator slot changes hands between two endpoints, again and again, as an HTTP client sees it.

    python -m benchmarks.switch [--switches 50] [--runtime oci] [--megabytes 200]

The slot is made up: no device is needed. Sides, each on a platform of its own: who gives way is paused; is
stopped, and the next one comes out of the warm pool; is stopped, and the next one starts cold. Then a model
that is read into memory by ``load``, second time round, beside the same read in an instance that runs.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import aiohttp
from headrace import wire
from headrace.cluster.dev import inspect
from headrace.cluster.local import LocalCluster
from headrace.config import Settings
from headrace.sdk.spec import dump_spec

from benchmarks._load import summary
from benchmarks._platform import bounded, pool_full

LIMIT_S = 300
DEPLOY_S = 120.0
SETTLED_S = 60.0
QUIET_S = 0.2
GOALS = {"switch_ms": 50.0, "load_of_from_memory": 1.2}
"""Of issue 4."""
NOOP = """
import headrace

@headrace.endpoint(name="{name}", runtime="{runtime}", gpu="X1"{more})
def noop() -> int:
    return 1
"""
MODEL = """
import os, pathlib, time
import headrace

def read():
    began = time.perf_counter()
    file = pathlib.Path(os.environ["HEADRACE_WEIGHTS"]) / "model" / "model.bin"
    data = bytearray(file.stat().st_size)
    with open(file, "rb", buffering=0) as source:
        view, at = memoryview(data), 0
        while at < len(data):
            at += source.readinto(view[at:])
    return data, 1000 * (time.perf_counter() - began)

@headrace.endpoint(name="{name}", runtime="{runtime}", gpu="X1", memory="1GiB", weights="{source}")
class Model:
    def load(self):
        self.data, self.load_ms = read()

    def __call__(self) -> dict:
        self.data = None
        self.data, again_ms = read()
        return {{"load_ms": self.load_ms, "again_ms": again_ms}}
"""


class Side:
    """A platform in this process, and its client."""

    def __init__(self, cluster: LocalCluster, http: aiohttp.ClientSession, work: Path) -> None:
        self._cluster, self._http, self._work = cluster, http, work
        self._auth = {"Authorization": f"Bearer {cluster.admin_key}"}

    async def deploy(self, source: str) -> None:
        """Deploy a file with this content."""
        file = Path(tempfile.mkdtemp(dir=self._work)) / "app.py"
        file.write_text(source)
        found = await inspect(file, self._work / "inspected")
        data = await asyncio.to_thread(Path(found.bundle.path).read_bytes)
        await self._api("PUT", f"/bundles/{found.bundle.sha256}", data=data)
        specs = [json.loads(dump_spec(spec)) for spec in found.specs]
        made = await self._api("POST", "/deployments", json={"specs": specs, "verify": True})
        end = time.monotonic() + DEPLOY_S
        while made["state"] == "running" and time.monotonic() < end:
            made = await self._api("GET", f"/deployments/{made['id']}?wait=2")
        if made["state"] != "succeeded":
            raise RuntimeError(str(made))

    async def settled(self, runtime: str) -> None:
        """Wait until the warm pool is full again: requests of real users are further apart, too."""
        end = time.monotonic() + SETTLED_S
        while not pool_full((await self._api("GET", "/hosts"))["items"], runtime):
            if time.monotonic() > end:
                raise TimeoutError(f"the warm pool of {runtime} is not full within {SETTLED_S} s")
            await asyncio.sleep(0.05)
        # What was stopped is still being removed.
        await asyncio.sleep(QUIET_S)

    async def call(self, name: str) -> tuple[float, Any]:
        """(milliseconds, answer) of one request."""
        began = time.perf_counter()
        async with self._http.post(f"{self._cluster.url}/e/{name}", json={}, headers=self._auth) as answer:
            value = await answer.json()
            if answer.status != 200:
                raise RuntimeError(f"{name}: {answer.status} {value}")
        return 1000 * (time.perf_counter() - began), value

    async def _api(self, method: str, path: str, **options: Any) -> Any:
        url = f"{self._cluster.url}/api/v1{path}"
        async with self._http.request(method, url, headers=self._auth, **options) as answer:
            if answer.status >= 400:
                raise RuntimeError(f"{method} {path}: {answer.status} {await answer.text()}")
            return await answer.json()


async def noops(side: Side, runtime: str, more: str, switches: int) -> dict[str, Any]:
    """Milliseconds of requests that each find the slot with the other endpoint."""
    for name in ("one", "two"):
        await side.deploy(NOOP.format(name=name, runtime=runtime, more=more))
    for name in ("one", "two"):
        await side.call(name)
    times = []
    for turn in range(switches):
        await side.settled(runtime)
        times.append((await side.call(("one", "two")[turn % 2]))[0])
    return {**summary(times), "unit": "ms"}


async def model(side: Side, runtime: str, file: Path, rounds: int) -> dict[str, Any]:
    """``load`` of a model in new instances, second time round, and the same read once more in each."""
    for name in ("one", "two"):
        await side.deploy(MODEL.format(name=name, runtime=runtime, source=file))
    first = [(await side.call(name))[1]["load_ms"] for name in ("one", "two")]
    loads, again, whole = [], [], []
    for turn in range(rounds):
        await side.settled(runtime)
        took, answer = await side.call(("one", "two")[turn % 2])
        loads.append(answer["load_ms"])
        again.append(answer["again_ms"])
        whole.append(took)
    found = {"load": summary(loads), "from_memory": summary(again), "request": summary(whole), "first": first}
    found["load_of_from_memory"] = round(found["load"]["p50"] / found["from_memory"]["p50"], 2)
    return {**found, "unit": "ms"}


async def run(runtime: str, switches: int, megabytes: int) -> dict[str, Any]:
    """All sides in turn."""
    home = Path(tempfile.mkdtemp(prefix="hr-sw-"))
    os.chmod(home, 0o711)
    found: dict[str, Any] = {"benchmark": "switch", "runtime": runtime, "switches": switches}
    (home / "models").mkdir()
    file = home / "models" / "model.bin"
    with file.open("wb") as sink:
        for _ in range(megabytes):
            sink.write(os.urandom(1 << 20))
    try:
        for name, changes, more in (
            ("paused", {}, ""),
            ("stopped_warm", {"paused_memory": 0.0}, ""),
            ("stopped_cold", {"paused_memory": 0.0}, ', snapshot="none"'),
        ):
            async with _Side(home, name, runtime, changes) as side:
                count = max(4, switches // 4) if name == "stopped_cold" else switches
                found[name] = await noops(side, runtime, more, count)
        for name in ("stopped_warm", "stopped_cold"):
            found[f"times_faster_than_{name}"] = round(found[name]["p50"] / found["paused"]["p50"], 1)
        found["of_goal"] = {
            name: round(found[name]["p50"] / GOALS["switch_ms"], 2) for name in ("paused", "stopped_warm")
        }
        if megabytes:
            async with _Side(home, "model", runtime, {"paused_memory": 0.0}) as side:
                found["model"] = {"megabytes": megabytes, **await model(side, runtime, file, 10)}
            ratio = found["model"]["load_of_from_memory"]
            found["of_goal"]["model"] = round(ratio / GOALS["load_of_from_memory"], 2)
    finally:
        shutil.rmtree(home, ignore_errors=True)
    return found


class _Side:
    """The platform of one side: `Side` inside, gone after."""

    def __init__(self, home: Path, name: str, runtime: str, changes: dict[str, Any]) -> None:
        settings = Settings(
            **{
                "data_dir": str(home / name), "run_dir": str(home / f"{name}-r"),
                "port": 0, "control_port": 0,
                "images_dir": str(home / "images"), "weights_dir": str(home / "weights"), "drain_grace": 2.0,
                "weights_allow": str(home / "models"), "pause_accelerators": True,
                "runtimes": ",".join(dict.fromkeys(("process", runtime))), **changes,
            }
        )  # fmt: skip
        resources = wire.Resources(cpu=4, memory=8 << 30, gpu={"X1": 1})
        self._cluster, self._work = LocalCluster(settings, resources=resources), home

    async def __aenter__(self) -> Side:
        await self._cluster.start()
        self._http = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=60))
        return Side(self._cluster, self._http, self._work)

    async def __aexit__(self, *error: object) -> None:
        await self._http.close()
        await self._cluster.stop()


def main() -> None:
    """Parse, run, print JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--switches", type=int, default=50)
    parser.add_argument("--runtime", default="oci", choices=["process", "oci", "docker"])
    parser.add_argument("--megabytes", type=int, default=200, help="Of the model; 0: none.")
    given = parser.parse_args()
    bounded(LIMIT_S)
    json.dump(asyncio.run(run(given.runtime, given.switches, given.megabytes)), sys.stdout, indent=2)
    print()


if __name__ == "__main__":
    main()
