"""Random dynamic workflows on the bare scheduler end as the reference says, in whatever order news arrive."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowlane.core import CancelRequested, DrainRequested

from .dynamic import models
from .model import settled
from .played import Play
from .reference import evaluate
from .test_dynamic import TERMINAL, compare_states, deep, known, last, quick, reductions, setup_of, without

if TYPE_CHECKING:
    from flowlane.core import Event

    from .model import Model


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


def compare(model: Model, seed: int) -> None:
    check(Play(model, seed).run(), model)


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
