"""The scheduler: a state machine that decides what is next. Events in, history and commands out.

It owns the state of every task of one run and nothing else. It has no clock, no randomness, no I/O and no locks: the
time of an event is in the event, the time of the call is an argument, and the draw for jitter is a function given by the
caller. The same plan, events and times always give the same steps.

Theory, before the code:

- An *element* is what runs; a *node* is what was declared. Single tasks are elements 0..n-1 with the number of their node.
- Readiness is a counter: `left[v]` upstreams have yet to succeed. The success of the last one makes v ready.
- Ready elements wait in one heap per lane, keyed ``(maxrank − rank)·n + number``: the longest way to a sink first, then the
  order of declaration. They leave it when the lane has a slot (see lanes.py).
- `held[v]` is 0, or 1 while an attempt of v is out and holds a slot, or above that when we have asked it to stop; then it
  says why. A final event for an attempt that is out always frees its slot, whatever else it means.
- An event for a past attempt, or for a task that has ended, is *late*: it changes nothing and is counted. One that cannot be
  (an attempt never launched, a second Started) raises InvalidTransition with the task's story.
- One heap of times serves retries and deadlines. Entries are checked when they come up, never searched for. A task that ends
  before its Started is told never enters it.
- A run that is resumed begins with elements that have ended already (see RunStarted). They are never ready, and are
  counted off as if they had ended in this run.
- After a batch of events, free slots are given back and filled, once per lane.

The success of a task that nobody asked to stop is handled inside the loop of `handle`; everything else out of line.
"""

from __future__ import annotations

from array import array
from heapq import heapify, heappop, heappush
from typing import TYPE_CHECKING, Final, assert_never

