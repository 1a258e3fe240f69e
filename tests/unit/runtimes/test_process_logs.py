import asyncio
import os
import resource
from pathlib import Path

import pytest
from headrace_runtimes.instance import logs
from headrace_runtimes.instance.logs import KEEP_SEGMENTS, MIN_SEGMENT, LogStore, decode_line, encode_line
from headrace_runtimes.instance.mask import Mask
from headrace_runtimes.instance.pipes import BURST_BYTES, MAX_LINE, LinePipe, split_lines
from hypothesis import given
from hypothesis import strategies as st


async def read_all(store, endpoint="p/e", limit=100, after=0, sandbox=None):
    found = []
    while True:
        page, after = await store.read(endpoint, sandbox, after, limit, 0)
        found += page
        if not page:
            return found, after


@given(st.text().filter(lambda t: "\n" not in t), st.sampled_from(["stdout", "stderr", "system"]))
def test_a_record_is_read_as_it_was_written(text, stream):
    record = encode_line(1.5, stream, "i-1", text)
    assert record.endswith(b"\n")
    line = decode_line("e", record[:-1])
    assert (line.at, line.stream, line.sandbox) == (1.5, stream, "i-1")
    assert line.text == text.encode("utf-8", "replace").decode()


@given(st.binary())
def test_a_cut_record_is_no_line_and_no_error(junk):
    line = decode_line("e", junk)
    assert line is None or line.endpoint == "e"


@given(st.lists(st.binary(max_size=50)))
def test_lines_do_not_depend_on_how_they_arrive(chunks):
    rest, lines = b"", []
    for chunk in chunks:
        found, rest = split_lines(rest + chunk)
        lines += found
    whole, whole_rest = split_lines(b"".join(chunks))
    assert (lines, rest) == (whole, whole_rest)


def test_a_line_without_end_is_given_out_in_pieces():
    lines, rest = split_lines(b"x" * (3 * MAX_LINE + 5))
    assert [len(line) for line in lines] == [MAX_LINE] * 3
    assert rest == b"x" * 5


@pytest.mark.parametrize("ends", [b"\n", b""])
async def test_no_cut_of_a_long_line_has_a_secret_in_two(ends):
    value = "tok-" + "v" * 600
    for before in (MAX_LINE - 300, MAX_LINE, 2 * MAX_LINE - 1, 64 * 1024 - 5):
        lines = []
        read, write = os.pipe()
        pipe = LinePipe(read, lines.extend)
        pipe.mask = Mask({"T": value})
        written = b"x" * before + value.encode() + b"y" * (3 * MAX_LINE) + ends
        for at in range(0, len(written), 50_000):
            os.write(write, written[at : at + 50_000])
            await asyncio.sleep(0.01)
        os.close(write)
        await until_closed(pipe)
        told = pipe.mask.lines(lines)
        assert "".join(told) == "x" * before + "***" + "y" * (3 * MAX_LINE)
        assert max(map(len, told)) <= MAX_LINE


async def until_closed(pipe):
    async with asyncio.timeout(10):
        while not pipe.closed:
            await asyncio.sleep(0.01)


async def test_pages_filters_and_other_endpoints(tmp_path):
    store = LogStore(tmp_path, 1 << 20)
    for n in range(30):
        store.write("p/e", f"i{n % 3}", "stdout", [f"line {n}"])
    store.write("p/other", "j", "stdout", ["not mine"])
    lines, _ = await read_all(store, limit=7)
    assert [line.text for line in lines] == [f"line {n}" for n in range(30)]
    lines, _ = await read_all(store, sandbox="i1", limit=4)
    assert [line.text for line in lines] == [f"line {n}" for n in range(1, 30, 3)]
    # People read the first characters of an id.
    assert (await read_all(store, sandbox="i", limit=40))[0] == (await read_all(store))[0]
    assert (await store.read("p/never", None, 0, 10, 0)) == ([], 0)
    store.close()


