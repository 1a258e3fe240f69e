"""The same example on every runtime of this machine, changed by one option, with the same answers."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import shutil
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from headrace.cluster.local import LocalCluster
from headrace.config import Settings
from headrace.sdk.client import Client
from headrace_runtimes import registry

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="containers need root"),
    pytest.mark.asyncio(loop_scope="module"),
]

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
RECEIPT = EXAMPLES / "data" / "receipt.png"
RUNTIMES = [name for name in ("process", "oci", "docker") if name in registry.names()]
answers: dict[str, Any] = {}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cluster(docker_daemon: str) -> AsyncIterator[LocalCluster]:
    folder = Path(tempfile.mkdtemp(prefix="hro-"))
    folder.chmod(0o711)
    settings = Settings(
        data_dir=str(folder / "d"),
        run_dir=str(folder / "r"),
        images_dir=str(folder / "i"),
        runtimes=",".join(RUNTIMES),
        port=0,
        control_port=0,
    )
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("DOCKER_HOST", docker_daemon)
            async with LocalCluster(settings) as cluster:
                yield cluster
    finally:
        shutil.rmtree(folder)


async def deployed(cluster: LocalCluster, file: Path, timeout_s: float = 100.0) -> dict[str, Any]:
    with Client(cluster.url, cluster.admin_key, timeout=30) as client:
        return dict(await asyncio.to_thread(client.deploy, file, timeout=timeout_s))


@pytest.mark.examples
@pytest.mark.timeout(240)
@pytest.mark.parametrize("runtime", RUNTIMES)
async def test_ocr(cluster: LocalCluster, runtime: str, tmp_path: Path) -> None:
    if importlib.util.find_spec("rapidocr_onnxruntime") is None:
        pytest.skip("rapidocr_onnxruntime is not installed")
    text = (EXAMPLES / "ocr.py").read_text()
    file = tmp_path / "ocr.py"
    file.write_text(
        text.replace("@headrace.endpoint(\n", f'@headrace.endpoint(\n    runtime="{runtime}",\n', 1)
    )
    done = await deployed(cluster, file)
    assert done["state"] == "succeeded"
    with Client(cluster.url, cluster.admin_key, timeout=90) as client:
        found = await asyncio.to_thread(
            client.call, "ocr", data=RECEIPT.read_bytes(), content_type="image/png"
        )
        items = await asyncio.to_thread(client.instances)
    assert [i["runtime"] for i in items if i["endpoint"] == "ocr" and i["state"] == "ready"] == [runtime]
    assert "TOTAL" in found["text"]
    answers[runtime] = found
    assert all(found == answer for answer in answers.values())
