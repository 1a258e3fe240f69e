"""Import modules before the fork, each tried first in a child that may go wrong.

A trial child imports the modules one after another and says after each whether the process could still be
forked. What it found good is imported in the zygote, the first bad one is refused with the reason, and the
rest gets a new trial: a clean set costs one trial.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import select
import signal
import sys
import time
from typing import Dict, Iterator, List, Optional, Sequence, Tuple

import hr_forksafe
import hr_sys

TRIAL_TIMEOUT_S = 120.0
_NOBODY = 65534

CORE = (
    "asyncio", "bisect", "collections.abc", "concurrent.futures", "contextlib", "dataclasses",
    "datetime", "decimal", "difflib", "enum", "functools", "inspect", "itertools", "json",
    "logging", "queue", "random", "re", "socket", "tempfile", "threading", "traceback", "typing",
    "urllib.parse", "uuid", "linecache", "encodings.idna", "unicodedata",
)  # fmt: skip
"""What an instance touches between the fork and its first answer."""
# `import headrace` alone imports nothing: what its decorator needs is named.
OPTIONAL = ("uvloop", "pydantic", "headrace", "headrace.sdk.endpoint")
"""Used when the environment has them."""

ENVIRONMENT = {
    # A fork of a process whose OpenMP or BLAS threads have run hangs.
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    # From 1.29 on onnxruntime starts an uploader thread when it is imported, which makes it unfit to fork.
    "ORT_DISABLE_TELEMETRY": "1",
}
"""Set before anything is imported, unless the runtime has said otherwise: it makes modules fork-safe."""


def import_core() -> Dict[str, str]:
    """Import what every instance needs; returns optional modules that could not be, with the reason."""
    for name in CORE:
        importlib.import_module(name)
    failed: Dict[str, str] = {}
    for name in OPTIONAL:
        try:
            importlib.import_module(name)
        except ImportError as error:
            failed[name] = str(error)
        except Exception as error:
            failed[name] = f"{type(error).__name__}: {error}"
    if "pydantic" in sys.modules:
        _warm_pydantic()
    return failed


def _warm_pydantic() -> None:
    # The first TypeAdapter imports half of pydantic.
    with contextlib.suppress(Exception):
        adapter = importlib.import_module("pydantic").TypeAdapter(List[int])
        adapter.dump_python(adapter.validate_python([1]), mode="json")


def preload(
    names: Sequence[str], drop: bool, timeout_s: float = TRIAL_TIMEOUT_S
) -> Tuple[List[str], Dict[str, str]]:
    """Import those of ``names`` that are fork-safe: (imported, refused with reasons)."""
    imported: List[str] = []
    refused: Dict[str, str] = {}
    todo = list(dict.fromkeys(names))
    imported += [name for name in todo if name in sys.modules]
    todo = [name for name in todo if name not in sys.modules]
    while todo:
        good, bad, reason = _trial(todo, drop, timeout_s)
        for name in good:
            problem = import_here(name)
            if problem:
                refused[name] = problem
            else:
                imported.append(name)
        if bad is not None:
            refused[bad] = reason
        done = set(good) | {bad}
        left = [name for name in todo if name not in done]
        if len(left) == len(todo):
            refused.update(dict.fromkeys(left, reason))
            break
        todo = left
    return imported, refused


def import_here(name: str) -> Optional[str]:
    """Import a module in this process; the reason when that fails."""
    try:
        importlib.import_module(name)
    except BaseException as error:
        return _import_reason(error)
    return None


def _import_reason(error: BaseException) -> str:
    if isinstance(error, SystemExit):
        return "importing it ends the process (SystemExit)"
    return f"it cannot be imported: {type(error).__name__}: {error}"


def _trial(names: Sequence[str], drop: bool, timeout_s: float) -> Tuple[List[str], Optional[str], str]:
    """Try imports in a child: (those that were fine, the first that was not, why)."""
    reader, writer = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(reader)
            _trial_child(names, drop, writer, parent)
        finally:
            os._exit(0)
    os.close(writer)
    good: List[str] = []
    current: Optional[str] = None
    why = ""
    try:
        for report in _reports(reader, timeout_s):
            if report is None:
                why = f"it takes longer than {timeout_s:g} s to import"
                break
            if "start" in report:
                current = report["start"]
            elif "reason" in report:
                why = report["reason"]
            else:
                good.append(report["good"])
                current = None
    finally:
        os.close(reader)
        status = _end(pid)
    if current is not None and not why:
        why = f"importing it {_how_ended(status)}"
    if current is None and len(good) < len(names):
        current, why = names[len(good)], f"its trial {_how_ended(status)}"
    return good, current, why


def _how_ended(status: int) -> str:
    if os.WIFSIGNALED(status):
        return f"kills the process ({signal.Signals(os.WTERMSIG(status)).name})"
    return f"ends the process with exit code {os.WEXITSTATUS(status)}"


def _end(pid: int) -> int:
    # A trial that reported everything is ending by itself; one that hangs is not.
    deadline = time.monotonic() + 0.2
    while time.monotonic() < deadline:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return status
        time.sleep(0.001)
    os.kill(pid, signal.SIGKILL)
    return os.waitpid(pid, 0)[1]


def _reports(reader: int, timeout_s: float) -> Iterator[Optional[Dict[str, str]]]:
    """Reports of a trial child until its end; ``None`` when one module takes too long."""
    buffer = b""
    while True:
        ready, _, _ = select.select([reader], [], [], timeout_s)
        if not ready:
            yield None
            return
        data = os.read(reader, 65536)
        if not data:
            return
        *lines, buffer = (buffer + data).split(b"\n")
        for line in lines:
            yield json.loads(line)


def _trial_child(names: Sequence[str], drop: bool, writer: int, parent: int) -> None:
    def report(**what: str) -> None:
        os.write(writer, json.dumps(what).encode() + b"\n")

    os.setsid()
    if drop:
        hr_sys.drop_user(_NOBODY, _NOBODY)
    hr_sys.die_with_parent(parent)
    before = hr_forksafe.look()
    for name in names:
        report(start=name)
        problem = import_here(name)
        if not problem:
            unsafe = hr_forksafe.unsafe_since(before)
            problem = f"it is not fork-safe: {unsafe} when imported" if unsafe else None
        if problem:
            report(reason=problem[:4000])
            return
        report(good=name)
