"""Hosts let go of what nobody uses, and of nothing else."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from pathlib import Path

from headrace.host.collect import collect
from headrace_runtimes.images import context
from headrace_runtimes.images.definition import Image
from headrace_runtimes.images.pyenv import Environments, PyEnvSettings

ENV = Image(steps=(("env", ("A=1",)),))


async def test_what_is_old_and_unused_goes(tmp_path: Path) -> None:
    assert await collect(tmp_path / "none", 0) == 0
    environments = Environments(tmp_path / "envs", PyEnvSettings(sys.executable))
    await environments.open()
    env = await environments.prepare(ENV)
    for name in ("old", "new"):
        directory = context.directory(tmp_path, name)
        directory.mkdir(parents=True)
        directory.with_name(f"{name}.json").write_bytes(ENV.encode())
    past = time.time() - 1000
    os.utime(tmp_path / "contexts/old.json", (past, past))
    with contextlib.ExitStack() as held:
        held.enter_context(environments.hold(env.name))
        assert await collect(tmp_path, 1 << 40, 500.0) == 0
        assert await collect(tmp_path, 0, 500.0) == 0, "it is used"
    assert sorted(p.name for p in (tmp_path / "contexts").iterdir()) == ["new", "new.json"]
    assert Path(env.python).exists()
    assert await collect(tmp_path, 0, 500.0) == 1
    assert not Path(env.python).exists()
