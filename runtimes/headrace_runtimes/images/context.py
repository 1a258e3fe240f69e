"""How a definition and the files that it names travel: one deterministic zip, named by its SHA-256.

The deploy packs, the blob store keeps, hosts fetch and `unpack`. Equal content gives equal bytes, whatever
the times, owners and place of the files.
"""

from __future__ import annotations

import hashlib
import io
import os
import stat
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path, PurePosixPath

from headrace_runtimes.errors import ImageFailed
from headrace_runtimes.images.definition import Image, check, decode

MAX_BYTES = 256 << 20
MAX_FILES = 20_000
EXCLUDED = frozenset({".git", ".venv", "venv", "__pycache__", "node_modules"})
"""Directories that are never part of a copied one."""
DEFINITION = "image.json"
FILES = "files/"
_EPOCH = (1980, 1, 1, 0, 0, 0)


def named_paths(image: Image) -> tuple[str, ...]:
    """Paths of the project that the definition copies or builds from, sorted."""
    found: set[str] = set()
    for kind, words in image.steps:
        if kind == "copy":
            found.add(_inside(words[0]))
        elif kind == "from_dockerfile":
            found.update(_inside(word) for word in words)
    return tuple(sorted(found))


def pack(image: Image, root: Path) -> tuple[Image, bytes]:
    """The definition with the digests of its files below ``root``, and the zip that carries all. Blocks.

    Raises `ImageFailed` for what is missing, leads outside, or is too much.
    """
    check(image)
    root = root.resolve()
    contents: dict[str, tuple[bytes, bool]] = {}
    digests = []
    total = 0
    for name in named_paths(image):
        listing = {}
        for relative, path in _walk(root, name):
            data, runs = _read(root, path)
            if relative not in contents:
                total += len(data)
            contents[relative] = data, runs
            listing[relative] = data, runs
            if total > MAX_BYTES or len(contents) > MAX_FILES:
                raise ImageFailed(
                    f"The image's files have more than {MAX_BYTES >> 20} MiB or {MAX_FILES} files: "
                    "fetch large ones in a run step, or declare them as weights."
                )
        digests.append((name, _digest(listing)))
    whole = replace(image, files=tuple(digests))
    return whole, _zip(whole, contents)


def unpack(data: bytes, target: Path) -> Image:
    """Write the files below the existing directory ``target``; the definition. Blocks.

    Raises `ImageFailed` when it is not what `pack` makes, or its files are not those of its definition.
    """
    image, contents = _unzip(data)
    _verify(image, contents)
    try:
        for name, (content, runs) in contents.items():
            path = target / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            path.chmod(0o755 if runs else 0o644)
    except OSError as error:
        raise ImageFailed(f"The image's files cannot be written: {error}.") from error
    return image


def definition_in(data: bytes) -> Image:
    """The definition that `pack` has put there. Blocks. Raises `ImageFailed`."""
    return _unzip(data)[0]


def with_definition(data: bytes, image: Image) -> bytes:
    """What `pack` has made, with another definition of the same files. Blocks. Raises `ImageFailed`."""
    _, contents = _unzip(data)
    _verify(image, contents)
    return _zip(image, contents)


def _unzip(data: bytes) -> tuple[Image, dict[str, tuple[bytes, bool]]]:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entries = archive.infolist()
            names = [entry.filename for entry in entries]
            if len(entries) > MAX_FILES + 1 or len(set(names)) != len(names):
                raise ImageFailed("The image's files are too many, or one is there twice: deploy again.")
            if sum(entry.file_size for entry in entries) > MAX_BYTES + (1 << 20):
                raise ImageFailed("The image's files are too large: deploy again.")
            image = decode(archive.read(DEFINITION))
            contents = {
                _inside(entry.filename.removeprefix(FILES)): (
                    archive.read(entry),
                    bool(entry.external_attr >> 16 & stat.S_IXUSR),
                )
                for entry in entries
                if entry.filename.startswith(FILES)
            }
    except (zipfile.BadZipFile, KeyError, ValueError, EOFError, NotImplementedError, RuntimeError) as error:
        raise ImageFailed(f"The image's files are damaged ({error}): deploy again.") from error
    return image, contents


