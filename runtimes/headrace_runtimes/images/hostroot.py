"""A root file system made of the host's own Python: interpreter, libraries, nothing else.

The interpreter keeps its paths: its libraries name each other by absolute ones.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import re
import shutil
import struct
import subprocess
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from headrace_runtimes.errors import PrepareFailed
from headrace_runtimes.images.locks import alone
from headrace_runtimes.trees import remove_tree

PROBE_TIMEOUT_S = 60.0
COMPILE_TIMEOUT_S = 300.0
LEFT_OUT = ("site-packages", "test", "tests", "idlelib", "ensurepip", "turtledemo", "lib2to3")
OBJECTS_AT_ONCE = 128
LINKS = 40
"""In a row, as the kernel has it."""
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
_LISTED = re.compile(r"^\s*(\S+) \(libc6,(?:x86-64|AArch64)[^)]*\) => (\S+)$", re.MULTILINE)
_ELF64 = b"\x7fELF\x02\x01"
_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_SEGMENT = struct.Struct("<IIQQQQQQ")
_ENTRY = struct.Struct("<QQ")
_PT_DYNAMIC = 2
_DT_NEEDED, _DT_STRTAB, _DT_STRSZ = 1, 5, 10
_MAX_NAMES = 64 << 20


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


async def host_root(python: str, images: Path) -> Path:
    """`make_host_root` of this interpreter, once for all who share ``images``. Raises `PrepareFailed`."""
    words = await asyncio.to_thread(_identity, python)
    target = images / f"host-{hashlib.sha256(json.dumps(words).encode()).hexdigest()[:16]}"
    if not target.exists():
        async with alone(images / "locks/host-root", "the root of the host's Python"):
            if not target.exists():
                await asyncio.to_thread(make_host_root, python, target)
    return target


def _identity(python: str) -> list[object]:
    """What tells this interpreter and its environment from others."""
    about = probe(python)
    binary = Path(str(about["python"]))
    aliases = [str(path) for path in _aliases(Path(python))]
    return [
        str(binary), about["version"], binary.stat().st_mtime_ns, str(Path(python).parent.parent), aliases,
    ]  # fmt: skip


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
        with ThreadPoolExecutor(1) as beside:
            # Both wait for the disk and for other programs.
            named = beside.submit(_needed_below, Path(python).parent.parent)
            for path in stdlib:
                shutil.copytree(
                    path, part / path.relative_to("/"), symlinks=True, dirs_exist_ok=True,
                    ignore=shutil.ignore_patterns(*LEFT_OUT, "*.a", "config-*", "*.opt-[12].pyc"),
                )  # fmt: skip
            copies = [part / path.relative_to("/") for path in stdlib]
            compiled = beside.submit(_compile, python, part, copies)
            objects = [Path("/") / p.relative_to(part) for copy in copies for p in copy.rglob("*.so*")]
            for library in _libraries([binary, *objects]) | named.result():
                _copy(library, part)
            compiled.result()
        aliases = _aliases(Path(python))
        for alias in aliases:
            at = part / alias.relative_to("/")
            at.parent.mkdir(parents=True, exist_ok=True)
            if not at.exists():
                at.symlink_to(binary)
        for ancestor in {up for p in (binary, *aliases, *stdlib) for up in p.parents if up != Path("/")}:
            (part / ancestor.relative_to("/")).chmod(0o755)
        (part / "etc/passwd").write_text(
            "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534::/:/bin/false\n"
        )
        (part / "etc/group").write_text("root:x:0:\nnogroup:x:65534:\n")
        (part / "etc/nsswitch.conf").write_text("hosts: files dns\n")
        for name in ("python3", "python"):
            if not os.path.lexists(part / "usr/bin" / name):
                (part / "usr/bin" / name).symlink_to(binary)
        os.replace(part, target)
    except (OSError, shutil.Error, subprocess.SubprocessError) as error:
        remove_tree(part)
        raise PrepareFailed(f"The root of the host's Python cannot be made in {target}: {error}.") from error
    return str(binary)


def _aliases(python: Path) -> list[Path]:
    """The paths outside of an environment on the way from its interpreter to the file itself.

    Some tools that make environments link to the file, others to a link beside it.
    """
    prefix, found = python.parent.parent, list[Path]()
    while python.is_symlink() and len(found) < LINKS:
        python = Path(os.path.normpath(python.parent / python.readlink()))
        found.append(python)
    return [path for path in found if prefix not in path.parents]


def _copy(source: Path, root: Path) -> None:
    """The file at the path by which it is asked for, and each directory above it."""
    target = root / source.relative_to("/")
    target.parent.mkdir(parents=True, exist_ok=True)
    if not target.exists():
        shutil.copy2(source, target)
        target.chmod(0o755)


def _compile(python: str, root: Path, directories: Iterable[Path]) -> None:
    """Bytecode for what has none yet: else every new process compiles what it imports."""
    command = [python, "-I", "-m", "compileall", "-q", "-j", "2", "-s", str(root), "-p", "/"]
    with contextlib.suppress(subprocess.TimeoutExpired):
        # What does not compile here is not imported either: some of the library is made to be wrong.
        subprocess.run(
            [*command, *map(str, directories)], capture_output=True, check=False, timeout=COMPILE_TIMEOUT_S
        )


def _libraries(objects: Iterable[Path]) -> set[Path]:
    """Shared libraries that these need, by the paths that the loader uses."""
    found: set[Path] = set()
    files = [str(p) for p in objects if p.is_file()]
    for at in range(0, len(files), OBJECTS_AT_ONCE):
        done = subprocess.run(
            ["ldd", *files[at : at + OBJECTS_AT_ONCE]],
            capture_output=True,
            text=True,
            timeout=PROBE_TIMEOUT_S,
            check=False,
        )
        found.update(Path(m) for m in _LIBRARY.findall(done.stdout))
    return found


def _needed_below(prefix: Path) -> set[Path]:
    """The system's libraries that the extension modules of an environment name: only these are looked at.

    Asking the loader about each of thousands takes too long.
    """
    if not (prefix / "pyvenv.cfg").exists():
        return set()
    found = (Path(at, name) for at, _, files in os.walk(prefix) for name in files if ".so" in name)
    names = {name for path in found for name in needed(path)}
    program = shutil.which("ldconfig", path="/usr/sbin:/sbin:/usr/bin:/bin")
    if program is None:
        return set()
    listed = subprocess.run(
        [program, "-p"], capture_output=True, text=True, timeout=PROBE_TIMEOUT_S, check=False
    )
    known = {m[1]: Path(m[2]) for m in reversed(list(_LISTED.finditer(listed.stdout)))}
    direct = {known[name] for name in names if name in known}
    return direct | _libraries(direct)


def needed(path: Path) -> list[str]:
    """What a shared object (ELF, 64 bit, little endian) asks for by name; nothing for any other file."""
    try:
        with path.open("rb") as file:
            head = file.read(_HEADER.size)
            if len(head) < _HEADER.size or head[:6] != _ELF64:
                return []
            fields = _HEADER.unpack(head)
            offset, size, count = fields[5], fields[9], fields[10]
            file.seek(offset)
            table = file.read(size * count)
            segments = [_SEGMENT.unpack_from(table, at * size) for at in range(count)]
            dynamic = next((s for s in segments if s[0] == _PT_DYNAMIC), None)
            if dynamic is None:
                return []
            file.seek(dynamic[2])
            entries = list(_ENTRY.iter_unpack(file.read(dynamic[5] // _ENTRY.size * _ENTRY.size)))
            text = next((value for tag, value in entries if tag == _DT_STRTAB), 0)
            length = next((value for tag, value in entries if tag == _DT_STRSZ), 0)
            start = next((s[2] + text - s[3] for s in segments if s[0] == 1 and 0 <= text - s[3] < s[5]), 0)
            file.seek(start)
            names = file.read(min(length, _MAX_NAMES))
    except (OSError, struct.error, ValueError):
        return []
    return [
        names[value : names.find(b"\0", value)].decode("utf-8", "replace")
        for tag, value in entries
        if tag == _DT_NEEDED
    ]
