"""``headrace call``: sends one request to an endpoint and prints the answer as it comes."""

from __future__ import annotations

import base64
import json
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import click

from headrace.cli import receipt
from headrace.cli.app import SUMMARIES
from headrace.cli.options import Session, session_options
from headrace.sdk.stream import EVENTS, NDJSON, Stream

if TYPE_CHECKING:
    from headrace.sdk.transport import Reply

JSON = "application/json"
MARGIN_S = 10.0
PARAMETER = re.compile(r"[A-Za-z_]\w*=")


@click.command("call", help=SUMMARIES["call"])
@click.argument("name")
@click.argument("payload", metavar="[JSON | @FILE | - | NAME=VALUE...]", nargs=-1)
@click.option("--data-file", type=click.Path(path_type=Path), help="Send this file's bytes as they are.")
@click.option("--content-type", help="Of --data-file (default: application/octet-stream).")
@click.option("--raw", is_flag=True, help="Print the answer's bytes as they are.")
@click.option("--receipt", "with_receipt", is_flag=True, help="Print where the time went, on stderr.")
@click.option(
    "--timeout", type=click.FloatRange(0, min_open=True), default=600.0, show_default=True, help="Seconds."
)
@session_options
def call_command(
    session: Session,
    *,
    name: str,
    payload: tuple[str, ...],
    data_file: Path | None,
    content_type: str | None,
    raw: bool,
    with_receipt: bool,
    timeout: float,
) -> None:
    """Call NAME (or NAME@VERSION) with JSON, a file of JSON (@FILE), stdin (-), or parameters by name."""
    if raw and session.out.as_json:
        raise click.UsageError("--raw and --json exclude each other.")
    body, sent_type = read_input(joined(payload), data_file, content_type)
    headers = {"X-Headrace-Timeout": f"{timeout:.3f}"} | ({"Content-Type": sent_type} if sent_type else {})
    with session.client() as client:
        with session.out.progress(f"calling {name}"):
            reply = client.request(
                "POST", f"/e/{quote(name, safe='@')}", body=body, headers=headers, timeout=timeout + MARGIN_S
            )
            reply.raise_for_problem()
        steps = receipt.parse(reply.headers.get("Server-Timing", ""))
        if session.out.as_json:
            document = {
                "status": reply.status,
                "content_type": reply.content_type,
                "request_id": reply.headers.get("X-Headrace-Request-Id"),
                "result": whole(reply),
                "receipt": [asdict(step) for step in steps],
            }
            session.out.answer(document, "")
        elif raw:
            _write(reply.chunks())
        else:
            _print(reply)
        if with_receipt and not session.out.as_json:
            session.out.note(receipt.show(steps) or "the answer carries no receipt")


def joined(words: Sequence[str]) -> str | None:
    """One input, or ``name=value`` words as a JSON object; a value that is not JSON is text."""
    if not words:
        return None
    if not all(PARAMETER.match(word) for word in words):
        if len(words) > 1:
            raise click.UsageError("give one input (quoted for the shell), or parameters as NAME=VALUE.")
        return words[0]
    given: dict[str, Any] = {}
    for word in words:
        name, _, value = word.partition("=")
        try:
            given[name] = json.loads(value)
        except ValueError:
            given[name] = value
    return json.dumps(given)


def read_input(
    payload: str | None, data_file: Path | None, content_type: str | None
) -> tuple[bytes, str | None]:
    """Body and content type. Raises a wrong use for JSON that is none, and for a file that cannot be read."""
    if data_file is not None:
        if payload is not None:
            raise click.UsageError("give the input as JSON or with --data-file, not both.")
        return _read(data_file), content_type or "application/octet-stream"
    if payload is None:
        return b"", content_type
    if payload == "-":
        data = sys.stdin.buffer.read()
    elif payload.startswith("@"):
        data = _read(Path(payload[1:]))
    else:
        data = payload.encode()
    if content_type is None or content_type == JSON:
        try:
            json.loads(data)
        except ValueError as error:
            raise click.UsageError(
                f"the input is not JSON ({error}): quote it for the shell, or use --data-file."
            ) from error
    return data, content_type or JSON


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise click.UsageError(f"{path}: {error.strerror}.") from error


def whole(reply: Reply) -> Any:
    """The answer as one JSON value: a stream's items as a list, other bytes as base64."""
    if reply.content_type in (NDJSON, EVENTS):
        return list(Stream(reply))
    if not reply.body:
        return None
    if reply.content_type == JSON or reply.content_type.endswith("+json"):
        return reply.json()
    if reply.content_type.startswith("text/"):
        return reply.body.decode(errors="replace")
    return {"base64": base64.b64encode(reply.body).decode()}


def _print(reply: Reply) -> None:
    if reply.content_type in (NDJSON, EVENTS):
        for item in Stream(reply):
            click.echo(json.dumps(item, ensure_ascii=False))
    elif reply.content_type == JSON or reply.content_type.endswith("+json"):
        click.echo(json.dumps(reply.json(), indent=2, ensure_ascii=False) if reply.body else "")
    elif reply.content_type.startswith("text/"):
        click.echo(reply.body.decode(errors="replace"))
    elif sys.stdout.isatty():
        click.echo(
            f"{len(reply.body)} bytes of {reply.content_type or 'no content type'}: --raw prints them",
            err=True,
        )
    else:
        _write(iter((reply.body,)))


def _write(chunks: Iterator[bytes]) -> None:
    out = sys.stdout.buffer
    for chunk in chunks:
        out.write(chunk)
        out.flush()
