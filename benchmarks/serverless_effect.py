"""What does a customer gain who moves from bare metal? Start-up, errors, cost and steps; bare metal is 100 %.

    python -m benchmarks.serverless_effect [--data FOLDER] [--quick] [--json]

Both sides are simulated with the same requests, time-outs, queue caps and rates of node failures. Bare metal
is a fixed fleet, paid for all the time, on which a request whose node fails is an error and the node is back
when it is repaired. Headrace rents by the second, alone or beside a few owned GPUs. The load that is nearly
flat, and waves of rising flatness, show where bare metal wins. FOLDER holds requests/ and
startup/ (default: HEADRACE_DATA); without it the requests are made, which is said.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from headrace_autoscaler.simulate.generators import DAY_S
from headrace_autoscaler.simulate.scenario import Draw, Scenario, Supply, Trace, Wish
from headrace_autoscaler.simulate.sweep import Variant
from headrace_autoscaler.simulate.traces import between

from benchmarks._figures import Slo, fleet_for, of_run, overlap, smallest, turns_at
from benchmarks._loads import Loads, NoDataError, caveats, flat, folder, loads, requests, wave
from benchmarks._platform import bounded
from benchmarks._replays import Case, once, percent, replay, table

LIMIT_S = 3600
OWNED_USD = (1.5, 2.0, 2.5, 3.0)
RENTED_USD = 3.29
PEAK_FLEET = 80
SLO = Slo(within_s=10.0, share=0.99)
NODE_BOOT_S = 12.0
"""Until a rented node is up; then the model is loaded there."""
NODE_BOOT_JITTER = 0.1
TIMEOUT_S = 120.0
QUEUE_CAP = 500
RETRIES = 2
MTBF_S = 7 * DAY_S
"""Of one node: far more failures than clouds report (one in some years), so that they show in five days."""
REPAIR_S = 4 * 3600.0
SIZING_DAYS, COUNTED_DAYS = (0.0, 7.0), (7.0, 12.0)
FLEETS = {
    "peak": "for the peak",
    "fair": "would have done on the days before",
    "hindsight": "the fewest that do on these days if none of them fails, known in advance",
}
HOMES = (2, 4, 8, 12, 16, 24)
"""Owned GPUs beside rented ones that are tried; the best on the first days is taken."""
HOME_SANDBOXES = 2
WAVE_MEAN, WAVE_DAYS = 60.0, 2.0
WAVE_RATIOS = (0.1, 0.2, 0.3, 0.45, 0.6, 0.75, 0.9, 1.0)
STEPS: dict[str, dict[str, tuple[str, ...]]] = {
    "bare metal": {
        "once": (
            "order or lease machines for the peak, wait until they are there",
            "install system, driver and container toolkit on each",
            "set up an address, a load balancer with health checks, TLS",
            "set up keys, quotas and time-outs in front of the service",
            "set up logs, metrics and alerts",
        ),
        "per model": (
            "write the server around the model (HTTP, validation, queue, batches)",
            "build its image with all dependencies",
            "copy image and weights to the nodes that shall run it",
            "write and enable a unit per node that starts it again when it dies",
            "add it to the load balancer and to the alerts",
            "decide how many GPUs it gets, and take them from another one",
        ),
    },
    "Headrace": {
        "once": (
            "install system, driver and container toolkit on the nodes that are one's own (rented: none)",
            "make setup (or install the package)",
            "headrace up",
            "add nodes (headrace nodes add; clouds by a provider plugin and its credentials)",
        ),
        "per model": ("decorate the function or class with @headrace.endpoint", "headrace deploy app.py"),
    },
}
STEPS_CAVEAT = (
    "Steps are counted by hand from what each side needs; they are not equally long. "
    "The only provider that comes with Headrace today starts nodes on the same machine: renting in a cloud "
    "needs a provider plugin first."
)


@dataclass(frozen=True)
class Question:
    """What is asked: the requests, and what loading a model takes."""

    counted: Trace
    sizing: Trace
    flat: Trace
    loads: Loads
    seeds: int
    processes: int
    quick: bool

    @cached_property
    def on_node(self) -> Draw:
        """A start on a node that is up: the whole model is loaded."""
        return Draw(0.0, samples=self.loads.whole)

    @cached_property
    def rented_boot(self) -> Draw:
        """Launch of a rented node until it serves."""
        random = np.random.default_rng(6)
        jitter = 1 + NODE_BOOT_JITTER * random.uniform(-1, 1, len(self.loads.whole))
        samples = (NODE_BOOT_S * j + load for j, load in zip(jitter, self.loads.whole, strict=True))
        return Draw(0.0, samples=tuple(samples))

    def bare(self, trace: Trace, count: int) -> Scenario:
        """A fixed fleet; prices are put in afterwards (dollars per hour: 1)."""
        fleet = Supply(
            "bare", 1.0, self.on_node, capacity=count, owned=True, standing=True, provider="home",
            mtbf_s=MTBF_S, repair_s=REPAIR_S,
        )  # fmt: skip
        return Scenario(trace, (fleet,), (Wish(),), timeout_s=TIMEOUT_S, queue_cap=QUEUE_CAP, retries=0)

    def rented(self, trace: Trace, home: int = 0) -> Scenario:
        """GPUs by the second, beside ``home`` owned ones (dollars per hour of those: 1) with warm tiers."""
        made = [Supply("rented", RENTED_USD, self.rented_boot, mtbf_s=MTBF_S)]
        if home:
            own = Supply(
                "home", 1.0, self.on_node, capacity=home, owned=True, standing=True, provider="home",
                cached=self.on_node, warm=Draw(0.0, samples=self.loads.switch), warm_sandboxes=HOME_SANDBOXES,
                mtbf_s=MTBF_S, repair_s=REPAIR_S,
            )  # fmt: skip
            made.insert(0, own)
        return Scenario(
            trace, tuple(made), (Wish(),), timeout_s=TIMEOUT_S, queue_cap=QUEUE_CAP, retries=RETRIES
        )


def fair_fleet(asked: Question) -> int:
    """The smallest fleet that meets the SLO on the first days, with failures; the peak's when none does."""

    def meets(count: int) -> bool:
        result = once(asked.bare(asked.sizing, count), Variant(f"always-on-{count}"), 0)
        share = of_run(result)["share_within_10s"]
        print(f"a fleet of {count}: {percent(share)} within {SLO.within_s:g} s", file=sys.stderr, flush=True)
        return share >= SLO.share

    mean, peak = overlap(asked.sizing.arrivals, asked.sizing.durations)
    return smallest(meets, max(1, math.floor(mean)), min(peak, PEAK_FLEET)) or PEAK_FLEET


