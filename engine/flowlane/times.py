"""Where a run's time went. Pure arithmetic over a `Record`, done when somebody asks.

Two views. The *chain* goes back from the task that ended last, through the upstream that each was waiting for, and
books every moment of the run (`times_of`). The *occupancy* of an executor says how many of its slots were taken at any
time (`Occupancy`).
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from typing import TYPE_CHECKING, NamedTuple

from flowlane.runtime.measured import at
from flowlane.runtime.ports import NEVER

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from flowlane.record import Record

__all__ = ["Occupancy", "Times", "times_of", "way_back"]


class Times(NamedTuple):
    """Where a run's time went, in seconds that add up to its duration.

    Followed back from the task that ended last, through the upstream that each was waiting for: the chain that decided when the
    run was over. In a wide run with few slots that chain mostly waits for a slot; `utilisation` says how busy those were.

    work      executor → the latest attempts of tasks on the chain
    slot      executor → ready, waiting for a slot: more slots would have helped. An executor that is handed more jobs than
              it has slots keeps some waiting itself: that counts here by the share of its slots that were at work meanwhile
    retry     failed attempts and the backoff after them
    handover  from launch to start: queues of the executor, starting and waking workers
    engine    between the end of a task and the next being ready, start and end of the run included
    pickling  of handover and engine what went into encoding and decoding arguments and results, where it is measured
    """

    work: dict[str, float]
    slot: dict[str, float]
    retry: float
    handover: float
    engine: float
    pickling: float = 0.0


class Occupancy:
    """How many of `places` are taken over time, by (start, end) spans in ns; what is beyond the places does not count."""

    def __init__(self, spans: Iterable[tuple[int, int]], places: int) -> None:
        """O(n log n). Holds 40 bytes a span."""
        edges: list[int] = []  # a moment and what happens in it in one int: a third of the memory of a tuple
        for start, end in spans:
            if end > start:
                edges += (start << 1 | 1, end << 1)
        edges.sort()
        self._moments = array("q", [edge >> 1 for edge in edges])
        self._taken = array("i")  # places taken from each moment to the next
        self._areas = array("q")  # place-ns taken up to each moment
        inside = area = taken = before = 0
        for edge in edges:
            moment = edge >> 1
            area += taken * (moment - before)
            inside += 1 if edge & 1 else -1
            taken, before = min(inside, places), moment
            self._areas.append(area)
            self._taken.append(taken)

    @property
    def total(self) -> int:
        """Place-ns taken altogether."""
        return self._areas[-1] if self._areas else 0

    def between(self, start: int, end: int) -> int:
        """Place-ns taken from `start` to `end`."""
        return max(0, self._until(end) - self._until(start))

    def _until(self, moment: int) -> int:
        index = bisect_right(self._moments, moment) - 1
        return self._areas[index] + self._taken[index] * (moment - self._moments[index]) if index >= 0 else 0


def way_back(record: Record) -> Iterator[tuple[int, int]]:
    """(element, when its attempt ended, ns) of the chain that decided when the run was over, the last first.

    A map or a workflow is not in it, but for what it became; a task that returned work is, before that.
    """
    ended, roster, returned = record.ended_ns, record.roster, record.measured.returned
    last = max(range(len(ended)), key=ended.__getitem__, default=None)
    seen: set[int] = set()
    while last is not None and ended[last] != NEVER and last not in seen:
        seen.add(last)
        if not roster.became(last):
            if record.lane(last) >= 0:
                yield last, ended[last]
            for owner in roster.came_of(last):
                if owner in returned:
                    yield owner, returned[owner]
        last = max(roster.waited_for(last), key=ended.__getitem__, default=None)


def times_of(record: Record) -> Times:
    """Follow the chain back and book each of its moments; see Times."""
    lanes = record.lanes
    work = dict.fromkeys(lanes, 0)
    slot = dict.fromkeys(lanes, 0)
    retry = handover = engine = pickling = 0
    busy: dict[str, Occupancy] = {}
    reached = record.ended  # everything after this moment is accounted for
    for last, moment in way_back(record):
        lane = lanes[record.lane(last)]
        ended = min(reached, moment)
        after = reached - ended
        reached = ended
        # Each moment, clamped: a worker's reading of the clock may come before the loop's by a hair.
        if record.started_ns[last] != NEVER:
            span = max(0, reached - record.started_ns[last])
            work[lane] += span
            reached -= span
        handed = 0
        if record.launched_ns[last] != NEVER:
            handed = max(0, reached - record.launched_ns[last])
            if handed and lane in record.stretched:
                if lane not in busy:
                    busy[lane] = _busy(record, lane)
                behind = min(handed, busy[lane].between(reached - handed, reached) // record.slots[lane])
                slot[lane] += behind
                reached -= handed
                handed -= behind
            else:
                reached -= handed
        # Arguments are encoded and decoded before the start, results after the end.
        spent = at(record.measured.pickling, last) or 0
        of_handed = min(spent, handed)
        of_after = min(spent - of_handed, after)
        pickling += of_handed + of_after
        handover += handed - of_handed
        engine += after - of_after
        if record.ready_ns[last] != NEVER:
            span = max(0, reached - record.ready_ns[last])
            slot[lane] += span
            reached -= span
            span = max(0, reached - record.first_ready_ns.get(last, reached))
            retry += span
            reached -= span
    engine += max(0, reached - record.started)
    return Times(
        work={name: ns / 1e9 for name, ns in work.items()},
        slot={name: ns / 1e9 for name, ns in slot.items()},
        retry=retry / 1e9,
        handover=handover / 1e9,
        engine=engine / 1e9,
        pickling=pickling / 1e9,
    )


def _busy(record: Record, lane: str) -> Occupancy:
    number, lane_of = record.lanes.index(lane), record.lane
    spans = [
        span
        for element, span in enumerate(record.spans())
        if span[0] != NEVER != span[1] and lane_of(element) == number
    ]
    return Occupancy(spans, record.slots[lane])
