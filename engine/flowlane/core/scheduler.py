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
- A result may be lost after its task has succeeded. Then the task runs again (see remaking.py): the only end that is taken back.
- A run that is resumed begins with elements that have ended already (see RunStarted; for what comes into being later, `recall`).
- After a batch of events, free slots are given back and filled, once per lane.

The success of a plain task that nobody asked to stop is handled inside the loop of `handle`. Whatever else ends goes
through `_settle`, which puts it on a list; `_ripple` works that off, telling dependants, conditions and containers, which may end
in turn. Nothing is recursive.
"""

from __future__ import annotations

from heapq import heappop, heappush
from typing import TYPE_CHECKING, assert_never

from flowlane.core import messages as m
from flowlane.core.elements import NOBODY
from flowlane.core.invariants import Invariants
from flowlane.core.messages import NEVER, Launch, Release, Started, Step, Succeeded
from flowlane.core.outcomes import (
    AGAIN,
    ASK,
    ASKED,
    ATTEMPT_DEADLINE,
    BECAME_READY,
    BEGAN,
    ENDED,
    FOR_OTHERS,
    GRAPH_DEADLINE,
    LINKED,
    OUT,
    RATE,
    RETRY,
    RETURNED,
    RUN_DEADLINE,
    TOTAL_DEADLINE,
)
from flowlane.core.ready import ELEMENT_BITS
from flowlane.core.standing import InvalidTransition
from flowlane.core.states import (
    CACHED,
    CANCELLED,
    CRASHED,
    EXPANDED,
    FAILED,
    PENDING,
    READY,
    RETRYING,
    RUNNING,
    SKIPPED,
    SUCCEEDED,
    TIMED_OUT,
    UNKNOWN,
    Reason,
    RunState,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from flowlane.core.lanes import Lane
    from flowlane.core.limits import Limit
    from flowlane.core.plan import Plan


__all__ = ["InvalidTransition", "Scheduler"]


class Scheduler(Invariants):
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
        super().__init__(plan, lanes, token=token, jitter=jitter, limits=limits, recall=recall)
        self._add_graph(plan, NOBODY)

    # ── the one entrance ──────────────────────────────────────────────────────────────────────────────────────────

    def handle(self, events: Iterable[m.Event], at: int) -> Step:
        """Take a batch of events that happened up to `at` (ns) and say what follows.

        Raises InvalidTransition for an event that cannot be; see there for what stays done.
        """
        self._step = step = Step([], [])
        self._at = at
        released: list[int] = []
        self._released = released
        record = step.transitions.append
        state, attempts, held = self._state, self._attempt, self._held
        waits_for, uses, inputs, queue_of = self._left, self._uses, self._inputs, self._queue_of
        freed, queues, rank = self._waiting.freed, self._waiting.queues, self._rank
        refused: InvalidTransition | None = None
        for event in (pending := iter(events)):
            if type(event) is Succeeded:
                element = event.element
                # the fast paths: out, not asked to stop, this attempt, and with the times that a success has
                if (
                    0 <= element < len(state)
                    and 0 < (hold := held[element]) <= LINKED
                    and attempts[element] == event.attempt
                    and 0 <= event.started <= event.ended
                ):
                    if hold == OUT:
                        if state[element] == READY:
                            self.started_ns[element] = event.started
                            record((element, event.attempt, BEGAN, event.started))
                        state[element] = SUCCEEDED
                        held[element] = 0
                        self.ended_ns[element] = event.ended
                        record((element, event.attempt, RETURNED, event.ended))
                        freed[queue_of[element]] += 1
                        self._open -= 1
                        for below in self._dependants[element]:
                            waits_for[below] = left = waits_for[below] - 1
                            if not left and state[below] == PENDING:
                                state[below] = READY
                                attempts[below] = 1
                                self.ready_ns[below] = at
                                record((below, 1, BECAME_READY, at))
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
        if self._dirty or self._postponed:
            self._dirty |= self._postponed
            self._postponed = {}
            self._admit_all()
        if self._released or self._parted or self._spent:
            commands.append(Release(self._released, self._parted, self._spent))
            self._parted, self._spent = [], []
        if self._asks:
            for (index, reason), elements in self._asks.items():
                if out := [element for element in elements if self._held[element] > LINKED]:
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
                    held[element] = LINKED if linked[element] else OUT
                    launched[element] = at
                commands.append(Launch(index, launch))
        waiting.settle()
        if waiting.due != NEVER and not at < self._rate_due <= waiting.due:
            self._rate_due = waiting.due
            heappush(self._times, (waiting.due, RATE, 0, 0))
        if self._open == 0 and not self._running_out and self.finished is None and self._begun:
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
            case m.ResultLost():
                failed = self._bereft(event)
                if failed is not None:
                    self._end(failed)
            case m.Expanded():
                self._expanded(event)
            case m.Grafted():
                self._grafted(event)
            case m.Gathered():
                self._gathered(event)
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
            heappush(self._times, (self._at + self.plan.deadline, RUN_DEADLINE, 0, 0))
        if event.restored or event.cached or event.unknown or event.skipped:
            self._restore(event)
        self._start_graph(range(self.plan.size))
        if self._doomed:
            self._cancel(self._doomed, Reason.CANCEL_REQUESTED)

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

    def _start(self, event: Started) -> None:
        element = event.element
        if not self._current(event):
            return
        if self._state[element] != READY:
            raise InvalidTransition(event, "this attempt has started already", self._story(element))
        self._state[element] = RUNNING
        self.started_ns[element] = event.started
        self._step.transitions.append((element, event.attempt, BEGAN, event.started))
        policy = self.policy(element)
        if policy.timeout and not self._enforces(element):
            due = event.started + policy.timeout
            heappush(self._times, (due, ATTEMPT_DEADLINE, element, event.attempt))

    def _enforces(self, element: int) -> bool:
        queue = self._queue_of[element]
        return queue >= 0 and self._waiting.lanes[self._waiting.lane[queue]].enforces_timeouts

    def _end(self, event: Succeeded | m.Skipped | m.Failed | m.Crashed | m.Interrupted | m.Abandoned) -> None:
        """An attempt is over: free its slot, decide between success, retry and a final state."""
        element = event.element
        if isinstance(event, m.Failed) and self._reads_items(element):
            self._source_failed(*self._stages[element])
            return
        if not self._current(event):
            return
        self._note_start(event)
        asked = ASKED[self._held[element]]
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
        if isinstance(event, (Succeeded, m.Skipped)) and asked in FOR_OTHERS:
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
        if again and self._has_left(element):
            if out_of_time:
                target, reason = TIMED_OUT, Reason.TOTAL_TIMEOUT
            elif self._may_retry(element):
                self._retry(element, reason, ended, event.delay if isinstance(event, m.Failed) else NEVER)
                return
        self._settle(element, target, reason, ended)

    def _reads_items(self, element: int) -> bool:
        """Whether it is a map that has begun, and that goes on: perhaps for a rest that nobody waits for."""
        return element in self._stages and (self._state[element] == EXPANDED or element in self._running_out)

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

    def _tick(self) -> None:
        self._timer = NEVER
        while self._times and self._times[0][0] <= self._at:
            due, kind, element, attempt = heappop(self._times)
            if kind == RATE:
                continue  # like any step, this one ends by filling what is free
            if kind == RUN_DEADLINE:
                if self._stopping is None:
                    self._failed = True
                    self._stop(Reason.DEADLINE)
                continue
            if kind == TOTAL_DEADLINE and attempt != self._remade.get(element, 0):
                continue  # it was in time, and is being made again
            state, held = self._state[element], self._held[element]
            if kind == GRAPH_DEADLINE:
                if state == EXPANDED and self._attempt[element] == attempt:
                    self._cancel([element], Reason.DEADLINE)
                    self._scopes[element].late = True
                    self._ripple()
                continue
            if kind == RETRY:
                if state == RETRYING:
                    self._make_ready(element, attempt + 1, AGAIN)
            elif kind == ATTEMPT_DEADLINE:
                if held in (OUT, LINKED) and self._attempt[element] == attempt:
                    self._overdue[element] = due
                    self._ask(element, Reason.ATTEMPT_TIMEOUT)
            elif held:
                if held <= LINKED:
                    self._overdue[element] = due
                    self._ask(element, Reason.TOTAL_TIMEOUT)
                elif ASKED[held] is Reason.ATTEMPT_TIMEOUT:
                    self._held[element] = ASK[Reason.TOTAL_TIMEOUT]  # asked already; but there is no next attempt
            elif state in (READY, RETRYING, PENDING):
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
        if kind == GRAPH_DEADLINE:
            return self._state[element] != EXPANDED or attempt != self._attempt[element]
        if kind >= RUN_DEADLINE:
            return kind == RUN_DEADLINE and self._stopping is not None
        if kind == ATTEMPT_DEADLINE:
            return attempt != self._attempt[element] or self._held[element] not in (OUT, LINKED)
        stale = kind == TOTAL_DEADLINE and attempt != self._remade.get(element, 0)
        return stale or self._state[element] in ENDED

    def _verdict(self) -> RunState:
        cancelled = self._state.count(CANCELLED)
        if self._stopping is Reason.CANCEL_REQUESTED and cancelled:
            return RunState.CANCELLED
        if self._stopping is Reason.DRAINED and cancelled:
            return RunState.INTERRUPTED
        return RunState.FAILED if self._failed else RunState.SUCCEEDED
