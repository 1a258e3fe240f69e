"""The keeper of one local node: starts its raylet, watches, and takes everything with it when it ends.

``python -m headrace_providers.local.keeper RECORD`` detaches itself and returns once the record names the
keeper. It ends on SIGTERM, when ``ray start`` ends, and when the platform is gone (its lock is free).
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType

import msgspec
import psutil

from headrace_providers.local import record as records
from headrace_providers.offers import NodeRequest

POLL_S = 0.25
STOP_GRACE_S = 5.0
LAST_WORDS = 300
LOG_TAIL = 64 << 10
"""Ray shows the logs of what has ended after saying what it was."""
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_PREFIX = re.compile(r"^\d{4}-\d\d-\d\d [\d:,.]+\s+[A-Z]+ \S+ --\s*")
_ENDED = re.compile(r"^(\w+) \[exit code=(-?\d+)\]")
_ENDED_TITLE = "subprocesses exited unexpectedly"
STARTED_LINE = "Ray runtime started"
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
OBJECT_STORE_BYTES = 100 << 20


def command(request: NodeRequest) -> list[str]:
    """``ray start`` for the node. No secret is in it: the token is named by a file."""
    labels = {
        "headrace.node": request.id,
        "headrace.provider": "local",
        "headrace.region": request.region,
        "headrace.instance-type": request.instance_type,
        "headrace.spot": str(request.spot).lower(),
        "headrace.cpu": f"{request.cpu:g}",
        "headrace.memory": str(request.memory),
        **{f"headrace.gpu.{name}": str(count) for name, count in request.gpu.items()},
        **request.labels,
    }
    return [
        *request.join.command, "--block", "--disable-usage-stats",
        f"--address={request.join.address}", "--node-ip-address=127.0.0.1",
        f"--num-cpus={max(1, int(request.cpu))}", f"--num-gpus={sum(request.gpu.values())}",
        f"--memory={request.memory}", f"--object-store-memory={OBJECT_STORE_BYTES}",
        f"--resources={json.dumps({f'headrace-node-{request.id}': 1})}",
        "--labels=" + ",".join(f"{key}={value}" for key, value in labels.items()),
    ]  # fmt: skip


def platform_is_gone(alive_path: str) -> bool:
    """Whether nobody holds the platform's lock."""
    if not alive_path:
        return False
    try:
        fd = os.open(alive_path, os.O_RDONLY)
    except OSError:
        return True
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    else:
        return True
    finally:
        os.close(fd)


def end_all(node_id: str) -> None:
    """End what descends from this process or carries the node's mark: first politely, then for sure."""
    me = psutil.Process()

    def others() -> dict[int, psutil.Process]:
        found = {p.pid: p for p in [*me.children(recursive=True), *records.marked(node_id)]}
        found.pop(me.pid, None)
        return found

    for process in others().values():
        try:
            process.terminate()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(list(others().values()), timeout=STOP_GRACE_S)
    for process in others().values():
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(list(others().values()), timeout=STOP_GRACE_S)


def ending(code: int, log: Path) -> str:
    """How ``ray start`` ended, and what it said last when it ended by itself."""
    if code < 0:
        return f"ray start was killed by signal {-code}"
    return f"ray start ended with exit code {code}{last_words(log)}"


def last_words(log: Path) -> str:
    """What the log ends with, or which process of Ray had ended, as the end of a sentence: the log itself
    goes with the node."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - LOG_TAIL))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return ""
    # Ray draws boxes and rules around what it says, in colours.
    plain = [_PREFIX.sub("", _COLOUR.sub("", line).strip()).strip() for line in lines]
    said = [line for line in plain if any(c.isalnum() for c in line)]
    titles = [i for i, line in enumerate(said) if _ENDED_TITLE in line]
    ended = [_ENDED.match(line) for line in said[titles[-1] :]] if titles else []
    if names := [_ended(found[1], int(found[2])) for found in ended if found]:
        return f": {', '.join(dict.fromkeys(names))}"
    return f": {said[-1][-LAST_WORDS:]}" if said else ""


def _ended(name: str, code: int) -> str:
    """How a process of Ray ended."""
    if code >= 0:
        return f"its {name} ended with exit code {code}"
    try:
        return f"its {name} was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"its {name} was killed by signal {-code}"


def keep(path: Path) -> None:
    """Run the node until there is a reason to end; leave nothing behind but the record of a failure."""
    record = records.read(path)
    if record is None:
        return
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    stop = False

    def asked(_signum: int, _frame: FrameType | None) -> None:
        nonlocal stop
        stop = True

    signal.signal(signal.SIGTERM, asked)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    mine = os.getpid()
    record = msgspec.structs.replace(record, keeper_pid=mine, keeper_started=records.started(mine))
    records.write(path, record)

    log = path.with_suffix(".log")
    environ = {k: v for k, v in os.environ.items() if not k.startswith(("HEADRACE_", "RAY_"))}
    environ |= {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": record.request.join.token_path,
        records.NODE_MARK: record.request.id,
    }
    with log.open("ab") as out:
        child = subprocess.Popen(
            command(record.request), stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=environ, cwd="/",
            start_new_session=True,
            preexec_fn=lambda: libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0),  # noqa: PLW1509 - one thread here
        )  # fmt: skip
    failed = ""
    while not stop:
        time.sleep(POLL_S)
        if child.poll() is not None:
            failed = ending(child.returncode, log)
            break
        if platform_is_gone(record.request.join.alive_path):
            break
        if record.state == "pending" and STARTED_LINE in log.read_text(errors="replace"):
            record = msgspec.structs.replace(record, state="running")
            records.write(path, record)
    end_all(record.request.id)
    if failed and not stop:
        records.write(path, msgspec.structs.replace(record, state="failed", detail=failed))
    else:
        path.unlink(missing_ok=True)
        log.unlink(missing_ok=True)


def main() -> None:
    """Detach (two forks), so that the keeper is nobody's zombie, and return when it has written its pid."""
    path = Path(sys.argv[1])
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            null = os.open(os.devnull, os.O_RDWR)
            for fd in (0, 1, 2):
                os.dup2(null, fd)
            # A parent on uvloop hands its descriptors down; whoever reads the other end would wait for ours.
            os.closerange(3, os.sysconf("SC_OPEN_MAX"))
            keep(path)
        os._exit(0)
    os.wait()
    deadline = time.monotonic() + STOP_GRACE_S
    while time.monotonic() < deadline:
        current = records.read(path)
        if current is None or current.keeper_pid:
            return
        time.sleep(0.02)
    sys.exit("the keeper of the node did not start")


if __name__ == "__main__":
    main()
