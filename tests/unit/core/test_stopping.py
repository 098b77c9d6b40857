"""Failures that spread, and runs that are told to stop: continue, fail_fast, cancel, drain."""

from __future__ import annotations

from flowlane.core import (
    NEVER,
    CancelRequested,
    Crashed,
    DrainRequested,
    Policy,
    RunStarted,
    RunState,
    TaskState,
    TimerFired,
)

from .play import Play, began, raised, returned, stopped

# ── on_failure = continue ─────────────────────────────────────────────────────────────────────────────────────────


def test_what_does_not_depend_on_a_failure_goes_on() -> None:
    #   0 ✗ ─▶ 1 ─▶ 2        3 ─▶ 4
    play = Play([[], [0], [1], [], [3]])
    play.at(0, RunStarted())
    assert play.at(5, raised(0, 1, 0, 4)) == [
        "0#1 running started @0",
        "0#1 failed raised @4",
        "1#0 upstream_failed upstream_failed @5",
        "2#0 upstream_failed upstream_failed @5",
    ]
    assert play.at(6, returned(3, 1, 0, 6))[-1] == "launch [4] on 0"
    assert play.at(7, returned(4, 1, 6, 7))[-1] == "finish failed"
    assert play.scheduler.cause(2) == [0, 1, 2]
    assert play.scheduler.cause(1) == [0, 1]
    assert play.scheduler.cause(0) == [0]


def test_the_way_from_the_root_cause_is_a_shortest_one() -> None:
    #   0 ✗ ─▶ 1 ─▶ 4
    #     └──▶ 2 ─▶ 3 ─▶ 4
    play = Play([[], [0], [0], [2], [1, 3]])
    play.at(0, RunStarted())
    assert [line[:3] for line in play.at(1, raised(0, 1, 0, 1))[2:-1]] == ["1#0", "2#0", "4#0", "3#0"]
    assert play.scheduler.cause(4) == [0, 1, 4]


def test_the_first_failure_is_the_root_cause() -> None:
    #   0 ✗ (second) ─▶ 2 ◀─ 1 ✗ (first)
    play = Play([[], [], [0, 1]])
    play.at(0, RunStarted())
    play.at(1, raised(1, 1, 0, 1))
    assert play.at(2, raised(0, 1, 0, 2)) == ["0#1 running started @0", "0#1 failed raised @2", "finish failed"]
    assert play.scheduler.cause(2) == [1, 2]


def test_an_upstream_that_succeeds_after_another_failed_starts_nothing() -> None:
    #   0 ─▶ 2 ◀─ 1 ✗
    play = Play([[], [], [0, 1]])
    play.at(0, RunStarted())
    play.at(1, raised(1, 1, 0, 1))
    assert play.at(2, returned(0, 1, 0, 2))[-2:] == ["release [0]", "finish failed"]
    assert play.scheduler.attempt(2) == 0


def test_a_timeout_and_a_crash_stop_their_downstream_too() -> None:
    #   0 ─▶ 1     2 ─▶ 3     4 ─▶ 5
    play = Play([[], [0], [], [2], [], [4]], policies=(Policy(), Policy(timeout=10)), policy=[0, 0, 1, 0, 0, 0])
    play.at(0, RunStarted())
    assert play.at(1, Crashed(0, 1, 0, 1))[-1] == "1#0 upstream_failed upstream_failed @1"
    play.at(2, began(2, 1, 2))
    play.at(12, TimerFired())
    assert play.at(13, stopped(2, 1, 2, 13))[-1] == "3#0 upstream_failed upstream_failed @13"
    assert play.at(14, returned(4, 1, 0, 14))[-1] == "launch [5] on 0"


# ── on_failure = fail_fast ────────────────────────────────────────────────────────────────────────────────────────