def start_ups(asked: Question) -> dict[str, dict[str, float]]:
    """Seconds from the decision to start until a request can be served, by what is there already."""
    kinds = {
        "bare metal: node is up, model is not loaded": asked.on_node.samples,
        "Headrace, rented node: boots, then the model is loaded": asked.rented_boot.samples,
        "Headrace, node is up (cached): the model is loaded": asked.on_node.samples,
        "Headrace, warm sandbox with the base model: pipeline and adapter": asked.loads.switch,
    }
    first = np.median(asked.on_node.samples)
    return {
        name: {
            **{f"p{p}_s": float(np.percentile(seconds, p)) for p in (50, 95, 99)},
            "of_bare": float(np.median(seconds) / first),
        }
        for name, seconds in kinds.items()
    }


def main_question(asked: Question) -> dict[str, Any]:
    """Both sides on the counted days, for each price of an owned GPU."""
    fleet = fair_fleet(asked)
    homes = HOMES[1:4:2] if asked.quick else HOMES
    tried = _homes(asked, homes)
    chosen = {owned: best_home(tried, owned) for owned in OWNED_USD}
    counted = asked.counted
    later = fleet_for(counted.arrivals, counted.durations, SLO, PEAK_FLEET) or PEAK_FLEET
    fleets = {"peak": PEAK_FLEET, "fair": fleet, "hindsight": later}
    scenarios = {name: asked.bare(counted, count) for name, count in fleets.items()}
    cases = [
        Case(name, f"bare metal, {count} GPUs ({FLEETS[name]})", Variant(f"always-on-{count}"))
        for name, count in fleets.items()
    ]
    for home in sorted({0, *chosen.values()}):
        scenarios[f"home-{home}"] = asked.rented(counted, home)
        label = f"Headrace, {home} owned + rented" if home else "Headrace, all rented"
        cases.append(Case(f"home-{home}", label, Variant("headrace")))
    sides = replay(scenarios, cases, asked.seeds, asked.processes, "five days")
    hours = counted.end / 3600 + scenarios["peak"].tail_s / 3600
    found: dict[str, Any] = {"fleets": fleets, "homes": chosen, "hours": hours, "sides": {}, "costs": {}}
    for (scenario, label), figures in sides.items():
        found["sides"][label] = {"scenario": scenario, **figures}
    for owned in OWNED_USD:
        found["costs"][owned] = {
            label: dollars_of(figures, scenario, owned, fleets, hours)
            for (scenario, label), figures in sides.items()
            if scenario in (*fleets, "home-0", f"home-{chosen[owned]}")
        }
    return found


