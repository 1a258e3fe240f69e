"""What ``headrace simulate`` tells people."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from headrace_autoscaler.simulate.bounds import SHARE, WITHIN_S
from headrace_autoscaler.simulate.generators import DAY_S, HOUR_S
from headrace_autoscaler.simulate.scenario import Scenario
from headrace_autoscaler.simulate.stats import MINUTE_S
from headrace_autoscaler.simulate.summary import counted_days, half_width, mean_and_peak
from headrace_autoscaler.simulate.sweep import SETTINGS, Step, Variant

from headrace.cli.output import table

Figures = Mapping[str, Any]
COLUMNS = (
    "POLICY", "COST", "X BOUND", "<= 2 S", "<= 10 S", "<= 30 S", "P50", "P95", "P99", "COLD", "ERRORS",
    "AVAILABLE", "STARTS",
)  # fmt: skip
REPORT_COLUMNS = (
    ("cost_usd", "cost, $"), ("bound_ratio", "x bound"), ("busy_usd", "busy"), ("idle_usd", "idle"),
    ("starting_usd", "starting"), ("sunk_usd", "sunk"), ("preempted_usd", "preempted"),
    ("share_within_2s", "within 2 s"), ("share_within_10s", "within 10 s"),
    ("share_within_30s", "within 30 s"),
    ("wait_p50_s", "P50, s"), ("wait_p95_s", "P95, s"), ("wait_p99_s", "P99, s"), ("cold_share", "cold"),
    ("errors", "errors"), ("availability", "availability"), ("starts", "starts"), ("seeds", "seeds"),
)  # fmt: skip
AUTO = '"auto"'
UNEVEN = 0.35
"""Mean by peak below which demand is called uneven."""


def policies_text(figures: Mapping[str, Figures], best: set[str]) -> str:
    """The table of policies; those in ``best`` are marked."""
    return table(COLUMNS, [_row(name, f, name in best) for name, f in figures.items()], "no policy")


def _row(name: str, f: Figures, best: bool) -> list[str]:
    ci = half_width(f, "cost_usd")
    return [
        f"{name} *" if best else name,
        dollars(f["cost_usd"]) + (f" +-{ci:,.2f}" if ci else ""),
        "-" if f["bound_ratio"] is None else f"{f['bound_ratio']:.2f}",
        *(percent(f[f"share_within_{s}s"]) for s in (2, 10, 30)),
        *(seconds(f[f"wait_p{p}_s"]) for p in (50, 95, 99)),
        percent(f["cold_share"]),
        f"{f['errors']:,.0f}",
        percent(f["availability"]),
        f"{f['starts']:,.0f}",
    ]


def percent(part: float | None) -> str:
    """A share for people; never rounded up to 100 %."""
    if part is None:
        return "-"
    if part < 1 and part > 0.9995:
        return f"{math.floor(part * 1e5) / 1e3:.3f} %"
    return f"{part * 100:.2f} %"


def seconds(value: float | None) -> str:
    """A wait for people."""
    if value is None:
        return "-"
    return f"{value:.2f} s" if value < 10 else f"{value:.0f} s"


def about_trace(scenario: Scenario) -> str:
    """One line about what is simulated."""
    trace, before = scenario.trace, scenario.warm_up_s / DAY_S
    requests = int(np.count_nonzero(trace.arrivals >= scenario.warm_up_s))
    endpoints = "" if len(trace.names) == 1 else f" to {len(trace.names)} endpoints"
    warm = f", after {before:.3g} days that are played and not counted" if before else ""
    return f"{trace.name}: {requests:,} requests{endpoints} in {span(trace.end - scenario.warm_up_s)}{warm}"


def span(seconds: float) -> str:
    """A stretch of time for people."""
    for unit, length in (("days", DAY_S), ("hours", HOUR_S), ("minutes", MINUTE_S)):
        if seconds >= length:
            return f"{seconds / length:.3g} {unit}"
    return f"{seconds:.3g} seconds"


def dollars(value: float) -> str:
    """Money for people: cents, and more digits where there is less than a dollar."""
    return f"${value:,.2f}" if value >= 1 or value == 0 else f"${value:.4f}"


def about_bound(bound_usd: float | None, *, possible: bool = True) -> str:
    """What the bound means; ``possible``: whether these supplies can do what it is about."""
    if bound_usd is None:
        return "There is no lower bound."
    if not possible:
        return (
            f"No policy can start {SHARE:.0%} of the requests within {WITHIN_S:g} s on these supplies, "
            f"whatever it costs. X BOUND is to {dollars(bound_usd)}, which their work alone costs at the "
            "lowest price: no bound for who starts fewer."
        )
    return (
        f"Lower bound {dollars(bound_usd)}: no policy can start {SHARE:.0%} of the requests within "
        f"{WITHIN_S:g} s for less, even one that knows them all before they come; who starts fewer may."
    )


def about_nights(scenario: Scenario) -> str:
    """Whether the trace flatters who scales to zero."""
    mean, peak = mean_and_peak(scenario)
    if not peak or scenario.trace.end - scenario.warm_up_s < HOUR_S:
        return "So short a time says nothing of days and nights."
    words = f"Demand: mean {mean:.3g} requests at once, peak {peak:.3g}; mean/peak {mean / peak:.2f}."
    if mean / peak < UNEVEN:
        words += " Most of the time little is asked for, which flatters any serverless system."
    return words


def sweep_text(found: Sequence[Step]) -> str:
    """One line per step: what it costs, and what to set."""
    if not found:
        return "No setting keeps p95 within any of the bounds that are asked about."
    lines = []
    for step in found:
        point = step.point
        lines.append(
            f"p95 <= {step.p95_s:g} s costs {dollars(point.usd_per_day)} per day: "
            f"{options_text(point.variant)}  (p95 {seconds(point.p95_s)}, "
            f"p99 {seconds(point.p99_s)}, {percent(point.share_within_10s)} within 10 s)"
        )
    return "\n".join(lines)


def options_text(variant: Variant) -> str:
    """A setting's options, as `headrace.Scaling` has them where it has them."""
    parts = []
    for name, value in variant.options.items():
        shown = AUTO if value is None else f"{value:g}" if isinstance(value, float) else str(value)
        parts.append(f"{'idle_timeout' if name == 'idle_timeout_s' else name}={shown}")
    return ", ".join(parts) or "defaults"


