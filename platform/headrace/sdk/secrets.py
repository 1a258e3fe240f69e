"""Secrets of an endpoint: their names are part of its spec, their values never are."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from headrace.errors import SpecError
from headrace.sdk.values import Value

NAME = r"[A-Za-z_][A-Za-z0-9_]{0,99}"
MAX_SECRETS = 32
"""Of one endpoint."""
_PATTERN = re.compile(rf"{NAME}\Z")


class Secret(Value, frozen=True, kw_only=False):
    """A secret that ``headrace secrets set`` stores; instances find it as a file in ``$HEADRACE_SECRETS``.

    ``env``: it is a variable of that name as well, which whatever the code starts inherits.
    """

    name: str
    env: bool = False

    def __post_init__(self) -> None:
        check_name(self.name)
        if not isinstance(self.env, bool):
            raise SpecError(f"Secret({self.name}, env={self.env!r:.40}): use True or False.")


def check_name(name: Any) -> None:
    """Raises `SpecError` for what cannot name a secret: it is a file's and a variable's name."""
    if not isinstance(name, str) or not _PATTERN.match(name):
        # Not the name itself: whoever mixes it up with the value must not find that in a log.
        raise SpecError(
            "a secret's name is 1-100 of A-Z, a-z, 0-9 and '_', and does not begin with a digit.",
            hint='For example secrets=["HF_TOKEN"].',
        )
    if name.startswith("HEADRACE_"):
        raise SpecError(f"secret {name}: names with HEADRACE_ are the platform's own.")


def secrets_of_option(value: Any) -> tuple[Secret, ...]:
    """What ``secrets=`` means. Raises `SpecError`."""
    if value is None:
        return ()
    if not isinstance(value, list | tuple) or len(value) > MAX_SECRETS:
        raise SpecError(
            f"secrets: use a list of up to {MAX_SECRETS} names.", hint='For example secrets=["HF_TOKEN"].'
        )
    if not all(isinstance(item, str | Secret) for item in value):
        raise SpecError("secrets: one is neither a name nor headrace.Secret(...).")
    found = tuple(Secret(item) if isinstance(item, str) else item for item in value)
    names = [secret.name for secret in found]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise SpecError(f"secrets: {twice} is there twice.")
    return found


def check_variables(secrets: Iterable[Secret], env: Iterable[str]) -> None:
    """Raises `SpecError` when a variable would have two values."""
    both = sorted({secret.name for secret in secrets if secret.env} & set(env))
    if both:
        raise SpecError(f"{both[0]} is in env and a secret with env=True.", hint="Leave one of them out.")