def test_fail_fast_interrupts_what_runs_and_cancels_the_rest() -> None:
    #   0 ✗ ─▶ 3      1 (runs)      2 (waits for a slot)      4 (between attempts)
    limits = [Policy(), Policy(attempts=2, backoff=100)]
    play = Play(
        [[], [], [], [0], []], policies=limits, policy=[0, 0, 0, 0, 1], weight=[9, 8, 1, 1, 7], slots=2, fail_fast=True
    )
    assert play.at(0, RunStarted())[-1] == "launch [0, 1] on 0"
    play.at(1, returned(1, 1, 0, 1))
    assert play.at(2, raised(4, 1, 1, 2))[-2:] == ["launch [2] on 0", "timer 102"]
    assert play.at(3, raised(0, 1, 0, 3)) == [
        "0#1 running started @0",
        "0#1 failed raised @3",
        "3#0 cancelled fail_fast @3",
        "4#1 cancelled fail_fast @3",
        "interrupt [2] on 0: fail_fast",
    ]
    assert play.at(4, stopped(2, 1, 3, 4)) == [
        "2#1 running started @3",
        "2#1 cancelled fail_fast @4",
        "finish failed",
    ]
    assert play.scheduler.ended_ns[4] == 2  # its latest attempt ended there; the run only stopped at 3


def test_fail_fast_waits_until_attempts_run_out() -> None:
    #   0 (retried)   1
    play = Play([[], []], Policy(attempts=2), fail_fast=True)
    play.at(0, RunStarted())
    assert not [line for line in play.at(1, raised(0, 1, 0, 1)) if "cancelled" in line or "interrupt" in line]
    assert "interrupt [1] on 0: fail_fast" in play.at(2, raised(0, 2, 1, 2))


def test_a_success_that_crosses_fail_fast_counts() -> None:
    #   0 ✗      1 ─▶ 2
    play = Play([[], [], [1]], fail_fast=True)
    play.at(0, RunStarted())
    assert play.at(5, raised(0, 1, 0, 5), returned(1, 1, 0, 4)) == [
        "0#1 running started @0",
        "0#1 failed raised @5",
        "2#0 cancelled fail_fast @5",
        "1#1 running started @0",
        "1#1 succeeded returned @4",
        "release [1]",
        "finish failed",  # and no interrupt: nobody is out
    ]


def test_a_total_timeout_fails_fast_as_well() -> None:
    #   0 (waits for the slot, expires)   1 (holds it)   2 (waits too)   3 (behind 0)
    play = Play(
        [[], [], [], [0]],
        policies=(Policy(total_timeout=10), Policy()),
        policy=[0, 1, 1, 1],
        weight=[1, 9, 1, 1],
        slots=1,
        fail_fast=True,
    )
    play.at(0, RunStarted())
    assert play.at(10, TimerFired()) == [
        "0#1 timed_out total_timeout @10",
        "2#1 cancelled fail_fast @10",
        "3#0 cancelled fail_fast @10",
        "interrupt [1] on 0: fail_fast",
    ]
    assert play.at(11, stopped(1, 1, 0, 11))[-1] == "finish failed"


def test_two_tasks_whose_total_time_ends_together_under_fail_fast() -> None:
    #   0, 1 (both wait and expire)   2 (holds the slot)
    limits = (Policy(total_timeout=10), Policy())
    play = Play([[], [], []], policies=limits, policy=[0, 0, 1], weight=[1, 1, 9], slots=1, fail_fast=True)
    play.at(0, RunStarted())
    assert play.at(10, TimerFired())[:2] == ["0#1 timed_out total_timeout @10", "1#1 cancelled fail_fast @10"]


def test_a_crash_or_a_timeout_of_an_attempt_fails_fast_as_well() -> None:
    #   0 (crashes)   1
    play = Play([[], []], fail_fast=True)
    play.at(0, RunStarted())
    assert play.at(1, Crashed(0, 1, 0, 1))[-1] == "interrupt [1] on 0: fail_fast"


