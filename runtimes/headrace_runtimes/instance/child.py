"""A forked process as the runtime sees it: a spare that waits, then perhaps a sandbox."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import Callable
from dataclasses import dataclass

from headrace_runtimes.instance.channel import Channel, Packet, pair
from headrace_runtimes.instance.logs import Stream
from headrace_runtimes.instance.mask import Mask
from headrace_runtimes.instance.pipes import LinePipe
from headrace_runtimes.instance.procs import identity, signal_group

BACKLOG_LINES = 1000
UNMANAGEABLE_S = 1.0

Sink = Callable[[Stream, list[str]], None]


@dataclass(frozen=True)
class Ended:
    """How the process ended, before anyone has judged it."""

    code: int | None
    signal: int | None
    note: str = ""


class Child:
    """Made before the fork; `forked` gives it its pid, `died` ends it.

    ``uid``: what it runs as (None: as we do). ``own_uid``: nobody else on the machine has that uid.
    """

    def __init__(self, id: str, uid: int | None, own_uid: bool) -> None:
        self.id = id
        self.uid = uid
        self.own_uid = own_uid
        self.pid = 0
        self._identity: str | None = None
        self.cgroup: str | None = None
        self.memory_killed: int | None = None
        """The limit it was killed for by our own watch."""
        self.buried = False
        loop = asyncio.get_running_loop()
        self.exited: asyncio.Future[Ended] = loop.create_future()
        self.on_packet: Callable[[Packet], None] = lambda packet: None
        self._sink: Sink | None = None
        self._backlog: list[tuple[Stream, list[str]]] = []
        self._backlog_lines = 0
        ours, self._theirs = pair()
        self._channel = Channel(ours, self._received, self._cut_off)
        out, self._out = os.pipe2(os.O_CLOEXEC)
        err, self._err = os.pipe2(os.O_CLOEXEC)
        self._pipes = (
            LinePipe(out, lambda lines: self._print("stdout", lines)),
            LinePipe(err, lambda lines: self._print("stderr", lines)),
        )

    @property
    def alive(self) -> bool:
        """Whether nothing is known of its end."""
        return not self.exited.done()

    def descriptors(self) -> list[int]:
        """What the zygote must give to the fork: control socket, stdout, stderr."""
        return [self._theirs.fileno(), self._out, self._err]

    def handed_over(self) -> None:
        """The zygote has the descriptors (or never will): close our copies, so that we see their end."""
        self._theirs.close()
        for fd in (self._out, self._err):
            with contextlib.suppress(OSError):
                os.close(fd)
        self._out = self._err = -1

    def forked(self, pid: int) -> None:
        """It runs."""
        self.pid = pid
        self._identity = identity(pid)

    def send(self, packet: Packet, *sockets: socket.socket) -> None:
        """Send to the process. Raises `ChannelError`."""
        self._channel.send(packet, [s.fileno() for s in sockets])

    def listen(self, sink: Sink, mask: Mask | None = None) -> None:
        """Its output goes here from now on, beginning with what it said as a spare.

        Lines too long are cut where that leaves the values of ``mask`` whole; to cover them is the sink's.
        """
        self._sink = sink
        for pipe in self._pipes:
            pipe.mask = mask or pipe.mask
        for stream, lines in self._backlog:
            sink(stream, lines)
        self._backlog.clear()

    def last_words(self) -> str:
        """The last line that it printed while nobody listened; empty when there was none."""
        return next((lines[-1] for _, lines in reversed(self._backlog) if lines), "")

    def kill(self) -> None:
        """SIGKILL it and its group."""
        self.signal(signal.SIGKILL)

    def signal(self, number: int) -> None:
        """Signal it and its group, unless its number is another's by now: whoever reaps it may not say so."""
        if self.pid and self.alive and self._identity and identity(self.pid) == self._identity:
            signal_group(self.pid, number)

    def died(self, code: int | None, sig: int | None, note: str = "") -> None:
        """It is gone; what it printed last is read first."""
        if self.exited.done():
            return
        # What it said before it died may lie unread beside the news of its death: a failure's traceback.
        self._channel.drain()
        self.exited.set_result(Ended(code, sig, note))
        self.handed_over()
        for pipe in self._pipes:
            pipe.close()
        self._channel.close()

    def _received(self, packet: Packet) -> None:
        self.on_packet(packet)

    def _print(self, stream: Stream, lines: list[str]) -> None:
        if self._sink:
            self._sink(stream, lines)
        elif self._backlog_lines < BACKLOG_LINES:
            self._backlog_lines += len(lines)
            self._backlog.append((stream, lines))

    def _cut_off(self) -> None:
        """It closed its control socket: it ends, or is killed, as nobody can tell it anything any more."""
        if self.alive:
            asyncio.get_running_loop().call_later(UNMANAGEABLE_S, self.kill)
