"""Elements that are ready and wait for what they need: a slot of their lane, and what their task asks of limits.

Work is queued by lane and requirement, each queue a heap of ``rank << 40 | element``: so an exhausted limit blocks those that
ask for it and nobody else, and is never scanned past. A lane whose work needs a slot each and nothing more, which is nearly
every lane, is filled in one go. Otherwise the queues of a lane take turns by the rank of their first; the first that cannot have
its slots ends the filling, so that wide work is not overtaken for ever, and one that a limit refuses stops only those that
need this limit too.

What an element holds is taken when it leaves its queue and given back by its final event, whatever that is.

Several limits at once, without waiting in a circle. All runs claim limits in one order (that of their making, those with a rate
last). When one refuses, the run waits for that one, and what it has of those before it stays set aside for it; of those
behind it it wants nothing. So whoever waits holds only what comes before, and the last in that order is held by attempts
alone, which end. Lanes come after all limits: work that needs one slot asks for it before it claims anything, wide work when it
has its limits, which it then keeps; but not its turn at a rate, which would bar everybody else while a lane is full. In one
step a limit refuses once, since a run has one wish of each; what is not wished for in a step any more is left at its end.
"""

from __future__ import annotations

from heapq import heapify, heappop, heappush
from typing import TYPE_CHECKING, Final

from flowlane.core.messages import NEVER
from flowlane.core.plan import SLOT

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from flowlane.core.lanes import Lane
    from flowlane.core.limits import Limit
    from flowlane.core.plan import Requirement

__all__ = ["ELEMENT_BITS", "ELEMENT_MASK", "ReadyQueues"]

ELEMENT_BITS: Final = 40
ELEMENT_MASK: Final = (1 << ELEMENT_BITS) - 1


