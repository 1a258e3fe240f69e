"""The bound on nested JSON is exact, and no guess of the interpreter's."""

from __future__ import annotations

import json
from typing import Any

from headrace.gateway import depth
from headrace.gateway.depth import MAX_LEVELS, too_deep
from hypothesis import given
from hypothesis import strategies as st

VALUES = st.recursive(
    st.none() | st.text(alphabet='[]{}\\"a\n', max_size=8) | st.integers(),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text('[{"', max_size=2), inner, max_size=3)
    ),
    max_leaves=20,
)


def levels(value: Any) -> int:
    if isinstance(value, dict):
        value = list(value.values())
    return 1 + max(map(levels, value), default=0) if isinstance(value, list) else 0


def nested(text: str, times: int) -> bytes:
    return ("[" * times + text + "]" * times).encode()


@given(VALUES, st.booleans())
def test_levels_are_counted_outside_of_strings(value: Any, ascii: bool) -> None:
    text, own = json.dumps(value, ensure_ascii=ascii), levels(value)
    # Wide enough to be looked at.
    wide = f"[{'[],' * MAX_LEVELS}{text}]"
    assert not too_deep(nested(wide, MAX_LEVELS - 1 - max(own, 1)))
    assert too_deep(nested(wide, MAX_LEVELS - max(own, 1)))


def test_the_bound_itself() -> None:
    assert not too_deep(b"")
    assert not too_deep(nested("", MAX_LEVELS))
    assert too_deep(nested("", MAX_LEVELS + 1))
    assert too_deep(b'{"a":' * (MAX_LEVELS + 1))
    assert not too_deep(b"[]" * depth.CHUNK * 2)
    assert too_deep(b"[]" * depth.CHUNK * 2 + b"[" * (MAX_LEVELS + 1))


def test_strings_without_an_end_are_read_once() -> None:
    for bad in (b'"' + b'\\"' * (1 << 20), b"[" * 600 + b'"' * 1000001, b"[{" * 400 + b'"\\'):
        too_deep(b"[" * 501 + bad)