def sweep_page(
    scenario: Scenario, found: Sequence[Step], bound_usd: float | None, *, possible: bool = True
) -> str:
    """The whole answer of a sweep; ``possible`` is that of `about_bound`."""
    days = counted_days(scenario)
    lines = [about_trace(scenario), "", sweep_text(found), ""]
    if bound_usd is not None and possible:
        lines.append(f"Lower bound: {dollars(bound_usd / days)} per day; it is for the whole service level.")
    elif bound_usd is not None:
        lines.append(
            f"No setting can start {SHARE:.0%} of the requests within {WITHIN_S:g} s on these supplies; "
            f"their work alone costs {dollars(bound_usd / days)} per day at the lowest price."
        )
    named = {path for step in found for path in step.point.variant.config}
    for path in sorted(named & SETTINGS.keys()):
        name = SETTINGS[path]
        lines.append(
            f"{name} is a setting of the platform, for all endpoints: headrace up --{name.replace('_', '-')}."
        )
    if days < 1:
        about = f"{days * 24:.1f} hours" if days * 24 >= 1 else f"{days * 24 * 60:.1f} minutes"
        lines.append(f"These are {about}, scaled up to a day: nights would cost less.")
    return "\n".join(lines)


def facts_of(scenario: Scenario) -> list[tuple[str, str]]:
    """What was simulated, for the report."""
    facts = []
    for s in scenario.supplies:
        words = [f"${s.price:g} per hour", f"{s.boot.median:g} s to start"]
        if s.owned:
            words.append(f"{s.capacity} owned")
        if s.spot:
            words.append(f"spot, {s.notice_s:g} s notice")
        if s.min_billing_s:
            words.append(f"at least {s.min_billing_s:g} s paid")
        words += [f"fails from hour {a / 3600:.1f} to {b / 3600:.1f}" for a, b in s.outages]
        facts.append((s.name, ", ".join(words)))
    if scenario.timeout_s is not None:
        facts.append(("time-out", f"{scenario.timeout_s:g} s"))
    if scenario.queue_cap is not None:
        facts.append(("queue", f"at most {scenario.queue_cap}"))
    return facts
