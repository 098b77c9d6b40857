"""Runs that share lanes and limits: tasks that need several slots, several limits by weight, and a turn at a rate, in one world.

Checked from outside, with books of its own: nothing is held beyond what there is, no more begins than a rate allows, every run
ends (the simulation raises Stalled when one cannot), and when all have, everything is back.
"""

from __future__ import annotations

from collections import defaultdict
from functools import partial
from random import Random
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flowlane.core import (
    Abandoned,
    Cached,
    CancelRequested,
    Crashed,
    DrainRequested,
    Failed,
    Interrupted,
    Lane,
    Launch,
    Plan,
    Policy,
    Succeeded,
)
from flowlane.core.limits import Limit
from flowlane.core.plan import Requirement
from flowlane.core.rate import Rate
from flowlane.testing import Attempt, Simulation

from .worlds import World, dags, policies

if TYPE_CHECKING:
    from collections.abc import Sequence

    from flowlane.core import Event, Step
    from flowlane.core.lanes import Slots
    from flowlane.testing import SimulatedRun

FINAL = (Succeeded, Cached, Failed, Crashed, Interrupted, Abandoned)


class Books:
    """Who holds what, by launches and ends alone."""

    def __init__(self, *, deep: bool = True) -> None:
        self.deep = deep  # let schedulers check themselves as well, which takes longer the more tasks there are
        self.out: dict[tuple[SimulatedRun, int], int] = {}  # (run, element) → attempt
        self.started: dict[Limit, list[tuple[int, int]]] = defaultdict(list)  # (when, weight)
        self.limits: dict[SimulatedRun, Sequence[Limit]] = {}
        self.most: dict[int, int] = {}

    def claims(self, run: SimulatedRun, element: int) -> list[tuple[Slots, int]]:
        plan = run.scheduler.plan
        need = plan.requirements[plan.requirement.get(element, 0)]
        lane = run.lanes[plan.lane[element]]
        return [
            (lane, min(need.slots, lane.slots)),
            *[(self.limits[run][index], weight) for index, weight in need.limits],
        ]

    def __call__(self, run: SimulatedRun, events: Sequence[Event], step: Step, now: int) -> None:
        for event in events:
            if isinstance(event, FINAL) and self.out.get((run, event.element)) == event.attempt:
                del self.out[run, event.element]
        for command in step.commands:
            if isinstance(command, Launch):
                for element in command.elements:
                    self.out[run, element] = run.scheduler.attempt(element)
                    for slots, weight in self.claims(run, element):
                        if isinstance(slots, Limit):
                            self.started[slots].append((now, weight))
        held: dict[Slots, int] = defaultdict(int)
        for out, element in self.out:
            for slots, weight in self.claims(out, element):
                held[slots] += weight
        for slots in self.everything():
            most = self.most[id(slots)] = max(slots.capacity, self.most.get(id(slots), 0))
            assert held[slots] <= most, f"{held[slots]} of {slots}"
            assert held[slots] == slots.in_use, f"{held[slots]} of {slots}"
            slots.check()
        if self.deep:
            run.scheduler.check()

    def everything(self) -> list[Slots]:
        found: list[Slots] = [lane for run in self.limits for lane in run.lanes]
        found += [limit for limits in self.limits.values() for limit in limits]
        return list(dict.fromkeys(found))

    def conclude(self) -> None:
        assert self.out == {}
        for slots in self.everything():
            assert slots.in_use == 0, slots
            assert slots.free == slots.capacity, slots
        for limit, started in self.started.items():
            if (rate := limit.rate) is None:
                continue
            for first, (since, _) in enumerate(started):
                spent = 0
                for at, weight in started[first:]:
                    spent += weight
                    assert spent <= rate.burst + (at - since) * rate.count / rate.period_ns, (limit, since, at)


def limits_of(draw: Random, count: int) -> list[Limit]:
    found: list[Limit] = []
    for number in range(count):
        rate = Rate(draw.randint(1, 4), draw.choice([7, 30, 100]), draw.randint(2, 4)) if draw.random() < 0.4 else None
        slots = None if rate is not None and draw.random() < 0.5 else draw.randint(2, 6)
        found.append(Limit(f"limit {number}", slots, rate=rate))
    return found


