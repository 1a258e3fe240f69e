"""The accelerators of a machine, and what a container gets of them before and at its assignment."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from headrace_runtimes.devices import cdi
from headrace_runtimes.devices.edits import Edits, Node
from headrace_runtimes.devices.tree import Tree
from headrace_runtimes.devices.vendors import VENDORS, Accelerator, Found, Vendor
from headrace_runtimes.errors import PrepareFailed

KINDS: Mapping[Vendor, tuple[str, ...]] = {
    "nvidia": ("nvidia.com/gpu",),
    "amd": ("amd.com/gpu",),
    "ascend": ("huawei.com/npu", "huawei.com/ascend", "ascend.com/npu"),
    "enflame": ("enflame.com/gcu",),
}
"""CDI kinds of each vendor."""
COUNT_FROM_ZERO = frozenset({"nvidia", "amd"})
"""Their libraries number the devices that they may open from 0, and read ``CUDA_VISIBLE_DEVICES``."""


@dataclass(frozen=True)
class Machine:
    """What `find` found. An accelerator is named by its place in ``accelerators``: model by model."""

    accelerators: tuple[Accelerator, ...] = ()
    shared: Mapping[Vendor, Edits] = field(default_factory=dict)
    problems: tuple[str, ...] = ()
    """Specifications that are not used, and why."""

    def count(self) -> dict[str, int]:
        """Model -> how many."""
        return dict(Counter(accelerator.model for accelerator in self.accelerators))

    def why_none(self) -> str:
        """One line of why there is none; empty when there is."""
        if self.accelerators:
            return ""
        told = f"; {self.problems[0]}" if self.problems else ""
        return f"no accelerator was found, neither in {' and '.join(cdi.DIRECTORIES)} nor in /dev{told}"

    def at_creation(self) -> Edits:
        """For every container: libraries, hooks and variables, but no device: it may wait for anybody."""
        edits = Edits()
        for shared in self.shared.values():
            edits += shared
        return replace(edits, nodes=())

    def at_assignment(self, indices: Sequence[int]) -> Edits:
        """Nodes, mounts and variables of the assigned ones alone. Raises `PrepareFailed`.

        On a machine without accelerators nothing: what was declared there is a matter of who declared it.
        Hooks are left out: they belong to a container's creation.
        """
        if not indices or not self.accelerators:
            return Edits()
        edits = Edits()
        for accelerator in self._assigned(indices):
            shared = self.shared.get(accelerator.vendor, Edits())
            edits += Edits(nodes=shared.nodes) + replace(accelerator.edits, hooks=())
        vendors = {a.vendor for a in self._assigned(indices)}
        if vendors <= COUNT_FROM_ZERO:
            count = len(set(indices))
            edits += Edits(env={"CUDA_VISIBLE_DEVICES": ",".join(map(str, range(count)))})
        return edits

    def names(self, indices: Sequence[int]) -> list[str]:
        """CDI names of the assigned ones, for engines that take those; empty unless all of them have one."""
        names = [a.name for a in self._assigned(indices)] if self.accelerators else []
        return names if all(names) else []

    def nodes(self) -> tuple[Node, ...]:
        """Of all devices: what a container could be given later."""
        edits = Edits()
        for accelerator in self.accelerators:
            edits += self.shared.get(accelerator.vendor, Edits()) + accelerator.edits
        return edits.nodes

    def _assigned(self, indices: Sequence[int]) -> list[Accelerator]:
        have = len(self.accelerators)
        missing = [index for index in indices if not 0 <= index < have]
        if missing:
            raise PrepareFailed(
                f"There is no accelerator {missing[0]} here, only 0 to {have - 1}: "
                "correct what the node declares."
            )
        return [self.accelerators[index] for index in dict.fromkeys(indices)]


def find(root: Path = Path("/")) -> Machine:
    """Look at the machine, or at a tree like one's below ``root``. Blocks for milliseconds.

    A vendor's CDI specification counts where there is one with numbered devices; else what is needed is
    known from the nodes.
    """
    tree = Tree(root)
    registry = cdi.read(tree)
    accelerators: list[Accelerator] = []
    shared: dict[Vendor, Edits] = {}
    for vendor, look in VENDORS.items():
        seen = look(tree)
        found = _specified(registry, vendor, seen) or seen
        accelerators += found.accelerators
        if found.accelerators:
            shared[vendor] = found.shared
    # Hosts count them through their models, one after the other.
    models = list(dict.fromkeys(accelerator.model for accelerator in accelerators))
    accelerators.sort(key=lambda accelerator: models.index(accelerator.model))
    return Machine(tuple(accelerators), shared, registry.problems)


def _specified(registry: cdi.Registry, vendor: Vendor, seen: Found) -> Found | None:
    """What specifications say of a vendor's devices; models are told by the driver alone."""
    models = {a.index: a.model for a in seen.accelerators}
    other = seen.accelerators[0].model if seen.accelerators else vendor.upper()
    for kind in KINDS[vendor]:
        listed = registry.numbered(kind)
        if not listed:
            continue
        shared = Edits()
        for _, _, spec in listed:
            shared += spec.shared
        accelerators = tuple(
            Accelerator(vendor, index, models.get(index, other), spec.devices[name], f"{kind}={name}")
            for index, name, spec in listed
        )
        return Found(accelerators, shared)
    return None
