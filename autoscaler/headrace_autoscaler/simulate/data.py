"""Reads what is known of clouds: spot availability, how long starts took, prices.

Files are plain or gzip. Which data they are and what may be done with them, their SOURCES say.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import math
import statistics
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headrace_autoscaler.simulate.generators import DAY_S
from headrace_autoscaler.simulate.scenario import Draw, Steps, Supply
from headrace_autoscaler.simulate.traces import TraceError

OUTLIER = 10.0
"""A price above this many times the median of its kind and market over all providers is an error of
whoever collected it, and is clipped to that."""
MAX_SAMPLES = 2_000
"""Of a measured distribution: its quantiles at even distances stand for all of it."""
MS = 1_000.0
BOOT_S = 90.0
_GZIP_MAGIC = b"\x1f\x8b"


@dataclass(frozen=True)
class Price:
    """What one accelerator costs per hour, in dollars."""

    kind: str
    provider: str
    spot: bool
    price: float
    region: str = ""
    """Empty: the median over the provider's regions."""
    date: str = ""


def read_spot(path: str | Path, *, from_day: float = 0.0, to_day: float | None = None) -> Steps:
    """An availability trace: JSON with ``metadata.gap_seconds`` and ``data`` (0/1 per gap).

    Cut to [``from_day``, ``to_day``), times from the begin of ``from_day``; the last value then goes on, but
    after the end of the data nothing is there: what was not observed is not promised. Raises `TraceError`.
    """
    path = Path(path)
    try:
        document = json.loads(_read(path))
        gap = float(document["metadata"]["gap_seconds"])
        values = [int(each) for each in document["data"]]
    except (ValueError, KeyError, TypeError) as error:
        raise TraceError(
            f"{path}: is no availability trace ({error!r}); it looks like "
            '{"metadata": {"gap_seconds": 195}, "data": [0, 1, ...]}'
        ) from error
    if gap <= 0 or not values or set(values) - {0, 1}:
        raise TraceError(f"{path}: gap_seconds must be above 0, and data a list of 0 and 1")
    begin, end = from_day * DAY_S, len(values) * gap
    until = end if to_day is None else min(end, to_day * DAY_S)
    if not 0 <= begin < until:
        raise TraceError(
            f"{path}: has {end / DAY_S:.1f} days: there is nothing from day {from_day:g}"
            + (f" to day {to_day:g}" if to_day is not None else "")
        )
    first, last = int(begin // gap), math.ceil(until / gap)
    times, steps = [0.0], [values[first]]
    for index in range(first + 1, last):
        if values[index] != steps[-1]:
            times.append(index * gap - begin)
            steps.append(values[index])
    if steps[-1] and until == end:
        times.append(until - begin)
        steps.append(0)
    return Steps(tuple(times), tuple(steps))


def read_startups(path: str | Path, *, unit: float = MS, scale_to: float | None = None) -> Draw:
    """Measured start-up times: a CSV with a column ``value`` (milliseconds; ``unit`` of them are a second).

    ``scale_to`` is the median that draws shall have in seconds; None: as measured. Raises `TraceError`.
    """
    path = Path(path)
    values: list[float] = []
    for line, row in _rows(path, ("value",)):
        values.append(_number(path, line, row, "value") / unit)
    if not values:
        raise TraceError(f"{path}: there is no measurement below the header line")
    values.sort()
    if len(values) > MAX_SAMPLES:
        step = len(values) / MAX_SAMPLES
        values = [values[int((index + 0.5) * step)] for index in range(MAX_SAMPLES)]
    return Draw(median=scale_to or 0.0, samples=tuple(values))


def read_prices(path: str | Path) -> list[Price]:
    """Prices from a CSV of medians (``gpu_type,provider,is_spot,..,median``) or JSON lines of snapshots.

    Outliers are clipped (`clipped`). Raises `TraceError`.
    """
    path = Path(path)
    found: list[Price] = []
    if ".jsonl" in path.name:
        for line, text in enumerate(_read(path).splitlines(), start=1):
            if text.strip():
                found.append(_snapshot(path, line, text))
    else:
        for line, row in _rows(path, ("gpu_type", "provider", "is_spot", "median")):
            value = _positive(path, line, row, "median")
            try:
                spot = _truth(row["is_spot"])
            except ValueError as error:
                raise TraceError(f"{path}:{line}: {error}") from None
            found.append(Price(row["gpu_type"], row["provider"], spot, value))
    if not found:
        raise TraceError(f"{path}: there is no price")
    return clipped(found)


def clipped(prices: Iterable[Price]) -> list[Price]:
    """The prices, none above `OUTLIER` times the median that the kind's providers ask in that market.

    Each provider counts once (by its own median), however many regions it lists.
    """
    prices = list(prices)
    asked: dict[tuple[str, bool], dict[str, list[float]]] = {}
    for each in prices:
        asked.setdefault((each.kind, each.spot), {}).setdefault(each.provider, []).append(each.price)
    limits = {}
    for (kind, spot), by_provider in asked.items():
        # Few sell one kind on spot: with two offers their middle says nothing, so on-demand counts too.
        other = asked.get((kind, False), {}) if spot else {}
        medians = [statistics.median(each) for each in (*by_provider.values(), *other.values())]
        limits[kind, spot] = OUTLIER * statistics.median_low(medians)
    return [
        Price(
            each.kind,
            each.provider,
            each.spot,
            min(each.price, limits[each.kind, each.spot]),
            each.region,
            each.date,
        )
        for each in prices
    ]


def supplies(
    prices: Iterable[Price],
    kind: str,
    *,
    providers: tuple[str, ...] = (),
    boot: Draw | Mapping[str, Draw] | None = None,
    availability: Mapping[str, Steps] | None = None,
    capacity: int | None = None,
    min_billing_s: float = 60.0,
) -> tuple[Supply, ...]:
    """Offers of one kind of accelerator, cheapest first: per provider and market, the median of its prices.

    ``boot`` is for all, or by provider. ``availability`` by provider makes its spot offers; without an entry
    a provider's spot is left out, since what is always there is not spot. Raises `TraceError` when no
    provider offers that kind.
    """
    wanted: dict[tuple[str, bool], list[float]] = {}
    kinds = set()
    for each in prices:
        kinds.add(each.kind)
        if each.kind == kind and (not providers or each.provider in providers):
            wanted.setdefault((each.provider, each.spot), []).append(each.price)
    found = []
    for (provider, spot), asked in wanted.items():
        steps = (availability or {}).get(provider)
        if spot and steps is None:
            continue
        draw = boot.get(provider) if isinstance(boot, Mapping) else boot
        found.append(
            Supply(
                name=f"{provider}-{'spot' if spot else 'on-demand'}",
                price=statistics.median(asked),
                boot=draw or Draw(BOOT_S),
                capacity=capacity,
                provider=provider,
                kind=kind,
                spot=spot,
                min_billing_s=min_billing_s,
                availability=steps if spot else None,
            )
        )
    if not found:
        raise TraceError(f"nobody offers {kind} here; there are prices of {', '.join(sorted(kinds))}")
    return tuple(sorted(found, key=lambda each: (each.price, each.name)))


def _snapshot(path: Path, line: int, text: str) -> Price:
    try:
        row: dict[str, Any] = json.loads(text)
        value = float(row["price_per_gpu_hour_usd"])
        found = Price(
            str(row["gpu_type"]),
            str(row["provider"]),
            _truth(row["is_spot"]),
            value,
            str(row.get("region") or ""),
            str(row.get("snapshot_date") or ""),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise TraceError(f"{path}:{line}: is no price ({error!r})") from error
    if not 0 < value < math.inf:
        raise TraceError(f"{path}:{line}: the price is {value}: it must be above 0")
    return found


def _truth(value: object) -> bool:
    text = str(value).strip().lower()
    if text not in {"true", "false", "1", "0"}:
        raise ValueError(f"is_spot is {value!r}: it must be true or false")
    return text in {"true", "1"}


def _positive(path: Path, line: int, row: Mapping[str, str], name: str) -> float:
    value = _number(path, line, row, name)
    if value == 0:
        raise TraceError(f"{path}:{line}: {name} is {row[name]!r}: it must be above 0")
    return value


def _number(path: Path, line: int, row: Mapping[str, str], name: str) -> float:
    try:
        value = float(row[name])
    except (TypeError, ValueError):
        raise TraceError(f"{path}:{line}: {name} is {row[name]!r}, which is not a number") from None
    if not 0 <= value < math.inf:
        raise TraceError(f"{path}:{line}: {name} is {row[name]!r}: it must be 0 or more, and finite")
    return value


def _rows(path: Path, columns: tuple[str, ...]) -> Iterable[tuple[int, Mapping[str, str]]]:
    reader = csv.DictReader(io.StringIO(_read(path)))
    missing = [name for name in columns if name not in (reader.fieldnames or ())]
    if missing:
        raise TraceError(f"{path}:1: the header line has no column {', '.join(missing)}")
    for row in reader:
        yield reader.line_num, row


def _read(path: Path) -> str:
    try:
        raw = path.read_bytes()
        return (gzip.decompress(raw) if raw.startswith(_GZIP_MAGIC) else raw).decode("utf-8-sig")
    except (EOFError, zlib.error, gzip.BadGzipFile, UnicodeDecodeError) as error:
        raise TraceError(f"{path}: is damaged, or not text in UTF-8: {error}") from error
    except OSError as error:
        raise TraceError(f"{path}: cannot be read: {error.strerror or error}") from error
