"""Ten thousand registered endpoints that nobody calls: what they cost, and what waking one of them takes.

    python -m benchmarks.idle [--endpoints 10000] [--wakes 200]

Memory is the proportional set size of control and the gateways, before and after.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from pathlib import Path
from typing import Any

import psutil

from benchmarks._load import root, summary
from benchmarks._platform import Ours, bounded, ours

PAGE = 1000
BATCH = 500


def memory(platform: Ours) -> dict[str, int]:
    """PSS in bytes of control's replica and of the gateways."""
    found = {"control": 0, "gateway": 0}
    for process in psutil.Process(platform.pid).children(recursive=True):
        try:
            words = " ".join(process.cmdline())
            role = "gateway" if "headrace.gateway" in words else "control" if _is_control(words) else ""
            if role:
                found[role] += _pss(process.pid)
        except (psutil.Error, OSError):
            continue
    if not all(found.values()):
        raise RuntimeError(f"control or gateway not found among the processes: {found}")
    return found


def _is_control(words: str) -> bool:
    return "ServeReplica" in words and "Control" in words


def _pss(pid: int) -> int:
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) << 10
    return 0


def register(platform: Ours, count: int) -> float:
    """Register ``count`` endpoints that share one file; seconds taken."""
    platform.deploy(root() / "benchmarks/apps/noop.py")
    spec = platform.api("GET", "/endpoints/noop")["spec"]
    started = time.perf_counter()
    for first in range(0, count, BATCH):
        specs = [{**spec, "name": f"idle-{n}"} for n in range(first, min(count, first + BATCH))]
        deployment = platform.api("POST", "/deployments", {"specs": specs, "verify": False})
        deadline = time.monotonic() + 120
        while deployment["state"] == "running":
            if time.monotonic() > deadline:
                raise TimeoutError(f"deployment {deployment['id']} still runs")
            deployment = platform.api("GET", f"/deployments/{deployment['id']}?wait=10")
        if deployment["state"] != "succeeded":
            raise RuntimeError(f"deployment failed: {json.dumps(deployment)[:2000]}")
    return time.perf_counter() - started


def list_all(platform: Ours) -> tuple[int, float]:
    """Page through all endpoints; their number and the seconds taken."""
    started = time.perf_counter()
    cursor: str | None = None
    seen = 0
    while True:
        page = platform.api("GET", f"/endpoints?limit={PAGE}" + (f"&cursor={cursor}" if cursor else ""))
        seen += len(page["items"])
        cursor = page["next"]
        if not cursor:
            return seen, time.perf_counter() - started


def run(count: int, wakes: int) -> dict[str, Any]:
    """Register, list, wake."""
    chosen = random.Random(7)
    with ours() as platform:
        before = memory(platform)
        registered_s = register(platform, count)
        seen, listed_s = list_all(platform)
        if seen < count:
            raise RuntimeError(f"{seen} endpoints listed, {count} registered")
        after = memory(platform)
        times: list[float] = []
        for number in chosen.sample(range(count), min(wakes, count)):
            answer = platform.call(f"idle-{number}", b'{"x": 1}')
            if answer.status != 200:
                raise RuntimeError(f"idle-{number}: {answer.status} {answer.body[:500]!r}")
            times.append(answer.first_byte_ms)
            # Its place is free again before the next: this measures wakes, not who gives way on a full host.
            platform.to_zero(f"idle-{number}")
        grown = sum(after.values()) - sum(before.values())
        return {
            "benchmark": "idle",
            "endpoints": count,
            "memory_before_mb": {name: round(value / 1e6, 1) for name, value in before.items()},
            "memory_after_mb": {name: round(value / 1e6, 1) for name, value in after.items()},
            "grown_mb": round(grown / 1e6, 1),
            "register_s": round(registered_s, 2),
            "list_s": round(listed_s, 3),
            "wake": {**summary(times), "unit": "ms"},
        }


def main() -> None:
    """Parse, run, print JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--endpoints", type=int, default=10_000)
    parser.add_argument("--wakes", type=int, default=200)
    given = parser.parse_args()
    bounded()
    json.dump(run(given.endpoints, given.wakes), sys.stdout, indent=2)
    print()


if __name__ == "__main__":
    main()
