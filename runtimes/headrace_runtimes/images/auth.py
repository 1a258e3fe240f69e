"""Who we are to a registry: names and passwords, and the tokens that they are exchanged for."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from headrace_runtimes.errors import PrepareFailed
from headrace_runtimes.images.reference import DEFAULT_HOST, DEFAULT_REGISTRY

_DOCKER_KEYS = ("https://index.docker.io/v1/", "index.docker.io", DEFAULT_REGISTRY, DEFAULT_HOST)
_PAIR = re.compile(r'([A-Za-z_]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s,"]+))')


@dataclass(frozen=True)
class Credentials:
    """A name and its password, never shown."""

    username: str
    password: str = field(repr=False)

    def header(self) -> str:
        """The value of ``Authorization``."""
        return "Basic " + base64.b64encode(f"{self.username}:{self.password}".encode()).decode()


@dataclass(frozen=True)
class Challenge:
    """What a 401 asks for."""

    scheme: str
    realm: str = ""
    service: str = ""
    scope: str = ""


def parse_challenge(header: str) -> Challenge | None:
    """The first challenge of ``WWW-Authenticate`` that we can answer."""
    scheme, _, rest = header.strip().partition(" ")
    if scheme.lower() not in ("bearer", "basic"):
        return None
    words = {m[1].lower(): m[2] if m[2] is not None else m[3] for m in _PAIR.finditer(rest)}
    return Challenge(scheme.lower(), words.get("realm", ""), words.get("service", ""), words.get("scope", ""))


def from_docker_config(host: str, path: Path | None = None) -> Credentials | None:
    """What ``docker login`` has kept for ``host[:port]``. Blocks. Raises `PrepareFailed` for a broken file.

    Helpers (``credsStore``) are not asked: a host has no desktop.
    """
    path = path or Path.home() / ".docker/config.json"
    try:
        found = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise PrepareFailed(f"{path} cannot be read: {type(error).__name__}. Log in again.") from error
    entries = found.get("auths") if isinstance(found, dict) else None
    if not isinstance(entries, dict):
        return None
    keys = (
        _DOCKER_KEYS
        if host in (DEFAULT_HOST, DEFAULT_REGISTRY)
        else (host, f"https://{host}", f"http://{host}", f"https://{host}/v2/", f"https://{host}/v1/")
    )
    entry = next((entries[key] for key in keys if key in entries), None)
    return _of_entry(entry) if isinstance(entry, Mapping) else None


def _of_entry(entry: Mapping[str, object]) -> Credentials | None:
    word = entry.get("auth")
    if isinstance(word, str) and word:
        try:
            name, colon, password = base64.b64decode(word).decode().partition(":")
        except ValueError:
            return None
        return Credentials(name, password) if colon else None
    name, password = entry.get("username"), entry.get("password")  # type: ignore[assignment]
    if isinstance(name, str) and isinstance(password, str) and name:
        return Credentials(name, password)
    return None
