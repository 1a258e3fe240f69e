"""How a container's first process says that it ended: it may be any program of the image's."""

import json
import os
import signal
import subprocess
import time

import pytest
from headrace_runtimes.containers.frame import how_it_ended, stopped
from headrace_runtimes.instance import procs

KILLED = (None, int(signal.SIGKILL))


@pytest.mark.parametrize(
    ("told", "meant"),
    [({"code": 0, "signal": None}, (0, None)), ({"code": 255, "signal": None}, (255, None)),
     ({"code": None, "signal": 15}, (None, 15)), ({"signal": 64}, (None, 64))],
)  # fmt: skip
def test_what_makes_sense_is_believed(told, meant):
    assert how_it_ended(json.dumps(told).encode()) == meant


@pytest.mark.parametrize(
    "told",
    [b"", b"[]", b"7", b"null", b"{}", b"\xff\xfe", b"[" * 256, b'{"code": 1e999, "signal": null}',
     b'{"code": true, "signal": null}', b'{"code": 256, "signal": null}', b'{"code": -1, "signal": null}',
     b'{"signal": 0}', b'{"signal": 65}', b'{"signal": -9}', b'{"signal": true}', b'{"signal": "9"}',
     b'{"code": ' + b"9" * 200 + b', "signal": null}'],
)  # fmt: skip
def test_anything_else_was_a_kill(told):
    assert how_it_ended(told) == KILLED


def until(condition):
    """A signal arrives a moment after it was sent."""
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_a_stopped_engine_is_seen_and_a_stopped_child_of_others_is_not():
    shell = subprocess.Popen(
        ["sh", "-c", "sleep 60 & echo $!; read go; sleep 60 & echo $!; read go; kill -9 %1 %2"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        assert shell.stdin
        assert shell.stdout
        engine = int(shell.stdout.readline())
        time.sleep(0.05)
        shell.stdin.write("\n")
        shell.stdin.flush()
        other = int(shell.stdout.readline())
        assert not stopped(shell.pid)
        os.kill(other, signal.SIGSTOP)
        until(lambda: (seen := procs.stat(other)) is not None and seen.stopped)
        assert not stopped(shell.pid)
        os.kill(engine, signal.SIGSTOP)
        until(lambda: stopped(shell.pid))
        os.kill(engine, signal.SIGCONT)
        until(lambda: not stopped(shell.pid))
        os.kill(shell.pid, signal.SIGSTOP)
        until(lambda: stopped(shell.pid))
    finally:
        os.killpg(shell.pid, signal.SIGKILL)
        shell.communicate()
    assert not stopped(shell.pid)
