"""The two Serve deployments: thin shells that run `Control` and `HostAgent` on the replica's loop.

Serve owns when they start, whether they live, and that there is one of each where it belongs; no request
ever goes through them. What they run is imported in the replica only, so that the driver stays small.
Secrets come from the data directory of the same machine, never from argv, environment or Serve's state.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import logging
import math
import os
import sys
import time
from typing import Any

import msgspec
import ray
from headrace_providers.offers import JoinInfo
from ray import serve

from headrace import wire
from headrace.cluster import ray_private
from headrace.cluster.logs import log_to_file
from headrace.cluster.ports import GENERIC, PROVIDER_LABEL
from headrace.cluster.ray_nodes import APP, HOST_DEPLOYMENTS, RayNodes, known_nodes
from headrace.cluster.sweep import TOKEN_FILE, sweep_node
from headrace.config import Settings
from headrace.datadir import read_admin_key, read_cluster_token
from headrace.errors import SetupError

log = logging.getLogger("headrace.cluster")

PORT_WAIT_S = 10.0
"""A replacement may start while its predecessor still holds the port."""
STOP_GRACE_S = 4.0
"""What instances get to finish at the end of a host that nobody drained before."""
CPU_LABEL = "headrace.cpu"
MEMORY_LABEL = "headrace.memory"
GPU_LABEL = "headrace.gpu."
PRICE_LABEL = "headrace.price"


class ControlReplica:
    """Runs control. Serve awaits ``__init__``; when that raises, the replica is started again."""

    async def __init__(self, settings: str, host: Any = None) -> None:  # type: ignore[misc]
        ray_private.close_replica_listener()
        from headrace.control.node_manager import Nodes  # noqa: PLC0415 - see the module
        from headrace.control.server import Control  # noqa: PLC0415

        self._settings = msgspec.json.decode(settings, type=Settings)
        log_to_file(self._settings, "control")
        self._nodes = RayNodes()
        self._control = await self._started(Control, Nodes)
        self._watch = asyncio.create_task(self._nodes.watch(), name="hosts on nodes")

    async def _started(self, make: Any, make_nodes: Any) -> Any:
        deadline = time.monotonic() + PORT_WAIT_S
        while True:
            manager = make_nodes(
                self._nodes,
                # Nodes are marked with it: the same for every start on this data directory.
                cluster_id=_sha256(self._settings.data_dir)[:12],
                join=lambda: join_info(self._settings, self._nodes.join_address()),
                state_dir=self._settings.data / "nodes",
                sweep=lambda node: sweep_node(self._settings.run, node),
            )
            control = make(
                self._settings,
                token=read_cluster_token(self._settings),
                admin_key_hash=_sha256(read_admin_key(self._settings)),
                nodes=manager,
            )
            try:
                await control.start()
            except OSError as error:
                with contextlib.suppress(Exception):
                    await control.stop()
                if error.errno != errno.EADDRINUSE or time.monotonic() > deadline:
                    raise
                await asyncio.sleep(0.1)
            else:
                log.info("control runs in pid %d", os.getpid())
                return control

    async def check_health(self) -> None:
        """Serve replaces this replica when it raises (or does not answer)."""
        if self._watch.done():
            raise SetupError("the watch over the cluster's nodes has ended.")
        healthy = getattr(self._control, "check_health", None)
        if healthy is not None:
            await healthy()

    async def pid(self) -> int:
        """For tests: which process to kill."""
        return os.getpid()

    async def __del__(self) -> None:
        """Serve awaits this at the orderly end of the replica."""
        if hasattr(self, "_watch"):
            self._watch.cancel()
            await self._control.stop()
            await self._nodes.close()


class HostReplica:
    """Runs the host of the node that Serve placed it on."""

    async def __init__(self, settings: str) -> None:  # type: ignore[misc]
        ray_private.close_replica_listener()
        from headrace.host.agent import HostAgent, HostConfig  # noqa: PLC0415 - see the module

        parsed = msgspec.json.decode(settings, type=Settings)
        node_id = ray.get_runtime_context().get_node_id()
        node = await asyncio.to_thread(lambda: next(n for n in known_nodes() if n.id == node_id))
        labels = node.labels
        local = node.head or labels.get(PROVIDER_LABEL, "local") == "local"
        log_to_file(parsed, f"host-{node.name}")
        config = HostConfig(
            settings=parsed,
            control_address=f"unix:{parsed.control_socket}"
            if local
            else f"tcp:{_head_address()}:{parsed.control_port}",
            token=read_cluster_token(parsed),
            node=node.name,
            resources=declared_resources(labels),
            provider=labels.get(PROVIDER_LABEL, "local"),
            region=labels.get("headrace.region", "local"),
            kind=node.kind,
            labels=labels,
            spot=labels.get("headrace.spot") == "true",
            price=declared_price(labels, parsed.host_price),
            hide=(ray_private.temp_dir(),),
        )
        self._agent = HostAgent(config)
        await self._agent.start()
        log.info("host of node %s runs in pid %d", node.name, os.getpid())

    async def check_health(self) -> None:
        """The host's loop answers: that is all; a lost link to control is no reason to end instances."""

    async def __del__(self) -> None:
        """Serve awaits this at the orderly end of the replica: instances end first."""
        if hasattr(self, "_agent"):
            await self._agent.stop(STOP_GRACE_S)


