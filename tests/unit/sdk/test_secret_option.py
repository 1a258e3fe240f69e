"""``secrets=``: names in the spec, never a value."""

from __future__ import annotations

from typing import Any

import headrace
import pytest
from headrace import wire
from headrace.errors import SpecError
from headrace.sdk.spec import dump_spec, load_spec


def spec_of(**options: Any) -> headrace.EndpointSpec:
    @headrace.endpoint(**options)
    def handler() -> int:
        return 1

    return handler.spec


def test_a_name_means_a_file_and_env_a_variable_too() -> None:
    spec = spec_of(secrets=["HF_TOKEN", headrace.Secret("API_KEY", env=True)])
    assert [(s.name, s.env) for s in spec.secrets] == [("HF_TOKEN", False), ("API_KEY", True)]
    assert load_spec(dump_spec(spec)) == spec
    assert spec_of(secrets=[]) == spec_of(secrets=None) == spec_of()


@pytest.mark.parametrize(
    "value",
    [
        "HF_TOKEN",
        {"HF_TOKEN": "x"},
        [1],
        [""],
        ["1A"],
        ["A-B"],
        ["../A"],
        ["A\n"],
        ["HEADRACE_KEY"],
        ["A", "A"],
        ["A", headrace.Secret("A", env=True)],
        ["A" * 101],
        [f"A{n}" for n in range(33)],
    ],
)
def test_what_is_no_list_of_names_is_refused(value: Any) -> None:
    with pytest.raises(SpecError, match="secret"):
        headrace.endpoint(secrets=value)


def test_a_variable_has_one_value() -> None:
    with pytest.raises(SpecError, match="API_KEY is in env"):
        spec_of(secrets=[headrace.Secret("API_KEY", env=True)], env={"API_KEY": "x"})
    assert spec_of(secrets=["API_KEY"], env={"API_KEY": "x"}).secrets[0].env is False


def test_a_value_given_for_a_name_is_not_repeated() -> None:
    with pytest.raises(SpecError) as caught:
        spec_of(secrets=["sk-live-0123456789"])
    assert "sk-live" not in str(caught.value)


def test_messages_do_not_show_values() -> None:
    values = wire.SecretValues(values={"A": "canary"})
    base = wire.BaseSpec()
    spec = wire.InstanceSpec(endpoint="p/e", version=1, base=base, bundle="", entry="", handler="")
    for message in (
        wire.StartInstance(epoch=1, id="i", spec=spec, secrets=values),
        wire.SetWarm(epoch=1, bases=[(base, 1)], secrets=values),
        wire.ApiCall(method="PUT", path="/secrets/A", body=b'{"value": "canary"}'),
    ):
        assert "canary" not in f"{message!r} {message} {wire.Envelope(seq=1, ack=0, msg=message)!r}"
