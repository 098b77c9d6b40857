"""The scheduler: a state machine that decides what is next. Events in, history and commands out.

It owns the state of every task of one run and nothing else. It has no clock, no randomness, no I/O and no locks: the
time of an event is in the event, the time of the call is an argument, and the draw for jitter is a function given by the
caller. The same plan, events and times always give the same steps.

Theory, before the code:

- An *element* is what runs; a *node* is what was declared. Nodes are elements 0..n-1 with the same number. A map, a workflow
  whose turn has come and a task that returned more work are *containers*: they become elements (see elements.py), are
  `expanded` while those go on, and end when they have.
- Readiness is a counter: `left[v]` upstreams have yet to end. When they all succeed, the last one makes v ready. Nodes with a
  trigger rule also keep a tally of how they ended. What a rule says early stays true, so order never matters.
- Ready elements wait in queues for slots and limits (see ready.py): the longest way to a sink first, then the order of
  declaration; in a chain of maps what is furthest along, which frees memory.
- `held[v]` is 0, or `_OUT` or `_LINKED` while an attempt of v is out and holds a slot, or above that when we have asked it to
  stop; then it says why. A final event for an attempt that is out always frees its slot, whatever else it means.
- An event for a past attempt, or for a task that has ended, is *late*: it changes nothing and is counted. One that cannot be
  (an attempt never launched, a second Started) raises InvalidTransition with the task's story.
- One heap of times serves retries and deadlines. Entries are checked when they come up, never searched for. A task that ends
  before its Started is told never enters it.
- A run that is resumed begins with elements that have ended already (see RunStarted; for what comes into being later, `recall`).
- After a batch of events, free slots are given back and filled, once per lane.

The success of a plain task that nobody asked to stop is handled inside the loop of `handle`. Whatever else ends goes
through `_settle`, which puts it on a list; `_ripple` works that off, telling dependants, conditions and containers, which may end
in turn. Nothing is recursive.
"""

from __future__ import annotations

from heapq import heapify, heappop, heappush
from typing import TYPE_CHECKING, Final, assert_never

