"""The host of one node: control's commands become sandboxes, and control hears what becomes of them."""

from __future__ import annotations

import asyncio
import logging
import secrets
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from headrace_runtimes.base import Runtime
from headrace_runtimes.budget import Budget
from headrace_runtimes.errors import RuntimeFailure
from headrace_runtimes.instance.logs import LogStore
from headrace_runtimes.spec import RuntimeSettings
from headrace_runtimes.trees import remove_tree

from headrace import wire
from headrace.config import Settings
from headrace.datadir import make_run_dir
from headrace.host.bundles import Bundles
from headrace.host.collect import collect_for_ever
from headrace.host.gpus import find_reader
from headrace.host.images import find_image
from headrace.host.instances import Instances
from headrace.host.latecomers import admit_latecomers
from headrace.host.link import ControlLink
from headrace.host.pool import Pool
from headrace.host.resources import Accelerators, detect
from headrace.host.runtimes import PROCESS, Runtimes, build_allow, left_out, maker, offered
from headrace.host.usage import Usage
from headrace.host.watch import Watch
from headrace.host.weights import HostWeights
from headrace.link import Link
from headrace.nocore import forbid_core_dumps

log = logging.getLogger("headrace.host")

ENGINE_DIR = Path(__file__).resolve().parent.parent / "engines" / "python"
ENDED_IN_HELLO = 200
MAX_LOG_LINES = 5000
MAX_LOG_WAIT_S = 60.0
_SHORT = {"process": "p", "oci": "o", "docker": "d"}


def _new_host_id() -> str:
    return f"h-{secrets.token_hex(6)}"


def directory_of(runtime: str) -> str:
    """The name of a runtime's own directory: short, for the paths of its sockets, and nobody else's."""
    return _SHORT.get(runtime, f"r-{runtime}")


@dataclass(frozen=True, kw_only=True)
class HostConfig:
    """All that a host needs to know. Paths left out are derived from ``settings`` and ``node``."""

    settings: Settings
    control_address: str
    token: str = field(repr=False)
    node: str = "local"
    """The same for every incarnation on this node; a path component."""
    host: str = field(default_factory=_new_host_id)
    """New for every incarnation."""
    resources: wire.Resources | None = None
    """Declared; None: detected."""
    provider: str = "local"
    region: str = "local"
    kind: str = "generic"
    labels: Mapping[str, str] = field(default_factory=dict)
    spot: bool = False
    price: float = 0.0
    hide: tuple[Path, ...] = ()
    """What instances shall not see, beside the data directory."""
    run_dir: Path | None = None
    log_dir: Path | None = None
    runtimes: tuple[str, ...] | None = None
    """Offered whatever the settings say; None: as they say."""
    make_runtime: Callable[[str], Runtime] | None = None
    """None: what is installed, as the settings say."""


