"""A stored call, as its submitter sees it."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError
from typing import TYPE_CHECKING, Any, Literal, overload
from urllib.parse import quote

import msgspec

from headrace.errors import (
    DeadlineExceeded,
    GatewayStopping,
    InstanceDied,
    RequestError,
    StoreUnavailable,
    from_problem,
)

if TYPE_CHECKING:
    from headrace.sdk.client import Client
    from headrace.sdk.transport import Reply

LONGEST_WAIT_S = 30.0
"""One long poll."""
POLL_MARGIN_S = 10.0
LAST_POLL_MARGIN_S = 1.0
"""Of the poll in which the time that was asked for ends."""
STREAM_TRIES = 5
"""A stream that breaks off is asked for again so often, without an item in between."""
BROKEN_PAUSE_S = 0.2
FINAL = ("succeeded", "failed", "cancelled", "timed_out")
JSON = "application/json"


class Job:
    """A job. ``id`` finds it again from anywhere: ``headrace.Client().job(id)``.

    ``state`` is ``queued``, ``running``, ``succeeded``, ``failed``, ``cancelled`` or ``timed_out``, as of the
    last look; ``document`` is all that the platform said then (attempts, timings, why it waits).
    """

    def __init__(self, client: Client, document: dict[str, Any]) -> None:
        self._client = client
        self.document = document

    def __repr__(self) -> str:
        return f"<Job {self.id} {self.state}>"

    @property
    def id(self) -> str:
        """Its id."""
        return str(self.document["id"])

    @property
    def state(self) -> str:
        """Its state as of the last look."""
        return str(self.document.get("state", "queued"))

    def refresh(self, wait: float = 0.0) -> str:
        """Look again, waiting at most ``wait`` seconds (30 at once) for its end; the state."""
        return self._look(min(wait, LONGEST_WAIT_S), POLL_MARGIN_S)

    def done(self) -> bool:
        """Whether it has ended, well or not."""
        return self.state in FINAL or self.refresh() in FINAL

    def result(self, timeout: float | None = None) -> Any:
        """Wait for the output: a JSON value or bytes; the items of a generator are a list.

        Raises what the job failed with (a `headrace.errors.RequestError`), ``DeadlineExceeded`` when it timed
        out, ``concurrent.futures.CancelledError``, or ``TimeoutError`` after ``timeout`` seconds. While the
        platform or its job store does not answer, this waits on.
        """
        until = math.inf if timeout is None else time.monotonic() + timeout
        away: RequestError | None = None
        while self.state not in FINAL:
            left = until - time.monotonic()
            if left <= 0:
                seen = f", as it was last seen: {away.message.rstrip('.')}" if away else ""
                raise TimeoutError(f"job {self.id} is still {self.state} after {timeout:g} s{seen}") from away
            wait = max(0.05, min(left, LONGEST_WAIT_S))
            try:
                self._look(wait, LAST_POLL_MARGIN_S if left <= LONGEST_WAIT_S else POLL_MARGIN_S)
                away = None
            except (StoreUnavailable, DeadlineExceeded) as error:
                away = error
                time.sleep(max(0.0, min(_pause(error), until - time.monotonic())))
        if self.state == "cancelled":
            raise CancelledError(f"job {self.id} was cancelled")
        if self.state == "succeeded":
            return self._output()
        problem = self.document.get("error")
        if problem:
            raise from_problem(int(problem.get("status", 500)), problem)
        if self.state == "timed_out":
            raise DeadlineExceeded(f"job {self.id} timed out.")
        raise RequestError(f"job {self.id} failed: {self.document.get('reason') or 'no reason is known'}.")

    @overload
    def stream(self, *, attempts: Literal[False] = False) -> Iterator[Any]: ...

    @overload
    def stream(self, *, attempts: Literal[True]) -> Iterator[tuple[int, Any]]: ...

    def stream(self, *, attempts: bool = False) -> Iterator[Any]:
        """The items of a generator's job as they come. After a new attempt they come again from the first.

        ``attempts=True``: as ``(attempt, item)``. When ``attempt`` is not that of the item before, the ones
        so far are void. When the gateway that gives them stops or dies, another one goes on behind the last.
        While the job store does not answer, this waits on, for as long as the client's timeout.
        """
        after, broken, away = "", 0, math.inf
        while True:
            try:
                reply = self._ask("GET", f"/stream?format=ndjson{after}", timeout=self._client.timeout)
                for line in reply.lines():
                    found = msgspec.json.decode(line)
                    if "end" in found:
                        self.document |= {"state": found["end"]["state"], "error": found["end"]["error"]}
                        return
                    if "item" not in found:
                        problem = found.get("error") or {}
                        raise from_problem(int(problem.get("status", 500)), problem)
                    after, broken, away = f"&after={found['attempt']}.{found['seq']}", 0, math.inf
                    yield (found["attempt"], found["item"]) if attempts else found["item"]
            except StoreUnavailable as error:
                away = min(away, time.monotonic())
                if time.monotonic() - away >= self._client.timeout:
                    raise
                time.sleep(_pause(error))
            except (GatewayStopping, InstanceDied):
                broken += 1
                if broken > STREAM_TRIES:
                    raise
                time.sleep(BROKEN_PAUSE_S * broken)
            else:
                return

    def cancel(self) -> bool:
        """Stop it, wherever it is; False when it has ended already."""
        ended = self.state in FINAL
        self.document = self._ask("POST", "/cancel").json()
        return not ended and self.state == "cancelled"

    def retry(self) -> None:
        """Run a failed or timed-out job again, under its id. Raises ``Conflict`` for others."""
        self.document = self._ask("POST", "/retry").json()

    def _look(self, wait: float, margin: float) -> str:
        reply = self._ask("GET", f"?wait={wait:g}" if wait > 0 else "", timeout=wait + margin)
        self.document = reply.json()
        return self.state

    def _output(self) -> Any:
        if self.document.get("output") is not None:
            return self.document["output"]
        reply = self._ask("GET", "/output", timeout=self._client.timeout)
        if reply.content_type == JSON or reply.content_type.endswith("+json"):
            return msgspec.json.decode(reply.body) if reply.body else None
        return reply.body

    def _ask(self, method: str, path: str, timeout: float = 30.0) -> Reply:
        target = f"/api/v1/jobs/{quote(self.id, safe='')}{path}"
        reply = self._client.request(method, target, timeout=timeout)
        reply.raise_for_problem()
        return reply


def _pause(error: RequestError) -> float:
    """Seconds until it is worth while to ask again."""
    return max(BROKEN_PAUSE_S, float(error.extra.get("retry_after", 0.0)))
