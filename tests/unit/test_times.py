"""Where the time went, by hand."""

from __future__ import annotations

from random import Random

import pytest

from flowlane.times import Occupancy, times_of

from .sample_record import MS, Made


def test_occupancy_counts_places_up_to_their_number() -> None:
    #   0----10
    #     5----15
    #     5--8      30-40
    held = Occupancy([(0, 10), (5, 15), (5, 8), (30, 40), (7, 7)], 2)
    assert held.total == 5 + 2 * 5 + 5 + 10
    assert held.between(0, 5) == 5
    assert held.between(5, 8) == 6  # three at once, two places
    assert held.between(12, 31) == 3 + 1
    assert held.between(-10, 100) == held.total
    assert held.between(50, 60) == 0
    assert Occupancy([], 2).total == Occupancy([], 2).between(0, 9) == 0


def test_occupancy_is_what_counting_every_moment_gives() -> None:
    draw = Random(7)
    for _ in range(100):
        spans = [
            (start, start + draw.randrange(12)) for start in [draw.randrange(40) for _ in range(draw.randrange(9))]
        ]
        places, low, high = draw.randrange(1, 4), draw.randrange(50), draw.randrange(50)
        held = Occupancy(spans, places)
        counted = sum(min(places, sum(s <= t < e for s, e in spans)) for t in range(low, high))
        assert held.between(low, high) == counted


def test_each_moment_is_booked_once() -> None:
    #   a --> b: ready 5 ms after a's end, launched 3 later, begun 2 later
    made = Made({"threads": 1})
    first = made.add("a", "threads", (1 * MS, 2 * MS, 4 * MS, 10 * MS))
    made.add("b", "threads", (15 * MS, 18 * MS, 20 * MS, 30 * MS), after=(first,))
    made.ended = 31 * MS
    times = times_of(made.record)
    assert times.work == {"threads": pytest.approx(0.016)}
    assert times.slot == {"threads": pytest.approx(0.004)}
    assert times.handover == pytest.approx(0.004)
    assert times.engine == pytest.approx(0.007)
    assert times.pickling == times.retry == 0


def test_waiting_behind_others_inside_an_executor_is_waiting_for_a_slot() -> None:
    #   one slot, both launched at 0:  a runs 10..50, b is begun at 60
    def run(*stretched: str) -> Made:
        made = Made({"processes": 1}, stretched=stretched)
        made.add("a", "processes", (0, 0, 10 * MS, 50 * MS))
        made.add("b", "processes", (0, 0, 60 * MS, 90 * MS))
        return made

    times = times_of(run("processes").record)
    assert times.work["processes"] == pytest.approx(0.030)
    assert times.slot["processes"] == pytest.approx(0.040)  # while a was at work
    assert times.handover == pytest.approx(0.020)  # the worker's start, and the way from a to b
    times = times_of(run().record)
    assert (times.slot["processes"], times.handover) == (0, pytest.approx(0.060))


def test_a_free_slot_is_no_waiting_for_a_slot() -> None:
    #   two slots, one at work: half of the wait is for the other
    made = Made({"processes": 2}, stretched=("processes",))
    made.add("a", "processes", (0, 0, 0, 40 * MS))
    made.add("b", "processes", (0, 0, 40 * MS, 80 * MS))
    times = times_of(made.record)
    assert (times.slot["processes"], times.handover) == (pytest.approx(0.020), pytest.approx(0.020))


def test_pickling_is_taken_out_of_what_it_was_a_part_of() -> None:
    #   5 ms before the start, 4 after the end; measured: 7
    made = Made({"processes": 1})
    made.add("a", "processes", (0, 0, 5 * MS, 10 * MS), pickling=7 * MS)
    made.ended = 14 * MS
    times = times_of(made.record)
    assert times.pickling == pytest.approx(0.007)
    assert (times.handover, times.engine) == (0, pytest.approx(0.002))
    made = Made({"processes": 1})
    made.add(
        "a", "processes", (0, 0, 5 * MS, 10 * MS), pickling=70 * MS
    )  # more than there is: overlapped with others' work
    times = times_of(made.record)
    assert sum(times.work.values()) + times.handover + times.engine + times.pickling == pytest.approx(0.010)
