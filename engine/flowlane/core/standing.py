"""What is known of one run: a column for each thing that every element has, a mapping for what only some have.

It is asked by who carries the run out, and changed by the layers above it, of which the scheduler is the last: `Ends` (what
follows from an end), `Stopping`, `Trees`, `Maps`, `Graphs`. Each knows those below it and no others.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING

from flowlane.core.elements import CHAIN, GRAPH, NOBODY, Block, Elements, Place
from flowlane.core.messages import NEVER, Step
from flowlane.core.outcomes import (
    ASKED,
    LINKED,
)
from flowlane.core.ready import ReadyQueues
from flowlane.core.states import (
    STATES,
    Reason,
    RunState,
    TaskState,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from flowlane.core import messages as m
    from flowlane.core.chains import Chain, Scope, Stage, Tree
    from flowlane.core.lanes import Lane, Slots
    from flowlane.core.limits import Limit
    from flowlane.core.plan import Plan, Policy
    from flowlane.core.rules import TriggerRule


__all__ = ["InvalidTransition", "Standing"]


class InvalidTransition(Exception):
    """An event that cannot be: somebody broke the protocol.

    event      the refused event; it changed nothing
    story      what is known of its task
    step       what the earlier events of the batch did; it stays done and must be carried out
    unhandled  the later events of the batch, not looked at
    """

    def __init__(self, event: m.Event, why: str, story: str) -> None:
        super().__init__(f"{event}: {why}\n  {story}")
        self.event = event
        self.story = story
        self.step = Step([], [])
        self.unhandled: list[m.Event] = []


class Standing:
    """See Scheduler, which this is the first part of."""

    def __init__(
        self,
        plan: Plan,
        lanes: Sequence[Lane],
        *,
        token: int = 0,
        jitter: Callable[[], float] | None = None,
        limits: Sequence[Limit] = (),
        recall: Callable[[int], int] | None = None,
    ) -> None:
        if len(set(map(id, lanes))) != len(lanes):
            raise ValueError("the same lane is given twice; its waiting list knows one wish a run")
        self.plan = plan
        self.token = token
        self.late: int = 0
        self.finished: RunState | None = None
        self._jitter = jitter
        self._recall = recall
        self._waiting = ReadyQueues(lanes, limits, token)
        self._elements = e = Elements()
        self._state, self._attempt, self._held = e.state, e.attempt, e.held
        self._left, self._uses, self._inputs, self._dependants = e.left, e.uses, e.inputs, e.dependants
        self._queue_of, self._rank, self._linked, self._policy_of = e.queue, e.rank, e.linked, e.policy
        self.ready_ns, self.launched_ns = (
            e.ready_ns,
            e.launched_ns,
        )  # of the latest attempt, NEVER where it did not come to that
        self.started_ns, self.ended_ns = e.started_ns, e.ended_ns
        #: when a task was first ready, for those with more than one attempt
        self.first_ready_ns: dict[int, int] = {}
        self._policies: list[Policy] = []
        self._policy_numbers: dict[Policy, int] = {}
        self._times: list[tuple[int, int, int, int]] = []  # (due, kind, element, attempt)
        self._timer = NEVER
        self._asks: dict[tuple[int, Reason], list[int]] = {}  # (lane, reason) → whom this batch asks to stop
        self._overdue: dict[int, int] = {}  # element asked to stop for being late → the deadline it missed
        self.has_total = False  #: whether any task has a total_timeout
        self.has_deadlines = False  #: whether any graph that an element has become has a deadline of its own
        self._cause: dict[int, int] = {}
        self._begun = False
        self._stopping: Reason | None = None
        self._failed = False  # whether any task of the run's own failed, timed out or crashed
        self._has_shares = False  # whether any graph bears a share of its tasks
        self._has_budgets = False  # whether any graph has only so many retries
        self._restored: set[int] = set()
        # what only some elements have
        self._rules: dict[int, TriggerRule] = {}
        self._tally: dict[int, list[int]] = {}  # ok, failed, skipped; the first failed, skipped
        self._choices: dict[int, list[tuple[int, int]]] = {}  # whose value decides → (guarded element, bit)
        self._gathering: dict[int, Reason] = {}  # containers that have succeeded, but for what is chosen by their value
        self._running_out: set[int] = set()  # maps that have ended with enough elements, while the rest goes on
        self._pinned: set[int] = set()  # containers whose value is part of a result
        self._unneeded: set[int] = set()  # elements that were cancelled because enough others had succeeded
        self._postponed: dict[Chain, None] = {}  # that go on in the next step, so that none takes long
        self._chosen: dict[int, int] = {}
        self._undecided: dict[int, int] = {}  # guarded element → guards that have not been decided
        self._barred: dict[
            int, tuple[int, int]
        ] = {}  # guarded element → (outcome, which guard), when one came to nothing
        self._stages: dict[int, tuple[Chain, Stage]] = {}
        self._trees: dict[int, Tree] = {}
        self._scopes: dict[int, Scope] = {}  # of elements that became a graph
        self._grafts: set[int] = set()  # elements that become a graph when their turn comes
        self._tidies: dict[int, frozenset[int]] = {}  # teardown → what must have ended before it
        self._lingering: dict[int, list[int]] = {}  # containers that ended before all of them → who tidies up
        self._groups: dict[int, list[tuple[int, ...]]] = {}  # by element, groups that one failure stops
        self._may_fail: set[int] = set()
        self._priority: dict[int, int] = {}
        # of values that were lost (see remaking)
        self._remade: dict[int, int] = {}  # element → how often it was made again
        self._uncounted: dict[int, int] = {}  # element → attempts that its policy does not count
        self._wanted: dict[int, list[int]] = {}  # what is being made again → who waits for it, beside plain dependants
        self._expected: dict[int, int] = {}  # element → values it waits for, whatever its rule says
        # of the step under way
        self._at = 0
        self._step = Step([], [])
        self._released: list[int] = []
        self._parted: list[int] = []  # containers that have ended, whole
        self._spent: list[int] = []  # elements that have ended, and whose items came from iterators
        self._rippling: list[int] = []
        self._dirty: dict[Chain, None] = {}  # whose window may have room
        self._open: int = 0
        self._forced = False
        self._special: set[int] = set()  # elements that do not simply run when all they wait for has succeeded
        self._rate_due = NEVER
        self._opening: list[tuple[Chain, Stage]] = []  # maps that begin
        self._doomed: list[int] = []  # elements that somebody stopped before the run began

    # ── what a caller may ask ─────────────────────────────────────────────────────────────────────────────────────

    @property
    def size(self) -> int:
        """How many elements there are; the next one that comes into being has this number."""
        return len(self._state)

    def place(self, element: int) -> Place:
        """What an element is: a node of the plan, of a graph that another has become, or an element of a map."""
        return self._elements.place(element)

    def ranges_of(self, container: int) -> Iterator[range]:
        """The elements that a container has become so far, in order of their numbers, a range for each block of them."""
        scope = self._scope(container)
        if scope is None:
            return
        for number in list(scope.blocks):
            block = self._elements.blocks[number]
            if block.chain is not None:
                position = self._stages[container][1].position
                yield range(block.start + position, block.start + block.count, len(block.chain.stages))
            else:
                yield range(block.start, block.start + block.count)

    def elements_of(self, container: int) -> Iterator[int]:
        """The same, one by one."""
        for elements in self.ranges_of(container):
            yield from elements

    def states_of(self, elements: range) -> bytes:
        """The states of a range, as indices of ``states.STATES``."""
        return bytes(self._state[elements.start : elements.stop : elements.step])

    @property
    def blocks(self) -> Sequence[Block]:
        """All elements, in blocks."""
        return self._elements.blocks

    def stages(self, container: int) -> list[int]:
        """The maps of a chain, in order of its stages."""
        return [stage.container for stage in self._stages[container][0].stages]

    def element_at(self, container: int, index: int) -> int:
        """Element `index` of a map. Raises LookupError where there is none."""
        chain, stage = self._stages[container]
        blocks = self._elements.blocks
        before = bisect_right(stage.blocks, index, key=lambda number: blocks[number].first)
        if index < 0 or not before:
            raise LookupError(index)
        block = blocks[stage.blocks[before - 1]]
        if index >= block.first + len(block.left):
            raise LookupError(index)
        return block.start + (index - block.first) * len(chain.stages) + stage.position

    def merge_at(self, container: int, level: int, number: int) -> int:
        """A merge of a reduction by tree. Raises LookupError where there is none."""
        for each in self._trees[container].blocks:
            block = self._elements.blocks[each]
            if block.where == (level, number):
                return block.start
        raise LookupError(number)

    def root(self, container: int) -> int:
        """Of a reduction by tree that has succeeded: the element whose value is its own."""
        return self._trees[container].root

    def plan_of(self, container: int) -> tuple[Plan, int]:
        """The graph that an element has become (the latest, where it did so again), and the number of its first node."""
        block = self._elements.blocks[self._scopes[container].blocks[-1]]
        assert block.plan is not None
        return block.plan, block.start

    def is_late(self, element: int) -> bool:
        """Whether the deadline of the graph that it has become has passed before that was done."""
        scope = self._scopes.get(element)
        return scope is not None and scope.late

    def graphs_of(self, element: int) -> list[int]:
        """The numbers of the first nodes of all graphs that an element has become: none, or one for each time it was tried."""
        scope = self._scopes.get(element)
        return [self._elements.blocks[number].start for number in scope.blocks] if scope is not None else []

    def is_map(self, element: int) -> bool:
        """Whether it is a mapped node; `is_tree`: one that is reduced by tree."""
        return element in self._stages or element in self._trees

    def is_tree(self, element: int) -> bool:
        return element in self._trees

    def block(self, element: int) -> Block:
        """The block that an element is in."""
        return self._elements.block(element)

    def sibling(self, element: int, container: int) -> int:
        """The element of the same index in another map of the chain."""
        block = self._elements.block(element)
        assert block.chain is not None
        own = (element - block.start) % len(block.chain.stages)
        return element - own + self._stages[container][1].position

    def position(self, container: int) -> int:
        """Which stage of its chain a map is, from 0."""
        return self._stages[container][1].position

    def inputs(self, element: int) -> Sequence[int]:
        """The elements whose values it reads; of an element of a map only those that it merges."""
        return self._inputs[element]

    def is_pulling(self, container: int) -> bool:
        """Whether a Pull of a map awaits its answer still: nothing has cut the map short meanwhile."""
        found = self._stages.get(container)
        return found is not None and found[0].pulling and found[0].more

    def is_graft(self, element: int) -> bool:
        """Whether it becomes a graph when its turn comes, without running before."""
        return element in self._grafts

    def is_read(self, element: int) -> bool:
        """Whether somebody will read its value yet."""
        return self._uses[element] > 0

    def chain_of(self, container: int) -> tuple[Chain, Stage]:
        """The chain that a map is in, and its stage there; only to look at."""
        return self._stages[container]

    def tree_of(self, container: int) -> Tree:
        """What is known of a reduction by tree; only to look at."""
        return self._trees[container]

    def upstreams(self, element: int) -> Sequence[int]:
        """The elements it waits for."""
        block = self._elements.block(element)
        if block.kind == GRAPH:
            assert block.plan is not None
            return [block.start + up for up in block.plan.upstreams[element - block.start]]
        if block.kind == CHAIN:
            assert block.chain is not None
            position = (element - block.start) % len(block.chain.stages)
            stage = block.chain.stages[position]
            return [element - position + up for up in stage.over] or [stage.container]
        return self._inputs[element]

    def policy(self, element: int) -> Policy:
        """How its attempts are limited and repeated."""
        return self._policies[self._policy_of[element]]

    def lane(self, element: int) -> int:
        """The index of the lane it runs on; NOBODY for what runs nowhere."""
        queue = self._queue_of[element]
        return self._waiting.lane[queue] if queue >= 0 else NOBODY

    def holds(self, element: int) -> Iterator[Slots]:
        """The lane and the limits that an attempt of it needs."""
        waiting, queue = self._waiting, self._queue_of[element]
        if queue >= 0:
            yield waiting.lanes[waiting.lane[queue]]
            for index, _ in waiting.requirement[queue].limits:
                yield waiting.limits[index]

    def add_lane(self, lane: Lane) -> int:
        """A further lane, for graphs that are added; the index by which their plans know it."""
        return self._waiting.add_lane(lane)

    def add_limit(self, limit: Limit) -> int:
        """A further limit, likewise."""
        return self._waiting.add_limit(limit)

    def state(self, element: int) -> TaskState:
        return STATES[self._state[element]]

    def attempt(self, element: int) -> int:
        """The number of the current or latest attempt; 0 before the task was first ready."""
        return self._attempt[element]

    def states(self) -> bytes:
        """The state of every element, as indices of ``states.STATES``: a copy."""
        return bytes(self._state)

    def attempts(self) -> bytes:
        """The number of the current or latest attempt of every element: a copy."""
        return bytes(self._attempt)

    def causes(self) -> dict[int, int]:
        """`upstream_failed` or skipped element → the one through which it came to that: a copy."""
        return dict(self._cause)

    def counts(self) -> dict[TaskState, int]:
        """How many elements stand in each state; states with none are left out."""
        return {state: count for code, state in enumerate(STATES) if (count := self._state.count(code))}

    def containers(self) -> Iterator[int]:
        """The elements that have become others."""
        for kept in (self._stages, self._trees, self._scopes):
            for element in kept:
                if next(iter(self.elements_of(element)), None) is not None:
                    if kept is self._trees and element in self._stages:
                        continue  # it was told as the map that it reads
                    yield element

    def awaits(self, element: int, attempt: int) -> bool:
        """Whether this attempt is out, so that its final event will count."""
        return self._attempt[element] == attempt and self._held[element] != 0

    def asked(self, element: int) -> Reason | None:
        """Why the attempt that is out was asked to stop; None when it was not."""
        return ASKED[self._held[element]]

    def cause(self, element: int) -> list[int]:
        """For an `upstream_failed` element the way from the root cause to it, both included; else ``[element]``."""
        path = [element]
        while path[-1] in self._cause:
            path.append(self._cause[path[-1]])
        path.reverse()
        return path

    def _scope(self, container: int) -> Scope | None:
        found = self._stages.get(container)
        if found is not None:
            return found[1]
        return self._trees.get(container) or self._scopes.get(container)

    def _story(self, element: int) -> str:
        def when(ns: int) -> str:
            return "never" if ns == NEVER else f"{ns} ns"

        if not 0 <= element < len(self._state):
            return f"elements are 0..{len(self._state) - 1}"
        held = self._held[element]
        return (
            f"element {element}: {self.state(element)}, attempt {self._attempt[element]}, "
            f"{'out' if held else 'not out'}"
            f"{f', asked to stop ({ASKED[held]})' if held > LINKED else ''}, "
            f"waits for {self._left[element]} upstreams, ready {when(self.ready_ns[element])}, "
            f"launched {when(self.launched_ns[element])}, started {when(self.started_ns[element])}, "
            f"ended {when(self.ended_ns[element])}"
        )
