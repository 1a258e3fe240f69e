"""Secrets of an instance: files that only its user may read, and variables where it asks for them."""

from __future__ import annotations

import os
import re
from typing import Any, Dict, List, Mapping, Pattern

DIRECTORY = "/run/secrets"
"""A file system in memory, in containers."""
SHORTEST = 6
"""Characters; what is shorter would be found in every other word."""
COVER = "***"
VARIABLE = "HEADRACE_SECRETS"
_found: List[Pattern[str]] = []


def keep(message: Mapping[str, Any], home: str) -> Dict[str, str]:
    """Write the message's secrets to files; the variables that go with them. Raises `OSError`."""
    values: Mapping[str, str] = message.get("secrets") or {}
    if not values:
        return {}
    _remember(values)
    place = _place(message, home)
    os.makedirs(place, mode=0o700, exist_ok=True)
    for name, value in values.items():
        fd = os.open(os.path.join(place, name), os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o400)
        with open(fd, "w", encoding="utf-8", newline="") as file:
            file.write(value)
    return {VARIABLE: place, **{name: values[name] for name in message.get("secrets_env") or ()}}


def masked(text: str) -> str:
    """The text without the values: failures are told to callers, who have no right to them.

    The host masks what is printed in the same way (`headrace_runtimes.instance.mask`); answers do not
    pass there.
    """
    for pattern in _found:
        text = pattern.sub(COVER, text)
    return text


def _remember(values: Mapping[str, str]) -> None:
    parts = {part.strip() for value in values.values() for part in value.splitlines()}
    found = sorted((part for part in parts if len(part) >= SHORTEST), key=len, reverse=True)
    _found[:] = [re.compile("|".join(map(re.escape, found)))] if found else []


def _place(message: Mapping[str, Any], home: str) -> str:
    given = str(message.get("secrets_dir") or "")
    if given:
        return given
    return DIRECTORY if os.access(DIRECTORY, os.W_OK) else os.path.join(home, "secrets")
