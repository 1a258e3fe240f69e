"""What has changed between two JSON values, as a JSON value: states of many kB become lines of a few bytes.

Values are equal when Python says so (``1 == 1.0``): who reads them gives them their types again.

A delta is a list that begins with what it does:

- ``["="]``: nothing has changed; ``["=", value]``: this takes its place,
- ``["d", {key: delta}, [key, ...]]``: a dict: these members changed or are new, those are gone,
- ``["i", {index: delta}]``: a list of the same length: these items changed,
- ``["s", count, [item, ...]]``: a window that moved: ``count`` items left its front, these came at its end.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

SAME = "="
MEMBERS, ITEMS, SHIFT = "d", "i", "s"
_LISTS = (list, tuple)
MAX_SHIFT = 64
"""A window that moved further is taken for a new one."""


def delta(old: Any, new: Any) -> list[Any]:
    """What makes ``new`` of ``old``."""
    if old == new:
        return [SAME]
    if isinstance(old, dict) and isinstance(new, dict):
        changed = {
            key: delta(old[key], value) if key in old else [SAME, value]
            for key, value in new.items()
            if key not in old or old[key] != value
        }
        order = [key for key in old if key in new]
        if order == list(new)[: len(order)]:
            return [MEMBERS, changed, [key for key in old if key not in new]]
    elif isinstance(old, _LISTS) and isinstance(new, _LISTS) and old and new:
        gone = _moved(old, new)
        if gone is not None:
            return [SHIFT, gone, new[len(old) - gone :]]
        if len(old) == len(new):
            pairs = enumerate(zip(old, new, strict=True))
            return [ITEMS, {str(at): delta(was, now) for at, (was, now) in pairs if was != now}]
    return [SAME, new]


def apply(old: Any, change: list[Any]) -> Any:
    """``new`` again, of ``old`` and ``delta(old, new)``; ``old`` stays as it is.

    Raises ``ValueError`` for what is no delta of ``old``.
    """
    try:
        return _apply(old, change)
    except (LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"this change is not of this value: {error}") from error


def _apply(old: Any, change: list[Any]) -> Any:
    what = change[0]
    if what == SAME:
        return change[1] if len(change) > 1 else old
    if what == MEMBERS:
        gone = set(change[2])
        kept = {key: value for key, value in old.items() if key not in gone}
        return kept | {key: _apply(old.get(key), each) for key, each in change[1].items()}
    if what == ITEMS:
        changed = change[1]
        return [_apply(item, changed[str(at)]) if str(at) in changed else item for at, item in enumerate(old)]
    if what == SHIFT:
        return old[change[1] :] + change[2]
    raise ValueError(f"there is no change {what!r}")


def _moved(old: Sequence[Any], new: Sequence[Any]) -> int | None:
    """How many left at the front when the rest is the beginning of ``new``; None: it is no such move."""
    for gone in range(min(len(old), MAX_SHIFT)):
        if len(old) - gone <= len(new) and old[gone] == new[0] and old[gone:] == new[: len(old) - gone]:
            return gone
    return None
