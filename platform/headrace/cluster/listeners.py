"""Ports: whether they are free before a start, who holds them, and which of ours others can reach."""

from __future__ import annotations

import errno
import ipaddress
import random
import socket
from collections.abc import Iterable
from typing import Any

import msgspec
import psutil

from headrace.config import Settings
from headrace.errors import PortInUse, SettingsError

GATEWAY_BACKLOG = 4096
RAY_PORTS = range(6400, 9000)
"""Below 10000, where the ports of Ray's workers begin."""


def free_port(host: str, candidates: Iterable[int] = (0,)) -> int:
    """A port that nobody listens on now. Raises `PortInUse` when all candidates are taken."""
    for port in candidates:
        try:
            with _bound(host, port) as probe:
                return int(probe.getsockname()[1])
        except OSError:
            continue
    raise PortInUse(f"no free port was found on {host}.")


def with_ports(settings: Settings) -> Settings:
    """Replace ports that are 0 by free ones, so that every part can be told the same."""
    changes: dict[str, int] = {}
    if settings.port == 0:
        changes["port"] = free_port(settings.host)
    if settings.control_port == 0:
        changes["control_port"] = free_port("127.0.0.1")
    if settings.ray_port == 0:
        changes["ray_port"] = free_port("127.0.0.1", random.sample(RAY_PORTS, 100))
    return msgspec.structs.replace(settings, **changes) if changes else settings


def check_ports(settings: Settings) -> None:
    """Raise `PortInUse` naming the first port that is taken, by whom, and the option that changes it."""
    wanted = [(settings.host, settings.port, "--port")]
    if not settings.address:
        # In a cluster that is not ours, the control that we attach to may listen already.
        wanted.append(("127.0.0.1", settings.control_port, "--control-port"))
        wanted.append(("127.0.0.1", settings.ray_port, "--ray-port"))
    seen: dict[int, str] = {}
    for host, port, option in wanted:
        if port in seen:
            raise SettingsError(
                f"{seen[port]} and {option} are both {port}.", hint="Give them different ports."
            )
        seen[port] = option
        try:
            _bound(host, port).close()
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                variable = f"HEADRACE_{option[2:].upper().replace('-', '_')}"
                raise PortInUse(
                    f"port {port} on {host} is in use{_holder(port)}.",
                    hint=f"Stop that or give another with {option} or {variable}.",
                ) from None
            hint = f"Change {option}."
            foreign = error.errno == errno.EADDRNOTAVAIL or isinstance(error, socket.gaierror)
            if foreign and option == "--port":
                hint = "Give an address of this machine with --host or HEADRACE_HOST."
            raise SettingsError(
                f"{host}:{port} cannot be listened on: {error.strerror}.", hint=hint
            ) from None


def open_gateway_listeners(settings: Settings) -> list[socket.socket]:
    """One listening socket per gateway, held by the supervisor: a client that comes while a gateway is
    being replaced waits in the backlog instead of being refused. Raises `PortInUse`, `SettingsError`.
    """
    opened: list[socket.socket] = []
    try:
        for _ in range(settings.gateways):
            opened.append(
                _bound(settings.host, settings.port, shared=settings.gateways > 1, backlog=GATEWAY_BACKLOG)
            )
    except OSError as error:
        for sock in opened:
            sock.close()
        raise PortInUse(
            f"port {settings.port} on {settings.host} cannot be listened on: {error.strerror}.",
            hint="Stop what listens there, or give another --port.",
        ) from error
    return opened


def _bound(host: str, port: int, *, shared: bool = False, backlog: int = 1) -> socket.socket:
    probe = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        # As servers do: a connection that lingers in TIME_WAIT is no reason to refuse.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        probe.bind((host, port))
        probe.listen(backlog)
    except BaseException:
        probe.close()
        raise
    return probe


def _holder(port: int) -> str:
    try:
        for connection in psutil.net_connections("tcp"):
            address: Any = connection.laddr
            if connection.status == psutil.CONN_LISTEN and address.port == port and connection.pid:
                return f" by pid {connection.pid} ({psutil.Process(connection.pid).name()})"
    except psutil.Error:
        pass
    return ""


class Listener(msgspec.Struct, frozen=True):
    """A listening TCP socket of one of our processes."""

    pid: int
    process: str
    host: str
    port: int

    @property
    def exposed(self) -> bool:
        """Whether other machines can reach it, as far as the address says."""
        address = ipaddress.ip_address(self.host.partition("%")[0])
        mapped = getattr(address, "ipv4_mapped", None)
        return not (mapped or address).is_loopback

    def __str__(self) -> str:
        return f"{self.process} (pid {self.pid}) on {self.host}:{self.port}"


def listeners(processes: Iterable[psutil.Process]) -> list[Listener]:
    """What these processes listen on over TCP."""
    found: list[Listener] = []
    for process in processes:
        try:
            name = (process.cmdline() or [process.name()])[0].rpartition("/")[2]
            for connection in process.net_connections("tcp"):
                if connection.status == psutil.CONN_LISTEN:
                    found.append(Listener(process.pid, name, connection.laddr.ip, connection.laddr.port))
        except psutil.Error:
            continue
    return found
