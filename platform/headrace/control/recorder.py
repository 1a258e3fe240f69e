"""Which decisions are written to the history, and shown to people: each new one, and demand now and then."""

from __future__ import annotations

import re

import msgspec
from headrace_autoscaler.spec import Action, Record, Wait

from headrace.control.history import History
from headrace.control.model import Endpoint

DEMAND_EVERY_S = 15.0
"""While requests arrive the history has a line this often, also where nothing is done: simulations of an
endpoint's past are made from it."""
_NUMBER = re.compile(r"\d[\d.,]*")


class Recorder:
    """Of all endpoints."""

    def __init__(self, history: History) -> None:
        self._history = history

    def note(self, endpoint: Endpoint, lane: str, record: Record) -> None:
        """A decision was made for a lane of the endpoint."""
        actions = record.decision.actions
        shown = [_comparable(action) for action in actions]
        new = bool(shown) and shown != endpoint.last_actions.get(lane)
        if shown:
            endpoint.last_actions[lane] = shown
        else:
            endpoint.last_actions.pop(lane, None)
        for action in actions if new else ():
            endpoint.note(type(action).__name__.lower(), action.reason)
        if new or (lane == endpoint.key and self._demand_due(endpoint, record)):
            if lane == endpoint.key:
                endpoint.recorded = record.now, record.observation.endpoints[0].arrived
            self._history.record(record)

    def _demand_due(self, endpoint: Endpoint, record: Record) -> bool:
        at, arrived = endpoint.recorded
        now_arrived = record.observation.endpoints[0].arrived
        return now_arrived is not None and now_arrived != arrived and record.now - at >= DEMAND_EVERY_S


def _comparable(action: Action) -> object:
    """A waiting reason may count down: equal waits are told apart from others only by what they wait for."""
    if isinstance(action, Wait):
        words = _NUMBER.sub("#", action.reason.split(":")[0])
        return ("wait", action.endpoint, action.wanted, words)
    return msgspec.to_builtins(action)
