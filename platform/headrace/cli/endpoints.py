"""``headrace deploy, list, describe, delete, scale, rollback``: endpoints and their versions."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import click

from headrace.cli.app import DONE, FAILED, SUMMARIES
from headrace.cli.options import Session, session_options
from headrace.cli.output import facts, moment, table
from headrace.cli.use import USE, last_death, state_of, use_of, versions_of
from headrace.errors import EndpointFailed

COLUMNS = ("NAME", "STATE", "VERSION", "RUNTIME", "INSTANCES", "IN FLIGHT", "QUEUED", "REASON")
BRIEF_CHARS = 60
"""A reason in a table."""


@click.command("deploy", help=SUMMARIES["deploy"])
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--no-verify", is_flag=True, help="Register only: start no instance to see whether it works.")
@session_options
def deploy_command(session: Session, file: Path, no_verify: bool) -> int:
    """Deploy FILE. Exit code 1 when an endpoint does not start; its traceback goes to stderr."""
    begun: dict[str, Any] = {}

    def watch(now: dict[str, Any]) -> None:
        begun.update(now)
        step(_progress(file.name, now))

    with session.out.progress(f"deploying {file.name}") as step, session.client() as client:
        try:
            deployment = client.deploy(file, verify=not no_verify, check=False, on_progress=watch)
        except KeyboardInterrupt:
            if begun.get("state") == "running":
                client.cancel_deployment(str(begun["id"]))
                session.out.note("headrace: the deployment is cancelled: what ran before goes on.")
            raise
    return report(session, deployment)


def _progress(what: str, deployment: Mapping[str, Any]) -> str:
    if deployment.get("away"):
        return f"deploying {what}: {deployment['away']}"
    parts = deployment.get("endpoints") or ()
    states = ", ".join(_state(part) for part in parts)
    return f"deploying {what}: {states}" if states else f"deploying {what}"


def _state(part: Mapping[str, Any]) -> str:
    words = f"{str(part['endpoint']).rpartition('/')[2]} {part.get('state')}"
    waits = part.get("detail") if part.get("state") == "starting" else ""
    return f"{words} ({waits})" if waits else words


def report(session: Session, deployment: Mapping[str, Any]) -> int:
    """Show how a deployment or a rollback ended; the exit code."""
    parts: list[Mapping[str, Any]] = list(deployment.get("endpoints") or [])
    for part in parts:
        if part.get("state") == "failed" and not session.out.as_json:
            if part.get("traceback"):
                session.out.note(str(part["traceback"]).rstrip())
            session.out.note(
                f"headrace: {part['endpoint']} failed: {part.get('detail') or 'it does not start'}"
            )
    session.out.answer(
        deployment, lambda: "\n".join(line for part in parts for line in _deployed(session, part))
    )
    return DONE if deployment.get("state") == "succeeded" else FAILED


def _deployed(session: Session, part: Mapping[str, Any]) -> list[str]:
    if part.get("state") == "failed":
        return []
    words = "unchanged" if part.get("state") == "unchanged" else str(part.get("state"))
    name = str(part["endpoint"]).rpartition("/")[2]
    lines = [f"{name} version {part.get('version')} {words}: {session.url}/e/{name}"]
    return [*lines, *(f"  note: {' '.join(note.split())}" for note in part.get("notes") or ())]


@click.command("list", help=SUMMARIES["list"])
@click.option("--limit", type=click.IntRange(1, 10_000), default=100, show_default=True, help="Rows at most.")
@click.option("--cursor", help="Go on where an earlier list ended (its `next`).")
@session_options
def list_command(session: Session, limit: int, cursor: str | None) -> None:
    """One line per endpoint; with --json `items` and `next`."""
    with session.out.progress("asking the platform"), session.client() as client:
        query = urlencode({"limit": limit} | ({"cursor": cursor} if cursor else {}))
        reply = client.request("GET", f"/api/v1/endpoints?{query}", timeout=30.0)
        reply.raise_for_problem()
        page = reply.json()

    def text() -> str:
        fields = ("name", "state", "version", "runtime", "instances", "in_flight", "queued")
        rows = [
            [_shown(item.get(field)) for field in fields] + [brief(item.get("reason"))]
            for item in page["items"]
        ]
        shown = table(COLUMNS, rows, "no endpoints; `headrace deploy FILE` makes some")
        more = f"\nmore: headrace list --cursor {page['next']}" if page.get("next") else ""
        return shown + more

    session.out.answer(page, text)


def brief(reason: Any) -> str:
    """What happened, without how: `describe` has all of it."""
    line = next(iter(str(reason or "").splitlines()), "")
    if len(line) > BRIEF_CHARS:
        what = line.partition(": ")[0]
        line = what if len(what) <= BRIEF_CHARS else f"{line[: BRIEF_CHARS - 3].rstrip()}..."
    return line or "-"


def _shown(value: Any) -> Any:
    if value in (None, ""):
        return "-"
    return len(value) if isinstance(value, list) else value


@click.command("describe", help=SUMMARIES["describe"])
@click.argument("name")
@session_options
def describe_command(session: Session, name: str) -> None:
    """Show NAME: state, instances with their timings, versions, last decisions."""
    with session.out.progress("asking the platform"), session.client() as client:
        found = client.endpoint(name)
    session.out.answer(found, lambda: describe(found))


def describe(found: Mapping[str, Any]) -> str:
    """An endpoint for people."""
    spec: Mapping[str, Any] = found.get("spec") or {}
    # What `scale` changed is not in the spec.
    scaling = (spec.get("scaling") or {}) | (found.get("scale") or {})
    parts = [
        facts(
            {
                "name": found.get("name"),
                "project": found.get("project"),
                "state": found.get("state"),
                "reason": found.get("reason"),
                "waiting": found.get("waiting"),
                "version": found.get("version"),
                "entry": spec.get("entry"),
                "scaling": ", ".join(f"{key} {value}" for key, value in scaling.items()),
                "concurrency": spec.get("concurrency"),
                "snapshot": spec.get("snapshot"),
                "in flight": str(found.get("in_flight", 0)),
                "queued": str(found.get("queued", 0)),
            }
        )
    ]
    instances = [
        (
            i.get("id"),
            state_of(i),
            i.get("version"),
            i.get("runtime"),
            i.get("tier"),
            i.get("in_flight"),
            i.get("host"),
            i.get("pid"),
            *use_of(i),
        )
        for i in found.get("instances") or ()
    ]
    columns = ("INSTANCE", "STATE", "VERSION", "RUNTIME", "TIER", "IN FLIGHT", "HOST", "PID", *USE)
    parts.append(table(columns, instances, "no instances"))
    parts += [
        f"{i['id']} takes no requests: {i['unready']}"
        for i in found.get("instances") or ()
        if i.get("unready")
    ]
    if ended := last_death(found):
        parts.append(ended)
    parts.append(versions_of(found.get("versions") or ()))
    # The newest come first.
    decisions = [
        (moment(d.get("at")), d.get("action"), d.get("reason")) for d in (found.get("decisions") or ())[:10]
    ]
    if decisions:
        parts.append(table(("DECIDED", "ACTION", "REASON"), decisions, ""))
    return "\n\n".join(parts)


@click.command("delete", help=SUMMARIES["delete"])
@click.argument("name")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@session_options
def delete_command(session: Session, name: str, yes: bool) -> None:
    """Delete NAME and all its versions; what runs is drained first."""
    if not yes:
        if session.out.as_json or not sys.stdin.isatty():
            raise click.UsageError("deleting cannot be undone: add --yes.")
        click.confirm(f"Delete {name} and all its versions?", abort=True, err=True)
    with session.out.progress(f"deleting {name}"), session.client() as client:
        client.delete(name)
    session.out.answer({"deleted": name}, f"deleted {name}")


@click.command("scale", help=SUMMARIES["scale"])
@click.argument("name")
@click.option("--min", "at_least", type=click.IntRange(0), help="Instances kept at any time.")
@click.option("--max", "at_most", type=click.IntRange(1), help="Instances at most.")
@click.option("--to", type=click.IntRange(0), help="Have so many now; busy ones go when they become idle.")
@session_options
def scale_command(
    session: Session, name: str, at_least: int | None, at_most: int | None, to: int | None
) -> None:
    """Change NAME's bounds (until the next deploy), or what runs now."""
    if at_least is None and at_most is None and to is None:
        raise click.UsageError("say what to change: --min, --max or --to.")
    if at_least is not None and at_most is not None and at_least > at_most:
        raise click.UsageError(f"--min {at_least} is above --max {at_most}.")
    with session.out.progress(f"scaling {name}"), session.client() as client:
        found = client.scale(name, min=at_least, max=at_most, to=to)

    def text() -> str:
        scaling = found.get("scale") or {}
        bounds = f"min {scaling['min']}, max {scaling['max']}" if "max" in scaling else ""
        stay = [i for i in found.get("instances") or [] if i.get("state") != "draining"]
        return f"{name}: {len(stay)} instances; {bounds}".rstrip("; ")

    session.out.answer(found, text)


@click.command("rollback", help=SUMMARIES["rollback"])
@click.argument("name")
@click.option("--version", "version", type=click.IntRange(1), help="That version (default: the one before).")
@session_options
def rollback_command(session: Session, name: str, version: int | None) -> int:
    """Go back with NAME: new instances are ready before old ones drain."""
    with session.out.progress(f"rolling {name} back"), session.client() as client:
        try:
            deployment = client.rollback(name, version)
        except EndpointFailed as error:
            if "deployment" not in error.extra:
                raise
            deployment = error.extra["deployment"]
    return report(session, deployment)
