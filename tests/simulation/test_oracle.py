"""A sequential oracle: what each task of a `continue` run must end as, whatever the lanes, slots and order of news."""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from random import Random
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flowlane.core import Lane, Plan, Policy
from flowlane.testing import Attempt

from .driver import watched
from .worlds import dags

if TYPE_CHECKING:
    from collections.abc import Sequence

LIMITS = [
    Policy(),
    Policy(attempts=3, backoff=5),
    Policy(attempts=2, backoff=5, timeout=20),
    Policy(attempts=3, timeout=20, retry_timeouts=True),
    Policy(attempts=2, retry_crashes=True),
    Policy(attempts=255, backoff=1, factor=1.0),
]


def script(seed: int, element: int, attempt: int) -> Attempt:
    draw = Random(f"{seed}/{element}/{attempt}")
    return Attempt(
        duration=draw.choice([0, 1, 10, 20, 21, 50]),
        ends=draw.choice(["succeeds", "succeeds", "fails", "crashes"]),
        retryable=draw.random() < 0.8,
        begins=draw.random() < 0.9,
        stops=draw.choice([0, 1, 15, 90]),
        poison=draw.random() < 0.3,
    )


def attempt_ends_as(attempt: Attempt, policy: Policy) -> tuple[str, bool]:
    """How one attempt ends in a world without delays, and whether the policy would try again."""
    crash = ("crashed", policy.retry_crashes and not attempt.poison)
    if not attempt.begins:
        return crash if attempt.ends == "crashes" else ("failed", attempt.retryable)
    if policy.timeout and attempt.duration > policy.timeout:
        return "timed_out", policy.retry_timeouts
    return {
        "succeeds": ("succeeded", False),
        "fails": ("failed", attempt.retryable),
        "crashes": crash,
    }[attempt.ends]


def task_ends_as(seed: int, element: int, policy: Policy) -> tuple[str, int]:
    """The final state and the number of attempts of a task whose upstreams have all succeeded."""
    attempt, (end, again) = 1, attempt_ends_as(script(seed, element, 1), policy)
    while again and attempt < policy.attempts:
        attempt += 1
        end, again = attempt_ends_as(script(seed, element, attempt), policy)
    return end, attempt


def oracle(upstreams: Sequence[Sequence[int]], limits: Sequence[Policy], seed: int) -> list[tuple[str, int]]:
    """One task after another, by the definition. Quadratic and proud of it."""
    ends: dict[int, tuple[str, int]] = {}
    while len(ends) < len(upstreams):
        for node, above in enumerate(upstreams):
            if node not in ends and all(up in ends for up in above):
                fit = all(ends[up][0] == "succeeded" for up in above)
                ends[node] = task_ends_as(seed, node, limits[node]) if fit else ("upstream_failed", 0)
    return [ends[node] for node in range(len(upstreams))]


@settings(max_examples=250, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(dags(14), st.integers(0, 2**32), st.lists(st.integers(1, 3), min_size=1, max_size=3))
def test_a_run_ends_as_its_tasks_one_by_one(
    shape: tuple[list[list[int]], list[list[int]]], seed: int, slots: list[int]
) -> None:
    check_against_oracle(shape, seed, slots)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@settings(max_examples=10_000, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(dags(40), st.integers(0, 2**32), st.lists(st.integers(1, 5), min_size=1, max_size=3))
def test_many_runs_end_as_their_tasks_one_by_one(
    shape: tuple[list[list[int]], list[list[int]]], seed: int, slots: list[int]
) -> None:
    check_against_oracle(shape, seed, slots)


def check_against_oracle(shape: tuple[list[list[int]], list[list[int]]], seed: int, slots: list[int]) -> None:
    upstreams, inputs = shape
    draw = Random(seed)
    policy = [draw.randrange(len(LIMITS)) for _ in upstreams]
    plan = Plan.build(
        upstreams,
        inputs=inputs,
        policies=LIMITS,
        policy=policy,
        lane=[draw.randrange(len(slots)) for _ in upstreams],
    )
    lanes = [Lane(f"lane {index}", count) for index, count in enumerate(slots)]
    (run,), _ = watched((plan, lanes, partial(script, seed), 0))
    expected = oracle(upstreams, [LIMITS[index] for index in policy], seed)
    scheduler = run.scheduler
    assert [(str(state), scheduler.attempt(node)) for node, state in enumerate(run.states())] == expected
    assert run.state == ("succeeded" if all(end == "succeeded" for end, _ in expected) else "failed")
    for node, (end, _) in enumerate(expected):
        way = scheduler.cause(node)
        assert way[-1] == node
        if end == "upstream_failed":
            assert expected[way[0]][0] in {"failed", "timed_out", "crashed"}
            assert all(expected[step][0] == "upstream_failed" for step in way[1:])
            assert all(above in upstreams[below] for above, below in pairwise(way))
        else:
            assert way == [node]
