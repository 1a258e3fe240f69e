"""A Docker daemon of one's own: it makes no networks and touches neither the firewall nor settings."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from headrace_runtimes.containers.sweep import unmount_below

UP_WITHIN_S = 60.0
DOWN_WITHIN_S = 30.0


@contextmanager
def docker_daemon() -> Iterator[str]:
    """Run it; its address, as ``DOCKER_HOST`` has it. Ended at the end, with everything that it made."""
    # A socket's path is short, and a container's standard streams have long ones below this.
    place = Path(tempfile.mkdtemp(prefix="hrdk-"))
    words = place / "words"
    # An old daemon keeps a key in /etc otherwise.
    (place / "config").write_text(json.dumps({"deprecated-key-path": str(place / "key")}))
    with words.open("wb") as file:
        daemon = subprocess.Popen(
            ["dockerd", "--iptables=false", "--ip-forward=false", "--ip-masq=false", "--bridge=none",
             "--storage-driver=overlay2", f"--data-root={place}/d", f"--exec-root={place}/x",
             f"--pidfile={place}/pid", f"--host=unix://{place}/s", f"--config-file={place}/config"],
            stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True,
            env={"PATH": os.environ.get("PATH", "") + ":/usr/sbin:/sbin", "HOME": str(place)},
        )  # fmt: skip
    try:
        deadline = time.monotonic() + UP_WITHIN_S
        while not _answers(place / "s"):
            assert daemon.poll() is None, f"dockerd ended: {words.read_text()[-3000:]}"
            assert time.monotonic() < deadline, f"dockerd does not answer: {words.read_text()[-3000:]}"
            time.sleep(0.05)
        yield f"unix://{place}/s"
    finally:
        # Its containerd ends with it.
        daemon.send_signal(signal.SIGTERM)
        try:
            daemon.wait(DOWN_WITHIN_S)
        except subprocess.TimeoutExpired:
            os.killpg(daemon.pid, signal.SIGKILL)
            daemon.wait()
        unmount_below(place)
        shutil.rmtree(place)


def _answers(path: Path) -> bool:
    connection = http.client.HTTPConnection("docker", timeout=5.0)
    connection.sock = socket.socket(socket.AF_UNIX)
    try:
        connection.sock.connect(str(path))
        connection.request("GET", "/_ping")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()
