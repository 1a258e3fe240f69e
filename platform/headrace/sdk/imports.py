"""Reads what Python files import, without running them: local modules to bundle, packages to preload."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from importlib.machinery import PathFinder
from pathlib import Path
from typing import NamedTuple

from headrace.errors import BundleError

MAX_FILES = 5000
"""Local modules of one bundle; more means that the root is not a project."""


class Found(NamedTuple):
    """What a file and the local modules it reaches need. Paths are below the root, POSIX style, sorted."""

    files: tuple[str, ...]
    packages: tuple[str, ...]
    """What comes from installed modules at a module's top, dotted, sorted; ``from a import b`` gives ``a``
    and ``a.b``, which is a module or not: only an import can tell."""


class _Import(NamedTuple):
    module: str
    names: tuple[str, ...]
    top: bool


def reachable(root: Path, entry: Path) -> Found:
    """Follow the imports of ``entry`` through the local modules below ``root``.

    Raises `BundleError` for a file that is unreadable, no Python, or outside ``root`` by a symlink.
    """
    files: set[str] = set()
    packages: set[str] = set()
    installed: dict[str, bool] = {}
    waiting = [entry, *_parents(root, entry)]
    while waiting:
        path = waiting.pop()
        relative = path.relative_to(root).as_posix()
        if relative in files:
            continue
        if len(files) >= MAX_FILES:
            raise BundleError(f"{entry.name} reaches more than {MAX_FILES} local modules.")
        files.add(relative)
        package = path.parent.relative_to(root).parts
        for found in _imports_of(root, path, package):
            local = list(_local(root, found))
            waiting += local
            top = found.module.partition(".")[0]
            if local or not found.top or top == "headrace":
                continue
            if top not in installed:
                installed[top] = _is_installed(top)
            if installed[top]:
                packages.add(found.module)
                packages.update(f"{found.module}.{name}" for name in found.names if name != "*")
    return Found(tuple(sorted(files)), tuple(sorted(packages)))


def inside(root: Path, path: Path) -> Path:
    """``path`` itself, when it and what it links to are below ``root``. Raises `BundleError`."""
    real = path.resolve()
    if not real.is_relative_to(root):
        raise BundleError(
            f"{path.relative_to(root)} links to {real}, outside of {root}.", hint="Copy it there."
        )
    return path


def _imports_of(root: Path, path: Path, package: tuple[str, ...]) -> Iterator[_Import]:
    try:
        tree = ast.parse(inside(root, path).read_bytes(), str(path))
    except SyntaxError as error:
        raise BundleError(f"{path}, line {error.lineno}: {error.msg}.") from error
    except (OSError, ValueError) as error:
        raise BundleError(f"cannot read {path}: {error}.") from error
    yield from _walk(tree.body, package, True)


def _walk(body: list[ast.stmt], package: tuple[str, ...], top: bool) -> Iterator[_Import]:
    for node in body:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield _Import(alias.name, (), top)
        elif isinstance(node, ast.ImportFrom):
            module = _absolute(node, package)
            if module:
                yield _Import(module, tuple(alias.name for alias in node.names), top)
        else:
            executed = top and not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            if isinstance(node, ast.If) and _never_in_a_sandbox(node.test):
                yield from _walk(node.orelse, package, executed)
                continue
            for block in _blocks(node):
                yield from _walk(block, package, executed)


def _blocks(node: ast.AST) -> Iterator[list[ast.stmt]]:
    for field in ("body", "orelse", "finalbody"):
        block = getattr(node, field, None)
        if isinstance(block, list) and block and isinstance(block[0], ast.stmt):
            yield block
    for field in ("handlers", "cases"):
        for child in getattr(node, field, ()):
            yield child.body


def _never_in_a_sandbox(test: ast.expr) -> bool:
    """``if TYPE_CHECKING:`` and ``if __name__ == "__main__":``."""
    if isinstance(test, ast.Compare) and isinstance(test.left, ast.Name):
        return test.left.id == "__name__"
    return (isinstance(test, ast.Name) and test.id == "TYPE_CHECKING") or (
        isinstance(test, ast.Attribute) and test.attr == "TYPE_CHECKING"
    )


def _absolute(node: ast.ImportFrom, package: tuple[str, ...]) -> str:
    if not node.level:
        return node.module or ""
    base = package[: len(package) - node.level + 1]
    return ".".join((*base, *(node.module.split(".") if node.module else ())))


def _local(root: Path, found: _Import) -> Iterator[Path]:
    """The files below ``root`` that this import runs: the packages above, the module, its submodules."""
    parts = found.module.split(".")
    for depth in range(1, len(parts) + 1):
        here = root.joinpath(*parts[:depth])
        if (here / "__init__.py").is_file():
            yield here / "__init__.py"
        elif depth == len(parts) and here.with_name(here.name + ".py").is_file():
            yield here.with_name(here.name + ".py")
        elif not here.is_dir():
            return
    for name in found.names:
        below = root.joinpath(*parts, name)
        for candidate in (below / "__init__.py", below.with_name(name + ".py")):
            if candidate.is_file():
                yield candidate
                break


def _parents(root: Path, path: Path) -> Iterator[Path]:
    folder = path.parent
    while folder != root:
        if (folder / "__init__.py").is_file():
            yield folder / "__init__.py"
        folder = folder.parent


def _is_installed(name: str) -> bool:
    """Whether a top-level module comes from an installed distribution, and not the standard library."""
    if name in sys.stdlib_module_names:
        return False
    loaded = sys.modules.get(name)
    spec = getattr(loaded, "__spec__", None) or PathFinder.find_spec(name)
    return spec is not None
