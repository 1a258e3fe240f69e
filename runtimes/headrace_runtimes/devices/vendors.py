"""What each vendor's devices need, where no CDI specification says so: from its device files."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from headrace_runtimes.devices.edits import Bind, Edits
from headrace_runtimes.devices.tree import Tree

Vendor = Literal["nvidia", "amd", "ascend", "enflame"]
DRIVERS = "/headrace/drivers"
"""Where the host's driver libraries appear in a container."""
LIBRARY_DIRS = (
    "/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib64", "/usr/lib",
    "/usr/lib/x86_64-linux-gnu/nvidia/current", "/usr/local/nvidia/lib64", "/run/opengl-driver/lib",
)  # fmt: skip
NVIDIA_LIBRARY = re.compile(
    r"lib(cuda|cudadebugger|nvidia-ml|nvidia-cfg|nvidia-nvvm|nvidia-gpucomp|nvidia-ptxjitcompiler"
    r"|nvidia-opencl|nvidia-allocator|nvidia-encode|nvcuvid)\.so\.[\d.]+"
)
ENFLAME_LIBRARY = re.compile(r"lib(efml|efdrv|efrt)\.so(\.[\d.]+)?")
AMD_VENDOR = "0x1002"
ASCEND_DRIVER = "/usr/local/Ascend/driver"
BRANDS = re.compile(
    r"\b(NVIDIA|AMD|ATI|Huawei|Enflame|Tesla|Quadro|GeForce|Radeon|Instinct|Graphics|Device)\b"
)


@dataclass(frozen=True)
class Accelerator:
    """One device. ``edits`` are its own; those that all of its vendor's share are the vendor's."""

    vendor: Vendor
    index: int
    """Among its vendor's on this machine, as the driver counts."""
    model: str
    edits: Edits
    name: str = ""
    """Its CDI name, where a specification describes it."""


@dataclass(frozen=True)
class Found:
    """The devices of one vendor."""

    accelerators: tuple[Accelerator, ...] = ()
    shared: Edits = field(default_factory=Edits)
    """``nodes`` come with any of the devices; the rest is there from a container's creation on."""


def short_model(text: str, otherwise: str) -> str:
    """A model as people ask for it: ``NVIDIA H100 80GB HBM3`` is an ``H100``."""
    words = BRANDS.sub(" ", text).replace("-", " ").split()
    for position, word in enumerate(words):
        if word == "RTX" and position + 1 < len(words):
            return "RTX" + re.sub(r"[^A-Za-z0-9]", "", words[position + 1])
        if re.search(r"\d", word) and re.fullmatch(r"[A-Za-z][A-Za-z0-9]*", word):
            return word
    return otherwise


def nvidia(tree: Tree) -> Found:
    """Numbered as the driver does, by bus address, which is not always the order of the nodes."""
    infos = []
    for bus in tree.names("/proc/driver/nvidia/gpus"):
        pairs = (
            line.split(":", 1)
            for line in tree.text(f"/proc/driver/nvidia/gpus/{bus}/information").splitlines()
            if ":" in line
        )
        info = {key.strip(): value.strip() for key, value in pairs}
        if info.get("Device Minor", "").isdigit():
            infos.append((int(info["Device Minor"]), info.get("Model", "")))
    if not infos:
        infos = [(minor, "") for minor in tree.numbered("/dev", "nvidia")]
    capabilities = _mig_minors(tree)
    accelerators = []
    for index, (minor, model) in enumerate(infos):
        own = tree.nodes(f"/dev/nvidia{minor}")
        if own:
            caps = tree.nodes(*(f"/dev/nvidia-caps/nvidia-cap{n}" for n in capabilities.get(minor, ())))
            accelerators.append(
                Accelerator("nvidia", index, short_model(model, "NVIDIA"), Edits(nodes=(*own, *caps)))
            )
    if not accelerators:
        return Found()
    binds = _libraries(tree, NVIDIA_LIBRARY)
    for program in ("nvidia-smi", "nvidia-debugdump"):
        if tree.exists(f"/usr/bin/{program}"):
            binds.append(Bind(tree.resolved(f"/usr/bin/{program}"), f"/usr/bin/{program}"))
    nodes = tree.nodes("/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia-uvm-tools", "/dev/nvidia-modeset")
    return Found(tuple(accelerators), Edits(nodes=nodes, binds=tuple(binds), env=_library_path(binds)))


