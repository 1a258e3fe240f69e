"""The statements of control's store: loads ``schema.sql`` and ``queries.sql`` and checks their form."""

from __future__ import annotations

import re
from pathlib import Path

_HERE = Path(__file__).parent


def _sections(file: str, word: str) -> list[tuple[str, str]]:
    text = (_HERE / file).read_text()
    parts = re.split(rf"^-- {word}: (\S+)$", text, flags=re.MULTILINE)
    return list(zip(parts[1::2], (p.strip() for p in parts[2::2]), strict=True))


def load_queries() -> dict[str, str]:
    """Name -> statement. Raises ``ValueError`` when two have one name or one lacks its description."""
    found: dict[str, str] = {}
    for name, text in _sections("queries.sql", "name"):
        if name in found:
            raise ValueError(f"queries.sql: {name} is there twice")
        if not text.startswith("-- "):
            raise ValueError(f"queries.sql: {name} has no description")
        found[name] = "\n".join(line for line in text.splitlines() if not line.startswith("--"))
    return found


def load_migrations() -> list[str]:
    """The migrations in order. Raises ``ValueError`` when their numbers are not 1, 2, 3, ..."""
    sections = _sections("schema.sql", "migration")
    if [number for number, _ in sections] != [str(i + 1) for i in range(len(sections))]:
        raise ValueError("schema.sql: the migrations are not numbered 1, 2, 3, ...")
    return [text for _, text in sections]
