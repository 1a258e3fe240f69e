"""The decorator's options: each good form, each bad one, and what the message says."""

from __future__ import annotations

from typing import Any

import headrace
import pytest
from headrace.control.observe import scaling_of
from headrace.errors import SpecError, UnsupportedOption, UsageError
from headrace.sdk.options import _CHECKS, default_name
from headrace.sdk.spec import GIB, MIB, EndpointSpec, Gpu, dump_spec, load_spec
from hypothesis import given
from hypothesis import strategies as st


def handler(x: int = 0) -> int:
    return x


def spec_of(**options: Any) -> EndpointSpec:
    return headrace.endpoint(**options)(handler).spec


BAD = [
    ("name", "Bad_Name", "a-z, 0-9"),
    ("name", "-x", "a-z, 0-9"),
    ("name", "x" * 64, "1-63"),
    ("name", 3, "a-z"),
    ("gpu", 3, "L40S:2"),
    ("gpu", "L40S:0", "L40S:2"),
    ("gpu", "L40S:two", "L40S:2"),
    ("gpu", ":2", "L40S:2"),
    ("gpu", [3], "H100"),
    ("cpu", 0, "above 0"),
    ("cpu", "2", "number of cores"),
    ("cpu", True, "number of cores"),
    ("cpu", float("nan"), "number of cores"),
    ("cpu", float("inf"), "number of cores"),
    ("memory", "16 gigs", "16GiB"),
    ("memory", 0, "more than 0"),
    ("memory", 1.5, "512MiB"),
    ("memory", 16, "16 MiB"),
    ("memory", None, "512MiB"),
    ("image", "python:3.11", "headrace.Image"),
    ("runtime", "podman", '"process"'),
    ("runtime", ["process"], '"process"'),
    ("scaling", {"max": 3}, "headrace.Scaling(...)"),
    ("scaling", 3, "headrace.Scaling(...)"),
    ("concurrency", 0, "from 1 to 1000"),
    ("concurrency", 1.5, "whole number"),
    ("batch", 16, "headrace.Batch(...)"),
    ("timeout", 0, "seconds above 0"),
    ("timeout", "10s", "seconds above 0"),
    ("load_timeout", -1, "seconds above 0"),
    ("retries", -1, "from 0 to 10"),
    ("retries", True, "whole number"),
    ("retry_on", TimeoutError, "list of exception types"),
    ("retry_on", [3], "TimeoutError"),
    ("retry_on", ["not a name"], "TimeoutError"),
    ("retry_on", [int], "TimeoutError"),
    ("idempotent", "yes", "True or False"),
    ("snapshot", "memory", '"imports", "loaded", "none"'),
    ("preload", "numpy", "list of module names"),
    ("preload", ["no-module"], "list of module names"),
    ("queue", 10, "headrace.Queue(...)"),
    ("max_body", "big", "512MiB"),
    ("placement", ["aws"], "headrace.Placement(...)"),
    ("env", ["A=1"], "dict of strings"),
    ("env", {"A": 1}, "string"),
    ("env", {"A": "x\0y"}, "string"),
    ("env", {"1A": "x"}, "variable's name"),
    ("env", {"HEADRACE_KEY": "x"}, "platform's own"),
    ("api", "grpc", '"native"'),
]


@pytest.mark.parametrize(("option", "value", "says"), BAD, ids=[f"{o}-{v!r:.20}" for o, v, _ in BAD])
def test_wrong_value_is_refused_and_says_what_to_use(option: str, value: Any, says: str) -> None:
    with pytest.raises(SpecError) as caught:
        headrace.endpoint(**{option: value})
    assert option in str(caught.value)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "image",
    [
        headrace.Image.python("3.11").apt("ffmpeg"),
        headrace.Image().run("true"),
        headrace.Image.from_registry("a/b"),
        headrace.Image().copy("a", "/b"),
    ],
)
def test_the_process_runtime_refuses_what_needs_a_file_system(image: headrace.Image) -> None:
    with pytest.raises(UnsupportedOption, match=r'runtime="oci"|HEADRACE_FILES'):
        headrace.endpoint(image=image)


@pytest.mark.parametrize("runtime", ["oci", "docker"])
def test_containers_take_any_image(runtime: Any) -> None:
    image = headrace.Image.python("3.12").apt("ffmpeg").pip("six").copy("a", "/b")

    @headrace.endpoint(runtime=runtime, image=image, cpu=2)
    def answer() -> int:
        return 42

    assert answer.spec.image == image.spec
    assert answer.spec.runtime == runtime
    assert answer.spec.cpu_limit == 2


