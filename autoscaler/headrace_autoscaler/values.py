"""The base of all values here: frozen, by keyword, written to JSON without what is at its default."""

from __future__ import annotations

import msgspec


class Value(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Base of all values here."""
