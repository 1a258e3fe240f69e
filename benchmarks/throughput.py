"""A no-op JSON POST by wrk: our gateway, Ray Serve's proxy, a bare aiohttp server; 1 and 32 connections.

    python -m benchmarks.throughput [--seconds 8] [--no-peers]

With one connection also the time above a call of the instance's own socket, by one plain client for both.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from headrace_runtimes.process import ProcessRuntime
from headrace_runtimes.spec import Assignment, Base, RuntimeSettings

from benchmarks._load import one_connection, root, summary, wrk
from benchmarks._platform import Ours, bounded, ours, peer, ray_serve

BODY = '{"x": 1}'


def measure(url: str, seconds: float, headers: dict[str, str] | None = None) -> dict[str, Any]:
    """One second to get warm, then 32 connections and one."""
    wrk(url, 32, 1, BODY, headers)
    return {
        "connections_32": wrk(url, 32, seconds, BODY, headers),
        "connections_1": wrk(url, 1, seconds, BODY, headers),
    }


def measure_ours(platform: Ours, seconds: float) -> dict[str, Any]:
    """Through the gateway, with the key, as a client calls."""
    platform.deploy(root() / "benchmarks/apps/noop.py")
    first = platform.call("noop", BODY.encode())
    if first.status != 200:
        raise RuntimeError(f"noop: {first.status} {first.body[:500]!r}")
    found = measure(f"http://127.0.0.1:{platform.port}/e/noop", seconds, platform.auth)
    found["plain_client"] = summary(
        one_connection(f"tcp:127.0.0.1:{platform.port}", platform.auth, "/e/noop", BODY.encode(), 2000)
    )
    return found


async def _own_socket(work: Path) -> dict[str, float | int]:
    """An instance of the same handler made by the runtime itself, so that its token is ours to use."""
    code = work / "code"
    code.mkdir()
    (code / "noop.py").write_text((root() / "benchmarks/apps/noop.py").read_text())
    runtime = ProcessRuntime()
    settings = RuntimeSettings(
        run_dir=work / "run",
        engine_dir=root() / "platform/headrace/engines/python",
        python=sys.executable,
        zygote_bytes=2 << 30,
        log_dir=work / "logs",
    )
    ready = asyncio.Event()
    await runtime.open(settings, lambda status: ready.set() if status.state == "ready" else None)
    try:
        base = Base(key="bench")
        await runtime.hold([(base, 1)])
        await asyncio.wait_for(ready.wait(), 30)
        sandbox = await runtime.claim(
            base,
            Assignment(
                id="bench-1",
                endpoint="default/noop",
                version=1,
                code_dir=code,
                entry="noop:noop",
                handler="async_function",
                token="bench-token",
                concurrency=64,
            ),
        )
        head = {
            "X-Headrace-Token": "bench-token",
            "X-Headrace-Request-Id": "bench",
            "X-Headrace-Attempt": "1",
            "X-Headrace-Deadline-Ms": "600000",
        }
        times = await asyncio.to_thread(one_connection, sandbox.address, head, "/", BODY.encode(), 2000)
        await sandbox.stop(1.0)
        return summary(times)
    finally:
        await runtime.close()


def own_socket() -> dict[str, float | int]:
    """p50 of calling an instance's own socket, without a gateway."""
    with tempfile.TemporaryDirectory(prefix="hr-own-") as work:
        Path(work).chmod(0o711)
        return asyncio.run(_own_socket(Path(work)))


def run(seconds: float, peers: bool = True) -> dict[str, Any]:
    """All sides in turn."""
    found: dict[str, Any] = {"benchmark": "throughput", "seconds": seconds}
    if peers:
        with peer("bare_aiohttp.py") as bare:
            found["bare_aiohttp"] = measure(f"http://127.0.0.1:{bare.port}/", seconds)
        with ray_serve("up") as serve:
            found["ray_serve_default"] = measure(f"http://127.0.0.1:{serve.port}/", seconds)
    found["own_socket"] = own_socket()
    with ours() as platform:
        found["headrace"] = measure_ours(platform, seconds)
    mine = found["headrace"]
    found["above_own_socket_ms"] = round(mine["plain_client"]["p50"] - found["own_socket"]["p50"], 3)
    if peers:
        rate = mine["connections_32"]["requests_per_s"]
        found["times_ray_serve"] = round(
            rate / found["ray_serve_default"]["connections_32"]["requests_per_s"], 1
        )
        found["of_bare_aiohttp"] = round(rate / found["bare_aiohttp"]["connections_32"]["requests_per_s"], 3)
    return found


def main() -> None:
    """Parse, run, print JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=int, default=8)
    parser.add_argument("--no-peers", action="store_true", help="Only ours.")
    given = parser.parse_args()
    bounded()
    json.dump(run(given.seconds, not given.no_peers), sys.stdout, indent=2)
    print()


if __name__ == "__main__":
    main()