@pytest.mark.parametrize(
    ("option", "says"),
    [
        (lambda: headrace.Placement(max_price=0), "above 0"),
        (lambda: headrace.Placement(max_price="4"), "a number"),
        (lambda: headrace.Placement(balance=1.5), "0 .cheapest. to 1"),
        (lambda: headrace.Placement(on_demand=-1), "0 or more"),
        (lambda: headrace.Placement(on_demand=1.5), "whole number"),
        (lambda: headrace.Placement(spot="only", on_demand=1), "contradict"),
        (lambda: headrace.Scaling(budget=-1), "above 0"),
        (lambda: headrace.Scaling(budget=True), "a number"),
        (lambda: headrace.Scaling(idle_timeout="never"), '"auto"'),
        (lambda: headrace.Scaling(idle_timeout=-1), "0 or more"),
        (lambda: headrace.Scaling(idle_timeout=None), "a number"),
    ],
)
def test_costs_and_idle_times_that_cannot_be_meant_are_refused(option: Any, says: str) -> None:
    with pytest.raises(SpecError, match=says):
        option()


def test_costs_and_idle_times_reach_the_autoscaler() -> None:
    spec = spec_of(
        scaling=headrace.Scaling(idle_timeout="auto", budget=12),
        placement=headrace.Placement(max_price=4, balance=0, on_demand=2),
    )
    assert load_spec(dump_spec(spec)) == spec
    scaling = scaling_of(load_spec(dump_spec(spec)), 0, 10)
    assert (scaling.learn_idle, scaling.budget) == (True, 12.0)
    assert (scaling.max_price, scaling.balance, scaling.on_demand) == (4.0, 0.0, 2)
    scaling = scaling_of(spec_of(scaling=headrace.Scaling(idle_timeout=5)), 0, 10)
    assert (scaling.learn_idle, scaling.idle_timeout_s, scaling.budget) == (False, 5, None)


@pytest.mark.parametrize("option", ["secrets", "weights", "hedge_after"])
def test_an_empty_value_of_a_later_option_is_fine(option: str) -> None:
    assert spec_of(**{option: None}) == spec_of()


@pytest.mark.parametrize("value", ["p95", "p50", 0.25, 2])
def test_hedge_after_is_a_quantile_or_seconds(value: Any) -> None:
    spec = spec_of(hedge_after=value)
    assert spec.hedge_after == value
    assert (spec.hedge_quantile, spec.hedge_after_s) == (
        (int(value[1:]) / 100, 0.0) if isinstance(value, str) else (0.0, float(value))
    )
    assert load_spec(dump_spec(spec)) == spec


@pytest.mark.parametrize(
    "value", ["p100", "p5", "95", "", 0, -1, 0.0001, True, float("inf"), float("nan"), []]
)
def test_hedge_after_that_is_neither_is_refused(value: Any) -> None:
    with pytest.raises(SpecError, match="hedge_after"):
        headrace.endpoint(hedge_after=value)


def test_hedging_needs_an_idempotent_endpoint() -> None:
    with pytest.raises(SpecError, match="idempotent=False"):
        spec_of(hedge_after="p95", idempotent=False)


@pytest.mark.parametrize(
    ("typo", "meant"),
    [("concurency", "concurrency"), ("time_out", "timeout"), ("gpus", "gpu"), ("retires", "retries")],
)
def test_a_typo_names_the_closest_option(typo: str, meant: str) -> None:
    with pytest.raises(SpecError, match=f"'{typo}'.*Did you mean '{meant}'"):
        headrace.endpoint(**{typo: 1})


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: headrace.Scaling(mim=1), "Scaling has no option 'mim'. Did you mean 'min'?"),
        (lambda: headrace.Batch(max_sise=1), "'max_sise'. Did you mean 'max_size'?"),
        (lambda: headrace.Queue(size=1), "'size'. Options are: max_requests, max_bytes."),
        (lambda: headrace.Placement(provider=["x"]), "'provider'. Did you mean 'providers'?"),
        (lambda: headrace.Gpu(nam="x"), "'nam'. Did you mean 'name'?"),
    ],
)
def test_a_typo_in_a_part_names_the_closest_option(make: Any, says: str) -> None:
    with pytest.raises(SpecError) as caught:
        make()
    assert says in str(caught.value)


def test_a_newer_spec_is_told_from_a_broken_one() -> None:
    with pytest.raises(SpecError, match="spec version 9 is newer"):
        load_spec(b'{"name":"a","entry":"a:a","handler":"function","spec_version":9,"hologram":true}')


def test_a_strange_option_lists_them_all() -> None:
    with pytest.raises(SpecError, match=r"Options are: .*concurrency.*timeout"):
        headrace.endpoint(zzzzzz=1)  # type: ignore[call-overload]


def test_every_option_arrives_in_the_spec() -> None:
    spec = spec_of(
        name="full",
        gpu=["H100", "L40S:2", Gpu(name="A100")],
        cpu=4,
        memory="16GiB",
        image=headrace.Image(),
        runtime="process",
        scaling=headrace.Scaling(min=1, max=3),
        concurrency=4,
        timeout=30,
        load_timeout=40,
        retries=1,
        retry_on=[TimeoutError, "requests.ConnectionError", "TimeoutError"],
        idempotent=False,
        snapshot="none",
        preload=["numpy", "PIL.Image"],
        queue=headrace.Queue(max_requests=5, max_bytes="1MiB"),
        max_body="2MiB",
        placement=headrace.Placement(providers=["local"], spot="never"),  # type: ignore[arg-type]
        env={"MODE": "fast"},
        api="native",
    )
    assert spec.gpu == (Gpu(name="H100"), Gpu(name="L40S", count=2), Gpu(name="A100"))
    assert (spec.cpu, spec.memory, spec.memory_limit) == (4.0, 16 * GIB, 16 * GIB)
    assert spec.retry_on == ("TimeoutError", "ConnectionError")
    assert spec.placement.providers == ("local",)
    assert (spec.queue.byte_bound, spec.max_body) == (MIB, 2 * MIB)
    assert spec.idempotent is False
    assert load_spec(dump_spec(spec)) == spec
    assert dump_spec(load_spec(dump_spec(spec))) == dump_spec(spec)


