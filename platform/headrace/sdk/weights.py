"""Weights: files that hosts fetch once, keep, and show to the instances of an endpoint."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import urlsplit

import msgspec

from headrace.errors import SpecError
from headrace.sdk.values import Value

WEIGHTS_DIR = "/weights/"
MAX_SOURCE = 2048
"""Characters of an address."""
MAX_WEIGHTS = 32
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}\Z")
_SHA256 = re.compile(r"[0-9a-f]{64}\Z")


class Weights(Value, frozen=True, kw_only=False):
    """Files that hosts keep for an endpoint: fetched once, shown read-only as a directory.

    ``source``: ``https://host/model.bin``, ``s3://bucket/key-or-prefix``, or an absolute path on the hosts;
    what it names is taken not to change. ``path``: the directory that they appear in, ``/weights/<name>``
    (`headrace.weights` finds it on every runtime). ``sha256``: of the one file that the source names.
    """

    source: str
    path: str = ""
    sha256: str | None = None

    def __post_init__(self) -> None:
        _check_source(self.source)
        last = re.split(r"[?#]", self.source)[0].rstrip("/").rpartition("/")[2]
        given = self.path or PurePosixPath(last).stem
        name = given.removeprefix(WEIGHTS_DIR).rstrip("/") if isinstance(given, str) else ""
        if not _NAME.match(name):
            raise SpecError(
                f"Weights(path={given!r:.100}): use one name below {WEIGHTS_DIR}.",
                hint='For example path="/weights/model".',
            )
        msgspec.structs.force_setattr(self, "path", WEIGHTS_DIR + name)
        if self.sha256 is None:
            return
        if not isinstance(self.sha256, str) or not _SHA256.match(self.sha256.lower()):
            raise SpecError(f"Weights(sha256={self.sha256!r:.80}): use 64 hexadecimal digits.")
        if self.source.endswith("/"):
            raise SpecError("Weights(sha256=...): it is of one file, and the source names many.")
        msgspec.structs.force_setattr(self, "sha256", self.sha256.lower())

    @property
    def name(self) -> str:
        """The last part of ``path``."""
        return self.path.removeprefix(WEIGHTS_DIR)


def weights_of_option(value: Any) -> tuple[Weights, ...]:
    """What ``weights=`` means. Raises `SpecError`."""
    if value is None:
        return ()
    listed: Any = [value] if isinstance(value, str | Weights) else value
    if not isinstance(listed, Sequence) or len(listed) > MAX_WEIGHTS:
        raise SpecError(
            f"weights={value!r:.100}: use an address, headrace.Weights(...), or a list of up to "
            f"{MAX_WEIGHTS} of them."
        )
    found: list[Weights] = []
    for item in listed:
        if not isinstance(item, str | Weights):
            raise SpecError(f"weights: {item!r:.100} is neither an address nor headrace.Weights(...).")
        found.append(Weights(item) if isinstance(item, str) else item)
    names = [item.path for item in found]
    if len(set(names)) < len(names):
        twice = next(n for n in names if names.count(n) > 1)
        raise SpecError(f"weights: {twice} is there twice.", hint="Give each its own path=.")
    return tuple(found)


def _check_source(source: Any) -> None:
    """Raises `SpecError` for what can name no weights."""
    if not isinstance(source, str) or not source or len(source) > MAX_SOURCE:
        raise SpecError(f"Weights(source={source!r:.80}): use an address or an absolute path.")
    if any(c <= " " or c == "\x7f" for c in source):
        raise SpecError(f"Weights(source={source!r:.80}): it holds a blank or a control character.")
    if source.startswith("/"):
        parts = PurePosixPath(source).parts
        if ".." in parts or len(parts) < 2:
            raise SpecError(f"Weights(source={source!r:.80}): use a path without '..'.")
        return
    try:
        url = urlsplit(source)
        port = url.port
    except ValueError as error:
        raise SpecError(f"Weights(source={source!r:.80}): {error}.") from None
    if url.scheme not in ("http", "https", "s3") or not url.hostname or port == 0:
        raise SpecError(
            f"Weights(source={source!r:.80}): use http(s)://..., s3://bucket/key, or an absolute path."
        )
    if url.username is not None or url.password is not None:
        raise SpecError("Weights(source=...): an address with credentials; specs are stored and shown.")
    if url.scheme == "s3" and (url.query or url.fragment or not url.path.strip("/")):
        raise SpecError(f"Weights(source={source!r:.80}): use s3://bucket/key or s3://bucket/prefix/.")
