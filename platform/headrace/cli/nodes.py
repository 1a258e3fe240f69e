"""``headrace nodes, hosts, instances, runtimes``: where things run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import click

from headrace.cli.app import SUMMARIES
from headrace.cli.options import Session, session_options
from headrace.cli.output import moment, size, table
from headrace.cli.use import USE, state_of, use_of

Row = Mapping[str, Any]


@click.group("nodes", help=SUMMARIES["nodes"])
def nodes_command() -> None:
    """Nodes are machines (or, with the provider `local`, more Ray nodes on this one)."""


@nodes_command.command("list")
@session_options
def nodes_list(session: Session) -> None:
    """List nodes."""
    with session.out.progress("asking the platform"), session.client() as client:
        found = _items(client.nodes())
    session.out.answer({"items": found, "next": None}, lambda: _nodes(found))


@nodes_command.command("add")
@click.option("--provider", default="local", show_default=True, help="Who launches it.")
@click.option("--count", type=click.IntRange(1, 64), default=1, show_default=True, help="How many.")
@click.option("--cpu", type=click.FloatRange(0, min_open=True), help="Processors it declares.")
@click.option("--memory", help='Memory it declares, for example "4GiB".')
@click.option("--gpu", "gpus", multiple=True, metavar="NAME=COUNT", help="Accelerators it declares.")
@click.option("--label", "labels", multiple=True, metavar="NAME=VALUE", help="Labels it gets.")
@session_options
def nodes_add(
    session: Session,
    *,
    provider: str,
    count: int,
    cpu: float | None,
    memory: str | None,
    gpus: Sequence[str],
    labels: Sequence[str],
) -> None:
    """Launch nodes; done when the provider has taken the order."""
    wanted: dict[str, Any] = {"provider": provider, "count": count}
    if cpu is not None:
        wanted["cpu"] = cpu
    if memory is not None:
        from headrace.sdk.spec import parse_size  # noqa: PLC0415 - only this option needs it

        wanted["memory"] = parse_size(memory, "--memory")
    if gpus:
        wanted["gpu"] = {name: _count(name, value) for name, value in _pairs(gpus, "--gpu")}
    if labels:
        wanted["labels"] = dict(_pairs(labels, "--label"))
    with session.out.progress(f"launching {count} by {provider}"), session.client() as client:
        found = _items(client.add_nodes(**wanted))
    session.out.answer({"items": found, "next": None}, lambda: _nodes(found))


@nodes_command.command("remove")
@click.argument("node")
@session_options
def nodes_remove(session: Session, node: str) -> None:
    """Drain NODE's host, then terminate the node."""
    with session.out.progress(f"removing {node}"), session.client() as client:
        state = client.remove_node(node)["state"]
    gone = state == "removed"
    text = f"forgot {node}: it was gone" if gone else f"removing {node}: its host drains first"
    session.out.answer({"removed": node, "state": state}, text)


@click.command("hosts", help=SUMMARIES["hosts"])
@session_options
def hosts_command(session: Session) -> None:
    """List hosts."""
    with session.out.progress("asking the platform"), session.client() as client:
        found = _items(client.hosts())

    def text() -> str:
        fields = ("id", "state", "node", "provider", "kind", "instances")
        rows: list[list[Any]] = []
        for host in found:
            resources = host.get("resources") or {}
            shown = [_number(host.get(field)) for field in fields]
            rows.append([*shown, resources.get("cpu"), size(resources.get("memory"))])
        return table(
            ("HOST", "STATE", "NODE", "PROVIDER", "KIND", "INSTANCES", "CPU", "MEMORY"), rows, "no hosts"
        )

    session.out.answer({"items": found, "next": None}, text)


@click.command("instances", help=SUMMARIES["instances"])
@session_options
def instances_command(session: Session) -> None:
    """List instances of all endpoints."""
    with session.out.progress("asking the platform"), session.client() as client:
        found = _items(client.instances())

    def text() -> str:
        fields = ("id", "endpoint", "version", "runtime", "tier", "in_flight", "host", "pid")
        rows = []
        for i in found:
            id, endpoint, version, *rest = (i.get(field) for field in fields)
            rows.append([id, endpoint, version, state_of(i), *rest, *use_of(i), moment(i.get("started_at"))])
        columns = (
            "INSTANCE", "ENDPOINT", "VERSION", "STATE", "RUNTIME", "TIER", "IN FLIGHT", "HOST", "PID", *USE,
            "STARTED",
        )  # fmt: skip
        return table(columns, rows, "no instances")

    session.out.answer({"items": found, "next": None}, text)


@click.command("runtimes", help=SUMMARIES["runtimes"])
@session_options
def runtimes_command(session: Session) -> None:
    """`headrace doctor` says the same of this machine, without a platform."""
    with session.out.progress("asking the platform"), session.client() as client:
        found = _items(client.runtimes())
    session.out.answer({"items": found, "next": None}, lambda: runtimes_text(found))


def runtimes_text(found: Sequence[Row]) -> str:
    """The support matrix for people; a reason that several hosts give is told once."""
    rows, reasons = [], []
    for runtime in found:
        matrix: Mapping[str, Row] = runtime.get("capabilities") or {}
        able = [name for name, on in matrix.items() if on.get("hosts")]
        rows.append((runtime["name"], len(runtime.get("hosts") or ()), ", ".join(able) or None))
        lacking: dict[str, list[str]] = {}
        for name, on in matrix.items():
            for why in dict.fromkeys((on.get("why_not") or {}).values()):
                lacking.setdefault(why, []).append(name)
        reasons += [f"{runtime['name']}: no {', '.join(names)}: {why}" for why, names in lacking.items()]
        missing: Mapping[str, str] = runtime.get("missing") or {}
        for why in dict.fromkeys(missing.values()):
            there = ", ".join(host for host, said in missing.items() if said == why)
            reasons.append(f"{runtime['name']}: not on {there}: {why}")
    shown = table(("RUNTIME", "HOSTS", "CAN"), rows, "no hosts")
    return "\n".join([shown, *([""] if reasons else ()), *reasons])


def _items(found: Any) -> list[Row]:
    items = found["items"] if isinstance(found, Mapping) else found
    return [dict(item) for item in items]


def _number(value: Any) -> Any:
    return len(value) if isinstance(value, list | dict) else value


def _nodes(found: Sequence[Row]) -> str:
    rows = [
        (
            *(n.get(field) for field in ("id", "state", "provider", "region", "cpu")),
            size(n.get("memory")),
            " ".join(f"{name}:{count}" for name, count in (n.get("gpu") or {}).items()),
            n.get("detail"),
        )
        for n in found
    ]
    columns = ("NODE", "STATE", "PROVIDER", "REGION", "CPU", "MEMORY", "GPU", "WHY")
    return table(columns, rows, "no nodes")


def _pairs(values: Sequence[str], option: str) -> list[tuple[str, str]]:
    pairs: list[tuple[str, str]] = []
    for value in values:
        name, equals, rest = value.partition("=")
        if not equals or not name or not rest:
            raise click.UsageError(f"{option} {value!r}: write it as NAME=VALUE.")
        pairs.append((name, rest))
    return pairs


def _count(name: str, value: str) -> int:
    if not value.isdigit() or int(value) < 1:
        raise click.UsageError(f"--gpu {name}={value}: the count is a whole number above 0.")
    return int(value)
