"""What happens to an attempt that did not simply return: retries, deadlines, crashes."""

from __future__ import annotations

import pytest

from flowlane.core import (
    NEVER,
    Abandoned,
    CancelRequested,
    Crashed,
    DrainRequested,
    Failed,
    Lane,
    Policy,
    RunStarted,
    TimerFired,
)

from .play import Play, apart, began, raised, returned, stopped

# ── retries ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_retry_waits_for_its_backoff_without_a_slot() -> None:
    #   0 (fails once)   1        1 slot
    play = Play([[], []], Policy(attempts=2, backoff=50), slots=1)
    assert play.at(0, RunStarted())[-1] == "launch [0] on 0"
    assert play.at(10, raised(0, 1, 1, 9)) == [
        "0#1 running started @1",
        "0#1 retrying raised @9",
        "launch [1] on 0",  # the slot goes to another task at once
        "timer 60",
    ]
    assert play.at(60, TimerFired()) == ["0#2 ready backoff_elapsed @60"]  # ready again, but the slot is taken
    assert play.at(70, returned(1, 1, 11, 70))[-1] == "launch [0] on 0"
    assert play.at(80, returned(0, 2, 71, 80))[-1] == "finish succeeded"


def test_backoffs_grow_and_attempts_run_out() -> None:
    play = Play([[]], Policy(attempts=4, backoff=10, factor=3.0, max_delay=50))
    play.at(0, RunStarted())
    now = 0
    for attempt, wait in ((1, 10), (2, 30), (3, 50)):
        assert play.at(now, raised(0, attempt, now, now))[-1] == f"timer {now + wait}"
        now += wait
        assert play.at(now, TimerFired()) == [f"0#{attempt + 1} ready backoff_elapsed @{now}", "launch [0] on 0"]
    assert play.at(now, raised(0, 4, now, now))[1:] == [f"0#4 failed raised @{now}", "finish failed"]


def test_a_retry_without_backoff_starts_in_the_same_step() -> None:
    play = Play([[]], Policy(attempts=2))
    play.at(0, RunStarted())
    assert play.at(5, raised(0, 1, 0, 5)) == [
        "0#1 running started @0",
        "0#1 retrying raised @5",
        "0#2 ready backoff_elapsed @5",
        "launch [0] on 0",
    ]


def test_jitter_is_drawn_once_for_each_backoff_that_has_it() -> None:
    #   0 (jitter)   1 (none)
    draws = [0.25]
    plain, shaken = Policy(attempts=2, backoff=100), Policy(attempts=2, backoff=100, jitter=True)
    play = Play([[], []], policies=(shaken, plain), policy=[0, 1], jitter=draws.pop)
    play.at(0, RunStarted())
    assert play.at(0, raised(0, 1, 0, 0))[-1] == "timer 25"
    assert not draws
    assert "timer" not in play.at(0, raised(1, 1, 0, 0))[-1]  # 100, after the 25 that is set


def test_jitter_without_a_draw_takes_the_full_delay() -> None:
    play = Play([[]], Policy(attempts=2, backoff=100, jitter=True))
    play.at(0, RunStarted())
    assert play.at(0, raised(0, 1, 0, 0))[-1] == "timer 100"


def test_an_error_the_policy_does_not_cover_is_final() -> None:
    play = Play([[]], Policy(attempts=5))
    play.at(0, RunStarted())
    assert play.at(5, raised(0, 1, 0, 5, again=False))[-2:] == ["0#1 failed raised @5", "finish failed"]


@pytest.mark.parametrize("attempts", [1, 2])
def test_an_attempt_refused_before_it_began(attempts: int) -> None:
    play = Play([[]], Policy(attempts=attempts))
    play.at(0, RunStarted())
    after = play.at(5, Failed(0, 1, NEVER, 5, retryable=True))
    if attempts == 1:
        assert after == ["0#1 failed rejected @5", "finish failed"]
    else:
        assert after == ["0#1 retrying rejected @5", "0#2 ready backoff_elapsed @5", "launch [0] on 0"]