class ReadyQueues:
    """The queues of one run. `token` is its number on lanes and limits, which other runs share.

    queues  heaps, by queue
    freed   attempts of each queue that have ended in this step; their slots go back when it closes
    stale   entries of each queue whose element has ended meanwhile
    lane    by queue, the index of its lane
    woken   tokens of other runs for which something was set aside in this step
    due     when a rate has room again for who was refused in this step, or NEVER
    """

    def __init__(self, lanes: Sequence[Lane], limits: Sequence[Limit], token: int) -> None:
        self.lanes = list(lanes)
        self.limits = list(limits)
        self.token = token
        self.queues: list[list[int]] = []
        self.freed: list[int] = []
        self.stale: list[int] = []
        self.lane: list[int] = []
        self.requirement: list[Requirement] = []
        self.woken: list[int] = []
        self.due = NEVER
        self._numbers: dict[tuple[int, Requirement], int] = {}
        self._of_lane: list[list[int]] = [[] for _ in self.lanes]
        self._asked: set[int] = set()  # limits that this run waits for, or has something set aside of
        self._claims: list[tuple[tuple[int, int], ...]] = []  # by queue, (limit, weight) in the order of all runs
        # of the step under way
        self._refused: set[int] = set()
        self._wished: set[int] = set()
        self._kept: dict[
            int, int
        ] = {}  # limit → what is set aside of it for work that another limit, or the lane, refused
        for index in range(len(self.lanes)):
            self.number(index, SLOT)

    def number(self, lane: int, requirement: Requirement) -> int:
        """The queue of elements that run on `lane` and need this. Raises ValueError for a lane or limit there is not."""
        key = (lane, requirement)
        number = self._numbers.get(key)
        if number is not None:
            return number
        if lane >= len(self.lanes):
            raise ValueError(f"the plan uses lane {lane}, but only {len(self.lanes)} lanes are given")
        for index, _ in requirement.limits:
            if index >= len(self.limits):
                raise ValueError(f"the plan uses limit {index}, but only {len(self.limits)} limits are given")
        number = self._numbers[key] = len(self.queues)
        self.queues.append([])
        self.freed.append(0)
        self.stale.append(0)
        self.lane.append(lane)
        self.requirement.append(requirement)
        self._claims.append(tuple(sorted(requirement.limits, key=lambda claim: self.limits[claim[0]].order)))
        self._of_lane[lane].append(number)
        return number

    def add_lane(self, lane: Lane) -> int:
        """A further lane, for work that is added; its index."""
        self.lanes.append(lane)
        self._of_lane.append([])
        self.number(len(self.lanes) - 1, SLOT)
        return len(self.lanes) - 1

    def add_limit(self, limit: Limit) -> int:
        """A further limit; its index."""
        self.limits.append(limit)
        return len(self.limits) - 1

    def free(self, queue: int) -> None:
        """An attempt has ended: what it held can be had again."""
        self.freed[queue] += 1
        for index, weight in self.requirement[queue].limits:
            self.woken += self.limits[index].give(self.token, weight)

    def clear(self, keep: Callable[[int], bool]) -> None:
        """Forget all that waits, but for elements that `keep` holds for, and hand on what was set aside."""
        for number, queue in enumerate(self.queues):
            if queue:
                queue[:] = [key for key in queue if keep(key & ELEMENT_MASK)]
                heapify(queue)
            self.stale[number] = 0
        self.leave(all(not queue for queue in self.queues))

    def leave(self, everything: bool = True) -> None:
        """Want nothing any more."""
        for index in self._asked:
            self.woken += self.limits[index].leave(self.token)
        self._asked.clear()
        if everything:
            for lane in self.lanes:
                self.woken += lane.leave(self.token)

    def fill(self, lane: int, at: int, is_ready: Callable[[int], bool]) -> list[int]:
        """Give back what has come free on a lane, and take what its work can have: the elements to launch, in order."""
        numbers = self._of_lane[lane]
        if len(numbers) == 1:
            return self._fill_plain(numbers[0], is_ready)
        return self._fill_by_turns(lane, numbers, at, is_ready)

    def settle(self) -> None:
        """After all lanes were filled: leave the limits that nothing in the queues asked for in this step."""
        if not self.limits:
            return
        for index in sorted(self._asked - self._wished):
            self.woken += self.limits[index].leave(self.token)
        self._asked &= self._wished
        self._wished.clear()
        self._refused.clear()
        self._kept.clear()

    def idle(self, lane: int) -> bool:
        """Whether there is nothing to do on a lane."""
        return all(not self.queues[number] and not self.freed[number] for number in self._of_lane[lane])

    def _fill_plain(self, number: int, is_ready: Callable[[int], bool]) -> list[int]:
        queue, back, stale = self.queues[number], self.freed[number], self.stale[number]
        if not queue and not back:
            return []
        slots, others = self.lanes[self.lane[number]].trade(self.token, back, len(queue) - stale)
        self.freed[number] = 0
        if others:
            self.woken += others
        if not stale:
            return [heappop(queue) & ELEMENT_MASK for _ in range(slots)]
        elements: list[int] = []
        while len(elements) < slots:
            element = heappop(queue) & ELEMENT_MASK
            if is_ready(element):
                elements.append(element)
            else:
                self.stale[number] -= 1
        return elements

    def _fill_by_turns(self, index: int, numbers: list[int], at: int, is_ready: Callable[[int], bool]) -> list[int]:
        lane, queues, token = self.lanes[index], self.queues, self.token
        back = 0
        for number in numbers:
            back += self.freed[number] * min(self.requirement[number].slots, lane.slots)
            self.freed[number] = 0
        if back:
            self.woken += lane.give(token, back)
        turns: list[tuple[int, int]] = []
        for number in numbers:
            self._next_turn(number, turns, is_ready)
        refused = self._refused
        elements: list[int] = []
        waiting = False
        while turns:
            _, number = heappop(turns)
            requirement = self.requirement[number]
            if refused and any(limit in refused for limit, _ in requirement.limits):
                continue
            if requirement.slots == 1 and not lane.has_one(token):
                _, others = lane.take(token, 1)  # to wait for it
                self.woken += others
                self._stay([number, *[other for _, other in turns]])
                waiting = True
                break
            if not self._claim(number, at):
                continue
            if requirement.slots == 1:
                taken, others = lane.take(token, 1)
            else:
                taken, others = lane.take_whole(token, min(requirement.slots, lane.slots))
            self.woken += others
            if not taken:
                self._keep(self._claims[number], turns=False)
                self._stay([other for _, other in turns])
                waiting = True
                break
            elements.append(heappop(queues[number]) & ELEMENT_MASK)
            self._next_turn(number, turns, is_ready)
        if not waiting:
            self.woken += lane.leave(token)  # what was set aside for work that limits hold back
        return elements

    def _next_turn(self, number: int, turns: list[tuple[int, int]], is_ready: Callable[[int], bool]) -> None:
        queue = self.queues[number]
        while queue and self.stale[number] and not is_ready(queue[0] & ELEMENT_MASK):
            heappop(queue)
            self.stale[number] -= 1
        if queue:
            heappush(turns, (queue[0], number))

    def _claim(self, number: int, at: int) -> bool:
        """Take what work of a queue asks of limits: all of it, or what comes before the one that refused is set aside."""
        claims = self._claims[number]
        if self._kept and any(weight > self._kept.get(index, weight) for index, weight in claims):
            return False  # to ask for more would put at risk what is kept
        told: list[Sequence[int]] = []
        for position, (index, weight) in enumerate(claims):
            limit = self.limits[index]
            claimed, others = limit.claim(self.token, weight, at)
            if claimed:
                told.append(others)
                self._asked.discard(index)
                self._kept.pop(index, None)
                continue
            self.woken += others
            self._refused.add(index)
            self._asked.add(index)
            self._wished.add(index)
            due = limit.due(self.token, weight, at)
            if due != NEVER and (self.due == NEVER or due < self.due):
                self.due = due
            for (other, _), woken in zip(claims, told, strict=False):  # a turn that is kept is nobody else's
                self.woken += woken[:-1] if self.limits[other].has_line else woken
            self._keep(claims[:position], turns=True)
            return False
        for woken in told:
            self.woken += woken
        return True

    def _stay(self, numbers: Sequence[int]) -> None:
        """Work of these queues waits for its lane, and keeps what it has of limits; but nobody's turn at a rate."""
        for number in numbers:
            self._wished.update(
                [index for index, _ in self._claims[number] if index in self._asked and self.limits[index].rate is None]
            )

    def _keep(self, claims: Sequence[tuple[int, int]], *, turns: bool) -> None:
        """What was claimed just now cannot be used yet: have it set aside.

        Of a rate that is the turn, which bars everybody else: for the sake of another limit only. A lane may be full for long.
        """
        for index, weight in claims:
            limit = self.limits[index]
            if limit.rate is not None and not turns:
                self.woken += limit.unclaim(self.token, weight)
                self._refused.add(index)  # or work of another lane would stand in line for it, to hand it on as well
                continue
            self.woken += limit.keep(self.token, weight)
            self._kept[index] = weight
            self._asked.add(index)
            self._wished.add(index)
