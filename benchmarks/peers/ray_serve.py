"""Ray Serve with its own HTTP proxy: one application, either always up or scaled to zero.

Commands come as lines on standard input: ``fresh`` deploys the application anew (with no replica, when it
scales to zero). It prints ``ready`` when the proxy routes it, and stops all when standard input ends.
"""

import argparse
import asyncio
import sys
import time
from pathlib import Path
from typing import Any

import ray
from ray import serve
from starlette.requests import Request


class Noop:
    """Answers the number that it is given."""

    async def __call__(self, request: Request) -> dict[str, Any]:
        """One JSON request."""
        body = await request.json()
        return {"echo": body["x"]}


class Ocr:
    """The model of examples/ocr.py, loaded when the replica starts."""

    def __init__(self) -> None:
        from rapidocr_onnxruntime import RapidOCR  # noqa: PLC0415 - in the replica, as a user writes it

        self.engine = RapidOCR()

    async def __call__(self, request: Request) -> dict[str, Any]:
        """One image as the body."""
        found, _ = self.engine(await request.body())
        return {"lines": [text for _, text, _ in found or []]}


class Embeddings:
    """The model of examples/embeddings.py, loaded when the replica starts."""

    def __init__(self) -> None:
        sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples"))
        import embeddings  # type: ignore[import-not-found]  # noqa: PLC0415 - in the replica, as a user writes it

        self.model = embeddings.Embeddings.__headrace_handler__()
        self.model.load()

    async def __call__(self, request: Request) -> Any:
        """One JSON request with ``texts``."""
        return self.model((await request.json())["texts"])


class Storm:
    """The handler of apps/storm.py."""

    async def __call__(self, request: Request) -> str:
        """One JSON request."""
        body = await request.json()
        await asyncio.sleep(0.02)
        return str(body["call"])


APPS = {"noop": Noop, "ocr": Ocr, "embeddings": Embeddings, "storm": Storm}


def _application(arguments: argparse.Namespace) -> serve.Application:
    options: dict[str, Any] = {"ray_actor_options": {"num_cpus": 0.1}}
    if arguments.app == "storm":
        options["num_replicas"] = 2
    if arguments.mode != "up":
        scaling: dict[str, Any] = {"min_replicas": 0, "max_replicas": 1, "initial_replicas": 0}
        if arguments.mode == "tuned":
            scaling["upscale_delay_s"] = 0
        options["autoscaling_config"] = scaling
    deployment = serve.deployment(name="App", **options)(APPS[arguments.app])
    return deployment.bind()


def main() -> None:
    """Start Ray and Serve, obey, stop both."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--temp-dir", required=True)
    parser.add_argument("--mode", choices=["up", "default", "tuned"], default="up")
    parser.add_argument("--app", choices=sorted(APPS), default="noop")
    arguments = parser.parse_args()
    ray.init(
        address="local",
        num_cpus=4,
        include_dashboard=False,
        _temp_dir=arguments.temp_dir,
        _node_ip_address="127.0.0.1",
        log_to_driver=False,
        logging_level="error",
    )
    serve.start(http_options={"host": "127.0.0.1", "port": arguments.port})
    try:
        _deploy(arguments)
        for line in sys.stdin:
            if line.strip() == "fresh":
                serve.delete("app")
                _deploy(arguments)
    finally:
        serve.shutdown()
        ray.shutdown()


def _deploy(arguments: argparse.Namespace) -> None:
    serve.run(
        _application(arguments), name="app", route_prefix="/", logging_config={"enable_access_log": False}
    )
    # The proxy hears of a route a moment after `run` returns.
    time.sleep(0.5)
    print("ready", flush=True)


if __name__ == "__main__":
    main()