@pytest.mark.parametrize("begun", [True, False])
def test_a_crash_is_retried_only_when_the_policy_says_so(begun: bool) -> None:
    started = 1 if begun else NEVER
    play = Play([[]], Policy(attempts=2))
    play.at(0, RunStarted())
    assert play.at(5, Crashed(0, 1, started, 5))[-2:] == ["0#1 crashed worker_died @5", "finish failed"]
    play = Play([[]], Policy(attempts=2, retry_crashes=True))
    play.at(0, RunStarted())
    poisoned = Play([[]], Policy(attempts=2, retry_crashes=True))
    poisoned.at(0, RunStarted())
    assert poisoned.at(5, Crashed(0, 1, started, 5, retryable=False))[-2:] == [
        "0#1 crashed worker_died @5",
        "finish failed",
    ]
    assert "0#1 retrying worker_died @5" in play.at(5, Crashed(0, 1, started, 5))
    assert play.at(9, Crashed(0, 2, started, 9))[-2:] == ["0#2 crashed worker_died @9", "finish failed"]


def test_ends_that_nobody_asked_for() -> None:
    #   0   1
    play = Play([[], []], Policy(attempts=3))
    play.at(0, RunStarted())
    assert play.at(5, Abandoned(0, 1, 0, 5))[-1] == "0#1 crashed worker_died @5"
    assert play.at(5, stopped(1, 1, 0, 5))[-2:] == ["1#1 failed raised @5", "finish failed"]


def test_the_columns_tell_of_the_latest_attempt_and_when_the_first_was_ready_is_kept() -> None:
    #   0 (two failed attempts)   1
    play = Play([[], []], Policy(attempts=3, backoff=10))
    play.at(1, RunStarted())
    play.at(8, raised(0, 1, 2, 7), returned(1, 1, 2, 7))
    play.at(18, TimerFired())
    play.at(20, Failed(0, 2, NEVER, 19, retryable=True))
    play.at(40, TimerFired())
    play.at(50, raised(0, 3, 41, 49))
    scheduler = play.scheduler
    columns = (scheduler.ready_ns[0], scheduler.launched_ns[0], scheduler.started_ns[0], scheduler.ended_ns[0])
    assert columns == (40, 40, 41, 49)
    assert scheduler.first_ready_ns == {0: 1}


def test_a_new_attempt_has_no_times_yet() -> None:
    #   0 (fails)   1        1 slot, which goes to 1 during the backoff
    play = Play(apart(2), Policy(attempts=2, backoff=10), slots=1)
    play.at(0, RunStarted())
    play.at(5, raised(0, 1, 1, 4))
    play.at(15, TimerFired())
    scheduler = play.scheduler
    columns = (scheduler.ready_ns[0], scheduler.launched_ns[0], scheduler.started_ns[0], scheduler.ended_ns[0])
    assert columns == (15, NEVER, NEVER, NEVER)


# ── the timeout of an attempt ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("attempts", [1, 2])
@pytest.mark.parametrize("covered", [False, True])
def test_an_attempt_over_its_timeout_is_interrupted(attempts: int, covered: bool) -> None:
    play = Play([[]], Policy(attempts=attempts, timeout=100, retry_timeouts=covered))
    play.at(0, RunStarted())
    assert play.at(7, began(0, 1, 5)) == ["0#1 running started @5", "timer 105"]
    assert play.at(106, TimerFired()) == ["interrupt [0] on 0: attempt_timeout"]
    assert play.lanes[0].in_use == 1  # until it has stopped
    after = play.at(110, stopped(0, 1, 5, 109))
    if attempts == 2 and covered:
        assert after == ["0#1 retrying attempt_timeout @109", "0#2 ready backoff_elapsed @110", "launch [0] on 0"]
    else:
        assert after == ["0#1 timed_out attempt_timeout @109", "finish failed"]


def test_an_attempt_that_ignores_the_interrupt_is_abandoned_as_timed_out() -> None:
    play = Play([[]], Policy(timeout=100))
    play.at(0, RunStarted())
    play.at(0, began(0, 1, 0))
    play.at(100, TimerFired())
    assert play.at(200, Abandoned(0, 1, 0, 200)) == ["0#1 timed_out attempt_timeout @200", "finish failed"]


