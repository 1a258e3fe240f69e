"""What a client gets of an instance's answer: its head, its timings, and the end of a broken stream."""

from __future__ import annotations

import contextlib
import time
from typing import Literal

import msgspec

from headrace import wire
from headrace.errors import InstanceDied, InstanceKilled, RequestError
from headrace.gateway.head import Answer
from headrace.gateway.respond import problem_body, status_line

MAX_TIMING_MS = 1e9
HOST_LOST = "its instance's host or process died"
"""What is said of a death of which control gives no reason."""


def answer_head(
    status: int, answer: Answer, framing: bytes, *, request_id: str, timing: bytes, attempt: int, close: bool
) -> bytes:
    """The head for the client; ``framing`` and ``timing`` are header lines."""
    return b"%b%b%bX-Headrace-Request-Id: %b\r\n%b%b%b\r\n" % (
        status_line(status),
        answer.forward,
        framing,
        request_id.encode(),
        timing,
        b"X-Headrace-Attempt: %d\r\n" % attempt if attempt > 1 else b"",
        b"Connection: close\r\n" if close else b"",
    )


def length_line(status: int, answer: Answer, head_request: bool) -> bytes:
    """The ``Content-Length`` line of an answer whose body is known."""
    if status == 204:
        return b""
    if answer.content_length >= 0:
        return b"Content-Length: %d\r\n" % answer.content_length
    return b"" if status == 304 or head_request else b"Content-Length: 0\r\n"


def server_timing(
    started: float, sent: float, handler: bytes, waited_for: wire.InstanceRoute | None, lost_s: float = 0.0
) -> bytes:
    """The ``Server-Timing`` line, durations in ms; ``started`` and ``sent`` are monotonic seconds.

    ``lost_s`` went into attempts that came to nothing.
    ``waited_for`` is the instance whose start the request waited for, or None.
    """
    line = b"Server-Timing: queue;dur=%.2f" % ((sent - started - lost_s) * 1e3)
    if lost_s:
        line += b", lost;dur=%.2f" % (lost_s * 1e3)
    if waited_for is not None:
        t = waited_for.timings
        line += b', tier;desc="%b", claim;dur=%.2f, boot;dur=%.2f, import;dur=%.2f, load;dur=%.2f' % (
            waited_for.tier.encode(),
            t.claim_s * 1e3,
            t.boot_s * 1e3,
            t.import_s * 1e3,
            t.load_s * 1e3,
        )
    if handler:
        with contextlib.suppress(ValueError):
            line += b", handler;dur=%.2f" % min(float(handler), MAX_TIMING_MS)
    return line + b", total;dur=%.2f\r\n" % ((time.monotonic() - started) * 1e3)


def error_tail(media: bytes, error: RequestError, request_id: str, last_byte: bytes) -> bytes:
    """The last event or line of a stream that broke; empty for streams that have no such thing."""
    if media.startswith(b"text/event-stream"):
        tail = b"event: error\ndata: %b\n\n" % problem_body(error, request_id)
    elif media.startswith(b"application/x-ndjson"):
        tail = msgspec.json.encode({"error": error.to_problem(request_id)}) + b"\n"
    else:
        return b""
    return tail if last_byte == b"\n" else b"\n\n" + tail


Fate = Literal["began", "once", "retries", "budget", "killed"]
"""Why a request whose instance is lost is not sent to another: its answer had begun, it may run only once,
it has been sent often enough, too many of its endpoint are being sent again, or it has killed alone."""


def lost_error(
    detail: str, why: Fate, attempts: int = 1, deaths: int | None = None, *, name: str
) -> RequestError:
    """What the client of endpoint ``name`` is told then; ``detail``: why the instance died, or what was seen.

    ``deaths``: so many of the ``attempts`` ended with the death of an instance; None: all of them.
    """
    logs = f"`headrace logs {name}` shows what was printed."
    lost = "its instance, or the connection to it, was lost" if deaths == 0 else "the instance died"
    if why == "began":
        return InstanceDied(f"the answer broke off in the middle: {detail}.")
    if why == "once":
        return InstanceDied(
            f"{lost} at work on it ({detail}), and the endpoint is not idempotent.",
            hint="It may have run: check before you send it again.",
        )
    if why == "budget":
        return InstanceDied(
            f"{lost} at work on it ({detail}), and too many requests of this endpoint are "
            "being sent again already.",
            hint=f"`headrace logs {name}` shows why its instances die.",
            retry_after=1,
        )
    if why == "killed":
        return InstanceKilled(
            f"{deaths} instances died while they worked on this request, the last one while it ran there "
            f"alone: {detail}.",
            hint=logs,
        )
    if attempts == 1:
        message = f"{lost} while it worked on the request: {detail}."
    elif deaths is not None and deaths < attempts:
        message = (
            f"it was sent {attempts} times, and its instance or the connection was lost each time; the last: "
            f"{detail}."
        )
    else:
        message = f"{attempts} instances died while they worked on the request; the last: {detail}."
    return InstanceDied(message, hint=logs)
