"""What weights are named by, and what may be named: pure."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal
from urllib.parse import urlsplit

from headrace_runtimes.errors import RuntimeFailure

MIB = 1 << 20
PART_BYTES = 8 * MIB
MAX_PART_BYTES = 64 * MIB
MANY_PARTS = 1000
MAX_FILES = 10_000
"""Of one source."""
MAX_NAME = 200


class WeightsFailed(RuntimeFailure):
    """They cannot be had here: one line that says what to do."""


@dataclass(frozen=True)
class Item:
    """Weights as an endpoint names them."""

    source: str
    sha256: str = ""
    """Of the one file that the source names."""

    @property
    def kind(self) -> Literal["http", "s3", "local"]:
        """Where they come from."""
        scheme = self.source.partition("://")[0]
        return "local" if self.source.startswith("/") else "s3" if scheme == "s3" else "http"

    @property
    def key(self) -> str:
        """Names them in the cache. What a source names is taken not to change."""
        return hashlib.sha256(f"{self.source}\n{self.sha256}".encode()).hexdigest()[:32]

    @property
    def shown(self) -> str:
        """The source without its query, which may be a signature."""
        return self.source.partition("?")[0]


@dataclass(frozen=True)
class WeightsSettings:
    """Where weights are kept and what they may use."""

    root: Path
    disk_bytes: int = 100 << 30
    allow: tuple[str, ...] = ()
    """Prefixes of sources that the host reads with its own rights: directories and ``s3://bucket/...``."""
    private: bool = False
    """Whether http(s) sources may be at private, loopback and link-local addresses."""
    connections: int = 8
    """Of one fetch."""
    attempts: int = 6
    """Of one part, in a row without any progress."""
    pause_s: float = 0.5
    stall_s: float = 30.0
    """Without one byte."""


def check_allowed(item: Item, allow: tuple[str, ...]) -> None:
    """Raises `WeightsFailed` for what the host would read with its own rights and may not."""
    if item.kind == "http":
        return
    if item.kind == "s3":
        if any(_begins(item.source, prefix) for prefix in allow if prefix.startswith("s3://")):
            return
    else:
        real = os.path.realpath(item.source)
        if any(below(real, os.path.realpath(prefix)) for prefix in allow if prefix.startswith("/")):
            return
    raise WeightsFailed(
        f"weights {item.shown}: hosts may not read there on behalf of endpoints; add it to the setting "
        "weights_allow (HEADRACE_WEIGHTS_ALLOW)."
    )


def _begins(source: str, prefix: str) -> bool:
    return source == prefix or source.startswith(prefix if prefix.endswith("/") else prefix + "/")


def below(path: str, directory: str) -> bool:
    """Whether a real path is the directory or in it."""
    return path == directory or path.startswith(directory.rstrip("/") + "/")


def file_name(url: str) -> str:
    """What the one file of an address is called."""
    return safe_path(PurePosixPath(urlsplit(url).path).name or "file")


def safe_path(name: str) -> str:
    """A relative path that stays where it is put. Raises `WeightsFailed`."""
    parts = name.split("/")
    if any(p in ("", ".", "..") or len(p.encode()) > MAX_NAME for p in parts) or "\0" in name:
        raise WeightsFailed(f"weights hold the unsafe path {name[:100]!r}: rename it at the source.")
    return name


def part_size(size: int) -> int:
    """Bytes of one ranged read, so that large files have about a thousand."""
    return min(MAX_PART_BYTES, max(PART_BYTES, -(-size // MANY_PARTS)))


def megabytes(size: int) -> str:
    """For people."""
    return f"{size / MIB:.1f} MiB" if size < 10 * MIB else f"{size // MIB} MiB"


def victims(entries: list[tuple[str, int, float]], used: int, need: int, bound: int) -> list[str]:
    """Which entries (key, bytes, last use) go, so that ``need`` more bytes fit into ``bound``.

    What was used longest ago goes first; what is pinned must not be in the list.
    """
    going: list[str] = []
    for key, size, _ in sorted(entries, key=lambda entry: entry[2]):
        if used + need <= bound:
            break
        used -= size
        going.append(key)
    return going
