"""What the answers of an instance's probes mean: a state and its moves, as Kubernetes has them. Pure.

An instance *starts* until its startup probe has passed once; then its readiness and its liveness are
asked, each on its own. A failure in between sets the count of passes back, and a pass that of failures.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from headrace import wire

Role = Literal["startup", "readiness", "liveness"]
Move = Literal["none", "started", "ready", "unready", "failed", "dead"]
"""``started``: the others are asked now; ``failed``: the start has; ``dead``: to be ended."""
ROLES: tuple[Role, ...] = ("startup", "readiness", "liveness")
MAX_DETAIL = 300
"""Characters kept of what a probe says."""


@dataclass(frozen=True)
class Answer:
    """What one asking gave. ``silent``: nothing within the time-out."""

    ok: bool
    detail: str = ""
    silent: bool = False


@dataclass(frozen=True)
class Tally:
    """One probe's answers in a row. ``failures`` and ``passes`` are never both above 0."""

    failures: int = 0
    passes: int = 0
    silent_since: float | None = None


@dataclass(frozen=True)
class Health:
    """All that is remembered of an instance's probes. ``began``: when asking began, monotonic."""

    began: float
    started: bool
    ready: bool
    over: bool = False
    """It failed to start, or is dead: nothing moves any more."""
    tallies: Mapping[Role, Tally] = field(default_factory=dict)


def begin(probes: wire.Probes, now: float) -> Health:
    """Before the first answer. Who has a readiness probe takes nothing before that has passed."""
    return Health(began=now, started=probes.startup is None, ready=probes.readiness is None)


def asks_health(probes: wire.Probes) -> bool:
    """Whether a start ends only when ``health()`` has passed as often as a probe wants."""
    return any(probe is not None and probe.kind == "health" for probe in (probes.startup, probes.readiness))


def asked(probes: wire.Probes, health: Health) -> tuple[Role, ...]:
    """What is to be asked in this state."""
    if health.over:
        return ()
    if not health.started:
        return ("startup",)
    return tuple(role for role in ROLES[1:] if getattr(probes, role) is not None)


def wait_s(probe: wire.Probe, first: bool, dice: float) -> float:
    """Seconds until it is asked (again); ``dice`` in 0..1. Only what repeats is spread."""
    return probe.initial_delay_s if first else probe.period_s * (1 + probe.jitter * (2 * dice - 1))


def counts(probe: wire.Probe, answer: Answer, tally: Tally, now: float, *, idle: bool, most_s: float) -> bool:
    """Whether a failure is one.

    A handler may hold the loop or the GIL for long, and that is work, not illness: of a lenient probe
    silence counts only against an instance that is known to be idle, or is silent for longer than ``most_s``,
    which no request may take.
    """
    if not (answer.silent and probe.lenient):
        return True
    return idle or (tally.silent_since is not None and now - tally.silent_since > most_s)


def answered(
    probes: wire.Probes,
    health: Health,
    role: Role,
    answer: Answer,
    now: float,
    *,
    idle: bool = False,
    most_s: float = float("inf"),
) -> tuple[Health, Move]:
    """The state after an answer, and what has changed by it.

    What was asked before the state changed and is answered now changes nothing.
    """
    probe: wire.Probe | None = getattr(probes, role)
    if probe is None or role not in asked(probes, health):
        return health, "none"
    before = health.tallies.get(role, Tally())
    if answer.ok:
        tally = Tally(passes=before.passes + 1)
    else:
        since = (before.silent_since if before.silent_since is not None else now) if answer.silent else None
        silent = replace(before, silent_since=since)
        if counts(probe, answer, silent, now, idle=idle, most_s=most_s):
            tally = Tally(failures=before.failures + 1, silent_since=since)
        else:
            tally = silent
    health = replace(health, tallies={**health.tallies, role: tally})
    passed, failed = tally.passes >= probe.success_threshold, tally.failures >= probe.failure_threshold
    return _moved(health, role, passed=passed, failed=failed)


def _moved(health: Health, role: Role, *, passed: bool, failed: bool) -> tuple[Health, Move]:
    move: Move = "none"
    if role == "startup" and passed:
        health, move = replace(health, started=True), "started"
    elif role == "startup" and failed:
        health, move = replace(health, over=True), "failed"
    elif role == "readiness" and passed and not health.ready:
        health, move = replace(health, ready=True), "ready"
    elif role == "readiness" and failed and health.ready:
        health, move = replace(health, ready=False), "unready"
    elif role == "liveness" and failed:
        health, move = replace(health, over=True), "dead"
    return health, move


def plain(detail: str) -> str:
    """What a probe says, as one bounded line."""
    text = " ".join(detail.split())
    return text if len(text) <= MAX_DETAIL else text[: MAX_DETAIL - 1] + "…"


def name_of(probe: wire.Probe) -> str:
    """What is asked, for people."""
    if probe.kind == "http":
        return f"GET {probe.path}"
    if probe.kind == "exec":
        return plain(" ".join(probe.argv))[:60]
    return "health()" if probe.kind == "health" else "a connection"
