"""The host's connection to control: made again for ever, with backoff; its loss kills nothing."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable

from headrace import wire
from headrace.errors import LinkClosed, LinkError
from headrace.link import Handler, Link, connect

log = logging.getLogger("headrace.host")

FIRST_BACKOFF_S = 0.05
LAST_BACKOFF_S = 1.0


def next_backoff(current: float, dice: float) -> tuple[float, float]:
    """(wait now, backoff after that) for a backoff and ``dice`` in 0..1; half of the wait is jitter."""
    return current * (0.5 + dice / 2), min(current * 2, LAST_BACKOFF_S)


class ControlLink:
    """Connects to control until stopped.

    ``hello`` makes the first message after the handshake; ``handler`` gets what control sends.
    """

    def __init__(
        self, address: str, *, token: str, host: str, hello: Callable[[], wire.HostHello], handler: Handler
    ) -> None:
        self._address, self._token, self._host = address, token, host
        self._hello, self._handler = hello, handler
        self._link: Link | None = None
        self._connected = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.epoch = 0
        """The highest leader epoch seen: commands of an older one are refused."""

    def start(self) -> None:
        """Begin connecting; returns at once."""
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def stop(self) -> None:
        """Close the link after what was sent is written; connect no more."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
        if self._link is not None:
            self._link.close("the host stops")
            self._link = None
        self._connected.clear()

    @property
    def connected(self) -> bool:
        """Whether messages can be sent now."""
        return self._link is not None and self._link.is_open

    def send(self, msg: wire.AnyMessage) -> bool:
        """Send, or say False when there is no link: the next `HostHello` then tells the same."""
        if self._link is None or not self._link.is_open:
            return False
        try:
            self._link.send(msg)
        except LinkError:
            return False
        return True

    async def call(self, msg: wire.AnyMessage, *, timeout_s: float) -> wire.AnyMessage:
        """Ask control, waiting for a link if there is none. Raises `LinkClosed` or ``TimeoutError``."""
        async with asyncio.timeout(timeout_s):
            await self._connected.wait()
            link = self._link
            if link is None:
                raise LinkClosed("the link to control is closed.", hint="Try again.")
            return await link.call(msg, timeout_s)

    async def wait_connected(self, timeout_s: float) -> None:
        """Return when control has been told who we are. Raises ``TimeoutError``."""
        async with asyncio.timeout(timeout_s):
            await self._connected.wait()

    def accepts(self, epoch: int) -> bool:
        """Whether a command of this leader epoch is obeyed; remembers the newest."""
        if epoch < self.epoch:
            log.warning("refused a command of epoch %d: control is at %d now", epoch, self.epoch)
            return False
        self.epoch = epoch
        return True

    async def _run(self) -> None:
        backoff = FIRST_BACKOFF_S
        while True:
            try:
                link = await self._connect()
            except (OSError, LinkError, TimeoutError) as error:
                log.debug("no link to control at %s: %s", self._address, error)
            else:
                backoff = FIRST_BACKOFF_S
                reason = await asyncio.shield(link.closed)
                self._connected.clear()
                log.warning("link to control lost (%s); instances go on serving", reason)
            wait, backoff = next_backoff(backoff, random.random())  # noqa: S311 - jitter
            await asyncio.sleep(wait)

    async def _connect(self) -> Link:
        link = await connect(self._address, role="host", id=self._host, token=self._token)
        if link.peer_epoch < self.epoch:
            link.close("an old epoch")
            raise LinkClosed(f"control of the old epoch {link.peer_epoch} still answers.")
        self.epoch = link.peer_epoch
        link.send(self._hello())
        self._link = link
        link.start(self._handler)
        self._connected.set()
        return link
