"""Logs of an endpoint's instances: asked of all hosts, merged by time; the cursor holds one per host."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from headrace import wire
from headrace.control.api.replies import find, limit_of, pack_cursor, reply, unpack_cursor, wait_of
from headrace.control.model import Host
from headrace.control.parts import Parts
from headrace.errors import LinkError

log = logging.getLogger("headrace.control")
Params = dict[str, str]
ANSWER_S = 5.0
"""A host that does not answer in time is left out of the page; its cursor stays."""
MAX_WAIT_S = 30.0


async def read(parts: Parts, call: wire.ApiCall, params: Params) -> wire.ApiReply:
    """A page of lines, oldest first; with ``?wait=`` as soon as there is one."""
    endpoint = find(parts.world, call.project, params["name"])
    cursor = unpack_cursor(call, dict[str, int]) or {}
    limit = limit_of(call, 1000)
    wait = min(MAX_WAIT_S, wait_of(call))
    hosts = [h for h in parts.world.living_hosts() if h.link is not None and h.link.is_open]
    each = max(1, limit // max(1, len(hosts)))
    only = call.query.get("instance")

    def ask(host: Host, wait_s: float) -> wire.ReadLogs:
        after = cursor.get(host.id, 0)
        return wire.ReadLogs(endpoint=endpoint.key, instance=only, after=after, limit=each, wait_s=wait_s)

    pages = await _all(hosts, {h.id: ask(h, 0.0) for h in hosts})
    if wait and not any(p.lines for p in pages.values()):
        cursor |= {host: p.next for host, p in pages.items()}
        pages = await _first(hosts, {h.id: ask(h, wait) for h in hosts}, wait)
    lines = sorted((line for p in pages.values() for line in p.lines), key=lambda line: line.at)
    items: list[dict[str, Any]] = [
        {"at": line.at, "instance": line.instance, "stream": line.stream, "text": line.text} for line in lines
    ]
    return reply({"items": items, "next": pack_cursor(cursor | {host: p.next for host, p in pages.items()})})


async def _all(hosts: list[Host], asks: dict[str, wire.ReadLogs]) -> dict[str, wire.LogPage]:
    answers = await asyncio.gather(*(_ask(h, asks[h.id], ANSWER_S) for h in hosts))
    return {h.id: page for h, page in zip(hosts, answers, strict=True) if page is not None}


async def _first(hosts: list[Host], asks: dict[str, wire.ReadLogs], wait: float) -> dict[str, wire.LogPage]:
    """The first page with lines. The others are asked again later: their cursors do not move."""
    tasks = {asyncio.create_task(_ask(h, asks[h.id], wait + ANSWER_S)): h for h in hosts}
    try:
        for next_done in asyncio.as_completed(list(tasks), timeout=wait + ANSWER_S) if tasks else ():
            await next_done
            found = {
                h.id: p
                for t, h in tasks.items()
                if t.done() and not t.cancelled() and (p := t.result()) is not None and p.lines
            }
            if found:
                return found
    except TimeoutError:
        pass
    finally:
        for task in tasks:
            task.cancel()
    return {}


async def _ask(host: Host, message: wire.ReadLogs, timeout_s: float) -> wire.LogPage | None:
    if host.link is None:
        return None
    try:
        answer = await host.link.call(message, timeout_s)
    except (LinkError, TimeoutError) as error:
        log.info("host %s did not give its logs: %s", host.id, error)
        return None
    return answer if isinstance(answer, wire.LogPage) else None
