"""The environment of an endpoint as a value: what to start from and which layers to add.

An image is only described here; a deploy packs it with the files that it copies, and hosts build it
(`headrace_runtimes.images`) before they start the first instance.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headrace_runtimes.errors import ImageFailed
from headrace_runtimes.images import definition as definitions

from headrace.errors import SpecError, UnsupportedOption
from headrace.sdk.spec import ImageSpec

_NO_LAYERS = ImageSpec()
_STARTS = frozenset({"python", "from_registry", "from_dockerfile"})
OLDEST = 9
"""Of Python 3: what runs in instances needs it."""


class Image:
    """An immutable description; each method returns a new image with one more layer.

    ``Image.python("3.11").pip("torch==2.13.0").apt("ffmpeg").env(HF_HOME="/models")``. Two images with
    the same steps are equal and have the same `digest`. Raises `SpecError` for a wrong argument.
    """

    __slots__ = ("spec",)

    def __init__(self, spec: ImageSpec = _NO_LAYERS) -> None:
        if not isinstance(spec, ImageSpec):
            raise SpecError(
                f'Image({spec!r:.80}): use Image.python("3.12"), Image.from_registry("...") or Image().'
            )
        self.spec = spec
        """The value that goes into the endpoint's spec."""

    if not TYPE_CHECKING:

        def __getattribute__(self, name: str) -> Any:
            """A class method on an image that has steps would drop them without a word."""
            if name in _STARTS and self.spec != _NO_LAYERS:
                raise SpecError(
                    f"Image.{name}(...) after other steps: an image starts from one place.",
                    hint=f"Begin with it: Image.{name}(...).pip(...).",
                )
            return object.__getattribute__(self, name)

    @classmethod
    def python(cls, version: str) -> Image:
        """Start from a plain Python, for example ``"3.11"``."""
        parts = version.split(".") if isinstance(version, str) else []
        if len(parts) not in (2, 3) or not all(part.isdecimal() and part.isascii() for part in parts):
            raise SpecError(f'Image.python({version!r:.80}): use a version such as "3.11", in quotes.')
        if parts[0] != "3" or int(parts[1]) < OLDEST:
            raise SpecError(f'Image.python({version!r:.80}): use "3.{OLDEST}" or newer.')
        return cls(ImageSpec(python=version))

    @classmethod
    def from_registry(cls, reference: str) -> Image:
        """Start from an image of a registry, for example ``"ghcr.io/org/name@sha256:..."``."""
        return cls()._with("from_registry", (_word("from_registry", reference),))

    @classmethod
    def from_dockerfile(cls, path: str, context: str = ".") -> Image:
        """Start from a Dockerfile; both paths are relative to the project's root."""
        return cls()._with(
            "from_dockerfile", (_word("from_dockerfile", path), _word("from_dockerfile", context))
        )

    def pip(self, *requirements: str) -> Image:
        """Install Python packages."""
        return _begun(self, "pip")._with("pip", requirements)

    def apt(self, *packages: str) -> Image:
        """Install Debian packages."""
        return _begun(self, "apt")._with("apt", packages)

    def run(self, *commands: str) -> Image:
        """Run shell commands."""
        return _begun(self, "run")._with("run", commands)

    def copy(self, source: str, target: str) -> Image:
        """Copy a file or directory of the project; its content is part of the image once it is built."""
        return self._with("copy", (source, target))

    def env(self, **variables: str) -> Image:
        """Set environment variables."""
        for name, value in variables.items():
            if not isinstance(value, str) or "\0" in value:
                raise SpecError(f"Image.env({name}={value!r:.80}): use a string.")
            if name.startswith("HEADRACE_"):
                raise SpecError(f"Image.env({name}=...): that is the platform's own; use another name.")
        return self._with("env", tuple(f"{name}={value}" for name, value in sorted(variables.items())))

    @property
    def definition(self) -> definitions.Image:
        """The value that runtimes build; ``images.context.pack`` adds the digests of the files it names."""
        return definition_of(self.spec)

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of the definition, without what its files hold: see `digest_in`."""
        return self.definition.digest

    def digest_in(self, root: str | os.PathLike[str]) -> str:
        """SHA-256 (hex) of the definition with what its files below ``root`` (the project) hold now.

        It names the image at a deployment; the tag of an image of a registry becomes its digest then. Raises
        `SpecError` for files that are missing or lead outside.
        """
        from headrace_runtimes.images import context  # noqa: PLC0415 - keeps `import headrace` cheap in a sandbox

        try:
            return context.pack(self.definition, Path(root))[0].digest
        except ImageFailed as error:
            raise SpecError(f"image: {error}") from error

    def _with(self, step: str, arguments: tuple[str, ...]) -> Image:
        if not arguments:
            raise SpecError(f"Image.{step}(): give it at least one argument.")
        words = tuple(_word(step, argument) for argument in arguments)
        image = Image(ImageSpec(python=self.spec.python, layers=(*self.spec.layers, (step, words))))
        try:
            definitions.check(image.definition)
        except ImageFailed as error:
            raise SpecError(f"Image.{step}(...): {error}") from error
        return image

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Image) and self.spec == other.spec

    def __hash__(self) -> int:
        return hash((self.spec.python, self.spec.layers))

    def __repr__(self) -> str:
        return f"Image({self.spec!r})"


def definition_of(spec: ImageSpec) -> definitions.Image:
    """What a runtime builds; without the digests of its files."""
    return definitions.Image(python=spec.python, steps=spec.layers)


def image_of_option(value: Any) -> ImageSpec:
    """The ``image=`` option as a spec. Raises `SpecError`."""
    if value is None:
        return ImageSpec()
    if not isinstance(value, Image):
        raise SpecError(f'image={value!r}: use headrace.Image, such as headrace.Image.python("3.11").')
    return value.spec


def check_image(runtime: str, spec: ImageSpec) -> None:
    """Raises `SpecError` for an image that makes no sense, `UnsupportedOption` for one that this runtime
    cannot have.
    """
    image = definition_of(spec)
    try:
        definitions.check(image)
    except ImageFailed as error:
        raise SpecError(f"image: {error}") from error
    if runtime == "process" and (reason := definitions.refused_by_process(image)):
        raise UnsupportedOption(f"image: {reason}.")


def _begun(image: Any, step: str) -> Image:
    """What a step is added to. `SpecError` for a step on the class."""
    if isinstance(image, Image):
        return image
    raise SpecError(f"Image.{step}({image!r:.80}): begin with Image(): Image().{step}({image!r:.80}).")


def _word(step: str, value: Any) -> str:
    if isinstance(value, list | tuple):
        raise SpecError(f"Image.{step}({value!r:.80}): give them one by one: Image.{step}(*names).")
    if not isinstance(value, str) or not value.strip():
        raise SpecError(f"Image.{step}({value!r}): use non-empty strings.")
    return value
