"""Runs that begin with what an earlier session had finished, and attempts that end in the cache."""

from __future__ import annotations

import pytest

from flowlane.core import Cached, CancelRequested, InvalidTransition, Policy, RunStarted, RunState, TaskState

from .play import Play, apart, began, returned, stopped


def test_what_was_done_is_told_and_what_is_left_is_run() -> None:
    #   0 ──▶ 1 ──▶ 2      0 and 1 were done
    play = Play([[], [0], [1]], inputs=[[], [0], [1]])
    assert play.at(5, RunStarted(restored=[0, 1])) == [
        "0#0 succeeded restored @5",
        "1#0 succeeded restored @5",
        "2#1 ready upstream_done @5",
        "release [0]",
        "launch [2] on 0",
    ]
    assert play.at(9, returned(2, 1, 6, 9)) == [
        "2#1 running started @6",
        "2#1 succeeded returned @9",
        "release [1, 2]",
        "finish succeeded",
    ]


def test_a_value_from_the_cache_of_an_earlier_session_stays_cached() -> None:
    play = Play([[], [0]], inputs=[[], [0]], pinned=[1])
    assert play.at(0, RunStarted(cached=[0], restored=[1])) == [
        "0#0 cached restored @0",
        "1#0 succeeded restored @0",
        "release [0]",
        "finish succeeded",
    ]
    assert play.scheduler.counts() == {TaskState.CACHED: 1, TaskState.SUCCEEDED: 1}


def test_a_run_of_which_everything_was_done_ends_at_once() -> None:
    play = Play(apart(2), pinned=[0, 1])
    assert play.at(0, RunStarted(restored=[0, 1]))[-1] == "finish succeeded"
    assert play.scheduler.finished is RunState.SUCCEEDED


def test_a_lost_value_is_made_again_above_a_task_that_stays_done() -> None:
    #       ┌─▶ 1      1 was done, 2 was not, and the value of 0 is lost
    #   0 ──┤
    #       └─▶ 2
    play = Play([[], [0], [0]], inputs=[[], [0], [0]])
    assert play.at(0, RunStarted(restored=[1])) == [
        "1#0 succeeded restored @0",
        "0#1 ready upstream_done @0",
        "release [1]",
        "launch [0] on 0",
    ]
    told = play.at(4, returned(0, 1, 1, 3))
    assert told[2:] == ["2#1 ready upstream_done @4", "launch [2] on 0"]
    assert play.at(9, returned(2, 1, 5, 8))[-2:] == ["release [0, 2]", "finish succeeded"]


def test_a_task_of_which_nobody_knows_stops_what_depends_on_it() -> None:
    #   0 ──▶ 1 ──▶ 2      0 was done, 1 had begun and must not run twice
    #         3 (apart)
    play = Play([[], [0], [1], []], inputs=[[], [0], [1], []])
    assert play.at(7, RunStarted(restored=[0], unknown=[1])) == [
        "0#0 succeeded restored @7",
        "1#0 unknown process_died @7",
        "2#0 upstream_failed upstream_failed @7",
        "3#1 ready upstream_done @7",
        "release [0]",
        "launch [3] on 0",
    ]
    assert play.scheduler.cause(2) == [1, 2]
    assert play.at(9, returned(3, 1, 8, 9))[-1] == "finish failed"


def test_an_attempt_whose_value_is_there_frees_its_slot_and_lets_others_begin() -> None:
    #   0 ──▶ 1
    play = Play([[], [0]], inputs=[[], [0]], slots=1)
    play.at(0, RunStarted())
    assert play.at(3, Cached(0, 1, 2)) == ["0#1 cached cache_hit @2", "1#1 ready upstream_done @3", "launch [1] on 0"]
    assert play.at(9, returned(1, 1, 4, 8))[-2:] == ["release [0, 1]", "finish succeeded"]
    assert play.lanes[0].in_use == 0


def test_a_value_that_is_found_counts_although_the_run_was_told_to_stop() -> None:
    play = Play([[], [0]], inputs=[[], [0]])
    play.at(0, RunStarted())
    play.at(1, CancelRequested())
    assert play.at(3, Cached(0, 1, 2)) == ["0#1 cached cache_hit @2", "release [0]", "finish cancelled"]


def test_news_from_the_cache_may_be_late() -> None:
    play = Play([[]])
    play.at(0, RunStarted())
    play.at(1, CancelRequested())
    play.at(2, stopped(0, 1, -1, 2))
    assert play.at(3, Cached(0, 1, 2)) == []
    assert play.scheduler.late == 1


def test_an_attempt_that_has_begun_cannot_end_in_the_cache() -> None:
    play = Play([[]])
    play.at(0, RunStarted())
    play.at(2, began(0, 1, 1))
    before = play.snapshot()
    with pytest.raises(InvalidTransition, match="this attempt has started"):
        play.scheduler.handle([Cached(0, 1, 3)], 3)
    assert play.snapshot() == before


def test_deadlines_of_a_cached_task_do_not_come_up_again() -> None:
    play = Play([[]], Policy(total_timeout=10))
    play.at(0, RunStarted())
    assert play.at(3, Cached(0, 1, 2)) == ["0#1 cached cache_hit @2", "release [0]", "finish succeeded"]
