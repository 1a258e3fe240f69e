"""The Ray-free platform: control, one host and one gateway on one event loop, over their real sockets."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Coroutine
from types import TracebackType
from typing import Any

import msgspec

from headrace import wire
from headrace.cluster.http import ApiClient
from headrace.cluster.processes import allow_many_files
from headrace.config import Settings
from headrace.control.server import Control
from headrace.datadir import DataDir, open_data_dir
from headrace.errors import HeadraceError, NotRunning, RequestError, SetupError
from headrace.gateway.server import Gateway
from headrace.host.agent import HostAgent, HostConfig

log = logging.getLogger("headrace.cluster")

NODE = "local"
READY_TIMEOUT_S = 20.0
POLL_S = 0.01
STOP_GRACE_S = 2.0
STOP_TIMEOUT_S = 30.0


class LocalCluster:
    """``async with LocalCluster(settings) as cluster:`` runs a platform; it is ready inside, gone after.

    ``settings.port=0`` takes any free port. The ``restart_...`` methods are for tests: they lose a part
    as a crash would (connections cut without a goodbye, nothing drained) and start it again.
    """

    def __init__(self, settings: Settings, *, resources: wire.Resources | None = None) -> None:
        self.settings = settings
        self._resources = resources
        self.data: DataDir
        self.control: Control
        self.host: HostAgent
        self.gateway: Gateway
        self.ready_s = 0.0
        """How long the start took, seconds."""

    @property
    def url(self) -> str:
        """Where clients connect."""
        host = "127.0.0.1" if self.settings.host in ("0.0.0.0", "::") else self.settings.host  # noqa: S104
        return f"http://{f'[{host}]' if ':' in host else host}:{self.gateway.port}"

    @property
    def admin_key(self) -> str:
        """The key that may do everything."""
        return self.data.admin_key

    @property
    def api(self) -> ApiClient:
        """The management API as the admin sees it."""
        return ApiClient(self.url, "" if self.settings.keyless else self.admin_key)

    async def start(self) -> None:
        """Start all parts beside each other and return when requests can be answered.

        Raises `SetupError`: `DataDirError`, `PortInUse`, or what keeps a part from starting.
        """
        began = time.perf_counter()
        allow_many_files()
        self.data = open_data_dir(self.settings)
        try:
            self.control = self._new_control()
            self.host = self._new_host()
            self.gateway = self._new_gateway()
            await _all(self.control.start(), self.host.start(), self.gateway.start())
            await self.wait_ready()
        except BaseException:
            await self.stop(0)
            raise
        self.ready_s = time.perf_counter() - began

    async def stop(self, grace_s: float = STOP_GRACE_S) -> None:
        """Requests end, then instances, then control; nothing is left. Gives up on a part after 30 s."""
        try:
            if hasattr(self, "gateway"):
                await _stopped("gateway", self.gateway.stop(grace_s))
            if hasattr(self, "host"):
                await _stopped("host", self.host.stop(grace_s))
            if hasattr(self, "control"):
                await _stopped("control", self.control.stop())
        finally:
            self.data.close()

    async def wait_ready(self, timeout_s: float = READY_TIMEOUT_S) -> None:
        """Return when the gateway is ready and control knows the host. Raises `SetupError` when late."""
        try:
            async with asyncio.timeout(timeout_s):
                while not await self._is_ready():  # noqa: ASYNC110 - asked over HTTP, as clients do
                    await asyncio.sleep(POLL_S)
        except TimeoutError:
            raise SetupError(
                f"the platform was not ready within {timeout_s:g} s.", hint="Run `headrace doctor`."
            ) from None

    async def _is_ready(self) -> bool:
        if not self.host.link.connected:
            return False
        try:
            await self.api.get("/readyz")
            hosts = await self.api.get("/api/v1/hosts")
        except (NotRunning, RequestError):
            return False
        return any(h["id"] == self.host.host and h["state"] == "ready" for h in hosts["items"])

    # -- losing parts ---------------------------------------------------------------------

    async def restart_control(self) -> None:
        """Control is lost as by SIGKILL, and another one starts on its store."""
        await self.control.abandon()
        self.control = self._new_control()
        await self.control.start()

    async def restart_host(self) -> None:
        """The host is lost with all its instances, and a new incarnation starts."""
        await self.host.abandon()
        self.host = self._new_host()
        await self.host.start()

    async def restart_gateway(self) -> None:
        """The gateway is lost with its connections, and another one starts on its port."""
        port = self.gateway.port
        await self.gateway.stop(0)
        self.settings = msgspec.structs.replace(self.settings, port=port)
        self.gateway = self._new_gateway()
        await self.gateway.start()

    def _new_control(self) -> Control:
        return Control(
            self.settings, token=self.data.cluster_token, admin_key_hash=self.data.admin_key_hash, nodes=None
        )

    def _new_host(self) -> HostAgent:
        return HostAgent(
            HostConfig(
                settings=self.settings,
                control_address=self._control_address,
                token=self.data.cluster_token,
                node=NODE,
                resources=self._resources,
                price=self.settings.host_price,
            )
        )

    def _new_gateway(self) -> Gateway:
        return Gateway(self.settings, token=self.data.cluster_token, control_address=self._control_address)

    @property
    def _control_address(self) -> str:
        return f"unix:{self.settings.control_socket}"

    async def __aenter__(self) -> LocalCluster:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()


async def _stopped(name: str, stop: Coroutine[Any, Any, Any]) -> None:
    """One part that does not stop well must not keep the others from stopping."""
    try:
        async with asyncio.timeout(STOP_TIMEOUT_S):
            await stop
    except Exception:
        log.exception("%s did not stop well", name)


async def _all(*parts: Coroutine[Any, Any, Any]) -> None:
    """Run them beside each other, each to its end (a start cut short would leave more to clean up).

    Raises one of ours when there is one, else the first failure.
    """
    results = await asyncio.gather(*parts, return_exceptions=True)
    failures = [result for result in results if isinstance(result, BaseException)]
    for error in [*(f for f in failures if isinstance(f, HeadraceError)), *failures]:
        raise error
