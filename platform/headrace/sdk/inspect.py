"""Finds the endpoints that a Python file defines: imports it, and gives their specs and the bundle.

``python -m headrace.sdk.inspect app.py --out DIR`` does it in a process of its own and prints one JSON
document; `inspect_fresh` runs that, `inspect_file` works in this process.
"""

from __future__ import annotations

import argparse
import importlib
import os
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import msgspec

from headrace.errors import BundleError, HeadraceError, SpecError
from headrace.sdk.bundle import Bundle, make_bundle
from headrace.sdk.endpoint import Endpoint
from headrace.sdk.pack import pack_image
from headrace.sdk.spec import EndpointSpec

TIMEOUT_S = 120.0
"""An import that takes longer is given up."""
_HEADRACE = Path(__file__).parents[1]
_PACKAGES = {"site-packages", "dist-packages"}


class BundleFile(msgspec.Struct, frozen=True, kw_only=True):
    """A bundle on disk."""

    sha256: str
    path: str
    bytes: int


class Inspection(msgspec.Struct, frozen=True, kw_only=True):
    """What can be deployed from one file."""

    root: str
    bundle: BundleFile
    contexts: list[BundleFile] = []
    """Images' definitions with their files, one for each image."""
    specs: list[EndpointSpec]
    files: list[str] = []


class _Failure(msgspec.Struct, kw_only=True, omit_defaults=True):
    error: str
    traceback: str = ""


class InspectionFailed(BundleError):
    """The file cannot be imported, or defines no endpoint.

    ``traceback``: what the user's code raised or printed when it failed; empty when it is not to blame.
    """

    def __init__(self, message: str, *, hint: str = "", traceback: str = "") -> None:
        super().__init__(message, hint=hint)
        self.traceback = traceback


def inspect_file(path: str | os.PathLike[str], out: str | os.PathLike[str] | None = None) -> Inspection:
    """Import the file here and describe its endpoints; the bundle is written to ``out``.

    ``out`` defaults to a directory in the system's temporary one. Local modules of an earlier inspection are
    imported anew. Raises `BundleError`, `SpecError`, or `InspectionFailed` with the traceback of user code.
    """
    bundle = make_bundle(path)
    module = _import(bundle)
    endpoints = _endpoints_of(module)
    if not endpoints:
        raise InspectionFailed(
            f"{path} defines no endpoint.", hint="Decorate a function with @headrace.endpoint."
        )
    imports = _preloadable(bundle)
    target = Path(out) if out is not None else Path(tempfile.mkdtemp(prefix="headrace-bundle-"))
    specs: dict[str, EndpointSpec] = {}
    contexts: dict[str, BundleFile] = {}
    files = set(bundle.files)
    for variable, found in endpoints.items():
        if found.name in specs:
            raise SpecError(
                f"{path} defines two endpoints named {found.name!r}.", hint="Give one another name."
            )
        packed = pack_image(found.spec.image, bundle.root)
        if packed is not None:
            contexts[packed.spec.context] = _write(packed.spec.context, packed.data, target)
            files.update(packed.files)
        specs[found.name] = msgspec.structs.replace(
            found.spec,
            image=packed.spec if packed is not None else found.spec.image,
            entry=f"{bundle.module}:{variable}",
            bundle=bundle.sha256,
            imports=imports,
            openapi=found.openapi(),
        )
    return Inspection(
        root=str(bundle.root),
        bundle=_write(bundle.sha256, bundle.data, target),
        contexts=list(contexts.values()),
        specs=[specs[name] for name in sorted(specs)],
        files=sorted(files),
    )


