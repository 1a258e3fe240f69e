"""What an endpoint's instances may reach."""

from __future__ import annotations

import re
from typing import Any, Literal, cast, get_args

import msgspec

from headrace.errors import SpecError
from headrace.sdk.values import Value, ValueType

NetworkMode = Literal["none", "host", "egress"]
MAX_ALLOW = 200
_LABEL = "[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_NAME = re.compile(rf"(?:\*\.)?(?=.{{1,253}}\Z){_LABEL}(?:\.{_LABEL})*\Z")


class _NetworkType(ValueType):
    """Refuses an empty list that somebody gives: it reads as "nothing" and would open everything."""

    def __call__(cls, *args: Any, **options: Any) -> Any:
        """Make a value. Raises `SpecError`."""
        given = args[1:2] or [options[name] for name in ("allow",) if name in options]
        mode = args[0] if args else options.get("mode", "egress")
        if mode == "egress" and any(isinstance(part, list | tuple) and not part for part in given):
            raise SpecError(
                'Network("egress", allow=[]): the list is empty.',
                hint='For nothing use "none"; for all public addresses leave allow out.',
            )
        return super().__call__(*args, **options)


class Network(Value, frozen=True, kw_only=False, metaclass=_NetworkType):
    """``none``: nothing; ``egress``: out through the host; ``host``: the host's own, where it is allowed.

    ``allow``, for ``egress``: host names, ``*.names``, addresses and networks that may be reached; ``*``, or
    no list: all public ones; an empty list is refused. Private addresses and the host's own are reached only
    when they, or the name that leads to them, are in the list; metadata services of clouds never.
    """

    mode: NetworkMode = "egress"
    allow: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.mode not in get_args(NetworkMode):
            raise SpecError(f'Network({self.mode!r:.40}): use "none", "egress" or "host".')
        allow: Any = self.allow
        if not isinstance(allow, list | tuple) or len(allow) > MAX_ALLOW:
            raise SpecError(f"Network(allow={allow!r:.100}): use a list of at most {MAX_ALLOW} names.")
        if allow and self.mode != "egress":
            raise SpecError(f'Network("{self.mode}", allow=...): only "egress" has a list.')
        entries = tuple(sorted({_entry(item) for item in allow}))
        msgspec.structs.force_setattr(self, "allow", entries)


def network_of_option(value: Any) -> Network:
    """``"none"`` or a `Network`. Raises `SpecError`."""
    if isinstance(value, str):
        return Network(cast(NetworkMode, value))
    if not isinstance(value, Network):
        raise SpecError(
            f'network={value!r:.60}: use "none", "egress", "host" or headrace.Network("egress", allow=[...]).'
        )
    return value


def check_network(network: Network | None, runtime: str) -> None:
    """Raises `SpecError` for what the runtime cannot hold."""
    if network is not None and runtime == "process" and network.mode != "host":
        raise SpecError(
            f'network="{network.mode}": runtime="process" shares the host\'s network and cannot hold that.',
            hint='Use runtime="oci" or "docker", or leave network out.',
        )


def _entry(item: Any) -> str:
    if item == "*":
        return "*"
    if isinstance(item, str):
        import ipaddress  # noqa: PLC0415 - seldom needed; keeps `import headrace` cheap in a sandbox

        try:
            network = ipaddress.ip_network(item, strict=False)
        except ValueError:
            name = item.lower().rstrip(".")
            # Who means an address with a slip in it must not be taken for a name.
            if name.rpartition(".")[2] == "localhost":
                raise _never(item) from None
            if _NAME.match(name) and not name.rpartition(".")[2].isdecimal():
                return name
        else:
            if network.is_loopback or network.is_link_local or network.is_multicast or network.is_reserved:
                raise _never(item)
            if network.version == 4:
                return str(network) if "/" in item else item
            raise SpecError(f"Network(allow=[{item!r}]): instances have no IPv6: name the host instead.")
    raise SpecError(
        f"Network(allow=[{item!r:.100}]): use a host name, *.name, an IPv4 address or a network such as "
        '"10.1.0.0/16".'
    )


def _never(item: str) -> SpecError:
    return SpecError(
        f"Network(allow=[{item!r}]): instances never reach that.",
        hint="The host's loopback and metadata services are closed: name an address that others reach too.",
    )
