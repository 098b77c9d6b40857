"""Random dynamic workflows on the bare scheduler end as the reference says, in whatever order news arrive."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from flowlane.core import CancelRequested, DrainRequested

from .dynamic import models
from .model import Body, Call, Combined, Either, Lit, Map, Model, Reduce, Ref, When, settled
from .played import Play
from .reference import evaluate
from .test_dynamic import TERMINAL, compare_states, deep, known, last, quick, reductions, setup_of, without

if TYPE_CHECKING:
    from flowlane.core import Event


@quick
@given(models(), st.integers(0, 2**32))
def test_a_run_ends_as_the_reference_says(model: Model, seed: int) -> None:
    compare(model, seed)


@pytest.mark.slow
@pytest.mark.timeout(3 * 3600)
@deep
@given(models(30, 3), st.integers(0, 2**32))
def test_many_runs_end_as_the_reference_says(model: Model, seed: int) -> None:
    compare(model, seed)


#: Models that once went wrong, in some order of news.
ONCE_WRONG = {
    #   a ─?─▶ b ─?─▶ n      a is true, b fails: n has failed by its condition, though m, which it takes from, is skipped
    #      └─▶ m ─────┘
    "a condition fails after the map above was skipped": (
        Call("a3"),
        When("a3", (Call("b"),), (Map("m", Lit((1, 2))),)),
        When("b", (Map("n", Ref("m")),)),
    ),
    #   m (none) ─▶ n ─▶ r   n waits for x as well, and is known to have nothing before it begins
    "a reduction of what ends before its map begins": (
        Call("x"),
        Map("m", Lit((1, 2, 3)), filters=True),
        Map("n", Ref("m"), fixed=(Ref("x"),)),
        Reduce("r", Ref("n"), 2),
    ),
    #   k (none) ─▶ m ─▶ n   m fails with x, and n has no element that could tell
    "a map above that fails and has no elements": (
        Call("b"),
        Map("k", Lit(())),
        Map("m", Ref("k"), fixed=(Ref("b"),)),
        Map("n", Ref("m")),
    ),
    "a zip of maps of one chain, one of which is skipped": (
        Call("s"),
        Map("k", Lit((1, 2))),
        Map("m", Ref("k"), after=("s",)),
        Map("z", Combined("zip", (Ref("k"), Ref("m")))),
    ),
    "a source that fails below a reduction": (
        Map("m", Combined("zip", (Lit((1, 2)), Lit((1,)))), may_fail=True),
        Map("n", Ref("m")),
        Reduce("r", Ref("n"), 2),
    ),
    "the rest of a map that had enough has what it reads": (
        Call("x"),
        Map("m", Lit((1, 2, 3, 4), lazy=True), fixed=(Ref("x"),), in_flight=1, enough=1, cancel_rest=False, retries=1),
    ),
}


#: The same, where values were lost.
ONCE_LOST = {
    #   t ─?─▶ a ─▶ e   a is made again: its condition is no upstream that its rule counts
    "a rule counts no conditions": (
        Call("t", (Lit(3),)),
        When("t", (Call("a", rule="one_failed"),), (Call("j"),)),
        Either("e", ("a", "j")),
        Call("z", (Ref("e"),)),
    ),
    #   x ─▶ m[i] ─▶ n[i] ─▶ o[i]   what m has read is there for as long as one of its elements may have to run again
    "what a map that has ended has read": (
        Call("x"),
        Map("m", Lit((1, 2, 3)), fixed=(Ref("x"),)),
        Map("n", Ref("m")),
        Map("o", Ref("n"), fixed=(Ref("x"),)),
    ),
    "what is merged of a map that has ended": (
        Call("x"),
        Map("m", Lit((1, 2, 3, 4)), fixed=(Ref("x"),)),
        Reduce("r", Ref("m"), 2),
    ),
}


@pytest.mark.parametrize("name", ONCE_LOST)
def test_what_once_went_wrong_where_values_were_lost(name: str) -> None:
    for seed in range(60):
        compare(Model(Body("main", ONCE_LOST[name], ()), seed=seed, slots=2, fates=FATES), seed, lossy=0.4)


@pytest.mark.parametrize("name", ONCE_WRONG)
def test_what_once_went_wrong(name: str) -> None:
    for seed in range(60):
        compare(Model(Body("main", ONCE_WRONG[name], ()), seed=seed, slots=2, fates=FATES), seed)


FATES = tuple(
    ((name, 1), fate) for name, fate in (("a3", "ok"), ("b", "fail"), ("s", "skip"), ("x", "ok"), ("m[2]", "fail"))
)


@quick
@given(
    models(),
    st.integers(0, 2**32),
    st.integers(1, 40),
    st.sampled_from([CancelRequested(), DrainRequested()]),
)
def test_a_run_that_is_stopped_keeps_its_promises(model: Model, seed: int, steps: int, stop: Event) -> None:
    stopped(model, seed, steps, stop)


def stopped(model: Model, seed: int, steps: int, stop: Event) -> None:
    play = Play(model, seed, stop=(stop, steps)).run()
    assert set(play.states.values()) <= TERMINAL
    check_teardowns(play, model)
    if "cancelled" not in play.states.values():
        check(play, model)


def check_teardowns(play: Play, model: Model) -> None:
    for name, state in play.states.items():
        if (setup := setup_of(name, model)) is not None and play.states[setup] == "succeeded":
            assert state in {"succeeded", "failed", "skipped"}, f"{name} did not tidy up after {setup}"


@st.composite
def bounds(draw: st.DrawFn) -> dict[str, Any]:
    """What bounds a run, as fields of its plan: one of these, or several."""
    return {
        "max_failures": draw(st.sampled_from([0, 0, 1, 2, 4])),
        "max_share": draw(st.sampled_from([0.0, 0.0, 5.0, 40.0])),
        "deadline": draw(st.sampled_from([0, 0, 0, 5, 40])),
        "retry_budget": draw(st.sampled_from([-1, -1, 0, 1, 3])),
    }


@quick
@given(models(), st.integers(0, 2**32), bounds())
def test_a_bounded_run_keeps_its_promises(model: Model, seed: int, said: dict[str, Any]) -> None:
    bounded(model, seed, said)


def bounded(model: Model, seed: int, said: dict[str, Any]) -> None:
    play = Play(model, seed, bounds=said).run()
    assert set(play.states.values()) <= TERMINAL
    check_teardowns(play, model)
    attempts = play.scheduler.attempts()
    if said["retry_budget"] >= 0:
        assert sum(attempt - 1 for attempt in attempts if attempt) <= said["retry_budget"]
    failed = sum(state == "failed" for state in play.states.values())
    if "cancelled" not in play.states.values():
        assert play.scheduler.finished in ("failed", "succeeded")
    if said["deadline"] or said["retry_budget"] >= 0:
        return
    share = said["max_share"] and failed >= said["max_share"] * len(play.states) / 200  # containers are counted here
    if not share and (not said["max_failures"] or failed < said["max_failures"]):
        check(play, model)


@quick
@given(models(), st.integers(0, 2**32))
def test_a_run_that_loses_values_on_the_way_ends_the_same(model: Model, seed: int) -> None:
    compare(model, seed, lossy=0.2)


@pytest.mark.slow
@pytest.mark.timeout(3 * 3600)
@deep
@given(models(30, 3), st.integers(0, 2**32))
def test_many_runs_that_lose_values_on_the_way_end_the_same(model: Model, seed: int) -> None:
    compare(model, seed, lossy=0.2)


def test_values_of_nodes_and_of_elements_are_lost_and_made_again() -> None:
    """A property test proves nothing of what it never does."""
    lost: set[str] = set()

    class Enough(Exception):
        """All were: no further run is played."""

    @settings(quick, max_examples=1000, phases=[Phase.generate])
    @given(models(), st.integers(0, 2**32))
    def lose(model: Model, seed: int) -> None:
        lost.update(Play(model, seed, lossy=0.3).run().lost)
        if lost >= {"node", "element"}:
            raise Enough

    with pytest.raises(Enough):
        lose()


def compare(model: Model, seed: int, lossy: float = 0.0) -> None:
    check(Play(model, seed, lossy=lossy).run(), model)


def check(play: Play, model: Model) -> None:
    actual = known(play.states, model)
    expected = evaluate(model, lambda name, allowed: actual.get(name, min(allowed)))
    compare_states(without(expected.torn, actual), without(expected.torn, known(expected.states, model)))
    assert str(play.scheduler.finished) == expected.verdict
    cut = reductions(model)
    calls = {name: each for name, each in without(expected.torn, play.calls).items() if last(name) not in cut}
    assert {name: each for name, each in calls.items() if name not in expected.loose} == {
        name: each for name, each in without(expected.torn, expected.calls).items() if name not in expected.loose
    }
    check_teardowns(play, model)
    if expected.verdict == "succeeded":
        assert settled(play.result()) == settled(expected.value)
