"""What is on disk of a local node: one JSON file per node, written by launcher and keeper in turn."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import psutil

from headrace_providers.offers import NodeRequest, NodeState

NODE_MARK = "HEADRACE_LOCAL_NODE"
"""Environment variable that every process of a local node inherits: how leftovers are found."""


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """A local node."""

    request: NodeRequest
    launched_at: float
    keeper_pid: int = 0
    keeper_started: str = ""
    """Ticks since boot and the boot's id: the time of day would move with the wall clock."""
    state: NodeState = "pending"
    detail: str = ""


def read(path: Path) -> Record | None:
    """The record, or None when there is none (any more)."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Record)
    except FileNotFoundError:
        return None


def write(path: Path, record: Record) -> None:
    """Replace the record in one step, readable by its owner only."""
    temp = path.with_suffix(f".tmp{os.getpid()}")
    temp.touch(mode=0o600)
    temp.write_bytes(msgspec.json.encode(record))
    temp.replace(path)


def started(pid: int) -> str:
    """When a process began, as no other one with its pid did; empty when there is none that lives."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""
    # The command may hold spaces and parentheses: fields are counted from the last parenthesis.
    fields = stat[stat.rindex(b")") + 2 :].split()
    return "" if fields[0] in (b"Z", b"X") else f"{int(fields[19])} {boot}"


def keeper(record: Record) -> psutil.Process | None:
    """The living keeper of a node; a recycled pid is not taken for it."""
    if not record.keeper_pid:
        return None
    try:
        process = psutil.Process(record.keeper_pid)
    except psutil.NoSuchProcess:
        return None
    return process if record.keeper_started and started(process.pid) == record.keeper_started else None


def marked(node_id: str) -> list[psutil.Process]:
    """All processes that carry the node's mark in their environment."""
    found: list[psutil.Process] = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(NODE_MARK) == node_id:
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            continue
    return found
