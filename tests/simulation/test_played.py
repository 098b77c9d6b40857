"""Random dynamic workflows on the bare scheduler end as the reference says, in whatever order news arrive."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from flowlane.core import CancelRequested, DrainRequested

from .dynamic import models
from .model import settled
from .played import Play
from .reference import evaluate
from .test_dynamic import TERMINAL, compare_states, deep, known, last, quick, reductions, setup_of

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
    play = Play(model, seed, stop=(stop, steps)).run()
    assert set(play.states.values()) <= TERMINAL
    for name, state in play.states.items():
        if (setup := setup_of(name, model)) is not None and play.states[setup] == "succeeded":
            assert state in {"succeeded", "failed", "skipped"}, f"{name} did not tidy up after {setup}"
    if "cancelled" not in play.states.values():
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
    compare_states(actual, known(expected.states, model))
    assert str(play.scheduler.finished) == expected.verdict
    cut = reductions(model)
    assert {
        name: calls for name, calls in play.calls.items() if name not in expected.loose and last(name) not in cut
    } == {name: calls for name, calls in expected.calls.items() if name not in expected.loose}
    if expected.verdict == "succeeded":
        assert settled(play.result()) == settled(expected.value)
