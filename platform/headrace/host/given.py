"""Secrets that control has sent: given to what they are for, and to nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from headrace_runtimes.spec import Base

from headrace import wire


def missing(spec: wire.BaseSpec, values: Mapping[str, str]) -> str:
    """Why ``load`` cannot run in a base; empty when it can. ``values``: by ``project/name@version``."""
    refs = spec.loaded.secrets if spec.loaded else ()
    names = [ref.name for ref in refs if _key(spec, ref) not in values]
    return f"the secret {names[0]} is not there: `headrace secrets list` shows which are" if names else ""


def filled(base: Base, spec: wire.BaseSpec, values: Mapping[str, str]) -> Base:
    """The base with what its ``load`` is to see. None of it may be `missing`."""
    if base.loaded is None or spec.loaded is None or not spec.loaded.secrets:
        return base
    refs = spec.loaded.secrets
    loaded = replace(
        base.loaded,
        secrets={ref.name: values[_key(spec, ref)] for ref in refs},
        secrets_env=variables(refs),
    )
    return replace(base, loaded=loaded)


def variables(refs: tuple[wire.SecretRef, ...]) -> tuple[str, ...]:
    """Those that are variables, too."""
    return tuple(ref.name for ref in refs if ref.env)


def _key(spec: wire.BaseSpec, ref: wire.SecretRef) -> str:
    return f"{spec.project}/{ref.name}@{ref.version}"