from flowlane.core import messages as m
from flowlane.core.messages import NEVER, Launch, Release, Started, Step, Succeeded
from flowlane.core.states import (
    CACHED,
    CANCELLED,
    CRASHED,
    FAILED,
    PENDING,
    READY,
    RETRYING,
    RULES,
    RUNNING,
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
    from collections.abc import Callable, Iterable, Sequence

    from flowlane.core.lanes import Lane
    from flowlane.core.plan import Plan

__all__ = ["InvalidTransition", "Scheduler"]

_READY: Final = code_of(TaskState.PENDING, TaskState.READY, Reason.UPSTREAM_DONE)
_STARTED: Final = code_of(TaskState.READY, TaskState.RUNNING, Reason.STARTED)
_RETURNED: Final = code_of(TaskState.RUNNING, TaskState.SUCCEEDED, Reason.RETURNED)
_AGAIN: Final = code_of(TaskState.RETRYING, TaskState.READY, Reason.BACKOFF_ELAPSED)

_CODE: Final = {(STATES.index(r.source), STATES.index(r.target), r.reason): code for code, r in enumerate(RULES)}
_ENDED: Final = frozenset(STATES.index(state) for state in TERMINAL)
_DONE: Final = (SUCCEEDED, CACHED)

# Values of `held` above 1: why we asked the attempt to stop.
_OUT: Final = 1
_ASKED: Final = (None, None, Reason.ATTEMPT_TIMEOUT, Reason.TOTAL_TIMEOUT, Reason.CANCEL_REQUESTED, Reason.FAIL_FAST)
_ASK: Final = {reason: held for held, reason in enumerate(_ASKED) if reason is not None}

# Kinds of entries in the heap of times.
_RETRY: Final = 0
_ATTEMPT_DEADLINE: Final = 1
_TOTAL_DEADLINE: Final = 2


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
    token   this run's number on shared lanes, unique among the runs that share them
    jitter  returns a share in [0, 1) for each backoff with jitter; default: always the full delay

    Feed it with `handle`, first a RunStarted. Not thread-safe: one owner calls it.
    """

    def __init__(
        self, plan: Plan, lanes: Sequence[Lane], *, token: int = 0, jitter: Callable[[], float] | None = None
    ) -> None:
        n = plan.size
        if len(set(map(id, lanes))) != len(lanes):
            raise ValueError("the same lane is given twice; its waiting list knows one wish a run")
        if plan.lane and max(plan.lane) >= len(lanes):
            raise ValueError(f"the plan uses lane {max(plan.lane)}, but only {len(lanes)} lanes are given")
        self.plan = plan
        self.token = token
        self.late = 0
        self.finished: RunState | None = None
        self._lanes = tuple(lanes)
        self._lane_of, self._dependants, self._inputs = plan.lane, plan.dependants, plan.inputs
        self._jitter = jitter
        self._state = bytearray(n)
        self._attempt = bytearray(n)
        self._held = bytearray(n)
        self._left = [len(us) for us in plan.upstreams]
        self._uses = [0] * n  # consumers that have not ended yet; one more for a value of the run's result
        for reads in plan.inputs:
            for up in reads:
                self._uses[up] += 1
        for node in plan.pinned:
            self._uses[node] += 1
        never = array("q", [NEVER]) * n
        self.ready_ns = never[:]  # times of the latest attempt, NEVER where it did not come to that
        self.launched_ns = never[:]
        self.started_ns = never[:]
        self.ended_ns = never
        #: when a task was first ready, for those with more than one attempt
        self.first_ready_ns: dict[int, int] = {}
        top = max(plan.rank, default=0)
        self._key = [(top - rank) * n + node for node, rank in enumerate(plan.rank)]
        self._queues: list[list[int]] = [[] for _ in lanes]
        self._stale = [0] * len(lanes)  # entries of each queue whose element has ended meanwhile
        self._freed = [0] * len(lanes)
        self._times: list[tuple[int, int, int, int]] = []  # (due, kind, element, attempt)
        self._timer = NEVER
        self._asks: dict[tuple[int, Reason], list[int]] = {}  # (lane, reason) → whom this batch asks to stop
        self._overdue: dict[int, int] = {}  # element asked to stop for being late → the deadline it missed
        self._has_total = any(policy.total_timeout for policy in plan.policies)
        self._cause: dict[int, int] = {}
        self._open = n
        self._begun = False
        self._stopping: Reason | None = None
        self._failed = False  # whether any task failed, timed out or crashed
        self._restored: frozenset[int] = frozenset()

    # ── what a caller may ask ─────────────────────────────────────────────────────────────────────────────────────

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
        """`upstream_failed` element → the upstream through which the failure reached it: a copy."""
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
        step = Step([], [])
        record = step.transitions.append
        state, attempts, held = self._state, self._attempt, self._held
        waits_for, uses, inputs, lane_of = self._left, self._uses, self._inputs, self._lane_of
        size = len(state)
        released: list[int] = []
        refused: InvalidTransition | None = None
        for event in (pending := iter(events)):
            if type(event) is Succeeded:
                element = event.element
                # the fast path: out, not asked to stop, this attempt, and with the times that a success has
                if (
                    0 <= element < size
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
                    self._freed[lane_of[element]] += 1
                    self._open -= 1
                    for below in self._dependants[element]:
                        waits_for[below] = left = waits_for[below] - 1
                        if not left and state[below] == PENDING:
                            state[below] = READY
                            attempts[below] = 1
                            self.ready_ns[below] = at
                            record((below, 1, _READY, at))
                            heappush(self._queues[lane_of[below]], self._key[below])
                            if self._has_total:
                                self._limit_total(below, at)
                    for up in inputs[element]:
                        uses[up] = left = uses[up] - 1
                        if not left:
                            released.append(up)
                    if not uses[element]:
                        released.append(element)
                    continue
            try:
                self._out_of_line(event, at, step, released)
            except InvalidTransition as error:
                refused = error
                error.step = step
                error.unhandled = list(pending)
                break
        self._close(step, released, at)
        if refused is not None:
            raise refused
        return step

    def _close(self, step: Step, released: list[int], at: int) -> None:
        """After a batch: free slots, fill slots, tell what is no longer needed, set the timer, notice the end."""
        commands = step.commands
        if released:
            commands.append(Release(released))
        if self._asks:
            for (index, reason), elements in self._asks.items():
                if out := [element for element in elements if self._held[element] > _OUT]:
                    commands.append(m.Interrupt(index, out, reason))
            self._asks.clear()
        woken: list[int] = []
        size = len(self._state)
        freed = self._freed
        for index, queue in enumerate(self._queues):
            back = freed[index]
            if not queue and not back:
                continue
            stale = self._stale[index]
            slots, others = self._lanes[index].trade(self.token, back, len(queue) - stale)
            freed[index] = 0
            if others:
                woken.extend(others)
            if slots:
                held, launched = self._held, self.launched_ns
                elements = self._next_ready(index, slots) if stale else [heappop(queue) % size for _ in range(slots)]
                for element in elements:
                    held[element] = _OUT
                    launched[element] = at
                commands.append(Launch(index, elements))
        if self._open == 0 and self.finished is None and self._begun:
            for lane in self._lanes:
                woken.extend(lane.leave(self.token))
            self.finished = self._verdict()
            if woken:
                commands.append(m.Wake(list(dict.fromkeys(woken))))
            commands.append(m.Finish(self.finished))
            return
        if woken:
            commands.append(m.Wake(list(dict.fromkeys(woken))))
        if self._times:
            self._set_timer(commands)

    # ── everything but plain success ──────────────────────────────────────────────────────────────────────────────

    def _out_of_line(self, event: m.Event, at: int, step: Step, released: list[int]) -> None:
        match event:
            case Started():
                self._start(event, step)
            case Succeeded() | m.Failed() | m.Crashed() | m.Interrupted() | m.Abandoned():
                self._end(event, at, step, released)
            case m.Cached():
                self._skip(event, at, step, released)
            case m.TimerFired():
                self._tick(at, step, released)
            case m.SlotAvailable():
                pass  # like any step, this one ends by taking what was set aside, or by handing it on
            case m.CancelRequested():
                self._stop(Reason.CANCEL_REQUESTED, at, step, released)
            case m.DrainRequested():
                self._stop(Reason.DRAINED, at, step, released)
            case m.RunStarted():
                self._begin(event, at, step, released)
            case _:
                assert_never(event)

    def _begin(self, event: m.RunStarted, at: int, step: Step, released: list[int]) -> None:
        if self._begun:
            raise InvalidTransition(event, "the run has begun already", f"{self._open} tasks open")
        self._begun = True
        if event.restored or event.cached or event.unknown:
            self._restore(event, at, step, released)
        # `_make_ready`, for what may be all tasks there are
        record, state, attempts, ready = step.transitions.append, self._state, self._attempt, self.ready_ns
        for element, left in enumerate(self._left):
            if not left and state[element] == PENDING:
                state[element] = READY
                attempts[element] = 1
                ready[element] = at
                record((element, 1, _READY, at))
                self._queues[self._lane_of[element]].append(self._key[element])
                if self._has_total:
                    self._limit_total(element, at)
        for queue in self._queues:
            heapify(queue)

    def _restore(self, event: m.RunStarted, at: int, step: Step, released: list[int]) -> None:
        """Begin with what an earlier session had finished."""
        done = {**dict.fromkeys(event.restored, SUCCEEDED), **dict.fromkeys(event.cached, CACHED)}
        self._restored = frozenset(done)
        unordered: list[int] = []  # what is released depends on all of them: see below
        for element, target in sorted(done.items()):  # as they were declared: people read this
            self._settle(element, target, Reason.RESTORED, at, step, unordered)
            for below in self._dependants[element]:
                self._left[below] -= 1
        released += [element for element in done if not self._uses[element]]
        for element in event.unknown:
            self._failed = True
            self._settle(element, UNKNOWN, Reason.PROCESS_DIED, at, step, released)
        for element in event.unknown:
            self._orphan(element, at, step, released)

    def _make_ready(self, element: int, attempt: int, code: int, at: int, step: Step) -> None:
        if attempt > 1:
            self.first_ready_ns.setdefault(element, self.ready_ns[element])
        self._state[element] = READY
        self._attempt[element] = attempt
        self.ready_ns[element] = at
        self.launched_ns[element] = self.started_ns[element] = self.ended_ns[element] = NEVER
        step.transitions.append((element, attempt, code, at))
        heappush(self._queues[self.plan.lane[element]], self._key[element])
        if self._has_total and attempt == 1:
            self._limit_total(element, at)

    def _start(self, event: Started, step: Step) -> None:
        element = event.element
        if not self._current(event, step):
            return
        if self._state[element] != READY:
            raise InvalidTransition(event, "this attempt has started already", self._story(element))
        self._state[element] = RUNNING
        self.started_ns[element] = event.started
        step.transitions.append((element, event.attempt, _STARTED, event.started))
        policy = self.plan.policies[self.plan.policy[element]]
        if policy.timeout and not self._lanes[self.plan.lane[element]].enforces_timeouts:
            due = event.started + policy.timeout
            heappush(self._times, (due, _ATTEMPT_DEADLINE, element, event.attempt))

    def _end(
        self,
        event: Succeeded | m.Failed | m.Crashed | m.Interrupted | m.Abandoned,
        at: int,
        step: Step,
        released: list[int],
    ) -> None:
        """An attempt is over: free its slot, decide between success, retry and a final state."""
        element = event.element
        if not self._current(event, step):
            return
        if self._state[element] == READY:
            if event.started != NEVER:
                self._state[element] = RUNNING
                self.started_ns[element] = event.started
                step.transitions.append((element, event.attempt, _STARTED, event.started))
            elif isinstance(event, Succeeded):
                raise InvalidTransition(event, "this attempt has not started", self._story(element))
        asked = _ASKED[self._held[element]]
        out_of_time = asked is Reason.TOTAL_TIMEOUT
        ended = event.ended if event.ended != NEVER else at
        due = self._overdue.pop(element, NEVER)
        if ended <= due and not isinstance(event, (m.Interrupted, m.Abandoned)):
            asked = None  # it had ended of itself and in time: our asking crossed the news on its way
        policy = self.plan.policies[self.plan.policy[element]]
        if (
            asked is None
            and isinstance(event, m.Interrupted)
            and self._state[element] == RUNNING
            and policy.timeout
            and self._lanes[self.plan.lane[element]].enforces_timeouts
        ):
            asked = Reason.ATTEMPT_TIMEOUT  # the executor kept the deadline for us
        if isinstance(event, Succeeded) and asked in (None, Reason.CANCEL_REQUESTED, Reason.FAIL_FAST):
            # It returned in time, or although we had asked it to stop for another's sake.
            self._held[element] = 0
            self._freed[self.plan.lane[element]] += 1
            self._settle(element, SUCCEEDED, Reason.RETURNED, ended, step, released)
            self._pass_on(element, at, step, released)
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
        self._held[element] = 0
        self._freed[self.plan.lane[element]] += 1
        if again and event.attempt < policy.attempts:
            if not out_of_time:
                self._retry(element, reason, ended, at, step, released)
                return
            target, reason = TIMED_OUT, Reason.TOTAL_TIMEOUT
        self._settle(element, target, reason, ended, step, released)
        if target != CANCELLED:
            self._failed = True
            if self.plan.fail_fast and self._stopping is None:
                self._stop(Reason.FAIL_FAST, at, step, released)
        self._orphan(element, at, step, released)

    def _skip(self, event: m.Cached, at: int, step: Step, released: list[int]) -> None:
        """An attempt that was out did not have to begin. What it was asked meanwhile does not matter: the value is there."""
        element = event.element
        if not self._current(event, step):
            return
        if self._state[element] != READY:
            raise InvalidTransition(event, "this attempt has started", self._story(element))
        self._overdue.pop(element, None)
        self._held[element] = 0
        self._freed[self._lane_of[element]] += 1
        self._settle(element, CACHED, Reason.CACHE_HIT, event.ended, step, released)
        self._pass_on(element, at, step, released)

    def _pass_on(self, element: int, at: int, step: Step, released: list[int]) -> None:
        """An element's value is there: whoever waited only for it is ready."""
        for below in self._dependants[element]:
            self._left[below] -= 1
            if not self._left[below] and self._state[below] == PENDING:
                self._make_ready(below, 1, _READY, at, step)
        if not self._uses[element]:
            released.append(element)

    def _retry(self, element: int, reason: Reason, ended: int, at: int, step: Step, released: list[int]) -> None:
        attempt = self._attempt[element]
        policy = self.plan.policies[self.plan.policy[element]]
        step.transitions.append((element, attempt, _CODE[self._state[element], RETRYING, reason], ended))
        self._state[element] = RETRYING
        self.ended_ns[element] = ended
        if self._stopping is not None:  # an attempt is left, but nothing is begun any more
            self._settle(element, CANCELLED, self._stopping, at, step, released)
            return
        due = at + policy.delay(attempt, self._jitter() if policy.jitter and self._jitter is not None else 1.0)
        if due <= at:
            self._make_ready(element, attempt + 1, _AGAIN, at, step)
        else:
            heappush(self._times, (due, _RETRY, element, attempt))

    def _settle(self, element: int, target: int, reason: Reason, at: int, step: Step, released: list[int]) -> None:
        """Move an element to a final state. It will read its inputs no more."""
        state = self._state[element]
        step.transitions.append((element, self._attempt[element], _CODE[state, target, reason], at))
        self._state[element] = target
        if state != RETRYING:  # there the latest attempt has its end already
            self.ended_ns[element] = at
        self._open -= 1
        for up in self.plan.inputs[element]:
            self._uses[up] -= 1
            if not self._uses[up] and self._state[up] in _DONE:
                released.append(up)

    def _orphan(self, failed: int, at: int, step: Step, released: list[int]) -> None:
        """Everything downstream of a task that did not succeed ends, and remembers through whom."""
        reached = [failed]
        for above in reached:  # grows while it is walked: breadth first, so that the way told is a shortest one
            for below in self.plan.dependants[above]:
                if self._state[below] == PENDING:
                    self._cause[below] = above
                    self._settle(below, UPSTREAM_FAILED, Reason.UPSTREAM_FAILED, at, step, released)
                    reached.append(below)

    def _stop(self, reason: Reason, at: int, step: Step, released: list[int]) -> None:
        """Begin nothing any more; unless draining, ask what runs to stop as well."""
        if self._stopping in (None, Reason.DRAINED):  # a cancel outranks a drain; nothing outranks a cancel
            self._stopping = reason
        for element in range(self.plan.size):
            held = self._held[element]
            if held:
                if reason is not Reason.DRAINED and held == _OUT:
                    self._ask(element, reason)
            elif self._state[element] in (PENDING, READY, RETRYING):
                self._settle(element, CANCELLED, reason, at, step, released)
        for queue in self._queues:
            queue.clear()
        self._stale = [0] * len(self._queues)
        self._begun = True  # a run cancelled before it began still ends
        for lane in self._lanes:
            if woken := lane.leave(self.token):
                step.commands.append(m.Wake(list(woken)))

    # ── time ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def _limit_total(self, element: int, at: int) -> None:
        policy = self.plan.policies[self.plan.policy[element]]
        if policy.total_timeout:
            heappush(self._times, (at + policy.total_timeout, _TOTAL_DEADLINE, element, 0))

    def _tick(self, at: int, step: Step, released: list[int]) -> None:
        self._timer = NEVER
        while self._times and self._times[0][0] <= at:
            due, kind, element, attempt = heappop(self._times)
            if kind == _RETRY:
                if self._state[element] == RETRYING:
                    self._make_ready(element, attempt + 1, _AGAIN, at, step)
            elif kind == _ATTEMPT_DEADLINE:
                if self._held[element] == _OUT and self._attempt[element] == attempt:
                    self._overdue[element] = due
                    self._ask(element, Reason.ATTEMPT_TIMEOUT)
            elif self._held[element]:
                if self._held[element] == _OUT:
                    self._overdue[element] = due
                    self._ask(element, Reason.TOTAL_TIMEOUT)
                elif _ASKED[self._held[element]] is Reason.ATTEMPT_TIMEOUT:
                    self._held[element] = _ASK[Reason.TOTAL_TIMEOUT]  # asked already; but there is no next attempt
            elif self._state[element] in (READY, RETRYING):
                if self._state[element] == READY:
                    self._stale[self.plan.lane[element]] += 1  # its entry in the queue stays until it comes up
                self._failed = True
                self._settle(element, TIMED_OUT, Reason.TOTAL_TIMEOUT, at, step, released)
                if self.plan.fail_fast:  # a run that is stopping has no task left that waits
                    self._stop(Reason.FAIL_FAST, at, step, released)
                self._orphan(element, at, step, released)

    def _ask(self, element: int, reason: Reason) -> None:
        self._held[element] = _ASK[reason]
        self._asks.setdefault((self.plan.lane[element], reason), []).append(element)

    def _set_timer(self, commands: list[m.Command]) -> None:
        times = self._times
        while times and self._is_past(times[0]):
            heappop(times)
        if times and times[0][0] != self._timer:
            self._timer = times[0][0]
            commands.append(m.SetTimer(self._timer))

    def _is_past(self, entry: tuple[int, int, int, int]) -> bool:
        _, kind, element, attempt = entry
        if kind == _ATTEMPT_DEADLINE:
            return attempt != self._attempt[element] or self._held[element] != _OUT
        return self._state[element] in _ENDED

    def _next_ready(self, index: int, count: int) -> list[int]:
        """Take `count` elements off a queue, and on the way those that have ended in it."""
        queue, state, size = self._queues[index], self._state, self.plan.size
        elements: list[int] = []
        while len(elements) < count:
            element = heappop(queue) % size
            if state[element] == READY:
                elements.append(element)
            else:
                self._stale[index] -= 1
        return elements

    # ── telling right from wrong ──────────────────────────────────────────────────────────────────────────────────

    def _current(
        self,
        event: Started | Succeeded | m.Cached | m.Failed | m.Crashed | m.Interrupted | m.Abandoned,
        step: Step,
    ) -> bool:
        """Whether the event is about the attempt that is out. False and counted when it is late; raises otherwise."""
        element = event.element
        if not 0 <= element < self.plan.size:
            raise InvalidTransition(event, "no such element", f"elements are 0..{self.plan.size - 1}")
        attempt = self._attempt[element]
        if event.attempt == attempt and self._held[element]:
            return True
        if 1 <= event.attempt < attempt or (event.attempt == attempt and self._state[element] in _ENDED and attempt):
            self.late += 1
            step.late += 1
            return False
        if event.attempt == attempt and self._state[element] == RETRYING:
            self.late += 1
            step.late += 1
            return False
        raise InvalidTransition(event, "no such attempt is out", self._story(element))

    def _story(self, element: int) -> str:
        def when(ns: int) -> str:
            return "never" if ns == NEVER else f"{ns} ns"

        return (
            f"element {element}: {self.state(element)}, attempt {self._attempt[element]}, "
            f"{'out' if self._held[element] else 'not out'}"
            f"{f', asked to stop ({_ASKED[self._held[element]]})' if self._held[element] > 1 else ''}, "
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

    def check(self) -> None:
        """Raise AssertionError unless every invariant holds. O(nodes + edges): for tests and for hunting bugs."""
        plan, state = self.plan, self._state
        out = [0] * len(self._lanes)
        for v in range(plan.size):
            s = state[v]
            done = sum(state[u] in _DONE for u in plan.upstreams[v])
            assert self._left[v] == len(plan.upstreams[v]) - done, self._story(v)
            if s in (READY, RUNNING, RETRYING, *_DONE, FAILED, TIMED_OUT, CRASHED) and v not in self._restored:
                assert self._left[v] == 0, f"began before its upstreams: {self._story(v)}"
                assert self._attempt[v] >= 1, self._story(v)
            if self._held[v]:
                assert s in (READY, RUNNING), self._story(v)
                out[plan.lane[v]] += 1
            else:
                assert s != RUNNING, self._story(v)
            if s == UPSTREAM_FAILED:
                root = self.cause(v)[0]
                assert root != v and state[root] in _ENDED and state[root] not in _DONE, self._story(v)
            assert self._attempt[v] <= plan.policies[plan.policy[v]].attempts, self._story(v)
            readers = sum(v in plan.inputs[d] and state[d] not in _ENDED for d in plan.dependants[v])
            assert self._uses[v] == readers + (v in plan.pinned), self._story(v)
        assert self._open == sum(s not in _ENDED for s in state)
        for index, lane in enumerate(self._lanes):
            lane.check()
            assert out[index] <= lane.in_use, (lane, out[index])
            queued = [key % plan.size for key in self._queues[index]]
            assert len(set(queued)) == len(queued), "queued twice"
            waiting = sum(1 for v in queued if state[v] == READY and not self._held[v])
            expected = sum(
                1 for v in range(plan.size) if plan.lane[v] == index and state[v] == READY and not self._held[v]
            )
            assert waiting == expected, (lane, waiting, expected)
            assert len(queued) - waiting == self._stale[index], (lane, queued, self._stale[index])
        assert (self.finished is not None) == (self._open == 0 and self._begun)
