"""Whether making spares delays starts: claims of warm children, alone and while the pool is refilled.

    python -m benchmarks.refill [--claims 300] [--pool 8] [--json]

Claims of both kinds take turns, so that both see the same machine. A refill of ``--pool`` spares begins at a
random moment up to 20 ms before the claim of its kind; the time is from the claim to a ready instance.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from headrace_runtimes.process import ProcessRuntime
from headrace_runtimes.spec import Assignment, Base, RuntimeSettings

from benchmarks._load import root

BASE = Base("benchmark", imports=("json", "decimal"))
AHEAD_S = 0.02
SETTLE_S = 0.05
FULL_S = 30.0


async def _spares(runtime: ProcessRuntime, count: int) -> None:
    """Have exactly so many spares, and none being made."""
    await runtime.hold([(BASE, count)])
    async with asyncio.timeout(FULL_S):
        while next((s.spares for s in runtime.bases() if s.key == BASE.key), 0) != count:  # noqa: ASYNC110
            await asyncio.sleep(0.002)


async def _claim(runtime: ProcessRuntime, code: Path, id: str) -> tuple[float, str]:
    began = time.perf_counter()
    sandbox = await runtime.claim(BASE, Assignment(id, "default/noop", 1, code, "noop:noop", "function", "t"))
    took = time.perf_counter() - began
    tier = sandbox.tier
    await sandbox.stop(0.0)
    return took, tier


async def measure(claims: int, pool: int) -> dict[str, Any]:
    """Seconds per claim, of both kinds."""
    times: dict[str, list[float]] = {"alone": [], "while refilling": []}
    cold = 0
    with tempfile.TemporaryDirectory(prefix="hrf-", dir="/tmp") as made:
        code, settings = _work(Path(made))
        runtime = ProcessRuntime()
        await runtime.open(settings, lambda status: None)
        try:
            for number in range(claims):
                for kind, found in times.items():
                    await _spares(runtime, 1)
                    # What was let go is being buried.
                    await asyncio.sleep(SETTLE_S)
                    if kind != "alone":
                        await runtime.hold([(BASE, 1 + pool)])
                        await asyncio.sleep(random.uniform(0.0, AHEAD_S))
                    took, tier = await _claim(runtime, code, f"{kind[0]}{number}")
                    found.append(took)
                    cold += tier != "warm"
        finally:
            await runtime.close()
    found_all = {kind: _figures(found) for kind, found in times.items()}
    ratio = {q: found_all["while refilling"][q] / found_all["alone"][q] for q in ("p50_ms", "p99_ms")}
    return {"claims": claims, "pool": pool, "not_warm": cold, **found_all, "ratio": ratio}


def _work(work: Path) -> tuple[Path, RuntimeSettings]:
    """The code's directory, and a runtime's settings."""
    work.chmod(0o711)
    code = work / "code"
    code.mkdir(mode=0o755)
    (code / "noop.py").write_text("def noop(x: int = 0) -> int:\n    return x\n")
    settings = RuntimeSettings(
        run_dir=work / "run",
        engine_dir=root() / "platform/headrace/engines/python",
        python=sys.executable,
        zygote_bytes=2 << 30,
        log_dir=work / "logs",
    )
    return code, settings


def _figures(times: list[float]) -> dict[str, float]:
    ordered = sorted(times)
    return {f"p{q}_ms": 1000 * ordered[min(len(ordered) - 1, len(ordered) * q // 100)] for q in (50, 90, 99)}


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--claims", type=int, default=300, help="of each kind")
    parser.add_argument("--pool", type=int, default=8, help="spares that are made meanwhile")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    found = asyncio.run(measure(options.claims, options.pool))
    if options.json:
        print(json.dumps(found, indent=2))
        return 0
    for kind in ("alone", "while refilling"):
        print(f"{kind:16}", "  ".join(f"{q} {ms:6.2f} ms" for q, ms in found[kind].items()))
    print("ratio           ", "  ".join(f"{q[:3]} {ratio:.2f}" for q, ratio in found["ratio"].items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
