"""The plain course of a run: readiness, order, slots, values, the end."""

from __future__ import annotations

import pytest

from flowlane.core import (
    NEVER,
    Lane,
    Plan,
    RunStarted,
    RunState,
    Scheduler,
    TaskState,
)

from .play import Play, apart, began, raised, returned


def test_a_diamond_runs_in_order() -> None:
    #       ┌─▶ 1 ─┐
    #   0 ──┤      ├──▶ 3
    #       └─▶ 2 ─┘
    play = Play([[], [0], [0], [1, 2]], inputs=[[], [0], [0], [1, 2]])
    assert play.at(0, RunStarted()) == ["0#1 ready upstream_done @0", "launch [0] on 0"]
    assert play.at(3, began(0, 1, 2)) == ["0#1 running started @2"]
    assert play.at(9, returned(0, 1, 2, 8)) == [
        "0#1 succeeded returned @8",
        "1#1 ready upstream_done @9",
        "2#1 ready upstream_done @9",
        "launch [1, 2] on 0",
    ]
    assert play.at(20, returned(2, 1, 10, 19)) == ["2#1 running started @10", "2#1 succeeded returned @19"]
    assert play.at(30, returned(1, 1, 10, 29)) == [
        "1#1 running started @10",
        "1#1 succeeded returned @29",
        "3#1 ready upstream_done @30",
        "release [0]",
        "launch [3] on 0",
    ]
    assert play.at(40, returned(3, 1, 31, 39)) == [
        "3#1 running started @31",
        "3#1 succeeded returned @39",
        "release [1, 2, 3]",
        "finish succeeded",
    ]
    scheduler = play.scheduler
    assert scheduler.finished is RunState.SUCCEEDED
    assert scheduler.counts() == {TaskState.SUCCEEDED: 4}
    assert scheduler.cause(3) == [3]
    assert list(scheduler.ready_ns) == [0, 9, 9, 30]
    assert list(scheduler.launched_ns) == [0, 9, 9, 30]
    assert list(scheduler.started_ns) == [2, 10, 10, 31]
    assert list(scheduler.ended_ns) == [8, 29, 19, 39]


def test_nothing_happens_before_the_run_has_begun() -> None:
    #   0
    play = Play([[]])
    assert play.at(0) == []
    assert play.scheduler.finished is None
    assert play.scheduler.attempt(0) == 0


def test_an_empty_plan_succeeds_when_it_begins() -> None:
    play = Play([])
    assert play.at(0) == []
    assert play.at(1, RunStarted()) == ["finish succeeded"]
    assert play.at(2) == []  # once


def test_the_longest_way_to_the_end_goes_first_then_the_first_declared() -> None:
    #   0        rank 1
    #   1 ─▶ 4   rank 2
    #   2        rank 1
    #   3 ─▶ 5   rank 2
    play = Play([[], [], [], [], [1], [3]], slots=1)
    launched: list[str] = []
    now = 0
    steps = play.at(0, RunStarted())
    while play.scheduler.finished is None:
        (launch,) = [line for line in steps if line.startswith("launch")]
        launched.append(launch[8])
        now += 1
        steps = play.at(now, returned(int(launch[8]), 1, now, now))
    assert launched == ["1", "3", "0", "2", "4", "5"]


def test_a_weight_changes_the_order() -> None:
    #   0 (1)   1 (9)   2 (5)
    play = Play([[], [], []], slots=1, weight=[1, 9, 5])
    assert play.at(0, RunStarted())[-1] == "launch [1] on 0"
    assert play.at(1, returned(1, 1, 0, 1))[-1] == "launch [2] on 0"