class HostAgent:
    """Owns the node's sandboxes. `start`, then `stop` (or `abandon`); made for one use."""

    def __init__(self, config: HostConfig) -> None:
        self.config = config
        self.host = config.host
        self.resources = config.resources or detect()
        settings = config.settings
        self.run_dir = config.run_dir or settings.run / "hosts" / config.node
        self.log_dir = config.log_dir or settings.data / "hosts" / config.node / "logs"
        self.link = ControlLink(
            config.control_address,
            token=config.token,
            host=self.host,
            hello=self._hello,
            handler=self._on_message,
        )
        wish = settings.runtimes if config.runtimes is None else ",".join(config.runtimes)
        make = config.make_runtime or maker(config.settings.oci_binary, config.settings.criu)
        chosen = offered(wish, make)
        self._budget = Budget(int(self.resources.memory * settings.zygote_memory_share))
        self._runtimes = Runtimes(chosen, self._runtime_settings)
        self._left_out = left_out(wish, chosen, make)
        self._latecomers = partial(
            admit_latecomers, wish, self._left_out, self._runtimes, make, on_come=self._on_latecomer
        )
        self._bundles = Bundles(self.run_dir / "bundles", self.link, self._bundles_in_use)
        self._pool = Pool(self._runtimes, self._bundles, settings.images, self._on_warm)
        self._runtimes.on_base = self._pool.on_base
        self.instances = Instances(
            self._runtimes,
            self._pool,
            self._bundles,
            self._on_instance,
            Accelerators(self.resources.gpu),
            self.resources,
        )
        self._weights = HostWeights(settings, self.resources.memory, self.run_dir / "w")
        self.instances.weights = self._weights
        gpus = find_reader(time.monotonic) if self.resources.gpu else None
        self._usage = Usage(self.instances, gpus)
        self._watch = Watch(self.instances, self._usage)
        self.instances.gate = self._watch.gate
        self._tasks: set[asyncio.Task[None]] = set()
        self._open = False

    async def start(self) -> None:
        """Sweep what a predecessor left, open the runtimes, begin connecting to control.

        Does not wait for control (`wait_connected` does). Raises what a runtime's ``open`` raises.
        """
        forbid_core_dumps()
        if self.config.run_dir is None:
            await asyncio.to_thread(make_run_dir, self.config.settings.run)
        for path in (self.run_dir, self.log_dir):
            await asyncio.to_thread(path.mkdir, mode=0o700, parents=True, exist_ok=True)
        self.run_dir.chmod(0o711)
        self.log_dir.chmod(0o700)
        self._open = True
        self._logs = LogStore(self.log_dir, self.config.settings.log_bytes)
        for name in self._runtimes.names:
            # Another than process is opened when it is needed, or when there is something to sweep.
            if name == PROCESS or self._runtime_dir(name).exists():
                await self._runtimes.get(name)
        await self._bundles.open()
        # The plain base is wanted by everybody: have its zygote boot while control is looked for.
        self._pool.want([(wire.BaseSpec(), self.config.settings.spares)])
        self.link.start()
        self._spawn(self._heartbeats())
        self._spawn(self._latecomers())
        self._usage.start()
        self._watch.start()
        settings = self.config.settings
        self._spawn(collect_for_ever(settings.images, settings.images_bytes))

    async def wait_connected(self, timeout_s: float) -> None:
        """Return when control knows this host. Raises ``TimeoutError``."""
        await self.link.wait_connected(timeout_s)

    async def stop(self, grace_s: float | None = None) -> None:
        """Let instances finish for at most ``grace_s`` (default: the settings'), then end everything."""
        if not self._open:
            return
        await self.instances.drain(self.config.settings.drain_grace if grace_s is None else grace_s)
        await self._close()

    async def abandon(self) -> None:
        """End as if killed: no goodbye to control, no grace for instances. For tests and a lost replica."""
        if not self._open:
            return
        self.instances.abandon()
        await self._close()

    async def _close(self) -> None:
        self._open = False
        await self._watch.stop()
        await self._usage.stop()
        await self.link.stop()
        await self._pool.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._runtimes.close()
        await self._weights.close()
        await self._bundles.close()
        self._logs.close()
        # Nothing lives in it any more; a start that was cut short may have left directories.
        await asyncio.to_thread(remove_tree, self.run_dir)

    def _spawn(self, coroutine: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _runtime_settings(self, name: str) -> RuntimeSettings:
        settings = self.config.settings
        return RuntimeSettings(
            run_dir=self._runtime_dir(name),
            engine_dir=ENGINE_DIR,
            python=sys.executable,
            zygote_bytes=self._budget.total,
            budget=self._budget,
            log_dir=self.log_dir,
            log_bytes=settings.log_bytes,
            logs=self._logs,
            images_dir=settings.images,
            images_bytes=settings.images_bytes,
            checkpoints_dir=settings.data / "checkpoints" / name,
            hide=(settings.data, *self.config.hide),
            build_allow=build_allow(settings.build_allow),
            allow_host_network=settings.allow_host_network,
        )

    def _runtime_dir(self, name: str) -> Path:
        return self.run_dir / directory_of(name)

    def _bundles_in_use(self) -> set[str]:
        return self.instances.bundles() | self._pool.bundles()

    # -- to control -----------------------------------------------------------------------

    def _hello(self) -> wire.HostHello:
        config = self.config
        return wire.HostHello(
            host=self.host,
            node=config.node,
            provider=config.provider,
            region=config.region,
            kind=config.kind,
            spot=config.spot,
            price=config.price,
            resources=self.resources,
            runtimes=self._runtimes.names,
            pauses=self._runtimes.pausing,
            paused_bytes=int(self.resources.memory * config.settings.paused_memory),
            pauses_gpu=config.settings.pause_accelerators,
            capabilities=self._runtimes.capabilities(),
            missing=self._left_out,
            python=".".join(map(str, sys.version_info[:3])),
            host_network=config.settings.allow_host_network,
            weights_allow=config.settings.weights_prefixes,
            weights_private=config.settings.weights_private,
            labels=dict(config.labels),
            # With the last ended ones: their end may have been told into a link that was lost.
            instances=self.instances.inventory() + self.instances.ended()[-ENDED_IN_HELLO:],
            warm=self._pool.reports(),
        )

    def _on_latecomer(self, name: str) -> None:
        if self._runtime_dir(name).exists():
            self._spawn(self._sweep(name))

    async def _sweep(self, name: str) -> None:
        """Open a runtime now: there is something of a predecessor."""
        try:
            await self._runtimes.get(name)
        except RuntimeFailure as error:
            log.warning("runtime %s cannot be opened yet: %s", name, error)

    def _on_instance(self, report: wire.InstanceReport) -> None:
        self.link.send(wire.InstanceEvent(instance=report))

    def _on_warm(self, report: wire.WarmReport) -> None:
        self.link.send(wire.WarmEvent(warm=report))

    async def _heartbeats(self) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time()
        while True:
            more = self._runtimes.found_out
            sent = self.link.send(
                wire.Heartbeat(
                    at=time.time(),
                    in_flight=self._usage.in_flight,
                    rss=self._usage.rss,
                    use=self._usage.fresh(),
                    checkpoints=self._runtimes.checkpoints(),
                    capabilities=self._runtimes.capabilities() if more else {},
                    pauses=self._runtimes.pausing if more else (),
                )
            )
            if sent and more:
                self._runtimes.found_out = False
            due = max(due + wire.HEARTBEAT_PERIOD_S, loop.time())
            await asyncio.sleep(due - loop.time())

    # -- from control ---------------------------------------------------------------------

    def _on_message(self, link: Link, msg: wire.AnyMessage) -> Awaitable[wire.AnyMessage | None] | None:
        match msg:
            case (
                wire.StartInstance()
                | wire.StopInstance()
                | wire.InstanceLeft()
                | wire.PauseInstance()
                | wire.ResumeInstance()
                | wire.SetWarm()
                | wire.DrainHost()
            ):
                if self.link.accepts(msg.epoch):
                    self._command(msg)
            case wire.ReadLogs():
                return self.logs(msg)
            case wire.FindImage():
                return find_image(msg.reference)
            case wire.Error():
                pass
            case _:
                log.warning("control sent %s, which is not for hosts", type(msg).__name__)
        return None

    def _command(
        self,
        msg: wire.StartInstance
        | wire.StopInstance
        | wire.InstanceLeft
        | wire.PauseInstance
        | wire.ResumeInstance
        | wire.SetWarm
        | wire.DrainHost,
    ) -> None:
        match msg:
            case wire.StartInstance():
                self.instances.start(msg)
            case wire.StopInstance():
                self.instances.stop(msg.id, msg.grace_s, msg.reason)
            case wire.InstanceLeft():
                self.instances.hurry(msg.id)
            case wire.PauseInstance():
                self.instances.pause(msg.id, msg.grace_s, msg.reason)
            case wire.ResumeInstance():
                self.instances.resume(msg.id, msg.after)
            case wire.SetWarm():
                self._pool.want(msg.bases, msg.secrets.values)
            case wire.DrainHost():
                self._spawn(self.instances.drain(msg.grace_s))

    async def logs(self, msg: wire.ReadLogs) -> wire.LogPage:
        """A page of what instances wrote, as soon as there is a line. All runtimes share their numbering."""
        runtime = next(iter(self._runtimes.opened().values()), None)
        if runtime is None:
            return wire.LogPage(lines=[], next=msg.after)
        lines, cursor = await runtime.logs(
            msg.endpoint,
            sandbox=msg.instance,
            after=msg.after,
            limit=min(msg.limit, MAX_LOG_LINES),
            wait_s=min(msg.wait_s, MAX_LOG_WAIT_S),
        )
        return wire.LogPage(
            lines=[wire.LogLine(at=x.at, instance=x.sandbox, stream=x.stream, text=x.text) for x in lines],
            next=cursor,
        )
