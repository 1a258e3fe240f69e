"""What a definition names by something that may change, looked up once: all hosts use the same bytes then."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path

from headrace_runtimes.images.auth import Credentials
from headrace_runtimes.images.definition import Image
from headrace_runtimes.images.reference import Reference, parse
from headrace_runtimes.images.registry import Registry
from headrace_runtimes.images.wire import Patience

_EXACT = re.compile(r"==\s*[^\s*,]+\s*\)?\s*$")


def moving(image: Image) -> Reference | None:
    """The image of a registry that it starts from, when only its tag is named. Raises `ImageFailed`."""
    if not image.steps or image.steps[0][0] != "from_registry":
        return None
    reference = parse(image.steps[0][1][0])
    return None if reference.digest else reference


def unpinned(image: Image) -> tuple[str, ...]:
    """Its requirements that each build resolves anew; one by address is taken to say what it means."""
    words = (word for kind, words in image.steps if kind == "pip" for word in words)
    return tuple(word for word in words if "/" not in word and not _EXACT.search(word.partition(";")[0]))


def own_python(image: Image, pythons: Collection[str]) -> bool:
    """Whether a root made of the host's Python alone is enough on hosts that have these (``3.11.2``)."""
    if any(kind in ("apt", "run") for kind, _ in image.steps):
        return False
    return image.python is None or all(f"{own}.".startswith(f"{image.python}.") for own in pythons)


def started_from(image: Image, reference: str) -> Image:
    """The same steps on an image of a registry instead of a plain Python."""
    return replace(image, python=None, steps=(("from_registry", (reference,)), *image.steps))


def pinned(image: Image, digest: str) -> Image:
    """The same image with the digest (``sha256:...``) that the tag it starts from had."""
    reference = moving(image)
    assert reference is not None
    start = ("from_registry", (str(replace(reference, digest=digest)),))
    return replace(image, steps=(start, *image.steps[1:]))


async def look_up(
    reference: Reference,
    *,
    credentials: Mapping[str, Credentials] | None = None,
    docker_config: Path | None = None,
    patience: Patience | None = None,
) -> str:
    """The digest that the reference has now. Raises `RegistryFailed`."""
    given = (credentials or {}).get(reference.registry)
    async with Registry(
        reference, credentials=given, docker_config=docker_config, patience=patience
    ) as registry:
        return await registry.resolve()
