"""Slots shared by several runs: nobody takes more than there is, nobody is passed over, none is lost."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowlane.core import (
    CancelRequested,
    Launch,
    Plan,
    Policy,
    RunStarted,
    SlotAvailable,
    TimerFired,
)
from flowlane.core.lanes import Lane, Slots
from flowlane.testing import Attempt, Simulation

from .play import Play, apart, raised, returned

# ── the lane alone ────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_lane_needs_a_slot() -> None:
    with pytest.raises(ValueError, match="lane 'cpu' needs at least 1 slot, not 0"):
        Lane("cpu", 0)


def test_slots_are_taken_and_given_back() -> None:
    lane = Lane("cpu", 3)
    assert lane.take(1, 2) == (2, ())
    assert (lane.free, lane.in_use) == (1, 2)
    assert lane.take(1, 5) == (1, ())  # and 4 are waited for
    assert repr(lane) == "Lane('cpu', 3/3 in use, 1 waiting)"
    assert lane.give(1, 3) == ()  # nobody else waits
    assert (lane.free, lane.in_use) == (3, 0)
    lane.check()


def test_a_freed_slot_is_set_aside_for_the_one_who_waits() -> None:
    lane = Lane("cpu", 1)
    lane.take(1, 1)
    assert lane.take(2, 1) == (0, ())
    assert lane.give(1, 1) == (2,)
    assert lane.take(1, 1) == (0, ())  # nobody can overtake on the way
    assert lane.take(3, 1) == (0, ())
    assert lane.take(2, 1) == (1, ())
    assert lane.give(2, 1) == (1,)


def test_freed_slots_go_round_one_a_turn() -> None:
    lane = Lane("cpu", 4)
    lane.take(1, 4)
    lane.take(2, 9)
    lane.take(3, 1)
    lane.take(4, 9)
    assert lane.give(1, 4) == (2, 3, 4)
    assert [lane.take(token, 9)[0] for token in (2, 3, 4)] == [2, 1, 1]


def test_the_giver_has_its_turn_as_well_but_is_not_woken() -> None:
    lane = Lane("cpu", 2)
    lane.take(1, 5)
    lane.take(2, 5)
    assert lane.give(1, 2) == (2,)  # one for run 1 itself
    assert lane.take(1, 5)[0] == 1
    assert lane.take(2, 5)[0] == 1


def test_what_is_set_aside_beyond_the_wish_is_handed_on() -> None:
    lane = Lane("cpu", 2)
    lane.take(1, 2)
    lane.take(2, 2)
    lane.take(3, 1)
    assert lane.give(1, 2) == (2, 3)
    assert lane.take(3, 0) == (0, (2,))  # 3 wants nothing any more: 2 gets it
    assert lane.take(2, 2) == (2, ())
    lane.check()


def test_a_wish_that_shrank_leaves_the_line() -> None:
    lane = Lane("cpu", 1)
    lane.take(1, 1)
    lane.take(2, 1)
    lane.take(3, 1)
    assert lane.take(2, 0) == (0, ())
    assert lane.give(1, 1) == (3,)


def test_one_who_wants_nothing_any_more_is_not_served_later() -> None:
    lane = Lane("cpu", 1)
    lane.take(1, 1)
    lane.take(2, 2)
    lane.take(3, 1)
    assert lane.give(1, 1) == (2,)  # and 2 still waits for its second
    assert lane.take(2, 0) == (0, (3,))
    assert lane.take(3, 1) == (1, ())
    assert lane.give(3, 1) == ()
    assert lane.free == 1


def test_a_wish_that_grew_takes_what_was_set_aside_and_what_is_free() -> None:
    lane = Lane("cpu", 4)
    lane.take(1, 4)
    lane.take(2, 1)
    assert lane.give(1, 4) == (2,)
    assert lane.take(2, 2) == (2, ())
    assert (lane.free, lane.in_use) == (2, 2)


def test_a_wish_that_shrank_keeps_what_it_still_wants() -> None:
    lane = Lane("cpu", 4)
    lane.take(1, 4)
    lane.take(2, 3)
    assert lane.give(1, 3) == (2,)
    assert lane.take(2, 1) == (1, ())
    assert (lane.free, lane.in_use) == (2, 2)


def test_only_what_is_missing_is_waited_for() -> None:
    lane = Lane("cpu", 4)
    lane.take(1, 4)
    lane.take(2, 2)
    lane.give(1, 1)
    assert lane.take(2, 2) == (1, ())
    assert lane.give(1, 3) == (2,)  # one is set aside, the others are free
    assert lane.free == 2


def test_no_more_is_set_aside_than_was_wanted() -> None:
    lane = Lane("cpu", 4)
    lane.take(1, 4)
    lane.take(2, 3)
    assert lane.give(1, 4) == (2,)
    assert lane.free == 1


def test_leaving_hands_on_what_was_set_aside() -> None:
    lane = Lane("cpu", 2)
    lane.take(1, 2)
    lane.take(2, 2)
    lane.take(3, 2)
    assert lane.give(1, 2) == (2, 3)
    assert lane.leave(2) == (3,)
    assert lane.take(3, 2) == (2, ())
    assert lane.leave(3) == ()
    assert lane.in_use == 2


def test_leaving_without_anything_changes_nothing() -> None:
    lane = Lane("cpu", 1)
    assert lane.leave(7) == ()
    assert (lane.free, lane.in_use) == (1, 0)


@pytest.mark.parametrize("wait", [False, True])
def test_a_trade_is_a_gift_and_a_wish(wait: bool) -> None:
    for back in range(3):
        for wanted in range(4):
            both, apart = Lane("a", 2), Lane("a", 2)
            for lane in (both, apart):
                lane.take(1, 2)
                if wait:
                    lane.take(2, 1)
            traded, woken = both.trade(1, back, wanted)
            woken_first = apart.give(1, back)
            taken, woken_then = apart.take(1, wanted)
            assert (traded, list(woken)) == (taken, [*woken_first, *woken_then])
            known = [name for name in Slots.__slots__ if name != "name"]
            assert [getattr(both, name) for name in known] == [getattr(apart, name) for name in known]
            both.check()


def test_a_trade_uses_what_was_set_aside_first() -> None:
    lane = Lane("a", 1)
    lane.take(1, 1)
    lane.take(2, 1)
    lane.give(1, 1)
    assert lane.trade(2, 0, 1) == (1, [])
    assert lane.in_use == 1
    assert lane.trade(1, 0, 1) == (0, ())  # nobody else waits, and nothing is free: it waits itself
    assert lane.give(2, 1) == (1,)


def test_a_stretched_lane_grants_more_than_its_slots() -> None:
    lane = Lane("cpu", 2)
    assert lane.stretch(3) == ()
    assert (lane.slots, lane.capacity, lane.free) == (2, 5, 5)
    assert lane.take(1, 9) == (5, ())
    assert repr(lane) == "Lane('cpu', 5/5 in use, 1 waiting)"
    lane.check()


def test_stretching_wakes_who_waits_one_slot_a_turn() -> None:
    lane = Lane("cpu", 1)
    lane.take(1, 1)
    lane.take(2, 3)
    lane.take(3, 1)
    assert lane.stretch(3) == (2, 3)
    assert lane.take(3, 1) == (1, ())
    assert lane.take(2, 3) == (2, ())
    assert lane.stretch(3) == ()
    lane.check()


def test_a_lane_that_shrank_below_its_use_grants_nothing_until_it_fell_under() -> None:
    lane = Lane("cpu", 2)
    lane.stretch(3)
    lane.take(1, 5)
    assert lane.take(2, 2) == (0, ())
    assert lane.stretch(0) == ()
    assert (lane.in_use, lane.free) == (5, 0)
    assert lane.trade(1, 2, 1) == (0, [])  # down to 3: still too many
    assert lane.give(1, 1) == ()  # 2 of 2
    assert lane.give(1, 1) == (2,)
    assert lane.take(2, 2) == (1, ())
    lane.check()


def test_a_lane_in_debt_that_is_stretched_again_owes_less() -> None:
    lane = Lane("cpu", 1)
    lane.stretch(4)
    lane.take(1, 5)
    lane.stretch(1)  # owes 3
    lane.take(2, 1)
    assert lane.stretch(4) == ()  # owes nothing, and has nothing
    assert lane.stretch(5) == (2,)
    assert lane.in_use == 5
    lane.check()


def test_what_is_set_aside_survives_a_shrinking() -> None:
    lane = Lane("cpu", 1)
    lane.stretch(1)
    lane.take(1, 2)
    lane.take(2, 1)
    assert lane.give(1, 1) == (2,)
    lane.stretch(0)
    assert lane.take(2, 1) == (1, ())
    assert lane.in_use == 2
    lane.check()


def test_a_lane_shrinks_below_its_slots_but_keeps_one() -> None:
    lane = Lane("cpu", 3)
    lane.take(1, 3)
    assert lane.stretch(-2) == ()
    assert (lane.slots, lane.capacity, lane.in_use, lane.free) == (3, 1, 3, 0)
    lane.check()
    assert lane.take(2, 1) == (0, ())
    assert lane.give(1, 2) == ()  # down to 1 of 1
    assert lane.give(1, 1) == (2,)
    assert lane.take(2, 1) == (1, ())
    with pytest.raises(ValueError, match="'cpu' cannot be stretched by -3: of 3 slots 1 must be left"):
        lane.stretch(-3)
    assert lane.capacity == 1


def test_check_finds_debts_beside_free_slots() -> None:
    lane = Lane("a", 2)
    lane._debt = 1
    with pytest.raises(AssertionError):
        lane.check()


def test_check_finds_slots_that_came_from_nowhere() -> None:
    lane = Lane("a", 1)
    lane.give(1, 1)
    with pytest.raises(AssertionError):
        lane.check()
    lane = Lane("a", 1)
    lane.take(1, 1)
    lane.take(2, 1)
    lane.free = 1
    with pytest.raises(AssertionError):
        lane.check()
    lane.free = -1
    with pytest.raises(AssertionError):
        lane.check()


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    st.integers(1, 4),
    st.lists(
        st.tuples(st.integers(0, 3), st.sampled_from(["want", "end", "shrink", "leave", "stretch"]), st.integers(0, 4)),
        max_size=40,
    ),
)
def test_whatever_runs_do_no_slot_is_lost_and_nobody_sleeps_beside_a_free_one(
    slots: int, moves: list[tuple[int, str, int]]
) -> None:
    lane = Lane("a", slots)
    wish = Counter[int]()
    held = Counter[int]()
    woken: set[int] = set()

    def serve(token: int, back: int) -> None:
        woken.discard(token)
        set_aside = lane._granted.get(token, 0)
        taken, others = lane.trade(token, back, wish[token])
        held[token] += taken
        wish[token] -= taken
        woken.update(others)
        assert token not in others
        assert sum(held.values()) == lane.in_use
        assert lane.in_use <= lane.capacity or taken <= set_aside, "granted beyond the capacity"
        lane.check()

    for token, move, count in moves:
        if move == "want":
            wish[token] += count
            serve(token, 0)
        elif move == "end":
            back = min(count, held[token])
            held[token] -= back
            serve(token, back)
        elif move == "stretch":
            woken.update(lane.stretch(count))
            lane.check()
        elif move == "shrink":
            wish[token] = max(0, wish[token] - count)
            serve(token, 0)
        else:
            wish[token] = 0
            woken.update(lane.leave(token))
            woken.discard(token)
            lane.check()
    while woken:
        serve(woken.pop(), 0)
    assert lane.in_use == sum(held.values())
    assert lane.free == max(0, lane.capacity - lane.in_use)  # nothing is set aside for one who was not woken
    assert not (lane.free and any(wish.values())), "a run waits beside a free slot"


# ── runs on a lane ────────────────────────────────────────────────────────────────────────────────────────────────


def launches(runs: int, tasks: int, slots: int, starts: list[int] | None = None) -> list[int]:
    """The runs in the order of their launches, on one shared lane, each task taking 10."""
    order: list[int] = []
    world = Simulation(
        on_step=lambda run, events, step, now: order.extend(
            run.scheduler.token for command in step.commands if isinstance(command, Launch) for _ in command.elements
        )
    )
    lanes = [Lane("shared", slots)]
    for index in range(runs):
        at = starts[index] if starts else 0
        world.start(Plan.build(apart(tasks)), lanes, lambda element, attempt: Attempt(duration=10), at=at)
    world.run()
    return order


def test_two_runs_alternate_on_a_shared_lane() -> None:
    #   run 0: six tasks      run 1: six tasks      1 slot
    assert launches(2, 6, 1) == [0, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 1]  # run 0 was in line first


def test_a_run_that_comes_late_gets_its_share_at_once() -> None:
    #   run 0 has begun its second task when run 1 comes
    assert launches(2, 6, 1, starts=[0, 15]) == [0, 0, 0, 1, 0, 1, 0, 1, 0, 1, 1, 1]  # after one more turn of run 0


def test_three_runs_share_two_slots_evenly() -> None:
    order = launches(3, 10, 2)
    assert order[:2] == [0, 0]  # nobody else was there
    assert order[2:26] == [0, 1, 2] * 8


def pair(slots: int, first: int, second: int, policy: Policy | None = None) -> tuple[Lane, Play, Play]:
    lane = Lane("shared", slots)
    every = policy or Policy()
    return lane, Play(apart(first), every, lanes=[lane], token=1), Play(apart(second), every, lanes=[lane], token=2)


def test_a_slot_given_back_wakes_the_run_that_waits() -> None:
    #   run 1: 0      run 2: 0      1 slot
    lane, one, two = pair(1, 1, 1)
    one.at(0, RunStarted())
    assert two.at(0, RunStarted()) == ["0#1 ready upstream_done @0"]
    assert one.at(5, returned(0, 1, 0, 5))[-2:] == ["wake [2]", "finish succeeded"]
    assert two.at(5, SlotAvailable()) == ["launch [0] on 0"]
    assert lane.in_use == 1


def test_any_event_lets_a_run_take_what_was_set_aside() -> None:
    lane, one, two = pair(1, 1, 1)
    one.at(0, RunStarted())
    two.at(0, RunStarted())
    assert one.at(5, returned(0, 1, 0, 5))[-2] == "wake [2]"
    assert two.at(6) == ["launch [0] on 0"]
    assert two.at(7, SlotAvailable()) == []  # the wake-up finds it done already
    assert lane.in_use == 1


def test_a_run_that_is_cancelled_hands_on_what_was_set_aside_for_it() -> None:
    #   run 1: 0 1      run 2: 0      1 slot
    lane, one, two = pair(1, 1, 1)
    three = Play([[]], lanes=[lane], token=3)
    one.at(0, RunStarted())
    two.at(0, RunStarted())
    three.at(0, RunStarted())
    assert one.at(5, returned(0, 1, 0, 5))[-2] == "wake [2]"
    assert two.at(6, CancelRequested()) == ["0#1 cancelled cancel_requested @6", "wake [3]", "finish cancelled"]
    assert three.at(7, SlotAvailable()) == ["launch [0] on 0"]
    assert two.at(8, SlotAvailable()) == []  # the wake-up that was on its way


def test_a_run_whose_waiting_task_expired_hands_on_what_was_set_aside_for_it() -> None:
    #   run 1: 0      run 2: 0 (total timeout 5)      run 3: 0      1 slot
    lane = Lane("shared", 1)
    one = Play([[]], lanes=[lane], token=1)
    two = Play(
        [[], []], policies=[Policy(total_timeout=5), Policy(total_timeout=99)], policy=[0, 1], lanes=[lane], token=2
    )
    three = Play([[]], lanes=[lane], token=3)
    for play in (one, two, three):
        play.at(0, RunStarted())
    assert one.at(4, returned(0, 1, 0, 4))[-2] == "wake [2]"
    assert two.at(5, TimerFired()) == ["0#1 timed_out total_timeout @5", "launch [1] on 0", "timer 99"]
    assert two.at(6, returned(1, 1, 5, 6))[-2:] == ["wake [3]", "finish failed"]
    assert three.at(6, SlotAvailable()) == ["launch [0] on 0"]


def test_a_run_that_fails_fast_hands_on_what_was_set_aside_for_it() -> None:
    #   run 1: 0 ✗ and 1 (waits)      run 2: 0 1      2 slots
    lane = Lane("shared", 2)
    one = Play([[], [], []], lanes=[lane], token=1, fail_fast=True)
    two = Play([[], []], lanes=[lane], token=2)
    one.at(0, RunStarted())
    two.at(0, RunStarted())
    steps = one.at(5, raised(0, 1, 0, 5, again=False))
    assert "2#1 cancelled fail_fast @5" in steps
    assert "wake [2]" in steps
    assert two.at(5, SlotAvailable()) == ["launch [0] on 0"]


def test_a_retry_hands_its_slot_to_the_other_run_meanwhile() -> None:
    lane, one, two = pair(1, 1, 1, Policy(attempts=2, backoff=100))
    one.at(0, RunStarted())
    two.at(0, RunStarted())
    assert one.at(5, raised(0, 1, 0, 5))[-2:] == ["wake [2]", "timer 105"]
    assert two.at(5, SlotAvailable())[-1] == "launch [0] on 0"
    assert lane.in_use == 1


def test_a_run_of_two_lanes_leaves_both() -> None:
    io, cpu = Lane("io", 1), Lane("cpu", 1)
    holder = Play([[], []], lanes=[io, cpu], lane=[0, 1], token=1)
    waiter = Play([[], []], lanes=[io, cpu], lane=[0, 1], token=2)
    third = Play([[], []], lanes=[io, cpu], lane=[0, 1], token=3)
    for play in (holder, waiter, third):
        play.at(0, RunStarted())
    holder.at(1, returned(0, 1, 0, 1), returned(1, 1, 0, 1))
    assert waiter.at(2, CancelRequested())[-2:] == ["wake [3]", "finish cancelled"]
    assert third.at(3, SlotAvailable()) == ["launch [0] on 0", "launch [1] on 1"]


def test_an_unknown_wake_up_is_harmless() -> None:
    play = Play([[]])
    assert play.at(0, SlotAvailable()) == []
    play.at(0, RunStarted())
    assert play.at(1, SlotAvailable()) == []