def _homes(asked: Question, homes: Sequence[int]) -> dict[int, dict[str, Any]]:
    """Each number of owned GPUs on the first days."""
    scenarios = {f"home-{home}": asked.rented(asked.sizing, home) for home in (0, *homes)}
    cases = [Case(name, name, Variant("headrace")) for name in scenarios]
    runs = replay(scenarios, cases, 1, asked.processes, "owned beside rented")
    return {
        int(name.partition("-")[2]): {
            **figures,
            "hours": scenarios[name].trace.end / 3600 + scenarios[name].tail_s / 3600,
        }
        for (name, _), figures in runs.items()
    }


def best_home(tried: dict[int, dict[str, Any]], owned: float) -> int:
    """The number of owned GPUs (0 too) that was cheapest at this price, among those that met the SLO."""
    good = {home: run for home, run in tried.items() if run["share_within_10s"] >= SLO.share} or tried
    return min(
        good, key=lambda home: (good[home]["cost_usd"] + (owned - 1) * home * good[home]["hours"], home)
    )


def dollars_of(
    figures: dict[str, Any], scenario: str, owned: float, fleets: dict[str, int], hours: float
) -> float:
    """What a side costs at this price: in the runs an owned GPU cost 1 dollar per hour, used or not."""
    count = fleets.get(scenario)
    if count is None:
        count = int(scenario.partition("-")[2])
    return float(figures["cost_usd"] + (owned - 1) * count * hours)


def turning(asked: Question) -> dict[str, Any]:
    """The nearly flat service, and waves with the same mean and rising flatness, for each price.

    Bare metal has the fleet that meets the SLO in hindsight on this very load, and never fails: kind to it.
    """
    ratios = WAVE_RATIOS[1::3] if asked.quick else WAVE_RATIOS
    traces = {"nearly flat service": asked.flat}
    traces |= {f"wave of {ratio:g}": wave(WAVE_MEAN, ratio, WAVE_DAYS, 1) for ratio in ratios}
    cases = [Case(name, name, Variant("headrace")) for name in traces]
    runs = replay(
        {name: asked.rented(t) for name, t in traces.items()}, cases, 1, asked.processes, "flatness"
    )
    points = {name: against(traces[name], figures) for (name, _), figures in runs.items()}
    waves = [point for name, point in points.items() if name.startswith("wave")]
    return {"points": points, "turns_at": {owned: turn(waves, owned) for owned in OWNED_USD}}


def against(trace: Trace, figures: dict[str, Any]) -> dict[str, Any]:
    """Headrace's run of a load beside the fleet that would have done for it."""
    mean, peak = overlap(trace.arrivals, trace.durations)
    fleet = fleet_for(trace.arrivals, trace.durations, SLO, peak) or peak
    hours = trace.end / 3600
    return {
        "mean_gpus": mean,
        "peak_gpus": peak,
        "ratio": mean / peak,
        "fleet": fleet,
        "headrace_usd": figures["cost_usd"],
        "headrace_share": figures["share_within_10s"],
        "bare_usd": {owned: owned * fleet * hours for owned in OWNED_USD},
    }


def turn(points: Sequence[dict[str, Any]], owned: float) -> float | None:
    """The mean/peak ratio from which on bare metal is the cheaper one; None: not among these."""
    return turns_at([(one["ratio"], one["bare_usd"][owned], one["headrace_usd"]) for one in points])