def test_no_memory_given_means_no_limit() -> None:
    assert spec_of().memory_limit is None


def test_equal_options_give_equal_specs() -> None:
    assert spec_of(env={"A": "1"}, gpu="H100") == spec_of(gpu=("H100",), env={"A": "1"})
    assert spec_of(cpu=1) != spec_of(cpu=2)


@pytest.mark.parametrize(
    "make",
    [
        lambda: headrace.Scaling(min="1"),  # type: ignore[arg-type]
        lambda: headrace.Scaling(max=True),
        lambda: headrace.Scaling(min=3, max=2),
        lambda: headrace.Scaling(target_concurrency=0),
        lambda: headrace.Scaling(idle_timeout=float("nan")),
        lambda: headrace.Batch(max_size=0),
        lambda: headrace.Batch(max_wait_ms="5"),  # type: ignore[arg-type]
        lambda: headrace.Queue(max_requests=0),
        lambda: headrace.Queue(max_bytes="lots"),
        lambda: headrace.Placement(spot="maybe"),  # type: ignore[arg-type]
        lambda: headrace.Placement(regions="eu"),  # type: ignore[arg-type]
        lambda: Gpu(name="", count=1),
        lambda: Gpu(name="H100", count=0),
    ],
)
def test_parts_check_their_own_values(make: Any) -> None:
    with pytest.raises(SpecError, match=r"use "):
        make()


def test_batch_needs_one_list_parameter_and_no_generator() -> None:
    def two(a: list[int], b: int) -> list[int]:
        return a

    def stream(a: list[int]) -> Any:
        yield a

    with pytest.raises(SpecError, match="exactly one parameter"):
        headrace.endpoint(batch=headrace.Batch())(two)
    with pytest.raises(SpecError, match="generator"):
        headrace.endpoint(batch=headrace.Batch())(stream)

    class Streams:
        async def __call__(self, a: list[int]) -> Any:
            yield a

    with pytest.raises(SpecError, match="async_generator"):
        headrace.endpoint(batch=headrace.Batch())(Streams)


def test_loaded_snapshot_needs_load() -> None:
    with pytest.raises(SpecError, match="no load"):
        headrace.endpoint(snapshot="loaded")(handler)


@pytest.mark.parametrize(
    ("python", "name"),
    [("hello", "hello"), ("read_text", "read-text"), ("TextReader", "text-reader"), ("OCR", "ocr")],
)
def test_default_names(python: str, name: str) -> None:
    assert default_name(python) == name


_values = st.one_of(st.none(), st.integers(), st.text(), st.floats())


@given(st.dictionaries(st.sampled_from([*_CHECKS, "other"]), _values, max_size=3))
def test_any_options_either_work_or_raise_a_usage_error(options: dict[str, Any]) -> None:
    try:
        spec = spec_of(**options)
    except UsageError:
        return
    assert load_spec(dump_spec(spec)) == spec


def test_images_are_values() -> None:
    one = headrace.Image.python("3.11").pip("a", "b").env(X="1", A="2").run("true").apt("c").copy("a", "/b")
    two = headrace.Image.python("3.11").pip("a", "b").env(A="2", X="1").run("true").apt("c").copy("a", "/b")
    assert one == two
    assert hash(one) == hash(two)
    assert one.digest == two.digest != one.pip("d").digest
    assert [step for step, _ in one.spec.layers] == ["pip", "env", "run", "apt", "copy"]
    assert headrace.Image.from_dockerfile("Dockerfile").spec.layers[0][0] == "from_dockerfile"


@pytest.mark.parametrize(
    "make",
    [
        lambda: headrace.Image.python("three"),
        lambda: headrace.Image.python(3.11),  # type: ignore[arg-type]
        lambda: headrace.Image().pip(),
        lambda: headrace.Image().pip(3),  # type: ignore[arg-type]
        lambda: headrace.Image().run(" "),
        lambda: headrace.Image().env(A=1),  # type: ignore[arg-type]
    ],
)
def test_wrong_image_steps_are_refused(make: Any) -> None:
    with pytest.raises(SpecError):
        make()


def test_the_openai_api_needs_an_asgi_app() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None: ...

    assert headrace.endpoint(name="chat", api="openai")(app).spec.api == "openai"
    with pytest.raises(SpecError, match="must be an ASGI app"):
        headrace.endpoint(name="chat", api="openai")(lambda: 1)
