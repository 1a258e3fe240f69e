"""Guards of the whole suite: no process that a test started may be left when the suite ends."""

from __future__ import annotations

import os
import signal
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

# Fixtures that tests of several folders share (`fixtures_*.py`) are beside this file.
sys.path.insert(0, str(Path(__file__).parent))
# The benchmarks run a Docker daemon of their own, too.
sys.path.append(str(Path(__file__).parents[1]))
pytest_plugins = ("fixtures_docker", "fixtures_postgres", "fixtures_s3", "fixtures_world")

# Every process that the tests start inherits this, also through a supervisor or Ray (which drop names that
# begin with HEADRACE_ or RAY_). What runs in a sandbox does not (its environment is allow-listed), so living
# descendants are noted after each test as well.
MARKER = "TEST_SUITE_OF_HEADRACE"
# After a SIGKILL of a Ray driver its agents end by themselves, but not at once.
LEAK_DEADLINE_S = 45.0

_suite = os.environ[MARKER] = uuid.uuid4().hex
# Set by `make test`, which installs all that tests need: then nothing may be skipped, but what needs root.
STRICT_SKIPS = "TEST_STRICT_SKIPS"
_skipped: list[str] = []
_seen: dict[int, int] = {}
_leaks = pytest.StashKey[list[str]]()


def _forbidden_skips() -> list[str]:
    """Skips that hide something. Whoever is not root is excused from what needs root."""
    return [line for line in _skipped if os.geteuid() == 0 or "root" not in line]


def _stat(pid: int) -> tuple[str, int, int] | None:
    """State, parent and start time (ticks since boot) of a process; None when it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return fields[0], int(fields[1]), int(fields[19])


def _pids() -> Iterator[int]:
    return (int(entry) for entry in os.listdir("/proc") if entry.isdigit())


def _marked(pid: int) -> bool:
    try:
        return f"{MARKER}={_suite}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return False


def _note_descendants() -> None:
    """Remember all living descendants, with their start times: a number may be used again."""
    parents: dict[int, tuple[int, int]] = {}
    for pid in _pids():
        found = _stat(pid)
        if found is not None and found[0] != "Z":
            parents[pid] = (found[1], found[2])
    ours = {os.getpid()}
    grown = True
    while grown:
        more = {pid for pid, (parent, _) in parents.items() if parent in ours and pid not in ours}
        ours |= more
        grown = bool(more)
    for pid in ours - {os.getpid()}:
        _seen[pid] = parents[pid][1]


def _left() -> dict[int, str]:
    """Processes of the suite that live now: pid -> command line."""
    found: dict[int, str] = {}
    for pid in _pids():
        now = _stat(pid)
        if pid == os.getpid() or now is None or now[0] == "Z":
            continue
        if _seen.get(pid) == now[2] or _marked(pid):
            try:
                raw = Path(f"/proc/{pid}/cmdline").read_bytes()
            except OSError:
                continue
            command = raw.replace(b"\0", b" ").decode(errors="replace")
            # The interpreter's own helper of multiprocessing; it ends with the process that it helps.
            if "multiprocessing.resource_tracker" in command:
                continue
            found[pid] = command.strip()[:200] or "(no command line)"
    return found


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown() -> None:
    """Note what runs after each test: it may lose its parent and its marker later."""
    _note_descendants()


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Note what was skipped, and why."""
    if report.skipped and isinstance(report.longrepr, tuple):
        _skipped.append(f"{report.nodeid}: {report.longrepr[2]}")


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail the suite when tests were skipped that may not be, or processes are left; end these."""
    if os.environ.get(STRICT_SKIPS) and _forbidden_skips():
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
    deadline = time.monotonic() + LEAK_DEADLINE_S
    _note_descendants()
    left = _left()
    while left and time.monotonic() < deadline:
        time.sleep(0.1)
        left = _left()
    if left:
        session.config.stash[_leaks] = [f"pid {pid}: {command}" for pid, command in sorted(left.items())]
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
        for pid in left:
            try:
                os.kill(pid, signal.SIGKILL)
            except OSError:
                continue


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Name the tests that may not be skipped, and the processes that were left."""
    if os.environ.get(STRICT_SKIPS) and _forbidden_skips():
        terminalreporter.section("skipped, and that is a failure here", red=True)
        for line in _forbidden_skips():
            terminalreporter.line(line)
    leaks = terminalreporter.config.stash.get(_leaks, [])
    if leaks:
        terminalreporter.section("processes left behind by the tests", red=True)
        for line in leaks:
            terminalreporter.line(line)
