"""The ``local`` provider: see the package."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import msgspec
import psutil

from headrace_providers.errors import InvalidRequest, NodeNotFound, ProviderUnavailable
from headrace_providers.local import record as records
from headrace_providers.offers import Node, NodeRequest, Offer

LAUNCH_TIMEOUT_S = 20.0
MAX_LABELS = 50
MAX_CPU, MAX_MEMORY, MAX_GPU = 10_000, 1 << 50, 10_000
_LABEL = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?\Z")


class LocalProvider:
    """Nodes on this machine, each with a keeper process. State: one file per node in ``state_dir``."""

    name: ClassVar[str] = "local"

    def __init__(self, state_dir: Path) -> None:
        self._dir = state_dir

    async def list_offers(self) -> Sequence[Offer]:
        """One offer: what this machine has. It costs nothing and is not reserved."""
        memory = await asyncio.to_thread(lambda: psutil.virtual_memory().total)
        return [
            Offer(
                provider=self.name,
                region="local",
                instance_type="local",
                cpu=float(os.cpu_count() or 1),
                memory=memory,
            )
        ]

    async def launch(self, request: NodeRequest) -> Node:
        """See `Provider.launch`."""
        _check(request)
        path = self._path(request.id)
        existing = await asyncio.to_thread(self._node, path)
        if existing is not None:
            return existing
        self._dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        records.write(path, records.Record(request=request, launched_at=time.time()))
        problem = await asyncio.to_thread(_start_keeper, path)
        if problem:
            path.unlink(missing_ok=True)
            raise ProviderUnavailable(f"the keeper of {request.id} did not start: {problem}")
        return await self.get(request.id)

    async def get(self, node_id: str) -> Node:
        """See `Provider.get`."""
        node = await asyncio.to_thread(self._node, self._path(node_id))
        if node is None:
            raise NodeNotFound(f"no node {node_id!r}: it was terminated or never launched.")
        return node

    async def list_owned(self, cluster: str) -> Sequence[Node]:
        """See `Provider.list_owned`. One whose keeper died is ``failed`` until it is terminated."""
        return await asyncio.to_thread(self._owned, cluster)

    async def terminate(self, node_id: str) -> None:
        """See `Provider.terminate`."""
        await asyncio.to_thread(self._terminate, node_id)

    # -- blocking parts, run in a thread --------------------------------------------------

    def _path(self, node_id: str) -> Path:
        return self._dir / f"{node_id}.json"

    def _node(self, path: Path) -> Node | None:
        record = records.read(path)
        if record is None:
            return None
        state, detail = record.state, record.detail
        young = time.time() - record.launched_at < LAUNCH_TIMEOUT_S and not record.keeper_pid
        if state in ("pending", "running") and not young and records.keeper(record) is None:
            state, detail = "failed", "its keeper died"
        return Node(
            id=record.request.id, provider=self.name, region=record.request.region,
            instance_type=record.request.instance_type, state=state, launched_at=record.launched_at,
            spot=record.request.spot, detail=detail,
        )  # fmt: skip

    def _owned(self, cluster: str) -> list[Node]:
        found: list[Node] = []
        for path in sorted(self._dir.glob("*.json")):
            record, node = records.read(path), self._node(path)
            if record is None or node is None or record.request.cluster != cluster:
                continue
            found.append(node)
        return found

    def _terminate(self, node_id: str) -> None:
        path = self._path(node_id)
        record = records.read(path)
        if record is None:
            return
        keeper = records.keeper(record)
        if keeper is None:
            end_all_of(node_id)
            path.unlink(missing_ok=True)
            path.with_suffix(".log").unlink(missing_ok=True)
            return
        records.write(path, msgspec.structs.replace(record, state="terminating"))
        keeper.terminate()


def _start_keeper(path: Path) -> str:
    """Start the keeper, which detaches itself; why it did not start, or nothing.

    Blocking, for a thread: a loop that is not in the main thread may never hear of a child's end.
    """
    command = [sys.executable, "-m", "headrace_providers.local.keeper", str(path)]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=LAUNCH_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        return f"no word from it for {LAUNCH_TIMEOUT_S:g} s"
    return done.stderr.decode(errors="replace").strip()[-300:] if done.returncode else ""


def end_all_of(node_id: str) -> None:
    """End the processes of a node whose keeper is gone."""
    processes = records.marked(node_id)
    for process in processes:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(processes, timeout=5.0)


def _check(request: NodeRequest) -> None:
    if not _LABEL.match(request.id):
        raise InvalidRequest(f"node id {request.id!r}: use up to 63 of letters, digits, '.', '_' and '-'.")
    if request.cpu <= 0 or request.memory <= 0:
        raise InvalidRequest(f"cpu={request.cpu:g}, memory={request.memory}: ask for more than 0 of both.")
    if not request.cpu <= MAX_CPU or request.memory > MAX_MEMORY:
        raise InvalidRequest(f"cpu={request.cpu:g}, memory={request.memory:g}: no machine has so much.")
    # All of these become ``--labels=k=v,k=v``: one with a comma would be two, and might name another node.
    for what, value in (("region", request.region), ("instance_type", request.instance_type)):
        if not _LABEL.match(value):
            raise InvalidRequest(f"{what} {value!r:.100}: use letters, digits, '.', '_' and '-'.")
    if len(request.labels) + len(request.gpu) > MAX_LABELS:
        raise InvalidRequest(f"{len(request.labels) + len(request.gpu)} labels: use at most {MAX_LABELS}.")
    for key, value in request.labels.items():
        if not _LABEL.match(key) or not _LABEL.match(value):
            raise InvalidRequest(f"label {key}={value}: use letters, digits, '.', '_' and '-'.")
    for name, count in request.gpu.items():
        if not _LABEL.match(name) or not 1 <= count <= MAX_GPU:
            raise InvalidRequest(f"gpu {name}={count}: use a model name and a count of 1 or more.")
