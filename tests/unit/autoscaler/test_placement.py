"""Filters, preferences, and why nothing was found."""

from __future__ import annotations

import pytest
from headrace_autoscaler.placement import Book
from headrace_autoscaler.spec import HostObservation, ScalingSpec


def host(name, **options):
    return HostObservation(host=name, **({"cpu_free": 4.0, "memory_free": 1 << 30} | options))


def place(hosts, **options):
    return Book(hosts).place(ScalingSpec(**({"cpu": 1.0} | options)), "e")


def test_the_preference_order():
    plain, warm = host("a", cpu_free=8.0), host("b", warm=("e",))
    assert place([plain, warm]) == "b"
    assert place([host("a"), host("b", cpu_free=5.0)]) == "b"
    assert place([host("a", gpu_free={"L4": 1}), host("b", cpu_free=2.0)]) == "b"
    assert place([host("a", price=1.0), host("b", cpu_free=2.0)]) == "b"
    assert place([host("a"), host("b", spot=True)]) == "b"
    assert place([host("b"), host("a")]) == "a"


def test_the_gpu_list_is_an_order_of_preference():
    hosts = [host("a", gpu_free={"L4": 2}, warm=("e",)), host("h", gpu_free={"H100": 1})]
    assert place(hosts, gpu=(("H100", 1), ("L4", 1))) == "h"
    book = Book(hosts)
    wish = ScalingSpec(cpu=1.0, gpu=(("H100", 1), ("L4", 1)))
    assert [book.place(wish, "e") for _ in range(4)] == ["h", "a", "a", None]


@pytest.mark.parametrize(
    ("there", "wish"),
    [
        ({"state": "suspect"}, {}),
        ({"state": "draining"}, {}),
        ({"runtimes": ("oci",)}, {}),
        ({"provider": "aws"}, {"providers": ("local",)}),
        ({"region": "eu"}, {"regions": ("us",)}),
        ({"spot": True}, {"spot": "never"}),
        ({"spot": False}, {"spot": "only"}),
        ({"cpu_free": 0.9}, {}),
        ({"memory_free": 1}, {"memory": 2}),
        ({}, {"gpu": (("H100", 1),)}),
        ({"gpu_free": {"H100": 1}}, {"gpu": (("H100", 2),)}),
    ],
)
def test_what_rules_a_host_out(there, wish):
    assert place([host("a", **there)], **wish) is None


@pytest.mark.parametrize(
    ("hosts", "wish", "why"),
    [
        ([], {}, "no host is connected"),
        (
            [{"provider": "aws"}],
            {"providers": ("local",)},
            "no ready host matches runtime=process providers=local",
        ),
        (
            [{}],
            {"runtime": "oci"},
            "no host has runtime oci (there is process): `headrace doctor` on the host says why",
        ),
        ([{}], {"gpu": (("H100", 1), ("A100", 1))}, "no host has gpu H100 or A100"),
        (
            [{"gpu_free": {"H100": 0}}],
            {"gpu": (("H100", 1),)},
            "no host has room for cpu=1 memory=0MiB gpu=H100:1",
        ),
        ([{"cpu_free": 0.0}], {"spot": "only"}, "no ready host matches runtime=process spot=only"),
    ],
)
def test_why_not_in_words(hosts, wish, why):
    book = Book(host(f"h{n}", **options) for n, options in enumerate(hosts))
    assert book.why_not(ScalingSpec(cpu=1.0, **wish)) == why


def test_where_zygotes_are_is_known_for_few_and_for_many_endpoints():
    book = Book([host("a", cpu_free=9.0), host("b", warm=("e", "f")), host("c", warm=("f",), cpu_free=6.0)])
    wish = ScalingSpec(cpu=1.0)
    found = [book.place(wish, name) for name in "efxefyf"]
    # "e" is warm on b only; "f" on c, which has more room, until 4 are left as on b; others go where most is.
    assert found == ["b", "c", "a", "b", "c", "a", "c"]


def test_room_for_one_more_is_room_until_it_is_taken():
    book, wish = Book([host("a")]), ScalingSpec(cpu=4.0)
    assert book.has_room(wish)
    assert book.place(wish, "e") == "a"
    assert not book.has_room(wish)
