"""When `headrace up` says that it is ready."""

from __future__ import annotations

import pytest
from headrace.cluster.parts import is_complete


@pytest.mark.parametrize(
    ("hosts", "gateways", "complete"),
    [(0, 2, False), (1, 0, False), (1, 1, False), (1, 2, True), (3, 2, True), (1, 3, True)],
)
def test_ready_is_a_host_and_every_gateway(hosts, gateways, complete):
    assert is_complete({"hosts": hosts, "gateways": gateways}, 2) is complete


@pytest.mark.parametrize("found", ["", "no", [], None, {}, {"hosts": 1}, {"hosts": 1, "gateways": None}])
def test_an_answer_that_is_no_status_is_not_ready(found):
    assert not is_complete(found, 1)
