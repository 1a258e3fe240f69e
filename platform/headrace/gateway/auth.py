"""Who may do what: API keys, the rules for a gateway without keys, and what never travels on."""

from __future__ import annotations

import difflib
import hashlib
import hmac
import ipaddress
import re
import time
from collections.abc import Iterable
from urllib.parse import unquote, unquote_to_bytes

from headrace.errors import Forbidden, RateLimited, Unauthorized
from headrace.gateway.head import Head, UnsupportedMediaType
from headrace.gateway.ratelimit import RateLimits, whole_seconds
from headrace.wire import KeyRecord

MAX_KEY_BYTES = 512
_LONGEST_RUN = re.compile(rb"[A-Za-z0-9_-]{20,}")
"""What may be a key inside of something else."""
_HOST = re.compile(rb"(localhost|\[::1\]|[0-9.]+)(?::[0-9]+)?")
KEYLESS = KeyRecord(id="keyless", hash="", project="default", scopes=("admin",))
"""Who calls a gateway that asks for no key."""


class Keys:
    """The keys control told us, by hash. The key itself is never kept."""

    def __init__(self) -> None:
        self._by_hash: dict[str, KeyRecord] = {}
        self._limits = RateLimits()

    def replace(self, records: Iterable[KeyRecord]) -> None:
        """These are all keys."""
        self._by_hash = {record.hash.lower(): record for record in records}
        self._limits.keep(record for record in self._by_hash.values() if record.rate)

    def find(self, key: bytes) -> KeyRecord | None:
        """The record of a presented key."""
        if not key or len(key) > MAX_KEY_BYTES:
            return None
        digest = hashlib.sha256(key).hexdigest()
        # The lookup is by a hash that the caller cannot steer; the comparison settles it.
        record = self._by_hash.get(digest)
        if record is None or not hmac.compare_digest(record.hash.lower(), digest):
            return None
        return record

    def who(self, authorization: bytes) -> KeyRecord:
        """The record of an ``Authorization`` header: ``Bearer K`` or the bare key; counts as one request.

        Raises `Unauthorized`, `RateLimited`.
        """
        if not authorization:
            raise Unauthorized("no API key.", hint="Send it as `Authorization: Bearer <key>`.")
        value = authorization.strip()
        record = self.find(value[7:].strip() if value[:7].lower() == b"bearer " else value)
        if record is None:
            raise Unauthorized(
                "the API key is not known.", hint="The admin key of a platform is in <data-dir>/admin.key."
            )
        if record.rate and (wait := self._limits.take(record, time.monotonic())):
            raise RateLimited(
                f"this key may send {record.rate:g} requests per second.",
                hint="Send fewer, or ask for a key with a higher rate limit.",
                retry_after=whole_seconds(wait),
            )
        return record

    def clean_cookies(self, cookie: bytes) -> bytes:
        """The ``Cookie`` header without pairs that hold one of our keys: as name or value, or inside."""
        return b"; ".join(pair.strip() for pair in cookie.split(b";") if not self._holds_key(pair))

    def _holds_key(self, pair: bytes) -> bool:
        said = {pair, unquote_to_bytes(pair), unquote_to_bytes(unquote_to_bytes(pair))}
        parts = {part.strip().strip(b'"').strip() for text in said for part in text.split(b"=")}
        parts |= {part[7:].strip() for part in parts if part[:7].lower() == b"bearer "}
        parts |= {run for text in said for run in _LONGEST_RUN.findall(text)}
        return any(self.find(part) is not None for part in parts)


def require(record: KeyRecord, scopes: tuple[str, ...], what: str) -> None:
    """Raises `Forbidden` unless the key has ``admin`` or one of ``scopes``."""
    if "admin" in record.scopes:
        return
    for scope in scopes:
        if scope in record.scopes:
            return
    raise Forbidden(
        f"this key may not {what}.", hint=f"Use one with the scope {' or '.join(scopes)} or admin."
    )


def may_call(record: KeyRecord, name: str) -> bool:
    """Whether the key may call (and see) the endpoint of that name."""
    return not record.endpoints or name in record.endpoints


def require_endpoint(record: KeyRecord, name: str) -> None:
    """Raises `Forbidden`, naming only what the key may call, whether or not the endpoint exists."""
    if may_call(record, name):
        return
    close = difflib.get_close_matches(name[:80], record.endpoints, n=1, cutoff=0.5)
    hint = (
        f"Did you mean {close[0]!r}?" if close else "It may call: " + ", ".join(record.endpoints[:10]) + "."
    )
    raise Forbidden(f"this key may not call endpoint {name[:80]!r}.", hint=hint)


def named_endpoint(path: str) -> str:
    """The endpoint that a path (without its query) names; empty when it names none."""
    parts = path.split("/", 6)
    if len(parts) > 2 and parts[1] in ("e", "v2", "cog"):
        return unquote(parts[2]).partition("@")[0]
    if parts[1:4] == ["api", "v1", "endpoints"] and parts[5:] == ["purge"]:
        return unquote(parts[4])
    return ""


def check_keyless(head: Head) -> None:
    """Without keys, only this machine's own programs and pages may call. Raises `Forbidden`.

    The ``Host`` rule stops DNS rebinding, the ``Origin`` rule pages of other sites.
    """
    if not is_loopback_host(head.host):
        raise Forbidden(
            "without API keys, only loopback Host values are answered.",
            hint="Use http://127.0.0.1 or http://localhost.",
        )
    if head.origin is not None and head.origin.lower() != b"http://" + head.host.lower():
        raise Forbidden("without API keys, pages of other origins may not call.")
    # "same-site" is another port of this machine: somebody else's page, and its GETs carry no Origin.
    if head.fetch_site.strip().lower() not in (b"", b"same-origin", b"none"):
        raise Forbidden("without API keys, other sites may not call.")


def check_json(head: Head) -> None:
    """Management takes JSON and says so: a page can send other types without asking the browser first.

    Raises `UnsupportedMediaType`.
    """
    if head.method == b"POST" and head.has_body:
        media = head.content_type.partition(b";")[0].strip().lower()
        if media != b"application/json":
            raise UnsupportedMediaType("this route takes JSON.", hint="Send Content-Type: application/json.")


def is_loopback_host(host: bytes) -> bool:
    """Whether a ``Host`` value (with or without a port) names this machine by a loopback name or address."""
    match = _HOST.fullmatch(host.strip().lower())
    if match is None:
        return False
    name = match[1].decode("ascii")
    if name in ("localhost", "[::1]"):
        return True
    try:
        return ipaddress.IPv4Address(name).is_loopback
    except ValueError:
        return False
