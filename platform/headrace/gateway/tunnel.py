"""A request to upgrade (WebSocket): a connection of its own to the instance, then bytes both ways."""

from __future__ import annotations

import asyncio
import re
from typing import cast

from headrace.errors import InstanceDied, RequestError
from headrace.gateway.attempt import Attempt
from headrace.gateway.call import Call
from headrace.gateway.head import read_answer
from headrace.gateway.respond import status_line
from headrace.gateway.upstream import MAX_ANSWER_HEAD, AddressRefused, open_connection

_STATUS = re.compile(rb"HTTP/1\.[01] ([1-9][0-9]{2})(?: [\t\x20-\x7e\x80-\xff]*)?")
_NAME = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_VALUE = re.compile(rb"[\t\x20-\x7e\x80-\xff]*")


class TunnelAttempt(Attempt):
    """An `Attempt` whose answer is a tunnel. It holds its slot until either side closes; after the
    switch no deadline applies."""

    __slots__ = ("_end",)

    def begin(self) -> None:
        """Always over a new connection."""
        self._end: TunnelEnd | None = None
        self.call.dispatcher.spawn(self._open())

    async def _open(self) -> None:
        try:
            end = cast(TunnelEnd, await open_connection(self.instance.route.address, TunnelEnd))
        except (OSError, AddressRefused) as error:
            if not self.outcome:
                self.call.not_accepted(self, error)
            return
        if self.outcome:
            end.close()
            return
        self._end = end
        self.call.sending(self)
        upgrade = self.call.request.head.upgrade
        # "close" is for an answer that is no switch: nothing may follow it on this connection.
        end.begin(self, self._request_bytes(b"Connection: Upgrade, close\r\nUpgrade: %b\r\n" % upgrade))

    def _asks(self, now: float) -> bool:
        """Its connection ends with a refusal."""
        return False

    @property
    def began(self) -> bool:
        """Only with the head of its answer."""
        return self.call.head_sent

    def stop(self) -> None:
        """Close the instance's side; nobody is told."""
        end, self._end = self._end, None
        if end is not None:
            end.close()

    # -- what the instance's end reports ----------------------------------------------------

    def on_answer(self, end: TunnelEnd, status: int, headers: list[tuple[bytes, bytes]], rest: bytes) -> None:
        """The head of the instance's answer."""
        call = self.call
        request, client = call.request, call.request.client
        answer = self.answer = read_answer(headers)
        self.status = status
        if status == 503 and answer.refused:
            call.turned_away(self, "draining" if answer.refused == b"draining" else "full")
            return
        call.answering(self)
        call.head_sent = True
        lines = answer.forward
        if status == 101:
            call.no_deadline()
            lines = lines.replace(b"Content-Security-Policy: sandbox\r\n", b"")
            lines += b"Connection: Upgrade\r\nUpgrade: %b\r\n" % request.head.upgrade
        else:
            # Not accepted: pass the answer on as it comes, and close with it. What the client sends now
            # would be taken for another request, one that nobody has checked.
            lines += b"Connection: close\r\n"
            if answer.content_length >= 0:
                lines += b"Content-Length: %d\r\n" % answer.content_length
            elif answer.chunked:
                lines += b"Transfer-Encoding: chunked\r\n"
        transport, early = client.take_over(request, end)
        end.join(transport, both_ways=status == 101)
        transport.write(
            b"%b%bX-Headrace-Request-Id: %b\r\n\r\n%b"
            % (status_line(status), lines, request.id.encode(), rest)
        )
        if early:
            end.from_client(early)
        if not client.writable:
            self.pause()

    def on_end(self, detail: str) -> None:
        """The instance's side closed."""
        end, self._end = self._end, None
        call = self.call
        if call.done:
            return
        if call.head_sent:
            if end is not None:
                end.finish_client()
            call.answered(self, ok=True)
            call.told()
            return
        call.lost(self, detail, why="reset", began=False)

    def on_nonsense(self) -> None:
        """The instance's answer is no HTTP."""
        self.call.fail(InstanceDied("the instance's answer to the upgrade is not well-formed HTTP."))

    def write_error(self, error: RequestError) -> None:
        """A tunnel has no place for an error of ours."""

    def pause(self) -> None:
        """The client reads slowly."""
        if self._end is not None:
            self._end.pause_reading()

    def resume(self) -> None:
        """The client has caught up."""
        if self._end is not None:
            self._end.resume_reading()


