"""Container Device Interface: the specifications that vendors' tools leave on a machine, read and checked.

A specification says of each device of a kind what a container needs to use it. It can name programs that run
as root, so one that others than its owner may write is not believed.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

import yaml

from headrace_runtimes.devices.edits import HOOK_NAMES, Bind, Edits, Hook, Node
from headrace_runtimes.devices.tree import Tree

DIRECTORIES = ("/etc/cdi", "/var/run/cdi")
"""Where they are looked for; a later directory counts more."""
OLDEST, NEWEST = (0, 3), (1, 1)
SPEC_BYTES = 4 << 20
KIND = re.compile(r"[A-Za-z][A-Za-z0-9_.-]*/[A-Za-z][A-Za-z0-9_-]*")
DEVICE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:-]*")


class BadSpec(ValueError):
    """A specification that is not used; ``str(e)`` says why, in one line."""


@dataclass(frozen=True)
class Spec:
    """One specification."""

    kind: str
    devices: Mapping[str, Edits]
    shared: Edits = field(default_factory=Edits)
    """For whoever uses any of its devices."""


@dataclass(frozen=True)
class Registry:
    """All specifications of a machine."""

    specs: tuple[Spec, ...] = ()
    problems: tuple[str, ...] = ()
    """Of files that are not used: ``path: why``."""

    def device(self, name: str) -> Edits:
        """Of ``vendor/class=device``, with what its kind shares. Raises ``KeyError``."""
        kind, _, device = name.partition("=")
        for spec in reversed(self.specs):
            if spec.kind == kind and device in spec.devices:
                return spec.shared + spec.devices[device]
        raise KeyError(name)

    def numbered(self, kind: str) -> list[tuple[int, str, Spec]]:
        """Devices of a kind that are called by a number: (number, name, the specification that counts)."""
        found: dict[int, tuple[str, Spec]] = {}
        for spec in self.specs:
            if spec.kind == kind:
                found |= {int(name): (name, spec) for name in spec.devices if name.isdigit()}
        return [(number, *found[number]) for number in sorted(found)]


def read(tree: Tree, directories: Sequence[str] = DIRECTORIES) -> Registry:
    """All specifications of a tree. Blocks. What is wrong with one is told in ``problems``."""
    specs: list[Spec] = []
    problems: list[str] = []
    for directory in directories:
        for name in tree.names(directory):
            if not name.endswith((".json", ".yaml", ".yml")) or name.startswith("."):
                continue
            path = f"{directory}/{name}"
            try:
                specs.append(parse(_load(tree.at(path)), tree))
            except BadSpec as bad:
                problems.append(f"{path}: {bad}")
    return Registry(tuple(specs), tuple(problems))


def _load(path: Path) -> Any:
    try:
        with open(path, "rb") as file:
            about = os.fstat(file.fileno())
            if about.st_mode & (stat.S_IWGRP | stat.S_IWOTH) or about.st_uid not in {0, os.geteuid()}:
                raise BadSpec("others than root may write it: chown root and chmod go-w it")
            content = file.read(SPEC_BYTES + 1)
    except OSError as error:
        raise BadSpec(f"cannot be read: {error.strerror}") from error
    if len(content) > SPEC_BYTES:
        raise BadSpec(f"larger than {SPEC_BYTES} bytes")
    try:
        return json.loads(content) if path.suffix == ".json" else yaml.safe_load(content)
    except (ValueError, yaml.YAMLError, RecursionError) as error:
        raise BadSpec(f"is no {path.suffix[1:]}: {' '.join(str(error).split())[:200]}") from error


def parse(told: Any, tree: Tree) -> Spec:
    """A specification from its parsed text. What it leaves out of a node is looked up. Raises `BadSpec`."""
    spec = _mapping(told, "the specification")
    _check_version(str(spec.get("cdiVersion", "")))
    kind = str(spec.get("kind", ""))
    if not KIND.fullmatch(kind):
        raise BadSpec(f"kind {kind!r} is not of the form vendor/class")
    devices: dict[str, Edits] = {}
    for entry in _list(spec, "devices"):
        device = _mapping(entry, "a device")
        # YAML reads a bare 0 as a number.
        name = str(device.get("name", ""))
        if not DEVICE.fullmatch(name):
            raise BadSpec(f"{name!r} is no name of a device")
        if name in devices:
            raise BadSpec(f"device {name} is there twice")
        devices[name] = _edits(device.get("containerEdits") or {}, tree)
    if not devices:
        raise BadSpec("has no devices")
    return Spec(kind, devices, _edits(spec.get("containerEdits") or {}, tree))


def _check_version(text: str) -> None:
    match = re.fullmatch(r"v?(\d+)\.(\d+)\.\d+", text)
    if match is None:
        raise BadSpec(f"cdiVersion {text!r} is no version")
    if not OLDEST <= (int(match[1]), int(match[2])) <= NEWEST:
        low, high = (".".join(map(str, version)) for version in (OLDEST, NEWEST))
        raise BadSpec(f"cdiVersion {text} is not understood, only {low} to {high}")


def _edits(told: Any, tree: Tree) -> Edits:
    edits = _mapping(told, "containerEdits")
    env = {}
    for entry in _list(edits, "env"):
        name, equals, value = str(entry).partition("=")
        if not name or not equals:
            raise BadSpec(f"{entry!r} is no variable")
        env[name] = value
    return Edits(
        nodes=tuple(_node(entry, tree) for entry in _list(edits, "deviceNodes")),
        binds=tuple(_bind(entry, tree) for entry in _list(edits, "mounts")),
        hooks=tuple(_hook(entry) for entry in _list(edits, "hooks")),
        env=env,
    )


def _node(told: Any, tree: Tree) -> Node:
    entry = _mapping(told, "a device node")
    path = _absolute(entry.get("path"), "a device node")
    host = _absolute(entry.get("hostPath") or path, "a device node")
    seen = tree.node(host)
    # ``u`` is a character device without a buffer: the same since long ago.
    kind = {"c": "c", "u": "c", "b": "b", "": seen.kind if seen else ""}.get(str(entry.get("type") or ""), "")
    major, minor = entry.get("major"), entry.get("minor")
    if major is None or (not major and seen is not None):
        major, minor = (seen.major, seen.minor) if seen else (None, None)
    if not kind or not isinstance(major, int) or not isinstance(minor, int):
        raise BadSpec(f"{host} is no device here, and its type and numbers are not told")
    access = "".join(letter for letter in "rw" if letter in str(entry.get("permissions") or "rwm"))
    return Node(path, str(tree.at(host)), cast(Literal["c", "b"], kind), major, minor, access or "rw")


def _bind(told: Any, tree: Tree) -> Bind:
    entry = _mapping(told, "a mount")
    options = {str(option) for option in _list(entry, "options")}
    source = _absolute(entry.get("hostPath"), "a mount")
    target = _absolute(entry.get("containerPath"), "a mount")
    return Bind(str(tree.at(source)), target, read_only="rw" not in options)


def _hook(told: Any) -> Hook:
    entry = _mapping(told, "a hook")
    name = str(entry.get("hookName", ""))
    if name not in HOOK_NAMES:
        raise BadSpec(f"there is no hook {name!r}")
    timeout = entry.get("timeout")
    return Hook(
        name, _absolute(entry.get("path"), "a hook"),
        tuple(map(str, _list(entry, "args"))), tuple(map(str, _list(entry, "env"))),
        timeout if isinstance(timeout, int) and timeout > 0 else None,
    )  # fmt: skip


def _mapping(told: Any, what: str) -> Mapping[str, Any]:
    if not isinstance(told, Mapping):
        raise BadSpec(f"{what} is no object")
    return told


def _list(of: Mapping[str, Any], name: str) -> list[Any]:
    told = of.get(name) or []
    if not isinstance(told, list):
        raise BadSpec(f"{name} is no list")
    return told


def _absolute(told: Any, what: str) -> str:
    path = str(told or "")
    if not path.startswith("/") or ".." in path.split("/") or "\0" in path:
        raise BadSpec(f"{path!r} is no absolute path for {what}")
    return os.path.normpath(path)
