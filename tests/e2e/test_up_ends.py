"""A start that is broken off or cannot succeed: one line, the right exit code, and nothing left."""

from __future__ import annotations

import signal
import socket
import subprocess
import time

import pytest
from headrace.cluster.identity import read_record
from headrace.cluster.listeners import with_ports
from headrace.cluster.sweep import leftovers
from headrace.config import Settings, default_run_dir

from tests.e2e.conftest import until

pytestmark = [pytest.mark.ray, pytest.mark.timeout(120)]


@pytest.fixture
def other(up, tmp_path):
    """Options and settings of a platform beside the session's; checks that nothing is left of it."""
    data = tmp_path / "d"
    settings = with_ports(
        Settings(data_dir=str(data), run_dir=str(default_run_dir(data)), port=0, control_port=0, ray_port=0)
    )
    options = [
        *("--data-dir", settings.data_dir, "--port", str(settings.port)),
        *("--control-port", str(settings.control_port), "--ray-port", str(settings.ray_port)),
    ]
    yield up, settings, options
    assert leftovers(settings.run) == []
    assert not settings.run.exists()
    assert not (data / "up.json").exists()


def start(up, settings, options):
    return subprocess.Popen(
        up.command("up", *options),
        env={**up.environ, "HEADRACE_RUN_DIR": settings.run_dir},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("signals", [1, 2, 200])
def test_ctrl_c_while_ray_starts(other, signals):
    up, settings, options = other
    process = start(up, settings, options)
    # The raylet runs: the driver's thread is in the middle of its start.
    until(lambda: any("raylet" in " ".join(p.cmdline()) for p in leftovers(settings.run)))
    # With many: also in the moments between the platform's end and the process's own.
    for _ in range(signals):
        process.send_signal(signal.SIGINT)
        time.sleep(0.2 if signals < 10 else 0.02)
        if process.poll() is not None:
            break
    _, text = process.communicate(timeout=30)
    assert process.returncode == 0, text
    assert text.count((settings.data / "admin.key").read_text().strip()) == 1, "a new key is shown"


def test_a_driver_that_cannot_start_is_told_with_its_log(other):
    up, settings, options = other
    process = start(up, settings, options)
    until(lambda: (r := read_record(settings.data)) and any(c.name == "driver" for c in r.children))
    # Somebody takes Ray's port between our check and Ray's start.
    with socket.socket() as thief:
        thief.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        thief.bind(("127.0.0.1", settings.ray_port))
        thief.listen()
        _, text = process.communicate(timeout=90)
    assert process.returncode == 1
    assert "Ray did not start" in text
    assert str(settings.data / "logs" / "driver.log") in text


def test_a_gateway_that_cannot_start_is_told_with_its_last_words(other, tmp_path):
    up, settings, options = other
    (tmp_path / "httptools.py").write_text("raise ImportError('no parser on this machine')\n")
    done = up.run("up", *options, PYTHONPATH=str(tmp_path), HEADRACE_RUN_DIR=settings.run_dir)
    assert done.returncode == 1
    assert "the gateway ended at its start" in done.stderr
    assert "no parser on this machine" in done.stderr
    assert str(settings.data / "logs" / "gateway-0.log") in done.stderr


def test_a_job_store_that_does_not_answer_is_told_beside_ready(other, unused_tcp_port):
    up, settings, options = other
    store = ("--store", f"postgresql://nobody:geheim@127.0.0.1:{unused_tcp_port}/none")
    process = start(up, settings, [*options, *store])
    try:
        lines = iter(process.stderr.readline, "")
        said = next(line for line in lines if line.startswith("warning: "))
        shown = up.run("status", "--data-dir", str(settings.data))
    finally:
        process.terminate()
        process.communicate(timeout=60)
    assert "the job store is not open" in said
    assert f":{unused_tcp_port}/" in said
    assert "geheim" not in said
    row = next(line for line in shown.stdout.splitlines() if line.startswith("store "))
    assert "postgresql, not reachable: the job store is not open" in row


def test_the_port_is_the_platforms_from_the_first_moment(other):
    up, settings, options = other
    process = start(up, settings, options)
    until(lambda: read_record(settings.data) is not None)
    with socket.socket() as thief:
        thief.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with pytest.raises(OSError, match="in use"):
            thief.bind(("127.0.0.1", settings.port))
    process.terminate()
    _, text = process.communicate(timeout=30)
    assert process.returncode == 0, text


def test_a_run_directory_that_is_too_long_for_sockets_is_refused(up, tmp_path):
    done = up.run("up", "--data-dir", str(tmp_path / "d"), HEADRACE_RUN_DIR=f"/tmp/{'x' * 60}")
    assert done.returncode == 1
    assert "HEADRACE_RUN_DIR" in done.stderr
    assert not (tmp_path / "d").exists()


def test_an_unwritable_directory_is_one_line(up, tmp_path):
    (tmp_path / "file").write_text("")
    done = up.run("up", "--data-dir", str(tmp_path / "file" / "d"))
    assert done.returncode == 1
    assert "--data-dir" in done.stderr
    assert "Traceback" not in done.stderr
