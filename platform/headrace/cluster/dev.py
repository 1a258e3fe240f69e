"""`headrace dev`: a Ray-free platform that serves one file and follows it at every save."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import msgspec

from headrace import wire
from headrace.cluster.local import LocalCluster
from headrace.cluster.sweep import DEV_PREFIX, sweep_dev
from headrace.config import Settings, default_run_dir
from headrace.errors import HeadraceError, NotFound, UsageError
from headrace.sdk.inspect import Inspection, InspectionFailed
from headrace.sdk.spec import dump_spec

log = logging.getLogger("headrace.dev")

POLL_S = 0.3
INSPECT_TIMEOUT_S = 120.0
DEPLOY_WAIT_S = 5.0
DEPLOY_TIMEOUT_S = 900.0
MAX_WATCHED = 5000

MAX_PRINTED = 64
"""Endpoints whose output is shown; those beyond are in ``headrace logs`` only."""
LOG_WAIT_S = 20.0

DevKind = Literal[
    "starting",
    "ready",
    "changed",
    "deploying",
    "deployed",
    "unchanged",
    "failed",
    "removed",
    "printed",
    "stopped",
]
Signature = dict[str, tuple[int, int]]


@dataclass(frozen=True)
class DevEvent:
    """Something that the developer should see.

    ``starting``: nothing yet; ``ready``: ``url`` answers; ``changed``: a save was seen; ``deploying``;
    ``deployed``: ``endpoints`` serve the new code; ``unchanged``: the save changed nothing that is
    deployed; ``failed``: the old code, if any, goes on serving, ``detail`` and ``traceback`` say why;
    ``removed``: ``endpoints`` are no more in the file; ``printed``: a line (``detail``) that an endpoint's
    code wrote.
    """

    kind: DevKind
    detail: str = ""
    traceback: str = ""
    url: str = ""
    endpoints: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    seconds: float = 0.0


@dataclass
class _Deployed:
    """What is served now, and which files it came from."""

    names: set[str] = field(default_factory=set)
    files: set[Path] = field(default_factory=set)


def dev_settings(settings: Settings, data_dir: Path) -> Settings:
    """The same settings for a keyless platform of its own in ``data_dir``."""
    return msgspec.structs.replace(
        settings,
        keyless=True,
        data_dir=str(data_dir),
        run_dir=str(default_run_dir(data_dir)),
        control_port=0,
        gateways=1,
    )


async def run_dev(
    path: str | Path,
    settings: Settings,
    on_event: Callable[[DevEvent], None],
    *,
    data_dir: Path | None = None,
) -> None:
    """Serve the endpoints of ``path`` until cancelled, deploying again at every save.

    State is kept in ``data_dir``, or in a temporary directory that goes away at the end. Raises
    `SetupError` when the platform cannot start and `UsageError` when there is no such file; code that
    is broken is only reported, and tried again at the next save.
    """
    file = await asyncio.to_thread(Path(path).absolute)
    if not await asyncio.to_thread(file.is_file):
        raise UsageError(f"{path} is not a file.", hint="Give the Python file that holds your endpoints.")
    began = time.perf_counter()
    on_event(DevEvent("starting", detail=str(file)))
    with contextlib.ExitStack() as stack:
        if data_dir is None:
            await asyncio.to_thread(sweep_dev, Path(tempfile.gettempdir()))
            data_dir = Path(tempfile.mkdtemp(prefix=DEV_PREFIX))
            stack.callback(shutil.rmtree, data_dir, ignore_errors=True)
        # The file is imported while the platform starts; what is saved from now on is a change.
        seen = signature({file})
        first = asyncio.create_task(inspect(file, data_dir / "inspected"))
        try:
            async with LocalCluster(dev_settings(settings, data_dir)) as cluster:
                on_event(DevEvent("ready", url=cluster.url, seconds=time.perf_counter() - began))
                follower = _Follower(file, cluster, on_event, data_dir / "inspected")
                try:
                    await follower.run(first, seen)
                finally:
                    await follower.close()
        finally:
            first.cancel()
            await asyncio.gather(first, return_exceptions=True)
            on_event(DevEvent("stopped"))


class _Follower:
    """Deploys the file now and whenever it or what it uses changes."""

    def __init__(
        self, file: Path, cluster: LocalCluster, on_event: Callable[[DevEvent], None], out: Path
    ) -> None:
        self._file, self._cluster, self._on_event, self._out = file, cluster, on_event, out
        self._deployed = _Deployed(files={file})
        self._began = time.time()
        self._printing: dict[str, asyncio.Task[None]] = {}
        self._settled = asyncio.Event()
        self._shown = False
        self._told: set[str] = set()
        """Lines of tracebacks that were shown as a failure: endpoints print them, too."""

    async def close(self) -> None:
        """Print no more."""
        for task in self._printing.values():
            task.cancel()
        await asyncio.gather(*self._printing.values(), return_exceptions=True)

    async def run(self, first: asyncio.Task[Inspection], seen: Signature) -> None:
        await self._deploy(first)
        seen = {**await self._look(), **seen}
        while True:
            await asyncio.sleep(POLL_S)
            now = await self._look()
            if now == seen:
                continue
            changed = sorted(name for name in now.keys() | seen.keys() if now.get(name) != seen.get(name))
            self._on_event(DevEvent("changed", detail=", ".join(Path(name).name for name in changed[:5])))
            inspection = asyncio.create_task(inspect(self._file, self._out))
            try:
                await self._deploy(inspection)
            finally:
                inspection.cancel()
            # Known files as they were before they were read: a save in between is seen at the next turn.
            seen = {**await self._look(), **now}

    async def _deploy(self, inspection: asyncio.Task[Inspection]) -> None:
        began = time.perf_counter()
        self._settled.clear()
        self._told.clear()
        try:
            found = await inspection
            root = Path(found.root)
            self._deployed.files = {self._file, *(root / name for name in found.files)}
            names = tuple(spec.name for spec in found.specs)
            self._on_event(DevEvent("deploying", endpoints=names))
            self._print_output_of(names)
            result = await self._send(found)
            await self._remove(self._deployed.names - set(names))
        except InspectionFailed as error:
            self._on_event(DevEvent("failed", detail=str(error), traceback=error.traceback))
        except (HeadraceError, OSError, TimeoutError) as error:
            self._on_event(DevEvent("failed", detail=str(error) or "the deployment took too long"))
        else:
            self._deployed.names = set(names)
            self._report(result, time.perf_counter() - began)
        finally:
            self._settled.set()

    def _print_output_of(self, names: tuple[str, ...]) -> None:
        for gone in self._printing.keys() - set(names):
            self._printing.pop(gone).cancel()
        for name in names[:MAX_PRINTED]:
            if name not in self._printing:
                self._printing[name] = asyncio.create_task(self._print(name))

    async def _print(self, name: str) -> None:
        """Show what the endpoint's code writes, from now on; what a deployment's report says comes first."""
        ask = wire.ReadLogs(endpoint=f"default/{name}", after=0, limit=1000, wait_s=LOG_WAIT_S)
        while True:
            # Straight from the host: a request that waits would hold a thread for each endpoint.
            page = await self._cluster.host.logs(ask)
            ask = msgspec.structs.replace(ask, after=page.next)
            await self._settled.wait()
            for line in page.lines:
                if line.stream != "system" and line.at >= self._began and line.text not in self._told:
                    self._on_event(DevEvent("printed", detail=line.text, endpoints=(name,)))

    async def _send(self, found: Inspection) -> dict[str, Any]:
        api = self._cluster.api
        for file in (found.bundle, *found.contexts):
            data = await asyncio.to_thread(Path(file.path).read_bytes)
            await api.call("PUT", f"/api/v1/bundles/{file.sha256}", data)
        specs = [json.loads(dump_spec(spec)) for spec in found.specs]
        deployment = await api.call("POST", "/api/v1/deployments", {"specs": specs, "verify": True})
        async with asyncio.timeout(DEPLOY_TIMEOUT_S):
            while deployment["state"] == "running":
                deployment = await api.get(f"/api/v1/deployments/{deployment['id']}?wait={DEPLOY_WAIT_S:g}")
        return dict(deployment)

    async def _remove(self, names: set[str]) -> None:
        for name in sorted(names):
            with contextlib.suppress(NotFound):
                await self._cluster.api.call("DELETE", f"/api/v1/endpoints/{name}")
            self._on_event(DevEvent("removed", endpoints=(name,)))

    def _report(self, deployment: dict[str, Any], seconds: float) -> None:
        parts = deployment["endpoints"]
        # Several endpoints may have the same to tell.
        notes = tuple(dict.fromkeys(note for part in parts for note in part.get("notes") or ()))
        for part in parts:
            if part["state"] == "failed":
                detail = f"{part['endpoint']}: {part.get('detail') or 'it does not start'}"
                traceback = part.get("traceback") or ""
                self._told.update(("", *traceback.splitlines()))
                self._on_event(DevEvent("failed", detail=detail, traceback=traceback))
        names = tuple(part["endpoint"] for part in parts if part["state"] != "failed")
        if names:
            same = all(part["state"] == "unchanged" for part in parts)
            # In a data directory that was kept, the first deployment may be none: say what is served.
            kind: DevKind = "unchanged" if same and self._shown else "deployed"
            self._shown = True
            self._on_event(
                DevEvent(kind, endpoints=names, notes=notes, url=self._cluster.url, seconds=seconds)
            )

    async def _look(self) -> Signature:
        return await asyncio.to_thread(signature, frozenset(self._deployed.files))


def signature(files: Iterable[Path]) -> Signature:
    """Modification time and size of the files and of the Python files beside them."""
    folders = {file.parent for file in files}
    known = set(files)
    for folder in folders:
        with contextlib.suppress(OSError):
            known.update(folder.glob("*.py"))
    found: Signature = {}
    for file in sorted(known)[:MAX_WATCHED]:
        with contextlib.suppress(OSError):
            info = file.stat()
            found[str(file)] = (info.st_mtime_ns, info.st_size)
    return found


async def inspect(file: Path, out: Path) -> Inspection:
    """`headrace.sdk.inspect` in a fresh process that ends with us. Raises `InspectionFailed`."""
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "headrace.sdk.inspect",
        str(file),
        "--out",
        str(out),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(INSPECT_TIMEOUT_S):
            document, errors = await child.communicate()
    except TimeoutError:
        raise InspectionFailed(
            f"importing {file.name} took more than {INSPECT_TIMEOUT_S:g} s.", hint="Move slow work to load()."
        ) from None
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()
    return _inspected(file, child.returncode or 0, document, errors)


def _inspected(file: Path, code: int, document: bytes, errors: bytes) -> Inspection:
    try:
        if code == 0:
            return msgspec.json.decode(document, type=Inspection)
        failure = msgspec.json.decode(document, type=dict[str, str])
    except msgspec.DecodeError:
        raise InspectionFailed(
            f"importing {file.name} ended the process with code {code}.",
            traceback=errors.decode(errors="replace")[-4000:],
        ) from None
    raise InspectionFailed(failure.get("error", "unknown failure"), traceback=failure.get("traceback", ""))
