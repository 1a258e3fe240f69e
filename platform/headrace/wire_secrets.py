"""The parts of messages (`headrace.wire`) that tell of secrets; nothing shows the values."""

from __future__ import annotations

from typing import Any

import msgspec


class SecretRef(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A secret that an endpoint gets, without its value."""

    name: str
    version: int
    """0: nobody has set it."""
    env: bool = False
    """A variable as well as a file."""


class SecretValues(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Values of secrets by name; only links between control and hosts carry them."""

    values: dict[str, str] = {}

    def __repr__(self) -> str:
        return f"SecretValues({len(self.values)})"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        return [("count", len(self.values))]