def test_time_in_the_queue_and_backoff_do_not_count() -> None:
    #   0   1        1 slot: 1 starts at 500
    play = Play([[], []], Policy(attempts=2, backoff=300, timeout=100), slots=1)
    play.at(0, RunStarted())
    play.at(500, returned(0, 1, 0, 500))
    assert play.at(500, began(1, 1, 500))[-1] == "timer 600"
    assert play.at(550, raised(1, 1, 500, 550))[-1] == "timer 850"  # the backoff; the deadline of 600 is past
    play.at(850, TimerFired())
    assert play.at(850, began(1, 2, 850))[-1] == "timer 950"


def test_an_executor_that_keeps_deadlines_itself_gets_no_interrupt() -> None:
    lanes = [Lane("processes", 1, enforces_timeouts=True)]
    play = Play([[]], Policy(attempts=2, timeout=100, retry_timeouts=True), lanes=lanes)
    play.at(0, RunStarted())
    assert play.at(5, began(0, 1, 5)) == ["0#1 running started @5"]  # no timer
    assert play.at(200, TimerFired()) == []
    assert play.at(201, stopped(0, 1, 5, 105))[0] == "0#1 retrying attempt_timeout @105"
    assert play.at(400, stopped(0, 2, 205, 305))[-2:] == ["0#2 timed_out attempt_timeout @305", "finish failed"]


def test_an_executor_that_keeps_deadlines_stops_a_task_without_one_for_no_reason_of_ours() -> None:
    play = Play([[]], lanes=[Lane("processes", 1, enforces_timeouts=True)])
    play.at(0, RunStarted())
    assert play.at(9, stopped(0, 1, 1, 9))[-2:] == ["0#1 failed raised @9", "finish failed"]


def test_on_other_lanes_an_attempt_that_stopped_unasked_is_not_timed_out() -> None:
    play = Play([[]], Policy(timeout=100))
    play.at(0, RunStarted())
    assert play.at(9, stopped(0, 1, 1, 9))[-2:] == ["0#1 failed raised @9", "finish failed"]


def test_a_cancel_is_a_cancel_on_an_executor_that_keeps_deadlines() -> None:
    play = Play([[]], Policy(timeout=100), lanes=[Lane("processes", 1, enforces_timeouts=True)])
    play.at(0, RunStarted())
    play.at(1, CancelRequested())
    assert play.at(9, stopped(0, 1, 1, 9))[-2:] == ["0#1 cancelled cancel_requested @9", "finish cancelled"]


def test_an_interrupted_attempt_that_never_began_is_not_timed_out_by_its_executor() -> None:
    lanes = [Lane("processes", 1, enforces_timeouts=True)]
    play = Play([[]], Policy(timeout=100), lanes=lanes)
    play.at(0, RunStarted())
    assert play.at(9, stopped(0, 1, NEVER, 9)) == ["0#1 failed rejected @9", "finish failed"]


# ── news that cross an interrupt on its way ───────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("ended", "state"), [(99, "succeeded returned"), (100, "succeeded returned")])
def test_a_success_in_time_counts_even_when_it_is_told_after_the_deadline(ended: int, state: str) -> None:
    play = Play([[]], Policy(timeout=100))
    play.at(0, RunStarted())
    play.at(0, began(0, 1, 0))
    play.at(100, TimerFired())
    assert play.at(103, returned(0, 1, 0, ended))[0] == f"0#1 {state} @{ended}"


def test_a_success_after_the_deadline_is_timed_out_once_we_asked() -> None:
    play = Play([[]], Policy(timeout=100))
    play.at(0, RunStarted())
    play.at(0, began(0, 1, 0))
    play.at(100, TimerFired())
    assert play.at(103, returned(0, 1, 0, 101)) == ["0#1 timed_out attempt_timeout @101", "finish failed"]


def test_a_success_after_the_deadline_counts_when_nobody_had_asked() -> None:
    # The timer was late. The result is at hand and nothing was stopped: throwing it away would help nobody.
    play = Play([[]], Policy(timeout=100))
    play.at(0, RunStarted())
    play.at(0, began(0, 1, 0))
    assert play.at(150, returned(0, 1, 0, 140), TimerFired())[0] == "0#1 succeeded returned @140"


def test_a_failure_in_time_is_that_failure_and_not_a_timeout() -> None:
    play = Play([[]], Policy(attempts=2, timeout=100))  # errors are retried, timeouts are not
    play.at(0, RunStarted())
    play.at(0, began(0, 1, 0))
    assert play.at(101, TimerFired(), raised(0, 1, 0, 99)) == [
        "0#1 retrying raised @99",
        "0#2 ready backoff_elapsed @101",
        "launch [0] on 0",  # and no interrupt: it would hit the wrong attempt
    ]