# ── cancel ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_cancel_interrupts_what_is_out_and_cancels_the_rest() -> None:
    #   0 (running)   1 (launched, not begun)   2 (waits for a slot)   3 (behind 0)   4 (between attempts)
    play = Play([[], [], [], [0], []], Policy(attempts=2, backoff=100), weight=[5, 4, 1, 1, 9], slots=2)
    play.at(0, RunStarted())
    play.at(1, raised(4, 1, 0, 1), began(0, 1, 0))
    assert play.at(3, CancelRequested()) == [
        "2#1 cancelled cancel_requested @3",
        "3#0 cancelled cancel_requested @3",
        "4#1 cancelled cancel_requested @3",
        "interrupt [0, 1] on 0: cancel_requested",
    ]
    assert play.at(4, stopped(1, 1, NEVER, 4)) == ["1#1 cancelled cancel_requested @4"]
    assert play.at(5, stopped(0, 1, 0, 5)) == ["0#1 cancelled cancel_requested @5", "finish cancelled"]


def test_a_success_in_the_race_after_cancel_counts_and_starts_nothing() -> None:
    #   0 ─▶ 1
    play = Play([[], [0]], inputs=[[], [0]])
    play.at(0, RunStarted())
    assert play.at(3, CancelRequested()) == [
        "1#0 cancelled cancel_requested @3",
        "interrupt [0] on 0: cancel_requested",
    ]
    assert play.at(4, returned(0, 1, 1, 4)) == [
        "0#1 running started @1",
        "0#1 succeeded returned @4",
        "release [0]",
        "finish cancelled",
    ]


def test_a_cancelled_run_in_which_everything_succeeded_has_succeeded() -> None:
    play = Play([[]])
    play.at(0, RunStarted())
    play.at(1, CancelRequested())
    assert play.at(2, returned(0, 1, 0, 2))[-1] == "finish succeeded"


def test_a_task_that_fails_because_it_was_cancelled_is_cancelled_and_not_retried() -> None:
    play = Play([[]], Policy(attempts=5))
    play.at(0, RunStarted())
    play.at(1, CancelRequested())
    assert play.at(2, raised(0, 1, 0, 2)) == [
        "0#1 running started @0",
        "0#1 cancelled cancel_requested @2",
        "finish cancelled",
    ]


def test_a_second_cancel_asks_nobody_twice() -> None:
    play = Play([[]])
    play.at(0, RunStarted())
    assert play.at(1, CancelRequested(), CancelRequested()) == ["interrupt [0] on 0: cancel_requested"]
    assert play.at(2, CancelRequested()) == []


def test_cancel_before_the_run_has_begun_ends_it() -> None:
    #   0 ─▶ 1
    play = Play([[], [0]])
    assert play.at(0, CancelRequested()) == [
        "0#0 cancelled cancel_requested @0",
        "1#0 cancelled cancel_requested @0",
        "finish cancelled",
    ]


def test_requests_after_the_end_change_nothing() -> None:
    play = Play([[]])
    play.at(0, RunStarted())
    play.at(1, returned(0, 1, 0, 1))
    assert play.at(2, CancelRequested(), DrainRequested(), TimerFired()) == []
    assert play.scheduler.finished is RunState.SUCCEEDED


def test_a_run_that_had_failed_and_is_cancelled_is_cancelled() -> None:
    #   0 ✗   1
    play = Play([[], []])
    play.at(0, RunStarted())
    play.at(1, raised(0, 1, 0, 1))
    play.at(2, CancelRequested())
    assert play.at(3, stopped(1, 1, 0, 3))[-1] == "finish cancelled"


def test_a_cancel_after_fail_fast_does_not_rename_the_end() -> None:
    #   0 ✗   1
    play = Play([[], []], fail_fast=True)
    play.at(0, RunStarted())
    play.at(1, raised(0, 1, 0, 1))
    assert play.at(2, CancelRequested()) == []  # 1 is asked already
    assert play.at(3, stopped(1, 1, 0, 3))[-2:] == ["1#1 cancelled fail_fast @3", "finish failed"]


def test_an_attempt_stopped_for_its_timeout_is_not_retried_in_a_cancelled_run() -> None:
    play = Play([[]], Policy(attempts=3, timeout=10, retry_timeouts=True))
    play.at(0, RunStarted())
    play.at(0, began(0, 1, 0))
    assert play.at(10, TimerFired()) == ["interrupt [0] on 0: attempt_timeout"]
    assert play.at(11, CancelRequested()) == []  # it is asked already
    assert play.at(12, stopped(0, 1, 0, 12)) == [
        "0#1 retrying attempt_timeout @12",  # an attempt was left
        "0#1 cancelled cancel_requested @12",
        "finish cancelled",
    ]


