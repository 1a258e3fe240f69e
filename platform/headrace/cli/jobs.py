"""``headrace jobs``: stored calls, one or many."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import click

from headrace.cli.app import SUMMARIES
from headrace.cli.call import joined, read_input
from headrace.cli.options import Session, session_options
from headrace.cli.output import duration, moment, table

Row = Mapping[str, Any]
SECONDS = click.FloatRange(0, min_open=True)
STATES = ("queued", "running", "succeeded", "failed", "cancelled", "timed_out")


@click.group("jobs", help=SUMMARIES["jobs"])
def jobs_command() -> None:
    """A job is a call that was stored before it ran: see `headrace jobs submit`."""


@jobs_command.command("submit")
@click.argument("name")
@click.argument("payload", metavar="[JSON | @FILE | - | NAME=VALUE...]", nargs=-1)
@click.option("--priority", type=click.Choice(["low", "normal", "high"]), default="normal", show_default=True)
@click.option("--webhook", help="Told, signed, when the job ends.")
@click.option("--ttl", type=SECONDS, help="Seconds within which it must have ended.")
@click.option("--timeout", type=SECONDS, help="Seconds that an attempt may run; lowers the endpoint's.")
@click.option("--idempotency-key", help="The same key gives the same job, for as long as it is kept.")
@click.option("--wait", is_flag=True, help="Stay until it ends and print its output.")
@session_options
def jobs_submit(
    session: Session,
    *,
    name: str,
    payload: tuple[str, ...],
    priority: Any,
    webhook: str | None,
    ttl: float | None,
    timeout: float | None,
    idempotency_key: str | None,
    wait: bool,
) -> None:
    """Store a call of endpoint NAME, with its input as for `headrace call`; done when it is stored."""
    body, _ = read_input(joined(payload), None, None)
    value = json.loads(body or b"{}")
    with session.client() as client:
        with session.out.progress(f"submitting to {name}"):
            job = client.submit(
                name,
                json=value,
                priority=priority,
                webhook=webhook,
                ttl=ttl,
                timeout=timeout,
                idempotency_key=idempotency_key,
            )
        if not wait:
            session.out.answer(job.document, job.id)
            return
        with session.out.progress(f"waiting for {job.id}"):
            result = job.result()
        session.out.answer(job.document, lambda: json.dumps(result, ensure_ascii=False, default=repr))


@jobs_command.command("list")
@click.option("--endpoint", help="Only of this endpoint.")
@click.option("--state", type=click.Choice(STATES), help="Only in this state.")
@click.option("-n", "--limit", type=click.IntRange(1, 1000), default=50, show_default=True, help="At most.")
@click.option("--cursor", help="Go on where a list ended, which told this.")
@session_options
def jobs_list(
    session: Session, *, endpoint: str | None, state: str | None, limit: int, cursor: str | None
) -> None:
    """List jobs, newest first."""
    given = {"endpoint": endpoint, "state": state, "limit": limit, "cursor": cursor}
    query = "&".join(f"{name}={quote(str(value))}" for name, value in given.items() if value is not None)
    found = _ask(session, "GET", f"?{query}", "asking the platform")
    session.out.answer(found, lambda: _jobs(found["items"]))
    if found["next"] and not session.out.as_json:
        session.out.note(f"there are more: --cursor {found['next']}")


@jobs_command.command("show")
@click.argument("job")
@session_options
def jobs_show(session: Session, job: str) -> None:
    """Show all that is known of JOB: attempts, times, and why it waits. JOB may be the id of any request: one
    without an Idempotency-Key is known while its gateway lives, which keeps the last 1000.
    """
    found = _ask(session, "GET", f"/{quote(job, safe='')}", "asking the platform")
    session.out.answer(found, lambda: _job(found))


@jobs_command.command("cancel")
@click.argument("job")
@session_options
def jobs_cancel(session: Session, job: str) -> None:
    """Stop JOB, wherever it is."""
    found = _ask(session, "POST", f"/{quote(job, safe='')}/cancel", f"cancelling {job}")
    session.out.answer(found, lambda: f"{job} is {found['state']}")


@jobs_command.command("retry")
@click.argument("job")
@session_options
def jobs_retry(session: Session, job: str) -> None:
    """Run a failed or timed-out JOB again, under its id."""
    found = _ask(session, "POST", f"/{quote(job, safe='')}/retry", f"retrying {job}")
    session.out.answer(found, lambda: f"{job} is {found['state']}")


@jobs_command.command("purge")
@click.argument("name")
@session_options
def jobs_purge(session: Session, name: str) -> None:
    """Remove all queued jobs of endpoint NAME; those that run go on."""
    with session.out.progress(f"purging {name}"), session.client() as client:
        reply = client.request("POST", f"/api/v1/endpoints/{quote(name, safe='')}/purge")
        reply.raise_for_problem()
        found = reply.json()
    session.out.answer(found, lambda: f"removed {found['removed']} queued jobs of {name}")


@jobs_command.command("webhook-secret")
@session_options
def jobs_webhook_secret(session: Session) -> None:
    """Print the secret by which receivers of webhooks check that these are ours; it needs scope `deploy`."""
    with session.out.progress("asking the platform"), session.client() as client:
        reply = client.request("GET", "/api/v1/webhooks/secret")
        reply.raise_for_problem()
        found = reply.json()
    session.out.answer(found, lambda: str(found["key"]))


def _ask(session: Session, method: str, path: str, what: str) -> Any:
    with session.out.progress(what), session.client() as client:
        reply = client.request(method, f"/api/v1/jobs{path}")
        reply.raise_for_problem()
        return reply.json()


def _jobs(items: list[Row]) -> Any:
    rows = [
        (
            item["id"],
            item["endpoint"],
            item["state"],
            item["priority"],
            moment(item["created_at"]),
            _seconds(item),
            (item.get("error") or {}).get("detail") or (item.get("waiting") or {}).get("reason") or "-",
        )
        for item in items
    ]
    return table(("job", "endpoint", "state", "priority", "created", "took", "reason"), rows, "no jobs")


def _job(item: Row) -> str:
    lines = [f"{item['id']}  {item['endpoint']}  {item['state']}", *_times(item)]
    if item.get("waiting"):
        waiting = item["waiting"]
        lines.append(f"  waits for {waiting['for']} since {waiting['seconds']:.1f} s: {waiting['reason']}")
    lines += _receipt(item.get("receipt") or {})
    for attempt in item["attempts"]:
        words = f"  attempt {attempt['number']}: {attempt['outcome']} on {attempt['instance'] or '-'}"
        lines.append(f"{words} {attempt['detail']}".rstrip())
    for hook in item.get("webhooks") or ():
        lines.append(f"  webhook {hook['event']}: {_undelivered(hook)}")
    if item.get("error"):
        lines.append(f"  error: {item['error'].get('detail')}")
    if item.get("output") is not None:
        lines.append(f"  output: {json.dumps(item['output'], ensure_ascii=False)[:2000]}")
    return "\n".join(lines)


def _receipt(receipt: Row) -> list[str]:
    """Where the time went; what else is in there (headers of a stored answer) is not for people."""
    lines = []
    for name, value in receipt.items():
        if name.endswith("_ms"):
            lines.append(f"  {name.removesuffix('_ms')} {duration(value / 1e3)}")
        elif name == "attempts":
            lines += [
                f"  on {one['instance']} {duration(one['ran_ms'] / 1e3)}: {one['outcome']}" for one in value
            ]
        elif isinstance(value, str | int) and not isinstance(value, bool):
            lines.append(f"  {name} {value}")
    return lines


def _times(item: Row) -> list[str]:
    """When it came, began and ended, and what is asked of it."""
    began, ended, due = item.get("started_at"), item.get("finished_at"), item.get("deadline_at")
    lines = [f"  created {moment(item['created_at'])}, priority {item['priority']}, by {item['api']}"]
    if began is not None:
        lines.append(f"  started {moment(began)}, after {duration(began - item['created_at'])}")
    if ended is not None:
        took = f", took {duration(ended - began)}" if began is not None else ""
        lines.append(f"  ended {moment(ended)}{took}")
    elif due is not None:
        lines.append(f"  must end by {moment(due)}")
    if item["lost"] or item["retried"]:
        lines.append(f"  attempts lost {item['lost']}, runs asked for again {item['retried']}")
    return lines


def _undelivered(hook: Row) -> str:
    """What became of a webhook that its receiver has not taken."""
    detail = f": {hook['detail']}" if hook["detail"] else ""
    if hook["state"] == "given_up":
        return f"given up after {hook['tries']} tries{detail}"
    return f"not delivered yet, {hook['tries']} tries, the next at {moment(hook['next_at'])}{detail}"


def _seconds(item: Row) -> str:
    if item.get("started_at") is None or item.get("finished_at") is None:
        return "-"
    return f"{item['finished_at'] - item['started_at']:.2f} s"
