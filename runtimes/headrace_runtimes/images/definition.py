"""An image as a value: where it starts and which steps follow. Its digest is its name everywhere."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, field
from typing import Any, Literal

from headrace_runtimes.errors import ImageFailed
from headrace_runtimes.images.reference import parse

StepKind = Literal["from_registry", "from_dockerfile", "pip", "apt", "run", "copy", "env"]
STEPS: frozenset[str] = frozenset({"from_registry", "from_dockerfile", "pip", "apt", "run", "copy", "env"})
STARTS: frozenset[str] = frozenset({"from_registry", "from_dockerfile"})
"""Steps that say where the image starts: at most one, and the first."""

_VERSION = re.compile(r"\d\.\d{1,2}(\.\d{1,2})?")
_PACKAGE = re.compile(r"[a-z0-9][a-z0-9+.-]*(:[a-z0-9]+)?(=[A-Za-z0-9.+:~-]+)?")
_REQUIREMENT = re.compile(
    r"[A-Za-z0-9][A-Za-z0-9._-]*\s*(\[[A-Za-z0-9._,\s-]*\])?\s*(\(?\s*(===|==|~=|!=|<=|>=|<|>)[^;]+)?(;.*)?",
    re.ASCII,
)
"""Roughly a PEP 508 requirement; one by address holds a slash."""
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*=")


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
        if kind in STARTS and (number or image.python is not None):
            raise ImageFailed(f"{kind} must come first: an image starts from one place.")
        _check_words(kind, words)
    if image.python is not None and not _VERSION.fullmatch(image.python):
        raise ImageFailed(f'python({image.python!r:.50}): use a version such as "3.11".')


def refused_by_process(image: Image) -> str:
    """Why the process runtime cannot have this image, in one line; empty when it can."""
    for kind, words in image.steps:
        if kind in ("apt", "run", *STARTS):
            return (
                f"{kind} changes a file system, and the process runtime shares the host's: "
                'use runtime="oci" or "docker"'
            )
        if kind == "copy" and words[1].startswith("/"):
            return (
                f"copy to {words[1]!r} would write into the host's file system: give a relative target, "
                "which is found below $HEADRACE_FILES"
            )
    return ""


def _check_words(kind: str, words: tuple[str, ...]) -> None:
    """Raises `ImageFailed` for words that a tool would take for something else."""
    if any("\0" in word or not word.strip() for word in words):
        raise ImageFailed(f"Image step {kind!r} has a word that is empty or holds a NUL: leave it out.")
    if kind == "pip":
        for word in words:
            _check_requirement(word)
    if kind == "apt" and not all(_PACKAGE.fullmatch(word) for word in words):
        raise ImageFailed("apt takes names of packages, such as ffmpeg or ffmpeg=7:5.1.6-0+deb12u1.")
    if kind == "env" and not all(_VARIABLE.match(word) for word in words):
        raise ImageFailed("env takes NAME=value, the name of letters, digits and underscores.")
    if kind in ("copy", "from_dockerfile") and len(words) != 2:
        raise ImageFailed(f"{kind} takes two paths.")
    for word in {"copy": words[:1], "from_dockerfile": words}.get(kind, ()):
        if word.startswith("/") or ".." in word.split("/") or "\\" in word:
            raise ImageFailed(
                f"{word!r:.200} must be a path below the project's root, such as data/model.bin."
            )
    if kind == "copy" and ".." in words[1].split("/"):
        raise ImageFailed(f"copy to {words[1]!r:.200} leads outside: name the target plainly.")
    if kind == "from_registry":
        if len(words) != 1:
            raise ImageFailed("from_registry takes one reference.")
        parse(words[0])


def _check_requirement(word: str) -> None:
    """Raises `ImageFailed` for what is no requirement; the rest the installer says."""
    if word.lstrip().startswith("-"):
        raise ImageFailed(f"{word!r:.100}: pip takes requirements, no options: set those for the host.")
    if word.endswith(".txt"):
        raise ImageFailed(f"{word!r:.100}: pip takes requirements, no file of them: give its lines.")
    if "/" not in word and not _REQUIREMENT.fullmatch(word.strip()):
        raise ImageFailed(
            f'{word!r:.100}: pip takes requirements one by one, such as "six" or "torch>=2.13".'
        )


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value