def requirements_of(draw: Random, limits: Sequence[Limit]) -> tuple[Requirement, ...]:
    found = [Requirement()]
    for _ in range(draw.randint(1, 4)):
        chosen = draw.sample(range(len(limits)), draw.randint(0, len(limits)))
        weights: list[tuple[int, int]] = []
        for index in chosen:  # in any order: what is taken first must be given back when a later one says no
            rate = limits[index].rate
            weights.append((index, draw.randint(1, min(limits[index].slots, rate.burst if rate is not None else 6, 6))))
        found.append(Requirement(draw.choice([1, 1, 2, 3, 9]), tuple(weights)))
    return tuple(found)


@settings(max_examples=120, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(st.tuples(dags(9), st.lists(policies(), min_size=1, max_size=2)), min_size=1, max_size=4),
    st.integers(0, 2**32),
    st.booleans(),
    st.booleans(),
)
def test_runs_that_share_limits_all_end_and_nothing_is_lost(
    shapes: list[tuple[tuple[list[list[int]], list[list[int]]], list[Policy]]], seed: int, unkind: bool, breathing: bool
) -> None:
    draw, books = Random(seed), Books()
    lanes = [Lane(f"lane {number}", draw.randint(1, 4)) for number in range(draw.randint(1, 2))]
    limits = limits_of(draw, draw.randint(1, 3))
    world = World([], [], [], [], seed)

    def watch(run: SimulatedRun, events: Sequence[Event], step: Step, now: int) -> None:
        books(run, events, step, now)
        if breathing and draw.random() < 0.3:  # as an appetite does, or adaptive slots
            slots = draw.choice([*lanes, *[limit for limit in limits if limit.slots < 100]])
            simulation.stretch(slots, draw.randint(1 - slots.slots, 3))

    simulation = Simulation(seed=seed if unkind else None, latency=15 if unkind else 0, grace=40, on_step=watch)
    for number, ((upstreams, inputs), chosen) in enumerate(shapes):
        requirements = requirements_of(draw, limits)
        size = len(upstreams)
        plan = Plan.build(
            upstreams,
            inputs=inputs,
            lane=[draw.randrange(len(lanes)) for _ in range(size)],
            policy=[draw.randrange(len(chosen)) for _ in range(size)],
            policies=chosen,
            requirement={node: draw.randrange(len(requirements)) for node in range(size)},
            requirements=requirements,
            priority={node: draw.randint(-2, 2) for node in range(size) if draw.random() < 0.2},
            fail_fast=draw.random() < 0.2,
        )
        run = simulation.start(plan, lanes, partial(world.script, number), at=draw.choice([0, 0, 9, 60]), limits=limits)
        books.limits[run] = limits
        if draw.random() < 0.25:
            run.send(draw.choice([CancelRequested(), DrainRequested()]), draw.randint(61, 200))
    simulation.run()
    books.conclude()


@pytest.mark.parametrize("seed", range(150))
def test_tasks_of_many_runs_that_need_the_same_few_limits_never_wait_in_a_circle(seed: int) -> None:
    """Two or three limits of one or two slots, some with a rate, and up to five runs that need them in any order."""
    draw, books = Random(seed), Books(deep=False)
    lanes = [Lane("l0", draw.choice([1, 2, 8])), Lane("l1", 4)][: draw.randint(1, 2)]
    limits = [
        Limit(
            f"limit {number}",
            draw.choice([1, 1, 2]),
            rate=Rate(1, draw.choice([1, 3, 9]), 2) if draw.random() < 0.3 else None,
        )
        for number in range(draw.choice([2, 2, 3]))
    ]
    steps = 0

    def watch(run: SimulatedRun, events: Sequence[Event], step: Step, now: int) -> None:
        nonlocal steps
        steps += 1
        assert steps < 5_000, "runs wake each other, and nothing happens"
        books(run, events, step, now)

    unkind = draw.random() < 0.6
    simulation = Simulation(seed=seed if unkind else None, latency=draw.choice([1, 5]) if unkind else 0, on_step=watch)
    for _ in range(draw.randint(2, 5)):
        requirements = [Requirement()]
        for _ in range(draw.randint(1, 4)):
            chosen = draw.sample(range(len(limits)), draw.choice([1, 2, 2, len(limits)]))
            weights = tuple((index, draw.randint(1, limits[index].slots)) for index in chosen)
            requirements.append(Requirement(draw.choice([1, 1, 1, 2, 4]), weights))
        size = draw.randint(1, 8)
        plan = Plan.build(
            [[] for _ in range(size)],
            lane=[draw.randrange(len(lanes)) for _ in range(size)],
            requirement={node: draw.randrange(len(requirements)) for node in range(size)},
            requirements=tuple(requirements),
        )
        took = [draw.choice([1, 1, 2, 5]) for _ in range(size)]
        run = simulation.start(
            plan,
            lanes,
            lambda element, _, took=took: Attempt(duration=took[element]),
            at=draw.choice([0, 0, 1, 3]),
            limits=limits,
        )
        books.limits[run] = limits
    simulation.run()
    books.conclude()


