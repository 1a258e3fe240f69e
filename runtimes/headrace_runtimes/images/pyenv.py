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
import logging
import os
import secrets
import shutil
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from headrace_runtimes.base import Progress
from headrace_runtimes.errors import ImageFailed, NotSupported, PrepareFailed
from headrace_runtimes.images import limits
from headrace_runtimes.images.build import find_uv
from headrace_runtimes.images.confined import Sight, give, run_confined, why_not
from headrace_runtimes.images.definition import Image, check, refused_by_process
from headrace_runtimes.images.hostroot import probe
from headrace_runtimes.images.locks import alone
from headrace_runtimes.images.reach import Lend
from headrace_runtimes.images.reference import variables
from headrace_runtimes.images.store import dead_scratches, sync, write_whole
from headrace_runtimes.images.tool import run_tool
from headrace_runtimes.locks import try_lock
from headrace_runtimes.trees import remove_tree

log = logging.getLogger("headrace.runtimes")

WHOLE = "whole.json"
BUILD = "w-"
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


PLACES = ("UV_FIND_LINKS", "UV_INDEX", "UV_DEFAULT_INDEX", "UV_INDEX_URL", "UV_EXTRA_INDEX_URL", *KEPT[-2:])
"""Variables that may name files of the host for uv."""


@dataclass(frozen=True)
class PyEnvSettings:
    """How environments are made."""

    host_python: str
    """Used when it has the version that is asked for; else uv brings one."""
    uv: str | None = None
    timeout_s: float = 1800.0
    env: Mapping[str, str] = field(default_factory=dict)
    """For uv: indexes and their passwords. Never shown."""
    lend: Lend | None = None
    """What uv, and what packages start to be built, reach; None: the machine's network."""


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
            await asyncio.to_thread(self._remove_old_cache)
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
        # The rest of its place is ours: what packages run while they are built writes nowhere else.
        (place / "env").mkdir(mode=0o755)
        python = str(place / "env/bin/python")
        wanted = await asyncio.to_thread(self._interpreter, image.python)
        try:
            await self._uv(
                f"python {wanted}", progress, "venv", "--no-config", "--python", wanted, str(place / "env"),
                python=wanted,
            )  # fmt: skip
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
                    "--python", python, "--", *words, python=wanted,
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
        """What uv is asked for: our own interpreter when it is of that version, or one that is installed."""
        about: Any = probe(self._settings.host_python)
        own = ".".join(str(n) for n in about["version"])
        if version is None or f"{own}.".startswith(f"{version}."):
            return self._settings.host_python
        found = shutil.which(f"python{version}")
        # Many a tool puts scripts of such names there.
        if found is not None and Path(found).read_bytes()[:4] == b"\x7fELF":
            return found
        return version

    async def _uv(self, what: str, progress: Progress | None, *arguments: str, python: str = "") -> None:
        """``python``: the interpreter below the environment, where it is not our own."""
        uv = find_uv(self._settings.uv)
        if uv is None:
            raise PrepareFailed("uv is not installed: pip install uv where the platform runs.")
        env = {
            k: v for k, v in os.environ.items() if k in KEPT or k.startswith("UV_") or k.endswith("_PROXY")
        }
        # Where sandboxes may read it, not below somebody's home.
        env |= {
            "UV_CACHE_DIR": str(self.directory / "cache/uv"), "UV_NO_PROGRESS": "1",
            "UV_PYTHON_INSTALL_DIR": str(self.directory / "pythons"), **self._settings.env,
        }  # fmt: skip
        try:
            code, words = await self._run([uv, *arguments], python, env, what, progress)
        except TimeoutError as error:
            raise ImageFailed(f"{what!r:.200} took more than {self._settings.timeout_s:g} s.") from error
        except OSError as error:
            raise PrepareFailed(f"{uv} cannot be run: {error}.") from error
        if code != 0:
            raise ImageFailed(f"{what!r:.200} failed with exit code {code}: {words}")

    async def _run(
        self, argv: Sequence[str], python: str, env: Mapping[str, str], what: str, progress: Progress | None
    ) -> tuple[int, str]:
        """In a jail where the host is root. Raises `PrepareFailed`, ``TimeoutError``, ``OSError``."""
        settings = self._settings
        why = await asyncio.to_thread(why_not)
        if why and os.geteuid() == 0 and settings.lend is not None:
            raise PrepareFailed(
                f"Environments cannot be built here apart from the host, as root: {why}. Mend that, run the "
                "host as another user, or set build_allow to host."
            )
        if why:
            log.info("%s is done as the host's own user, with its files and its network: %s.", what, why)
            return await run_tool(
                argv, env=env, cwd=self.directory, what=what, timeout_s=settings.timeout_s, progress=progress,
            )  # fmt: skip
        scratch = self.directory / f"{BUILD}{secrets.token_hex(8)}"
        sight = await asyncio.to_thread(self._sight, env, python)
        lend = settings.lend or contextlib.nullcontext
        with _alone(scratch):
            try:
                async with lend() as reach:
                    return await run_confined(
                        argv[0], argv[1:], sight, scratch, env=env, what=what, timeout_s=settings.timeout_s,
                        progress=progress, reach=reach,
                    )  # fmt: skip
            finally:
                await asyncio.shield(asyncio.to_thread(remove_tree, scratch))

    def _sight(self, env: Mapping[str, str], python: str) -> Sight:
        """One mount for all of it: uv links from its cache. Blocks. Raises ``OSError``."""
        for path in (self.directory / "cache", self.directory / "pythons"):
            give(path)
        for path in self._environments():
            if not (path / WHOLE).exists() and (path / "env").is_dir():
                give(path / "env")
        shown = [Path(word) for name in PLACES for word in _paths(env.get(name, ""))]
        for interpreter in {self._settings.host_python, python}:
            if os.path.isabs(interpreter):
                about: Any = probe(interpreter)
                # A virtual environment says where it is by a file beside the directory of its programs.
                shown += [Path(p) for p in (about["prefix"], *about["stdlib"])]
                shown += [Path(interpreter).parent.parent, Path(about["python"]).parent]
        apart = [
            p for p in shown if not (self.directory.is_relative_to(p) or p.is_relative_to(self.directory))
        ]
        return Sight(tuple(apart), (self.directory,))

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

    def _remove_old_cache(self) -> None:
        """What uv kept here before it had a directory of its own below."""
        for path in (self.directory / "cache").iterdir():
            if path.name != "uv":
                remove_tree(path)

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
        for scratch in dead_scratches(self.directory):
            limits.remove(limits.PREFIX + scratch.name)
            remove_tree(scratch)
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


@contextlib.contextmanager
def _alone(scratch: Path) -> Iterator[None]:
    """Make it, locked for as long as we live: see `dead_scratches`."""
    scratch.mkdir(mode=0o700)
    lock = os.open(scratch, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def _paths(value: str) -> list[str]:
    """Absolute paths among the words of a variable, also in ``file://`` and ``name=file://``."""
    words = (word.rpartition("file://")[2] for word in value.replace(",", " ").split())
    return [word for word in words if word.startswith("/")]


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