def test_a_crash_in_time_is_a_crash() -> None:
    play = Play([[]], Policy(timeout=100))
    play.at(0, RunStarted())
    play.at(0, began(0, 1, 0))
    play.at(100, TimerFired())
    assert play.at(101, Crashed(0, 1, 0, 98))[0] == "0#1 crashed worker_died @98"


def test_a_failure_after_the_deadline_is_the_timeout() -> None:
    play = Play([[]], Policy(attempts=2, timeout=100))
    play.at(0, RunStarted())
    play.at(0, began(0, 1, 0))
    play.at(100, TimerFired())
    assert play.at(120, raised(0, 1, 0, 110))[0] == "0#1 timed_out attempt_timeout @110"


# ── the total timeout ─────────────────────────────────────────────────────────────────────────────────────────────


def test_the_total_timeout_ends_a_task_that_waits_for_a_slot() -> None:
    #   0   1 ─▶ 2        1 slot, held by 1
    play = Play([[], [], [1]], policies=(Policy(), Policy(total_timeout=100)), policy=[1, 0, 0], slots=1)
    assert play.at(0, RunStarted()) == [
        "0#1 ready upstream_done @0",
        "1#1 ready upstream_done @0",
        "launch [1] on 0",
        "timer 100",
    ]
    assert play.at(100, TimerFired()) == ["0#1 timed_out total_timeout @100"]
    # its entry in the queue is still there; the slot must go to 2
    assert play.at(110, returned(1, 1, 0, 110))[-1] == "launch [2] on 0"
    assert play.at(120, returned(2, 1, 110, 120))[-1] == "finish failed"


def test_stale_entries_of_the_queue_are_skipped_between_live_ones() -> None:
    #   0 (weight 9)   1 (8, expires)   2 (7)   3 (6, expires)   4 (5)        1 slot, then 3
    play = Play(
        apart(5),
        policies=(Policy(), Policy(total_timeout=10)),
        policy=[0, 1, 0, 1, 0],
        weight=[9, 8, 7, 6, 5],
        slots=1,
    )
    play.at(0, RunStarted())
    assert play.at(10, TimerFired()) == ["1#1 timed_out total_timeout @10", "3#1 timed_out total_timeout @10"]
    assert play.at(11, returned(0, 1, 0, 11))[-1] == "launch [2] on 0"
    assert play.at(12, returned(2, 1, 11, 12))[-1] == "launch [4] on 0"
    assert play.at(13, returned(4, 1, 12, 13))[-1] == "finish failed"


def test_the_total_timeout_interrupts_a_task_that_runs_and_allows_no_retry() -> None:
    play = Play([[]], Policy(attempts=5, total_timeout=100, retry_timeouts=True))
    play.at(0, RunStarted())
    play.at(50, began(0, 1, 50))
    assert play.at(100, TimerFired()) == ["interrupt [0] on 0: total_timeout"]
    assert play.at(104, stopped(0, 1, 50, 103)) == ["0#1 timed_out total_timeout @103", "finish failed"]


@pytest.mark.parametrize("asked", [False, True])
def test_the_total_timeout_counts_from_the_moment_the_task_is_ready(asked: bool) -> None:
    #   0 ─▶ 1 (total timeout 100)
    play = Play([[], [0]], policies=(Policy(), Policy(total_timeout=100), Policy(timeout=1)), policy=[2 * asked, 1])
    play.at(0, RunStarted())
    if asked:  # the success of a task that was asked to stop takes another way through the code
        play.at(29, began(0, 1, 29))
        play.at(30, TimerFired())
    assert play.at(30, returned(0, 1, 29, 30))[-1] == "timer 130"
    assert play.at(130, TimerFired()) == ["interrupt [1] on 0: total_timeout"]


def test_the_total_timeout_interrupts_an_attempt_on_its_way_to_a_worker() -> None:
    play = Play([[]], Policy(total_timeout=100))
    play.at(0, RunStarted())
    assert play.at(100, TimerFired()) == ["interrupt [0] on 0: total_timeout"]
    assert play.at(101, stopped(0, 1, NEVER, 101)) == ["0#1 timed_out total_timeout @101", "finish failed"]


