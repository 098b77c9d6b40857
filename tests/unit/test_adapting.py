"""Adaptive slots of an engine, with a clock and a loop of the test's: samples in, slots stretched, changes told."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import pytest

from flowlane.core import Lane
from flowlane.core.limits import Limit
from flowlane.program import SlotBounds
from flowlane.runtime import adapting
from flowlane.runtime.adapting import Adapting, Change, Resized, summed_up

if TYPE_CHECKING:
    from collections.abc import Callable

    from flowlane.core.lanes import Slots

MS = 1_000_000


class World:
    """Time that the test moves, and a loop with one timer."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 10**12
        self.told: list[tuple[Resized, int]] = []
        self.woken: list[int] = []
        self.timer: tuple[int, Callable[[], None]] | None = None
        monkeypatch.setattr(adapting, "monotonic_ns", lambda: self.now)
        self.adapting = Adapting(self.woken.extend, lambda change, owner: self.told.append((change, owner)))
        self.adapting.attach(self)  # type: ignore[arg-type]  # a loop, as far as it needs one

    def call_later(self, seconds: float, function: Callable[[], None]) -> Any:
        assert self.timer is None
        self.timer = (self.now + round(seconds * 1e9), function)
        return self

    def cancel(self) -> None:
        self.timer = None

    def beat(self, late: int = 0) -> None:
        assert self.timer is not None
        due, function = self.timer
        self.timer = None
        self.now = due + late
        function()

    def second(self, slots: Slots, latency: int, ok: bool = True) -> None:
        """A second in which attempts that take `latency` fill all slots."""
        taken, _ = slots.take(0, slots.capacity)
        for _ in range(max(40, 8 * taken)):
            self.adapting.sample([slots], latency, ok)
        slots.give(0, taken)
        self.now += 1000 * MS
        self.adapting.decide()


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    return World(monkeypatch)


@pytest.mark.parametrize("made", [lambda: Lane("asyncio", 100), lambda: Limit("api", 100)])
def test_slots_come_down_to_where_a_queue_begins_and_go_up_to_it(world: World, made: Callable[[], Slots]) -> None:
    """A server that takes 10 ms and serves 12 at a time: with n of them, n/12 of that."""
    slots = made()
    world.adapting.add("lane", slots, SlotBounds(2, 100, 80))
    assert slots.capacity == 80
    for _ in range(60):
        world.second(slots, 10 * MS * max(12, slots.capacity) // 12)
    changes = [change.decision for change, _ in world.told]
    assert all(after.before == before.slots for before, after in itertools.pairwise(changes))
    assert changes[-1].slots == slots.capacity
    assert all(6 <= change.slots <= 24 for change in changes[-10:])
    slots.check()


def test_errors_shrink_and_whoever_waits_is_woken_when_slots_grow_again(world: World) -> None:
    lane = Lane("asyncio", 32)
    world.adapting.add("lane", lane, SlotBounds(2, 32, 16))
    world.second(lane, MS)
    world.second(lane, MS)
    before = lane.capacity
    world.second(lane, MS, ok=False)
    world.second(lane, MS, ok=False)
    assert lane.capacity < before
    assert "errors" in world.told[-1][0].decision.reason
    taken, _ = lane.take(0, lane.capacity)
    lane.take(7, 3)  # waits
    for _ in range(8):
        for _ in range(200):
            world.adapting.sample([lane], MS, True)
        world.now += 1000 * MS
        world.adapting.decide()
    assert 7 in world.woken
    lane.leave(7)
    lane.give(0, taken)
    assert lane.in_use == 0


def test_a_loop_that_is_late_shrinks_what_is_in_use_and_the_timer_ends_with_it(world: World) -> None:
    busy, idle = Lane("asyncio", 64), Lane("other", 64)
    for lane in (busy, idle):
        world.adapting.add("lane", lane, SlotBounds(2, 64, 20))
    busy.take(0, 5)
    world.adapting.begin()
    world.adapting.begin()  # one timer for all
    for _ in range(12):
        world.beat(late=80 * MS)
    assert busy.capacity < 20 == idle.capacity
    assert "event loop" in world.told[0][0].decision.reason
    busy.give(0, 5)
    world.beat()
    assert world.timer is None
    world.adapting.begin()
    world.adapting.stop()
    assert world.timer is None


def test_what_is_for_one_run_alone_goes_with_it(world: World) -> None:
    limit = Limit("own", 8)
    world.adapting.add("limit", limit, SlotBounds(1, 8, 8), owner=3)
    for _ in range(3):
        world.second(limit, MS)
    assert {owner for _, owner in world.told} == {3}
    assert world.adapting.any
    world.adapting.drop(4)
    assert world.adapting.any
    world.adapting.drop(3)
    assert not world.adapting.any
    world.adapting.sample([limit], MS, True)  # nobody's, and no harm


def test_changes_are_summed_up_for_each() -> None:
    changes = [
        Change("asyncio", 64, 30, "latency 2.1x of usual"),
        Change("limit api", 8, 4, "12% errors"),
        Change("asyncio", 30, 22, "latency 1.4x of usual"),
    ]
    assert summed_up(changes) == [
        "asyncio 64 → 22 slots: latency 1.4x of usual (the latest of 2 changes)",
        "limit api 8 → 4 slots: 12% errors",
    ]
    assert summed_up([]) == []