def inspect_fresh(
    path: str | os.PathLike[str], out: str | os.PathLike[str], timeout: float = TIMEOUT_S
) -> Inspection:
    """`inspect_file` in a fresh process, so that user code runs with nothing of ours around it.

    Raises `InspectionFailed`, also after ``timeout`` seconds.
    """
    command = [sys.executable, "-m", "headrace.sdk.inspect", os.fspath(path), "--out", os.fspath(out)]
    environ = {name: value for name, value in os.environ.items() if name != "HEADRACE_API_KEY"}
    try:
        done = subprocess.run(command, capture_output=True, timeout=timeout, check=False, env=environ)
    except subprocess.TimeoutExpired as error:
        raise InspectionFailed(
            f"importing {path} took more than {timeout:g} s.", hint="Move slow work to load()."
        ) from error
    try:
        if done.returncode == 0:
            return msgspec.json.decode(done.stdout, type=Inspection)
        failure = msgspec.json.decode(done.stdout, type=_Failure)
    except msgspec.DecodeError as error:
        tail = done.stderr.decode(errors="replace")[-4000:] or "It printed nothing on stderr."
        raise InspectionFailed(
            f"importing {path} ended the process with code {done.returncode}.", traceback=tail
        ) from error
    raise InspectionFailed(failure.error, traceback=failure.traceback)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command: one JSON document on stdout, exit code 0 or 1."""
    parser = argparse.ArgumentParser(prog="python -m headrace.sdk.inspect", description=main.__doc__)
    parser.add_argument("file", help="the Python file that holds the endpoints")
    parser.add_argument("--out", help="where to write the bundle (default: a temporary directory)")
    given = parser.parse_args(arguments)
    # What user code prints while it is imported must not end up in the document.
    sys.stdout.flush()
    document = os.dup(1)
    os.dup2(2, 1)
    result: Inspection | _Failure
    try:
        result = inspect_file(given.file, given.out)
    except InspectionFailed as error:
        result = _Failure(error=str(error), traceback=error.traceback)
    except HeadraceError as error:
        result = _Failure(error=str(error))
    sys.stdout.flush()
    with os.fdopen(document, "wb") as stream:
        stream.write(msgspec.json.encode(result) + b"\n")
    return 1 if isinstance(result, _Failure) else 0


def _import(bundle: Bundle) -> ModuleType:
    root = str(bundle.root)
    # Also of another project: its modules may have the same names.
    for name in _modules_of(bundle) & set(sys.modules):
        if name.partition(".")[0] not in sys.stdlib_module_names:
            del sys.modules[name]
    importlib.invalidate_caches()
    sys.path.insert(0, root)
    try:
        return importlib.import_module(bundle.module)
    except (SystemExit, Exception) as error:
        if isinstance(error, HeadraceError):
            where = _user_line(error, root)
            if where:
                error.args = (f"{where}: {error.message}",)
            raise
        raise InspectionFailed(
            f"importing {bundle.module} failed: {type(error).__name__}: {error}",
            traceback=_user_traceback(error, root),
        ) from error
    finally:
        sys.path.remove(root)


def _modules_of(bundle: Bundle) -> set[str]:
    """Import names of the bundled files."""
    paths = (Path(name).with_suffix("").parts for name in bundle.files if name.endswith(".py"))
    return {".".join(parts[:-1] if parts[-1] == "__init__" else parts) for parts in paths}


def _user_line(error: BaseException, root: str) -> str:
    """``app.py, line 3``: where in the user's code a refused option is; empty when it is nowhere there."""
    where = ""
    for frame, line in traceback.walk_tb(error.__traceback__):
        if _is_users(frame.f_code.co_filename, root):
            where = f"{os.path.relpath(frame.f_code.co_filename, root)}, line {line}"
    return where


def _is_users(file: str, root: str) -> bool:
    """Whether a frame's file is the project's own: Headrace and other packages may lie below it, too."""
    path = Path(file)
    if not path.is_relative_to(root) or path.is_relative_to(_HEADRACE):
        return False
    return not _PACKAGES & set(path.relative_to(root).parts)


def _user_traceback(error: BaseException, root: str) -> str:
    """The traceback from the first frame of the user's code on; all of it when there is none."""
    step = error.__traceback__
    while step is not None and not _is_users(step.tb_frame.f_code.co_filename, root):
        step = step.tb_next
    return "".join(traceback.format_exception(type(error), error, step or error.__traceback__))


def _endpoints_of(module: ModuleType) -> dict[str, Endpoint[..., object]]:
    """Variable name -> endpoint, of those the module defines itself, each once."""
    found: dict[str, Endpoint[..., object]] = {}
    seen: set[int] = set()
    for variable, value in vars(module).items():
        if not isinstance(value, Endpoint) or id(value) in seen:
            continue
        # Decorated here, or (by a helper of another module) of a handler defined here; not just imported.
        if module.__name__ in (value.__module__, getattr(value.__headrace_handler__, "__module__", None)):
            seen.add(id(value))
            found[variable] = value
    return found


def _preloadable(bundle: Bundle) -> tuple[str, ...]:
    return tuple(name for name in bundle.packages if name in sys.modules)


def _write(sha256: str, data: bytes, target: Path) -> BundleFile:
    target.mkdir(parents=True, exist_ok=True)
    path = target / f"{sha256}.zip"
    if not path.is_file():
        partial = path.with_suffix(f".{os.getpid()}")
        partial.write_bytes(data)
        partial.replace(path)
    return BundleFile(sha256=sha256, path=str(path), bytes=len(data))


if __name__ == "__main__":
    sys.exit(main())
