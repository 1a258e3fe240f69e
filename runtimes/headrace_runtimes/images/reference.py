"""Names of images: ``[registry/]repository[:tag][@sha256:...]``, and the words of their manifests."""

from __future__ import annotations

import ipaddress
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from headrace_runtimes.errors import ImageFailed

DEFAULT_REGISTRY, DEFAULT_HOST = "docker.io", "registry-1.docker.io"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
INDEXES = (OCI_INDEX, DOCKER_LIST)
MANIFESTS = (OCI_MANIFEST, DOCKER_MANIFEST)
MAX_LAYERS = 120
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "ppc64le": "ppc64le"}

_REPOSITORY = re.compile(r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*)*")
_HOST = re.compile(r"(?:[A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


@dataclass(frozen=True)
class Reference:
    """Where an image is. One of ``tag`` and ``digest`` may be empty; a digest decides."""

    registry: str
    repository: str
    tag: str = ""
    digest: str = ""

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        return f"{self.registry}/{self.repository}{tag}" + (f"@{self.digest}" if self.digest else "")

    @property
    def host(self) -> str:
        """Whom to ask: host and port."""
        return DEFAULT_HOST if self.registry == DEFAULT_REGISTRY else self.registry

    @property
    def scheme(self) -> str:
        """``http`` only for this machine's own loopback."""
        return "http" if is_loopback(self.host) else "https"

    @property
    def wanted(self) -> str:
        """What to ask for: the digest, or the tag."""
        return self.digest or self.tag


@dataclass(frozen=True)
class Descriptor:
    """What a manifest says of a blob."""

    media_type: str
    digest: str
    size: int

    def encode(self) -> dict[str, Any]:
        """As it is written in a manifest."""
        return {"mediaType": self.media_type, "digest": self.digest, "size": self.size}


@dataclass(frozen=True)
class Manifest:
    """One image for one platform."""

    config: Descriptor
    layers: tuple[Descriptor, ...]


def parse(text: str) -> Reference:
    """Raises `ImageFailed` for what is no reference."""
    rest, _, digest = text.partition("@")
    first, slash, after = rest.partition("/")
    if slash and ("." in first or ":" in first or first == "localhost"):
        registry, path = first, after
    else:
        registry, path = DEFAULT_REGISTRY, rest if "/" in rest else f"library/{rest}"
    if registry in ("index.docker.io", DEFAULT_HOST):
        registry = DEFAULT_REGISTRY
    repository, colon, tag = path.partition(":")
    good = _HOST.fullmatch(registry) and _REPOSITORY.fullmatch(repository) and len(text) <= 512
    if not good or (colon and not _TAG.fullmatch(tag)) or ("@" in text and not is_digest(digest)):
        raise ImageFailed(f"{text!r:.200} is no image reference: use host/name:tag or host/name@sha256:...")
    return Reference(registry, repository, tag or ("" if digest else "latest"), digest)


def is_digest(text: object) -> bool:
    """Whether it is ``sha256:`` and 64 hex digits."""
    return isinstance(text, str) and _DIGEST.fullmatch(text) is not None


def is_loopback(host: str) -> bool:
    """Whether ``host[:port]`` is this machine by its very name."""
    # Without brackets more than one colon is a bare address of version 6, and its end no port.
    has_port = re.search(r":\d+$", host) and ("[" in host or host.count(":") == 1)
    name = host.rpartition(":")[0] if has_port else host
    name = name.rstrip(".").lower()
    if name == "localhost" or name.endswith(".localhost"):
        return True
    found = _number(name)
    return found is not None and (found.is_loopback or found.is_unspecified)


def is_link_local(host: str) -> bool:
    """Whether it is an address of the link, by number: there is a cloud's metadata, and no registry."""
    found = _number(host)
    return found is not None and found.is_link_local


def _number(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        found = ipaddress.ip_address(host.strip("[]").partition("%")[0])
    except ValueError:
        return None
    return (found.ipv4_mapped or found) if isinstance(found, ipaddress.IPv6Address) else found


def manifest_of(value: Any) -> Manifest:
    """Raises `ImageFailed` for what is no manifest."""
    try:
        found = Manifest(_descriptor(value["config"]), tuple(_descriptor(v) for v in value["layers"]))
    except (KeyError, TypeError, ValueError) as error:
        raise ImageFailed(f"The image's manifest makes no sense ({error}): push it again.") from error
    if len(found.layers) > MAX_LAYERS:
        raise ImageFailed(f"The image has {len(found.layers)} layers, {MAX_LAYERS} is the most: squash it.")
    return found


def choose(index: Any, architecture: str | None = None) -> Descriptor:
    """The manifest of an index that is for this machine. Raises `ImageFailed`."""
    machine = platform.machine()
    wanted = architecture or ARCHITECTURES.get(machine, machine)
    offered = []
    try:
        for entry in index["manifests"]:
            where: Mapping[str, Any] = entry.get("platform") or {}
            if where.get("os", "linux") == "linux" and where.get("architecture", wanted) == wanted:
                return _descriptor(entry)
            offered.append(f"{where.get('os')}/{where.get('architecture')}")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ImageFailed(f"The image's index makes no sense ({error}): push it again.") from error
    raise ImageFailed(
        f"The image is not for linux/{wanted}, only for {', '.join(offered[:8]) or 'nothing'}: "
        "push it for that."
    )


def diff_ids(config: Any) -> tuple[str, ...]:
    """Digests of the decompressed layers, lowest first. Raises `ImageFailed`."""
    try:
        found = tuple(config["rootfs"]["diff_ids"])
    except (KeyError, TypeError) as error:
        raise ImageFailed(f"The image's configuration makes no sense ({error}): push it again.") from error
    if not all(is_digest(d) for d in found):
        raise ImageFailed(
            "The image's configuration names layers by something else than SHA-256: push it again."
        )
    return found


def settings(config: Any) -> Mapping[str, Any]:
    """``Env``, ``WorkingDir``, ``User`` and so on. Raises `ImageFailed`."""
    found = config.get("config") if isinstance(config, dict) else None
    if found is not None and not isinstance(found, dict):
        raise ImageFailed("The image's configuration makes no sense: push it again.")
    return found or {}


def variables(words: Sequence[Any] | None) -> dict[str, str]:
    """``Env`` as a mapping; what is no variable is not there."""
    pairs = (w.partition("=") for w in words or () if isinstance(w, str) and "\0" not in w)
    return {name: value for name, equals, value in pairs if name and equals}


def _descriptor(value: Any) -> Descriptor:
    digest, size = value["digest"], value["size"]
    if not is_digest(digest):
        raise ValueError(f"{digest!r:.100} is no SHA-256 digest")
    if not isinstance(size, int) or size < 0:
        raise ValueError(f"{size!r:.100} is no size")
    return Descriptor(str(value.get("mediaType", "")), digest, size)
