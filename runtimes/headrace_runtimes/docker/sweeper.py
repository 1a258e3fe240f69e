"""Removes all containers of one runtime from a daemon, and images that are its alone.

Its watchdog runs it, and its opening and closing:

    python -I -S sweeper.py <socket> <tag> <seconds>

It needs nothing but the standard library. A daemon may still be making what a host asked for before it died:
it looks until nothing has come for so many seconds.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import sys
import time
import urllib.parse
from concurrent.futures import ThreadPoolExecutor

LABEL = "headrace.run"
CALL_S = 8.0
AT_ONCE = 8
LOOK_EVERY_S = 0.1


class Daemon(http.client.HTTPConnection):
    """One connection to a unix socket."""

    def __init__(self, path: str, timeout_s: float = CALL_S) -> None:
        super().__init__("docker", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        """See `http.client.HTTPConnection`."""
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def ask(path: str, method: str, what: str, timeout_s: float = CALL_S) -> bytes:
    """One call. Raises ``OSError``, ``http.client.HTTPException``."""
    with contextlib.closing(Daemon(path, timeout_s)) as daemon:
        daemon.request(method, what)
        return daemon.getresponse().read()


def owned(path: str, tag: str) -> list[str]:
    """Ids of the containers with the tag, running or not."""
    found = json.loads(ask(path, "GET", f"/containers/json?all=1&filters={_labelled(tag)}"))
    return [str(one["Id"]) for one in found]


def images(path: str, tag: str) -> list[str]:
    """Ids of the images with the tag: nobody else's, and of no use to a successor."""
    found = json.loads(ask(path, "GET", f"/images/json?filters={_labelled(tag)}"))
    return [str(one["Id"]) for one in found]


def _labelled(tag: str) -> str:
    return urllib.parse.quote(json.dumps({"label": [f"{LABEL}={tag}"]}))


def remove(path: str, id: str) -> None:
    """Kill it and remove it."""
    with contextlib.suppress(OSError, http.client.HTTPException):
        ask(path, "DELETE", f"/containers/{id}?force=1&v=1")


def remove_image(path: str, id: str) -> None:
    """Remove an image with all its names."""
    with contextlib.suppress(OSError, http.client.HTTPException):
        ask(path, "DELETE", f"/images/{id}?force=1")


def main(path: str, tag: str, quiet_s: float) -> int:
    """Whether nothing is left: 0; a daemon that does not answer: 1."""
    seen = time.monotonic()
    while True:
        try:
            found = owned(path, tag)
        except (OSError, ValueError, http.client.HTTPException):
            return 1
        if found:
            with ThreadPoolExecutor(AT_ONCE) as pool:
                list(pool.map(lambda id: remove(path, id), found))
            seen = time.monotonic()
        elif time.monotonic() - seen >= quiet_s:
            with contextlib.suppress(OSError, ValueError, http.client.HTTPException):
                for id in images(path, tag):
                    remove_image(path, id)
            return 0
        time.sleep(LOOK_EVERY_S if quiet_s or found else 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], float(sys.argv[3])))
