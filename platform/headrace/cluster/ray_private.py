"""Every call into private parts of Ray and Ray Serve, so that an upgrade is read against one file.

Written against Ray 2.60. What is private and why it is needed:
- ``Node``/``RayParams``: ``ray.init(address="local")`` starts a dashboard, an autoscaler monitor and a log
  monitor (6.2 s and 270 MB; without them 2.1 s), takes any port, and turns 127.0.0.1 into the machine's
  address, which opens all its listeners to the network.
- ``resolve_ip_for_localhost``: the same replacement for whoever connects.
- the replica's internal gRPC server: bound to all interfaces without a setting; nothing of ours calls it.
- ``update_deployment_replicas``: the number of hosts, without a redeploy.
- ``GcsClient``: draining nodes.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import ray
import ray._private.services
import ray._private.worker
from ray._private.node import Node
from ray._private.parameter import RayParams
from ray._private.resource_isolation_config import ResourceIsolationConfig
from ray.experimental import internal_kv

LOOPBACK = "127.0.0.1"
PREEMPTION = 2
"""``DrainNodeReason``: the node goes at the deadline, whatever still runs there."""
KV_NAMESPACE = b"headrace"
RPC_TIMEOUT_S = 3.0

# A local head has no slow links: a node that is gone is noticed after 3 s.
_HEALTH: dict[str, Any] = {
    "health_check_initial_delay_ms": 2000,
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 3000,
    "health_check_failure_threshold": 5,
}


class _QuietHead(Node):
    """A head without dashboard: its process costs a second of start and listens on all interfaces."""

    gcs: ClassVar[subprocess.Popen[bytes] | None] = None

    def start_api_server(self, *_: Any, **__: Any) -> None:
        return

    def start_gcs_server(self) -> None:
        super().start_gcs_server()  # type: ignore[no-untyped-call]
        _QuietHead.gcs = self.all_processes["gcs_server"][0].process


def keep_loopback() -> None:
    """In this process, take 127.0.0.1 for what it says."""
    ray._private.services.resolve_ip_for_localhost = lambda host: host


def start_head(*, temp_dir: Path, port: int, object_store: int, labels: Mapping[str, str]) -> Node:
    """Start GCS and raylet on loopback; they die with the calling *thread*. ``object_store`` in bytes."""
    keep_loopback()
    make: Any = RayParams  # its annotations are wrong for booleans
    params = make(
        node_ip_address=LOOPBACK,
        gcs_server_port=port,
        no_monitor=True,
        include_log_monitor=False,
        include_dashboard=False,
        temp_dir=str(temp_dir),
        object_store_memory=object_store,
        labels=dict(labels),
        _system_config=dict(_HEALTH),
        resource_isolation_config=ResourceIsolationConfig(enable_resource_isolation=False),
    )
    return _QuietHead(params, head=True, shutdown_at_exit=False, spawn_reaper=True)


def temp_dir() -> Path:
    """Where this node's Ray keeps its sockets: open to everybody, unless it lies in a closed directory."""
    node: Any = ray._private.worker._global_node
    return Path(node.get_session_dir_path()).parent


def head_is_dead() -> bool:
    """Whether the head's GCS has ended; its port may be taken. `start_head` notices after 30 s only."""
    return _QuietHead.gcs is not None and _QuietHead.gcs.poll() is not None


def ended_server(node: Node) -> str:
    """Which server of the head has ended and how, or "". Neither comes back by itself; Serve goes with it."""
    for name in ("gcs_server", "raylet"):
        for info in node.all_processes.get(name, ()):
            code = info.process.poll()
            if code is not None:
                how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
                return f"its {name} {how}"
    return ""


def end_head(node: Node) -> None:
    """End the processes of `start_head`; the raylet first tells its agents and workers."""
    node.kill_all_processes(check_alive=False, allow_graceful=True)


def close_replica_listener() -> None:
    """In a Serve replica, before it is initialised: its internal gRPC server listens on loopback."""
    from ray.serve._private import replica as module  # noqa: PLC0415 - 0.5 s that only replicas need

    replica: Any = module
    original = replica.add_port_to_grpc_server

    def on_loopback(server: Any, address: str) -> int:
        return int(original(server, address.replace("[::]:", f"{LOOPBACK}:")))

    if getattr(original, "__name__", "") != "on_loopback":
        replica.add_port_to_grpc_server = on_loopback


def deploy(app: Any, name: str) -> None:
    """Deploy and return at once; ``serve.run`` would look for the result once a second only."""
    from ray.serve.api import _run  # noqa: PLC0415 - 0.7 s: the driver imports it beside the start of the head

    _run(app, name=name, route_prefix=None, external_scaler_enabled=True, _blocking=False)


def serve_controller() -> Any:
    """Handle of the one Serve controller. Raises ``ValueError`` when there is none."""
    from ray.serve._private.constants import SERVE_CONTROLLER_NAME, SERVE_NAMESPACE  # noqa: PLC0415

    return ray.get_actor(SERVE_CONTROLLER_NAME, namespace=SERVE_NAMESPACE)


def set_replicas(controller: Any, app: str, deployment: str, count: int) -> Any:
    """Set the number of replicas; gives the reference to wait for."""
    from ray.serve._private.common import DeploymentID  # noqa: PLC0415

    return controller.update_deployment_replicas.remote(DeploymentID(name=deployment, app_name=app), count)


def _gcs() -> Any:
    worker: Any = ray._private.worker.global_worker
    return worker.gcs_client


def draining_nodes() -> set[str]:
    """Ids of the nodes that are told to go. Blocks for one call to the GCS."""
    return set(_gcs().get_draining_nodes(timeout=RPC_TIMEOUT_S))


def drain_node(node_id: str, reason: str, deadline_s: float) -> tuple[bool, str]:
    """Ask the GCS to drain a node: (accepted, why not). Blocks for one call to the GCS."""
    deadline_ms = int((time.time() + deadline_s) * 1000)
    accepted, why = _gcs().drain_node(node_id, PREEMPTION, reason, deadline_ms)
    return bool(accepted), str(why)


def kv_get(key: str) -> str:
    """A value kept by the cluster, or ""."""
    value = internal_kv._internal_kv_get(key.encode(), namespace=KV_NAMESPACE)
    return value.decode() if value else ""


def kv_put(key: str, value: str) -> None:
    """Keep a value in the cluster."""
    internal_kv._internal_kv_put(key.encode(), value.encode(), overwrite=True, namespace=KV_NAMESPACE)
