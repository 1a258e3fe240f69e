"""How a store ends a job by itself: problem documents and reasons, the same in every store."""

from __future__ import annotations

from typing import Any

from headrace.errors import DeadlineExceeded, RequestError
from headrace.jobs.state import JobState
from headrace.jobs.store import MAX_LOST


class JobLost(RequestError):
    """No attempt came to an end, and none is left."""

    status, type, title = 502, "job-lost", "The job was lost"


def may_try_again(counted: int, lost: int, max_attempts: int) -> bool:
    """Whether a job whose attempt has just ended without a result is queued again.

    ``counted`` attempts were the job's fault, ``lost`` ones were not; both since the submission or the last
    retry, and with the one that has just ended.
    """
    return counted < max_attempts and lost < MAX_LOST


def lost_problem(reason: str, counted: int, lost: int) -> tuple[dict[str, Any], str]:
    """(problem document, reason) of a job that has no attempt left."""
    what = f"{counted} attempts failed" if lost < MAX_LOST else f"{lost} attempts were lost"
    error = JobLost(
        f"{what}, the last one: {reason}",
        hint="Read the endpoint's log, then retry the job.",
        attempts=counted,
        lost=lost,
    )
    return error.to_problem(), f"No attempt left: {reason}"


def deadline_problem(state: JobState) -> tuple[dict[str, Any], str]:
    """(problem document, reason) of a job that was in ``state`` when its time to live ended."""
    where = "waiting in the queue" if state == "queued" else "running"
    error = DeadlineExceeded(
        f"the job was {where} when its time to live ended.",
        hint="Give it a longer ttl, or the endpoint room.",
    )
    return error.to_problem(), f"Its time to live ended while it was {where}."


ABANDONED = "Nobody waited for it any more."
"""The reason of a call whose last client hung up."""


def silent_worker(owner: str) -> str:
    """The reason of an attempt whose lease was not prolonged."""
    return f"Worker {owner} was not heard of in time."


def gone_worker(owner: str) -> str:
    """The reason of an attempt whose worker is known to be gone."""
    return f"Worker {owner} is gone."
