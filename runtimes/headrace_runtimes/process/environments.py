"""Environments of images for the process runtime: what a zygote of another interpreter is started with."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from headrace_runtimes.base import Progress
from headrace_runtimes.errors import PrepareFailed
from headrace_runtimes.images import context
from headrace_runtimes.images.definition import Image
from headrace_runtimes.images.pyenv import Environments, PyEnv, PyEnvSettings
from headrace_runtimes.process.networks import BuildNetworks
from headrace_runtimes.process.spawn import python_paths
from headrace_runtimes.process.zygote import ZygoteOptions
from headrace_runtimes.spec import RuntimeSettings


class ImageOptions:
    """`ZygoteOptions` by image. ``plain`` are those of the platform's own environment."""

    def __init__(self, settings: RuntimeSettings, plain: ZygoteOptions) -> None:
        self._images = settings.images_dir or settings.run_dir / "images"
        self._networks = BuildNetworks(settings)
        about = PyEnvSettings(settings.python, lend=self._networks.lend())
        self._environments = Environments(self._images / "envs", about)
        self._plain = plain
        self._known: dict[str, ZygoteOptions] = {"": plain}
        self._held = contextlib.ExitStack()
        self._opened = False

    def of(self, image: str) -> ZygoteOptions:
        """What zygotes of the image with this digest are started with. Raises `PrepareFailed`."""
        try:
            return self._known[image]
        except KeyError:
            raise PrepareFailed(f"The image {image[:12]} is not here: prepare it first.") from None

    async def prepare(self, image: Image, progress: Progress | None) -> None:
        """Make its environment, or find it. Raises as `Environments.prepare`."""
        if image.digest in self._known:
            return
        if not self._opened:
            self._images.mkdir(mode=0o711, parents=True, exist_ok=True)
            await self._environments.open()
            self._opened = True
        files = context.directory(self._images, image.digest)
        env = await self._environments.prepare(image, files if files.is_dir() else None, progress)
        # Held until the end: a zygote is started from it at any time.
        self._held.enter_context(self._environments.hold(env.name))
        variables = environment_of(self._plain.env, env)
        paths = await python_paths(env.python, variables)
        expose = (*paths, *map(Path, env.paths), *self._plain.expose)
        self._known[image.digest] = replace(self._plain, python=env.python, env=variables, expose=expose)

    async def close(self) -> None:
        """Let go of all environments: they may be collected."""
        await self._networks.close()
        self._held.close()
        self._known = {"": self._plain}


def environment_of(plain: Mapping[str, str], env: PyEnv) -> dict[str, str]:
    """Variables of a zygote in an environment: its programs and files are found first."""
    kept = {k: v for k, v in plain.items() if k not in ("VIRTUAL_ENV", "PYTHONHOME", "PYTHONPATH")}
    found = kept | {"PATH": os.pathsep.join((str(Path(env.python).parent), kept.get("PATH", os.defpath)))}
    if env.paths:
        found["PYTHONPATH"] = os.pathsep.join(env.paths)
    return found | dict(env.env)