def begins(run: SimulatedRun, element: int) -> int:
    return run.scheduler.started_ns[element]


@pytest.mark.parametrize("seed", range(5))
def test_wide_and_heavy_tasks_are_not_overtaken_for_ever(seed: int) -> None:
    """Two runs of 300 short tasks each, and one with a task for the whole lane, and one for the whole limit.

    However they are told of it, both begin before a tenth of the others' tasks have ended.
    """
    lane, limit = Lane("cpu", 4), Limit("api", 6)
    draw, books = Random(seed), Books(deep=False)
    simulation = Simulation(seed=seed, latency=5, on_step=books)
    light = Plan.build(
        [[] for _ in range(300)],
        requirement=dict.fromkeys(range(300), 1),
        requirements=(Requirement(), Requirement(1, ((0, 1),))),
    )
    heavy = Plan.build(
        [[], []], requirement={0: 1, 1: 2}, requirements=(Requirement(), Requirement(4), Requirement(1, ((0, 6),)))
    )

    def short(element: int, attempt: int) -> Attempt:
        return Attempt(duration=draw.randint(5, 15))

    others = [simulation.start(light, [lane], short, limits=[limit]) for _ in range(2)]
    run = simulation.start(heavy, [lane], short, at=50, limits=[limit])
    books.limits = {each: [limit] for each in (*others, run)}
    simulation.run()
    books.conclude()
    for element in (0, 1):
        before = sum(ended < begins(run, element) for other in others for ended in other.scheduler.ended_ns)
        assert before < 60, element


@pytest.mark.parametrize("seed", range(5))
def test_two_runs_get_a_limit_in_turns(seed: int) -> None:
    """Both want all of it all the time: when the first has ended half, the other has ended a third at least."""
    limit, books = Limit("api", 3, rate=Rate(1, 5, 2)), Books(deep=False)
    simulation = Simulation(seed=seed, latency=3, on_step=books)
    plan = Plan.build(
        [[] for _ in range(60)],
        requirement=dict.fromkeys(range(60), 1),
        requirements=(Requirement(), Requirement(1, ((0, 1),))),
    )
    draw = Random(seed)

    def short(element: int, attempt: int) -> Attempt:
        return Attempt(duration=draw.randint(5, 15))

    lanes = [Lane("io", 50)]
    runs = [simulation.start(plan, lanes, short, limits=[limit]) for _ in range(2)]
    books.limits = {each: [limit] for each in runs}
    simulation.run()
    books.conclude()
    ends = [sorted(run.scheduler.ended_ns) for run in runs]
    half = min(own[29] for own in ends)
    assert all(sum(ended <= half for ended in own) >= 20 for own in ends)


def test_what_waits_long_goes_before_what_is_more_urgent() -> None:
    #   one slot; urgent tasks of 1 s that come one after the other for ever (each makes the next ready); one that is not
    #   priority 0   plain                         it begins when it has waited as long as four levels are worth
    #   priority 4   u0 → u1 → u2 → …
    second = 1_000_000_000
    chain = [[node - 1] if node else [] for node in range(100)]
    plan = Plan.build([*chain, []], priority=dict.fromkeys(range(100), 4))
    simulation = Simulation()
    run = simulation.start(plan, [Lane("cpu", 1)], lambda element, attempt: Attempt(duration=second))
    simulation.run()
    assert 30 * second < begins(run, 100) < 60 * second
