"""A root file system made of the host's own Python: interpreter, libraries, nothing else.

The interpreter keeps its paths: its libraries name each other by absolute ones.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

from headrace_runtimes.errors import PrepareFailed
from headrace_runtimes.trees import remove_tree

PROBE_TIMEOUT_S = 60.0
LEFT_OUT = ("site-packages", "__pycache__", "test", "tests", "idlelib", "ensurepip", "turtledemo", "lib2to3")
DIRECTORIES = (
    "proc", "sys", "dev", "tmp", "run/secrets", "etc", "root", "var/tmp", "usr/bin", "bin",
    "headrace/engine", "headrace/door", "headrace/code", "headrace/home",
)  # fmt: skip
_PROBE = """
import json, sys, sysconfig
p = sysconfig.get_paths()
print(json.dumps({"python": sys.executable and __import__("os").path.realpath(sys.executable),
  "stdlib": [p["stdlib"], p["platstdlib"]], "prefix": sys.base_prefix,
  "version": list(sys.version_info[:3])}))
"""
_LIBRARY = re.compile(r"(?:=> )?(/\S+) \(0x")


def probe(python: str) -> dict[str, object]:
    """What the interpreter says of itself. Blocks. Raises `PrepareFailed`."""
    try:
        done = subprocess.run(
            [python, "-I", "-c", _PROBE], capture_output=True, check=True, timeout=PROBE_TIMEOUT_S, cwd="/"
        )
        found: dict[str, object] = json.loads(done.stdout)
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        raise PrepareFailed(f"{python} does not start: {error}. Reinstall the environment.") from error
    return found


def make_host_root(python: str, target: Path) -> str:
    """Fill the new directory ``target``; returns the interpreter's path in it. Blocks for seconds.

    Raises `PrepareFailed`; nothing is left then.
    """
    about = probe(python)
    binary = Path(str(about["python"]))
    part = target.with_name(target.name + ".part")
    remove_tree(part)
    try:
        for name in DIRECTORIES:
            (part / name).mkdir(parents=True, exist_ok=True)
        (part / "tmp").chmod(0o1777)
        (part / "var/tmp").chmod(0o1777)
        _copy(binary, part)
        stdlib = {Path(p) for p in about["stdlib"]}  # type: ignore[attr-defined]
        for path in stdlib:
            shutil.copytree(
                path, part / path.relative_to("/"), symlinks=True, dirs_exist_ok=True,
                ignore=shutil.ignore_patterns(*LEFT_OUT, "*.a", "config-*"),
            )  # fmt: skip
        objects = [binary, *(p for path in stdlib for p in path.rglob("*.so*"))]
        for library in _libraries(objects):
            _copy(library, part)
        for ancestor in {up for p in (binary, *stdlib) for up in p.parents if up != Path("/")}:
            (part / ancestor.relative_to("/")).chmod(0o755)
        (part / "etc/passwd").write_text(
            "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534::/:/bin/false\n"
        )
        (part / "etc/group").write_text("root:x:0:\nnogroup:x:65534:\n")
        (part / "etc/nsswitch.conf").write_text("hosts: files dns\n")
        for name in ("python3", "python"):
            (part / "usr/bin" / name).symlink_to(binary)
        os.replace(part, target)
    except (OSError, shutil.Error, subprocess.SubprocessError) as error:
        remove_tree(part)
        raise PrepareFailed(f"The root of the host's Python cannot be made in {target}: {error}.") from error
    return str(binary)


def _copy(source: Path, root: Path) -> None:
    """The file at the path by which it is asked for, and each directory above it."""
    target = root / source.relative_to("/")
    target.parent.mkdir(parents=True, exist_ok=True)
    if not target.exists():
        shutil.copy2(source, target)
        target.chmod(0o755)


def _libraries(objects: Iterable[Path]) -> set[Path]:
    """Shared libraries that these need, by the paths that the loader uses."""
    found: set[Path] = set()
    files = [str(p) for p in objects if p.is_file()]
    for at in range(0, len(files), 64):
        done = subprocess.run(
            ["ldd", *files[at : at + 64]],
            capture_output=True,
            text=True,
            timeout=PROBE_TIMEOUT_S,
            check=False,
        )
        found.update(Path(m) for m in _LIBRARY.findall(done.stdout))
    return found
