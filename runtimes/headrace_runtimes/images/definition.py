"""An image as a value: where it starts and which steps follow. Its digest is its name everywhere."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from typing import Any, Literal

from headrace_runtimes.errors import ImageFailed

StepKind = Literal["from_registry", "from_dockerfile", "pip", "apt", "run", "copy", "env"]
STEPS: frozenset[str] = frozenset({"from_registry", "from_dockerfile", "pip", "apt", "run", "copy", "env"})
STARTS: frozenset[str] = frozenset({"from_registry", "from_dockerfile"})
"""Steps that say where the image starts: at most one, and the first."""


@dataclass(frozen=True)
class Image:
    """A definition. Equal definitions have equal digests, on every machine.

    ``files`` maps each path that a ``copy`` or ``from_dockerfile`` step names to the SHA-256 (hex) of its
    content, so that the digest changes with the content; what they hold lies in the blob store.
    """

    python: str | None = None
    """``3.11``; None: whatever the runtime's own environment has."""
    steps: tuple[tuple[str, tuple[str, ...]], ...] = ()
    files: tuple[tuple[str, str], ...] = field(default=())

    @property
    def plain(self) -> bool:
        """Whether it asks for nothing that the runtime's own environment does not have already."""
        return not self.steps

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of `encode`; empty for the image that asks for nothing at all."""
        if self.plain and self.python is None:
            return ""
        return hashlib.sha256(self.encode()).hexdigest()

    def encode(self) -> bytes:
        """Canonical JSON."""
        value = {"python": self.python, "steps": self.steps, "files": self.files}
        return json.dumps(value, separators=(",", ":"), sort_keys=True).encode()


def decode(data: bytes) -> Image:
    """The image that `Image.encode` wrote. Raises `ImageFailed` for anything else."""
    try:
        value = json.loads(data)
        image = Image(
            python=_text(value["python"]) if value.get("python") is not None else None,
            steps=tuple(
                (_text(kind), tuple(_text(a) for a in words)) for kind, words in value.get("steps", ())
            ),
            files=tuple((_text(path), _text(digest)) for path, digest in value.get("files", ())),
        )
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ImageFailed(f"This is no image definition ({error}): deploy the endpoint again.") from error
    check(image)
    return image


def check(image: Image) -> None:
    """Raises `ImageFailed` when the steps make no sense together."""
    for number, (kind, words) in enumerate(image.steps):
        if kind not in STEPS:
            raise ImageFailed(f"Image step {kind!r} is unknown: use one of {', '.join(sorted(STEPS))}.")
        if not words:
            raise ImageFailed(f"Image step {kind!r} has no arguments: give it at least one.")
        if kind in STARTS and number:
            raise ImageFailed(f"{kind} must come first: an image starts from one place.")


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value
