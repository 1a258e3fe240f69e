"""Packs the code of an endpoint's file into a deterministic zip, named by its SHA-256.

In it: the file, the local modules that it reaches by imports, and what ``headrace.toml`` next to it lists
under ``[bundle] include = ["data/*.txt"]``. The same content gives the same bytes, whatever the times, modes
and place of the files.
"""

from __future__ import annotations

import hashlib
import io
import os
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from headrace.errors import BundleError
from headrace.sdk.imports import inside, reachable

MAX_BYTES = 64 << 20
EXCLUDED = frozenset({".git", ".venv", "venv", "__pycache__", "node_modules"})
"""Folders that an ``include`` pattern never enters; nor any other hidden one."""

_EPOCH = (1980, 1, 1, 0, 0, 0)
_MODE = 0o100644


class Bundle(NamedTuple):
    """Code ready to be sent. ``module`` is the entry's import name below ``root``."""

    root: Path
    module: str
    files: tuple[str, ...]
    packages: tuple[str, ...]
    """What the files import of installed packages at their top (`headrace.sdk.imports.Found`)."""
    data: bytes
    sha256: str


def make_bundle(path: str | os.PathLike[str]) -> Bundle:
    """Pack the project of one Python file. Raises `BundleError` with what to do about it."""
    root, module, entry = locate(path)
    found = reachable(root, entry)
    files = tuple(sorted({*found.files, *_included(root)}))
    _check_size(root, files)
    data = _zip(root, files)
    return Bundle(root, module, files, found.packages, data, hashlib.sha256(data).hexdigest())


def locate(path: str | os.PathLike[str]) -> tuple[Path, str, Path]:
    """The root that goes on ``sys.path``, the module's name, and the file. Raises `BundleError`."""
    entry = Path(path).absolute()
    if not entry.is_file():
        raise BundleError(f"{path} is not a file.", hint="Give a Python file with an @headrace.endpoint.")
    if entry.suffix != ".py":
        raise BundleError(f"{path} is not a Python file.", hint="Its name must end with .py.")
    root = entry.parent
    while (root / "__init__.py").is_file() and root != root.parent:
        root = root.parent
    root = root.resolve()
    entry = entry.parent.resolve() / entry.name
    parts = entry.relative_to(root).with_suffix("").parts
    if parts[-1] == "__init__":
        parts = parts[:-1]
    if not all(part.isidentifier() for part in parts):
        raise BundleError(f"{entry.name} cannot be imported by that name.", hint="Use letters, digits, '_'.")
    if parts[0] in sys.stdlib_module_names or parts[0] == "headrace":
        raise BundleError(
            f"{parts[0]!r} is the name of another module, which it would hide.", hint="Rename it."
        )
    return root, ".".join(parts), entry


def _included(root: Path) -> Iterator[str]:
    config = root / "headrace.toml"
    if not config.is_file():
        return
    try:
        table = tomllib.loads(config.read_text()).get("bundle", {})
    except (tomllib.TOMLDecodeError, OSError, UnicodeDecodeError) as error:
        raise BundleError(f"{config}: {error}.") from error
    patterns = table.get("include", []) if isinstance(table, dict) else None
    unknown = sorted(set(table) - {"include"}) if isinstance(table, dict) else []
    if unknown:
        raise BundleError(f"{config}: [bundle] knows only include, not {unknown[0]!r}.")
    if not isinstance(patterns, list) or not all(isinstance(item, str) and item for item in patterns):
        raise BundleError(f'{config}: [bundle] include must be a list of patterns, such as ["data/*.txt"].')
    for pattern in patterns:
        if pattern.startswith("/") or ".." in Path(pattern).parts:
            raise BundleError(f"{config}: include {pattern!r} must stay below {root}.")
        found = [
            match for match in root.glob(pattern) if match.is_file() and _wanted(match.relative_to(root))
        ]
        if not found:
            raise BundleError(f"{config}: include {pattern!r} matches no file.")
        yield from (inside(root, match).relative_to(root).as_posix() for match in found)


def _wanted(relative: Path) -> bool:
    folders = relative.parts[:-1]
    if any(part in EXCLUDED or part.startswith(".") for part in folders):
        return False
    return relative.suffix != ".pyc"


def _check_size(root: Path, files: tuple[str, ...]) -> None:
    sizes = sorted(((root / name).stat().st_size, name) for name in files)
    total = sum(size for size, _ in sizes)
    if total > MAX_BYTES:
        largest = ", ".join(f"{name} ({size >> 20} MiB)" for size, name in reversed(sizes[-3:]))
        raise BundleError(
            f"the bundle has {total >> 20} MiB, and {MAX_BYTES >> 20} MiB is the limit; largest: {largest}.",
            hint="Keep weights and data out of it; fetch them in load().",
        )


def _zip(root: Path, files: tuple[str, ...]) -> bytes:
    # Stored, not deflated: the bytes of a compressed zip depend on the version of zlib.
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name in files:
            info = zipfile.ZipInfo(name, _EPOCH)
            info.external_attr = _MODE << 16
            info.create_system = 3
            try:
                archive.writestr(info, (root / name).read_bytes())
            except OSError as error:
                raise BundleError(f"cannot read {root / name}: {error}.") from error
    return buffer.getvalue()
