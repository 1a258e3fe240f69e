"""What of a store people know by name: images built for endpoints, and those that were pulled."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from dataclasses import dataclass

from headrace_runtimes.errors import ImageFailed
from headrace_runtimes.images.context import directory
from headrace_runtimes.images.definition import Image, decode
from headrace_runtimes.images.reference import parse
from headrace_runtimes.images.store import Store

BUILT = "image/"
_INNER = ("host/", "step/", "dockerfile/", f"{BUILT}plain")
"""Names that builders give to what others start from."""
LEAST = 4
"""Letters of a digest that stand for it."""


@dataclass(frozen=True)
class Shelved:
    """One image that is here, whole."""

    name: str
    """The digest of its definition when it was built, else its reference."""
    built: bool
    digest: str
    """Of its manifest."""
    made_of: str
    """Its definition in words; ``pulled`` when it was pulled, empty when that is not known here."""
    bytes: int
    """As it is sent."""
    used_at: float


def shelved(store: Store) -> list[Shelved]:
    """All of them, used last first. Blocks. Raises ``OSError`` for a store that must not be read."""
    found = []
    for name, digest in store.references().items():
        if name.startswith(_INNER):
            continue
        with contextlib.suppress(ImageFailed, FileNotFoundError):
            stored = store.load(digest)
            parts = (stored.manifest.config, *stored.manifest.layers)
            # One that lost a part is not here: it is pulled or built again when it is wanted.
            if not all(map(store.has, parts)):
                continue
            built = name.startswith(BUILT)
            plain = name.removeprefix(BUILT)
            words = _words(store, plain) if built else "pulled"
            used_at = store.blob(digest).stat().st_mtime
            size = sum({part.digest: part.size for part in parts}.values())
            found.append(Shelved(plain, built, digest, words, size, used_at))
    return sorted(found, key=lambda item: -item.used_at)


def matching(found: Iterable[Shelved], wish: str) -> list[Shelved]:
    """Those that ``wish`` names: a reference, or the beginning of a definition's or manifest's digest."""
    reference = ""
    with contextlib.suppress(ImageFailed):
        reference = str(parse(wish))
    begin = wish.removeprefix("sha256:")
    by_digest = len(begin) >= LEAST
    return [
        item
        for item in found
        if item.name in (wish, reference)
        or (by_digest and item.built and item.name.startswith(begin))
        or (by_digest and item.digest.removeprefix("sha256:").startswith(begin))
    ]


def _words(store: Store, definition: str) -> str:
    path = directory(store.directory, definition)
    try:
        image = decode(path.with_name(f"{path.name}.json").read_bytes())
    except (OSError, ImageFailed):
        return ""
    return _shown(image)


def _shown(image: Image) -> str:
    steps = (f"{kind} {' '.join(words)}"[:60] for kind, words in image.steps)
    return ", ".join((*((f"python {image.python}",) if image.python else ()), *steps))
