"""What steps of builds reach: a network like a sandbox's, in place of the machine's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from headrace_runtimes.images.tool import LEASH


@dataclass(frozen=True)
class Reach:
    """``path``: a network namespace, as other processes find it; ``resolver``: who knows names in there."""

    path: str
    resolver: str


Lend = Callable[[], AbstractAsyncContextManager[Reach | None]]
"""Makes one for a step, and takes it away; None: the step sees the machine's network."""
_WITH_RESOLVER = 'if [ -e /etc/resolv.conf ]; then mount --bind "$0" /etc/resolv.conf; fi; exec "$@"'


def leashed(argv: Sequence[str], reach: Reach | None, scratch: Path) -> list[str]:
    """``argv`` so that it ends with us (see `LEASH`) and reaches no more than ``reach``.

    A file is made in ``scratch``, a directory of its own. Raises ``OSError``.
    """
    if reach is None:
        return [*LEASH, *argv]
    told = scratch / "resolv.conf"
    told.write_text(f"nameserver {reach.resolver}\noptions timeout:3 attempts:3\n")
    told.chmod(0o644)
    return ["nsenter", f"--net={reach.path}", *LEASH, "sh", "-c", _WITH_RESOLVER, str(told), *argv]


def hosts_of(*environments: Mapping[str, str]) -> tuple[str, ...]:
    """Names and addresses in the URLs of variables: proxies and package indexes of who runs the host."""
    values = [value for env in environments for value in env.values()]
    found = set()
    for word in (word for value in values for word in value.split() if "://" in word):
        try:
            found.add(urlsplit(word).hostname)
        except ValueError:
            continue
    # No IPv6: steps have none.
    return tuple(sorted(name for name in found if name and ":" not in name))
