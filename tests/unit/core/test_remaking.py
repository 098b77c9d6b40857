"""Values that are lost and made again: what the scheduler says, step by step."""

from __future__ import annotations

import pytest

from flowlane.core import (
    NEVER,
    CancelRequested,
    DrainRequested,
    Failed,
    InvalidTransition,
    Obstacle,
    Policy,
    ResultLost,
    RunStarted,
    Started,
    Succeeded,
    TimerFired,
)

from .play import Play


def done(element: int, attempt: int, at: int) -> Succeeded:
    return Succeeded(element, attempt, at, at)


def read_and_lost(every: Policy = Policy(), **plan: object) -> Play:  # noqa: B008 - frozen
    """0 ─▶ 1 ─▶ 2 where 2 is out and will not find what it reads; of 0, which 1 has read, the value was released."""
    play = Play([[], [0], [1]], every, inputs=[[], [0], [1]], **plan)
    play.at(0, RunStarted())
    play.at(1, done(0, 1, 1))
    play.at(2, done(1, 1, 2))
    return play


def test_who_made_it_runs_again_after_what_it_reads() -> None:
    play = read_and_lost()
    assert play.at(3, ResultLost(2, 1, 3, [1])) == [
        "2#1 pending result_lost @3",
        "1#1 pending result_lost @3",
        "0#1 pending result_lost @3",
        "0#2 ready upstream_done @3",
        "launch [0] on 0",
    ]
    assert play.at(4, done(0, 2, 4)) == [
        "0#2 running started @4",
        "0#2 succeeded returned @4",
        "1#2 ready upstream_done @4",
        "launch [1] on 0",
    ]
    assert play.at(5, done(1, 2, 5))[-2:] == ["release [0]", "launch [2] on 0"]
    assert play.at(6, done(2, 2, 6))[-1] == "finish succeeded"


def test_a_value_that_is_kept_for_others_is_read_again_as_it_is() -> None:
    #   0 ─▶ 1 ─▶ 2      0 is part of the result
    play = read_and_lost(pinned=[0])
    assert play.at(3, ResultLost(2, 1, 3, [1]))[-2:] == ["1#2 ready upstream_done @3", "launch [1] on 0"]


def test_what_is_there_again_already_is_only_tried_once_more() -> None:
    play = read_and_lost()
    assert play.at(3, ResultLost(2, 1, 3)) == [
        "2#1 pending result_lost @3",
        "2#2 ready upstream_done @3",
        "launch [2] on 0",
    ]


def test_no_attempt_of_the_policy_is_used_up() -> None:
    play = read_and_lost(Policy(attempts=2))
    play.at(3, ResultLost(2, 1, 3, [1]))
    play.at(4, done(0, 2, 4))
    play.at(5, done(1, 2, 5))

    assert "2#2 retrying raised @6" in play.at(6, Failed(2, 2, 6, 6, retryable=True))
    assert "2#3 failed raised @7" in play.at(7, Failed(2, 3, 7, 7, retryable=True))


def test_the_bound_is_the_policys() -> None:
    play = read_and_lost(Policy(remakes=1), pinned=[0])
    play.at(3, ResultLost(2, 1, 3, [1]))
    play.at(4, done(1, 2, 4))
    assert play.scheduler.obstacle([1]) == (1, Obstacle.OFTEN)
    assert play.at(5, ResultLost(2, 2, 5, [1]))[0] == "2#2 failed rejected @5"


def test_what_must_not_run_twice_stands_in_the_way_of_all_that_hangs_on_it() -> None:
    play = read_and_lost(policies=[Policy(), Policy(remakes=0)], policy=[1, 0, 0])
    assert play.scheduler.obstacle([1]) == (0, Obstacle.ONCE)
    assert play.at(3, ResultLost(2, 1, 3, [1]))[0] == "2#1 failed rejected @3"


@pytest.mark.parametrize(
    ("request_", "reason"), [(CancelRequested(), "cancel_requested"), (DrainRequested(), "drained")]
)
def test_a_run_that_stops_makes_nothing_again(request_: CancelRequested | DrainRequested, reason: str) -> None:
    play = read_and_lost()
    play.at(3, request_)
    assert play.at(4, ResultLost(2, 1, 4, [1]))[0] == f"2#1 cancelled {reason} @4"
    play = read_and_lost()
    play.at(3, ResultLost(2, 1, 3, [1]))
    told = play.at(4, request_)
    assert {f"1#1 cancelled {reason} @4", f"2#1 cancelled {reason} @4"} <= set(told)


def test_the_total_time_of_a_reader_goes_on_while_it_waits() -> None:
    play = read_and_lost(policies=[Policy(), Policy(total_timeout=10)], policy=[0, 0, 1])
    play.at(3, ResultLost(2, 1, 3, [1]))
    assert "2#1 timed_out total_timeout @12" in play.at(12, TimerFired())


def test_the_total_time_of_a_value_that_is_made_again_begins_anew() -> None:
    play = read_and_lost(policies=[Policy(), Policy(total_timeout=10)], policy=[0, 1, 0], pinned=[0])
    play.at(9, ResultLost(2, 1, 9, [1]))
    assert play.at(12, TimerFired()) == ["timer 19"]
    assert "interrupt [1] on 0: total_timeout" in play.at(19, TimerFired())


def test_news_of_the_attempt_that_was_lost_are_late_and_those_that_cannot_be_are_refused() -> None:
    play = read_and_lost()
    play.at(3, ResultLost(2, 1, 3, [1]))
    for event in (ResultLost(2, 1, 3, [1]), done(1, 1, 3), done(0, 1, 3)):
        assert play.at(4, event) == []
    assert play.scheduler.late == 3
    play.at(5, Started(0, 2, 5))
    with pytest.raises(InvalidTransition, match="has started"):
        play.at(6, ResultLost(0, 2, 6))
    with pytest.raises(InvalidTransition, match="no such element was lost"):
        play.at(6, ResultLost(2, 1, 6, [7]))


def test_a_value_that_fails_when_it_is_made_again_fails_its_readers() -> None:

    play = read_and_lost(pinned=[0])
    play.at(3, ResultLost(2, 1, 3, [1]))
    assert play.at(4, Failed(1, 2, NEVER, 4))[:2] == [
        "1#2 failed rejected @4",
        "2#1 upstream_failed upstream_failed @4",
    ]
