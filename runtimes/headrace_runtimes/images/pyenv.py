"""Environments of the process runtime: made by uv, shared by all that ask for the same, kept until unused.

    <name>/          an environment: ``env`` (a virtual one, bytecode compiled), ``files`` (what was copied)
    <name>/whole.json  written last: without it the directory is garbage
    locks/  cache/   who makes one just now; uv's own

The name is the digest of the definition and the interpreter. Whoever uses one holds it (`Environments.hold`);
`Environments.collect` removes what nobody holds.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from headrace_runtimes.base import Progress
from headrace_runtimes.errors import ImageFailed, NotSupported, PrepareFailed
from headrace_runtimes.images.build import find_uv
from headrace_runtimes.images.definition import Image, check, refused_by_process
from headrace_runtimes.images.hostroot import probe
from headrace_runtimes.images.locks import alone
from headrace_runtimes.images.reference import variables
from headrace_runtimes.images.store import sync, write_whole
from headrace_runtimes.images.tool import run_tool
from headrace_runtimes.locks import try_lock
from headrace_runtimes.trees import remove_tree

WHOLE = "whole.json"
KEPT = (
    "PATH",
    "HOME",
    "LANG",
    "TMPDIR",
    "http_proxy",
    "https_proxy",
    "no_proxy",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
)
"""What uv sees of our environment, beside ``UV_*`` and proxies in capitals."""


@dataclass(frozen=True)
class PyEnvSettings:
    """How environments are made."""

    host_python: str
    """Used when it has the version that is asked for; else uv brings one."""
    uv: str | None = None
    timeout_s: float = 1800.0
    env: Mapping[str, str] = field(default_factory=dict)
    """For uv: indexes and their passwords. Never shown."""


@dataclass(frozen=True)
class PyEnv:
    """An environment that is here."""

    name: str
    python: str
    """Its interpreter."""
    env: Mapping[str, str]
    """Variables of the definition, and ``HEADRACE_FILES`` when it copies."""
    paths: tuple[str, ...]
    """Directories to add to ``sys.path``: the copied files."""


class Environments:
    """Environments below ``directory``."""

    def __init__(self, directory: Path, settings: PyEnvSettings) -> None:
        self.directory, self._settings = directory, settings

    async def open(self) -> None:
        """Make the directories; remove what a dead builder has left. Raises `PrepareFailed`."""
        try:
            await asyncio.to_thread(self._open)
        except OSError as error:
            raise PrepareFailed(f"Environments cannot be kept in {self.directory}: {error}.") from error

    async def prepare(
        self, image: Image, context: Path | None = None, progress: Progress | None = None
    ) -> PyEnv:
        """The environment, made now or before. ``context`` holds the files of `context.unpack`.

        Raises `NotSupported` for what needs a file system of its own, `ImageFailed` with uv's last words.
        """
        check(image)
        if reason := refused_by_process(image):
            raise NotSupported(f"{reason}.")
        name = await asyncio.to_thread(self._name, image)
        if found := self._find(name):
            return found
        async with alone(self.directory / "locks" / name, f"environment {name}"):
            if found := self._find(name):
                return found
            try:
                await self._make(name, image, context, progress)
            except BaseException:
                await asyncio.shield(asyncio.to_thread(remove_tree, self.directory / name))
                raise
        found = self._find(name)
        if found is None:
            raise PrepareFailed(f"The environment {name} has gone while it was made: prepare it again.")
        return found

    @contextlib.contextmanager
    def hold(self, name: str) -> Iterator[None]:
        """While this lasts, and this process lives, the environment stays. Raises `PrepareFailed`."""
        try:
            file = os.open(self.directory / name / WHOLE, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise PrepareFailed(f"The environment {name} is not here: prepare it again.") from error
        try:
            if not self._share(file, name):
                raise PrepareFailed(f"The environment {name} is being removed: prepare it again.")
            yield
        finally:
            os.close(file)

    def _share(self, file: int, name: str) -> bool:
        """Whether we hold it now, and it is still there."""
        if not try_lock(file, fcntl.LOCK_SH):
            return False
        os.utime(file)
        return (self.directory / name / WHOLE).exists()

    async def collect(self, limit_bytes: int, max_age_s: float, pins: Collection[str] = ()) -> list[str]:
        """Remove what nobody has used for ``max_age_s``, then the longest unused until all fits.

        uv's cache goes as a whole when it alone is more. Raises `ImageFailed` when uv cannot.
        """
        gone = await asyncio.to_thread(self._collect, limit_bytes, max_age_s, frozenset(pins))
        if await asyncio.to_thread(_size, self.directory / "cache") > limit_bytes:
            await self._uv("cache clean", None, "cache", "clean")
        return gone

    def _name(self, image: Image) -> str:
        about = probe(self._settings.host_python)
        made_at = Path(str(about["python"])).stat().st_mtime_ns
        words = json.dumps([image.encode().decode(), about["python"], about["version"], made_at])
        return hashlib.sha256(words.encode()).hexdigest()[:32]

    def _find(self, name: str) -> PyEnv | None:
        path = self.directory / name / WHOLE
        try:
            about: Any = json.loads(path.read_bytes())
            os.utime(path)
            return PyEnv(name, about["python"], about["env"], tuple(about["paths"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None

    async def _make(self, name: str, image: Image, context: Path | None, progress: Progress | None) -> None:
        # In its final place from the start: scripts and bytecode hold absolute paths. Only the mark is last.
        place = self.directory / name
        await asyncio.to_thread(remove_tree, place)
        place.mkdir(mode=0o755)
        python = str(place / "env/bin/python")
        wanted = await asyncio.to_thread(self._interpreter, image.python)
        try:
            await self._uv(
                f"python {wanted}", progress, "venv", "--no-config", "--python", wanted, str(place / "env")
            )
        except ImageFailed as error:
            if wanted == self._settings.host_python:
                raise
            raise ImageFailed(
                f"Python {wanted} is not on this host and cannot be fetched: install it there, for example "
                f"with `uv python install {wanted}`, or use the platform's own (Image().pip(...)). {error}"
            ) from error
        env: dict[str, str] = {}
        paths: list[str] = []
        for kind, words in image.steps:
            if kind == "pip":
                await self._uv(
                    f"pip {' '.join(words)}", progress, "pip", "install", "--no-config", "--compile-bytecode",
                    "--python", python, "--", *words,
                )  # fmt: skip
            elif kind == "env":
                env |= variables(words)
            elif kind == "copy":
                await asyncio.to_thread(_copy, context, words, place / "files")
                env["HEADRACE_FILES"], paths = str(place / "files"), [str(place / "files")]
        await asyncio.to_thread(sync, place)
        size = await asyncio.to_thread(_size, place)
        about = {"python": python, "env": env, "paths": paths, "bytes": size}
        await asyncio.to_thread(write_whole, place / WHOLE, json.dumps(about).encode(), place / ".part")

    def _interpreter(self, version: str | None) -> str:
        """What uv is asked for: our own interpreter when it is of that version."""
        about: Any = probe(self._settings.host_python)
        own = ".".join(str(n) for n in about["version"])
        if version is None or f"{own}.".startswith(f"{version}."):
            return self._settings.host_python
        return version

    async def _uv(self, what: str, progress: Progress | None, *arguments: str) -> None:
        uv = find_uv(self._settings.uv)
        if uv is None:
            raise PrepareFailed("uv is not installed: pip install uv where the platform runs.")
        env = {
            k: v for k, v in os.environ.items() if k in KEPT or k.startswith("UV_") or k.endswith("_PROXY")
        }
        env |= {"UV_CACHE_DIR": str(self.directory / "cache"), "UV_NO_PROGRESS": "1"}
        # Where sandboxes may read it, not below somebody's home.
        env |= {"UV_PYTHON_INSTALL_DIR": str(self.directory / "pythons"), **self._settings.env}
        try:
            code, words = await run_tool(
                [uv, *arguments], env=env, cwd=self.directory, what=what,
                timeout_s=self._settings.timeout_s, progress=progress,
            )  # fmt: skip
        except TimeoutError as error:
            raise ImageFailed(f"{what!r:.200} took more than {self._settings.timeout_s:g} s.") from error
        except OSError as error:
            raise PrepareFailed(f"{uv} cannot be run: {error}.") from error
        if code != 0:
            raise ImageFailed(f"{what!r:.200} failed with exit code {code}: {words}")

    def _collect(self, limit_bytes: int, max_age_s: float, pins: frozenset[str]) -> list[str]:
        now, found = time.time(), []
        for path in self._environments():
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                size = int(json.loads((path / WHOLE).read_bytes())["bytes"])
                found.append(((path / WHOLE).stat().st_mtime, size, path.name))
        total, gone = sum(size for _, size, _ in found), []
        for used, size, name in sorted(found):
            if name not in pins and (now - used > max_age_s or total > limit_bytes) and self._remove(name):
                gone.append(name)
                total -= size
        return gone

    def _remove(self, name: str) -> bool:
        """Unless somebody holds it."""
        path = self.directory / name
        try:
            file = os.open(path / WHOLE, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            if not try_lock(file):
                return False
            (path / WHOLE).unlink()
            remove_tree(path)
            return True
        finally:
            os.close(file)

    def _environments(self) -> list[Path]:
        return [p for p in self.directory.iterdir() if len(p.name) == 32 and p.is_dir()]

    def _open(self) -> None:
        (self.directory / "locks").mkdir(parents=True, exist_ok=True)
        for path in self._environments():
            if (path / WHOLE).exists():
                continue
            lock = os.open(self.directory / "locks" / path.name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                if try_lock(lock):
                    if not (path / WHOLE).exists():
                        remove_tree(path)
                    (self.directory / "locks" / path.name).unlink(missing_ok=True)
            finally:
                os.close(lock)


def _copy(context: Path | None, words: tuple[str, ...], target: Path) -> None:
    """Raises `ImageFailed`."""
    source = context / words[0] if context is not None else None
    if source is None or not source.exists():
        raise ImageFailed(f"{words[0]!r} is not here: deploy the endpoint again.")
    place = target / words[1]
    try:
        if source.is_dir():
            shutil.copytree(source, place, dirs_exist_ok=True)
            return
        if words[1].endswith("/"):
            place /= source.name
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, place)
    except (OSError, shutil.Error) as error:
        raise ImageFailed(f"{words[0]!r} cannot be copied: {error}.") from error


def _size(directory: Path) -> int:
    total = 0
    for folder, _, files in os.walk(directory):
        for name in files:
            about = os.lstat(os.path.join(folder, name))
            # What is linked from uv's cache is counted there.
            total += about.st_blocks * 512 // max(about.st_nlink, 1)
    return total