async def test_old_segments_go_and_the_cursor_goes_on(tmp_path):
    store = LogStore(tmp_path, MIN_SEGMENT)
    store.attach("p/e")
    for n in range(1000):
        store.write("p/e", "i", "stdout", [f"line {n} " + "x" * 40])
    lines, end = await read_all(store)
    numbers = [int(line.text.split()[1]) for line in lines]
    assert numbers == list(range(numbers[0], 1000))
    assert numbers[0] > 0
    files = [p for p in tmp_path.rglob("*") if p.is_file()]
    assert len(files) == KEEP_SEGMENTS
    assert sum(p.stat().st_size for p in files) <= KEEP_SEGMENTS * MIN_SEGMENT
    assert all(p.stat().st_mode & 0o777 == 0o600 for p in files)
    assert tmp_path.joinpath("p%2Fe").stat().st_mode & 0o777 == 0o700
    store.detach("p/e")
    store.close()
    again = LogStore(tmp_path, MIN_SEGMENT)
    again.write("p/e", "i", "stdout", ["after"])
    page, cursor = await again.read("p/e", None, end, 10, 0)
    assert [line.text for line in page] == ["after"]
    assert cursor > end
    again.close()


async def test_a_record_cut_by_a_crash_costs_only_itself(tmp_path):
    store = LogStore(tmp_path, 1 << 20)
    store.write("p/e", "i", "stdout", ["one"])
    store.close()
    (file,) = tmp_path.rglob("*.log")
    with file.open("ab") as raw:
        raw.write(b"17.5\tou")
    again = LogStore(tmp_path, 1 << 20)
    again.write("p/e", "i", "stdout", ["two"])
    lines, _ = await read_all(again)
    assert [line.text for line in lines] == ["one", "two"]
    again.close()


async def test_a_cursor_from_before_the_logs_were_removed_begins_again(tmp_path):
    store = LogStore(tmp_path, 1 << 20)
    store.write("p/e", "i", "stdout", ["new"])
    for cursor in (10**9, -5):
        page, _ = await store.read("p/e", None, cursor, 10, 0)
        assert [line.text for line in page] == ["new"]
    store.close()


async def test_a_long_poll_ends_with_the_line_or_with_its_time(tmp_path):
    store = LogStore(tmp_path, 1 << 20)
    waiting = asyncio.create_task(store.read("p/e", "i2", 0, 10, 30))
    await asyncio.sleep(0.02)
    store.write("p/e", "i1", "stdout", ["of another"])
    await asyncio.sleep(0.02)
    assert not waiting.done()
    store.write("p/e", "i2", "stderr", ["mine"])
    page, _ = await asyncio.wait_for(waiting, 5)
    assert [(line.text, line.stream) for line in page] == [("mine", "stderr")]
    page, cursor = await store.read("p/e", "i3", 0, 10, 0.05)
    assert page == []
    assert cursor > 0
    store.close()


async def test_a_search_goes_to_the_end_also_without_waiting(tmp_path, monkeypatch):
    monkeypatch.setattr("headrace_runtimes.instance.logs.READ_BYTES", 300)
    store = LogStore(tmp_path, 1 << 20)
    for n in range(100):
        store.write("p/e", "loud", "stdout", [f"line {n}"])
    store.write("p/e", "rare", "stdout", ["found"])
    page, _ = await store.read("p/e", "rare", 0, 10, 0)
    assert [line.text for line in page] == ["found"]
    store.close()


async def test_a_file_cut_from_outside_ends_no_reader(tmp_path):
    store = LogStore(tmp_path, 1 << 20)
    store.write("p/e", "i", "stdout", ["x" * 100])
    (file,) = tmp_path.rglob("*.log")
    os.truncate(file, 10)
    page, cursor = await asyncio.wait_for(store.read("p/e", None, 0, 10, 0), 5)
    assert (page, cursor > 100) == ([], True)
    store.close()


async def test_a_full_disk_loses_lines_only(tmp_path):
    (tmp_path / "p%2Fe").write_text("a file where the directory should be")
    store = LogStore(tmp_path, 1 << 20)
    store.write("p/e", "i", "stdout", ["lost"])
    assert (await store.read("p/e", None, 0, 10, 0))[0] == []
    store.close()


