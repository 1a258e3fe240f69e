"""What control needs from parts that are given to it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from headrace import wire

if TYPE_CHECKING:
    from headrace.control.server import Control


class NodeManager(Protocol):
    """Launches and terminates nodes through providers; answers for ``/nodes`` and ``/providers``.

    It keeps its intents and nodes in ``control.store`` and may call ``control.drain_host``.
    """

    async def start(self, control: Control) -> None:
        """Called when control's store is open and it listens."""
        ...

    async def stop(self) -> None:
        """Called before control closes its links and its store."""
        ...

    async def handle_api(self, call: wire.ApiCall) -> wire.ApiReply:
        """Answer a request below ``/nodes`` or ``/providers``. May raise an ``errors.RequestError``."""
        ...
