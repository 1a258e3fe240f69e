"""Takes the values of secrets out of what an instance prints and of how its failures are told."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

SHORTEST = 6
"""Characters; what is shorter would be found in every other word."""
COVER = "***"


class Mask:
    """Replaces values by `COVER`, lines of a value of several lines one by one.

    A help for who prints by mistake: code that wants to show a value can write it in another way.
    """

    def __init__(self, secrets: Mapping[str, str] | None = None) -> None:
        parts = {part.strip() for value in (secrets or {}).values() for part in value.splitlines()}
        found = sorted((part for part in parts if len(part) >= SHORTEST), key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, found))) if found else None
        raw = sorted((part.encode() for part in found), key=len, reverse=True)
        self._raw = re.compile(b"|".join(map(re.escape, raw))) if raw else None
        self.longest = len(raw[0]) if raw else 0
        """Bytes of the longest value."""

    def text(self, text: str) -> str:
        """The text without the values."""
        return text if self._pattern is None else self._pattern.sub(COVER, text)

    def data(self, data: bytes) -> bytes:
        """The output without the values."""
        return data if self._raw is None else self._raw.sub(COVER.encode(), data)

    def lines(self, lines: Sequence[str]) -> list[str]:
        """The lines without the values."""
        return [self.text(line) for line in lines]

    def __repr__(self) -> str:
        return "Mask()"
