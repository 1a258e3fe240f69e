"""``make bench``: run every benchmark, each in a process of its own, and write RESULTS.md.

``make bench-autoscaler`` runs those that play days of requests, for hours, and writes their part of it.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks._load import root

COMMANDS: dict[str, list[str]] = {
    "coldstart": ["benchmarks.coldstart"],
    "coldstart-ocr": ["benchmarks.coldstart", "--example", "ocr", "--serve-wakes", "3"],
    "coldstart-embeddings": ["benchmarks.coldstart", "--example", "embeddings", "--serve-wakes", "3"],
    "throughput": ["benchmarks.throughput"],
    "idle": ["benchmarks.idle"],
    "jobs": ["benchmarks.jobs"],
    "chaos": ["benchmarks.chaos"],
    "switch": ["benchmarks.switch"],
    "runtimes": ["benchmarks.runtimes"],
    "refill": ["benchmarks.refill", "--json"],
}
SIMULATIONS: dict[str, list[str]] = {
    "autoscaler": ["benchmarks.autoscaler", "--json"],
    "serverless_effect": ["benchmarks.serverless_effect", "--json"],
}
LIMIT_S = 900
SIMULATION_LIMIT_S = 4 * 3600
SIMULATED_MARK = "<!-- simulated: `make bench-autoscaler` writes what follows -->"
FIRST_MARK = "<!-- measured: `make bench` writes what is between these lines -->"
LAST_MARK = "<!-- /measured -->"


def machine() -> str:
    """Processor, cores, memory and system, in one line."""
    model = "unknown processor"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{model}, {os.cpu_count()} cores, {memory:.0f} GiB, {platform.system()} {platform.release()}"


def rows(found: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    """What was measured, ours, the peers, the ratio: one row each."""
    table: list[tuple[str, str, str, str]] = []
    for name, what in (
        ("coldstart", "from zero to first byte, no-op"),
        ("coldstart-ocr", "from zero to first byte, OCR of a receipt"),
        ("coldstart-embeddings", "from zero to first byte, MiniLM embedding"),
    ):
        if (one := found.get(name)) and "headrace" in one:
            mine, default, tuned = one["headrace"], one["ray_serve_default"], one["ray_serve_tuned"]
            table.append(
                (
                    what,
                    f"p50 {mine['p50']:.1f} ms, p99 {mine['p99']:.1f} ms ({mine['count']} wakes)",
                    f"Ray Serve {default['p50']:.0f} ms, tuned {tuned['p50']:.0f} ms",
                    f"{one['times_faster_than_default']} x, {one['times_faster_than_tuned']} x faster",
                )
            )
    if (one := found.get("throughput")) and "headrace" in one:
        mine, serve, bare = one["headrace"], one["ray_serve_default"], one["bare_aiohttp"]
        rates = [side["connections_32"]["requests_per_s"] for side in (mine, serve, bare)]
        table.append(
            (
                "no-op JSON POST, 32 connections",
                f"{rates[0]:.0f} requests/s, p50 {mine['connections_32']['p50_ms']} ms",
                f"Ray Serve {rates[1]:.0f}, bare aiohttp {rates[2]:.0f} requests/s",
                f"{one['times_ray_serve']} x Ray Serve, {one['of_bare_aiohttp']} of bare aiohttp",
            )
        )
        table.append(
            (
                "no-op JSON POST, one connection",
                f"p50 {mine['plain_client']['p50']} ms",
                f"the instance's own socket {one['own_socket']['p50']} ms",
                f"{one['above_own_socket_ms']} ms above it",
            )
        )
    if (one := found.get("idle")) and "wake" in one:
        table.append(
            (
                f"{one['endpoints']} idle endpoints",
                f"wake p50 {one['wake']['p50']:.1f} ms, p99 {one['wake']['p99']:.1f} ms",
                f"list of all: {one['list_s']} s",
                f"control and gateway grew by {one['grown_mb']} MB",
            )
        )
    for store, name in (("sqlite", "SQLite"), ("postgres", "PostgreSQL")):
        if (one := found.get("jobs", {}).get(store)) and "long_queue" in one:
            behind = one["long_queue"]
            table.append(
                (
                    f"jobs in {name}, submit to stored result, fsync on",
                    f"{one['sustained']['finished_per_s']} jobs/s for {one['sustained']['seconds']:.0f} s",
                    f"submit p99 {behind['submit_ms_behind_it']['p99']} ms with {behind['queued']} queued",
                    f"gateway {behind['gateway_mb_before']} to {behind['gateway_mb_after']} MB",
                )
            )
    table += of_runtimes(found.get("runtimes", {}))
    if (one := found.get("switch")) and "paused" in one:
        warm, cold = one["stopped_warm"]["p50"], one["stopped_cold"]["p50"]
        faster = [one[f"times_faster_than_{side}"] for side in ("stopped_warm", "stopped_cold")]
        table.append(
            (
                f"one slot changes hands between two endpoints, {one['runtime']}",
                f"p50 {one['paused']['p50']:.1f} ms, p99 {one['paused']['p99']:.1f} ms",
                f"stopped, the next one warm {warm:.0f} ms, cold {cold:.0f} ms",
                f"{faster[0]} x, {faster[1]} x faster",
            )
        )
        if model := one.get("model"):
            table.append(
                (
                    f"a model of {model['megabytes']} MB, second time round, {one['runtime']}",
                    f"load p50 {model['load']['p50']:.0f} ms, whole request {model['request']['p50']:.0f} ms",
                    f"the same bytes read from memory {model['from_memory']['p50']:.0f} ms",
                    f"{model['load_of_from_memory']} of it",
                )
            )
    if (one := found.get("chaos")) and "ray_serve_default" in one:
        mine, serve = one["headrace"], one["ray_serve_default"]
        table.append(
            (
                f"SIGKILL of an instance every 3 s, {mine['strikes']} times",
                f"{one['failed_headrace']} of {mine['clients']['sent']} requests failed",
                f"Ray Serve: {one['failed_ray_serve_default']} of {serve['clients']['sent']}",
                f"p99 {mine['clients']['ms'].get('p99')} and {serve['clients']['ms'].get('p99')} ms",
            )
        )
    return table


def of_simulations(found: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    """The rows of what is simulated: the autoscaler's and those of bare metal."""
    table: list[tuple[str, str, str, str]] = []
    one = found.get("autoscaler", {})
    kind = f"{one.get('data')} requests, simulated"
    for boot, run in one.get("accept", {}).items():
        if "best" not in run:
            continue
        mine, best = run["policies"]["headrace"], run["best"]
        table.append(
            (
                f"starts of {boot} s ({kind})",
                f"{100 * mine['share_within_10s']:.2f} % in 10 s at {mine['bound_ratio']:.2f} x the bound",
                best["policy"] or "no other one is as quick",
                f"{best['of_best']:.2f} of its cost" if best["policy"] else "",
            )
        )
    for name, run in one.get("spot", {}).items():
        if isinstance(run, dict) and "met" in run:
            mine = run["policies"]["headrace, spot prefer"]
            table.append(
                (
                    f"spot at three providers, one gone for 2 h, starts of {name} s ({kind})",
                    f"{100 * mine['availability']:.3f} % of minutes available",
                    "the same without spot",
                    f"{mine['of_never']:.2f} of its cost",
                )
            )
    if (one := found.get("serverless_effect")) and "main" in one:
        for owned, costs in one["main"]["costs"].items():
            _, (fair, bare), _, *ours = costs.items()
            label, dollars = min(ours, key=lambda side: side[1])
            table.append(
                (
                    f"five days, an owned GPU at ${owned}/h ({one['data']} requests, simulated)",
                    f"${dollars:,.0f}, {label}",
                    f"${bare:,.0f}, {fair}",
                    f"{dollars / bare:.2f} of its cost",
                )
            )
    return table