def test_the_total_timeout_ends_a_task_between_attempts() -> None:
    #   0 ─▶ 1
    play = Play([[], [0]], Policy(attempts=5, backoff=1000, total_timeout=100))
    play.at(0, RunStarted())
    assert "timer" not in play.at(10, raised(0, 1, 0, 9))[-1]  # 100 is set and comes first
    assert play.at(100, TimerFired()) == [
        "0#1 timed_out total_timeout @100",
        "1#0 upstream_failed upstream_failed @100",
        "finish failed",
    ]
    assert play.scheduler.ended_ns[0] == 9  # of its latest attempt


def test_the_total_timeout_counts_from_the_first_time_ready_over_all_attempts() -> None:
    play = Play([[]], Policy(attempts=9, backoff=40, total_timeout=100))
    play.at(0, RunStarted())
    play.at(30, raised(0, 1, 0, 30))
    play.at(70, TimerFired())  # the second attempt
    assert play.at(100, TimerFired()) == ["interrupt [0] on 0: total_timeout"]


@pytest.mark.parametrize(("ended", "line"), [(100, "succeeded returned"), (101, "timed_out total_timeout")])
def test_a_success_and_the_total_timeout(ended: int, line: str) -> None:
    play = Play([[]], Policy(total_timeout=100))
    play.at(0, RunStarted())
    play.at(0, began(0, 1, 0))
    play.at(100, TimerFired())
    assert play.at(102, returned(0, 1, 0, ended))[0] == f"0#1 {line} @{ended}"


def test_a_failure_before_the_total_timeout_has_no_time_for_another_attempt() -> None:
    #   0   1        both fail at 99, both are told after 100; 1 has no attempt left
    policies = (Policy(attempts=2, total_timeout=100), Policy(total_timeout=100))
    play = Play([[], []], policies=policies, policy=[0, 1])
    play.at(0, RunStarted())
    play.at(0, began(0, 1, 0), began(1, 1, 0))
    play.at(100, TimerFired())
    assert play.at(102, raised(0, 1, 0, 99), raised(1, 1, 0, 99)) == [
        "0#1 timed_out total_timeout @99",
        "1#1 failed raised @99",
        "finish failed",
    ]


def test_the_total_timeout_takes_the_retry_from_an_attempt_that_is_being_stopped() -> None:
    play = Play([[]], Policy(attempts=2, timeout=50, total_timeout=100, retry_timeouts=True))
    play.at(0, RunStarted())
    play.at(0, began(0, 1, 0))
    assert play.at(50, TimerFired()) == ["interrupt [0] on 0: attempt_timeout", "timer 100"]
    assert play.at(100, TimerFired()) == []  # asked already
    assert play.at(110, stopped(0, 1, 0, 110)) == ["0#1 timed_out total_timeout @110", "finish failed"]


# ── timers: set once, deleted lazily ──────────────────────────────────────────────────────────────────────────────


def test_the_deadline_of_a_past_attempt_does_not_touch_the_next() -> None:
    play = Play([[]], Policy(attempts=2, timeout=100))
    play.at(0, RunStarted())
    play.at(0, began(0, 1, 0))
    play.at(90, raised(0, 1, 0, 90))
    assert play.at(95, began(0, 2, 95))[-1] == "timer 195"
    assert play.at(100, TimerFired()) == ["timer 195"]  # the old timer fires all the same


def test_a_deadline_whose_attempt_has_gone_is_dropped() -> None:
    play = Play([[]], Policy(attempts=2, backoff=500, timeout=100))
    play.at(0, RunStarted())
    play.at(0, began(0, 1, 0))
    assert play.at(90, raised(0, 1, 0, 90)) == ["0#1 retrying raised @90", "timer 590"]
    assert play.at(100, TimerFired()) == ["timer 590"]  # the one that was set before, on its way already
    assert play.at(590, TimerFired()) == ["0#2 ready backoff_elapsed @590", "launch [0] on 0"]


