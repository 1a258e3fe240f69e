from importlib.metadata import EntryPoint, EntryPoints

import pytest
from headrace_runtimes import registry
from headrace_runtimes.base import Runtime
from headrace_runtimes.errors import NotSupported, PrepareFailed


def test_the_process_runtime_is_installed():
    assert "process" in registry.names()
    runtime = registry.load("process")
    assert isinstance(runtime, Runtime)
    assert runtime.name == "process"
    assert registry.load("process") is not runtime


def test_an_unknown_name_suggests_the_closest():
    with pytest.raises(registry.UnknownRuntime, match="did you mean 'process'") as caught:
        registry.load("proces")
    assert caught.value.closest == "process"
    assert isinstance(caught.value, NotSupported)


def test_a_name_like_no_other_lists_what_there_is():
    with pytest.raises(registry.UnknownRuntime, match=r"installed: .*process"):
        registry.load("zzzzzz")


@pytest.mark.parametrize(
    ("value", "text"), [("no.such.module:X", "cannot be loaded"), ("builtins:dict", "is no runtime")]
)
def test_a_broken_plugin_is_told(monkeypatch, value, text):
    points = EntryPoints([EntryPoint("broken", value, registry.GROUP)])
    monkeypatch.setattr(registry, "entry_points", points.select)
    with pytest.raises(PrepareFailed, match=text):
        registry.load("broken")
