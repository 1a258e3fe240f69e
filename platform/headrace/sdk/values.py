"""What the parts of a spec are made of: immutable values that name the option that is wrong."""

from __future__ import annotations

from typing import Any

import msgspec

from headrace.errors import SpecError

MAX_NUMBER = 1e9
"""No number of a spec is above it, but for sizes: every part can count with it."""


def checked_number(owner: object, field: str, *, whole: bool = False, most: float = MAX_NUMBER) -> float:
    """A number of ``owner``, up to ``most``. Raises `SpecError` that names the option."""
    value: Any = getattr(owner, field)
    wanted = int if whole else int | float
    if isinstance(value, bool) or not isinstance(value, wanted) or not abs(value) < float("inf"):
        kind = "a whole number" if whole else "a number"
        raise SpecError(f"{type(owner).__name__}({field}={value!r}): use {kind}.")
    if value > most:
        raise SpecError(f"{type(owner).__name__}({field}={value!r:.40}): use {most:.10g} or less.")
    return value


class ValueType(msgspec.StructMeta):
    """Makes an option that is not there a `SpecError` that names the closest one."""

    def __call__(cls, *args: Any, **options: Any) -> Any:
        """Make a value. Raises `SpecError`."""
        for option in options.keys() - set(cls.__struct_fields__):
            import difflib  # noqa: PLC0415 - only for an error; keeps `import headrace` cheap in a sandbox

            close = difflib.get_close_matches(option, cls.__struct_fields__, n=1, cutoff=0.5)
            known = ", ".join(cls.__struct_fields__)
            hint = f"Did you mean {close[0]!r}?" if close else f"Options are: {known}."
            raise SpecError(f"{cls.__name__} has no option {option!r}.", hint=hint)
        return super().__call__(*args, **options)


class Value(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    omit_defaults=False,
    forbid_unknown_fields=True,
    metaclass=ValueType,
):
    """Base of all parts of a spec: immutable, comparable, serialisable."""
