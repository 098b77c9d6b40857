"""Events that come late are counted and ignored; events that cannot be are refused and change nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from flowlane.core import (
    NEVER,
    Abandoned,
    CancelRequested,
    Crashed,
    Failed,
    InvalidTransition,
    Lane,
    Policy,
    RunStarted,
    Succeeded,
    TimerFired,
)

from .play import Play, began, raised, returned, stopped, told

if TYPE_CHECKING:
    from flowlane.core import Event


def stage() -> Play:
    """A run in which there is a task in each state.

    0 succeeded · 1 running ─▶ 5 pending · 2 launched · 3 retrying after attempt 2 · 6 failed ─▶ 7 upstream_failed
    8 asked to stop · 9 launched on a lane with one slot, for which 4 waits
    """
    limits = [Policy(), Policy(attempts=3, backoff=1000), Policy(timeout=5)]
    play = Play(
        [[], [], [], [], [], [1], [], [6], [], []],
        policies=limits,
        policy=[0, 0, 0, 1, 0, 0, 0, 0, 2, 0],
        weight=[1, 1, 1, 1, 1, 1, 1, 1, 1, 9],
        lanes=[Lane("io", 10), Lane("cpu", 1)],
        lane=[0, 0, 0, 0, 1, 0, 0, 0, 0, 1],
    )
    play.at(0, RunStarted())
    play.at(1, began(1, 1, 1), began(8, 1, 1), raised(3, 1, 1, 1))
    play.at(1001, TimerFired())
    play.at(1002, raised(3, 2, 1002, 1002), returned(0, 1, 0, 2), raised(6, 1, 0, 3, again=False))
    return play


LATE: list[Event] = [
    began(0, 1, 5),
    returned(0, 1, 0, 5),  # told twice
    raised(0, 1, 0, 5),
    began(3, 1, 5),  # a past attempt
    stopped(3, 1, 1, 5),
    Abandoned(3, 2, 1, 5),  # the attempt before the backoff
    Crashed(6, 1, 0, 5),
]

IMPOSSIBLE: list[Event] = [
    RunStarted(),
    returned(-1, 1, 0, 1),
    returned(10, 1, 0, 1),
    began(10, 1, 1),
    returned(4, 1, 0, 1),  # ready, but never launched
    stopped(4, 1, NEVER, 1),
    began(1, 1, 1),  # twice
    returned(1, 2, 0, 1),  # an attempt to come
    returned(1, 0, 0, 1),
    raised(1, -1, 0, 1),
    returned(2, 1, NEVER, 5),  # a success that never began
    raised(5, 0, 0, 1),  # pending: no attempt at all
    raised(5, 1, 0, 1),
    began(7, 1, 1),  # upstream_failed: never had an attempt
    began(7, 0, 1),
    stopped(3, 3, 1, 5),  # the attempt after the backoff
    Failed(0, 2, 0, 1),
]


@pytest.mark.parametrize("event", LATE, ids=str)
def test_late_events_change_nothing_and_are_counted(event: Event) -> None:
    play = stage()
    before = play.snapshot()
    step = play.scheduler.handle([event], 2000)
    assert (step.transitions, step.commands, step.late) == ([], [], 1)
    after = play.snapshot()
    assert after.pop("late") == before.pop("late") + 1 == 1
    assert after == before


@pytest.mark.parametrize("event", IMPOSSIBLE, ids=str)
def test_impossible_events_are_refused_and_change_nothing(event: Event) -> None:
    play = stage()
    before = play.snapshot()
    with pytest.raises(InvalidTransition) as caught:
        play.scheduler.handle([event], 2000)
    assert play.snapshot() == before
    assert caught.value.event is event
    assert caught.value.step.transitions == []
    assert caught.value.step.commands == []
    assert caught.value.unhandled == []
    play.scheduler.check()


def test_the_story_says_what_is_known() -> None:
    play = stage()
    with pytest.raises(InvalidTransition) as caught:
        play.scheduler.handle([began(1, 1, 7)], 2000)
    assert caught.value.story == (
        "element 1: running, attempt 1, out, waits for 0 upstreams, ready 0 ns, launched 0 ns, started 1 ns, ended never"
    )
    assert str(caught.value) == (
        "Started(element=1, attempt=1, started=7): this attempt has started already\n  " + caught.value.story
    )
    with pytest.raises(
        InvalidTransition, match=r"element 8: running, attempt 1, out, asked to stop \(attempt_timeout\)"
    ):
        play.scheduler.handle([began(8, 1, 7)], 2000)
    with pytest.raises(InvalidTransition, match=r"element 5: pending, attempt 0, not out, waits for 1 upstreams"):
        play.scheduler.handle([began(5, 1, 7)], 2000)
    with pytest.raises(InvalidTransition, match=r"no such element\n  elements are 0\.\.9"):
        play.scheduler.handle([began(10, 1, 7)], 2000)


def test_what_came_before_in_the_batch_stays_done_and_travels_with_the_error() -> None:
    #   0 ─▶ 1      2
    play = Play([[], [0], []])
    play.at(0, RunStarted())
    batch: list[Event] = [returned(0, 1, 0, 5), returned(2, 7, 0, 5), raised(2, 1, 0, 5)]
    with pytest.raises(InvalidTransition) as caught:
        play.scheduler.handle(batch, 6)
    assert told(caught.value.step) == [
        "0#1 running started @0",
        "0#1 succeeded returned @5",
        "1#1 ready upstream_done @6",
        "release [0]",
        "launch [1] on 0",
    ]
    assert caught.value.unhandled == batch[2:]
    play.scheduler.check()
    # the run can go on from there
    play.at(7, *caught.value.unhandled)
    assert play.at(8, returned(1, 1, 6, 8))[-1] == "finish failed"


def test_the_same_holds_when_the_refused_event_is_the_first_or_the_last() -> None:
    for place in (0, 1):
        play = Play([[]])
        play.at(0, RunStarted())
        batch: list[Event] = [returned(0, 1, 0, 5)]
        batch.insert(place, RunStarted())
        with pytest.raises(InvalidTransition, match="the run has begun already") as caught:
            play.scheduler.handle(batch, 6)
        assert len(caught.value.step.commands) == (2 if place else 0)
        assert len(caught.value.unhandled) == 1 - place


def test_a_run_cannot_begin_after_it_was_cancelled() -> None:
    play = Play([[]])
    play.at(0, CancelRequested())
    with pytest.raises(InvalidTransition, match="the run has begun already"):
        play.scheduler.handle([RunStarted()], 1)


def test_events_before_the_run_has_begun_are_refused() -> None:
    early: list[Event] = [began(0, 1, 0), began(0, 0, 0), returned(0, 1, 0, 0), returned(0, 0, 0, 0)]
    for event in early:
        play = Play([[]])
        before = play.snapshot()
        with pytest.raises(InvalidTransition, match="no such attempt is out"):
            play.scheduler.handle([event], 0)
        assert play.snapshot() == before


def test_a_started_that_comes_after_the_end_of_its_attempt_is_late() -> None:
    play = Play([[]], Policy(attempts=2, timeout=10))
    play.at(0, RunStarted())
    play.at(5, raised(0, 1, 1, 4))
    step = play.scheduler.handle([began(0, 1, 1)], 6)
    assert (step.late, step.transitions, step.commands) == (1, [], [])
    assert play.scheduler.late == 1


def test_a_subclass_of_success_is_a_success() -> None:
    class Measured(Succeeded):
        pass

    play = Play([[]])
    play.at(0, RunStarted())
    assert play.at(1, Measured(0, 1, 0, 1))[-1] == "finish succeeded"


def test_a_start_that_was_told_stands_when_the_end_does_not_repeat_it() -> None:
    play = Play([[]])
    play.at(0, RunStarted())
    play.at(1, began(0, 1, 1))
    assert play.at(5, Succeeded(0, 1, NEVER, 5)) == ["0#1 succeeded returned @5", "release [0]", "finish succeeded"]
    assert play.scheduler.started_ns[0] == 1


def test_what_is_out_and_why_it_was_asked_can_be_looked_up() -> None:
    play = stage()
    awaited = [element for element in range(10) if play.scheduler.awaits(element, play.scheduler.attempt(element))]
    assert awaited == [1, 2, 8, 9]
    assert not play.scheduler.awaits(1, 2)
    assert not play.scheduler.awaits(0, 1)
    assert play.scheduler.asked(8) == "attempt_timeout"
    assert play.scheduler.asked(1) is None
    assert play.scheduler.asked(0) is None