def of_runtimes(one: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    """The rows of the benchmark of runtimes: two of each."""
    table: list[tuple[str, str, str, str]] = []
    for name in ("process", "oci", "docker"):
        if "warm" not in (side := one.get(name, {})):
            continue
        warm, cold, bare = side["warm"], side["cold"], side.get("bare")
        peer = {"oci": "runc run", "docker": "docker run"}.get(name)
        table.append(
            (
                f"from zero to first byte, no-op, {name}, out of the warm pool",
                f"p50 {warm['p50']:.1f} ms, p99 {warm['p99']:.1f} ms ({warm['count']} wakes)",
                f"bare `{peer}` {bare['p50']:.0f} ms" if bare else "",
                f"{side['times_faster_than_bare']} x faster" if bare else "",
            )
        )
        table.append(
            (
                f"the same without a warm sandbox, {name}",
                f"p50 {cold['p50']:.0f} ms",
                f"bare interpreter {one['interpreter']['p50']:.0f} ms",
                f"{side['beyond_interpreter']:.0f} ms beyond it",
            )
        )
    return table


def table(found: dict[str, Any]) -> list[str]:
    """`rows` as lines of Markdown."""
    lines = ["| what | Headrace | peers | ratio |", "|---|---|---|---|"]
    return lines + [f"| {' | '.join(row)} |" for row in rows(found)]


def in_readme(text: str, found: dict[str, Any], at: datetime.datetime) -> str:
    """The README with the table of this run between its two marks."""
    head, first, rest = text.partition(FIRST_MARK)
    _, last, tail = rest.partition(LAST_MARK)
    if not (first and last):
        raise RuntimeError("README.md has lost the marks around the measured table")
    said = f"On {at:%Y-%m-%d}, {machine()}:"
    return "\n".join([head + first, said, "", *table(found), last]) + tail


def report(found: dict[str, Any], at: datetime.datetime) -> str:
    """RESULTS.md."""
    lines = [
        "# Measured",
        "",
        f"`make bench` on {at:%Y-%m-%d %H:%M} UTC; {machine()}; Python {platform.python_version()}, "
        f"headrace {version('headrace')}, Ray {version('ray')}. Each row's sides ran in turn, in one run.",
        "",
        *table(found),
        "",
    ]
    for name, result in found.items():
        command = " ".join(["python -m", *COMMANDS[name]])
        lines += [f"## {name}", "", f"`{command}`", "", "```json", json.dumps(result, indent=2), "```", ""]
    return "\n".join(lines)


def simulated(found: dict[str, Any], at: datetime.datetime) -> str:
    """The part of RESULTS.md on what is simulated: rows, then the tables of each."""
    lines = [
        "# Simulated",
        "",
        f"`make bench-autoscaler` on {at:%Y-%m-%d %H:%M} UTC; {machine()}; headrace {version('headrace')}. "
        "What is said of costs and waits does not depend on the machine; what is said of speed does.",
        "",
        "| what | Headrace | the other side | ratio |",
        "|---|---|---|---|",
        *(f"| {' | '.join(row)} |" for row in of_simulations(found)),
    ]
    for name, result in found.items():
        command = " ".join(["python -m", *SIMULATIONS[name]])
        lines += ["", f"## {name}", "", f"`{command}`", "", "```text", result["text"], "```"]
    return "\n".join([*lines, ""])


def joined(measured: str, simulated_part: str) -> str:
    """RESULTS.md of what is measured, then what is simulated (which may be missing)."""
    if not simulated_part:
        return measured
    return f"{measured.rstrip()}\n\n{SIMULATED_MARK}\n\n{simulated_part.strip()}\n"


def main() -> int:
    """Run them one after another; exit code 1 when one failed (RESULTS.md then stays as it was)."""
    chosen = sys.argv[1:] or list(COMMANDS)
    commands = {**COMMANDS, **SIMULATIONS}
    if unknown := [name for name in chosen if name not in commands]:
        print(f"there is no benchmark {unknown[0]!r}: {', '.join(commands)}", file=sys.stderr)
        return 2
    found: dict[str, Any] = {}
    failed = False
    for name in chosen:
        print(f"running {name}", file=sys.stderr, flush=True)
        try:
            done = subprocess.run(
                [sys.executable, "-m", *commands[name]],
                stdout=subprocess.PIPE,
                text=True,
                timeout=SIMULATION_LIMIT_S if name in SIMULATIONS else LIMIT_S,
                cwd=root(),
                check=False,
            )
            done.check_returncode()
            found[name] = json.loads(done.stdout)
        except (subprocess.SubprocessError, ValueError) as error:
            print(f"{name}: {error}", file=sys.stderr)
            failed = True
    if found:
        print(json.dumps(found, indent=2))
    if failed or chosen not in (list(COMMANDS), list(SIMULATIONS)):
        print("RESULTS.md is refreshed only by a whole run", file=sys.stderr)
        return int(failed)
    at = datetime.datetime.now(datetime.UTC)
    results = root() / "benchmarks/RESULTS.md"
    measured, _, played = results.read_text().partition(SIMULATED_MARK)
    if chosen == list(SIMULATIONS):
        results.write_text(joined(measured, simulated(found, at)))
        return 0
    results.write_text(joined(report(found, at), played))
    readme = root() / "README.md"
    readme.write_text(in_readme(readme.read_text(), found, at))
    return 0


if __name__ == "__main__":
    sys.exit(main())
