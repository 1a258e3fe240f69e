"""CRIU by way of runc: whether it works on this machine, and its two calls."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from headrace_runtimes.errors import PrepareFailed
from headrace_runtimes.oci.binary import Binary, empty

NAME = "criu"
CHECK_TIMEOUT_S = 10.0
CALL_TIMEOUT_S = 60.0
REASON_CHARS = 300
HARMLESS = ("rlimit: Can't setup RLIMIT_NOFILE for self",)
"""What CRIU calls an error and goes on: where CAP_SYS_RESOURCE was taken away it may not raise its limit."""
IMAGE, WORK = "image", "work"
"""Directories of a checkpoint: what was dumped, and the logs of it."""


@dataclass(frozen=True)
class Versions:
    """What a checkpoint can be restored with: these and no others."""

    kernel: str
    criu: str
    runtime: str
    cpu: str
    """Digest of the processor's features: memory holds code that was chosen by them."""
    boot: str
    """Which start of the machine: memory holds times of its monotonic clock."""


def chosen(wish: str = "", prefix: str = sys.prefix) -> str:
    """Which CRIU is used: the one that somebody wishes, else the environment's own, else the system's.

    ``prefix``: the directory of the Python environment, which may hold a newer one than the system.
    """
    own = Path(prefix, NAME, NAME)
    return wish or (str(own) if own.exists() else NAME)


def support(runtime: Binary) -> tuple[Versions | None, str]:
    """What checkpoints are made with here, or one line of why there are none. Blocks for up to a second."""
    path = shutil.which(runtime.criu)
    if why := _why_not(runtime):
        return None, why
    assert path is not None
    try:
        return _checked(runtime, path, platform.release())
    except (OSError, subprocess.SubprocessError) as error:
        return None, f"{path} does not run: {error}"
    except PrepareFailed as failed:
        return None, str(failed).rstrip(".")


def _why_not(runtime: Binary) -> str:
    if runtime.name != "runc":
        return f"checkpoints are made by runc, not by {runtime.name}: choose runc"
    if why := wrong_program(runtime.criu):
        return why
    return "" if os.geteuid() == 0 else "criu needs root"


def wrong_program(criu: str) -> str:
    """Why that name or path cannot be the CRIU on this machine; empty: it can."""
    path = shutil.which(criu)
    if path is None:
        return f"{criu} is not installed: apt-get install criu (4.1 or later for kernels of 2025)"
    if os.path.basename(path) != NAME:
        return f"runc looks for a program that is called {NAME}, not {os.path.basename(path)}"
    return ""


def _checked(runtime: Binary, path: str, kernel: str) -> tuple[Versions | None, str]:
    said = _run(path, "--version").stdout
    version = next(iter(re.findall(r"Version:\s*(\S+)", said)), "of unknown version")
    checked = _run(path, "check")
    if checked.returncode != 0:
        words = first_error(checked.stdout + "\n" + checked.stderr)
        return None, f"criu {version} does not work with the kernel {kernel}: {words} (criu check)"
    return Versions(kernel, version, runtime.version(), _cpu(), _boot()), ""


def first_error(text: str) -> str:
    """CRIU's first complaint, the one that the others follow from."""
    for line in text.splitlines():
        match = re.search(r"Error \([^)]*\):\s*(.+)", line)
        if match and not any(words in match[1] for words in HARMLESS):
            return match[1].strip()[:REASON_CHARS]
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:REASON_CHARS] if lines else "it gives no reason"


async def dump(runtime: Binary, id: str, directory: Path, timeout_s: float = CALL_TIMEOUT_S) -> None:
    """Write a running container below ``directory`` and end it; one that cannot be written runs on.

    Its network is not written: it gets a new one. Raises `PrepareFailed`.
    """
    image, work = directory / IMAGE, directory / WORK
    for made in (image, work):
        made.mkdir(mode=0o700)
    arguments = (
        "checkpoint", "--image-path", str(image), "--work-path", str(work), "--file-locks",
        "--empty-ns", "network", id,
    )  # fmt: skip
    await _call(runtime, arguments, work, "dump.log", timeout_s)


async def restore(
    runtime: Binary,
    id: str,
    bundle: Path,
    directory: Path,
    logs: Path | None = None,
    *,
    timeout_s: float = CALL_TIMEOUT_S,
) -> None:
    """Start the container ``id`` from what `dump` wrote; its pid is in ``bundle/pid`` then.

    The log of one that fails is kept below ``logs``. Raises `PrepareFailed`; what it leaves is for who
    removes the container.
    """
    work = bundle / "restore"
    work.mkdir(mode=0o700, exist_ok=True)
    arguments = (
        "restore", "--detach", "--pid-file", str(bundle / "pid"), "--bundle", str(bundle),
        "--image-path", str(directory / IMAGE), "--work-path", str(work),
        "--empty-ns", "network", id,
    )  # fmt: skip
    try:
        await _call(runtime, arguments, work, "restore.log", timeout_s)
    except PrepareFailed:
        if logs is not None:
            with contextlib.suppress(OSError):
                await asyncio.to_thread(shutil.copy, work / "restore.log", logs / WORK)
        raise


async def _call(runtime: Binary, arguments: tuple[str, ...], work: Path, log: str, timeout_s: float) -> None:
    words = work / "words"
    with open(words, "wb") as file, empty() as nothing:  # noqa: ASYNC230 - a small file
        process = await asyncio.create_subprocess_exec(
            *runtime.start, *arguments, stdin=nothing, stdout=file, stderr=file,
            env=_environment(runtime.criu),
        )  # fmt: skip
    try:
        async with asyncio.timeout(timeout_s):
            code = await process.wait()
    except TimeoutError as error:
        raise PrepareFailed(f"{runtime.name} {arguments[0]} takes more than {timeout_s:.0f} s.") from error
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    if code != 0:
        said = "\n".join(read_text(path) for path in (work / log, words))
        raise PrepareFailed(f"{runtime.name} {arguments[0]} failed: {first_error(said)}.")


def _environment(criu: str) -> dict[str, str]:
    """runc takes the criu that it finds first; its option for that is gone in newer ones."""
    path = os.environ.get("PATH", os.defpath)
    if os.path.dirname(criu):
        path = f"{os.path.dirname(os.path.abspath(criu))}:{path}"
    return {**os.environ, "PATH": path}


def read_text(path: Path) -> str:
    """A log's text; empty when there is none."""
    with contextlib.suppress(OSError):
        return path.read_text("utf-8", "replace")
    return ""


def _run(*argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(argv, capture_output=True, text=True, timeout=CHECK_TIMEOUT_S, check=False)


def _cpu(info: Path = Path("/proc/cpuinfo")) -> str:
    lines = [line for line in read_text(info).splitlines() if line.startswith(("flags", "Features"))]
    return hashlib.sha256((platform.machine() + "".join(lines[:1])).encode()).hexdigest()[:16]


def _boot(id: Path = Path("/proc/sys/kernel/random/boot_id")) -> str:
    return read_text(id).strip()