def test_slots_of_each_lane_are_kept() -> None:
    #   lane 0 (1 slot):  0  1        lane 1 (2 slots):  2  3  4
    lanes = [Lane("io", 1), Lane("cpu", 2)]
    play = Play(apart(5), lanes=lanes, lane=[0, 0, 1, 1, 1])
    assert play.at(0, RunStarted())[-2:] == ["launch [0] on 0", "launch [2, 3] on 1"]
    assert [lane.in_use for lane in lanes] == [1, 2]
    assert play.at(1, returned(0, 1, 0, 1))[-1] == "launch [1] on 0"
    assert play.at(2, returned(3, 1, 0, 2), returned(2, 1, 0, 2))[-1] == "launch [4] on 1"
    assert [lane.in_use for lane in lanes] == [1, 1]


def test_slots_freed_in_a_batch_are_filled_at_its_end() -> None:
    #   0   1   2 (longest way)   with 2 slots, then all in one batch
    play = Play([[], [], [0], [2], [3]], slots=2)
    play.at(0, RunStarted())
    assert play.at(5, returned(1, 1, 0, 5), returned(0, 1, 0, 5))[-1] == "launch [2] on 0"


def test_a_value_is_released_when_its_last_reader_has_ended() -> None:
    #   0 ──▶ 1 (reads 0)      0 ──▶ 2 (only after 0)      0 ──▶ 3 (reads 0)
    play = Play([[], [0], [0], [0]], inputs=[[], [0], [], [0]])
    play.at(0, RunStarted())
    play.at(1, returned(0, 1, 0, 1))
    assert play.at(2, returned(1, 1, 1, 2))[-1] == "release [1]"
    assert play.at(3, raised(3, 1, 1, 3, again=False))[-1] == "release [0]"  # a reader that failed reads no more
    assert play.at(4, returned(2, 1, 1, 4))[-2:] == ["release [2]", "finish failed"]


def test_a_pinned_value_is_never_released() -> None:
    #   0 ──▶ 1      both belong to the result of the run
    play = Play([[], [0]], inputs=[[], [0]], pinned=[0, 1])
    steps = play.at(0, RunStarted()) + play.at(1, returned(0, 1, 0, 1)) + play.at(2, returned(1, 1, 1, 2))
    assert not [line for line in steps if line.startswith("release")]


def test_a_value_whose_reader_ended_first_is_released_as_it_appears() -> None:
    #   0 ─▶ 2 ◀─ 1      1 fails while 0 still runs: 2 will never read 0
    play = Play([[], [], [0, 1]], inputs=[[], [], [0, 1]])
    play.at(0, RunStarted())
    assert play.at(1, raised(1, 1, 0, 1, again=False)) == [
        "1#1 running started @0",
        "1#1 failed raised @1",
        "2#0 upstream_failed upstream_failed @1",
    ]
    assert play.at(2, returned(0, 1, 0, 2))[-2:] == ["release [0]", "finish failed"]


def test_the_times_of_an_attempt_that_was_not_told_are_taken_from_its_end() -> None:
    play = Play([[]])
    play.at(0, RunStarted())
    assert play.scheduler.started_ns[0] == NEVER
    assert play.at(9, returned(0, 1, 4, 8))[:2] == ["0#1 running started @4", "0#1 succeeded returned @8"]


def test_an_end_without_a_time_ended_now() -> None:
    #   0   1
    play = Play([[], []])
    play.at(0, RunStarted())
    assert play.at(9, returned(0, 1, 4, NEVER))[:2] == ["0#1 running started @4", "0#1 succeeded returned @9"]
    assert play.at(11, raised(1, 1, 4, NEVER, again=False))[1] == "1#1 failed raised @11"


def test_lanes_are_checked_against_the_plan() -> None:
    with pytest.raises(ValueError, match="uses lane 1, but only 1"):
        Scheduler(Plan.build([[]], lane=[1]), [Lane("io", 1)])
    lane = Lane("io", 1)
    with pytest.raises(ValueError, match="the same lane is given twice"):
        Scheduler(Plan.build([[], []], lane=[0, 1]), [lane, lane])


def test_a_step_that_does_nothing_is_empty() -> None:
    play = Play([[], [0]])
    play.at(0, RunStarted())
    assert play.at(1) == []
