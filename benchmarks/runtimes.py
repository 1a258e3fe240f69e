"""The same no-op on every runtime: out of the warm pool, without it, and beside bare ``runc`` and ``docker``.

    python -m benchmarks.runtimes [--wakes 60] [--cold 15] [--bare 10] [--cycles 20] [--runtimes oci,docker]

All in one run, on one platform. A wake: no instance is there, and a spare waits; one request on a new
connection, as its client sees it. Without a warm sandbox: the endpoint asks for a new one each time
(``snapshot="none"``). Cycles are claims and stops one after the other, by the runtimes' own contract.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import shutil
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import headrace
from headrace_runtimes import registry
from headrace_runtimes.base import Runtime
from headrace_runtimes.conformance_bench import Bench, Harness, opened
from headrace_runtimes.spec import RuntimeSettings

from benchmarks import _bare
from benchmarks._docker import docker_daemon
from benchmarks._load import summary
from benchmarks._platform import Ours, bounded, ours, pool_full, wait_until

LIMIT_S = 420
RUNTIMES = ("process", "oci", "docker")
GOALS: dict[str, dict[str, float]] = {
    "process": {"p50": 25, "p99": 150},
    "oci": {"p50": 40, "p99": 150, "beyond_interpreter": 400},
    "docker": {"p50": 60, "p99": 150, "beyond_interpreter": 1500},
}
"""Of issue 4, in milliseconds."""
SETTLED_S = 60.0
APP = """
import headrace

@headrace.endpoint(
    name="{name}", runtime="{runtime}", concurrency=64,
    scaling=headrace.Scaling(min=0, max=1, idle_timeout=3600){more},
)
async def noop(x: int) -> dict[str, int]:
    return {{"echo": x}}