def application(settings: Settings) -> Any:
    """Control and the hosts of kind ``generic`` as one application: they start side by side."""
    encoded = msgspec.json.encode(settings).decode()
    common: dict[str, Any] = {
        "health_check_period_s": 1,
        "health_check_timeout_s": 10,
        "graceful_shutdown_wait_loop_s": 0.05,
        "graceful_shutdown_timeout_s": STOP_GRACE_S + 2,
        "max_ongoing_requests": 10,
    }
    deployment: Any = serve.deployment
    control = deployment(
        ControlReplica,
        name="Control",
        num_replicas=1,
        ray_actor_options={"num_cpus": 0, "resources": {"node:__internal_head__": 0.001}},
        **common,
    )
    # Nodes without the label are generic too, so no label selector can be said yet.
    host = deployment(
        HostReplica,
        name=HOST_DEPLOYMENTS[GENERIC],
        num_replicas=1,
        max_replicas_per_node=1,
        ray_actor_options={"num_cpus": 0},
        **common,
    )
    return control.bind(encoded, host.bind(encoded))


def join_info(settings: Settings, address: str) -> JoinInfo:
    """How a node on this machine joins: the token and the platform's life are files, never arguments."""
    return JoinInfo(
        address=address,
        token_path=str(settings.data / TOKEN_FILE),
        command=(sys.executable, "-m", "headrace.cluster.ray_join", "start"),
        alive_path=str(settings.data / "lock"),
    )


def declared_resources(labels: dict[str, str]) -> wire.Resources | None:
    """What the node's labels say that it has; None where they do not, and the host detects."""
    try:
        cpu, memory = float(labels[CPU_LABEL]), int(labels[MEMORY_LABEL])
        gpu = {k.removeprefix(GPU_LABEL): int(v) for k, v in labels.items() if k.startswith(GPU_LABEL)}
    except (KeyError, ValueError):
        return None
    return wire.Resources(cpu=cpu, memory=memory, gpu=gpu)


def declared_price(labels: dict[str, str], otherwise: float) -> float:
    """Dollars per hour of the node: what its label says, if that is a price, or else ``otherwise``."""
    try:
        price = float(labels.get(PRICE_LABEL, otherwise))
    except ValueError:
        return otherwise
    return price if math.isfinite(price) and price >= 0 else otherwise


def _head_address() -> str:
    return str(ray.get_runtime_context().gcs_address).rpartition(":")[0]


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


__all__ = ["APP", "ControlReplica", "HostReplica", "application", "declared_price", "declared_resources"]
