"""The base of all values here: frozen, by keyword, written to JSON without what is at its default."""

from __future__ import annotations

import msgspec


# Frozen, and made of what was there before: no value can lead back to itself. Thousands are remembered and
# shown; were they tracked, the garbage collector would go through all of them every few decisions.
class Value(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """Base of all values here."""
