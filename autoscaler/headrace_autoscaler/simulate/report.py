"""One HTML file about simulated runs: plots that need no network, and a table of the figures.

The plots are drawn by plotly.js, which the package ``plotly`` brings (extra ``simulate``) and which is
copied into the file. The page forbids the browser to load anything else.
"""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from string import Template
from typing import Any

import numpy as np

from headrace_autoscaler.simulate.generators import HOUR_S
from headrace_autoscaler.simulate.report_page import PAGE
from headrace_autoscaler.simulate.scenario import Result, Trace
from headrace_autoscaler.simulate.stats import share_within
from headrace_autoscaler.simulate.summary import half_width, offered

MAX_POINTS = 1200
"""Of a series over time."""
CDF_POINTS = 240
LEAST_WAIT_S = 0.01
"""Where the axis of waits begins; who waited less is drawn there."""
MISSED = (1.0, 0.5, 0.2, 0.1, 0.05, 0.02, 0.01, 0.005, 0.002, 0.001, 1e-4, 1e-5)
LEAST_MISSED = 1e-5
SOON_S = 10.0
"""The chart of cost against waiting shows who waited at most so long."""
DIGITS = 5
"""Significant digits of what is plotted."""
COLOURS = (
    "#1f77b4", "#d62728", "#2ca02c", "#ff7f0e", "#9467bd", "#8c564b", "#e377c2", "#7f7f7f", "#bcbd22",
    "#17becf", "#393b79", "#637939", "#843c39", "#7b4173", "#5254a3",
)  # fmt: skip
USES = (("busy", 1.0), ("idle", 0.55), ("starting", 0.25))
"""What instances do, and how strong their colour is then."""
TIERS = {"warm": "warm sandbox", "cached": "cached image and weights", "boot": "booted node"}
COSTS = ("busy", "idle", "starting", "sunk", "preempted")


class NeedsPlotly(RuntimeError):
    """The package ``plotly`` is not there; the message says what to install."""


@dataclass(frozen=True)
class Played:
    """One policy in the report: its figures over all seeds, and its first seed's run with a timeline."""

    name: str
    figures: Mapping[str, Any]
    """As `summary.document` has them."""
    result: Result


@dataclass(frozen=True)
class Report:
    """Everything that the page shows."""

    title: str
    trace: Trace
    facts: Sequence[tuple[str, str]]
    """(name, value) lines about what was simulated."""
    played: Sequence[Played]
    bound_usd: float | None
    curve: Sequence[tuple[str, Result]] = ()
    """(setting, what it did) of our policy over its knob."""
    curve_name: str = "headrace"
    notes: Sequence[str] = ()
    columns: Sequence[tuple[str, str]] = field(default_factory=tuple)
    """(key of the figures, heading) of the table."""


def plotly_js() -> str:
    """The library's text. Raises `NeedsPlotly`."""
    try:
        from plotly.offline import get_plotlyjs  # noqa: PLC0415 - an extra that only reports need
    except ImportError as error:
        raise NeedsPlotly("reports need plotly: pip install 'headrace[simulate]'") from error
    return str(get_plotlyjs())


def page(report: Report) -> str:
    """The whole file. Raises `NeedsPlotly`."""
    data = {
        "plots": [
            _demand(report.trace),
            _pareto(report),
            _costs(report),
            _waits(report),
        ],
        "policies": {p.name: _instances(p) for p in report.played},
    }
    # "</script>" within a string would end the script; JSON has no other way to write such a text.
    embedded = json.dumps(data, allow_nan=False, separators=(",", ":")).replace("</", "<\\/")
    return Template(PAGE).substitute(
        title=html.escape(report.title),
        facts="".join(f"<dt>{html.escape(a)}</dt><dd>{html.escape(b)}</dd>" for a, b in report.facts),
        notes="".join(f"<p>{html.escape(note)}</p>" for note in report.notes),
        table=_table(report),
        options="".join(f"<option>{html.escape(p.name)}</option>" for p in report.played),
        data=embedded,
        plotly=plotly_js(),
    )


