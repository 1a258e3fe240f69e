"""``headrace secrets``: values that instances get and nobody reads back; never from the command line."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from headrace.cli.app import SUMMARIES
from headrace.cli.options import Session, session_options
from headrace.cli.output import moment, table
from headrace.errors import SpecError, UsageError
from headrace.sdk.secrets import check_name

MAX_BYTES = 32 << 10
"""What the platform takes (it counts some characters more than once); hardly more is read from anywhere."""
_READ = MAX_BYTES + 3


@click.group("secrets", help=SUMMARIES["secrets"])
def secrets_command() -> None:
    """Values come from stdin or a file: others on the machine can read command lines."""


@secrets_command.command("set", context_settings={"allow_extra_args": True})
@click.argument("name")
@click.option(
    "--file",
    "path",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="PATH",
    help="Take the value from this file, byte for byte.",
)
@session_options
@click.pass_context
def secrets_set(context: click.Context, session: Session, *, name: str, path: Path | None) -> None:
    """Store the secret NAME, or a new version of it.

    Without --file the value is read from stdin: typed without an echo, or piped (one line break at its end
    is left out). Running instances keep what they have; new ones get this version.
    """
    if context.args:
        # Not repeated: it may well be the value.
        raise UsageError(
            "the value of a secret is not given on the command line, where others can read it.",
            hint=f"Pipe it: `headrace secrets set {name if _is_name(name) else 'NAME'} < file`.",
        )
    _checked(name)
    value = _from_file(path) if path is not None else _from_stdin(name)
    if not value:
        raise UsageError("the value is empty.", hint="Pipe it, or name a file with --file.")
    if len(value.encode()) > MAX_BYTES:
        raise _too_long()
    with session.client() as client:
        row = client.set_secret(name, value)
    users = ", ".join(row["used_by"])
    more = f"; new instances of {users} get it" if users else ""
    session.out.answer(row, f"{name} is set, version {row['version']}{more}")


@secrets_command.command("list")
@session_options
def secrets_list(session: Session) -> None:
    """List secrets (never their values)."""
    with session.client() as client:
        found = client.secrets()

    def text() -> str:
        rows = [
            (row["name"], row["version"], ", ".join(row["used_by"]) or "-", moment(row["updated_at"]))
            for row in found
        ]
        return table(("SECRET", "VERSION", "USED BY", "SET"), rows, "no secrets")

    session.out.answer({"items": found, "next": None}, text)


@secrets_command.command("delete")
@click.argument("name")
@session_options
def secrets_delete(session: Session, *, name: str) -> None:
    """Delete the secret NAME; refused while an endpoint uses it."""
    _checked(name)
    with session.client() as client:
        row = client.delete_secret(name)
    session.out.answer(row, f"{name} is deleted")


@secrets_command.command("rotate-key")
@session_options
def secrets_rotate_key(session: Session) -> None:
    """Seal all secrets with a new key; the values stay. Needs a key with the scope admin."""
    with session.client() as client:
        count = client.rotate_secrets_key()
    sealed = f"{count} secret{'' if count == 1 else 's'} sealed with a new key"
    session.out.answer({"sealed": count}, f"{sealed}: copy secrets.key of the data directory anew")


def _is_name(name: str) -> bool:
    try:
        check_name(name)
    except SpecError:
        return False
    return True


def _checked(name: str) -> None:
    try:
        check_name(name)
    except SpecError as error:
        # A value in the place of the name would be in the shell's history by now.
        raise UsageError(error.message, hint="The value comes from stdin or --file.") from None


def _from_file(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return _text(file.read(_READ))
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}.") from error


def _from_stdin(name: str) -> str:
    if sys.stdin.isatty():
        return str(click.prompt(f"Value of {name}", hide_input=True, err=True))
    data = sys.stdin.buffer.read(_READ)
    text = _text(data)
    return text.removesuffix("\n").removesuffix("\r") if text.endswith("\n") else text


def _too_long() -> UsageError:
    return UsageError(
        f"the value is longer than {MAX_BYTES >> 10} KiB.",
        hint="Store the key of an encrypted file, and put that file into the bundle.",
    )


def _text(data: bytes) -> str:
    if len(data) == _READ:
        # Cut, perhaps within a character.
        raise _too_long()
    try:
        return data.decode()
    except UnicodeDecodeError:
        # Not the error itself: it holds the value.
        raise UsageError("the value is no text (UTF-8).", hint="Store it in base64.") from None