def test_a_stale_deadline_below_the_top_is_met_and_does_nothing() -> None:
    #   0 (deadline 50)   1 (deadline 100, ends, is retried and is out again by then)   2 (deadline 300)
    limits = [Policy(attempts=2, timeout=ns) for ns in (50, 100, 300)]
    play = Play(apart(3), policies=limits, policy=[0, 1, 2])
    play.at(0, RunStarted())
    play.at(0, began(0, 1, 0), began(1, 1, 0), began(2, 1, 0))
    play.at(10, raised(1, 1, 0, 10))
    play.at(20, began(1, 2, 20))  # deadline 120
    assert play.at(110, TimerFired()) == ["interrupt [0] on 0: attempt_timeout", "timer 120"]


def test_the_backoff_of_a_task_that_ended_meanwhile_does_not_bring_it_back() -> None:
    #   0 (backoff until 200, total timeout 100)   1
    play = Play([[], []], policies=(Policy(attempts=2, backoff=200, total_timeout=100), Policy()), policy=[0, 1])
    play.at(0, RunStarted())
    play.at(0, raised(0, 1, 0, 0))
    assert play.at(100, TimerFired()) == ["0#1 timed_out total_timeout @100"]
    assert play.at(200, TimerFired()) == []


def test_two_timers_of_one_instant_where_the_first_ends_the_task() -> None:
    #   0: backoff and total timeout both end at 100; 1 keeps the run going
    play = Play(
        [[], []], policies=(Policy(attempts=2, backoff=100, total_timeout=100), Policy()), policy=[0, 1], slots=2
    )
    play.at(0, RunStarted())
    play.at(0, raised(0, 1, 0, 0))
    # the retry comes first and is launched in the same step, but its time is over: it may not begin
    assert play.at(100, TimerFired()) == ["0#2 ready backoff_elapsed @100", "0#2 timed_out total_timeout @100"]


def test_no_timer_is_set_for_tasks_that_ended() -> None:
    #   0 (deadline 100)   1 (deadline 300)
    play = Play([[], []], policies=(Policy(timeout=100), Policy(timeout=300)), policy=[0, 1])
    play.at(0, RunStarted())
    assert play.at(0, began(0, 1, 0), began(1, 1, 0))[-1] == "timer 100"
    assert play.at(50, returned(0, 1, 0, 50))[-1] == "timer 300"


def test_a_timer_is_set_once_and_again_only_when_it_changes() -> None:
    #   0 (deadline 100)   1 (deadline 300)
    play = Play([[], []], policies=(Policy(timeout=100), Policy(timeout=300)), policy=[0, 1])
    play.at(0, RunStarted())
    assert play.at(0, began(0, 1, 0))[-1] == "timer 100"
    assert play.at(1, began(1, 1, 1)) == ["1#1 running started @1"]
    assert play.at(2) == []


def test_a_timer_that_fires_early_is_set_again() -> None:
    play = Play([[]], Policy(timeout=100))
    play.at(0, RunStarted())
    play.at(0, began(0, 1, 0))
    assert play.at(99, TimerFired()) == ["timer 100"]


def test_a_task_without_limits_needs_no_timer() -> None:
    play = Play([[]], Policy(attempts=3))
    assert not [line for line in [*play.at(0, RunStarted()), *play.at(0, began(0, 1, 0))] if "timer" in line]


def test_a_task_that_ends_unheard_needs_no_timer() -> None:
    # thousands of short tasks with a timeout must not fill the heap
    play = Play([[]], Policy(timeout=100))
    play.at(0, RunStarted())
    assert play.at(5, returned(0, 1, 1, 5))[-2:] == ["release [0]", "finish succeeded"]


def test_deadlines_do_nothing_to_an_attempt_that_was_asked_to_stop() -> None:
    play = Play([[]], Policy(timeout=100, total_timeout=200))
    play.at(0, RunStarted())
    play.at(0, began(0, 1, 0))
    assert play.at(50, CancelRequested()) == ["interrupt [0] on 0: cancel_requested", "timer 200"]
    assert play.at(100, TimerFired()) == ["timer 200"]
    assert play.at(200, TimerFired()) == []
    assert play.at(201, stopped(0, 1, 0, 201)) == ["0#1 cancelled cancel_requested @201", "finish cancelled"]


def test_deadlines_hold_while_the_run_drains() -> None:
    play = Play([[]], Policy(timeout=100))
    play.at(0, RunStarted())
    play.at(0, began(0, 1, 0))
    assert play.at(50, DrainRequested()) == []
    assert play.at(100, TimerFired()) == ["interrupt [0] on 0: attempt_timeout"]