def _numbers(values: Any) -> list[float | None]:
    """For JSON: few digits, and what is no number as null."""
    return [float(f"{v:.{DIGITS}g}") if np.isfinite(v) else None for v in np.asarray(values, dtype=float)]


def _plot(id: str, title: str, data: list[dict[str, Any]], x: str, y: str, **layout: Any) -> dict[str, Any]:
    axes: dict[str, Any] = {
        "xaxis": {"title": {"text": x}},
        "yaxis": {"title": {"text": y}, "rangemode": "tozero"},
    }
    for name, more in layout.items():
        axes[name] = {**axes.get(name, {}), **more} if isinstance(more, dict) else more
    return {"id": id, "data": data, "layout": {"title": {"text": title}, **axes}}


def _demand(trace: Trace) -> dict[str, Any]:
    edges = np.linspace(0.0, float(np.max(trace.arrivals + trace.durations, initial=1.0)), MAX_POINTS + 1)
    count = offered(trace, edges)
    line = {
        "x": _numbers((edges[1:] + edges[:-1]) / 2 / HOUR_S),
        "y": _numbers(count),
        "mode": "lines",
        "line": {"width": 1},
    }
    series = {**line, "type": "scatter", "name": "demand", "fill": "tozeroy"}
    return _plot("demand", "Demand: requests at once if none waited", [series], "hours", "requests")


def _instances(played: Played) -> dict[str, Any]:
    """Plots over time: instances by use and supply, by tier of their start, what they have cost so far."""
    timeline = played.result.timeline
    at = np.asarray(timeline.get("t", np.zeros(0)))
    pick = _thin(len(at))
    hours = _numbers(at[pick] / HOUR_S)
    supplies = list(dict.fromkeys(key.split(":", 1)[1] for key in timeline if key.startswith("busy:")))
    counts: list[dict[str, Any]] = []
    dollars: list[dict[str, Any]] = []
    for number, supply in enumerate(supplies):
        colour = COLOURS[number % len(COLOURS)]
        for use, strength in USES:
            values = timeline.get(f"{use}:{supply}")
            if values is None or not np.any(values):
                continue
            area = {"fillcolor": _faded(colour, strength), "line": {"width": 0, "shape": "hv"}}
            counts.append(_line(f"{supply}: {use}", hours, values[pick], stackgroup="one", **area))
        if (spent := timeline.get(f"dollars:{supply}")) is not None:
            dollars.append(_line(supply, hours, spent[pick], line={"color": colour}, stackgroup="one"))
    tiers = [key for key in timeline if key.startswith("tier:")]
    started = [
        _line(TIERS.get(key[5:], key[5:]), hours, timeline[key][pick], stackgroup="one") for key in tiers
    ]
    for name, style in (("demand", "#111111"), ("queued", "#d62728")):
        if (values := timeline.get(name)) is not None:
            counts.append(_line(name, hours, values[pick], line={"color": style, "width": 1}))
    return {
        "instances": _plot("instances", "Instances by provider and use", counts, "hours", "instances"),
        "tiers": _plot("tiers", "Instances by how they were started", started, "hours", "instances"),
        "spent": _plot("spent", "Spent so far, by provider", dollars, "hours", "dollars"),
    }


def _line(name: str, x: list[float | None], y: Any, **more: Any) -> dict[str, Any]:
    return {"type": "scatter", "mode": "lines", "name": name, "x": x, "y": _numbers(y), **more}


def _thin(count: int) -> Any:
    """Indices of at most `MAX_POINTS` of so many, evenly."""
    return np.unique(np.linspace(0, max(0, count - 1), min(count, MAX_POINTS)).astype(int))


def _faded(colour: str, strength: float) -> str:
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{strength})"


def _costs(report: Report) -> dict[str, Any]:
    names = [p.name for p in report.played]
    bars = [
        {
            "type": "bar",
            "orientation": "h",
            "name": use,
            "y": names,
            "x": _numbers([p.figures[f"{use}_usd"] for p in report.played]),
        }
        for use in COSTS
    ]
    layout: dict[str, Any] = {"barmode": "stack", "yaxis": {"autorange": "reversed", "automargin": True}}
    if report.bound_usd:
        layout |= {"shapes": [_upright(report.bound_usd)]}
    return _plot(
        "costs", "Cost by what the time was used for (dashed: lower bound)", bars, "dollars", "", **layout
    )