class TunnelCall(Call):
    """A `Call` whose answer is a tunnel; never hedged."""

    __slots__ = ()
    attempt_type = TunnelAttempt

    def _plan_hedge(self) -> None:
        """A connection is no request to be copied."""


class TunnelEnd(asyncio.Protocol):
    """The instance's end of a tunnel."""

    def __init__(self) -> None:
        self._call: TunnelAttempt | None = None
        self._transport: asyncio.Transport | None = None
        self._client: asyncio.Transport | None = None
        self._switched = False
        self._head = bytearray()
        self._size = 0

    def begin(self, call: TunnelAttempt, head: bytes) -> None:
        """Write the request's head."""
        self._call = call
        assert self._transport is not None
        if self._transport.is_closing():
            call.on_end("the instance closed the connection")
        else:
            self._transport.write(head)

    def join(self, client: asyncio.Transport, *, both_ways: bool) -> None:
        """From now on bytes go to the client, and from it as well when the protocol was switched."""
        self._client = client
        self._switched = both_ways

    def close(self) -> None:
        """Close the instance's side; nobody is told."""
        self._call = None
        if self._transport is not None:
            self._transport.abort()

    def finish_client(self) -> None:
        """Flush and close the client's side."""
        if self._client is not None:
            self._client.close()

    def pause_reading(self) -> None:
        """The client is slow."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        """The client has caught up."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    # -- client.Tunnel ----------------------------------------------------------------------

    def from_client(self, data: bytes) -> None:
        """Bytes of the client."""
        if self._transport is not None and self._switched:
            self._transport.write(data)

    def client_closed(self) -> None:
        """The client is gone."""
        call = self._call
        self.close()
        if call is not None:
            call.call.cancel()

    # -- asyncio.Protocol -------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Part of ``asyncio.Protocol``."""
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """Part of ``asyncio.Protocol``."""
        if self._client is not None:
            self._client.write(data)
            return
        self._size += len(data)
        self._head += data
        while self._call is not None and self._client is None and self._next_head(self._call):
            pass
        if self._call is None:
            self.close()

    def _next_head(self, call: TunnelAttempt) -> bool:
        """Take one head out of what has come; whether another one may follow it."""
        head, end, rest = self._head.partition(b"\r\n\r\n")
        if self._size > MAX_ANSWER_HEAD + len(rest) * bool(end):
            call.on_nonsense()
            return False
        if not end:
            return False
        try:
            status, headers = _split_head(bytes(head))
            if status >= 200 or status == 101:
                call.on_answer(self, status, headers, bytes(rest))
        except ValueError:
            call.on_nonsense()
            return False
        self._head = rest
        return status < 200 and status != 101

    def connection_lost(self, exc: Exception | None) -> None:
        """Part of ``asyncio.Protocol``."""
        call, self._call = self._call, None
        if call is not None:
            call.on_end(str(exc) if exc else "the instance closed the connection")

    def pause_writing(self) -> None:
        """The instance reads slowly: read less from the client."""
        if self._client is not None and not self._client.is_closing():
            self._client.pause_reading()

    def resume_writing(self) -> None:
        """The instance has caught up."""
        if self._client is not None and not self._client.is_closing():
            self._client.resume_reading()


def _split_head(head: bytes) -> tuple[int, list[tuple[bytes, bytes]]]:
    """Status and headers of an answer's head. Raises ``ValueError``."""
    first, *lines = head.split(b"\r\n")
    match = _STATUS.fullmatch(first)
    if match is None:
        raise ValueError(first)
    headers = []
    for line in lines:
        name, _, value = line.partition(b":")
        if not _NAME.fullmatch(name) or not _VALUE.fullmatch(value):
            raise ValueError(line)
        headers.append((name, value.strip(b" \t")))
    return int(match[1]), headers
