"""Lanes that are stretched and shrink again while runs share them: every promise of the driver holds all the same."""

from __future__ import annotations

from functools import partial
from random import Random
from typing import TYPE_CHECKING

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flowlane.core import Lane, Plan
from flowlane.testing import Attempt, Simulation

from .driver import Watcher
from .worlds import World, worlds

if TYPE_CHECKING:
    from collections.abc import Sequence

    from flowlane.core import Event, Step
    from flowlane.testing import SimulatedRun


@settings(max_examples=200, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(worlds(), st.integers(0, 2**32), st.booleans())
def test_every_promise_holds_while_lanes_change_their_size(world: World, seed: int, unkind: bool) -> None:
    watcher, draw = Watcher(), Random(seed)
    lanes = world.lanes()

    def watch(run: SimulatedRun, events: Sequence[Event], step: Step, now: int) -> None:
        watcher(run, events, step, now)
        if draw.random() < 0.4:
            simulation.stretch(draw.choice(lanes), draw.choice([0, 0, 1, 2, 5]))

    simulation = Simulation(seed=seed if unkind else None, latency=20 if unkind else 0, grace=40, on_step=watch)
    for index, (plan, at, event) in enumerate(world.plans):
        simulation.start(plan, lanes, partial(world.script, index), at=at, event=event)
    for index, event, at in world.requests:
        simulation.runs[index].send(event, at)
    simulation.run()
    watcher.conclude()


def test_a_run_that_waits_is_woken_by_a_stretch() -> None:
    #   ten tasks of 10 ns, 1 slot; after the first step the lane takes five
    lane = Lane("cpu", 1)

    def watch(run: SimulatedRun, events: Sequence[Event], step: Step, now: int) -> None:
        world.stretch(lane, 4)

    world = Simulation(on_step=watch)
    run = world.start(Plan.build([[] for _ in range(10)]), [lane], lambda element, attempt: Attempt(duration=10))
    world.run()
    assert run.ended == 20
