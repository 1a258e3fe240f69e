"""What the runtimes of one host may hold together."""

from headrace_runtimes.budget import Budget


def test_one_alone_has_all() -> None:
    budget = Budget(1000)
    assert budget.room("process", 0) == 1000
    assert budget.room("process", 5000) == 1000


def test_each_has_what_the_others_leave_and_at_least_its_part() -> None:
    budget = Budget(1000)
    assert budget.room("process", 900) == 1000
    # Who comes later is not left with nothing, and the first gives way to it.
    assert budget.room("oci", 300) == 500
    assert budget.room("process", 900) == 700
    assert budget.room("process", 700) == 700
    assert budget.room("oci", 300) == 500, "it may grow to its part"
    assert budget.room("oci", 500) == 500
    assert budget.room("process", 700) == 500
    assert budget.room("docker", 0) == 333


def test_together_they_come_within_it() -> None:
    budget, held = Budget(900), {"process": 900, "oci": 900, "docker": 100}
    for _ in range(4):
        for name, now in held.items():
            held[name] = min(now, budget.room(name, now))
    assert sum(held.values()) <= 900
    assert held["docker"] == 100, "what is below its part stays"


def test_who_leaves_takes_its_part_along() -> None:
    budget = Budget(1000)
    budget.room("oci", 800)
    assert budget.room("process", 100) == 500
    budget.leave("oci")
    assert budget.room("process", 100) == 1000
