"""``headrace logs``: what an endpoint's instances printed, and, with -f, what they print from now on."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import click

from headrace.cli.app import SUMMARIES
from headrace.cli.options import Session, session_options

LINES = click.IntRange(1, 100_000)


@click.command("logs", help=SUMMARIES["logs"])
@click.argument("name")
@click.option("-f", "--follow", is_flag=True, help="Go on with what comes, until Ctrl-C.")
@click.option("--instance", help="Only of this instance: its id or how that begins.")
@click.option("-n", "--lines", type=LINES, default=1000, show_default=True, help="The last so many.")
@session_options
def logs_command(session: Session, *, name: str, follow: bool, instance: str | None, lines: int) -> None:
    """Print NAME's output, oldest first. With --json one document; with -f too, one per line."""
    with session.client() as client:
        if follow:
            for item in client.logs(name, follow=True, instance=instance):
                click.echo(json.dumps(item, ensure_ascii=False) if session.out.as_json else line(item))
            return
        with session.out.progress("asking the platform"):
            last = deque(client.logs(name, instance=instance), maxlen=lines)
    if instance and not last:
        session.out.note(f"No instance {instance} of {name} has printed anything that is still kept.")
    session.out.answer({"items": list(last), "next": None}, lambda: "\n".join(line(item) for item in last))


def line(item: Mapping[str, Any]) -> str:
    """One line for people: time, instance, text."""
    at = datetime.fromtimestamp(float(item.get("at") or 0), UTC).astimezone().strftime("%H:%M:%S.%f")[:-3]
    mark = "! " if item.get("stream") == "stderr" else ""
    return f"{at} {str(item.get('instance', ''))[:8]} {mark}{item.get('text', '')}"
