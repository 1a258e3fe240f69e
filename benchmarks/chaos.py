"""The same seeded SIGKILLs of instances (replicas) under load: what the clients of each platform get.

    python -m benchmarks.chaos [--seed 1] [--seconds 60] [--sync 50] [--no-peers]

Plain HTTP clients that repeat nothing. Headrace and Ray Serve (default settings, two replicas) run the same
handler of 20 ms. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import aiohttp
import psutil

from benchmarks._load import root
from benchmarks._platform import bounded, ours, ray_serve
from benchmarks._storm import LIMIT_S, Group, Strike, at_rate, post, schedule
from benchmarks._victims import Victims

KINDS = ("instance",)


async def storm(
    url: str, headers: dict[str, str], log: Path, given: argparse.Namespace, strike: Any
) -> dict[str, Any]:
    """Load with one strike per period."""
    group, strikes = Group(), schedule(given.seed, given.seconds, KINDS)
    said: list[str] = []
    loop = asyncio.get_running_loop()

    async def kills() -> None:
        began = loop.time()
        for one in strikes:
            await asyncio.sleep(max(0.0, began + one.at_s - loop.time()))
            said.append(f"{one.at_s} s: {await strike(one)}")

    async with aiohttp.ClientSession(
        timeout=aiohttp.ClientTimeout(total=LIMIT_S), connector=aiohttp.TCPConnector(limit=0)
    ) as http:

        async def call(number: int) -> None:
            group.sent += 1
            began = loop.time()
            try:
                body = {"call": f"{number}", "log": str(log)}
                status, data = await post(http, url, body, headers, group, reconnect=False)
            except (aiohttp.ClientError, OSError, TimeoutError) as error:
                group.failures.append(type(error).__name__)
                return
            if status == 200:
                group.times.append((loop.time() - began) * 1000)
            else:
                group.failures.append(f"{status}: {data[:60].decode(errors='replace')}")

        struck = asyncio.create_task(kills())
        await asyncio.gather(*await at_rate(given.sync, given.seconds, call))
        await struck
    return {"strikes": len(said), "clients": group.said(), "said": said}


def serve_replicas(home_of: psutil.Process) -> list[psutil.Process]:
    """The processes of Ray Serve's application."""
    found = []
    for process in home_of.children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if "ServeReplica:app:App" in " ".join(process.cmdline()):
                found.append(process)
    return sorted(found, key=lambda p: p.pid)


def run(given: argparse.Namespace) -> dict[str, Any]:
    """Both in turn."""
    found: dict[str, Any] = {"benchmark": "chaos", "seed": given.seed, "seconds": given.seconds}
    with tempfile.TemporaryDirectory(prefix="hr-chaos-") as folder:
        Path(folder).chmod(0o711)
        log = Path(folder) / "ends"
        log.touch()
        log.chmod(0o666)
        with ours() as platform:
            platform.deploy(root() / "benchmarks/apps/storm.py")
            victims = Victims(platform.data_dir, platform.port)
            url = f"http://127.0.0.1:{platform.port}/e/storm"
            found["headrace"] = asyncio.run(storm(url, platform.auth, log, given, victims.strike))
        if not given.no_peers:
            with ray_serve("up", "storm") as serve:
                process = psutil.Process(serve.process.pid)

                async def strike(one: Strike) -> str:
                    replicas = await asyncio.to_thread(serve_replicas, process)
                    if not replicas:
                        return "there is none now"
                    with contextlib.suppress(psutil.Error):
                        replicas[int(one.pick * len(replicas))].kill()
                    return f"SIGKILL of one of {len(replicas)}"

                url = f"http://127.0.0.1:{serve.port}/"
                found["ray_serve_default"] = asyncio.run(storm(url, {}, log, given, strike))
    for side in ("headrace", "ray_serve_default"):
        if side in found:
            found[f"failed_{side}"] = found[side]["clients"]["failed"]
    return found


def main() -> None:
    """Parse, run, print JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--sync", type=float, default=50, help="Requests per second.")
    parser.add_argument("--no-peers", action="store_true", help="Only ours.")
    given = parser.parse_args()
    bounded(int(given.seconds * 2 + 240))
    json.dump(run(given), sys.stdout, indent=2)
    print()


if __name__ == "__main__":
    main()
