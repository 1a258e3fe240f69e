"""The options that many commands share, and the session they make: where the platform is, and its key."""

from __future__ import annotations

import functools
import ipaddress
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

import click

from headrace.cli.output import Output
from headrace.config import DEFAULT_URL
from headrace.errors import SetupError

if TYPE_CHECKING:
    from headrace.sdk.client import Client

F = TypeVar("F", bound=Callable[..., Any])
DEFAULT_DATA_DIR = "~/.headrace"


@dataclass(frozen=True)
class Session:
    """One command's view of the platform."""

    out: Output
    url: str
    api_key: str | None
    data_dir: Path

    def client(self) -> Client:
        """A client for the platform at ``url``."""
        # Imported now: commands that need no platform stay quick.
        from headrace.sdk.client import Client  # noqa: PLC0415

        return Client(self.url, self.api_key)


def json_option(function: F) -> F:
    """Add ``--json``; the command gets an `Output` as its first argument."""

    @click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout.")
    @functools.wraps(function)
    def wrapper(*args: Any, as_json: bool, **kwargs: Any) -> Any:
        return function(Output(as_json), *args, **kwargs)

    return wrapper  # type: ignore[return-value]


def session_options(function: F) -> F:
    """Add ``--json``, ``--url`` and ``--data-dir``; the command gets a `Session` as its first argument."""

    @click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout.")
    @click.option(
        "--url", metavar="URL", help=f"Where the platform is (default: HEADRACE_URL, else {DEFAULT_URL})."
    )
    @click.option(
        "--data-dir", metavar="DIR", help="Data directory of the platform on this machine (for its key)."
    )
    @functools.wraps(function)
    def wrapper(*args: Any, as_json: bool, url: str | None, data_dir: str | None, **kwargs: Any) -> Any:
        session = open_session(Output(as_json), url, data_dir, os.environ)
        return function(session, *args, **kwargs)

    return wrapper  # type: ignore[return-value]


def open_session(out: Output, url: str | None, data_dir: str | None, environ: Mapping[str, str]) -> Session:
    """Find the platform and its key.

    The address: ``--url``, ``HEADRACE_URL``, what ``up.json`` in the data directory says, the default. The
    key: ``HEADRACE_API_KEY``, else ``admin.key`` of the data directory, which is sent only to this machine.
    Raises `SetupError` when the key cannot be read.
    """
    data = Path(data_dir or environ.get("HEADRACE_DATA_DIR") or DEFAULT_DATA_DIR).expanduser().absolute()
    running = read_up(data) or {}
    where = url or environ.get("HEADRACE_URL") or str(running.get("url") or DEFAULT_URL)
    if urlsplit(where).scheme not in ("http", "https") or not urlsplit(where).hostname:
        raise click.UsageError(f"{where!r} is not an address: write it like {DEFAULT_URL}.")
    key = environ.get("HEADRACE_API_KEY") or None
    if key is None and is_loopback(where):
        key = _read_key(data / "admin.key")
    return Session(out=out, url=where.rstrip("/"), api_key=key, data_dir=data)


def read_up(data_dir: Path) -> dict[str, Any] | None:
    """``up.json`` of a running platform; None when there is none that can be read."""
    try:
        document = json.loads((data_dir / "up.json").read_bytes())
    except (OSError, ValueError):
        return None
    return document if isinstance(document, dict) else None


def is_loopback(url: str) -> bool:
    """Whether the address is on this machine; only there the admin key on disk is used by itself."""
    host = urlsplit(url).hostname or ""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _read_key(path: Path) -> str | None:
    try:
        return path.read_text().strip() or None
    except FileNotFoundError:
        return None
    except PermissionError as error:
        raise SetupError(
            f"{path} belongs to another user.", hint="Set HEADRACE_API_KEY, or run this as that user."
        ) from error
    except OSError as error:
        raise SetupError(f"{path}: {error.strerror}.", hint="Set HEADRACE_API_KEY instead.") from error
