"""Plays many simulations in processes of their own, which end with this one, however it ends."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any

from headrace_autoscaler.simulate.scenario import Scenario

from headrace.cluster.child import die_with_parent
from headrace.errors import SetupError

Task = Callable[[Scenario], Any]
"""What is done with the scenario; it is pickled, so a value or a partial of a module's function."""
_scenario: Scenario | None = None
"""In a worker: the scenario that all its tasks share, sent once."""


def run_all(scenario: Scenario, tasks: Sequence[Task], jobs: int) -> Generator[tuple[int, Any], None, None]:
    """(index of the task, what it gave) in the order in which they end.

    With one task or one job all is done in this process. Otherwise up to ``jobs`` processes: closing the
    iterator early, or an interrupt, kills them. Raises what a task raises, and `SetupError` when a process
    was killed from outside.
    """
    workers = min(jobs, len(tasks))
    if workers <= 1:
        for index, task in enumerate(tasks):
            yield index, task(scenario)
        return
    others = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(
        max_workers=workers,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_begin,
        initargs=(os.getpid(), scenario),
    )
    before = signal.signal(signal.SIGTERM, _exit)
    try:
        # Ctrl-C reaches the whole group: only this process is to answer it.
        with _deaf_to_interrupts():
            futures: dict[Future[Any], int] = {pool.submit(_run, task): i for i, task in enumerate(tasks)}
        for future in as_completed(tuple(futures)):
            yield futures.pop(future), future.result()
    except BaseException as error:
        for process in set(multiprocessing.active_children()) - others:
            process.kill()
        if isinstance(error, BrokenProcessPool):
            raise SetupError(
                "a process that simulated was killed, as a rule for want of memory.",
                hint="Try --jobs 1, or fewer days.",
            ) from error
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _deaf_to_interrupts() -> Iterator[None]:
    """Children that are made here never hear SIGINT; this process hears both afterwards."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _exit(number: int, frame: object) -> None:
    """SIGTERM as an exception: what was begun is put away."""
    raise SystemExit(128 + number)


def _begin(parent: int, scenario: Scenario) -> None:
    global _scenario  # noqa: PLW0603 - one per worker process, by design of the pool
    die_with_parent(parent, signal.SIGKILL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    _scenario = scenario


def _run(task: Task) -> Any:
    assert _scenario is not None
    return task(_scenario)
