"""`headrace dev`'s core: one file, served keyless, followed at every save."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from headrace.cluster.dev import DevEvent, run_dev, signature
from headrace.config import Settings
from headrace.errors import UsageError

from tests.integration.conftest import until

GOOD = """
import headrace
from words import WORD

@headrace.endpoint
def greet() -> str:
    return WORD
"""


class Dev:
    def __init__(self, file: Path) -> None:
        self.file = file
        self.events: list[DevEvent] = []

    async def seen(self, kind: str, count: int = 1) -> DevEvent:
        """The ``count``-th event of that kind."""

        def found() -> list[DevEvent]:
            return [e for e in self.events if e.kind == kind][count - 1 :]

        return (await until(found))[0]  # type: ignore[no-any-return]

    async def post(self, path: str, **options: Any) -> tuple[int, Any]:
        url = (await self.seen("ready")).url
        async with aiohttp.ClientSession() as http, http.post(url + path, **options) as answer:
            return answer.status, await answer.json(content_type=None)


@contextlib.asynccontextmanager
async def running_dev(file: Path, data_dir: Path | None = None) -> AsyncIterator[Dev]:
    dev = Dev(file)
    task = asyncio.create_task(run_dev(file, Settings(port=0), dev.events.append, data_dir=data_dir))
    try:
        yield dev
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def test_follows_every_save(tmp_path: Path) -> None:
    file, words = tmp_path / "app.py", tmp_path / "words.py"
    words.write_text('WORD = "one"\n')
    file.write_text(GOOD)
    async with running_dev(file) as dev:
        assert (await dev.seen("deployed")).endpoints == ("greet",)
        assert await dev.post("/e/greet", json={}) == (200, "one")

        # A module that the file imports is followed as well.
        words.write_text('WORD = "two!"\n')
        await dev.seen("deployed", 2)
        assert await dev.post("/e/greet", json={}) == (200, "two!")

        # A broken save is told, and the old code goes on.
        file.write_text(GOOD + "\ndef broken(:\n")
        failed = await dev.seen("failed")
        assert "invalid syntax" in failed.detail
        assert await dev.post("/e/greet", json={}) == (200, "two!")

        # The next good one is served, and what is no more in the file goes.
        file.write_text(GOOD.replace("def greet", "def hail"))
        assert (await dev.seen("deployed", 3)).endpoints == ("hail",)
        assert await dev.post("/e/hail", json={}) == (200, "two!")
        assert (await dev.seen("removed")).endpoints == ("greet",)
        assert (await dev.post("/e/greet", json={}))[0] == 404
    assert dev.events[-1].kind == "stopped"


async def test_starts_with_a_broken_file_and_recovers(tmp_path: Path) -> None:
    file = tmp_path / "app.py"
    file.write_text("raise RuntimeError('not yet')\n")
    async with running_dev(file) as dev:
        failed = await dev.seen("failed")
        assert "not yet" in failed.traceback
        (tmp_path / "words.py").write_text('WORD = "late"\n')
        file.write_text(GOOD)
        await dev.seen("deployed")
        assert await dev.post("/e/greet", json={}) == (200, "late")


TALKS = """
import headrace

@headrace.endpoint
class Talks:
    def load(self) -> None:
        print("loading")
        {load}

    def __call__(self, fail: bool = False) -> str:
        print("called")
        if fail:
            raise ValueError("no such luck")
        return "done"
"""


async def test_what_the_code_prints_is_shown(tmp_path: Path) -> None:
    file = tmp_path / "app.py"
    file.write_text(TALKS.format(load="pass"))
    async with running_dev(file) as dev:
        await dev.seen("deployed")
        assert await dev.post("/e/talks", json={}) == (200, "done")
        assert (await dev.post("/e/talks", json={"fail": True}))[0] == 500

        def printed() -> list[str]:
            return [e.detail for e in dev.events if e.kind == "printed" and e.endpoints == ("talks",)]

        await until(lambda: "ValueError: no such luck" in printed())
        assert [line for line in printed() if line in ("loading", "called")][:3] == [
            "loading",
            "called",
            "called",
        ]

        # What a deployment's failure showed is not shown again as output.
        file.write_text(TALKS.format(load="raise RuntimeError('broken load')"))
        failed = await dev.seen("failed")
        assert "broken load" in failed.traceback
        file.write_text(TALKS.format(load="print('mended')"))
        await until(lambda: "mended" in printed())
        assert not [line for line in printed() if "broken load" in line]


async def test_a_kept_data_directory_says_again_what_is_served(tmp_path: Path) -> None:
    file = tmp_path / "app.py"
    (tmp_path / "words.py").write_text('WORD = "kept"\n')
    file.write_text(GOOD)
    for _ in range(2):
        async with running_dev(file, tmp_path / "data") as dev:
            assert (await dev.seen("deployed")).endpoints == ("greet",)
            assert await dev.post("/e/greet", json={}) == (200, "kept")


async def test_keyless_only_for_this_machine(tmp_path: Path) -> None:
    file = tmp_path / "app.py"
    (tmp_path / "words.py").write_text('WORD = "x"\n')
    file.write_text(GOOD)
    async with running_dev(file) as dev:
        await dev.seen("deployed")
        assert (await dev.post("/e/greet", json={}))[0] == 200
        for headers in ({"Host": "evil.example"}, {"Origin": "https://evil.example"}):
            status, problem = await dev.post("/e/greet", json={}, headers=headers)
            assert status == 403, problem


async def test_no_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not a file"):
        await run_dev(tmp_path / "none.py", Settings(port=0), lambda event: None)


def test_signature_changes_with_files(tmp_path: Path) -> None:
    file = tmp_path / "a.py"
    assert signature({file}) == {}
    file.write_text("1")
    one = signature({file})
    (tmp_path / "b.py").write_text("2")
    assert signature({file}) != one
    file.write_text("12")
    assert signature({file})[str(file)] != one[str(file)]
