"""The Ray driver (``python -m headrace.cluster.ray_serve``): an own local head, Serve, Control and Host.

Settings come from ``HEADRACE_*``. Says on stdout how far it is, one JSON object a line: ``event`` (``ray
serve control host ready failed stopped``), ``seconds`` since its start, ``detail``.
Ends in order on SIGTERM and when its stdin is closed; a SIGKILL of it takes the head along.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import logging
import os
import secrets
import signal
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from headrace import __version__
from headrace.cluster.ports import GENERIC, KIND_LABEL, NODE_LABEL, PROVIDER_LABEL
from headrace.cluster.sweep import TOKEN_FILE, end_leftovers, ray_temp_dir
from headrace.config import Settings, load_settings
from headrace.errors import DataDirError, HeadraceError, SetupError

T = TypeVar("T")

OBJECT_STORE_BYTES = 100 << 20
"""Nothing of ours goes through Ray's object store."""
DEPLOY_DEADLINE_S = 60.0
POLL_S = 0.05
WATCH_S = 0.5
SERVE_STOP_S = 9.0
RAY_STOP_S = 5.0


def ray_environment(settings: Settings) -> dict[str, str]:
    """What Ray reads at its import, for the driver and all that it starts. Writes the token's file."""
    environment = {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_DISABLE_IMPORT_WARNING": "1",
        "RAY_enable_metrics_collection": "0",
        "RAY_SERVE_LOG_TO_STDERR": "0",
        # Ray nices its workers by 15: control, hosts and sandboxes are not the background here.
        "RAY_worker_niceness": "0",
        "RAY_ROTATION_MAX_BYTES": str(16 << 20),
        "RAY_ROTATION_BACKUP_COUNT": "1",
    }
    if not settings.address:
        environment |= {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(_new_token(settings.data / TOKEN_FILE)),
        }
    return environment


def _new_token(path: Path) -> Path:
    """A random token for this start; nodes on this machine read it from the file."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "w") as file:
            file.write(secrets.token_hex(32))
        draft.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)
        raise DataDirError(f"{path} cannot be written: {error.strerror}.", hint="Free some space.") from error
    return path


def temp_dir_for(settings: Settings) -> Path:
    """The head's temporary directory. Ray makes it 0777: the one above it is what keeps others out."""
    path = ray_temp_dir(settings.run)
    for each in (path.parent, path):
        each.mkdir(mode=0o700, exist_ok=True)
        each.chmod(0o700)
    return path


def deployed_version(settings: Settings) -> str:
    """Equal for equal code and settings: then the application is attached to, not deployed again."""
    return f"{__version__}-{hashlib.sha256(msgspec.json.encode(settings)).hexdigest()[:16]}"


class Driver:
    """All of Ray runs in one thread, since the head's processes end with the thread that started them."""

    def __init__(self, settings: Settings, emit: Callable[[str, str], None]) -> None:
        self._settings = settings
        self._emit = emit
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="ray")
        self._head: Any = None
        self._connected = False
        self._deployed = False
        self._hangs = False
        # `ray_private` imports Ray: only the thread of Ray may wait for that.
        self._importing: Future[Any] = Future()

    async def start(self) -> None:
        """Head, Serve, application. Raises `SetupError`."""
        # Ray reads its environment at its import, so it comes after `ray_environment` only.
        preload = threading.Thread(target=_import_serve, daemon=True)
        connecting = asyncio.ensure_future(self._call(self._connect, preload))
        while not connecting.done():
            await asyncio.wait({connecting}, timeout=POLL_S)
            if self._importing.done() and self._importing.result().head_is_dead():
                self._hangs = True
                raise SetupError(
                    f"Ray's head ended at its start; is port {self._settings.ray_port} taken?",
                    hint="Give another with --ray-port.",
                )
        await connecting
        self._emit("ray", "")
        await self._call(self._deploy, preload)
        self._emit("serve", "")
        await self._wait_deployed()

    async def stop(self) -> None:
        """Orderly and bounded: replicas drain, then Serve ends, then the head."""
        if self._hangs:
            return
        from ray import serve  # noqa: PLC0415 - see `start`

        if self._deployed:
            with contextlib.suppress(Exception):
                async with asyncio.timeout(SERVE_STOP_S):
                    if self._settings.address:
                        await self._call(lambda: serve.delete("headrace"))
                    else:
                        await self._call(serve.shutdown)
        with contextlib.suppress(Exception):
            async with asyncio.timeout(RAY_STOP_S):
                await self._call(self._disconnect)

    async def broken(self) -> str:
        """Wait until a server of our head has ended; which one. For ever in a cluster that is not ours."""
        while self._head is None or not (found := self._importing.result().ended_server(self._head)):  # noqa: ASYNC110 - nothing tells us
            await asyncio.sleep(WATCH_S)
        return str(found)

    def _connect(self, preload: threading.Thread) -> None:
        settings = self._settings
        import ray  # noqa: PLC0415 - see `start`

        from headrace.cluster import ray_private  # noqa: PLC0415
        from headrace.cluster.ray_nodes import known_nodes  # noqa: PLC0415

        self._importing.set_result(ray_private)
        preload.start()
        address = settings.address
        options: dict[str, Any] = {}
        if not address:
            self._head = ray_private.start_head(
                temp_dir=temp_dir_for(settings), port=settings.ray_port,
                object_store=OBJECT_STORE_BYTES,
                labels={NODE_LABEL: "head", KIND_LABEL: GENERIC, PROVIDER_LABEL: "local"},
            )  # fmt: skip
            address = f"{ray_private.LOOPBACK}:{settings.ray_port}"
            options["_node_ip_address"] = ray_private.LOOPBACK
        ray.init(
            address=address,
            namespace="headrace",
            log_to_driver=False,
            logging_level=logging.WARNING,
            **options,
        )
        self._connected = True
        here = ray.get_runtime_context().get_node_id()
        if settings.address and not any(n.head and n.id == here for n in known_nodes()):
            raise SetupError(
                f"this machine is not the head of the Ray cluster at {settings.address}.",
                hint="Run `headrace up --address` on the head: control and its data directory live there.",
            )

    def _deploy(self, preload: threading.Thread) -> None:
        from ray import serve  # noqa: PLC0415 - see `start`

        from headrace.cluster import ray_private  # noqa: PLC0415
        from headrace.cluster.ray_deployments import application  # noqa: PLC0415

        preload.join()
        serve.start(proxy_location="Disabled")
        version = deployed_version(self._settings)
        app = serve.status().applications.get("headrace")
        # To run an unchanged application again would stop all hosts at once.
        if app is None or ray_private.kv_get("version") != version:
            ray_private.deploy(application(self._settings), "headrace")
            ray_private.kv_put("version", version)
        self._deployed = True

    async def _wait_deployed(self) -> None:
        deadline = time.monotonic() + DEPLOY_DEADLINE_S
        missing = {"Control": "control", "Host": "host"}
        while missing:
            app = await self._call(_application_status)
            for name in list(missing):
                deployment = app.deployments.get(name)
                if deployment is not None and deployment.status == "HEALTHY":
                    self._emit(missing.pop(name), "")
            if missing and (app.status == "DEPLOY_FAILED" or time.monotonic() > deadline):
                late = "" if app.status == "DEPLOY_FAILED" else f" within {DEPLOY_DEADLINE_S:g} s"
                messages = [app.message, *(d.message for d in app.deployments.values())]
                sys.stderr.write("\n".join([*messages, ""]))
                why = next(filter(None, map(last_line, reversed(messages))), str(app.status))
                raise SetupError(f"{' and '.join(missing.values())} did not start{late}: {why}")
            if missing:
                await asyncio.sleep(POLL_S)
        self._emit("ready", "")

    def _disconnect(self) -> None:
        import ray  # noqa: PLC0415 - see `start`

        from headrace.cluster import ray_private  # noqa: PLC0415

        if self._connected:
            ray.shutdown()
        if self._head is not None:
            ray_private.end_head(self._head)
            # Its agents look for their raylet once in 40 s only.
            end_leftovers(ray_temp_dir(self._settings.run))

    async def _call(self, function: Callable[..., T], *args: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *args)


