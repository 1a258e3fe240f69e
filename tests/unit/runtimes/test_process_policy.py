from headrace_runtimes.instance.explain import RESTART_MAX_S, explain, restart_delay, size
from headrace_runtimes.instance.policy import Candidate, Held, nearest, over_budget
from headrace_runtimes.spec import Base
from hypothesis import given
from hypothesis import strategies as st

MODULES = st.frozensets(st.sampled_from(["numpy", "torch", "PIL", "json"]))
CANDIDATES = st.lists(
    st.builds(
        Candidate,
        key=st.uuids().map(str),
        image=st.sampled_from(["", "i"]),
        modules=MODULES,
        loaded=st.booleans(),
        spares=st.integers(0, 3),
    ),
    unique_by=lambda c: c.key,
)


def candidate(key, *modules, loaded=False, spares=0, image=""):
    return Candidate(key, image, frozenset(modules), loaded, spares)


def test_the_base_itself_comes_first_even_without_spares():
    ready = [candidate("other", "numpy", spares=3), candidate("mine", loaded=True)]
    assert nearest(Base("mine", preload=("numpy",)), ready) == "mine"


def test_the_largest_part_of_the_preload_set_serves_others():
    ready = [candidate("plain", spares=2), candidate("np", "numpy"), candidate("more", "numpy", "torch")]
    assert nearest(Base("x", preload=("numpy",), imports=("PIL",)), ready) == "np"
    assert nearest(Base("x"), ready) == "plain"
    assert nearest(Base("x", image="other"), ready) is None


@given(MODULES, CANDIDATES)
def test_never_anothers_loaded_state_nor_what_was_not_asked_for(wanted, ready):
    key = nearest(Base("x", preload=tuple(wanted)), ready)
    usable = [c for c in ready if not c.loaded and not c.image and c.modules <= wanted]
    if not usable:
        assert key is None
        return
    chosen = next(c for c in usable if c.key == key)
    assert all(len(c.modules) <= len(chosen.modules) for c in usable)


HELD = st.lists(
    st.builds(
        Held,
        key=st.uuids().map(str),
        bytes=st.integers(0, 100),
        living=st.integers(0, 2),
        keep=st.booleans(),
    ),
    unique_by=lambda h: h.key,
)


@given(HELD, st.integers(0, 500))
def test_the_budget_takes_the_last_that_may_go_and_no_more_than_needed(held, budget):
    gone = over_budget(held, budget)
    by_key = {h.key: h for h in held}
    assert all(not by_key[k].living and not by_key[k].keep for k in gone)
    free = [h.key for h in reversed(held) if not h.living and not h.keep]
    assert gone == free[: len(gone)]
    left = sum(h.bytes for h in held) - sum(by_key[k].bytes for k in gone)
    assert left <= budget or gone == free
    if gone:
        assert left + by_key[gone[-1]].bytes > budget


def test_restarts_back_off_and_are_bounded():
    delays = [restart_delay(n) for n in range(1, 100)]
    assert delays == sorted(delays)
    assert delays[0] < 1 < delays[-1] == RESTART_MAX_S


def test_sizes_are_for_people():
    assert [size(n) for n in (512, 1 << 20, 512 << 20, 3 << 29)] == ["512 B", "1 MiB", "512 MiB", "1.5 GiB"]


def test_exits_are_told_plainly():
    assert explain(3, None).detail == "exit code 3"
    assert explain(None, 11).detail == "killed by SIGSEGV"
    assert explain(None, 11).reason == "signalled"
    assert explain(None, 9, note="its zygote ended").detail == "killed by SIGKILL: its zygote ended"
    assert explain(None, 9, limit=512 << 20).detail == "OOM-killed at 512 MiB"
    assert explain(None, 9, limit=1, stopping=True).reason == "oom"
    assert explain(0, None, stopping=True).reason == "stopped"
    assert explain(None, 200).detail == "killed by signal 200"
