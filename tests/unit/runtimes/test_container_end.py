"""How a container's first process says that it ended: it may be any program of the image's."""

import json
import signal

import pytest
from headrace_runtimes.containers.frame import how_it_ended

KILLED = (None, int(signal.SIGKILL))


@pytest.mark.parametrize(
    ("told", "meant"),
    [({"code": 0, "signal": None}, (0, None)), ({"code": 255, "signal": None}, (255, None)),
     ({"code": None, "signal": 15}, (None, 15)), ({"signal": 64}, (None, 64))],
)  # fmt: skip
def test_what_makes_sense_is_believed(told, meant):
    assert how_it_ended(json.dumps(told).encode()) == meant


@pytest.mark.parametrize(
    "told",
    [b"", b"[]", b"7", b"null", b"{}", b"\xff\xfe", b"[" * 256, b'{"code": 1e999, "signal": null}',
     b'{"code": true, "signal": null}', b'{"code": 256, "signal": null}', b'{"code": -1, "signal": null}',
     b'{"signal": 0}', b'{"signal": 65}', b'{"signal": -9}', b'{"signal": true}', b'{"signal": "9"}',
     b'{"code": ' + b"9" * 200 + b', "signal": null}'],
)  # fmt: skip
def test_anything_else_was_a_kill(told):
    assert how_it_ended(told) == KILLED
