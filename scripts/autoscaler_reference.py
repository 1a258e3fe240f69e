"""Writes the tables of parameters in docs/reference/autoscaler.md from their definitions; a test compares.

``make docs`` runs it. What a parameter means is its docstring, its default the definition's. Defaults of
settings that are such parameters are written into docs/reference/settings.md.
"""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path

import msgspec
from headrace_autoscaler import configs, spec

REFERENCE = Path(__file__).resolve().parents[1] / "docs" / "reference"
TARGET = REFERENCE / "autoscaler.md"
SETTINGS = REFERENCE / "settings.md"
SET = {
    "late_s": configs.KeepConfig().late_s,
    "wait_goal": configs.DemandConfig().goal_s,
    "wait_share": configs.KeepConfig().share,
}
"""Settings with the default of a parameter."""
MARKED = re.compile(r"(<!-- parameters: (\w+) -->\n).*?(<!-- /parameters -->)", re.DOTALL)
DOLLARS = ("budget", "wait_cost")
"""Parameters in dollars per hour; those whose names end in ``_s`` are in seconds, and others mere numbers."""


def table(name: str) -> str:
    """The table of one class of parameters. Raises ``AttributeError`` when there is none of that name."""
    kind = getattr(configs, name, None) or getattr(spec, name)
    words = _docstrings(kind)
    rows = [
        f"| `{field.name}` | {_shown(field.default)} | {_unit(field.name)} | {words[field.name]} |"
        for field in msgspec.structs.fields(kind)
        if not isinstance(field.default, msgspec.Struct)
    ]
    return "\n".join(["| parameter | default | unit | |", "|---|---|---|---|", *rows, ""])


def _shown(value: object) -> str:
    if isinstance(value, tuple):
        return ", ".join(map(_shown, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _unit(name: str) -> str:
    return "$/h" if name in DOLLARS else "s" if name.endswith("_s") else ""


def _docstrings(kind: type) -> dict[str, str]:
    """What is said right after each field."""
    body = ast.parse(inspect.getsource(kind)).body[0]
    assert isinstance(body, ast.ClassDef)
    found, name = {}, ""
    for node in body.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            name = node.target.id
            found[name] = ""
        elif name and isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            found[name] = " ".join(str(node.value.value).split()).replace("``", "`").replace("|", "\\|")
    return found


def written(page: str) -> str:
    """The page with its tables as they are to be."""
    return MARKED.sub(lambda mark: mark[1] + table(mark[2]) + mark[3], page)


def settled(page: str) -> str:
    """The page of settings with the defaults that follow from parameters."""
    for name, value in SET.items():
        page = re.sub(rf"^(\| `{name}` \| )`[^`]*`", rf"\g<1>`{value}`", page, flags=re.MULTILINE)
    return page


if __name__ == "__main__":
    TARGET.write_text(written(TARGET.read_text()))
    SETTINGS.write_text(settled(SETTINGS.read_text()))
