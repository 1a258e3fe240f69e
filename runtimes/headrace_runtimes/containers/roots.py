"""The prepared images of one runtime: those that are in use stay, others are let go after a while."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from weakref import WeakKeyDictionary

from headrace_runtimes.base import Progress
from headrace_runtimes.containers.driver import Driver, Root
from headrace_runtimes.containers.frame import ContainerFrame
from headrace_runtimes.images.definition import Image

KEPT_S = 900.0
"""What was prepared is about to be claimed: it stays that long without any other use."""


class Roots:
    """By digest of the definition. The plain one stays always."""

    def __init__(self, driver: Driver, clock: Callable[[], float] = time.monotonic) -> None:
        self._driver, self._clock = driver, clock
        self._roots: dict[str, Root] = {}
        self._used: dict[str, float] = {}
        self._users: WeakKeyDictionary[ContainerFrame, str] = WeakKeyDictionary()

    async def prepare(self, image: Image, progress: Progress | None) -> None:
        """Have it here; quick when it is. Raises `PrepareFailed` and its kin."""
        if self.get(image.digest) is None:
            root = await self._driver.prepare(image, progress)
            self._roots[image.digest], self._used[image.digest] = root, self._clock()

    def get(self, digest: str) -> Root | None:
        """It, if it is here: that is a use."""
        root = self._roots.get(digest)
        if root is not None:
            self._used[digest] = self._clock()
        return root

    def used_by(self, frame: ContainerFrame, digest: str) -> None:
        """It stays as long as ``frame`` is alive."""
        self._users[frame] = digest

    def let_go(self, named: Collection[str]) -> None:
        """Of all that is neither ``named`` nor in use, nor was lately: it may be collected from now on."""
        now = self._clock()
        users = {digest for frame, digest in self._users.items() if frame.child.alive}
        for digest in {"", *named, *users} & self._used.keys():
            self._used[digest] = now
        for digest in [digest for digest, at in self._used.items() if now - at > KEPT_S]:
            del self._used[digest]
            self._driver.release(self._roots.pop(digest))
