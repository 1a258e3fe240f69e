"""Reads a request's receipt from ``Server-Timing``: how long it was queued, claimed, forked, loaded."""

from __future__ import annotations

import re
from dataclasses import dataclass

_PART = re.compile(r'\s*([\w.!#$%&\'*+^`|~-]+)((?:\s*;\s*[\w-]+\s*=\s*(?:"[^"]*"|[^;,]*))*)\s*(?:,|$)')
_PARAMETER = re.compile(r';\s*([\w-]+)\s*=\s*(?:"([^"]*)"|([^;,]*))')
WORDS = {
    "queue": "queued",
    "claim": "claimed",
    "import": "imported",
    "load": "loaded",
    "handler": "handled",
    "total": "first byte",
}
TIERS = {
    "warm": "taken warm",
    "forked": "forked",
    "cached": "started, image local",
    "cold": "started, image built or pulled",
}


@dataclass(frozen=True)
class Step:
    """One step; ``ms`` is None where the step has no duration."""

    name: str
    ms: float | None
    detail: str = ""


def parse(header: str) -> list[Step]:
    """The steps of a ``Server-Timing`` header, in its order; what is not well-formed is left out."""
    steps: list[Step] = []
    for name, rest in _PART.findall(header):
        parameters = {key.lower(): quoted or plain for key, quoted, plain in _PARAMETER.findall(rest)}
        try:
            ms = float(parameters["dur"]) if "dur" in parameters else None
        except ValueError:
            ms = None
        steps.append(Step(name, ms, parameters.get("desc", "").strip()))
    return steps


def in_words(steps: list[Step]) -> list[Step]:
    """The gateway's short names as people read them; how the instance started (its tier) names that step."""
    tier = next((step.detail for step in steps if step.name == "tier"), "")
    words = {**WORDS, "boot": TIERS.get(tier, "started")}
    return [Step(words.get(s.name, s.name), s.ms, s.detail) for s in steps if s.name != "tier"]


def show(steps: list[Step]) -> str:
    """One line per step, durations aligned."""
    shown = in_words(steps)
    width = max((len(step.name) for step in shown), default=0)
    lines = []
    for step in shown:
        took = f"{step.ms:9.1f} ms" if step.ms is not None else " " * 12
        lines.append(f"  {step.name.ljust(width)}  {took}  {step.detail}".rstrip())
    return "\n".join(lines)
