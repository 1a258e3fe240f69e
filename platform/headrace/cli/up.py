"""``headrace up``, ``down`` and ``status``: the platform on this machine as a whole."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, get_args

import click
import msgspec
from headrace_autoscaler.configs import DemandConfig, KeepConfig

from headrace.cli.app import DONE, SUMMARIES
from headrace.cli.options import DEFAULT_DATA_DIR, Session, json_option, session_options
from headrace.cli.output import Output, facts, moment
from headrace.config import LogLevel, load_settings, wrong_address
from headrace.errors import NotRunning

if TYPE_CHECKING:
    from headrace.cluster.supervisor import UpEvent

PORT = click.IntRange(0, 65535)


def _address(_ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    """The value of ``--store`` or ``--blobs``, which must be an address of one."""
    if value and (why := wrong_address(param.name or "", value)):
        raise click.BadParameter(why)
    return value


@click.command("up", help=SUMMARIES["up"])
@click.option("--data-dir", metavar="DIR", help=f"Where everything is kept (default: {DEFAULT_DATA_DIR}).")
@click.option("--host", metavar="IP", help="Address the gateway listens on (default: 127.0.0.1).")
@click.option("--port", type=PORT, help="Port of the gateway (default: 8700; 0: any free one).")
@click.option("--control-port", type=PORT, help="Port of control, for hosts on other nodes (default: 8701).")
@click.option("--ray-port", type=click.IntRange(0, 9999), help="Port of Ray's head (default: 6399).")
@click.option("--gateways", type=click.IntRange(1, 64), help="Gateway processes (default: 1).")
@click.option("--address", metavar="HOST:PORT", help="Join this Ray cluster instead of starting one.")
@click.option(
    "--store",
    callback=_address,
    metavar="URL",
    help="Jobs in postgresql://... (default: SQLite in --data-dir).",
)
@click.option(
    "--blobs",
    callback=_address,
    metavar="URL",
    help="Large bodies in s3://bucket/prefix (default: in --data-dir).",
)
@click.option("--spares", type=click.IntRange(0, 64), help="Pre-forked children per zygote (default: 2).")
@click.option(
    "--late-s",
    type=click.FloatRange(0, 1e6),
    metavar="SECONDS",
    help=f"What a late request costs, in seconds of an instance (default: {KeepConfig().late_s:g}).",
)
@click.option(
    "--wait-goal",
    type=click.FloatRange(0, 86400, min_open=True),
    metavar="SECONDS",
    help=f"Who waits for longer is late (default: {DemandConfig().goal_s:g}).",
)
@click.option(
    "--wait-share",
    type=click.FloatRange(0, 0.9999),
    metavar="SHARE",
    help=f"So many shall not be late; 0: --late-s alone decides (default: {KeepConfig().share:g}).",
)
@click.option("--log-level", type=click.Choice(get_args(LogLevel)), help="Default: info.")
@json_option
def up_command(out: Output, **options: Any) -> int:
    """Run the platform until Ctrl-C. Addresses with a password belong into HEADRACE_STORE."""
    # Imported now: help needs none of it. The supervisor never imports Ray.
    from headrace.cli.start import wrong_here  # noqa: PLC0415
    from headrace.cluster import supervisor  # noqa: PLC0415

    settings = load_settings(options, starting=True, check=wrong_here)

    with UpProgress(out, str(settings.data)) as show:
        return asyncio.run(supervisor.up(settings, show)) or DONE


class UpProgress:
    """Shows what the supervisor tells. ``ready`` is the command's answer; the rest is progress, on stderr."""

    def __init__(self, out: Output, data_dir: str) -> None:
        self._out = out
        self._key_file = f"{data_dir}/admin.key"
        self._spinner = contextlib.ExitStack()
        self._change: Callable[[str], None] | None = None

    def __enter__(self) -> UpProgress:
        self._work("starting the platform")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._spinner.close()

    def __call__(self, event: UpEvent) -> None:
        """Show one event."""
        if event.kind == "ready" and event.record is not None:
            self._rest()
            document = msgspec.to_builtins(event.record)
            self._out.answer(document, f"{event.text} ({event.seconds:.1f} s); Ctrl-C stops it")
        elif event.kind in ("waiting", "stopping"):
            self._work(event.text)
        elif event.kind == "key":
            self._out.note(f"admin key, shown this once (kept in {self._key_file}): {event.text}")
        elif event.kind == "warning":
            self._out.note(f"warning: {event.text}")
        else:
            self._out.note(f"{event.seconds:6.1f} s  {event.text}")
            if event.kind == "stopped":
                self._rest()

    def _work(self, words: str) -> None:
        if self._change is None:
            self._change = self._spinner.enter_context(self._out.progress(words))
        self._change(words)

    def _rest(self) -> None:
        self._spinner.close()
        self._change = None


@click.command("down", help=SUMMARIES["down"])
@click.option(
    "--data-dir", metavar="DIR", help=f"Data directory of the platform (default: {DEFAULT_DATA_DIR})."
)
@json_option
def down_command(out: Output, data_dir: str | None) -> None:
    """End the platform; done when its processes have ended."""
    settings = load_settings({"data_dir": data_dir}, finding=True)
    from headrace.cluster import supervisor  # noqa: PLC0415 - psutil and asyncio parts that other commands lack

    with out.progress("stopping the platform") as step:
        try:
            record = asyncio.run(supervisor.down(settings, lambda event: step(event.text)))
        except NotRunning as error:
            # What is asked for is so already: saying it twice is no failure.
            out.answer({"stopped": False, "data_dir": settings.data_dir}, error.message)
            return
    out.answer(
        {"stopped": True, "pid": record.pid, "data_dir": settings.data_dir},
        f"stopped the platform (pid {record.pid})",
    )


@click.command("status", help=SUMMARIES["status"])
@session_options
def status_command(session: Session) -> None:
    """Show the platform's state; exit code 1 when it does not run."""
    with session.out.progress("asking the platform"), session.client() as client:
        found = client.status()

    session.out.answer({"url": session.url, **found}, lambda: status_text(session.url, found))


def status_text(url: str, found: Mapping[str, Any]) -> str:
    """The platform's state for people."""
    shown = {name: moment(value) if name.endswith("_at") else value for name, value in found.items()}
    if store := found.get("store"):
        state = "reachable" if store["reachable"] else f"not reachable: {store['reason']}"
        shown["store"] = f"{store['kind']}, {state}"
    return facts({"url": url, **{name.replace("_", " "): value for name, value in shown.items()}})
