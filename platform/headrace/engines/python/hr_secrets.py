"""Secrets of an instance: files that only its user may read, and variables where it asks for them."""

from __future__ import annotations

import os
from typing import Any, Dict, Mapping

DIRECTORY = "/run/secrets"
"""A file system in memory, in containers."""
VARIABLE = "HEADRACE_SECRETS"


def keep(message: Mapping[str, Any], home: str) -> Dict[str, str]:
    """Write the message's secrets to files; the variables that go with them. Raises `OSError`."""
    values: Mapping[str, str] = message.get("secrets") or {}
    if not values:
        return {}
    place = _place(message, home)
    os.makedirs(place, mode=0o700, exist_ok=True)
    for name, value in values.items():
        fd = os.open(os.path.join(place, name), os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o400)
        with open(fd, "w", encoding="utf-8", newline="") as file:
            file.write(value)
    return {VARIABLE: place, **{name: values[name] for name in message.get("secrets_env") or ()}}


def _place(message: Mapping[str, Any], home: str) -> str:
    given = str(message.get("secrets_dir") or "")
    if given:
        return given
    return DIRECTORY if os.access(DIRECTORY, os.W_OK) else os.path.join(home, "secrets")
