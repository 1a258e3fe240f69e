"""The statements of the job stores: loads ``<dialect>/NNNN_*.sql`` and ``<dialect>/queries.sql``, and checks
their form."""

from __future__ import annotations

import re
from pathlib import Path

_HERE = Path(__file__).parent
_MIGRATION = re.compile(r"(\d{4})_[a-z0-9_]+\.sql")


def load_queries(dialect: str) -> dict[str, str]:
    """Name -> statement. Raises ``ValueError`` when two have one name or one lacks its description."""
    parts = re.split(r"^-- name: (\S+)$", (_HERE / dialect / "queries.sql").read_text(), flags=re.MULTILINE)
    found: dict[str, str] = {}
    for name, section in zip(parts[1::2], parts[2::2], strict=True):
        text = section.strip()
        if name in found:
            raise ValueError(f"{dialect}/queries.sql: {name} is there twice")
        if not text.startswith("-- "):
            raise ValueError(f"{dialect}/queries.sql: {name} has no description")
        found[name] = "\n".join(line for line in text.splitlines() if not line.startswith("--"))
    return found


def load_migrations(dialect: str) -> list[str]:
    """The migrations in order. Raises ``ValueError`` when their numbers are not 1, 2, 3, ..."""
    files = sorted(path for path in (_HERE / dialect).iterdir() if _MIGRATION.fullmatch(path.name))
    if [int(path.name[:4]) for path in files] != list(range(1, len(files) + 1)):
        raise ValueError(f"jobs/sql/{dialect}: the migrations are not numbered 0001, 0002, ...")
    return [path.read_text() for path in files]
