"""Random worlds for property tests: DAGs, policies, lanes and scripts. Hypothesis draws the shape, a seed the details."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING

from hypothesis import strategies as st

from flowlane.core import CancelRequested, DrainRequested, Lane, Plan, Policy, RunStarted
from flowlane.testing import Attempt

if TYPE_CHECKING:
    from collections.abc import Sequence

    from flowlane.core import Event


@dataclass
class World:
    """Runs to start (plan, when, with what) on shared lanes, and requests (run, event, when). `seed` decides all outcomes.

    lossy  how often an attempt finds some of what it reads gone
    """

    plans: list[tuple[Plan, int, RunStarted]]
    slots: list[int]
    enforced: list[bool]
    requests: list[tuple[int, Event, int]]
    seed: int
    lossy: float = 0.0

    def lanes(self) -> list[Lane]:
        return [
            Lane(f"lane {index}", slots, enforces_timeouts=enforced)
            for index, (slots, enforced) in enumerate(zip(self.slots, self.enforced, strict=True))
        ]

    def script(self, run: int, element: int, attempt: int) -> Attempt:
        """A pure function of its arguments and the seed."""
        draw = Random(f"{self.seed}/{run}/{element}/{attempt}")
        reads = self.plans[run][0].inputs[element] if self.lossy else ()
        if reads and draw.random() < self.lossy:
            lost = [up for up in reads if draw.random() < 0.7]
            return Attempt(ends="bereft", lost=tuple(lost), retryable=draw.random() < 0.5)
        return Attempt(
            duration=draw.choice([0, 0, 1, 5, 10, 30, 100]),
            ends=draw.choice(["succeeds", "succeeds", "succeeds", "succeeds", "cached", "fails", "crashes"]),
            retryable=draw.random() < 0.7,
            begins=draw.random() < 0.9,
            told=draw.random() < 0.6,
            stops=draw.choice([0, 0, 3, 20, 60]),
            poison=draw.random() < 0.1,
        )


@st.composite
def dags(draw: st.DrawFn, most: int = 10) -> tuple[list[list[int]], list[list[int]]]:
    """Upstreams and, of those, inputs, by node. Numbers are shuffled: an upstream may have the larger one."""
    size = draw(st.integers(0, most))
    place = draw(st.permutations(range(size)))
    upstreams: list[list[int]] = [[] for _ in range(size)]
    inputs: list[list[int]] = [[] for _ in range(size)]
    for position in range(1, size):
        above = draw(st.lists(st.integers(0, position - 1), max_size=3, unique=True))
        node = place[position]
        upstreams[node] = [place[up] for up in above]
        inputs[node] = upstreams[node][: draw(st.integers(0, len(above)))]
    return upstreams, inputs


@st.composite
def policies(draw: st.DrawFn) -> Policy:
    return Policy(
        attempts=draw(st.integers(1, 4)),
        backoff=draw(st.sampled_from([0, 0, 1, 7, 50])),
        factor=draw(st.sampled_from([1.0, 2.0])),
        max_delay=draw(st.sampled_from([0, 60])),
        jitter=draw(st.booleans()),
        timeout=draw(st.sampled_from([0, 0, 1, 10, 25])),
        total_timeout=draw(st.sampled_from([0, 0, 10, 40, 200])),
        retry_timeouts=draw(st.booleans()),
        retry_crashes=draw(st.booleans()),
        remakes=draw(st.sampled_from([0, 1, 3, 3])),
    )


def plan_of(shape: tuple[list[list[int]], list[list[int]]], chosen: Sequence[Policy], lanes: int, draw: Random) -> Plan:
    upstreams, inputs = shape
    size = len(upstreams)
    return Plan.build(
        upstreams,
        inputs=inputs,
        lane=[draw.randrange(lanes) for _ in range(size)],
        policy=[draw.randrange(len(chosen)) for _ in range(size)],
        policies=chosen,
        weight=[draw.randrange(1, 5) for _ in range(size)],
        pinned=[node for node in range(size) if draw.random() < 0.2],
        fail_fast=draw.random() < 0.3,
    )


def beginning(plan: Plan, draw: Random) -> RunStarted:
    """Mostly nothing; else any part of the plan is done already, what stands below something undone included."""
    if draw.random() < 0.6:
        return RunStarted()
    began = RunStarted([], [], [])
    for element in range(plan.size):
        draw.choice([[], [], began.restored, began.restored, began.cached, began.unknown]).append(element)
    return began


@st.composite
def worlds(draw: st.DrawFn, runs: int = 3, most: int = 10) -> World:
    seed = draw(st.integers(0, 2**32))
    details = Random(seed)
    slots = draw(st.lists(st.integers(1, 3), min_size=1, max_size=2))
    count = draw(st.integers(1, runs))
    plans: list[tuple[Plan, int, RunStarted]] = []
    for _ in range(count):
        plan = plan_of(draw(dags(most)), draw(st.lists(policies(), min_size=1, max_size=3)), len(slots), details)
        plans.append((plan, details.choice([0, 0, 5, 40]), beginning(plan, details)))
    requests: list[tuple[int, Event, int]] = []
    for at in draw(st.lists(st.integers(41, 300), max_size=2)):
        stop: Event = CancelRequested() if draw(st.booleans()) else DrainRequested()
        requests.append((draw(st.integers(0, count - 1)), stop, at))
    enforced = [details.random() < 0.3 for _ in slots]
    return World(plans, slots, enforced, requests, seed, details.choice([0.0, 0.0, 0.1, 0.4]))
