"""Asks the autoscaler about one lane; when it fails there, what was remembered of the lane is given up.

A memory can be at fault (another version, or a person, wrote it), and would be at each look from then on.
"""

from __future__ import annotations

import logging
import math

from headrace_autoscaler.policy import decide
from headrace_autoscaler.spec import (
    Config,
    Decision,
    EndpointState,
    Observation,
    Record,
    State,
    Wait,
)

log = logging.getLogger("headrace.control")
SAID_AGAIN_S = 600.0
"""Of one lane nothing is said again for so long."""
UNDECIDED = " "
"""Ends the name under which it is noted that an empty memory did not help: lanes have no spaces."""
FAILED = "the autoscaler cannot decide for it: see control's log"


class Deciding:
    """Of all lanes."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._said: dict[str, float] = {}
        """When it was last said that a lane failed."""

    def ask(
        self, now: float, observation: Observation, lane: str, memory: EndpointState
    ) -> tuple[Record, bool]:
        """(what was asked and decided, whether it can be decided again).

        What fails is asked once more with an empty memory; if that fails too, the lane waits.
        """
        try:
            return self._record(now, observation, lane, memory), True
        except Exception:
            self._say(
                now, lane, "what was learnt of it is forgotten, and it goes on. Nothing has to be done, but"
            )
        try:
            return self._record(now, observation, lane, EndpointState()), True
        except Exception:
            self._say(
                now,
                lane + UNDECIDED,
                "nothing is started or released there until it can. Deploy it with other scaling options, go"
                " back to the version before, or",
            )
        state = State(endpoints={lane: EndpointState()})
        decision = Decision(actions=(Wait(endpoint=lane, wanted=0, reason=FAILED),), state=state)
        return Record(
            now=now, observation=observation, state=state, config=self._config, decision=decision
        ), False

    def _record(self, now: float, observation: Observation, lane: str, memory: EndpointState) -> Record:
        before = State(endpoints={lane: memory})
        decision = decide(now, observation, before, self._config)
        return Record(now=now, observation=observation, state=before, config=self._config, decision=decision)

    def _say(self, now: float, lane: str, outcome: str) -> None:
        if now - self._said.get(lane, -math.inf) < SAID_AGAIN_S:
            return
        self._said = {name: at for name, at in self._said.items() if now - at < SAID_AGAIN_S}
        self._said[lane] = now
        log.exception(
            "the autoscaler failed for %s: %s report this, with the lines below and history/decisions.jsonl.",
            lane.removesuffix(UNDECIDED),
            outcome,
        )
