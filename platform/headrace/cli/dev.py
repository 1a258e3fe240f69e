"""``headrace dev``: one file's endpoints without Ray, deployed again at every save."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import click

from headrace.cli.app import SUMMARIES
from headrace.cli.options import json_option
from headrace.cli.output import Output
from headrace.config import Settings, load_settings

if TYPE_CHECKING:
    from headrace.cluster.dev import DevEvent


@click.command("dev", help=SUMMARIES["dev"])
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--port", type=click.IntRange(0, 65535), help="Port to serve on (default: 8700; 0: any free one)."
)
@click.option(
    "--data-dir", metavar="DIR", help="Keep state here (default: a directory that goes at the end)."
)
@json_option
def dev_command(out: Output, file: Path, port: int | None, data_dir: str | None) -> None:
    """Serve FILE until Ctrl-C. With --json one event per line."""
    # Imported now: help needs none of it.
    from headrace.cli.start import wrong_here  # noqa: PLC0415

    settings = load_settings({"port": port, "data_dir": data_dir}, starting=True, check=wrong_here)
    kept = Path(settings.data_dir) if data_dir is not None else None
    asyncio.run(_serve(out, file, settings, kept))


async def _serve(out: Output, file: Path, settings: Settings, data_dir: Path | None) -> None:
    # Imported now: it brings gateway, control and host along.
    from headrace.cluster.dev import run_dev  # noqa: PLC0415

    work = asyncio.create_task(run_dev(file, settings, lambda event: show(out, event), data_dir=data_dir))
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, work.cancel)
    # Ctrl-C is how it ends, so being cancelled is no failure.
    with contextlib.suppress(asyncio.CancelledError):
        await work


def show(out: Output, event: DevEvent) -> None:
    """Print one event: a line of JSON, or words."""
    if out.as_json:
        fields = ("kind", "detail", "traceback", "url", "endpoints", "notes", "seconds")
        click.echo(json.dumps({name: getattr(event, name) for name in fields if getattr(event, name)}))
        return
    for line in words(event):
        click.echo(line, err=event.kind == "failed")


def words(event: DevEvent) -> list[str]:
    """The lines for people that one event is worth; progress in between is worth none."""
    if event.kind == "ready":
        return [f"ready at {event.url} ({event.seconds:.1f} s); Ctrl-C stops it"]
    if event.kind == "deployed":
        lines = [f"serving {name} at {event.url}/e/{name}" for name in event.endpoints]
        return [*lines, *(f"note: {note}" for note in event.notes)]
    if event.kind == "failed":
        return [*event.traceback.rstrip().splitlines(), f"headrace: {event.detail}"]
    if event.kind == "printed":
        return [f"{event.endpoints[0]} | {event.detail}"]
    short = {
        "changed": f"changed: {event.detail}",
        "removed": f"removed {', '.join(event.endpoints)}",
        "unchanged": "nothing changed that is deployed",
    }
    return [short[event.kind]] if event.kind in short else []
