"""The simulator itself: what users rely on when they test with virtual clocks."""

from __future__ import annotations

import pytest

from flowlane.core import (
    NEVER,
    CancelRequested,
    InvalidTransition,
    Lane,
    Plan,
    Policy,
    RunStarted,
    RunState,
    SlotAvailable,
    TaskState,
)
from flowlane.testing import Attempt, Simulation, Stalled, simulate


def test_a_plan_runs_in_virtual_time() -> None:
    #   0 (10) ─▶ 1 (20) ─▶ 3 (5)
    #   0 ──────▶ 2 (30) ─▶ 3
    durations = [10, 20, 30, 5]
    run = simulate(
        Plan.build([[], [0], [0], [1, 2]]),
        [Lane("cpu", 2)],
        lambda element, attempt: Attempt(duration=durations[element]),
    )
    assert run.ended == 45
    assert run.state is RunState.SUCCEEDED
    assert run.states() == [TaskState.SUCCEEDED] * 4
    assert [entry[0] for entry in run.history if entry[2] == 0] == [0, 1, 2, 3]


def test_without_a_script_every_attempt_succeeds_at_once() -> None:
    run = simulate(Plan.build([[], [0]]), [Lane("cpu", 1)])
    assert (run.ended, run.state) == (0, RunState.SUCCEEDED)


def test_an_hour_of_retries_takes_no_time() -> None:
    hour = 3600 * 10**9
    plan = Plan.build([[]], policies=[Policy(attempts=4, backoff=hour, factor=1.0)])
    run = simulate(
        plan, [Lane("io", 1)], lambda element, attempt: Attempt(ends="succeeds" if attempt == 4 else "fails")
    )
    assert (run.ended, run.scheduler.attempt(0), run.state) == (3 * hour, 4, RunState.SUCCEEDED)


@pytest.mark.parametrize(
    ("script", "state", "ended"),
    [
        (Attempt(duration=500, stops=7), "timed_out", 107),
        (Attempt(duration=105, stops=7), "timed_out", 105),  # it ends of itself before it could stop
        (Attempt(duration=500, stops=10**10), "timed_out", 100 + 10**9),  # abandoned
        (Attempt(duration=100), "succeeded", 100),
        (Attempt(duration=500, told=False), "succeeded", 500),  # nobody knew that it had begun
        (Attempt(begins=False, ends="fails"), "failed", 0),
        (Attempt(begins=False, ends="crashes"), "crashed", 0),
        (Attempt(duration=50, ends="crashes"), "crashed", 50),
    ],
)
def test_scripts(script: Attempt, state: str, ended: int) -> None:
    long = script.stops >= 10**9
    plan = Plan.build([[]], policies=[Policy(timeout=100)])
    if long:
        script = Attempt(duration=10**11, stops=script.stops)
    run = simulate(plan, [Lane("io", 1)], lambda element, attempt: script)
    assert (run.states(), run.ended) == ([state], ended)


def test_a_lane_that_enforces_timeouts_stops_attempts_itself() -> None:
    plan = Plan.build([[]], policies=[Policy(timeout=100)])
    run = simulate(plan, [Lane("p", 1, enforces_timeouts=True)], lambda element, attempt: Attempt(duration=500))
    assert (run.states(), run.ended) == (["timed_out"], 100)


def test_an_attempt_that_is_stopped_before_it_begins() -> None:
    world = Simulation(seed=1, latency=100)
    run = world.start(Plan.build([[]]), [Lane("io", 1)], lambda element, attempt: Attempt(duration=50))
    begun: list[int] = []
    run.send(CancelRequested(), 1)  # at 1 the job has most likely not begun
    world.run()
    begun = [entry[3] for entry in run.history if entry[2] == 1]
    assert run.states() == ["cancelled"]
    assert begun == []


def test_runs_share_lanes_and_requests_reach_them() -> None:
    world = Simulation()
    lanes = [Lane("io", 1)]
    first = world.start(Plan.build([[], []]), lanes, lambda element, attempt: Attempt(duration=10))
    second = world.start(Plan.build([[], []]), lanes, lambda element, attempt: Attempt(duration=10), at=5)
    second.send(CancelRequested(), 25)
    world.run()
    assert (first.state, first.ended) == (RunState.SUCCEEDED, 20)
    assert (second.state, second.ended) == (RunState.CANCELLED, 25)
    assert second.states() == ["cancelled", "cancelled"]
    assert lanes[0].in_use == 0


def test_the_same_seed_repeats_and_another_differs() -> None:
    plan = Plan.build([[] for _ in range(20)], policies=[Policy(attempts=3, backoff=9, jitter=True)])

    def history(seed: int | None) -> list[tuple[int, int, int, int]]:
        return simulate(plan, [Lane("io", 4)], flaky, seed=seed, latency=30).history

    def flaky(element: int, attempt: int) -> Attempt:
        return Attempt(duration=5, ends="fails" if attempt < 3 else "succeeds")

    assert history(1) == history(1)
    assert history(1) != history(2)
    assert history(None) == history(None)


def test_a_run_that_can_never_end_is_reported() -> None:
    lane = Lane("io", 1)
    assert lane.take(99, 1) == (1, ())  # somebody outside holds the slot and never gives it back
    with pytest.raises(Stalled, match=r"run 0 at 0 ns: .*ready"):
        simulate(Plan.build([[]]), [lane])


def test_an_impossible_send_is_refused() -> None:
    world = Simulation()
    run = world.start(Plan.build([[]]), [Lane("io", 1)], lambda element, attempt: Attempt(duration=10))
    run.send(RunStarted(), 5)
    with pytest.raises(InvalidTransition):
        world.run()
    assert run.ended == NEVER
    assert run.state is None


def test_what_is_sent_into_the_past_arrives_now() -> None:
    seen: list[int] = []
    world = Simulation(on_step=lambda run, events, step, now: seen.append(now))
    run = world.start(Plan.build([[]]), [Lane("io", 1)], lambda element, attempt: Attempt(duration=10), at=7)
    world.run()
    run.send(SlotAvailable(), 3)
    world.run()
    assert seen == [7, 7, 17, 17]
