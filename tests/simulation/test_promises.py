"""Random worlds, unkind and ideal: after every step each promise holds (see driver.py), and everything ends."""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from random import Random
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from flowlane.core import (
    RULES,
    Abandoned,
    Cached,
    Crashed,
    Failed,
    Interrupted,
    Reason,
    ResultLost,
    Succeeded,
    TaskState,
)
from flowlane.testing import SimulatedRun, Simulation

from .driver import Watcher
from .worlds import World, worlds

if TYPE_CHECKING:
    from collections.abc import Sequence

    from flowlane.core import Event, Step

#: Transitions that a graph without maps, conditions and the like can make.
STATIC = {
    code
    for code, (source, target, reason) in enumerate(RULES)
    if not {TaskState.SKIPPED, TaskState.EXPANDED} & {source, target}
    and reason not in (Reason.NOT_NEEDED, Reason.DEADLINE)
    and (source, reason) != (TaskState.RUNNING, Reason.DRAINED)  # who returns more work
}

quick = settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
patient = settings(max_examples=20_000, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def live(world: World, seed: int | None, latency: int = 0) -> tuple[list[SimulatedRun], Watcher]:
    """Let `world` happen under a watcher. Some final news are told twice: the second time they must be late."""
    watcher = Watcher()
    strays = Random(world.seed)
    echoes: set[int] = set()
    late: dict[int, int] = {}

    def watch(run: SimulatedRun, events: Sequence[Event], step: Step, now: int) -> None:
        watcher(run, events, step, now)
        late[run.scheduler.token] = late.get(run.scheduler.token, 0) + step.late
        assert step.late >= sum(id(event) in echoes for event in events)
        for event in events:
            final = isinstance(event, Succeeded | Cached | Failed | Crashed | Interrupted | Abandoned | ResultLost)
            if final and id(event) not in echoes and strays.random() < 0.2:
                kept.append(event)
                echoes.add(id(event))
                run.send(event, now + strays.choice([0, 1, 30]))

    kept: list[Event] = []  # keeps the ids of echoes from being used again
    simulation = Simulation(seed=seed, latency=latency, grace=40, on_step=watch)
    lanes = world.lanes()
    for index, (plan, at, event) in enumerate(world.plans):
        simulation.start(plan, lanes, partial(world.script, index), at=at, event=event)
    for index, event, at in world.requests:
        simulation.runs[index].send(event, at)
    simulation.run()
    watcher.conclude()
    assert all(run.scheduler.late == late[run.scheduler.token] for run in simulation.runs)
    return simulation.runs, watcher


@quick
@given(worlds())
def test_every_promise_holds_in_an_ideal_world(world: World) -> None:
    runs, _ = live(world, None)
    for run in runs:
        check_total_timeouts(run)


def check_total_timeouts(run: SimulatedRun) -> None:
    """Where news take no time, a task over its total time begins nothing more, and has ended one grace later."""
    plan = run.scheduler.plan
    due: dict[int, int] = {}
    for element, _, code, at in run.history:
        target = RULES[code].target
        if RULES[code].reason == "result_lost" and RULES[code].source != "ready":
            due.pop(element, None)  # it was in time; what it takes to make it again counts by itself
            if total := plan.policies[plan.policy[element]].total_timeout:
                due[element] = at + total
        if target == "ready" and (total := plan.policies[plan.policy[element]].total_timeout):
            due.setdefault(element, at + total)
        if element in due:
            assert at <= due[element] + (0 if target in {"ready", "running"} else 40)


@quick
@given(worlds())
def test_every_promise_holds_in_an_unkind_world(world: World) -> None:
    live(world, world.seed, latency=15)


@settings(quick, max_examples=40)
@given(worlds())
def test_the_same_seed_gives_the_same_history(world: World) -> None:
    _, first = live(world, world.seed, latency=15)
    _, second = live(world, world.seed, latency=15)
    assert first.log == second.log


@pytest.mark.slow
@pytest.mark.timeout(3600)
@patient
@given(worlds(runs=4, most=25))
def test_every_promise_holds_in_many_unkind_worlds(world: World) -> None:
    live(world, world.seed, latency=world.seed % 40)


@pytest.mark.timeout(180)
def test_random_worlds_meet_every_rule() -> None:
    """A property test proves nothing of a rule that it never meets."""
    seen: set[int] = set()

    class Enough(Exception):
        """All are met: no further world is drawn."""

    @settings(quick, max_examples=8000, phases=[Phase.generate])
    @given(worlds(runs=4))
    def meet(world: World) -> None:
        seen.update(live(world, world.seed, latency=15)[1].codes)
        if len(seen) == len(STATIC):
            raise Enough

    with suppress(Enough):
        meet()
    assert seen == STATIC, [RULES[code] for code in STATIC - seen]
