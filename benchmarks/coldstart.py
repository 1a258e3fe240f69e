"""From zero to the first byte, as an HTTP client sees it: us, Ray Serve as it comes, Ray Serve tuned.

    python -m benchmarks.coldstart [--wakes 100] [--example ocr|embeddings] [--no-peers]

Each wake of ours: all instances are released, and gone; then one request on a new connection. Each wake of
Serve's: the application is deployed anew with no replica; then one request. All in one run, the peers first.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from typing import Any

from benchmarks._load import request, root, summary
from benchmarks._platform import Ours, bounded, ours, ray_serve


def payload(example: str) -> tuple[str, bytes, str]:
    """Endpoint name, body and content type of one request."""
    if example == "ocr":
        return "ocr", (root() / "examples/data/receipt.png").read_bytes(), "application/octet-stream"
    if example == "embeddings":
        return (
            "embeddings",
            json.dumps({"texts": ["the gate opens", "water moves"]}).encode(),
            "application/json",
        )
    return "noop", b'{"x": 1}', "application/json"


def measure_ours(platform: Ours, example: str, wakes: int) -> dict[str, Any]:
    """Wake the endpoint again and again; client's milliseconds to the first byte."""
    wanted, body, content_type = payload(example)
    file = root() / ("benchmarks/apps/noop.py" if example == "noop" else f"examples/{example}.py")
    platform.deploy(file)
    name = _deployed_name(platform, wanted)
    platform.to_zero(name)
    first = platform.call(name, body, content_type)
    times: list[float] = []
    timing = ""
    for _ in range(wakes):
        platform.to_zero(name)
        answer = platform.call(name, body, content_type)
        if answer.status != 200:
            raise RuntimeError(f"{name}: {answer.status} {answer.body[:500]!r}")
        times.append(answer.first_byte_ms)
        timing = answer.headers.get("server-timing", "")
    return {**summary(times), "unit": "ms", "first": round(first.first_byte_ms, 1), "last_receipt": timing}


def _deployed_name(platform: Ours, wanted: str) -> str:
    names = [item["name"] for item in platform.api("GET", "/endpoints")["items"]]
    return wanted if wanted in names else names[0]


def measure_serve(mode: str, example: str, wakes: int) -> dict[str, Any]:
    """Ray Serve with ``min_replicas=0``; the same request."""
    _, body, content_type = payload(example)
    times: list[float] = []
    with ray_serve(mode, example) as serve:
        for wake in range(wakes):
            if wake:
                serve.fresh()
            # Serve's metrics are pushed on a period; a fixed delay would always meet the same phase of it.
            time.sleep(0.3 + 0.7 * (wake % 3))
            answer = request(serve.port, "POST", "/", body, {"Content-Type": content_type}, timeout=90)
            if answer.status != 200:
                raise RuntimeError(f"serve: {answer.status} {answer.body[:500]!r}")
            times.append(answer.first_byte_ms)
    return {**summary(times), "unit": "ms"}


def run(example: str, wakes: int, serve_wakes: int, peers: bool = True) -> dict[str, Any]:
    """All sides in turn."""
    found: dict[str, Any] = {"benchmark": "coldstart", "example": example}
    if peers:
        found["ray_serve_default"] = measure_serve("default", example, serve_wakes)
        found["ray_serve_tuned"] = measure_serve("tuned", example, serve_wakes)
    with ours() as platform:
        found["up_to_ready_s"] = platform.ready_s
        found["headrace"] = measure_ours(platform, example, wakes)
    if peers:
        mine = found["headrace"]["p50"]
        for name in ("default", "tuned"):
            found[f"times_faster_than_{name}"] = round(found[f"ray_serve_{name}"]["p50"] / mine, 1)
    return found


def main() -> None:
    """Parse, run, print JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--example", choices=["noop", "ocr", "embeddings"], default="noop")
    parser.add_argument("--wakes", type=int, default=0, help="Ours (default: 100, examples 20).")
    parser.add_argument("--serve-wakes", type=int, default=5)
    parser.add_argument("--no-peers", action="store_true", help="Only ours.")
    given = parser.parse_args()
    bounded()
    wakes = given.wakes or (100 if given.example == "noop" else 20)
    json.dump(run(given.example, wakes, given.serve_wakes, not given.no_peers), sys.stdout, indent=2)
    print()


if __name__ == "__main__":
    main()
