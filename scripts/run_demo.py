"""``make run``: the platform up, examples/ocr.py deployed, called from zero with a photographed receipt.

Prints the text found, where the time went, and the line that repeats the call; stays until Ctrl-C, or with
``--once`` stops after the answer.
"""

from __future__ import annotations

import argparse
import asyncio
import shlex
import sys
import time
from pathlib import Path
from typing import Any

from headrace import Client
from headrace.cli import receipt
from headrace.cli.output import Output
from headrace.cli.up import UpProgress
from headrace.cluster import supervisor
from headrace.cluster.identity import UpRecord
from headrace.config import Settings, load_settings
from headrace.errors import HeadraceError

ROOT = Path(__file__).resolve().parents[1]
EXAMPLE = ROOT / "examples" / "ocr.py"
IMAGE = ROOT / "examples" / "data" / "receipt.png"
CONTENT_TYPE = "image/png"
ZERO_DEADLINE_S = 30.0


def say(text: str) -> None:
    """One line, at once."""
    print(text, flush=True)


def texts(found: Any) -> list[str]:
    """The lines of text in the answer, whatever else it holds."""
    if isinstance(found, dict):
        if isinstance(found.get("text"), str):
            return str(found["text"]).splitlines()
        return [line for value in found.values() for line in texts(value)]
    if isinstance(found, list):
        return [line for value in found for line in texts(value)]
    return []


def to_zero(client: Client, name: str) -> None:
    """Release what the deployment started, so that the call finds nothing running."""
    deadline = time.monotonic() + ZERO_DEADLINE_S
    while True:
        # Asked again each time: only idle instances are released, and control hears with a delay who is idle.
        client.scale(name, to=0)
        living = client.endpoint(name)["instances"] or ()
        if all(instance.get("state") in ("stopped", "failed") for instance in living):
            return
        if time.monotonic() > deadline:
            raise HeadraceError(f"{name} still has instances after {ZERO_DEADLINE_S:g} s.")
        time.sleep(0.1)


def demo(record: UpRecord, settings: Settings) -> None:
    """Deploy, call from zero, show."""
    key = settings.data / "admin.key"
    with Client(record.url, key.read_text().strip()) as client:
        started = time.monotonic()
        deployment = client.deploy(EXAMPLE)
        name = str(deployment["endpoints"][0]["endpoint"]).rpartition("/")[2]
        say(f"deployed {EXAMPLE.relative_to(ROOT)} as {name} ({time.monotonic() - started:.1f} s)")
        to_zero(client, name)
        say(f"{name} is at zero; calling it with {IMAGE.relative_to(ROOT)}")
        started = time.monotonic()
        reply = client.request(
            "POST", f"/e/{name}", body=IMAGE.read_bytes(), headers={"Content-Type": CONTENT_TYPE}
        )
        reply.raise_for_problem()
        answer = reply.json()
        took = time.monotonic() - started
        say("")
        for line in texts(answer):
            say(f"  | {line}")
        say("")
        say(f"answered from zero in {took * 1000:.0f} ms; the receipt of the request:")
        say(receipt.show(receipt.parse(reply.headers.get("Server-Timing", ""))))
        say("")
        say("again:")
        # The key stays out of the line: the shell reads it where it is kept.
        say(
            f'  curl -sS -H "Authorization: Bearer $(cat {shlex.quote(str(key))})" '
            f"-H 'Content-Type: {CONTENT_TYPE}' \\\n"
            f"    --data-binary @{shlex.quote(str(IMAGE))} {record.url}/e/{name}"
        )
        say("")


def main() -> int:
    """Run; 0 done, 1 failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--once", action="store_true", help="Stop after the answer.")
    once: bool = parser.parse_args().once
    out = Output(as_json=False)

    async def work(record: UpRecord, settings: Settings) -> int:
        await asyncio.to_thread(demo, record, settings)
        if not once:
            say("Ctrl-C stops the platform")
            await asyncio.Event().wait()
        return 0

    try:
        settings = load_settings()
        with UpProgress(out, str(settings.data)) as show:
            return asyncio.run(supervisor.up(settings, show, lambda record: work(record, settings)))
    except HeadraceError as error:
        out.note(f"headrace: {error}")
        return 1


if __name__ == "__main__":
    sys.exit(main())