def names(data: bytes) -> tuple[str, ...]:
    """Paths of the files in what `pack` has made, sorted."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        found = (name.removeprefix(FILES) for name in archive.namelist() if name.startswith(FILES))
        return tuple(sorted(found))


def directory(images_dir: Path, digest: str) -> Path:
    """Where a host keeps the files of the definition of this digest, as `unpack` lays them out."""
    return images_dir / "contexts" / digest


def _verify(image: Image, contents: dict[str, tuple[bytes, bool]]) -> None:
    if tuple(name for name, _ in image.files) != named_paths(image):
        raise ImageFailed("The image's files are not those that its definition names: deploy again.")
    for name, digest in image.files:
        part = {k: v for k, v in contents.items() if _belongs(k, name)}
        if _digest(part) != digest:
            raise ImageFailed(f"{name!r:.200} of the image is not what its definition says: deploy again.")


def _belongs(path: str, name: str) -> bool:
    """Whether `_walk` of ``name`` comes by ``path``."""
    if path == name:
        return True
    if name != "." and not path.startswith(f"{name}/"):
        return False
    relative = path if name == "." else path[len(name) + 1 :]
    return EXCLUDED.isdisjoint(relative.split("/")[:-1])


def _digest(files: dict[str, tuple[bytes, bool]]) -> str:
    found = hashlib.sha256()
    for name in sorted(files):
        data, runs = files[name]
        found.update(f"{len(name.encode())}:{name}{'x' if runs else '-'}".encode())
        found.update(hashlib.sha256(data).digest())
    return found.hexdigest()


def _walk(root: Path, name: str) -> Iterator[tuple[str, Path]]:
    """Files at or below a named path, with their names from the root, sorted."""
    start = root / name
    if not start.exists():
        raise ImageFailed(f"{name!r} is not in {root}: an image copies files of the project.")
    if not start.is_dir():
        yield name, start
        return
    if start.resolve() != start:
        raise ImageFailed(f"{name!r} is a link, or below one: name the directory itself.")
    for folder, below, files in os.walk(start):
        below[:] = sorted(b for b in below if b not in EXCLUDED and not (Path(folder) / b).is_symlink())
        for file in sorted(files):
            path = Path(folder) / file
            yield path.relative_to(root).as_posix(), path


def _read(root: Path, path: Path) -> tuple[bytes, bool]:
    try:
        real = path.resolve(strict=True)
        if not real.is_relative_to(root):
            raise ImageFailed(f"{path} leads outside of {root}: copy it into the project.")
        about = real.stat()
        if not stat.S_ISREG(about.st_mode):
            raise ImageFailed(f"{path} is no file: leave it out.")
        if about.st_size > MAX_BYTES:
            raise ImageFailed(f"{path} has more than {MAX_BYTES >> 20} MiB: declare it as weights.")
        return real.read_bytes(), bool(about.st_mode & stat.S_IXUSR)
    except OSError as error:
        raise ImageFailed(f"{path} cannot be read: {error.strerror}.") from error


def _zip(image: Image, contents: dict[str, tuple[bytes, bool]]) -> bytes:
    # Stored, not deflated: the bytes of a compressed zip depend on the version of zlib.
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        _add(archive, DEFINITION, image.encode(), runs=False)
        for name in sorted(contents):
            data, runs = contents[name]
            _add(archive, FILES + name, data, runs=runs)
    return buffer.getvalue()


def _add(archive: zipfile.ZipFile, name: str, data: bytes, *, runs: bool) -> None:
    info = zipfile.ZipInfo(name, _EPOCH)
    info.external_attr = (stat.S_IFREG | (0o755 if runs else 0o644)) << 16
    info.create_system = 3
    archive.writestr(info, data)


def _inside(name: str) -> str:
    """The path in its plain form. Raises `ImageFailed` when it is not below the project's root."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\0" in name or "\\" in name:
        raise ImageFailed(f"{name!r:.200} must be a path below the project's root.")
    return path.as_posix()