async def test_a_line_that_a_full_disk_cut_does_not_swallow_the_next(tmp_path):
    store = LogStore(tmp_path, 1 << 20)
    store.attach("p/e")
    store.write("p/e", "i", "stdout", ["before"])
    (file,) = tmp_path.rglob("*.log")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (file.stat().st_size + 100, before[1]))
    try:
        store.write("p/e", "i", "stdout", ["lost " * 100])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    store.write("p/e", "i", "stdout", ["after"])
    assert [line.text for line in (await read_all(store))[0]] == ["before", "after"]
    store.close()


@pytest.mark.parametrize("name", ["..", ".", "", "a/../../b"])
async def test_no_name_of_an_endpoint_leads_elsewhere(tmp_path, name):
    root = tmp_path / "logs"
    store = LogStore(root, 1 << 20)
    store.write(name, "i", "stdout", ["x"])
    store.close()
    files = [p.resolve() for p in tmp_path.rglob("*") if p.is_file()]
    assert all(p.is_relative_to(root.resolve()) and p.parent != root.resolve() for p in files)


async def test_what_prints_too_much_waits(tmp_path):
    read, write = os.pipe()
    os.set_blocking(write, False)
    got = 0

    def count(lines):
        nonlocal got
        got += sum(len(line) + 1 for line in lines)

    pipe = LinePipe(read, count)
    sent = 0
    loop = asyncio.get_running_loop()
    end = loop.time() + 0.3
    while loop.time() < end:
        try:
            sent += os.write(write, b"y\n" * 4096)
        except BlockingIOError:
            await asyncio.sleep(0)
    assert got <= BURST_BYTES * 20  # 0.3 s are six pauses; a loop without brakes reads far more
    assert sent <= got + (1 << 20)
    os.close(write)
    async with asyncio.timeout(5):
        while not pipe.closed:
            await asyncio.sleep(0.01)
    assert got == sent


async def test_the_unfinished_last_line_is_not_lost():
    read, write = os.pipe()
    lines = []
    pipe = LinePipe(read, lines.extend)
    os.write(write, b"first\nlast words \xff")
    pipe.close()
    assert lines == ["first", "last words \ufffd"]
    os.close(write)


def test_the_oldest_go_until_the_rest_fits() -> None:
    files = [(3.0, 10, Path("c")), (1.0, 10, Path("a")), (2.0, 10, Path("b"))]
    assert logs.too_much(files, 30) == []
    assert logs.too_much(files, 29) == [Path("a")]
    assert logs.too_much(files, 10) == [Path("a"), Path("b")]
    assert logs.too_much(files, 0) == [Path("a"), Path("b"), Path("c")]


async def test_many_endpoints_stay_below_one_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "TOTAL_SEGMENTS", 4)
    monkeypatch.setattr(logs, "TRIM_EVERY_S", 0.0)
    segment = logs.MIN_SEGMENT
    store = logs.LogStore(tmp_path, segment)
    store.attach("p/living")
    store.write("p/living", "i-0", "stdout", ["first"])
    text = "x" * (segment // 2)
    for number in range(40):
        store.write(f"p/gone-{number}.x", f"i-{number}", "stdout", [text])
        assert store._trimming is not None
        await asyncio.wait([store._trimming])
    kept = sum(path.stat().st_size for path in tmp_path.glob("*/*.log"))
    # What was written while the last look ran comes on top.
    assert kept <= 4 * segment + 2 * segment
    lines, _ = await store.read("p/gone-39.x", None, 0, 10, 0.0)
    assert [line.text for line in lines] == [text]
    assert (await store.read("p/gone-0.x", None, 0, 10, 0.0))[0] == []
    # Who still writes is left alone, and an endpoint that comes back writes again.
    assert [line.text for line in (await store.read("p/living", None, 0, 10, 0.0))[0]] == ["first"]
    store.write("p/gone-0.x", "i-99", "stdout", ["again"])
    assert [line.text for line in (await store.read("p/gone-0.x", None, 10**6, 10, 0.0))[0]] == ["again"]
    store.close()