def _upright(x: float) -> dict[str, Any]:
    line = {"dash": "dash", "color": "#555555", "width": 1}
    return {"type": "line", "x0": x, "x1": x, "y0": 0, "y1": 1, "yref": "paper", "line": line}


def _waits(report: Report) -> dict[str, Any]:
    parts = np.linspace(0.0, 1.0, CDF_POINTS)
    # More points where it matters: among the slowest.
    parts = np.unique(np.concatenate((parts, 1 - np.geomspace(1e-4, 1e-1, CDF_POINTS // 2))))
    data = []
    for number, played in enumerate(report.played):
        waits = played.result.waits
        if not len(waits):
            continue
        x = np.maximum(np.quantile(waits, parts), LEAST_WAIT_S)
        line = {"color": COLOURS[number % len(COLOURS)], "shape": "hv"}
        data.append(_line(played.name, _numbers(x), parts * 100, line=line))
    layout = {"xaxis": {"type": "log"}}
    return _plot(
        "waits",
        "Waits (of requests that were served)",
        data,
        "waited at most, seconds",
        "requests, %",
        **layout,
    )


def _pareto(report: Report) -> dict[str, Any]:
    data: list[dict[str, Any]] = []
    for number, played in enumerate(report.played):
        f = played.figures
        data.append(
            {
                "type": "scatter",
                "mode": "markers+text",
                "name": played.name,
                "text": [played.name],
                "textposition": "top center",
                "x": _numbers([f["cost_usd"]]),
                "y": _missed([f["share_within_10s"] or 0.0]),
                "error_x": {"array": _numbers([half_width(f, "cost_usd")]), "thickness": 1},
                "marker": {"color": COLOURS[number % len(COLOURS)], "size": 9},
            }
        )
    if report.curve:
        points = [(r.cost.total, share_within(r, SOON_S), label) for label, r in report.curve]
        costs, shares, labels = zip(*sorted(points), strict=True)
        curve = {
            "type": "scatter",
            "mode": "lines+markers",
            "name": f"{report.curve_name}: other settings",
            "x": _numbers(costs),
            "y": _missed(shares),
            "text": list(labels),
            "line": {"color": COLOURS[0], "dash": "dot"},
            "marker": {"size": 5},
        }
        data.insert(0, curve)
    # The last percent is what matters: the axis is the logarithm of who waited longer, upside down.
    axis = {
        "type": "log",
        "autorange": "reversed",
        "tickvals": [100 * part for part in MISSED],
        "ticktext": [f"{100 * (1 - part):.6g} %" for part in MISSED],
        "rangemode": "normal",
    }
    layout: dict[str, Any] = {"yaxis": axis}
    if report.bound_usd:
        layout |= {"shapes": [_upright(report.bound_usd)]}
    title = "Cost against waiting: up and to the left is better (dashed: lower bound)"
    return _plot("pareto", title, data, "dollars", "requests that waited at most 10 s", **layout)


def _missed(shares: Sequence[float]) -> list[float | None]:
    """Percent that waited longer; none at all is drawn at the axis' end."""
    return _numbers([100 * max(1 - share, LEAST_MISSED) for share in shares])


def _table(report: Report) -> str:
    head = "".join(f"<th>{html.escape(words)}</th>" for _, words in report.columns)
    rows = []
    for played in report.played:
        cells = "".join(
            f"<td>{html.escape(_cell(key, played.figures.get(key)))}</td>" for key, _ in report.columns
        )
        rows.append(f"<tr><th>{html.escape(played.name)}</th>{cells}</tr>")
    return f"<table><thead><tr><th>policy</th>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _cell(key: str, value: Any) -> str:
    if value is None:
        return "-"
    if key.startswith("share_") or key in ("cold_share", "availability"):
        return f"{value * 100:.3f} %"
    return f"{value:,.{DIGITS - 1}g}" if isinstance(value, float) and abs(value) < 1000 else f"{value:,.0f}"
