"""The gateway's link to control: opened again for ever, and never needed to serve what is routable."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable

from headrace import link, wire
from headrace.errors import ControlAway, LinkError

log = logging.getLogger("headrace.gateway")

FIRST_DELAY_S = 0.05
MAX_DELAY_S = 1.0
WAIT_FOR_LINK_S = 5.0
BULK_BYTES = 1 << 20


class ControlLink:
    """``on_message`` gets what control says, and gives the reply if it asked; ``on_up``: a link is new."""

    def __init__(
        self,
        address: str,
        *,
        token: str,
        id: str,
        min_epoch: Callable[[], int],
        on_message: Callable[[wire.AnyMessage], wire.AnyMessage | None],
        on_up: Callable[[], None],
    ) -> None:
        self._address = address
        self._token = token
        self._id = id
        self._min_epoch = min_epoch
        self._on_message = on_message
        self._on_up = on_up
        self._link: link.Link | None = None
        self._task: asyncio.Task[None] | None = None
        self._up = asyncio.Event()
        self._bulk = asyncio.Lock()
        self.why = "has not answered yet"
        self.links = 0
        """How many there were, this one included."""

    @property
    def is_up(self) -> bool:
        """Whether control can be told anything now."""
        return self._link is not None and self._link.is_open

    @property
    def epoch(self) -> int:
        """Of the leader at the other end; -1: there is none."""
        return self._link.peer_epoch if self._link is not None else -1

    def start(self) -> None:
        """Begin to connect."""
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def stop(self) -> None:
        """Close, and connect no more."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self._link is not None:
            self._link.close("the gateway stops")
            self._link = None

    def send(self, msg: wire.AnyMessage) -> bool:
        """Send now or never: what matters is said again when the link is back."""
        if self._link is None or not self._link.is_open:
            return False
        try:
            self._link.send(msg)
        except LinkError:
            return False
        return True

    async def call(self, msg: wire.ApiCall, timeout_s: float) -> wire.AnyMessage:
        """Ask control; waits a moment for a link that is away. Raises `ControlAway` or ``TimeoutError``."""
        if not self.is_up:
            try:
                async with asyncio.timeout(WAIT_FOR_LINK_S):
                    await self._up.wait()
            except TimeoutError:
                raise ControlAway(
                    f"no link to control: {self.why}.", hint="Try again in a few seconds.", retry_after=2
                ) from None
        current = self._link
        if current is None:
            raise ControlAway("the link to control has just ended.", hint="Try again.", retry_after=1)
        try:
            if len(msg.body) > BULK_BYTES:
                # One at a time: a link holds only so many unwritten bytes before it is taken for stuck.
                async with self._bulk:
                    return await current.call(msg, timeout_s)
            return await current.call(msg, timeout_s)
        except LinkError as error:
            raise ControlAway(
                f"control went away while it worked on this: {error.message}", hint="Try again."
            ) from error

    async def _run(self) -> None:
        delay = FIRST_DELAY_S
        while True:
            try:
                current = await link.connect(self._address, role="gateway", id=self._id, token=self._token)
            except (OSError, LinkError) as error:
                self.why = str(error)
            else:
                if current.peer_epoch >= self._min_epoch():
                    delay = FIRST_DELAY_S
                    await self._serve(current)
                else:
                    self.why = f"it is an old leader (epoch {current.peer_epoch})"
                    current.close(self.why)
            await asyncio.sleep(delay * random.uniform(0.5, 1.0))  # noqa: S311 - jitter
            delay = min(MAX_DELAY_S, delay * 2)

    async def _serve(self, current: link.Link) -> None:
        self._link = current
        self.links += 1
        current.start(self._handle)
        self._up.set()
        self._on_up()
        try:
            self.why = await asyncio.shield(current.closed)
        finally:
            self._up.clear()
            self._link = None
            current.close("the gateway stops")
        log.warning("the link to control ended: %s", self.why)

    def _handle(self, _: link.Link, msg: wire.AnyMessage) -> wire.AnyMessage | None:
        return self._on_message(msg)
