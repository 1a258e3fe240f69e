"""Messages of the domain name system: only what a resolver for sandboxes needs. Pure."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from ipaddress import IPv4Address

A, AAAA, OPT, SVCB, HTTPS, AXFR, ANY = 1, 28, 41, 64, 65, 252, 255
IN = 1
NOERROR, FORMERR, SERVFAIL, NXDOMAIN, NOTIMP, REFUSED = 0, 1, 2, 3, 4, 5
RESPONSE, TRUNCATED, WANTED, AVAILABLE = 0x8000, 0x0200, 0x0100, 0x0080
CODE, OPCODE = 0x000F, 0x7800
HEADER = struct.Struct(">HHHHHH")
FIXED = struct.Struct(">HHIH")
MOST_JUMPS = 64
UDP_BYTES = 512


class Malformed(ValueError):
    """No message that can be read."""


@dataclass(frozen=True)
class Question:
    """One question. ``name``: lower case, without the dot at its end; ``raw``: as it was asked."""

    id: int
    name: str
    kind: int
    raw: bytes
    wanted: bool = True
    """Whether the asker wants the resolver to ask on."""


@dataclass(frozen=True)
class Answer:
    """What a server said. ``addresses``: each with the seconds for which it holds."""

    code: int
    truncated: bool
    addresses: tuple[tuple[IPv4Address, int], ...]


def read_question(data: bytes) -> Question:
    """Raises `Malformed`."""
    id, flags, questions = _header(data)[:3]
    if flags & RESPONSE or flags & OPCODE or questions != 1:
        raise Malformed("not one question")
    name, at = _name(data, HEADER.size)
    kind, group = _take(">HH", data, at)
    if group != IN:
        raise Malformed("not of the internet")
    return Question(id, name, kind, data[HEADER.size : at + 4], bool(flags & WANTED))


def ask(id: int, question: Question) -> bytes:
    """The same question under another id."""
    return HEADER.pack(id, WANTED, 1, 0, 0, 0) + question.raw


def read_answer(data: bytes, id: int, question: Question) -> Answer:
    """Raises `Malformed` for what does not answer it."""
    got, flags, questions, answers, _, _ = _header(data)
    if got != id or not flags & RESPONSE or questions != 1:
        raise Malformed("answers something else")
    name, at = _name(data, HEADER.size)
    kind, group = _take(">HH", data, at)
    if (name, kind, group) != (question.name, question.kind, IN):
        raise Malformed("answers something else")
    at += 4
    found = []
    if not flags & TRUNCATED:
        for _ in range(answers):
            _, at = _name(data, at)
            kind, group, ttl, size = _take(">HHIH", data, at)
            at += FIXED.size
            if at + size > len(data):
                raise Malformed("cut off")
            if (kind, group, size) == (A, IN, 4):
                found.append((IPv4Address(data[at : at + 4]), ttl if ttl < 1 << 31 else 0))
            at += size
    return Answer(flags & CODE, bool(flags & TRUNCATED), tuple(found))


def reply(question: Question, code: int, addresses: tuple[tuple[IPv4Address, int], ...] = ()) -> bytes:
    """An answer of ours: the name that was asked for has these addresses."""
    flags = RESPONSE | AVAILABLE | (WANTED if question.wanted else 0) | code
    records = b"".join(b"\xc0\x0c" + FIXED.pack(A, IN, ttl, 4) + address.packed for address, ttl in addresses)
    return HEADER.pack(question.id, flags, 1, len(addresses), 0, 0) + question.raw + records


def under(data: bytes, id: int) -> bytes:
    """A server's message as the answer to the question with this id."""
    return struct.pack(">H", id) + data[2:]


def cut(data: bytes) -> bytes:
    """For who asked by datagram: too long an answer says that it is, and is asked for again by stream."""
    if len(data) <= UDP_BYTES:
        return data
    id, flags = _header(data)[:2]
    _, at = _name(data, HEADER.size)
    return HEADER.pack(id, flags | TRUNCATED, 1, 0, 0, 0) + data[HEADER.size : at + 4]


def _header(data: bytes) -> tuple[int, int, int, int, int, int]:
    if len(data) < HEADER.size:
        raise Malformed("shorter than a header")
    return HEADER.unpack_from(data)


def _take(form: str, data: bytes, at: int) -> tuple[int, ...]:
    try:
        return struct.unpack_from(form, data, at)
    except struct.error as error:
        raise Malformed("cut off") from error


def _name(data: bytes, at: int) -> tuple[str, int]:
    """The name at a place, and where it ends."""
    labels: list[str] = []
    end = -1
    length = 0
    for _ in range(MOST_JUMPS + 128):
        if at >= len(data):
            break
        size = data[at]
        if size >= 0xC0:
            (target,) = _take(">H", data, at)
            end = at + 2 if end < 0 else end
            if target & 0x3FFF >= at:
                break
            at = target & 0x3FFF
        elif size >= 0x40:
            break
        elif size == 0:
            return ".".join(labels), at + 1 if end < 0 else end
        else:
            label = data[at + 1 : at + 1 + size]
            length += size + 1
            # A dot inside a label would make two names look the same.
            if len(label) < size or length > 254 or not label.isascii() or not label.decode().isprintable():
                break
            if b"." in label:
                break
            labels.append(label.decode().lower())
            at += 1 + size
    raise Malformed("no name")