# ── drain ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_drain_lets_what_is_out_end_and_begins_nothing() -> None:
    #   0 (running) ─▶ 3      1 (launched)      2 (waits for a slot)
    play = Play([[], [], [], [0]], weight=[5, 5, 1, 1], slots=2)
    play.at(0, RunStarted())
    play.at(1, began(0, 1, 0))
    assert play.at(2, DrainRequested()) == ["2#1 cancelled drained @2", "3#0 cancelled drained @2"]
    assert play.at(3, began(1, 1, 3), returned(0, 1, 0, 3)) == [
        "1#1 running started @3",
        "0#1 succeeded returned @3",
        "release [0]",
    ]
    assert play.at(4, returned(1, 1, 3, 4))[-1] == "finish interrupted"


def test_drain_then_cancel_stops_what_was_left_to_run() -> None:
    #   0 (running)   1 (behind 0)
    play = Play([[], [0]])
    play.at(0, RunStarted())
    assert play.at(1, DrainRequested()) == ["1#0 cancelled drained @1"]
    assert play.at(2, CancelRequested()) == ["interrupt [0] on 0: cancel_requested"]
    assert play.at(3, stopped(0, 1, 0, 3))[-2:] == ["0#1 cancelled cancel_requested @3", "finish cancelled"]


def test_cancel_then_drain_stays_a_cancel() -> None:
    play = Play([[], [0]])
    play.at(0, RunStarted())
    play.at(1, CancelRequested())
    assert play.at(2, DrainRequested()) == []
    assert play.at(3, stopped(0, 1, 0, 3))[-1] == "finish cancelled"


def test_a_failure_while_draining_is_kept_for_later_when_an_attempt_is_left() -> None:
    #   0 (an attempt left)   1 (none left)
    play = Play([[], []], policies=(Policy(attempts=2), Policy()), policy=[0, 1])
    play.at(0, RunStarted())
    play.at(1, DrainRequested())
    assert play.at(2, raised(0, 1, 0, 2)) == [
        "0#1 running started @0",
        "0#1 retrying raised @2",
        "0#1 cancelled drained @2",
    ]
    assert play.at(3, raised(1, 1, 0, 3))[-2:] == ["1#1 failed raised @3", "finish interrupted"]


def test_drain_ends_tasks_between_attempts() -> None:
    play = Play([[]], Policy(attempts=2, backoff=100))
    play.at(0, RunStarted())
    play.at(1, raised(0, 1, 0, 1))
    assert play.at(2, DrainRequested()) == ["0#1 cancelled drained @2", "finish interrupted"]


def test_a_drained_run_in_which_nothing_was_left_out_ends_as_it_would_have() -> None:
    for outcome, end in ((returned(0, 1, 0, 2), "finish succeeded"), (raised(0, 1, 0, 2), "finish failed")):
        play = Play([[]])
        play.at(0, RunStarted())
        play.at(1, DrainRequested())
        assert play.at(2, outcome)[-1] == end


def test_fail_fast_while_draining_interrupts_nobody() -> None:
    #   0 ✗   1
    play = Play([[], []], fail_fast=True)
    play.at(0, RunStarted())
    play.at(1, DrainRequested())
    assert play.at(2, raised(0, 1, 0, 2))[1:] == ["0#1 failed raised @2"]
    assert play.at(3, returned(1, 1, 0, 3))[-1] == "finish failed"


def test_counts_name_only_what_there_is() -> None:
    #   0 ✗ ─▶ 1      2
    play = Play([[], [0], []])
    play.at(0, RunStarted())
    play.at(1, raised(0, 1, 0, 1))
    assert play.scheduler.counts() == {TaskState.READY: 1, TaskState.FAILED: 1, TaskState.UPSTREAM_FAILED: 1}
