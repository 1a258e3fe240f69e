"""The lifecycle of a request, the same for sync calls and jobs: every state and every legal move."""

from __future__ import annotations

from typing import Literal

JobState = Literal["queued", "running", "succeeded", "failed", "cancelled", "timed_out"]
Phase = Literal[
    "admitted", "queued", "claimed", "sent", "answering", "answered", "failed", "cancelled", "timed_out"
]

PHASES: dict[Phase, tuple[Phase, ...]] = {
    "admitted": ("queued", "claimed", "failed", "cancelled", "timed_out"),
    "queued": ("claimed", "failed", "cancelled", "timed_out"),
    "claimed": ("sent", "queued", "failed", "cancelled", "timed_out"),
    "sent": ("answering", "answered", "queued", "failed", "cancelled", "timed_out"),
    "answering": ("answered", "queued", "failed", "cancelled", "timed_out"),
    "answered": (),
    "failed": (),
    "cancelled": (),
    "timed_out": (),
}
"""One request in one gateway. Back to ``queued`` is rescheduling: from ``answering`` only while nothing of
the answer has reached anybody (a refusal, a retried exception)."""

JOB_MOVES: dict[JobState, tuple[JobState, ...]] = {
    "queued": ("running", "failed", "cancelled", "timed_out"),
    "running": ("queued", "succeeded", "failed", "cancelled", "timed_out"),
    "succeeded": (),
    "failed": ("queued",),
    "cancelled": (),
    "timed_out": ("queued",),
}
"""A stored job. ``running`` -> ``queued``: its lease ended without a result; from ``failed`` and
``timed_out`` to ``queued`` only when somebody asks for a retry."""

FINAL: frozenset[JobState] = frozenset({"succeeded", "failed", "cancelled", "timed_out"})
RETRYABLE: frozenset[JobState] = frozenset({"failed", "timed_out"})

RUNPOD_WORDS: dict[JobState, str] = {
    "queued": "IN_QUEUE",
    "running": "IN_PROGRESS",
    "succeeded": "COMPLETED",
    "failed": "FAILED",
    "cancelled": "CANCELLED",
    "timed_out": "TIMED_OUT",
}
COG_WORDS: dict[JobState, str] = {
    "queued": "starting",
    "running": "processing",
    "succeeded": "succeeded",
    "failed": "failed",
    "cancelled": "canceled",
    "timed_out": "failed",
}


def may_move(before: JobState, after: JobState) -> bool:
    """Whether the move is legal."""
    return after in JOB_MOVES[before]
