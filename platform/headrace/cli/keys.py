"""``headrace keys``: who may call, deploy, measure and manage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import click

from headrace.cli.app import SUMMARIES
from headrace.cli.options import Session, session_options
from headrace.cli.output import facts, moment, table

SCOPES = ("invoke", "deploy", "metrics", "admin")


@click.group("keys", help=SUMMARIES["keys"])
def keys_command() -> None:
    """Only the hash of a key is stored: what `create` prints cannot be shown again."""


@keys_command.command("create")
@click.argument("name")
@click.option(
    "--scope",
    "scopes",
    multiple=True,
    type=click.Choice(SCOPES),
    default=("invoke",),
    show_default=True,
    help="What it may do; may be repeated.",
)
@click.option("--endpoint", "endpoints", multiple=True, metavar="NAME", help="May call only these endpoints.")
@click.option(
    "--rate",
    type=click.FloatRange(0, 1e6, min_open=True),
    metavar="N",
    help="Requests per second that each gateway takes.",
)
@click.option("--burst", type=click.IntRange(1, 1_000_000), help="Requests at once, before --rate holds.")
@session_options
def keys_create(
    session: Session,
    *,
    name: str,
    scopes: Sequence[str],
    endpoints: Sequence[str],
    rate: float | None,
    burst: int | None,
) -> None:
    """Create a key called NAME and print it, this once."""
    if burst is not None and rate is None:
        raise click.UsageError("--burst goes with --rate.")
    with session.client() as client:
        made = client.create_key(name, scopes=scopes, endpoints=endpoints, requests_per_s=rate, burst=burst)
    shown = {"id": made["id"], "scopes": ", ".join(made["scopes"]), "endpoints": _endpoints(made)}
    if made["rate_limit"]:
        shown["rate limit"] = _rate(made)
    session.out.note("The key is shown only now: keep it where others cannot read it.")
    session.out.answer(made, lambda: f"{facts(shown)}\n{made['key']}")


@keys_command.command("list")
@session_options
def keys_list(session: Session) -> None:
    """List keys (never the keys themselves)."""
    with session.client() as client:
        found = client.keys()

    def text() -> str:
        rows = [
            (
                key["id"],
                key["name"],
                ", ".join(key["scopes"]),
                _endpoints(key),
                _rate(key),
                moment(key["created_at"]),
            )
            for key in found
        ]
        return table(("KEY", "NAME", "SCOPES", "ENDPOINTS", "RATE LIMIT", "CREATED"), rows, "no keys")

    session.out.answer({"items": found, "next": None}, text)


@keys_command.command("revoke")
@click.argument("key_id")
@session_options
def keys_revoke(session: Session, key_id: str) -> None:
    """Refuse the key with the id KEY_ID from now on."""
    with session.client() as client:
        client.revoke_key(key_id)
    session.out.answer({"revoked": key_id}, f"revoked {key_id}: it is refused from now on")


def _endpoints(key: Mapping[str, Any]) -> str:
    names = key["endpoints"]
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more if names else "all"


def _rate(key: Mapping[str, Any]) -> str:
    limit = key["rate_limit"]
    return f"{limit['requests_per_s']:g}/s, burst {limit['burst']}" if limit else "none"
