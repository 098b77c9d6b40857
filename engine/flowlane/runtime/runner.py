"""The runner carries out one run: it turns reports into events, and the scheduler's commands into jobs, timers and releases.

It owns the run's values and failures, and belongs to the thread of the engine's loop. It decides nothing: what is next is
the scheduler's word, where a job runs is the plan's. Each call of `_step` is one turn: events in, history to the journal,
commands out. Steps never nest: executors answer through the dispatcher's inbox, and a cancel from within waits its turn.
"""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import replace
from time import monotonic_ns
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from flowlane.core import messages as m
from flowlane.core.messages import Launch, Release, Succeeded
from flowlane.core.scheduler import InvalidTransition, Scheduler
from flowlane.core.states import Reason, RunState, TaskState
from flowlane.errors import Failure
from flowlane.runtime.beginning import NOTHING_DONE
from flowlane.runtime.context import ATTEMPT, RUN, TASK
from flowlane.runtime.dispatcher import ATTEMPT_BITS, ELEMENT_BITS, TOKEN_SHIFT, make_ref
from flowlane.runtime.failures import lost_result, overdue, taken_back, unexplained, unreadable, worker_died
from flowlane.runtime.measured import Measured
from flowlane.runtime.ports import (
    ABANDONED,
    CRASHED,
    FAILED,
    INTERRUPTED,
    NEVER,
    NOTED,
    STARTED,
    SUCCEEDED,
    Job,
    RemoteValue,
    Report,
    RunInfo,
    RunOutcome,
)
from flowlane.runtime.values import fill, fill_arguments, fill_arguments_at

if TYPE_CHECKING:
    import contextvars
    from collections.abc import Callable, Sequence

    from flowlane.core.messages import Transition
    from flowlane.core.plan import Policy
    from flowlane.errors import StoreError
    from flowlane.program import Program
    from flowlane.runtime.beginning import Beginning
    from flowlane.runtime.cache import Lookups
    from flowlane.runtime.dispatcher import Dispatcher
    from flowlane.runtime.gate import Gate
    from flowlane.runtime.journal import Journal
    from flowlane.runtime.keeper import Keeper
    from flowlane.runtime.ports import Executor
    from flowlane.runtime.recorder import Recorder

__all__ = ["NOTES_KEPT", "Note", "Runner"]

#: Notes of executors that a run keeps for its result; sinks get them all.
NOTES_KEPT: Final = 20

_NOTE_MAX: Final = 500  # characters
_POISON: Final = "flowlane.errors.PoisonTask"

_ELEMENT_MASK: Final = (1 << ELEMENT_BITS) - 1
_ATTEMPT_MASK: Final = (1 << ATTEMPT_BITS) - 1
_FAILED: Final = (TaskState.FAILED, TaskState.TIMED_OUT, TaskState.CRASHED, TaskState.UNKNOWN)
_NOT_RETRIED: Final = (SystemExit, KeyboardInterrupt)

Reports = dict[tuple[int, int], Report]


class Note(NamedTuple):
    """What an executor told about an attempt that was out."""

    element: int
    attempt: int
    text: str