"""


def deploy(platform: Ours, folder: Path, name: str, runtime: str, more: str = "") -> None:
    """Deploy the no-op under this name."""
    file = folder / name / "app.py"
    file.parent.mkdir()
    file.write_text(APP.format(name=name, runtime=runtime, more=more))
    platform.deploy(file)


def wakes(platform: Ours, name: str, runtime: str, count: int) -> dict[str, Any]:
    """Milliseconds to the first byte of wakes, by where the instances came from, and their parts."""
    times: list[float] = []
    parts: dict[str, list[float]] = {}
    tiers: Counter[str] = Counter()
    for number in range(count + 1):
        platform.to_zero(name)
        wait_until(
            lambda: pool_full(platform.api("GET", "/hosts")["items"], runtime),
            SETTLED_S, f"spares of {runtime}", period_s=0.05,
        )  # fmt: skip
        answer = platform.call(name, b'{"x": 1}')
        if answer.status != 200:
            raise RuntimeError(f"{name}: {answer.status} {answer.body[:500]!r}")
        if not number:
            # The first one of a version compiles its code, too.
            continue
        times.append(answer.first_byte_ms)
        tier, told = receipt(answer.headers.get("server-timing", ""))
        tiers[tier] += 1
        for part, took in told.items():
            parts.setdefault(part, []).append(took)
    platform.to_zero(name)
    medians = {part: round(statistics.median(values), 2) for part, values in parts.items()}
    return {**summary(times), "unit": "ms", "tiers": dict(tiers), "p50_of_parts": medians}


def receipt(line: str) -> tuple[str, dict[str, float]]:
    """What a ``Server-Timing`` header says: where the instance came from, milliseconds of each part."""
    tier = re.search(r'tier;desc="([^"]*)"', line)
    found = {name: float(took) for name, took in re.findall(r"(\w+);dur=([\d.]+)", line)}
    return tier[1] if tier else "", found


async def cycles(runtime: str, folder: Path, count: int) -> dict[str, Any]:
    """Claim and stop again and again; what there is then that was not before, and what after its end."""
    code = folder / "code"
    settings = RuntimeSettings(
        run_dir=folder / "run", engine_dir=Path(headrace.__file__).parent / "engines" / "python",
        python=sys.executable, zygote_bytes=1 << 30, log_dir=folder / "logs",
        images_dir=folder.parent / "images",
    )  # fmt: skip
    async with opened(Harness(lambda: registry.load(runtime), settings, code)) as bench:
        before = await settled(bench)
        began = time.perf_counter()
        for _ in range(count):
            await (await bench.start()).stop(1.0)
        took = time.perf_counter() - began
        end = time.monotonic() + SETTLED_S
        while more := above(before, await owned(bench.runtime)):  # what ends tells nobody but by its absence
            if time.monotonic() > end:
                break
            await asyncio.sleep(0.1)
    left = sorted(str(path.relative_to(folder)) for path in (folder / "run").rglob("*"))
    return {"count": count, "per_s": round(count / took, 2), "left": more, "left_after_close": left[:20]}


async def settled(bench: Bench) -> Counter[str]:
    """What a runtime owns while nothing but its spare is there."""
    await bench.base("plain", lambda status: status.state == "ready" and status.spares > 0)
    return await owned(bench.runtime)


async def owned(runtime: Runtime) -> Counter[str]:
    """How many things of each kind there are because of it."""
    return Counter(one.kind for one in await runtime.list_owned())


def above(before: Counter[str], now: Counter[str]) -> dict[str, int]:
    """What there is more of than before."""
    return dict(now - before)


def judged(found: dict[str, Any], interpreter_ms: float) -> dict[str, Any]:
    """Add how far each figure is from its goal: below 1 is met."""
    for runtime, goal in GOALS.items():
        if runtime not in found:
            continue
        one = found[runtime]
        of_goal = {key: round(one["warm"][key] / goal[key], 2) for key in ("p50", "p99")}
        one["beyond_interpreter"] = round(one["cold"]["p50"] - interpreter_ms, 1)
        if "beyond_interpreter" in goal:
            of_goal["beyond_interpreter"] = round(one["beyond_interpreter"] / goal["beyond_interpreter"], 2)
        one["of_goal"] = of_goal
        if "bare" in one:
            one["times_faster_than_bare"] = round(one["bare"]["p50"] / one["warm"]["p50"], 1)
            one["cold_of_bare"] = round(one["cold"]["p50"] / one["bare"]["p50"], 2)
    return found


def run(runtimes: Sequence[str], warm: int, cold: int, bare: int, times: int) -> dict[str, Any]:
    """All sides in turn."""
    found: dict[str, Any] = {"benchmark": "runtimes"}
    with ExitStack() as stack:
        home = Path(tempfile.mkdtemp(prefix="hr-rt-"))
        stack.callback(shutil.rmtree, home, ignore_errors=True)
        home.chmod(0o711)
        address = stack.enter_context(docker_daemon()) if "docker" in runtimes else ""
        environ = {
            "HEADRACE_RUNTIMES": ",".join(dict.fromkeys(("process", *runtimes))),
            "HEADRACE_IMAGES_DIR": str(home / "images"),
            **({"DOCKER_HOST": address} if address else {}),
        }
        found["interpreter"] = {**summary(_bare.interpreter(max(5, bare))), "unit": "ms"}
        with ours(environ) as platform:
            for runtime in runtimes:
                deploy(platform, home, f"warm-{runtime}", runtime)
                deploy(platform, home, f"cold-{runtime}", runtime, ', snapshot="none"')
                found[runtime] = {
                    "warm": wakes(platform, f"warm-{runtime}", runtime, warm),
                    "cold": wakes(platform, f"cold-{runtime}", runtime, cold),
                }
        if "oci" in runtimes and bare:
            root = next(path for path in (home / "images").glob("host-*") if path.is_dir())
            scratch = Path(tempfile.mkdtemp(prefix="bare-", dir=home))
            found["oci"]["bare"] = {**summary(_bare.runc(root, scratch, bare)), "unit": "ms"}
        if "docker" in runtimes and bare:
            image = _bare.plain_image(address)
            found["docker"]["bare"] = {**summary(_bare.docker(address, image, bare)), "unit": "ms"}
        if address:
            os.environ["DOCKER_HOST"] = address
        for runtime in runtimes if times else ():
            folder = home / runtime
            folder.mkdir(mode=0o711)
            found[runtime]["cycles"] = asyncio.run(cycles(runtime, folder, times))
    return judged(found, found["interpreter"]["p50"])


def main() -> None:
    """Parse, run, print JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--wakes", type=int, default=60)
    parser.add_argument("--cold", type=int, default=15)
    parser.add_argument("--bare", type=int, default=10, help="Rounds of the peers; 0: none.")
    parser.add_argument("--cycles", type=int, default=20, help="0: none.")
    parser.add_argument("--runtimes", default=",".join(RUNTIMES), help="Of process, oci and docker.")
    given = parser.parse_args()
    chosen = [name for name in given.runtimes.split(",") if name]
    if unknown := sorted(set(chosen) - set(RUNTIMES)):
        parser.error(f"there is no runtime {unknown[0]!r}: {', '.join(RUNTIMES)}")
    bounded(LIMIT_S)
    json.dump(run(chosen, given.wakes, given.cold, given.bare, given.cycles), sys.stdout, indent=2)
    print()


if __name__ == "__main__":
    main()
