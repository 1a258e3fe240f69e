"""The root that is made of the host's Python starts by the path that an environment names."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from headrace_runtimes.images.hostroot import make_host_root


@pytest.mark.skipif(os.geteuid() != 0, reason="chroot needs root")
def test_an_environment_may_name_its_python_by_a_link_beside_it(tmp_path: Path) -> None:
    binary = os.path.realpath(sys.executable)
    others, environment = tmp_path / "others/bin", tmp_path / "venv"
    others.mkdir(parents=True)
    (others / "python3").symlink_to(binary)
    (environment / "bin").mkdir(parents=True)
    (environment / f"lib/python3.{sys.version_info.minor}").mkdir(parents=True)
    (environment / "pyvenv.cfg").write_text(f"home = {Path(binary).parent}\n")
    (environment / "bin/python").symlink_to(others / "python3")
    (environment / "bin/python3").symlink_to("python")

    root = tmp_path / "root"
    assert make_host_root(str(environment / "bin/python3"), root) == binary
    said = subprocess.check_output(
        ["chroot", root, others / "python3", "-c", "import json; print(json.dumps([1]))"], timeout=60
    )
    assert said == b"[1]\n"