class Runner:
    """One run of `program`.

    on_step    called with (transitions, reports) of every step when somebody listens to the run's events, else None; of a run
               that is kept its keeper's listener hears them, once they are committed
    on_finish  called once, on the loop, when every task has ended (or the engine itself failed)
    """

    def __init__(
        self,
        program: Program,
        *,
        id: str,
        name: str,
        dispatcher: Dispatcher,
        journal: Journal,
        context: contextvars.Context,
        on_step: Callable[[list[Transition], Reports], None] | None,
        on_finish: Callable[[], None],
        keeper: Keeper | None = None,
        recorder: Recorder | None = None,
        lookups: Lookups | None = None,
        beginning: Beginning = NOTHING_DONE,
    ) -> None:
        self.program = program
        self.store_fault: StoreError | None = None  # it ended the run, which can be resumed
        self.abandoned = 0  # attempts that were given up and may still be running
        self.failures: dict[int, Failure] = {}
        self.measured = Measured(program.plan.size)
        self.notes: list[Note] = []
        self.noted = 0  # notes that came, those not kept included
        self.error: BaseException | None = None  # a fault of ours or of an executor's; it ended the run
        self._dispatcher = dispatcher
        self._context = context
        context.run(RUN.set, id)
        context.run(ATTEMPT.set, 1)
        self._on_step = on_step
        self._on_finish = on_finish
        self._keeper = keeper
        self._gate: Gate | None = None
        self._told: set[tuple[str, str]] = set()  # what was noted of a task, once for all its attempts
        self._beginning = beginning
        self._values: list[Any] = [None] * program.plan.size
        for element, value in beginning.values.items():
            self._values[element] = value
        self._timer: asyncio.TimerHandle | None = None
        self._grace: float | None = None
        self._stepping = False  # the first step of an eager task runs inside ours, and may ask us to cancel
        self._loop = asyncio.get_running_loop()
        self._names = [program.lanes[lane] for lane in range(len(program.lanes))]
        capabilities = [dispatcher.registry.capabilities(lane) for lane in program.lanes]
        self._in_process = [not c.pickles for c in capabilities]
        self._enforces = [c.hard_kill for c in capabilities]
        self._deaf = [not c.interruptible for c in capabilities]
        self._remote = any(c.remote_values for c in capabilities) or bool(beginning.values)
        self._homes: list[Executor | None] | None = None  # by lane, where values may be remote
        self.token = dispatcher.enlist(self)
        self.scheduler = Scheduler(
            program.plan,
            [dispatcher.lane(lane) for lane in program.lanes],
            token=self.token,
            jitter=random.Random().random,
        )
        self.info = RunInfo(
            id=id,
            name=name,
            workflow=program.workflow,
            names=program.names,
            kinds=program.kinds,
            executors=tuple([program.lanes[lane] for lane in program.plan.lane]),
            upstreams=program.plan.upstreams,
            wall_ns=time.time_ns(),
            mono_ns=monotonic_ns(),
            params=program.params,
        )
        self.stretched: frozenset[str] = frozenset()
        self.pickling = frozenset([lane for lane, c in zip(program.lanes, capabilities, strict=True) if c.pickles])
        self.slots = {lane: dispatcher.lane(lane).slots for lane in program.lanes}
        self.ended_ns = NEVER
        if keeper is not None and lookups is not None:
            from flowlane.runtime.gate import Gate  # not at the top: most runs are not kept, and workers never are

            assert recorder is not None
            self._gate = Gate(self, id, recorder, keeper, lookups)
        if recorder is not None and keeper is not None:
            recorder.start(self.info, keeper)
            self._journal: Journal | Recorder = recorder
            self._recorded = True
        else:
            self._journal = journal
            self._recorded = journal.start(self.info)
        self._heard = self._recorded or on_step is not None

    # ── what the engine calls ─────────────────────────────────────────────────────────────────────────────────────

    def begin(self) -> None:
        """Start the run. Its executors are open."""
        self.stretched = frozenset([name for name in self._names if self._dispatcher.is_stretched(name)])
        if self._remote:
            self._homes = [self._dispatcher.opened(name) for name in self._names]
        began = self._beginning
        for element, failure in began.unknown.items():
            self.failures[element] = failure
        self._step([m.RunStarted(began.restored, began.cached, tuple(began.unknown))], {})

    def caught_up(self) -> None:
        """The store has written what was waiting for it."""
        if self._gate is not None:
            self._gate.room()

    def stop_for(self, error: StoreError) -> None:
        """The store is at fault: nothing new is begun, what runs may end, and the run can be resumed."""
        if self.store_fault is not None or self.ended_ns != NEVER:
            return
        self.store_fault = error
        if self._gate is not None:
            self._gate.shut()
        if error.lost:  # the run is another process's now; nothing that we do counts
            self.cancel()
        else:
            self.drain()

    def cancel(self, grace: float | None = None) -> None:
        """Stop what runs, begin nothing; `grace` in seconds, None for the engine's. No effect on a run that has ended."""
        if self._stepping:
            self._loop.call_soon(self.cancel, grace)
        elif self.scheduler.finished is None and self.error is None:
            if grace is not None:
                self._grace = grace
            self._step([m.CancelRequested()], {})

    def drain(self) -> None:
        """Begin nothing new; what runs may end. No effect on a run that has ended."""
        if self._stepping:
            self._loop.call_soon(self.drain)
        elif self.scheduler.finished is None and self.error is None:
            self._step([m.DrainRequested()], {})
            if self._gate is not None:
                self._gate.drain()

    def fail(self, error: BaseException) -> None:
        """End the run at once because the engine cannot go on with it (an executor would not open, say)."""
        if self.error is not None or self.ended_ns != NEVER:
            return
        self.error = error
        try:
            if self.scheduler.finished is None:
                step = self.scheduler.handle([m.CancelRequested()], monotonic_ns())
                self._record(step.transitions, {})
                self._carry_out(step.commands)
                self._let_go()
        finally:
            if self.ended_ns == NEVER:
                self._end()

    def _let_go(self) -> None:
        """Nobody waits for what is still out; its slots go back to the lanes, which other runs share."""
        scheduler, now = self.scheduler, monotonic_ns()
        attempts = [(element, scheduler.attempt(element)) for element in range(self.program.plan.size)]
        out = [
            m.Abandoned(element, attempt, NEVER, now)
            for element, attempt in attempts
            if scheduler.awaits(element, attempt)
        ]
        if out:
            step = scheduler.handle(out, now)
            self._record(step.transitions, {})
            self._carry_out(step.commands)

    # ── what the dispatcher calls ─────────────────────────────────────────────────────────────────────────────────

    def receive(self, reports: Sequence[Report]) -> None:
        """Take reports of this run's jobs."""
        events: list[m.Event] = []
        scheduler, values = self.scheduler, self._values
        recorded: Reports = {}
        keep, measured, gate = self._heard, self.measured, self._gate
        for report in reports:
            element = (report.ref >> ATTEMPT_BITS) & _ELEMENT_MASK
            attempt = report.ref & _ATTEMPT_MASK
            if report.kind is SUCCEEDED:
                if scheduler.awaits(element, attempt):
                    values[element] = report.value
                    asked = scheduler.asked(element)
                    if gate is not None:
                        report.value = gate.encoded(element, attempt, report.value)
                    if attempt > 1:  # an earlier attempt's error keeps its frames alive, and with them the arguments
                        self.failures.pop(element, None)
                        measured.workers.pop(element, None)
                        measured.take(element, report)
                    elif report.cpu >= 0:
                        measured.take(element, report)
                    if asked is Reason.ATTEMPT_TIMEOUT or asked is Reason.TOTAL_TIMEOUT:
                        # it may still count as in time; if not, this is what there is to say about it
                        report.failure = self.failures[element] = overdue(self._policy(element), asked, None)
                if keep and gate is None:
                    report.value = None  # the record must not keep it alive
                events.append(Succeeded(element, attempt, report.started, report.ended))
            elif report.kind is NOTED:
                if events:  # what came before it is told before it, and may have ended its attempt
                    self._step(events, recorded)
                    events, recorded = [], {}
                if scheduler.awaits(element, attempt):
                    self._note(element, attempt, report)
                continue
            else:
                events.append(self._event(report, element, attempt))
            if keep:
                if report.output is not None:
                    report = self._printed(report)  # noqa: PLW2901 - the same one, but for what nobody would get to
                recorded[element, attempt] = report
        if events:
            self._step(events, recorded)

    def note_once(self, element: int, attempt: int, text: str) -> None:
        """Tell something that holds for all attempts of a task, with the first."""
        about = (self.program.targets[element].name, text)
        if about not in self._told:
            self._told.add(about)
            self._note(element, attempt, Report(0, NOTED, note=text))

    # ── what the gate calls ───────────────────────────────────────────────────────────────────────────────────────

    def filled(self, element: int) -> tuple[Sequence[Any], dict[str, Any]]:
        """The arguments of an element, every value at hand. Raises what fetching one raises."""
        return fill_arguments_at(None, self.program.arguments[element], self._values)

    def found(self, element: int, attempt: int, value: Any, stored: object) -> None:
        """An attempt need not begin: its `value` is there, and `stored` is what the store has to know of it."""
        self._values[element] = value
        report = Report(0, SUCCEEDED, NEVER, monotonic_ns(), value=stored)
        self._step([m.Cached(element, attempt, report.ended)], {(element, attempt): report})

    def ref(self, element: int, attempt: int) -> int:
        """The number of an attempt's job."""
        return make_ref(self.token, element, attempt)

    def answer(self, reports: Sequence[Report]) -> None:
        """Take reports of attempts that no executor has; in the next turn."""
        self._dispatcher.answer(reports)

    def later(self, function: Callable[..., object], *args: Any) -> None:
        """Call `function` on the loop's thread, unless the run has ended by then. Any thread."""
        try:
            self._loop.call_soon_threadsafe(self._if_running, function, *args)
        except RuntimeError:  # the loop is closed, and the run with it
            return

    def _if_running(self, function: Callable[..., object], *args: Any) -> None:
        if self.ended_ns == NEVER:
            function(*args)

    def _printed(self, report: Report) -> Report:
        """The report as it is recorded: with its output only where a sink will take it away soon."""
        output = report.output
        if self._recorded and output and self._journal.admit(self.info.id, len(output)):
            return report
        return replace(report, output=None)

    def _note(self, element: int, attempt: int, report: Report) -> None:
        report.note = report.note[:_NOTE_MAX]
        self.noted += 1
        if len(self.notes) < NOTES_KEPT:
            self.notes.append(Note(element, attempt, report.note))
        if report.ended == NEVER:
            report.ended = monotonic_ns()
        if self._recorded:
            self._journal.note(self.info.id, element, attempt, report)
        if self._on_step is not None:
            self._on_step([], {(element, attempt): report})

    def wake(self) -> None:
        """A slot of a shared lane was set aside for this run."""
        self._step([m.SlotAvailable()], {})

    def _event(self, report: Report, element: int, attempt: int) -> m.Event:
        """The event of any report but a success, and the failure that goes with it."""
        kind, started, ended = report.kind, report.started, report.ended
        if kind is STARTED:
            return m.Started(element, attempt, started)
        awaited = self.scheduler.awaits(element, attempt)
        asked = self.scheduler.asked(element) if awaited else None
        if asked is Reason.ATTEMPT_TIMEOUT or asked is Reason.TOTAL_TIMEOUT:
            report.failure = overdue(self._policy(element), asked, report.failure)
        elif kind is INTERRUPTED and asked is None:
            policy = self._policy(element)
            enforced = self._enforces[self.program.plan.lane[element]] and policy.timeout
            if enforced and started != NEVER:  # the executor kept the deadline
                report.failure = overdue(policy, Reason.ATTEMPT_TIMEOUT, report.failure)
            elif self._gate is None or started != NEVER or report.worker:
                report.failure = taken_back()
        elif kind is FAILED and report.failure is None:
            report.failure = unexplained()
        elif (kind is CRASHED and report.failure is None) or (kind is ABANDONED and asked is None):
            report.failure = worker_died()
        if awaited:
            self.measured.take(element, report)
            self.measured.workers[element] = report.worker
            if report.failure is not None:
                self.failures[element] = report.failure
        if kind is FAILED:
            return m.Failed(element, attempt, started, ended, self._retryable(element, report.failure))
        if kind is CRASHED:
            poison = report.failure is not None and report.failure.ancestry[:1] == (_POISON,)
            return m.Crashed(element, attempt, started, ended, not poison)
        if kind is INTERRUPTED:
            return m.Interrupted(element, attempt, started, ended)
        self.abandoned += awaited
        return m.Abandoned(element, attempt, started, ended)

    def _policy(self, element: int) -> Policy:
        plan = self.program.plan
        return plan.policies[plan.policy[element]]

    def _retryable(self, element: int, failure: Failure | None) -> bool:
        on = self.program.retry_on[self.program.plan.policy[element]]
        return failure is not None and bool(on) and failure.matches(on) and not failure.matches(_NOT_RETRIED)

    # ── one turn ──────────────────────────────────────────────────────────────────────────────────────────────────

    def _step(self, events: list[m.Event], reports: Reports) -> None:
        at = monotonic_ns()
        self._stepping = True
        try:
            step = self.scheduler.handle(events, at)
            if step.transitions and self._heard:
                self._record(step.transitions, reports)
            if step.commands:
                self._carry_out(step.commands)
        except InvalidTransition as error:  # an executor broke its protocol: keep what is right, then end the run
            self._record(error.step.transitions, reports)
            self._carry_out(error.step.commands)
            self._fail_soon(error)
            if error.unhandled:
                self._step(error.unhandled, reports)
        except Exception as error:  # noqa: BLE001 - a bug of ours, or a plug-in that raises where it must not: no silent hang
            self._fail_soon(error)
        finally:
            self._stepping = False

    def _record(self, transitions: list[Transition], reports: Reports) -> None:
        if self._recorded:
            self._journal.append(self.info.id, transitions, reports)
        if self._on_step is not None:
            self._on_step(transitions, reports)

    def _fail_soon(self, error: Exception) -> None:
        self._loop.call_soon(self.fail, error)

    def _carry_out(self, commands: Sequence[m.Command]) -> None:
        for command in commands:
            if isinstance(command, Launch):  # by frequency: it comes with every step of a chain
                try:
                    go = command.elements
                    if self._gate is not None:
                        go = self._gate.launch(command.lane, go)
                    if go:
                        self.submit(command.lane, go)
                except Exception as error:  # noqa: BLE001 - a plug-in's; the commands behind it may be for other runs
                    self._fail_soon(error)
            elif isinstance(command, Release):
                for element in command.elements:
                    self._values[element] = None
            elif isinstance(command, m.SetTimer):
                self._set_timer(command.at)
            elif isinstance(command, m.Interrupt):
                attempt = self.scheduler.attempt
                elements: Sequence[int] = command.elements
                if self._gate is not None:
                    elements = self._gate.take_back(elements)
                refs = [make_ref(self.token, element, attempt(element)) for element in elements]
                # Whatever a job returns after its timeout cannot change the verdict: to wait for one that was not even told
                # would only keep everybody else waiting. Cancelled ones may still count.
                late = command.reason in (Reason.ATTEMPT_TIMEOUT, Reason.TOTAL_TIMEOUT)
                grace = 0.0 if late and self._deaf[command.lane] else self._grace
                if refs:
                    self._dispatcher.interrupt(self._names[command.lane], refs, grace)
            elif isinstance(command, m.Wake):
                self._dispatcher.wake(command.tokens)
            else:
                self._end()

    def submit(self, lane: int, elements: list[int]) -> None:
        """Hand launched elements of a lane to its executor."""
        program, values = self.program, self._values
        names, targets, arguments = program.names, program.targets, program.arguments
        attempts, run, base = self.scheduler.attempt, self.info.id, self.token << TOKEN_SHIFT
        base_context = self._context if self._in_process[lane] else None
        homes = self._homes
        context: contextvars.Context | None = None
        jobs: list[Job] = []
        for element in elements:
            attempt = attempts(element)
            if homes is None:
                args, kwargs = fill_arguments(arguments[element], values)
            else:
                try:
                    args, kwargs = fill_arguments_at(homes[lane], arguments[element], values)
                except Exception as error:  # noqa: BLE001 - a value that is lost, or does not load here
                    self.refuse(element, attempt, error)
                    continue
            if base_context is not None:
                context = base_context.copy()
                context.run(TASK.set, names[element])
                if attempt > 1:
                    context.run(ATTEMPT.set, attempt)
            jobs.append(
                Job(
                    base | (element << ATTEMPT_BITS) | attempt,  # make_ref, without the call
                    targets[element],
                    args,
                    kwargs,
                    run,
                    names[element],
                    attempt,
                    None,
                    context,
                )
            )
        if program.once:
            for job in jobs:
                job.once = (job.ref >> ATTEMPT_BITS) & _ELEMENT_MASK in program.once
        if self._enforces[lane]:
            policies, policy = program.plan.policies, program.plan.policy
            for job in jobs:
                job.timeout = policies[policy[(job.ref >> ATTEMPT_BITS) & _ELEMENT_MASK]].timeout / 1e9 or None
        if jobs:
            self._dispatcher.submit(self._names[lane], jobs)

    def refuse(self, element: int, attempt: int, error: Exception) -> None:
        """An attempt has no arguments: it fails before it begins, like one whose arguments cannot travel."""
        failure = Failure.of(unreadable(self.program.names[element], error).with_traceback(None))
        ref = make_ref(self.token, element, attempt)
        self._dispatcher.answer((Report(ref, FAILED, NEVER, monotonic_ns(), failure=failure),))

    def _set_timer(self, at: int) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(max(0.0, (at - monotonic_ns()) / 1e9), self._fire)

    def _fire(self) -> None:
        self._timer = None
        if self.scheduler.finished is None:
            self._step([m.TimerFired()], {})

    def _end(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._remote and self.state is RunState.SUCCEEDED:
            self._fetch_result()
        self.ended_ns = monotonic_ns()
        self._dispatcher.dismiss(self.token)
        for element, failure in self._queued_too_long():
            self.failures[element] = failure
        self._on_finish()

    def _fetch_result(self) -> None:
        """Have the run's result here. A value of it that is lost fails the run: its tasks have succeeded, and it has not."""
        values = self._values
        for element in self.program.plan.pinned:
            value = values[element]
            if isinstance(value, RemoteValue):
                try:
                    values[element] = value.fetch()
                except Exception as error:  # noqa: BLE001 - lost, or its loading raised: user code
                    self.error = lost_result(self.program.names[element], error)
                    return

    def _queued_too_long(self) -> list[tuple[int, Failure]]:
        """Failures of tasks whose total time ran out while no attempt was out, so that no report told of it."""
        if not any(policy.total_timeout for policy in self.program.plan.policies):
            return []
        return [
            (element, overdue(self._policy(element), Reason.TOTAL_TIMEOUT, self.failures.get(element)))
            for element in range(self.program.plan.size)
            if self.scheduler.state(element) is TaskState.TIMED_OUT
            and getattr(self.failures.get(element), "type", None) != "TimeoutError"
        ]

    # ── how it ended ──────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def state(self) -> RunState:
        if self.error is not None:
            return RunState.FAILED
        if self.store_fault is not None and self.scheduler.finished is not None:
            return RunState.INTERRUPTED
        return self.scheduler.finished or RunState.RUNNING

    def value(self) -> Any:
        """The run's value; only after success."""
        return fill(self.program.result, self._values)

    def forget(self) -> None:
        """Let go of all values, after the end: what is left (of a run that failed, say) nobody can read."""
        self._values.clear()

    def outcome(self) -> RunOutcome:
        """The end of the run for sinks."""
        error = None
        if self.error is not None:
            error = f"{type(self.error).__name__}: {self.error}"
        elif self.failures:
            for element, failure in self.failures.items():
                if self.scheduler.state(element) in _FAILED:
                    error = f"{self.program.names[element]}: {failure.type}: {failure.message}"
                    break
        counts = {str(state): count for state, count in self.scheduler.counts().items()}
        return RunOutcome(state=str(self.state), ended=self.ended_ns, counts=counts, error=error)
