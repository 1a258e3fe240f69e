"""Probes: how the platform asks an instance whether it has started, takes requests, and is alive.

The names and their meaning are Kubernetes'; times are seconds.
"""

from __future__ import annotations

from typing import Any

import msgspec

from headrace.errors import SpecError
from headrace.sdk.values import Value, checked_number

MAX_PERIOD_S = 86_400.0
MAX_TIMEOUT_S = 60.0
MAX_THRESHOLD = 10_000
MAX_PATH = 2000
MAX_ARGV = 100
MAX_ARGUMENTS = 8000
"""Characters of a command in all."""
MIN_PERIOD_S = 0.1


class Probe(Value, frozen=True, kw_only=True):
    """One question. At most one of ``http``, ``tcp``, ``exec``; with none of them it is ``health()``.

    It fails after ``failure_threshold`` failures in a row and passes after ``success_threshold`` passes in
    a row. It is asked ``initial_delay`` seconds after its begin, then every ``period`` seconds, longer or
    shorter by up to the part ``jitter`` of it.
    """

    http: str = ""
    """A path, such as ``"/healthz"``: 200 to 399 passes. Only of an ASGI app."""
    tcp: bool = False
    """The instance's own address takes a connection."""
    exec: tuple[str, ...] = ()
    """A command beside the instance: exit code 0 passes. Not on the runtime ``process``."""
    period: float = 10.0
    timeout: float = 5.0
    failure_threshold: int = 3
    success_threshold: int = 1
    initial_delay: float = 0.0
    jitter: float = 0.1

    def __post_init__(self) -> None:
        if not isinstance(self.http, str) or (self.http and not _is_path(self.http)):
            raise SpecError(f'Probe(http={self.http!r:.100}): use a path, such as "/healthz".')
        if not isinstance(self.tcp, bool):
            raise SpecError(f"Probe(tcp={self.tcp!r:.100}): use True or False.")
        msgspec.structs.force_setattr(self, "exec", _command(self.exec))
        if bool(self.http) + self.tcp + bool(self.exec) > 1:
            raise SpecError(
                "Probe: http, tcp and exec are one question each.", hint="Leave all but one of them out."
            )
        for field, least, most in (
            ("period", MIN_PERIOD_S, MAX_PERIOD_S),
            ("timeout", MIN_PERIOD_S, MAX_TIMEOUT_S),
            ("initial_delay", 0.0, MAX_PERIOD_S),
        ):
            if checked_number(self, field, most=most) < least:
                raise SpecError(f"Probe({field}={getattr(self, field)}): use seconds, {least:g} or more.")
        for field in ("failure_threshold", "success_threshold"):
            if checked_number(self, field, whole=True, most=MAX_THRESHOLD) < 1:
                raise SpecError(f"Probe({field}={getattr(self, field)}): use 1 or more.")
        if not 0 <= checked_number(self, "jitter") <= 1:
            raise SpecError(f"Probe(jitter={self.jitter}): use a part of the period, 0 to 1.")

    @property
    def patience(self) -> float:
        """Seconds from its begin to its failure, when nothing but failures come, at most."""
        each = self.period * (1 + self.jitter) + self.timeout
        return self.initial_delay + self.failure_threshold * each


class Probes(Value, frozen=True, kw_only=True):
    """What is asked of each instance.

    ``startup``: the others wait for it; when it fails the start has failed. ``readiness``: while it fails
    the instance takes no new requests, and lives; its first pass belongs to the start. ``liveness``: when
    it fails the instance is ended and its requests run elsewhere; None: ``health()`` every ten seconds,
    whose silence counts only while the instance has nothing to do, or is longer than a request may take.
    """

    startup: Probe | None = None
    readiness: Probe | None = None
    liveness: Probe | None = None

    def __post_init__(self) -> None:
        for field in self.__struct_fields__:
            value = getattr(self, field)
            if value is not None and not isinstance(value, Probe):
                raise SpecError(f"Probes({field}={value!r:.100}): use headrace.Probe(...).")
        for field in ("startup", "liveness"):
            probe: Probe | None = getattr(self, field)
            if probe is not None and probe.success_threshold != 1:
                raise SpecError(f"Probes({field}=...): its success_threshold is 1: leave it out.")

    def check(self, handler: str, runtime: str) -> None:
        """Whether they can be asked of such an endpoint. Raises `SpecError`."""
        for field in self.__struct_fields__:
            probe: Probe | None = getattr(self, field)
            if probe is None:
                continue
            if probe.http and handler != "asgi":
                raise SpecError(
                    f"Probes({field}=Probe(http=...)): only an ASGI app has paths, and this is a {handler}.",
                    hint="Leave http out: then health() of the class is asked.",
                )
            if probe.exec and runtime == "process":
                raise SpecError(
                    f"Probes({field}=Probe(exec=...)): the runtime process runs no commands in sandboxes.",
                    hint='Use runtime="oci", or leave exec out: then health() is asked.',
                )


def _is_path(value: str) -> bool:
    plain = value.isascii() and value.isprintable() and " " not in value
    return value.startswith("/") and plain and len(value) <= MAX_PATH


def _command(value: Any) -> tuple[str, ...]:
    fine = isinstance(value, list | tuple) and len(value) <= MAX_ARGV
    if not fine or not all(isinstance(item, str) and "\0" not in item for item in value):
        raise SpecError(f'Probe(exec={value!r:.100}): use a list, such as ["test", "-e", "/tmp/ready"].')
    if sum(map(len, value)) > MAX_ARGUMENTS or (value and not value[0]):
        raise SpecError(f"Probe(exec=...): name a command, of {MAX_ARGUMENTS} characters at most.")
    return tuple(value)