def said(found: dict[str, Any]) -> str:
    """Everything as text."""
    main, lines = found["main"], ["Start-up time (bare metal = 100 %)"]
    source = "measured loads" if found["loads_measured"] else "made loads, no measured ones"
    rows = [
        (name, one["p50_s"], one["p95_s"], one["p99_s"], percent(one["of_bare"], 0))
        for name, one in found["start_up"].items()
    ]
    lines += [table((f"tier ({source})", "P50 s", "P95 s", "P99 s", "of bare metal"), rows), ""]
    lines += ["What requests met on the counted days (means over the seeds)"]
    rows = [
        (
            label, percent(one["share_within_10s"]),
            "yes" if one["share_within_10s"] >= SLO.share else "NO",
            *(one[f"wait_p{p}_s"] for p in (50, 95, 99)),
            percent(one["error_rate"], 4), f"{one['errors']:.1f} of {one['requests']:.0f}",
            f"{one['starts']:.0f}",
        )
        for label, one in main["sides"].items()
    ]  # fmt: skip
    header = ("side", "within 10 s", "99 %", "wait P50", "P95", "P99", "errors", "count", "starts")
    lines += [table(header, rows), ""]
    lines += ["Compute cost of those days, rented at $3.29/h by the second (of bare metal = 100 %)"]
    rows = []
    for owned, costs in main["costs"].items():
        bare = list(costs.values())[: len(FLEETS)]
        for label, dollars in costs.items():
            shares = (percent(dollars / each, 1) for each in bare)
            rows.append((f"${owned:g}/h  {label}", f"{dollars:,.0f}", *shares))
    header = ("owned at, side", "dollars", *(f"of {count}" for count in main["fleets"].values()))
    lines += [table(header, rows)]
    lines += [f"  ! {text}" for text in found["caveats"]]
    lines += ["", "Where bare metal wins: a flat load, and from which mean/peak ratio on"]
    rows = [
        (
            name, one["mean_gpus"], one["peak_gpus"], one["ratio"], one["fleet"],
            f"{one['headrace_usd']:,.0f}",
            percent(one["headrace_share"]),
            *(percent(one["headrace_usd"] / one["bare_usd"][owned], 0) for owned in OWNED_USD),
        )
        for name, one in found["turning"]["points"].items()
    ]  # fmt: skip
    header = ("load", "mean", "peak", "mean/peak", "fleet", "Headrace $", "within 10 s")
    lines += [table((*header, *(f"of bare at ${owned:g}" for owned in OWNED_USD)), rows)]
    if short := [
        name for name, one in found["turning"]["points"].items() if one["headrace_share"] < SLO.share
    ]:
        lines.append(
            f"  ! the fleets have {SLO.share:.0%}; Headrace has less, so is too cheap, at: {', '.join(short)}"
        )
    for owned, ratio in found["turning"]["turns_at"].items():
        where = "not within these loads" if ratio is None else f"at a mean/peak ratio of {ratio:.2f}"
        lines.append(f"  owned at ${owned:g}/h: bare metal becomes the cheaper one {where}")
    lines += ["", "Steps to launch"]
    for side, lists in STEPS.items():
        for when, steps in lists.items():
            lines.append(f"  {side}, {when}: {len(steps)}")
            lines += [f"    {n}. {step}" for n, step in enumerate(steps, 1)]
    lines.append(f"  ! {STEPS_CAVEAT}")
    return "\n".join(lines)


def answer(data: Path | None, seeds: int, processes: int, *, quick: bool) -> dict[str, Any]:
    """All parts."""
    whole = requests(data)
    first, last = (SIZING_DAYS, COUNTED_DAYS)
    if quick:
        first, last = (2.0, 3.0), (7.0, 8.0)
    flat_days = flat(data)
    asked = Question(
        counted=between(whole, *last), sizing=between(whole, *first),
        flat=between(flat_days, 0.0, 3.0) if quick else flat_days,
        loads=loads(data), seeds=seeds, processes=processes, quick=quick,
    )  # fmt: skip
    mean, peak = overlap(asked.counted.arrivals, asked.counted.durations)
    return {
        "benchmark": "serverless_effect",
        "data": "made" if data is None else "real",
        "caveats": caveats(data),
        "loads_measured": asked.loads.measured,
        "counted": {
            "requests": len(asked.counted.arrivals), "days": last, "mean_gpus": mean, "peak_gpus": peak,
        },
        "limits": {
            "timeout_s": TIMEOUT_S, "queue_cap": QUEUE_CAP, "node_mtbf_h": MTBF_S / 3600,
            "repair_h": REPAIR_S / 3600, "slo": f"{SLO.share:.0%} within {SLO.within_s:g} s", "seeds": seeds,
        },
        "start_up": start_ups(asked),
        "main": main_question(asked),
        "turning": turning(asked),
        "steps": {side: {when: len(steps) for when, steps in lists.items()} for side, lists in STEPS.items()},
    }  # fmt: skip


def main() -> int:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", help="Folder with the real data; default: HEADRACE_DATA.")
    parser.add_argument("--quick", action="store_true", help="One day, few settings, one seed.")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--json", action="store_true", help="JSON on stdout, the text on stderr.")
    given = parser.parse_args()
    bounded(LIMIT_S)
    try:
        data = folder(given.data)
        found = answer(data, 1 if given.quick else given.seeds, given.processes, quick=given.quick)
    except NoDataError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    text = said(found)
    print(text, file=sys.stderr if given.json else sys.stdout)
    if given.json:
        print(json.dumps({**found, "text": text}, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
