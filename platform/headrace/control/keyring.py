"""The keys that seal secrets: a file of their own beside the database, so that neither is enough alone.

Each line is ``<id> AES-256-GCM <key in base64>``; the first one seals. There is more than one only while
the key is being changed.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import os
import secrets
import stat
from collections.abc import Collection, Mapping
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from headrace.errors import DataDirError, HeadraceError

FILE = "secrets.key"
CIPHER = "AES-256-GCM"
KEY_BYTES = 32
NONCE_BYTES = 12
HEAD = "# Keys of the secrets in control.db. Keep a copy apart from copies of that database.\n"


class Unreadable(HeadraceError):
    """A secret cannot be opened: its key is not there, or the data was changed."""


class Keyring:
    """The keys of a data directory, in memory. Methods that touch the file block."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._keys: dict[str, bytes] = {}

    def __repr__(self) -> str:
        return f"Keyring({', '.join(self._keys)})"

    @property
    def ids(self) -> Collection[str]:
        """Of all keys."""
        return self._keys.keys()

    def read(self) -> None:
        """Read the file, if there is one. Raises `DataDirError` when it is damaged or others can read it."""
        try:
            seen = self.path.lstat()
            lines = self.path.read_text().splitlines()
        except FileNotFoundError:
            self._keys = {}
            return
        except (OSError, UnicodeDecodeError) as error:
            raise DataDirError(f"{self.path} cannot be read.", hint="Check its owner and mode.") from error
        if not stat.S_ISREG(seen.st_mode) or seen.st_uid != os.geteuid() or seen.st_mode & 0o077:
            raise DataDirError(
                f"{self.path} may be read by others, or is not ours.", hint="chown it to us and chmod 600 it."
            )
        self._keys = dict(_parse(line, self.path) for line in lines if line and not line.startswith("#"))

    def make(self) -> None:
        """Put a new key in front, in the file too."""
        fresh = {f"k{secrets.token_hex(8)}": AESGCM.generate_key(KEY_BYTES * 8)}
        self._write(fresh | self._keys)

    def restore(self) -> None:
        """Write the file again when it has been taken away: what is sealed now must open after a restart."""
        if not self.path.exists():
            self._write(self._keys)

    def keep_first(self) -> None:
        """Forget all keys but the one that seals, in the file too."""
        first = next(iter(self._keys))
        self._write({first: self._keys[first]})

    def seal(self, project: str, name: str, version: int, value: str) -> tuple[str, bytes]:
        """(id of the key, nonce and ciphertext): opens only as this version of this secret."""
        id, key = next(iter(self._keys.items()))
        nonce = os.urandom(NONCE_BYTES)
        sealed = AESGCM(key).encrypt(nonce, value.encode(), _bound(id, project, name, version))
        return id, nonce + sealed

    def open(self, id: str, project: str, name: str, version: int, sealed: bytes) -> str:
        """The value. Raises `Unreadable`."""
        key = self._keys.get(id)
        if key is None:
            raise Unreadable(
                f"secret {name}: its key {id} is not in {FILE} of the data directory.",
                hint=f"Put a copy of that file back and restart, or set {name} again.",
            )
        bound = _bound(id, project, name, version)
        try:
            return AESGCM(key).decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], bound).decode()
        except (InvalidTag, ValueError):
            raise Unreadable(
                f"secret {name}: what is stored was changed.", hint=f"Set {name} again."
            ) from None

    def _write(self, keys: Mapping[str, bytes]) -> None:
        """Whole or not at all. Raises ``OSError``."""
        lines = [f"{id} {CIPHER} {base64.b64encode(key).decode()}\n" for id, key in keys.items()]
        draft = self.path.with_name(f".{FILE}.{secrets.token_hex(4)}")
        try:
            fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with open(fd, "w") as file:
                file.write(HEAD + "".join(lines))
                file.flush()
                os.fsync(file.fileno())
            draft.replace(self.path)
        except BaseException:
            with contextlib.suppress(OSError):
                draft.unlink()
            raise
        self._keys = dict(keys)
        folder = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _parse(line: str, path: Path) -> tuple[str, bytes]:
    parts = line.split()
    try:
        id, cipher, text = parts
        key = base64.b64decode(text, validate=True)
    except (ValueError, binascii.Error):
        cipher, id, key = "", "", b""
    if cipher != CIPHER or len(key) != KEY_BYTES:
        # Not the line itself: it is a key, or most of one.
        raise DataDirError(f"{path} is damaged.", hint="Put a copy of it back.") from None
    return id, key


def _bound(key: str, project: str, name: str, version: int) -> bytes:
    """What a sealed value belongs to: moved to another row, it does not open."""
    return "\0".join(("headrace-secret", key, project, name, str(version))).encode()