def _mig_minors(tree: Tree) -> dict[int, list[int]]:
    """GPU minor -> capability minors of its partitions; ``config`` and ``monitor`` are administration."""
    found: dict[int, list[int]] = {}
    for line in tree.text("/proc/driver/nvidia-caps/mig-minors").splitlines():
        if match := re.fullmatch(r"gpu(\d+)/\S*access (\d+)", line.strip()):
            found.setdefault(int(match[1]), []).append(int(match[2]))
    return found


def amd(tree: Tree) -> Found:
    """``/dev/kfd`` for all, a render node each, in the order of the driver's own topology."""
    shared = tree.nodes("/dev/kfd")
    if not shared:
        return Found()
    minors = []
    topology = "/sys/class/kfd/kfd/topology/nodes"
    for number in sorted(int(name) for name in tree.names(topology) if name.isdigit()):
        rows = (line.split() for line in tree.text(f"{topology}/{number}/properties").splitlines())
        facts = {row[0]: row[1] for row in rows if len(row) == 2}
        if facts.get("simd_count", "0") != "0" and int(facts.get("drm_render_minor", "0")) > 0:
            minors.append(int(facts["drm_render_minor"]))
    if not minors:
        minors = [
            minor
            for minor in tree.numbered("/dev/dri", "renderD")
            if tree.text(f"/sys/class/drm/renderD{minor}/device/vendor") == AMD_VENDOR
        ]
    accelerators = []
    for index, minor in enumerate(minors):
        if own := tree.nodes(f"/dev/dri/renderD{minor}"):
            model = tree.text(f"/sys/class/drm/renderD{minor}/device/product_name")
            accelerators.append(Accelerator("amd", index, short_model(model, "AMD"), Edits(nodes=own)))
    return Found(tuple(accelerators), Edits(nodes=shared)) if accelerators else Found()


def ascend(tree: Tree) -> Found:
    """Huawei's ``/dev/davinci*``, with the managers' nodes and the driver's directory."""
    accelerators = tuple(
        Accelerator("ascend", index, "Ascend", Edits(nodes=tree.nodes(path)))
        for index, path in tree.numbered("/dev", "davinci").items()
        if tree.node(path)
    )
    if not accelerators:
        return Found()
    wanted = (
        ASCEND_DRIVER, "/usr/local/dcmi", "/usr/local/bin/npu-smi", "/etc/ascend_install.info",
    )  # fmt: skip
    binds = tuple(Bind(str(tree.at(path)), path) for path in wanted if tree.exists(path))
    env = {}
    if tree.exists(ASCEND_DRIVER):
        places = ("lib64", "lib64/common", "lib64/driver")
        env["LD_LIBRARY_PATH"] = ":".join(f"{ASCEND_DRIVER}/{place}" for place in places)
    nodes = tree.nodes("/dev/davinci_manager", "/dev/devmm_svm", "/dev/hisi_hdc")
    return Found(accelerators, Edits(nodes=nodes, binds=binds, env=env))


def enflame(tree: Tree) -> Found:
    """Enflame's ``/dev/gcu*``."""
    accelerators = tuple(
        Accelerator("enflame", index, "GCU", Edits(nodes=tree.nodes(path)))
        for index, path in tree.numbered("/dev", "gcu").items()
        if tree.node(path)
    )
    if not accelerators:
        return Found()
    binds = _libraries(tree, ENFLAME_LIBRARY)
    nodes = tree.nodes("/dev/gcuctl")
    return Found(accelerators, Edits(nodes=nodes, binds=tuple(binds), env=_library_path(binds)))


def _libraries(tree: Tree, wanted: re.Pattern[str]) -> list[Bind]:
    """Each library once, by every name that it has; the first directory that has it counts."""
    found: dict[str, Bind] = {}
    for directory in LIBRARY_DIRS:
        for name in tree.names(directory):
            path = f"{directory}/{name}"
            if wanted.fullmatch(name) and name not in found and tree.at(path).is_file():
                found[name] = Bind(tree.resolved(path), f"{DRIVERS}/{name}")
    return list(found.values())


def _library_path(binds: list[Bind]) -> dict[str, str]:
    return {"LD_LIBRARY_PATH": DRIVERS} if any(b.target.startswith(DRIVERS) for b in binds) else {}


VENDORS: Mapping[Vendor, Callable[[Tree], Found]] = {
    "nvidia": nvidia,
    "amd": amd,
    "ascend": ascend,
    "enflame": enflame,
}
