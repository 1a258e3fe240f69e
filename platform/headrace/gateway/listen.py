"""The socket of a gateway that has no supervisor to give it one."""

from __future__ import annotations

import errno
import socket

from headrace.config import Settings
from headrace.errors import PortInUse, SetupError

BACKLOG = 4096


def bind(settings: Settings) -> socket.socket:
    """Listen where the settings say. Raises `PortInUse` or `SetupError`."""
    host, port = settings.host, settings.port
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if settings.gateways > 1:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind((host, port))
        sock.listen(BACKLOG)
        sock.setblocking(False)
    except OSError as error:
        sock.close()
        if error.errno == errno.EADDRINUSE:
            raise PortInUse(
                f"port {port} on {host} is in use.", hint="Stop what listens there, or give another --port."
            ) from error
        raise SetupError(
            f"cannot listen on {host}:{port}: {error.strerror}.", hint="Give another --host or --port."
        ) from error
    return sock
