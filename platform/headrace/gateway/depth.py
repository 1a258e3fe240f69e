"""How deeply JSON is nested, found before it is decoded: a bound of our own, whatever the interpreter's is.

Decoders go down the levels of a value on the interpreter's stack, and so do those who walk through it later.
"""

from __future__ import annotations

from array import array
from itertools import accumulate

MAX_LEVELS = 500
CHUNK = 1 << 16
_OPEN, _CLOSE = b"[{", b"]}"
_STEPS = bytes.maketrans(_OPEN + _CLOSE, b"\x01\x01\xff\xff")
_OTHERS = bytes(set(range(256)).difference(_OPEN + _CLOSE + b'"'))


def too_deep(data: bytes) -> bool:
    """Whether what looks like JSON has more than `MAX_LEVELS` arrays and objects within each other."""
    if data.count(b"[") + data.count(b"{") <= MAX_LEVELS:
        return False
    # Without escapes every quote begins or ends a string. Two with nothing between them say nothing; of what
    # the others part, each second piece is outside of strings.
    bare = data.replace(b"\\\\", b"").replace(b'\\"', b"").translate(None, _OTHERS).replace(b'""', b"")
    steps = array("b", b"".join(bare.split(b'"')[::2]).translate(_STEPS))
    level = 0
    for at in range(0, len(steps), CHUNK):
        levels = list(accumulate(steps[at : at + CHUNK], initial=level))
        if max(levels) > MAX_LEVELS:
            return True
        level = levels[-1]
    return False
