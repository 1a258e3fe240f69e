"""``headrace simulate``: what policies would cost and who would have waited, before anything is deployed."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import click
from headrace_autoscaler.baselines import names, policy_of
from headrace_autoscaler.simulate import report as reports
from headrace_autoscaler.simulate.bounds import Bound
from headrace_autoscaler.simulate.scenario import Result, Scenario
from headrace_autoscaler.simulate.summary import counted_days, document, lower_bound, mean_and_peak, unbeaten
from headrace_autoscaler.simulate.sweep import (
    BESIDE,
    GOAL,
    IN_TIME,
    KNOBS,
    LATE,
    OURS,
    Variant,
    play,
    point_of,
    settings,
    steps,
)

from headrace.cli import simulate_text as text
from headrace.cli.app import INTERRUPTED, SUMMARIES
from headrace.cli.options import json_option
from headrace.cli.output import Output
from headrace.cli.simulate_options import FILE, Number, our_options, world_options
from headrace.cli.simulate_runs import Task, run_all
from headrace.cli.simulate_world import Asked, scenario_of
from headrace.errors import SetupError, UsageError

ALL = "all"
_ALL = tuple(name for name in names() if not name.endswith("-N"))
TIMELINE_POINTS = 1000


@dataclass(frozen=True)
class Plan:
    """What is to be played, and how."""

    policies: tuple[str, ...]
    seeds: int
    jobs: int
    report: Path | None
    tiers: dict[str, float]
    bound_bin: float | None
    ours: Mapping[str, Any] = field(default_factory=dict)
    """Parameters of our own policy that are not as by default, by their paths."""

    def variant(self, policy: str) -> Variant:
        """A policy as it was asked for."""
        return Variant(policy, config=self.ours if policy == OURS else {})


@click.command("simulate", help=SUMMARIES["simulate"])
@click.option("--policy", default=OURS, show_default=True, help="What decides.")
@click.option("--compare", metavar="P1,P2,...", default="", help=f"Others beside it, or `{ALL}`.")
@click.option("--seeds", type=click.IntRange(1, 1000), default=1, show_default=True, help="Runs of each.")
@world_options
@our_options
@click.option("--sweep", is_flag=True, help="Print what each p95 costs per day, and which options give it.")
@click.option("--tier", "tiers", metavar="NAME=SECONDS", multiple=True,
              help="With --sweep: starts take so long, such as cached=12; repeatable.")  # fmt: skip
@click.option("--report", type=FILE, metavar="FILE", help="Write plots to this HTML file.")
@click.option("--bound-bin", type=Number(1), metavar="SECONDS",
              help="Of the lower bound: shorter is tighter, and slower (default: from 10).")  # fmt: skip
@click.option("--jobs", type=click.IntRange(1), help="Processes at once (default: the cores).")
@json_option
def simulate_command(
    out: Output,
    *,
    asked: Asked,
    policy: str,
    compare: str,
    seeds: int,
    sweep: bool,
    tiers: Sequence[str],
    report: Path | None,
    bound_bin: float | None,
    jobs: int | None,
    late_s: float | None,
    wait_goal: float | None,
    wait_share: float | None,
) -> None:
    """TRACE: a CSV file (time,duration[,endpoint]), or diurnal, flash-crowd, on-off, heavy-tail or mmpp."""
    if sweep and (compare or report or policy != OURS):
        raise UsageError(f"--sweep tries options of {OURS}: leave out --policy, --compare and --report.")
    if tiers and not sweep:
        raise UsageError("--tier belongs to --sweep.", hint="Without it say --start-seconds.")
    if sweep and late_s is not None:
        raise UsageError("--sweep tries several values of --late-s.", hint="Leave one of them out.")
    cores = len(os.sched_getaffinity(0))
    ours = {LATE: late_s, GOAL: wait_goal, IN_TIME: wait_share}
    plan = Plan(
        policies=_policies(policy, compare),
        seeds=seeds,
        jobs=min(jobs or cores, cores),
        report=report,
        tiers=_tiers(tiers),
        bound_bin=bound_bin,
        ours={path: value for path, value in ours.items() if value is not None},
    )
    if plan.ours and OURS not in plan.policies:
        raise UsageError(
            f"--late-s, --wait-goal and --wait-share are of {OURS}, which is not simulated here."
        )
    if report is not None:
        _can_report(report)
    if plan.tiers and asked.start_seconds is None:
        # All starts are those of the tiers: the bound must hold for the quickest.
        asked = replace(asked, start_seconds=min(plan.tiers.values()))
    with out.progress("reading the requests"):
        scenario, notes = scenario_of(asked)
    for note in notes:
        out.note(f"note: {note}")
    if compare == ALL:
        # What owners of machines do: as many, all the time, as the busiest minutes need.
        most = math.ceil(mean_and_peak(scenario)[1])
        plan = replace(plan, policies=(*plan.policies, f"always-on-{most}"))
    (_sweep if sweep else _compare)(out, scenario, plan)


def _policies(policy: str, compare: str) -> tuple[str, ...]:
    others = _ALL if compare == ALL else [name.strip() for name in compare.split(",") if name.strip()]
    names = tuple(dict.fromkeys((policy, *others)))
    for name in names:
        try:
            policy_of(name)
        except ValueError as error:
            raise UsageError(str(error)) from error
    return names


def _tiers(words: Sequence[str]) -> dict[str, float]:
    tiers = {}
    for word in words:
        name, _, seconds = word.partition("=")
        try:
            tiers[name] = float(seconds)
        except ValueError:
            tiers[name] = 0.0
        if not name or not 0 < tiers[name] < float("inf"):
            raise UsageError(f"--tier {word!r}: write it as NAME=SECONDS, for example cached=12.")
    return tiers


def _can_report(path: Path) -> None:
    """Say now, and not after minutes, what would be in the way of the report."""
    try:
        reports.plotly_js()
    except reports.NeedsPlotly as error:
        raise SetupError(str(error)) from error
    parent = path.absolute().parent
    if path.is_dir() or not os.access(path if path.exists() else parent, os.W_OK):
        raise UsageError(f"--report {path}: that file cannot be written.", hint="Name one that can.")


def _play(out: Output, scenario: Scenario, tasks: Sequence[tuple[str, Task]], jobs: int) -> list[Any]:
    """What the tasks gave, in their order; shows which ended."""
    found: list[Any] = [None] * len(tasks)
    with (
        out.progress(f"simulating: {len(tasks)} runs") as change,
        closing(run_all(scenario, [task for _, task in tasks], jobs)) as ended,
    ):
        count = 0
        try:
            for index, result in ended:
                found[index] = result
                count += 1
                change(f"simulating: {count} of {len(tasks)} runs done, the last one {tasks[index][0]}")
        except KeyboardInterrupt:
            click.echo(f"headrace: interrupted after {count} of {len(tasks)} runs.", err=True)
            raise click.exceptions.Exit(INTERRUPTED) from None
    return found


def _compare(out: Output, scenario: Scenario, plan: Plan) -> None:
    # Only a report shows a timeline, of the first seed, and our policy's curve.
    step = (scenario.trace.end + scenario.tail_s) / TIMELINE_POINTS if plan.report else None
    curve = _curve(plan.ours) if plan.report and OURS in plan.policies else []
    tasks: list[tuple[str, Task]] = [("lower bound", partial(lower_bound, bin_s=plan.bound_bin))]
    for name in plan.policies:
        for seed in range(plan.seeds):
            task = partial(
                play, variant=plan.variant(name), seed=seed, timeline_step_s=step if seed == 0 else None
            )
            tasks.append((f"{name}, seed {seed}", task))
    for variant in curve:
        tasks.append((f"{OURS}, {text.options_text(variant)}", partial(play, variant=variant, seed=0)))
    bound, *results = _play(out, scenario, tasks, plan.jobs)
    bound_usd = _dollars(out, bound)
    runs = dict(zip(plan.policies, _of_each(results, plan), strict=False))
    found = {name: document(mine, bound_usd) for name, mine in runs.items()}
    about = [text.about_trace(scenario), text.about_nights(scenario)]
    about.append(text.about_bound(bound_usd, possible=bound.possible))
    if plan.report:
        report = reports.Report(
            title=f"headrace simulate: {scenario.trace.name}",
            trace=scenario.trace,
            facts=text.facts_of(scenario),
            played=[reports.Played(name, found[name], mine[0]) for name, mine in runs.items()],
            bound_usd=bound_usd,
            curve=[
                (text.options_text(variant), result)
                for variant, result in zip(curve, results[len(plan.policies) * plan.seeds :], strict=True)
            ],
            notes=about,
            columns=text.REPORT_COLUMNS,
        )
        _write(plan.report, reports.page(report))
        about.append(f"The report is {plan.report}.")
    out.answer(
        {"bound_usd": bound_usd, "policies": found},
        lambda: "\n".join([about[0], "", text.policies_text(found, unbeaten(found)), "", *about[1:]]),
    )


def _dollars(out: Output, bound: Bound) -> float | None:
    if bound.note:
        out.note(f"note: {bound.note}")
    return bound.usd if math.isfinite(bound.usd) else None


def _curve(ours: Mapping[str, Any]) -> list[Variant]:
    """Our own policy with its knob a little to both sides: whole runs, so not all that a sweep tries."""
    return [
        Variant(OURS, config={**ours, path: value, **BESIDE.get(path, {})})
        for path, values in KNOBS.items()
        for value in values[1:-1]
    ]


def _of_each(results: Sequence[Result], plan: Plan) -> list[Sequence[Result]]:
    """The results, so many as there are seeds at a time."""
    return [results[i : i + plan.seeds] for i in range(0, len(results), plan.seeds)]


def _write(path: Path, page: str) -> None:
    try:
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise SetupError(f"{path}: {error.strerror}.", hint="Name another file.") from error


def _sweep(out: Output, scenario: Scenario, plan: Plan) -> None:
    names = scenario.trace.names
    if len(names) > 1:
        raise UsageError(
            f"there are {len(names)} endpoints, and --sweep is about one.",
            hint=f"Say which, for example --endpoint {names[0]}.",
        )
    variants = [
        replace(one, config={**plan.ours, **one.config}) for one in settings(scenario, KNOBS, plan.tiers)
    ]
    tasks: list[tuple[str, Task]] = [("lower bound", partial(lower_bound, bin_s=plan.bound_bin))]
    for variant in variants:
        words = text.options_text(variant)
        tasks += [(words, partial(play, variant=variant, seed=seed)) for seed in range(plan.seeds)]
    bound, *results = _play(out, scenario, tasks, plan.jobs)
    bound_usd = _dollars(out, bound)
    days = counted_days(scenario)
    runs = _of_each(results, plan)
    points = [point_of(variant, mine, days) for variant, mine in zip(variants, runs, strict=True)]
    found = steps(points)
    out.answer(
        {
            "bound_usd_per_day": None if bound_usd is None else bound_usd / days,
            "days": days,
            "frontier": [{"p95_s": step.p95_s, **step.point.document} for step in found],
            "points": [point.document for point in points],
        },
        lambda: text.sweep_page(scenario, found, bound_usd, possible=bound.possible),
    )
