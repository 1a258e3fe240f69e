"""``headrace up``, ``down`` and ``status``: the platform on this machine as a whole."""

from __future__ import annotations

import asyncio
import inspect
import os
import signal
import time
from pathlib import Path
from typing import Any

import click

from headrace.cli.app import DONE, SUMMARIES
from headrace.cli.options import DEFAULT_DATA_DIR, Session, json_option, read_up, session_options
from headrace.cli.output import Output, facts, moment
from headrace.config import load_settings
from headrace.errors import NotRunning, SetupError, UnsupportedOption

STOP_DEADLINE_S = 60.0
PORT = click.IntRange(0, 65535)


@click.command("up", help=SUMMARIES["up"])
@click.option("--data-dir", metavar="DIR", help=f"Where everything is kept (default: {DEFAULT_DATA_DIR}).")
@click.option("--host", metavar="IP", help="Address the gateway listens on (default: 127.0.0.1).")
@click.option("--port", type=PORT, help="Port of the gateway (default: 8700).")
@click.option("--control-port", type=PORT, help="Port of control, for hosts on other nodes (default: 8701).")
@click.option("--ray-port", type=click.IntRange(1024, 9999), help="Port of Ray's head (default: 6399).")
@click.option("--gateways", type=click.IntRange(1, 64), help="Gateway processes (default: 1).")
@click.option("--address", metavar="HOST:PORT", help="Join this Ray cluster instead of starting one.")
@click.option("--store", metavar="URL", help="Another store than SQLite (not built yet).")
@click.option("--spares", type=click.IntRange(0, 64), help="Pre-forked children per zygote (default: 2).")
@click.option("--log-level", type=click.Choice(["debug", "info", "warning", "error"]), help="Default: info.")
@json_option
def up_command(out: Output, store: str | None, **options: Any) -> int:
    """Run the platform until Ctrl-C."""
    if store is not None:
        raise UnsupportedOption(
            "--store is not built yet: state is in SQLite under the data directory.", hint="Leave it out."
        )
    settings = load_settings(options)
    # The supervisor is imported after the options are known to be good; it never imports Ray.
    from headrace.cluster import supervisor  # noqa: PLC0415

    started = time.monotonic()
    with out.progress("starting the platform") as step:
        done = supervisor.up(settings, Events(out, step, started))
        result = asyncio.run(done) if inspect.iscoroutine(done) else done
    return result if isinstance(result, int) else DONE


class Events:
    """Shows what the supervisor tells; the event ``ready`` is the answer of the command."""

    def __init__(self, out: Output, step: Any, started: float) -> None:
        self._out = out
        self._step = step
        self._started = started

    def __call__(self, event: Any, *details: Any, **more: Any) -> None:
        """Show one event."""
        raise NotImplementedError(event, details, more)


@click.command("down", help=SUMMARIES["down"])
@click.option("--data-dir", metavar="DIR", help=f"Data directory of the platform (default: {DEFAULT_DATA_DIR}).")
@json_option
def down_command(out: Output, data_dir: str | None) -> None:
    """End the platform; done when its process has ended."""
    data = Path(data_dir or os.environ.get("HEADRACE_DATA_DIR") or DEFAULT_DATA_DIR).expanduser().absolute()
    running = read_up(data)
    pid = (running or {}).get("pid")
    if not isinstance(pid, int) or not _is_ours(pid):
        out.answer({"stopped": False, "data_dir": str(data)}, f"nothing runs with the data directory {data}")
        return
    with out.progress(f"stopping the platform (pid {pid})") as step:
        try:
            os.kill(pid, signal.SIGTERM)
        except PermissionError as error:
            raise SetupError(
                f"the platform (pid {pid}) belongs to another user.", hint="Run this as that user."
            ) from error
        except ProcessLookupError:
            pass
        deadline = time.monotonic() + STOP_DEADLINE_S
        while _is_ours(pid):
            if time.monotonic() > deadline:
                raise SetupError(
                    f"the platform (pid {pid}) did not end in {STOP_DEADLINE_S:.0f} s.",
                    hint=f"`kill -9 {pid}` ends it; the next `headrace up` cleans up.",
                )
            step("stopping the platform")
            time.sleep(0.05)
    out.answer({"stopped": True, "pid": pid, "data_dir": str(data)}, f"stopped the platform (pid {pid})")


def _is_ours(pid: int) -> bool:
    """Whether the process lives and is a Python process: numbers are used again after a restart."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
    return state != "Z" and b"headrace" in command


@click.command("status", help=SUMMARIES["status"])
@session_options
def status_command(session: Session) -> None:
    """Show the platform's state; exit code 1 when it does not run."""
    with session.out.progress("asking the platform"):
        found = session.client().status()
    if not found:
        raise NotRunning(f"no platform answers at {session.url}.", hint="Start one with `headrace up`.")

    def text() -> str:
        shown = {k: moment(v) if k.endswith("_at") else v for k, v in found.items()}
        return facts({"url": session.url, **shown})

    session.out.answer({"url": session.url, **found}, text)
