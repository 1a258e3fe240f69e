"""Starts zygotes: with an environment we allow, from a thread that lives as long as the runtime.

PR_SET_PDEATHSIG follows the *thread* that forked: a zygote started from a pool's worker thread would
be killed when that worker ends. So one thread does nothing but start zygotes, until `Spawner.close`.
"""

from __future__ import annotations

import asyncio
import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from headrace_runtimes.errors import PrepareFailed

ALLOWED = frozenset({"PATH", "LANG", "LANGUAGE", "TZ", "VIRTUAL_ENV", "LD_LIBRARY_PATH", "PYTHONHOME"})
ALLOWED_PREFIXES = ("LC_",)
FIXED = {
    # A fork of a process whose OpenMP threads have run hangs: there must never be any in a zygote.
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "NUMEXPR_NUM_THREADS": "1",
    "PYTHONUNBUFFERED": "1",
}
PROBE_TIMEOUT_S = 30.0
_PROBE = """
import json, os, sys
binary = os.path.dirname(os.path.realpath(sys.executable))
print(json.dumps([sys.prefix, sys.base_prefix, sys.exec_prefix, binary, *sys.path]))
"""


def zygote_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """What of our environment a zygote may have: no token, no key, nothing of Ray or of ours."""
    kept = {k: v for k, v in environ.items() if k in ALLOWED or k.startswith(ALLOWED_PREFIXES)}
    return {"PATH": os.defpath} | kept | FIXED


async def python_paths(python: str, env: Mapping[str, str]) -> tuple[Path, ...]:
    """Existing directories and files that this interpreter needs. Raises `PrepareFailed`."""
    try:
        done = await asyncio.to_thread(
            subprocess.run, [python, "-c", _PROBE], env=dict(env), cwd="/", stdin=subprocess.DEVNULL,
            capture_output=True, timeout=PROBE_TIMEOUT_S, check=True,
        )  # fmt: skip
        found = json.loads(done.stdout)
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        raise PrepareFailed(f"{python} does not start: {error}. Reinstall the environment.") from error
    paths = [Path(p) for p in dict.fromkeys(found) if p]
    return tuple(p for p in paths if p.exists())


class Spawner:
    """The thread that starts processes, one after the other."""

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        # A daemon: a process that ends without `close` must not hang on it.
        self._thread = threading.Thread(target=self._work, name="headrace-spawner", daemon=True)
        self._thread.start()

    async def popen(self, argv: list[str], **options: Any) -> subprocess.Popen[bytes]:
        """`subprocess.Popen` in the spawner's thread. Raises ``OSError``."""
        loop = asyncio.get_running_loop()
        result: asyncio.Future[subprocess.Popen[bytes]] = loop.create_future()

        def settle(process: subprocess.Popen[bytes] | None, error: BaseException | None) -> None:
            if result.cancelled():
                if process:
                    process.kill()
                    process.wait()
            elif process:
                result.set_result(process)
            else:
                result.set_exception(error or RuntimeError("no process"))

        def job() -> None:
            process, error = None, None
            try:
                process = subprocess.Popen(argv, **options)
            except BaseException as raised:
                error = raised
            loop.call_soon_threadsafe(settle, process, error)

        self._jobs.put(job)
        return await result

    def close(self) -> None:
        """End the thread; every process it started that is still alive gets its death signal."""
        self._jobs.put(None)
        self._thread.join(timeout=5.0)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                job()
            except RuntimeError as error:  # the loop is closed: nobody waits for the process
                print(f"headrace-spawner: {error}", file=sys.stderr)
