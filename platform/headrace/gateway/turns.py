"""Waiting for a slot of an instance that other gateways keep full.

They fill the slots that their requests leave at once, so that whoever only tried again now and then would get
none for as long as the others have any request. A request that had to wait asks for a turn; the refusal of
such a one has its head at once, and its end when the instance keeps a slot for us (the engine's ``hr_door``).
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from headrace.gateway.dispatch import Dispatcher
    from headrace.gateway.endpoints import Instance
    from headrace.gateway.upstream import Upstream

TURN_LINE = b"X-Headrace-Turn: ask\r\n"
WAIT = b"wait"
"""``X-Headrace-Refused`` of a refusal whose end is our turn."""
ASK_AFTER_S = 0.02
"""Only requests that waited for a slot ask: the others would go elsewhere meanwhile."""
CONTENDED_S = 1.0
"""So long after it said "full" an instance is asked for turns."""
LONGEST_S = 10.0
"""An instance that promised a turn and says nothing for so long is asked anew."""


class Turn:
    """The `Receiver` of the rest of a refusal. Until its end only what refills our slots is sent there."""

    __slots__ = ("_dispatcher", "_instance", "_timer", "_up")
    head_request = False

    def __init__(self, dispatcher: Dispatcher, instance: Instance, up: Upstream) -> None:
        self._dispatcher = dispatcher
        self._instance = instance
        self._up = up
        self._timer = dispatcher.loop.call_later(LONGEST_S, self._overdue)
        up.receiver = self

    def stop(self) -> None:
        """No turn is wanted any more."""
        self._timer.cancel()
        self._instance.turn = None
        self._instance.full_until = 0.0
        self._up.close()

    def on_head(self, up: Upstream) -> None:
        """Not called: the head has come."""

    def on_body(self, data: bytes) -> None:
        """Says nothing."""

    def on_complete(self, up: Upstream, reusable: bool) -> None:
        """It is our turn: for a moment a slot is kept for what comes over this connection."""
        instance = self._instance
        if not reusable:
            self.on_lost(up, "")
            return
        self._timer.cancel()
        now = time.monotonic()
        instance.turn = None
        instance.full_until = 0.0
        instance.contended_until = now + CONTENDED_S
        up.idle_since = now
        # The next request there takes the last of them.
        instance.idle.append(up)
        self._dispatcher.fill(instance.state)
        if up in instance.idle:
            # Nobody wants it now: it is for others at once.
            instance.idle.remove(up)
            up.close()

    def on_lost(self, up: Upstream, detail: str) -> None:
        """Nothing was promised that could be lost."""
        self.stop()
        self._dispatcher.full(self._instance)

    def _overdue(self) -> None:
        self.on_lost(self._up, "")