def last_line(message: str) -> str:
    """The line of a traceback that says what went wrong."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    return lines[-1][:500] if lines else ""


def _import_serve() -> None:
    """0.7 s of imports, while the head's processes start."""
    import headrace.cluster.ray_deployments  # noqa: F401, PLC0415


def _application_status() -> Any:
    from ray import serve  # noqa: PLC0415 - see `Driver.start`

    return serve.status().applications["headrace"]


async def run(settings: Settings, emit: Callable[[str, str], None], stdin: int) -> int:
    """Until told to end; the exit code."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)

    def parent_spoke() -> None:
        if not os.read(stdin, 4096):
            loop.remove_reader(stdin)
            stop.set()

    os.set_blocking(stdin, False)
    loop.add_reader(stdin, parent_spoke)
    driver = Driver(settings, emit)
    starting = asyncio.create_task(driver.start())
    stopping = asyncio.create_task(stop.wait())
    broken = asyncio.create_task(driver.broken())
    await asyncio.wait({starting, stopping, broken}, return_when=asyncio.FIRST_COMPLETED)
    code = 0
    if starting.done() and (error := starting.exception()) is not None:
        text = str(error) if isinstance(error, HeadraceError) else f"{type(error).__name__}: {error}"
        emit("failed", " ".join(text.split()))
        sys.stderr.write(f"{text}\n")
        code = 1
    elif starting.done():
        await asyncio.wait({stopping, broken}, return_when=asyncio.FIRST_COMPLETED)
    if broken.done() and not stop.is_set():
        # Nothing can be ended in order without it: whoever started us sweeps, and starts it all again.
        emit("failed", broken.result())
        return 1
    if not starting.done():
        # Its thread is busy and cannot be interrupted: the head's processes end with this one.
        emit("stopped", "")
        return 1
    await driver.stop()
    emit("stopped", "")
    return code


def main() -> None:
    """Entry point of the process."""
    started = time.monotonic()
    # Ray and its children print to stdout: keep it for the protocol, and give them the log.
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    # Nor may they hold the pipe that tells of the parent's end.
    stdin = os.dup(0)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)

    def emit(event: str, detail: str) -> None:
        line = {"event": event, "seconds": round(time.monotonic() - started, 3), "detail": detail}
        with contextlib.suppress(OSError):
            channel.write(json.dumps(line) + "\n")
            channel.flush()

    settings = load_settings()
    for name in [n for n in os.environ if n.startswith("HEADRACE_")]:
        del os.environ[name]
    try:
        os.environ.update(ray_environment(settings))
    except DataDirError as error:
        emit("failed", str(error))
        sys.exit(1)
    code = asyncio.run(run(settings, emit, stdin))
    # Not sys.exit: the thread of Ray may hang, and what it started is ended by then or dies with us.
    os._exit(code)


if __name__ == "__main__":
    main()