from flowlane.core import messages as m
from flowlane.core.chains import BLOCK, UNKNOWN_SIZE, Chain, Group, Scope, Stage, Tree
from flowlane.core.elements import CHAIN, GRAPH, NOBODY, TREE, Block, Elements
from flowlane.core.messages import NEVER, Launch, Release, Started, Step, Succeeded
from flowlane.core.ready import ELEMENT_BITS, ReadyQueues
from flowlane.core.rules import ALL_SUCCESS, Trigger
from flowlane.core.states import (
    CACHED,
    CANCELLED,
    CRASHED,
    EXPANDED,
    FAILED,
    PENDING,
    READY,
    RETRYING,
    RULES,
    RUNNING,
    SKIPPED,
    STATES,
    SUCCEEDED,
    TERMINAL,
    TIMED_OUT,
    UNKNOWN,
    UPSTREAM_FAILED,
    Reason,
    RunState,
    TaskState,
    code_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from flowlane.core.elements import Place
    from flowlane.core.lanes import Lane, Slots
    from flowlane.core.limits import Limit
    from flowlane.core.plan import Plan, Policy
    from flowlane.core.rules import TriggerRule

__all__ = ["InvalidTransition", "Scheduler"]

_READY: Final = code_of(TaskState.PENDING, TaskState.READY, Reason.UPSTREAM_DONE)
_STARTED: Final = code_of(TaskState.READY, TaskState.RUNNING, Reason.STARTED)
_RETURNED: Final = code_of(TaskState.RUNNING, TaskState.SUCCEEDED, Reason.RETURNED)
_AGAIN: Final = code_of(TaskState.RETRYING, TaskState.READY, Reason.BACKOFF_ELAPSED)

_CODE: Final = {(STATES.index(r.source), STATES.index(r.target), r.reason): code for code, r in enumerate(RULES)}
_ENDED: Final = frozenset(STATES.index(state) for state in TERMINAL)
_DONE: Final = (SUCCEEDED, CACHED)

# How an end counts for those that wait: index into a tally.
_OK: Final = 0
_BAD: Final = 1
_SKIP: Final = 2
_OUTCOME: Final = tuple(_OK if code in _DONE else _SKIP if code == SKIPPED else _BAD for code in range(len(STATES)))
#: A failure of its own, and not that of another, or somebody's wish.
_FAILURES: Final = frozenset({FAILED, TIMED_OUT, CRASHED, UNKNOWN})

# Values of `held`. Above _LINKED: why we asked the attempt to stop.
_OUT: Final = 1
_LINKED: Final = 2  # out, and its end concerns more than plain dependants
_ASKED: Final = (
    None,
    None,
    None,
    Reason.ATTEMPT_TIMEOUT,
    Reason.TOTAL_TIMEOUT,
    Reason.CANCEL_REQUESTED,
    Reason.FAIL_FAST,
    Reason.NOT_NEEDED,
    Reason.DEADLINE,
)
_ASK: Final = {reason: held for held, reason in enumerate(_ASKED) if reason is not None}
#: Whoever returns although it was asked to stop for one of these has succeeded.
_FOR_OTHERS: Final = (None, Reason.CANCEL_REQUESTED, Reason.FAIL_FAST, Reason.NOT_NEEDED, Reason.DEADLINE)

# Kinds of entries in the heap of times.
_RETRY: Final = 0
_ATTEMPT_DEADLINE: Final = 1
_TOTAL_DEADLINE: Final = 2
_RUN_DEADLINE: Final = 3
_RATE: Final = 4

#: ns of waiting that are worth one level of priority: so nothing waits for ever behind what is more urgent.
AGEING: Final = 10 * 1_000_000_000


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


class Scheduler:
    """The state of one run of `plan`.

    lanes   indexed by ``plan.lane``; may be shared with other schedulers
    token   this run's number on shared lanes and limits, unique among the runs that share them
    jitter  returns a share in [0, 1) for each backoff with jitter; default: always the full delay
    limits  indexed by the requirements of the plan; may be shared with other schedulers
    recall  asked, for each element that comes into being while the run goes on, how an earlier session had ended it: the index
            of a state (SUCCEEDED, CACHED, SKIPPED, UNKNOWN), above its 8 bits the conditions on its value that hold; or 0

    Feed it with `handle`, first a RunStarted. Not thread-safe: one owner calls it.
    """

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
        self.late = 0
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
        self._cause: dict[int, int] = {}
        self._begun = False
        self._stopping: Reason | None = None
        self._failed = False  # whether any task of the run's own failed, timed out or crashed
        self._failures = 0
        self._retries = 0
        self._restored: set[int] = set()
        # what only some elements have
        self._rules: dict[int, TriggerRule] = {}
        self._tally: dict[int, list[int]] = {}  # of those with a rule: ok, failed, skipped, and the first that failed
        self._choices: dict[int, list[tuple[int, int]]] = {}  # whose value decides → (guarded element, bit)
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
        self._groups: dict[int, list[tuple[int, ...]]] = {}  # by element, groups that one failure stops
        self._may_fail: set[int] = set()
        self._priority: dict[int, int] = {}
        # of the step under way
        self._at = 0
        self._step = Step([], [])
        self._released: list[int] = []
        self._rippling: list[int] = []
        self._dirty: dict[Chain, None] = {}  # whose window may have room
        self._open = 0
        self._forced = False
        self._special: set[int] = set()  # elements that do not simply run when all they wait for has succeeded
        self._rate_due = NEVER
        self._doomed: list[int] = []  # elements that somebody stopped before the run began
        self._add_graph(plan, NOBODY)

    # ── what a caller may ask ─────────────────────────────────────────────────────────────────────────────────────

    @property
    def size(self) -> int:
        """How many elements there are; the next one that comes into being has this number."""
        return len(self._state)

    def place(self, element: int) -> Place:
        """What an element is: a node of the plan, of a graph that another has become, or an element of a map."""
        return self._elements.place(element)

    def elements_of(self, container: int) -> Iterator[int]:
        """The elements that a container has become so far, in order of their numbers."""
        scope = self._scope(container)
        if scope is None:
            return
        numbers = scope.blocks
        for number in list(numbers):
            block = self._elements.blocks[number]
            if block.kind == CHAIN:
                assert block.chain is not None
                step = len(block.chain.stages)
                position = self._stages[container][1].position
                yield from range(block.start + position, block.start + block.count, step)
            else:
                yield from range(block.start, block.start + block.count)

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
        for number in stage.blocks:
            block = self._elements.blocks[number]
            if block.first <= index < block.first + len(block.left):
                return block.start + (index - block.first) * len(chain.stages) + stage.position
        raise LookupError(index)

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

    def awaits(self, element: int, attempt: int) -> bool:
        """Whether this attempt is out, so that its final event will count."""
        return self._attempt[element] == attempt and self._held[element] != 0

    def asked(self, element: int) -> Reason | None:
        """Why the attempt that is out was asked to stop; None when it was not."""
        return _ASKED[self._held[element]]

    def cause(self, element: int) -> list[int]:
        """For an `upstream_failed` element the way from the root cause to it, both included; else ``[element]``."""
        path = [element]
        while path[-1] in self._cause:
            path.append(self._cause[path[-1]])
        path.reverse()
        return path

    # ── the one entrance ──────────────────────────────────────────────────────────────────────────────────────────

    def handle(self, events: Iterable[m.Event], at: int) -> Step:
        """Take a batch of events that happened up to `at` (ns) and say what follows.

        Raises InvalidTransition for an event that cannot be; see there for what stays done.
        """
        self._step = step = Step([], [])
        self._at = at
        self._released = released = []
        record = step.transitions.append
        state, attempts, held = self._state, self._attempt, self._held
        waits_for, uses, inputs, queue_of = self._left, self._uses, self._inputs, self._queue_of
        freed, queues, rank = self._waiting.freed, self._waiting.queues, self._rank
        refused: InvalidTransition | None = None
        for event in (pending := iter(events)):
            if type(event) is Succeeded:
                element = event.element
                # the fast path: out, not asked to stop, this attempt, and with the times that a success has
                if (
                    0 <= element < len(state)
                    and held[element] == _OUT
                    and attempts[element] == event.attempt
                    and 0 <= event.started <= event.ended
                ):
                    if state[element] == READY:
                        self.started_ns[element] = event.started
                        record((element, event.attempt, _STARTED, event.started))
                    state[element] = SUCCEEDED
                    held[element] = 0
                    self.ended_ns[element] = event.ended
                    record((element, event.attempt, _RETURNED, event.ended))
                    freed[queue_of[element]] += 1
                    self._open -= 1
                    for below in self._dependants[element]:
                        waits_for[below] = left = waits_for[below] - 1
                        if not left and state[below] == PENDING:
                            state[below] = READY
                            attempts[below] = 1
                            self.ready_ns[below] = at
                            record((below, 1, _READY, at))
                            heappush(queues[queue_of[below]], rank[below] << ELEMENT_BITS | below)
                            if self.has_total:
                                self._limit_total(below)
                    for up in inputs[element]:
                        uses[up] = left = uses[up] - 1
                        if not left:
                            released.append(up)
                    if not uses[element]:
                        released.append(element)
                    continue
                if self._land(event):
                    continue
            try:
                self._out_of_line(event)
            except InvalidTransition as error:
                refused = error
                error.step = step
                error.unhandled = list(pending)
                break
        self._close()
        if refused is not None:
            raise refused
        return step

    def _close(self) -> None:
        """After a batch: admit, free slots, fill slots, tell what is no longer needed, set the timer, notice the end."""
        step, at, waiting = self._step, self._at, self._waiting
        commands = step.commands
        if self._dirty:
            self._admit_all()
        if self._released:
            commands.append(Release(self._released))
        if self._asks:
            for (index, reason), elements in self._asks.items():
                if out := [element for element in elements if self._held[element] > _LINKED]:
                    commands.append(m.Interrupt(index, out, reason))
            self._asks.clear()
        held, linked, launched = self._held, self._linked, self.launched_ns
        waiting.due = NEVER
        for index in range(len(waiting.lanes)):
            if waiting.idle(index):
                continue
            launch = waiting.fill(index, at, self._is_ready)
            if launch:
                for element in launch:
                    held[element] = _LINKED if linked[element] else _OUT
                    launched[element] = at
                commands.append(Launch(index, launch))
        waiting.settle()
        if waiting.due != NEVER and not at < self._rate_due <= waiting.due:
            self._rate_due = waiting.due
            heappush(self._times, (waiting.due, _RATE, 0, 0))
        if self._open == 0 and self.finished is None and self._begun:
            waiting.leave()
            self.finished = self._verdict()
            self._tell_woken(commands)
            commands.append(m.Finish(self.finished))
            return
        self._tell_woken(commands)
        if self._times:
            self._set_timer(commands)

    def _tell_woken(self, commands: list[m.Command]) -> None:
        woken = self._waiting.woken
        if woken:
            commands.append(m.Wake([token for token in dict.fromkeys(woken) if token != self.token]))
            woken.clear()

    def _is_ready(self, element: int) -> bool:
        return self._state[element] == READY and not self._held[element]

    # ── everything but plain success ──────────────────────────────────────────────────────────────────────────────

    def _out_of_line(self, event: m.Event) -> None:
        match event:
            case Succeeded():
                self._end(event)
            case Started():
                self._start(event)
            case m.Failed() | m.Crashed() | m.Interrupted() | m.Abandoned() | m.Skipped():
                self._end(event)
            case m.Cached():
                self._found(event)
            case m.Expanded():
                self._expanded(event)
            case m.Grafted():
                self._grafted(event)
            case m.TimerFired():
                self._tick()
            case m.SlotAvailable():
                pass  # like any step, this one ends by taking what was set aside, or by handing it on
            case m.CancelRequested():
                self._stop(Reason.CANCEL_REQUESTED)
            case m.CancelTasks():
                if self._begun:
                    self._cancel(event.elements, Reason.CANCEL_REQUESTED)
                else:  # nothing may be launched yet, and what they keep from running might make others ready
                    self._doomed += event.elements
            case m.DrainRequested():
                self._stop(Reason.DRAINED)
            case m.RunStarted():
                self._begin(event)
            case _:
                assert_never(event)
        if self._rippling:
            self._ripple()

    def _begin(self, event: m.RunStarted) -> None:
        if self._begun:
            raise InvalidTransition(event, "the run has begun already", f"{self._open} tasks open")
        self._begun = True
        if self.plan.deadline:
            heappush(self._times, (self._at + self.plan.deadline, _RUN_DEADLINE, 0, 0))
        if event.restored or event.cached or event.unknown or event.skipped:
            self._restore(event)
        self._start_graph(range(self.plan.size))
        if self._doomed:
            self._cancel(self._doomed, Reason.CANCEL_REQUESTED)

    def _start_graph(self, elements: range) -> None:
        """What waits for nothing is ready."""
        # `_make_ready`, for what may be all tasks there are
        at, state, attempts, ready, special = self._at, self._state, self._attempt, self.ready_ns, self._special
        record, queues, queue_of, rank = self._step.transitions.append, self._waiting.queues, self._queue_of, self._rank
        left = self._left
        plain = not self._priority
        for element in elements:
            if state[element] != PENDING:
                continue
            if special and element in special:
                self._weigh(element)
            elif not left[element]:
                if not plain:
                    self._make_ready(element, 1, _READY)
                    continue
                state[element] = READY
                attempts[element] = 1
                ready[element] = at
                record((element, 1, _READY, at))
                queues[queue_of[element]].append(rank[element] << ELEMENT_BITS | element)
                if self.has_total:
                    self._limit_total(element)
        for queue in queues:
            heapify(queue)

    def _restore(self, event: m.RunStarted) -> None:
        """Begin with what an earlier session had finished."""
        done = {
            **dict.fromkeys(event.restored, SUCCEEDED),
            **dict.fromkeys(event.cached, CACHED),
            **dict.fromkeys(event.skipped, SKIPPED),
        }
        self._restored.update(done)
        self._chosen.update(event.chosen)
        for element, target in sorted(done.items()):  # as they were declared: people read this
            self._settle(element, target, Reason.RESTORED)
        for element in event.unknown:
            self._settle(element, UNKNOWN, Reason.PROCESS_DIED)
        self._ripple()
        self._rest_is_not_needed(done)
        self._released[:] = dict.fromkeys(self._released)  # who read it and who made it may both have told

    def _rest_is_not_needed(self, restored: Iterable[int]) -> None:
        """Of joins that an earlier session had made, the upstreams that had not ended by then."""
        for element in restored:
            rule = self._rules.get(element)
            if rule is not None and rule.cancel_rest and self._state[element] in _DONE:
                self._cancel([up for up in self.upstreams(element) if self._state[up] not in _ENDED], Reason.NOT_NEEDED)
        self._ripple()

    def _make_ready(self, element: int, attempt: int, code: int) -> None:
        at = self._at
        if attempt > 1:
            self.first_ready_ns.setdefault(element, self.ready_ns[element])
        self._state[element] = READY
        self._attempt[element] = attempt
        self.ready_ns[element] = at
        self.launched_ns[element] = self.started_ns[element] = self.ended_ns[element] = NEVER
        self._step.transitions.append((element, attempt, code, at))
        queue = self._queue_of[element]
        if queue < 0:
            self._become(element)
        else:
            key = self._rank[element] << ELEMENT_BITS | element
            if (
                self._priority
            ):  # time and priority in one, quantised so that ranks still count: both only ever move forward
                key += (at - self._priority.get(element, 0) * AGEING) // (AGEING // 10) << ELEMENT_BITS + 31
            heappush(self._waiting.queues[queue], key)
        if self.has_total and attempt == 1:
            self._limit_total(element)

    def _start(self, event: Started) -> None:
        element = event.element
        if not self._current(event):
            return
        if self._state[element] != READY:
            raise InvalidTransition(event, "this attempt has started already", self._story(element))
        self._state[element] = RUNNING
        self.started_ns[element] = event.started
        self._step.transitions.append((element, event.attempt, _STARTED, event.started))
        policy = self.policy(element)
        if policy.timeout and not self._enforces(element):
            due = event.started + policy.timeout
            heappush(self._times, (due, _ATTEMPT_DEADLINE, element, event.attempt))

    def _enforces(self, element: int) -> bool:
        queue = self._queue_of[element]
        return queue >= 0 and self._waiting.lanes[self._waiting.lane[queue]].enforces_timeouts

    def _end(self, event: Succeeded | m.Skipped | m.Failed | m.Crashed | m.Interrupted | m.Abandoned) -> None:
        """An attempt is over: free its slot, decide between success, retry and a final state."""
        element = event.element
        if isinstance(event, m.Failed) and element in self._stages and self._state[element] == EXPANDED:
            self._source_failed(*self._stages[element])
            return
        if not self._current(event):
            return
        self._note_start(event)
        asked = _ASKED[self._held[element]]
        out_of_time = asked is Reason.TOTAL_TIMEOUT
        ended = event.ended if event.ended != NEVER else self._at
        due = self._overdue.pop(element, NEVER)
        if ended <= due and not isinstance(event, (m.Interrupted, m.Abandoned)):
            asked = None  # it had ended of itself and in time: our asking crossed the news on its way
        policy = self.policy(element)
        if (
            asked is None
            and isinstance(event, m.Interrupted)
            and self._state[element] == RUNNING
            and policy.timeout
            and self._enforces(element)
        ):
            asked = Reason.ATTEMPT_TIMEOUT  # the executor kept the deadline for us
        if isinstance(event, (Succeeded, m.Skipped)) and asked in _FOR_OTHERS:
            # It returned in time, or although we had asked it to stop for another's sake.
            self._let_go(element)
            if isinstance(event, m.Skipped):
                self._settle(element, SKIPPED, Reason.SKIP_RAISED, ended)
                return
            if event.chosen:
                self._chosen[element] = event.chosen
            self._settle(element, SUCCEEDED, Reason.RETURNED, ended)
            return
        if asked is None and isinstance(event, m.Interrupted) and self._stopping is not None and event.started == NEVER:
            asked = self._stopping  # it was on its way to a worker, and was not sent: a drain begins nothing
        running = self._state[element] == RUNNING
        target: int
        reason: Reason
        if asked is Reason.ATTEMPT_TIMEOUT:
            target, reason, again = TIMED_OUT, asked, policy.retry_timeouts
        elif asked is Reason.TOTAL_TIMEOUT:
            target, reason, again = TIMED_OUT, asked, False
        elif asked is not None:
            target, reason, again = CANCELLED, asked, False
        elif isinstance(event, (m.Crashed, m.Abandoned)):
            target, reason, again = CRASHED, Reason.WORKER_DIED, policy.retry_crashes
            if isinstance(event, m.Crashed):
                again = again and event.retryable
        else:
            again = event.retryable if isinstance(event, m.Failed) else False
            target, reason = FAILED, Reason.RAISED if running else Reason.REJECTED
        self._let_go(element)
        if again and event.attempt < policy.attempts:
            if out_of_time:
                target, reason = TIMED_OUT, Reason.TOTAL_TIMEOUT
            elif self._may_retry():
                self._retry(element, reason, ended, event.delay if isinstance(event, m.Failed) else NEVER)
                return
        self._settle(element, target, reason, ended)

    def _note_start(
        self, event: Succeeded | m.Skipped | m.Failed | m.Crashed | m.Interrupted | m.Abandoned | m.Grafted
    ) -> None:
        """A final event may stand in for a Started that was not told."""
        element = event.element
        if self._state[element] != READY:
            return
        if event.started != NEVER:
            self._state[element] = RUNNING
            self.started_ns[element] = event.started
            self._step.transitions.append((element, event.attempt, _STARTED, event.started))
        elif isinstance(event, (Succeeded, m.Skipped)):
            raise InvalidTransition(event, "this attempt has not started", self._story(element))

    def _let_go(self, element: int) -> None:
        """An attempt is not out any more; what it held is free."""
        self._held[element] = 0
        queue = self._queue_of[element]
        if queue >= 0:
            self._waiting.free(queue)

    def _found(self, event: m.Cached) -> None:
        """An attempt that was out did not have to begin. What it was asked meanwhile does not matter: the value is there."""
        element = event.element
        if not self._current(event):
            return
        if self._state[element] != READY:
            raise InvalidTransition(event, "this attempt has started", self._story(element))
        self._overdue.pop(element, None)
        self._let_go(element)
        if event.chosen:
            self._chosen[element] = event.chosen
        self._settle(element, CACHED, Reason.CACHE_HIT, event.ended)

    def _may_retry(self) -> bool:
        budget = self.plan.retry_budget
        if budget and self._retries >= budget:
            return False
        self._retries += 1
        return True

    def _retry(self, element: int, reason: Reason, ended: int, wish: int) -> None:
        attempt = self._attempt[element]
        policy = self.policy(element)
        self._step.transitions.append((element, attempt, _CODE[self._state[element], RETRYING, reason], ended))
        self._state[element] = RETRYING
        self.ended_ns[element] = ended
        if self._stopping is not None and not self._is_spared(
            element
        ):  # an attempt is left, but nothing is begun any more
            self._settle(element, CANCELLED, self._stopping)
            return
        if wish != NEVER:
            due = self._at + wish
        else:
            share = self._jitter() if policy.jitter and self._jitter is not None else 1.0
            due = self._at + policy.delay(attempt, share)
        if due <= self._at:
            self._make_ready(element, attempt + 1, _AGAIN)
        else:
            heappush(self._times, (due, _RETRY, element, attempt))

    # ── ends, and what follows from them ──────────────────────────────────────────────────────────────────────────

    def _settle(self, element: int, target: int, reason: Reason, at: int | None = None) -> None:
        """Move an element to a final state. It will read its inputs no more. Whom it concerns is told by `_ripple`."""
        state = self._state[element]
        t = self._at if at is None else at
        self._step.transitions.append((element, self._attempt[element], _CODE[state, target, reason], t))
        self._state[element] = target
        if state != RETRYING:  # there the latest attempt has its end already
            self.ended_ns[element] = t
        self._open -= 1
        uses, states = self._uses, self._state
        for up in self._inputs[element]:
            uses[up] -= 1
            if not uses[up] and states[up] in _DONE:
                self._released.append(up)
        self._rippling.append(element)

    def _drop(self, element: int, target: int, reason: Reason) -> None:
        """End an element that is not out, whatever it waits for."""
        if self._state[element] == READY and self._queue_of[element] >= 0:
            self._waiting.stale[self._queue_of[element]] += 1  # its entry in the queue stays until it comes up
        self._settle(element, target, reason)
        if element in self._stages:
            chain, stage = self._stages[element]
            stage.reason = reason
            self._close_gate(chain, stage)

    def _ripple(self) -> None:
        """Tell of all that has ended. Breadth first, so that the way told of a failure is a shortest one."""
        ended, state, left = self._rippling, self._state, self._left
        for element in ended:  # grows while it is walked
            code = state[element]
            outcome = _OUTCOME[code]
            if code in _FAILURES:
                self._count_failure(element)
            for below in self._dependants[element]:
                left[below] -= 1
                if state[below] == PENDING:
                    self._hear(below, element, outcome)
            if outcome == _OK and not self._uses[element]:
                self._released.append(element)
            if self._linked[element]:
                self._tell_linked(element, outcome)
        ended.clear()

    def _hear(self, element: int, up: int, outcome: int) -> None:
        """A pending element hears how one of its upstreams ended."""
        rule = self._rules.get(element)
        if rule is None:
            if outcome == _OK:
                if not self._left[element] and element not in self._undecided:
                    self._go(element)
                return
            if outcome == _BAD and element not in self._undecided:
                self._bar(element, _BAD, up)
                return
            self._watch(element)
        if up not in self._tidies.get(element, ()):  # how the work went is not the concern of who tidies up
            tally = self._tally[element]
            tally[outcome] += 1
            if outcome != _OK and tally[3] < 0:
                tally[3] = up
        self._weigh(element)

    def _watch(self, element: int) -> None:
        """From now on a tally of its upstreams is kept, as if it had a rule: one of them was skipped, say."""
        self._rules[element] = ALL_SUCCESS
        self._tally[element] = [0, 0, 0, NOBODY]
        for up in self.upstreams(element):
            self._link(up)

    def _link(self, element: int) -> None:
        self._linked[element] = 1
        if self._held[element] == _OUT:
            self._held[element] = _LINKED

    def _weigh(self, element: int) -> None:
        """What is certain about a pending element? Then let it be so."""
        if element in self._undecided:
            return
        left, tally = self._left[element], self._tally.get(element)
        if tally is None:
            if not left:
                self._go(element)
            return
        ok, bad, skipped, cause = tally
        if element in self._tidies:
            says = Trigger.FAIL if bad else Trigger.WAIT if left else Trigger.SKIP if skipped else Trigger.RUN
        else:
            says = self._rules[element].decide(ok, bad, skipped, left)
        if says == Trigger.RUN:
            rule = self._rules[element]
            self._go(element)
            if rule.cancel_rest and left:
                rest = [up for up in self.upstreams(element) if self._state[up] not in _ENDED]
                self._cancel(rest, Reason.NOT_NEEDED)
        elif says == Trigger.FAIL:
            self._bar(element, _BAD, cause)
        elif says == Trigger.SKIP:
            self._bar(element, _SKIP, cause)

    def _bar(self, element: int, outcome: int, cause: int) -> None:
        """A pending element will not run."""
        if cause >= 0:
            self._cause[element] = cause
        if outcome == _BAD:
            self._settle(element, UPSTREAM_FAILED, Reason.UPSTREAM_FAILED)
        else:
            self._settle(element, SKIPPED, Reason.UPSTREAM_SKIPPED)
        if element in self._stages:
            self._close_gate(*self._stages[element])

    def _go(self, element: int) -> None:
        """All that a pending element waits for is there."""
        if self._stopping is not None and not self._is_spared(element):
            self._drop(element, CANCELLED, self._stopping)
            return
        found = self._stages.get(element)
        if found is not None:
            self._open_gate(*found)
        elif element not in self._trees:  # a reduction begins with the map that it reads
            self._make_ready(element, 1, _READY)

    def _tell_linked(self, element: int, outcome: int) -> None:
        """Whom the end of an element concerns beside its dependants."""
        guarded = self._choices.get(element)
        if guarded is not None:
            chosen = self._chosen.get(element, 0)
            for below, bit in guarded:
                self._decide(below, element, outcome, chosen >> bit & 1)
        block = self._elements.block(element)
        if block.kind == CHAIN:
            self._tell_chain(element, outcome, block)
        elif block.kind == TREE:
            assert block.tree is not None
            self._count(block.tree, element, outcome)
            level, group = block.where
            self._feed(block.tree, level, group, element, outcome)
            if block.tree.chain.cut:
                self._dirty[block.tree.chain] = None
        elif block.owner >= 0:
            self._tell_graph(element, outcome, block)
        found = self._stages.get(element)
        if found is not None and not found[0].begun:
            self._never_begun(*found)

    def _decide(self, element: int, choice: int, outcome: int, chosen: int) -> None:
        """A guard of an element is decided."""
        if self._state[element] != PENDING:
            return
        if outcome == _OK and not chosen:
            self._cause[element] = choice
            self._undecided.pop(element, None)
            self._settle(element, SKIPPED, Reason.NOT_CHOSEN)
            if element in self._stages:
                self._close_gate(*self._stages[element])
            return
        if outcome == _BAD or (outcome == _SKIP and element not in self._barred):
            self._barred[element] = (outcome, choice)
        self._undecided[element] -= 1
        if self._undecided[element]:
            return
        del self._undecided[element]
        barred = self._barred.pop(element, None)
        if barred is not None:
            self._bar(element, *barred)
        else:
            self._weigh(element)

    def _count_failure(self, element: int) -> None:
        """An element failed: does that end a group, a graph, the run?"""
        if element not in self._stages and element not in self._trees and element not in self._scopes:
            self._failures += 1  # of its own; a container fails because of others
        for group in self._groups.get(element, ()):
            self._cancel([other for other in group if self._state[other] not in _ENDED], Reason.FAIL_FAST)
        while True:  # does the failure reach the run, by way of all that the element is part of?
            if element in self._may_fail:
                return
            block = self._elements.block(element)
            if block.kind == GRAPH and block.owner < 0:
                break
            if block.kind == GRAPH:
                assert block.plan is not None
                if block.plan.fail_fast:
                    rest = range(block.start, block.start + block.count)
                    self._cancel([other for other in rest if self._state[other] not in _ENDED], Reason.FAIL_FAST)
                element = block.owner
                if self._attempt[element] < self.policy(element).attempts and element in self._grafts:
                    return
            elif block.kind == CHAIN:
                assert block.chain is not None
                stage = block.chain.stages[(element - block.start) % len(block.chain.stages)]
                if stage.spec.enough:
                    return
                element = stage.container
            else:
                element = block.owner
        self._failed = True
        limit = self.plan.max_failures
        if limit < 0:  # a share of all there are, in per cent
            limit = max(1, -limit * self._total() // 100)
        if self._stopping is None and (self.plan.fail_fast or (limit and self._failures >= limit)):
            self._stop(Reason.FAIL_FAST)

    def _total(self) -> int:
        """Elements there are, and those that are known to come."""
        coming = {id(chain): (chain.known - chain.admitted) * len(chain.stages) for chain, _ in self._stages.values()}
        return len(self._state) + sum(coming.values())

    # ── graphs ────────────────────────────────────────────────────────────────────────────────────────────────────

    def _add_graph(self, plan: Plan, owner: int) -> range:
        """Make elements of a plan's nodes. Plain graphs, of a million nodes, must stay quick to begin with."""
        e = self._elements
        block = Block(GRAPH, owner, plan=plan)
        start = e.grow(block, plan.size)
        self._open += plan.size
        numbers = [self._number_policy(policy) for policy in plan.policies]
        e.policy.extend(plan.policy if numbers == list(range(len(numbers))) else [numbers[p] for p in plan.policy])
        queues = {lane: self._waiting.number(lane, plan.requirements[0]) for lane in set(plan.lane)}
        e.queue.extend([queues[lane] for lane in plan.lane])
        e.rank.extend(_ranks(plan) if owner < 0 else [e.rank[owner]] * plan.size)
        e.left.extend([len(ups) for ups in plan.upstreams])
        if start:
            e.dependants.extend([tuple([start + below for below in each]) for each in plan.dependants])
            e.inputs.extend([tuple([start + up for up in reads]) for reads in plan.inputs])
        else:
            e.dependants.extend(plan.dependants)
            e.inputs.extend(plan.inputs)
        if owner >= 0:
            e.linked[start:] = b"\x01" * plan.size
        if any((plan.rules, plan.guards, plan.maps, plan.grafts, plan.teardowns, plan.requirement)):
            self._add_special(plan, start)
        for group in plan.scopes:
            members = tuple([start + node for node in group])
            for element in members:
                self._groups.setdefault(element, []).append(members)
        self._may_fail.update([start + node for node in plan.may_fail])
        self._priority.update({start + node: priority for node, priority in plan.priority.items()})
        if self._priority:
            e.linked[start:] = b"\x01" * plan.size
        uses = [0] * plan.size
        for reads in e.inputs[start:] if start else e.inputs:
            for up in reads:
                uses[up - start] += 1
        for node in plan.pinned:
            uses[node] += 1
        e.uses.extend(uses)
        if plan.maps:
            self._add_chains(plan, start)
        return range(start, start + plan.size)

    def _number_policy(self, policy: Policy) -> int:
        number = self._policy_numbers.get(policy)
        if number is None:
            number = self._policy_numbers[policy] = len(self._policies)
            self._policies.append(policy)
            self.has_total = self.has_total or policy.total_timeout > 0
        return number

    def _add_special(self, plan: Plan, start: int) -> None:
        """Nodes that do not simply run when all they wait for has succeeded."""
        e = self._elements
        cut: dict[int, set[int]] = {}  # edges that are not told as those of plain dependants: up → nodes
        for node, rule in plan.rules.items():
            self._rules[start + node] = rule
            self._tally[start + node] = [0, 0, 0, NOBODY]
        for node, before in plan.teardowns.items():
            self._tidies[start + node] = frozenset([start + other for other in before])
            self._rules[start + node] = ALL_SUCCESS
            self._tally[start + node] = [0, 0, 0, NOBODY]
        for node, guards in plan.guards.items():
            self._undecided[start + node] = len(guards)
            for guard in guards:
                self._choices.setdefault(start + guard.node, []).append((start + node, guard.bit))
                e.linked[start + guard.node] = 1
                if guard.node not in plan.inputs[node]:
                    cut.setdefault(guard.node, set()).add(node)
        for node, spec in plan.maps.items():
            e.queue[start + node] = NOBODY
            for up in spec.over:
                cut.setdefault(up, set()).add(node)
            if spec.over:
                e.inputs[start + node] = tuple([up for up in e.inputs[start + node] if up - start not in spec.over])
        for node in plan.grafts:
            e.queue[start + node] = NOBODY
            self._grafts.add(start + node)
        for node, number in plan.requirement.items():
            if node not in plan.maps and node not in plan.grafts:
                queue = self._waiting.number(plan.lane[node], plan.requirements[number])
                e.queue[start + node] = queue
                e.linked[start + node] = 1  # what it holds of limits is given back out of line
        special = {*plan.rules, *plan.teardowns, *plan.guards, *plan.maps, *plan.grafts}
        self._special.update([start + node for node in special])
        for up, nodes in cut.items():
            e.dependants[start + up] = tuple([d for d in e.dependants[start + up] if d - start not in nodes])
            for node in nodes:
                e.left[start + node] -= 1
        for node in special:
            e.linked[start + node] = 1
            for up in plan.upstreams[node]:
                e.linked[start + up] = 1

    def _add_chains(self, plan: Plan, start: int) -> None:
        e = self._elements
        for node in plan.order:
            spec = plan.maps.get(node)
            if spec is None:
                continue
            element = start + node
            tree: Tree | None = None
            if spec.fan_in:
                tree = Tree(element, spec.fan_in, 0 if spec.over else 1)
                self._trees[element] = tree
            if tree is not None and spec.over:
                chain, above = self._stages[start + spec.over[0]]
                above.trees.append(tree)
            else:
                if spec.over:
                    chain = self._stages[start + spec.over[0]][0]
                    over = tuple([self._stages[start + up][1].position for up in spec.over])
                    stage = chain.add(element, spec, over)
                else:
                    chain = Chain(element, spec)
                    stage = chain.stages[0]
                stage.whole = tree is None and e.uses[element] > 0
                stage.queue = NOBODY if spec.grafts else self._queue_of_map(plan, node)
                stage.policy = e.policy[element]
                self._stages[element] = (chain, stage)
                if tree is not None:
                    stage.trees.append(tree)
            head = chain.stages[0].container
            chain.stages[-1].rank = e.rank[head]  # a chain goes depth first: its elements are numbered index by index
            if tree is not None:
                tree.chain = chain
                tree.queue, tree.policy = self._queue_of_map(plan, node), e.policy[element]
                tree.rank = e.rank[head] - 1  # merging frees memory
        for chain, _ in {id(found[0]): found for found in self._stages.values()}.values():
            if chain.stages[0].container >= start:
                for stage in chain.stages:
                    stage.uses = len(stage.below) + len(stage.trees) + stage.whole

    def _queue_of_map(self, plan: Plan, node: int) -> int:
        return self._waiting.number(plan.lane[node], plan.requirements[plan.requirement.get(node, 0)])

    def _become(self, element: int) -> None:
        """The turn of an element that becomes a graph has come."""
        self._linked[element] = 1
        self._held[element] = _LINKED
        self.launched_ns[element] = self._at
        self._step.commands.append(m.Graft(element))

    def _grafted(self, event: m.Grafted) -> None:
        element = event.element
        if not self._current(event):
            return
        self._note_start(event)
        asked = _ASKED[self._held[element]]
        self._overdue.pop(element, None)
        self._let_go(element)
        ended = event.ended if event.ended != NEVER else self._at
        if asked is None and self._stopping is not None and not self._is_spared(element):
            asked = self._stopping
        if asked is not None:  # what it wants done is not begun any more
            late = asked in (Reason.ATTEMPT_TIMEOUT, Reason.TOTAL_TIMEOUT)
            self._settle(element, TIMED_OUT if late else CANCELLED, asked, ended)
            return
        ready = self._state[element] == READY
        if ready:
            self.started_ns[element] = self._at
        self._linked[element] = 1
        self._state[element] = EXPANDED
        reason = Reason.BECAME_MORE if ready else Reason.RETURNED_WORK
        source = READY if ready else RUNNING
        self._step.transitions.append((element, event.attempt, _CODE[source, EXPANDED, reason], ended))
        scope = self._scopes.get(element)
        if scope is None:
            scope = self._scopes[element] = Scope(element)
        scope.reset(event.plan.size)
        scope.blocks.append(len(self._elements.blocks))
        elements = self._add_graph(event.plan, element)
        if self._recall is not None:
            remembered = [each for each in elements if self._remember(each)]
            self._ripple()
            self._rest_is_not_needed(remembered)
        self._start_graph(elements)
        if not scope.open and not scope.concluded:
            self._conclude_graph(element, scope)

    def _remember(self, element: int) -> bool:
        """Let an element end as it had in an earlier session, if it had."""
        assert self._recall is not None
        told = self._recall(element)
        if not told:
            return False
        code, chosen = told & 0xFF, told >> 8
        if chosen:
            self._chosen[element] = chosen
        self._restored.add(element)
        self._settle(element, code, Reason.PROCESS_DIED if code == UNKNOWN else Reason.RESTORED)
        return True

    def _tell_graph(self, element: int, outcome: int, block: Block) -> None:
        scope = self._scopes[block.owner]
        self._count(scope, element, outcome)
        if not scope.open and not scope.concluded:
            self._conclude_graph(block.owner, scope)

    def _conclude_graph(self, owner: int, scope: Scope) -> None:
        """All that an element has become has ended."""
        if self._state[owner] != EXPANDED:
            return  # it is being set up: whoever does that looks again
        scope.concluded = True
        if scope.reason is Reason.TOTAL_TIMEOUT:
            self._settle(owner, TIMED_OUT, Reason.TOTAL_TIMEOUT)
        elif scope.failed:
            again = owner in self._grafts and self._attempt[owner] < self.policy(owner).attempts
            if again and self._may_retry():
                self._part_with(owner)
                self._retry(owner, Reason.ELEMENTS_FAILED, self._at, NEVER)
                return
            self._settle(owner, FAILED, Reason.ELEMENTS_FAILED)
        elif scope.cancelled:
            self._settle(owner, CANCELLED, scope.reason or self._stopping or Reason.CANCEL_REQUESTED)
        else:
            if self._uses[owner]:
                self._step.commands.append(m.Gather(owner))
            self._settle(owner, SUCCEEDED, Reason.ELEMENTS_DONE)
        self._part_with(owner)

    def _part_with(self, container: int) -> None:
        """The value of a container is made, or never will be: its elements' own are not needed for it any more."""
        if container in self._trees:
            root = self._trees[container].root
            parts: Iterable[int] = () if root < 0 else (root,)
        elif container in self._stages:
            parts = self.elements_of(container) if self._stages[container][1].whole else ()
        else:
            plan, start = self.plan_of(container)
            parts = [start + node for node in plan.pinned]
        uses, state = self._uses, self._state
        for part in parts:
            uses[part] -= 1
            if not uses[part] and state[part] in _DONE:
                self._released.append(part)

    def _count(self, scope: Scope, element: int, outcome: int) -> None:
        scope.open -= 1
        code = self._state[element]
        if outcome == _OK:
            scope.ok += 1
        elif outcome == _SKIP:
            scope.skipped += 1
        elif code == CANCELLED:
            scope.cancelled += 1
        elif code == UPSTREAM_FAILED:
            scope.upstream_failed += 1
        elif element not in self._may_fail:
            scope.failed += 1

    # ── chains of maps ────────────────────────────────────────────────────────────────────────────────────────────

    def _open_gate(self, chain: Chain, stage: Stage) -> None:
        """All that a map waits for, beside the items it takes from another, is there."""
        if stage.gate:
            return
        stage.gate = True
        if stage.position == 0:
            chain.begun = True
            for each in chain.stages:
                if each.gate and self._state[each.container] == PENDING:
                    self._expand(each.container)
                for tree in each.trees:
                    if tree.container != each.container and self._state[tree.container] == PENDING:
                        self._expand(tree.container)
            self._dirty[chain] = None
        elif chain.begun:
            self._expand(stage.container)
            waiting, stage.waiting = stage.waiting, []
            for element in waiting:
                if self._state[element] == PENDING:
                    self._make_ready(element, 1, _READY)
            self._dirty[chain] = None

    def _expand(self, container: int) -> None:
        """A map has become elements: none yet."""
        at, transitions = self._at, self._step.transitions
        transitions.append((container, 1, _READY, at))
        transitions.append((container, 1, _CODE[READY, EXPANDED, Reason.BECAME_MORE], at))
        self._state[container] = EXPANDED
        self._attempt[container] = 1
        self.ready_ns[container] = self.launched_ns[container] = self.started_ns[container] = at

    def _close_gate(self, chain: Chain, stage: Stage) -> None:
        """A map will not run: its elements, if there are any, end like it."""
        stage.dead = self._state[stage.container]
        stage.concluded = True
        if chain.begun:
            for element in self.elements_of(stage.container):
                if self._state[element] == PENDING:
                    self._bury(element, stage)
            self._dirty[chain] = None

    def _bury(self, element: int, stage: Stage) -> None:
        """An element of a map that does not run ends like it."""
        if stage.dead == CANCELLED or not stage.dead:
            self._settle(element, CANCELLED, stage.reason or self._stopping or Reason.NOT_NEEDED)
            return
        self._cause[element] = stage.container
        reason = Reason.UPSTREAM_SKIPPED if stage.dead == SKIPPED else Reason.UPSTREAM_FAILED
        self._settle(element, SKIPPED if stage.dead == SKIPPED else UPSTREAM_FAILED, reason)

    def _never_begun(self, chain: Chain, stage: Stage) -> None:
        """A map has ended before its chain began: those that would have taken from it end, too."""
        code = self._state[stage.container]
        if code in _DONE:  # an earlier session did it all
            return
        below = [chain.stages[position].container for position in stage.below]
        below += [tree.container for tree in stage.trees if tree.container != stage.container]
        for container in below:
            if self._state[container] == PENDING:
                self._bar(container, _SKIP if code == SKIPPED else _BAD, stage.container)

    def _expanded(self, event: m.Expanded) -> None:
        found = self._stages.get(event.element)
        if found is None or not found[0].pulling or found[1].position:
            if found is not None and found[0].begun:
                self.late += 1
                self._step.late += 1
                return
            raise InvalidTransition(event, "no items were asked for", self._story(event.element))
        chain = found[0]
        chain.pulling = False
        chain.known += event.count
        if not event.more:
            self._source_ended(chain)
        self._dirty[chain] = None

    def _source_failed(self, chain: Chain, stage: Stage) -> None:
        if stage.position or not chain.more:
            self.late += 1
            self._step.late += 1
            return
        chain.failed = True
        chain.pulling = False
        self._source_ended(chain)
        self._dirty[chain] = None

    def _source_ended(self, chain: Chain) -> None:
        chain.more = False
        for stage in chain.stages:
            for tree in stage.trees:
                tree.size_known(chain.known)
                self._tree_sized(tree)

    def _admit_all(self) -> None:
        while self._dirty:
            chains, self._dirty = list(self._dirty), {}
            for chain in chains:
                self._admit(chain)
                if chain.complete:
                    for stage in chain.stages:
                        self._try_conclude(chain, stage)
                        if chain.cut and not stage.open:
                            self._fell(stage)
            if self._rippling:
                self._ripple()

    def _admit(self, chain: Chain) -> None:
        """Let indices begin, as many as the window has room for."""
        if not chain.begun:
            return
        if self._stopping is not None or all(stage.concluded for stage in chain.stages):
            self._cut_short(chain)
        stages, state, left = chain.stages, self._state, self._left
        width = len(stages)
        while (room := chain.window - chain.under_way) > 0 and chain.admitted < chain.known:
            if chain.admitted == chain.numbered:
                self._number_block(chain)
            block = self._elements.blocks[chain.block]
            low = chain.admitted - block.first
            high = min(low + room, len(block.left))
            for index in range(low, high):
                chain.admitted += 1
                if not block.left[index]:
                    continue
                chain.under_way += 1
                base = block.start + index * width
                for stage in stages:
                    element = base + stage.position
                    if state[element] != PENDING:
                        continue
                    if self._recall is not None and self._remember(element):
                        continue
                    if stage.concluded:
                        self._bury(element, stage)
                    elif not left[element]:
                        if stage.gate:
                            self._make_ready(element, 1, _READY)
                        else:
                            stage.waiting.append(element)
            if self._rippling:
                self._ripple()
        if (
            chain.more
            and not chain.pulling
            and chain.admitted == chain.known
            and chain.under_way <= chain.window // 2  # not for each that ends: items come in larger lots
        ):
            chain.pulling = True
            self._step.commands.append(m.Pull(chain.stages[0].container, chain.window - chain.under_way))

    def _cut_short(self, chain: Chain) -> None:
        """No further index begins."""
        if chain.more or chain.known > chain.numbered:
            chain.cut = True
        chain.known = chain.numbered
        if chain.more:
            self._source_ended(chain)

    def _fell(self, stage: Stage) -> None:
        """Not all of its items will come: a tree that has nothing more to merge ends."""
        for tree in stage.trees:
            if not tree.concluded and not tree.open and self._state[tree.container] == EXPANDED:
                tree.concluded = True
                self._settle(tree.container, CANCELLED, self._stopping or stage.reason or Reason.CANCEL_REQUESTED)

    def _number_block(self, chain: Chain) -> None:
        """Give the next indices their elements."""
        e, stages = self._elements, chain.stages
        count = min(BLOCK, chain.known - chain.numbered)
        width = len(stages)
        block = Block(CHAIN, stages[0].container, chain=chain, first=chain.numbered)
        chain.block = len(e.blocks)
        start = e.grow(block, count * width)
        block.left = bytearray([width]) * count
        e.left.extend([len(stage.over) for stage in stages] * count)
        e.uses.extend([stage.uses - (stage.whole and stage.concluded) for stage in stages] * count)
        e.queue.extend([stage.queue for stage in stages] * count)
        e.policy.extend([stage.policy for stage in stages] * count)
        e.rank.extend([stage.rank for stage in stages] * count)
        e.dependants.extend([()] * (count * width))
        e.inputs.extend([()] * (count * width))
        e.linked[start:] = b"\x01" * (count * width)
        for stage in stages:
            stage.blocks.append(chain.block)
            stage.open += count
            if stage.spec.grafts:
                self._grafts.update(range(start + stage.position, start + count * width, width))
        self._open += count * width
        chain.numbered += count

    def _tell_chain(self, element: int, outcome: int, block: Block) -> None:
        """An element of a map has ended: the same index of others may go on."""
        chain = block.chain
        assert chain is not None
        stages, uses, left, state = chain.stages, self._uses, self._left, self._state
        index, position = divmod(element - block.start, len(stages))
        stage = stages[position]
        base = element - position
        self._count(stage, element, outcome)
        for over in stage.over:
            up = base + over
            uses[up] -= 1
            if not uses[up] and state[up] in _DONE:
                self._released.append(up)
        for position in stage.below:
            below = base + position
            left[below] -= 1
            if state[below] != PENDING:
                continue
            if outcome == _OK:
                if not left[below]:
                    self._all_landed(below, stages[position])
            elif outcome == _BAD:
                self._bar(below, _BAD, element)
            else:
                self._barred.setdefault(below, (_SKIP, element))
                if not left[below]:
                    self._all_landed(below, stages[position])
        for tree in stage.trees:
            if tree.base and state[element] in _FAILURES:
                tree.failed += 1
            self._feed(tree, tree.base, block.first + index, element, outcome)
        block.left[index] -= 1
        if not block.left[index] and block.first + index < chain.admitted:
            chain.under_way -= 1
            self._dirty[chain] = None
        if stage.spec.enough or (not stage.open and chain.complete):
            self._try_conclude(chain, stage)

    def _land(self, event: Succeeded) -> bool:
        """The success of an element of a map, as a rule: what `_end`, `_settle` and `_tell_chain` do, without their detours.

        False when it is anything else, and nothing has changed.
        """
        element, state = event.element, self._state
        if not (
            0 <= element < len(state)
            and self._held[element] == _LINKED
            and self._attempt[element] == event.attempt
            and 0 <= event.started <= event.ended
        ):
            return False
        e = self._elements
        block = e.blocks[e.block_of[element]]
        chain = block.chain
        if chain is None:
            return False
        stages = chain.stages
        index, position = divmod(element - block.start, len(stages))
        stage = stages[position]
        if stage.trees or stage.spec.enough or self._overdue:
            return False
        record, uses = self._step.transitions.append, self._uses
        if state[element] == READY:
            self.started_ns[element] = event.started
            record((element, event.attempt, _STARTED, event.started))
        state[element] = SUCCEEDED
        self._held[element] = 0
        self.ended_ns[element] = event.ended
        record((element, event.attempt, _RETURNED, event.ended))
        self._waiting.free(self._queue_of[element])
        self._open -= 1
        stage.open -= 1
        stage.ok += 1
        base = element - position
        for other in stage.over:
            up = base + other
            uses[up] -= 1
            if not uses[up]:
                self._released.append(up)
        for other in stage.below:
            below = base + other
            self._left[below] -= 1
            if not self._left[below] and state[below] == PENDING:
                self._all_landed(below, stages[other])
        if not uses[element]:
            self._released.append(element)
        block.left[index] -= 1
        if not block.left[index] and block.first + index < chain.admitted:
            chain.under_way -= 1
            self._dirty[chain] = None
        if not stage.open and chain.complete:
            self._try_conclude(chain, stage)
            self._ripple()
        return True

    def _all_landed(self, element: int, stage: Stage) -> None:
        """The items that an element takes from others are there, or one of them was skipped."""
        barred = self._barred.pop(element, None) if self._barred else None
        if barred is not None:
            self._bar(element, *barred)
        elif stage.gate:
            self._make_ready(element, 1, _READY)
        else:
            stage.waiting.append(element)

    def _try_conclude(self, chain: Chain, stage: Stage) -> None:
        """End a map whose elements have ended, or enough of them."""
        if stage.concluded or self._state[stage.container] != EXPANDED:
            return
        container = stage.container
        enough = 0 < stage.spec.enough <= stage.ok
        if not enough and (stage.open or not chain.complete):
            return
        stage.concluded = True
        if container in self._trees:
            return  # its tree has the last word
        if enough:
            self._succeed_container(container, Reason.ENOUGH)
            if stage.spec.cancel_rest:
                self._not_needed(chain, stage)
        elif chain.failed and stage.position == 0:
            self._end_container(container, FAILED, Reason.RAISED)
        elif stage.failed:
            self._end_container(container, FAILED, Reason.ELEMENTS_FAILED)
        elif stage.upstream_failed:
            self._end_container(container, UPSTREAM_FAILED, Reason.UPSTREAM_FAILED)
        elif stage.cancelled:
            self._end_container(container, CANCELLED, stage.reason or self._stopping or Reason.CANCEL_REQUESTED)
        else:
            self._succeed_container(container, Reason.ELEMENTS_DONE)
        self._part_with(container)

    def _end_container(self, container: int, target: int, reason: Reason) -> None:
        """A map has not succeeded. Somebody may want what there is of it all the same."""
        if self._uses[container] and any(below in self._rules for below in self._dependants[container]):
            self._step.commands.append(m.Gather(container))
        self._settle(container, target, reason)

    def _succeed_container(self, container: int, reason: Reason) -> None:
        if self._uses[container]:
            self._step.commands.append(m.Gather(container))
        self._settle(container, SUCCEEDED, reason)

    def _not_needed(self, chain: Chain, stage: Stage) -> None:
        """Enough elements of a map have succeeded: the rest of them, and what only they would have needed, is cancelled."""
        rest = [stage]
        for other in reversed(chain.stages[: stage.position]):
            below = [chain.stages[position] for position in other.below]
            unread = not other.whole and not other.trees and not self._dependants[other.container]
            if unread and all(each in rest or each.concluded for each in below):
                rest.append(other)
        for each in rest:
            each.reason = Reason.NOT_NEEDED
            self._cancel(
                [element for element in self.elements_of(each.container) if self._state[element] not in _ENDED],
                Reason.NOT_NEEDED,
            )
            if each is not stage and not each.concluded:
                each.concluded = True
                self._settle(each.container, CANCELLED, Reason.NOT_NEEDED)
        self._dirty[chain] = None

    # ── reductions by tree ────────────────────────────────────────────────────────────────────────────────────────

    def _feed(self, tree: Tree, level: int, index: int, element: int, outcome: int) -> None:
        """Item `index` of a level has ended."""
        while not tree.concluded:
            if tree.size.get(level) == 1 and level > 0:
                self._conclude_tree(tree, element, outcome)
                return
            number = index // tree.fan_in
            group = tree.groups.get((level, number))
            if group is None:
                group = tree.groups[level, number] = Group(tree.fan_in)
            group.landed += 1
            if outcome == _OK:
                group.items[index % tree.fan_in] = element
            elif outcome == _BAD and group.failed < 0:
                group.failed = element
            size = tree.group_size(level, number)
            if group.landed < (tree.fan_in if size == UNKNOWN_SIZE else size):
                return
            if level and size == 1:  # the last one, and alone: it is an item of the next level as it is
                del tree.groups[level, number]
                level, index = level + 1, number
                continue
            self._merge(tree, level, number, group)
            return

    def _tree_sized(self, tree: Tree) -> None:
        """It is known now how many items there are: groups that looked unfinished may be whole, and one may be the result."""
        if tree.base == 0 and tree.size[0] == 0 and not tree.concluded:
            self._merge(tree, 0, 0, Group(0))
            return
        for level, number in sorted(tree.groups):
            group = tree.groups.get((level, number))
            if group is None or group.landed < tree.group_size(level, number):
                continue
            if tree.size[level] == 1 and level:
                found = group.items[0]
                self._conclude_tree(tree, found if found >= 0 else group.failed, _OK if found >= 0 else _BAD)
            elif level and tree.group_size(level, number) == 1:
                item = group.items[0] if group.items[0] >= 0 else group.failed
                del tree.groups[level, number]
                self._feed(tree, level + 1, number, item, _OUTCOME[self._state[item]] if item >= 0 else _SKIP)
            else:
                self._merge(tree, level, number, group)

    def _merge(self, tree: Tree, level: int, number: int, group: Group) -> None:
        """A group is whole: an element merges it."""
        tree.groups.pop((level, number), None)
        e = self._elements
        block = Block(TREE, tree.container, tree=tree)
        block.where = (level + 1, number)
        tree.blocks.append(len(e.blocks))
        element = e.grow(block, 1)
        items = tuple([item for item in group.items if item >= 0])
        e.left.append(0)
        e.uses.append(1)
        e.queue.append(tree.queue)
        e.policy.append(tree.policy)
        e.rank.append(tree.rank)
        e.dependants.append(())
        e.inputs.append(items)
        e.linked[element] = 1
        tree.open += 1
        self._open += 1
        if self._stopping is not None:
            self._settle(element, CANCELLED, self._stopping)
        elif group.failed >= 0:
            self._cause[element] = group.failed
            self._settle(element, UPSTREAM_FAILED, Reason.UPSTREAM_FAILED)
        elif not items and group.landed:
            self._settle(element, SKIPPED, Reason.UPSTREAM_SKIPPED)
        elif self._recall is None or not self._remember(element):
            self._make_ready(element, 1, _READY)

    def _conclude_tree(self, tree: Tree, element: int, outcome: int) -> None:
        """The last merge has ended, or will never be."""
        tree.concluded = True
        container = tree.container
        if self._state[container] != EXPANDED:
            return
        if outcome == _OK:
            tree.root = element
            self._succeed_container(container, Reason.ELEMENTS_DONE)
            self._part_with(container)
        elif tree.failed:
            self._settle(container, FAILED, Reason.ELEMENTS_FAILED)
        elif outcome == _SKIP:
            self._settle(container, SKIPPED, Reason.UPSTREAM_SKIPPED)
        elif element >= 0 and self._state[element] == CANCELLED:
            self._settle(container, CANCELLED, self._stopping or tree.reason or Reason.CANCEL_REQUESTED)
        else:
            self._settle(container, UPSTREAM_FAILED, Reason.UPSTREAM_FAILED)

    # ── stopping ──────────────────────────────────────────────────────────────────────────────────────────────────

    def _cancel(self, elements: Iterable[int], reason: Reason) -> None:
        """Stop elements, and what they have become. Those that are out are asked to."""
        work = list(elements)
        for element in work:  # grows while it is walked
            code = self._state[element]
            if code in _ENDED:
                continue
            if self._held[element]:
                self._ask(element, reason)
                continue
            if code != EXPANDED:
                self._drop(element, CANCELLED, reason)
                continue
            if element in self._scopes:
                self._scopes[element].reason = reason
                work += self.elements_of(element)
                continue
            if element in self._trees:
                self._trees[element].concluded = True
            if element in self._stages:
                chain, stage = self._stages[element]
                stage.dead, stage.reason, stage.concluded = CANCELLED, reason, True
                self._dirty[chain] = None
            work += self._parts_of(element)
            self._end_container(element, CANCELLED, reason)
            self._part_with(element)

    def _parts_of(self, container: int) -> list[int]:
        parts = list(self.elements_of(container))
        if container in self._trees:
            blocks = [self._elements.blocks[number] for number in self._trees[container].blocks]
            parts += [block.start for block in blocks]
        return [part for part in dict.fromkeys(parts) if self._state[part] not in _ENDED]

    def _stop(self, reason: Reason) -> None:
        """Begin nothing any more; unless draining, ask what runs to stop as well.

        What tidies up is spared, so that it can: until somebody cancels a second time.
        """
        again = reason is Reason.CANCEL_REQUESTED and self._stopping is Reason.CANCEL_REQUESTED
        if again or not self._begun:  # nothing was set up yet
            self._forced = True
        if self._stopping in (None, Reason.DRAINED):  # a cancel outranks a drain; nothing outranks a cancel
            self._stopping = reason
        spared, held, state = self._tidies, self._held, self._state
        for element in range(len(state)):
            if element in spared and not self._forced:
                continue
            if held[element]:
                if held[element] <= _LINKED and (reason is not Reason.DRAINED or self._queue_of[element] < 0):
                    self._ask(element, reason)
            elif state[element] in (PENDING, READY, RETRYING):
                self._drop(element, CANCELLED, reason)
        self._dirty.update(dict.fromkeys([chain for chain, _ in self._stages.values()]))
        self._waiting.clear(lambda element: self._state[element] == READY)
        self._begun = True  # a run cancelled before it began still ends

    def _is_spared(self, element: int) -> bool:
        """Whether it may begin although the run is stopping: because it tidies up."""
        return element in self._tidies and not self._forced

    def _ask(self, element: int, reason: Reason) -> None:
        if self._queue_of[element] < 0:  # a graph that is being made: nobody can be asked, and nobody need be
            self._let_go(element)
            self._settle(element, CANCELLED, reason)
            return
        if self._held[element] > _LINKED:
            return  # every attempt is asked once
        self._held[element] = _ASK[reason]
        self._asks.setdefault((self.lane(element), reason), []).append(element)

    # ── time ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def _limit_total(self, element: int) -> None:
        policy = self.policy(element)
        if policy.total_timeout:
            heappush(self._times, (self._at + policy.total_timeout, _TOTAL_DEADLINE, element, 0))

    def _tick(self) -> None:
        self._timer = NEVER
        while self._times and self._times[0][0] <= self._at:
            due, kind, element, attempt = heappop(self._times)
            state, held = self._state[element] if element < len(self._state) else 0, 0
            if kind == _RATE:
                continue  # like any step, this one ends by filling what is free
            if kind == _RUN_DEADLINE:
                if self._stopping is None:
                    self._failed = True
                    self._stop(Reason.DEADLINE)
                continue
            held = self._held[element]
            if kind == _RETRY:
                if state == RETRYING:
                    self._make_ready(element, attempt + 1, _AGAIN)
            elif kind == _ATTEMPT_DEADLINE:
                if held in (_OUT, _LINKED) and self._attempt[element] == attempt:
                    self._overdue[element] = due
                    self._ask(element, Reason.ATTEMPT_TIMEOUT)
            elif held:
                if held <= _LINKED:
                    self._overdue[element] = due
                    self._ask(element, Reason.TOTAL_TIMEOUT)
                elif _ASKED[held] is Reason.ATTEMPT_TIMEOUT:
                    self._held[element] = _ASK[Reason.TOTAL_TIMEOUT]  # asked already; but there is no next attempt
            elif state in (READY, RETRYING):
                self._drop(element, TIMED_OUT, Reason.TOTAL_TIMEOUT)
                self._ripple()  # it may stop the run, before others run out of time
            elif state == EXPANDED and element in self._scopes:
                self._cancel([element], Reason.NOT_NEEDED)
                self._scopes[element].reason = Reason.TOTAL_TIMEOUT

    def _set_timer(self, commands: list[m.Command]) -> None:
        times = self._times
        while times and self._is_past(times[0]):
            heappop(times)
        if times and times[0][0] != self._timer:
            self._timer = times[0][0]
            commands.append(m.SetTimer(self._timer))

    def _is_past(self, entry: tuple[int, int, int, int]) -> bool:
        _, kind, element, attempt = entry
        if kind >= _RUN_DEADLINE:
            return kind == _RUN_DEADLINE and self._stopping is not None
        if kind == _ATTEMPT_DEADLINE:
            return attempt != self._attempt[element] or self._held[element] not in (_OUT, _LINKED)
        return self._state[element] in _ENDED

    # ── telling right from wrong ──────────────────────────────────────────────────────────────────────────────────

    def _current(
        self,
        event: Started
        | Succeeded
        | m.Skipped
        | m.Cached
        | m.Failed
        | m.Crashed
        | m.Interrupted
        | m.Abandoned
        | m.Grafted,
    ) -> bool:
        """Whether the event is about the attempt that is out. False and counted when it is late; raises otherwise."""
        element = event.element
        if not 0 <= element < len(self._state):
            raise InvalidTransition(event, "no such element", f"elements are 0..{len(self._state) - 1}")
        attempt = self._attempt[element]
        if event.attempt == attempt and self._held[element]:
            return True
        if (
            1 <= event.attempt < attempt
            or (event.attempt == attempt and self._state[element] in _ENDED and attempt)
            or (event.attempt == attempt and self._state[element] == RETRYING)
        ):
            self.late += 1
            self._step.late += 1
            return False
        raise InvalidTransition(event, "no such attempt is out", self._story(element))

    def _story(self, element: int) -> str:
        def when(ns: int) -> str:
            return "never" if ns == NEVER else f"{ns} ns"

        if not 0 <= element < len(self._state):
            return f"elements are 0..{len(self._state) - 1}"
        held = self._held[element]
        return (
            f"element {element}: {self.state(element)}, attempt {self._attempt[element]}, "
            f"{'out' if held else 'not out'}"
            f"{f', asked to stop ({_ASKED[held]})' if held > _LINKED else ''}, "
            f"waits for {self._left[element]} upstreams, ready {when(self.ready_ns[element])}, "
            f"launched {when(self.launched_ns[element])}, started {when(self.started_ns[element])}, "
            f"ended {when(self.ended_ns[element])}"
        )

    def _verdict(self) -> RunState:
        cancelled = self._state.count(CANCELLED)
        if self._stopping is Reason.CANCEL_REQUESTED and cancelled:
            return RunState.CANCELLED
        if self._stopping is Reason.DRAINED and cancelled:
            return RunState.INTERRUPTED
        return RunState.FAILED if self._failed else RunState.SUCCEEDED

    def _scope(self, container: int) -> Scope | None:
        found = self._stages.get(container)
        if found is not None:
            return found[1]
        return self._trees.get(container) or self._scopes.get(container)

    def check(self) -> None:
        """Raise AssertionError unless every invariant holds. O(elements + edges): for tests and for hunting bugs."""
        state, waiting = self._state, self._waiting
        out = [0] * len(waiting.lanes)
        taken = [0] * len(waiting.limits)
        for v in range(len(state)):
            s = state[v]
            if self._held[v]:
                assert s in (READY, RUNNING), self._story(v)
                queue = self._queue_of[v]
                if queue >= 0:
                    requirement = waiting.requirement[queue]
                    lane = waiting.lanes[waiting.lane[queue]]
                    out[waiting.lane[queue]] += min(requirement.slots, lane.slots)
                    for index, weight in requirement.limits:
                        taken[index] += weight
            else:
                assert s != RUNNING, self._story(v)
            if s == UPSTREAM_FAILED and v in self._cause:
                root = self.cause(v)[0]
                assert root != v and state[root] in _ENDED and state[root] not in _DONE, self._story(v)
            assert self._attempt[v] <= max(1, self.policy(v).attempts), self._story(v)
            assert self._uses[v] >= 0, self._story(v)
        for block in self._elements.blocks:
            if block.kind == GRAPH:
                self._check_graph(block)
        for container, (chain, stage) in self._stages.items():
            ended = sum(state[v] in _ENDED for v in self.elements_of(container))
            assert chain.numbered - ended == stage.open, (container, stage.open)
            assert 0 <= chain.under_way <= chain.window, (container, chain.under_way)
            assert chain.admitted <= chain.numbered <= max(chain.known, chain.numbered), container
        assert self._open == sum(s not in _ENDED for s in state)
        for index, lane in enumerate(waiting.lanes):
            lane.check()
            assert out[index] <= lane.in_use, (lane, out[index])
        for index, limit in enumerate(waiting.limits):
            limit.check()
            assert taken[index] <= limit.in_use, (limit, taken[index])
        for number, heap in enumerate(waiting.queues):
            queued = [key & ((1 << ELEMENT_BITS) - 1) for key in heap]
            assert len(set(queued)) == len(queued), "queued twice"
            ready = sum(self._is_ready(v) for v in queued)
            expected = sum(self._queue_of[v] == number and self._is_ready(v) for v in range(len(state)))
            assert ready == expected, (number, ready, expected)
            assert len(queued) - ready == waiting.stale[number], (number, queued, waiting.stale[number])
        assert (self.finished is not None) == (self._open == 0 and self._begun)

    def _check_graph(self, block: Block) -> None:
        plan, state, start = block.plan, self._state, block.start
        assert plan is not None
        for node in range(plan.size):
            v = start + node
            s = state[v]
            if v in self._special:
                continue  # what holds for these, their rules say
            done = sum(state[start + up] in _ENDED for up in plan.upstreams[node])
            assert self._left[v] == len(plan.upstreams[node]) - done, self._story(v)
            if s in (READY, RUNNING, RETRYING, EXPANDED, *_DONE, *_FAILURES - {UNKNOWN}) and v not in self._restored:
                assert all(state[start + up] in _DONE for up in plan.upstreams[node]), f"too early: {self._story(v)}"
                assert self._attempt[v] >= 1, self._story(v)
            if node not in plan.maps:
                readers = sum(
                    node in plan.inputs[d] and state[start + d] not in _ENDED
                    for d in {*plan.dependants[node]}
                    if node not in (plan.maps[d].over if d in plan.maps else ())
                )
                parted = block.owner >= 0 and state[block.owner] in _ENDED
                assert self._uses[v] == readers + (node in plan.pinned and not parted), self._story(v)


def _ranks(plan: Plan) -> list[int]:
    """By node: 1 for what should start first, more for what may wait. As small as they can be, as they are kept in 32 bits."""
    top = max(plan.rank, default=0)
    if top - min(plan.rank, default=0) < 1 << 30:
        return [1 + top - rank for rank in plan.rank]
    order = {rank: number for number, rank in enumerate(sorted(set(plan.rank), reverse=True), 1)}
    return [order[rank] for rank in plan.rank]
