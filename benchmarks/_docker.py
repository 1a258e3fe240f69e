"""A Docker daemon of one's own: it makes no networks and touches neither the firewall nor settings."""

from __future__ import annotations

import contextlib
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
from pathlib import Path

from headrace_runtimes.containers.sweep import unmount_below

UP_WITHIN_S = 60.0
DOWN_WITHIN_S = 30.0


class Daemon:
    """One with all that it keeps in the directory ``place``, whose path is short."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.address = f"unix://{place}/s"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Run it until it answers. Blocks."""
        place, words = self.place, self.place / "words"
        # An old daemon keeps a key in /etc otherwise.
        (place / "config").write_text(json.dumps({"deprecated-key-path": str(place / "key")}))
        with words.open("ab") as file:
            self.process = subprocess.Popen(
                # It ends with who started it, also when that is killed.
                ["setpriv", "--pdeathsig=TERM", "dockerd",
                 "--iptables=false", "--ip-forward=false", "--ip-masq=false", "--bridge=none",
                 "--storage-driver=overlay2", f"--data-root={place}/d", f"--exec-root={place}/x",
                 f"--pidfile={place}/pid", f"--host=unix://{place}/s", f"--config-file={place}/config"],
                stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True,
                env={"PATH": os.environ.get("PATH", "") + ":/usr/sbin:/sbin", "HOME": str(place)},
            )  # fmt: skip
        deadline = time.monotonic() + UP_WITHIN_S
        while not _answers(place / "s"):
            assert self.process.poll() is None, f"dockerd ended: {words.read_text()[-3000:]}"
            assert time.monotonic() < deadline, f"dockerd does not answer: {words.read_text()[-3000:]}"
            time.sleep(0.05)

    def stop(self, number: int = signal.SIGTERM) -> None:
        """End it. Blocks. Its containers end with it, unless it was killed."""
        if self.process is None:
            return
        self.process.send_signal(number)
        try:
            self.process.wait(DOWN_WITHIN_S)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        self.process = None
        # Its containerd ends with it, and is looked for by the next one: also while nobody has reaped it.
        deadline = time.monotonic() + DOWN_WITHIN_S
        while self._processes("containerd") and time.monotonic() < deadline:
            time.sleep(0.05)

    def clean_up(self) -> None:
        """Leave nothing. Blocks."""
        self.stop()
        for pid in self._processes("containerd-shim-runc-v2"):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        unmount_below(self.place)
        shutil.rmtree(self.place)

    def _processes(self, name: str) -> list[int]:
        """That belong to its directory, of a program; or have ended and are that directory's containerd."""
        found = []
        containerd = self.place / "x/containerd/containerd.pid"
        known = containerd.read_text().strip() if containerd.exists() else ""
        for pid in (p for p in os.listdir("/proc") if p.isdigit()):
            with contextlib.suppress(OSError):
                words = Path(f"/proc/{pid}/cmdline").read_bytes()
                mine = os.path.basename(words.split(b"\0")[0]) == name.encode() and bytes(self.place) in words
                if mine or (name == "containerd" and pid == known and not words):
                    found.append(int(pid))
        return found


@contextlib.contextmanager
def docker_daemon() -> Iterator[str]:
    """Run it; its address, as ``DOCKER_HOST`` has it. Ended at the end, with everything that it made."""
    with own_daemon() as daemon:
        yield daemon.address


@contextlib.contextmanager
def own_daemon() -> Iterator[Daemon]:
    """One that may be ended and started in between."""
    # A socket's path is short, and a container's standard streams have long ones below this.
    daemon = Daemon(Path(tempfile.mkdtemp(prefix="hrdk-")))
    try:
        daemon.start()
        yield daemon
    finally:
        daemon.clean_up()


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
