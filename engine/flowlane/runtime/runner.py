"""The runner carries out one run: it turns reports into events, and the scheduler's commands into jobs, timers and releases.

What comes into being while the run goes on is its `Puller`'s (items of maps) and its `Grafts`' (graphs that tasks become); what
they are is kept in `Growth`.

It owns the run's values and failures, and belongs to the thread of the engine's loop. It decides nothing: what is next is
the scheduler's word, where a job runs is the plan's. Each call of `_step` is one turn: events in, history to the journal,
commands out. Steps never nest: executors answer through the dispatcher's inbox, and a cancel from within waits its turn.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from dataclasses import replace
from functools import partial
from time import monotonic_ns
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from flowlane.core import messages as m
from flowlane.core.elements import NOBODY
from flowlane.core.messages import Launch, Release, Succeeded
from flowlane.core.scheduler import InvalidTransition, Scheduler
from flowlane.core.states import RULES, Reason, RunState, TaskState
from flowlane.core.tally import tally
from flowlane.errors import Failure, LostResult
from flowlane.runtime.beginning import NOTHING_DONE
from flowlane.runtime.context import ATTEMPT, RUN
from flowlane.runtime.dispatcher import ATTEMPT_BITS, ELEMENT_BITS, make_ref
from flowlane.runtime.failures import (
    lost_result,
    overdue,
    past_deadline,
    undecidable,
    unreadable,
)
from flowlane.runtime.fetching import Fetching
from flowlane.runtime.grafts import Grafts
from flowlane.runtime.growth import Growth
from flowlane.runtime.jobs import Jobs
from flowlane.runtime.keeper import NOT_BEGUN
from flowlane.runtime.losses import Losses
from flowlane.runtime.measured import Measured
from flowlane.runtime.outcomes import Outcomes
from flowlane.runtime.places import Places
from flowlane.runtime.ports import (
    FAILED,
    INTERRUPTED,
    NEVER,
    NOTED,
    STARTED,
    SUCCEEDED,
    Report,
    RunInfo,
    RunOutcome,
)
from flowlane.runtime.puller import Puller
from flowlane.runtime.roster import Roster
from flowlane.runtime.values import fill, fill_arguments_at, local

if TYPE_CHECKING:
    import contextvars
    from collections.abc import Callable, Sequence

    from flowlane.core.messages import Transition
    from flowlane.errors import StoreError
    from flowlane.program import Program
    from flowlane.runtime.adapting import Resized
    from flowlane.runtime.beginning import Beginning, Memory
    from flowlane.runtime.cache import Lookups
    from flowlane.runtime.casts import Cast
    from flowlane.runtime.dispatcher import Dispatcher
    from flowlane.runtime.gate import Gate
    from flowlane.runtime.grafts import Maker
    from flowlane.runtime.journal import Journal
    from flowlane.runtime.keeper import Keeper
    from flowlane.runtime.ports import RemoteValue
    from flowlane.runtime.recorder import Recorder

__all__ = ["NOTES_KEPT", "Note", "Runner"]

#: Notes of executors that a run keeps for its result; sinks get them all.
NOTES_KEPT: Final = 20
#: Changes of adaptive slots that it keeps, the latest: an hour's, of one lane that never settles.
RESIZES_KEPT: Final = 7_200

_NOTE_MAX: Final = 500  # characters
_SKIP: Final = "flowlane.errors.Skip"

_ELEMENT_MASK: Final = (1 << ELEMENT_BITS) - 1
_ATTEMPT_MASK: Final = (1 << ATTEMPT_BITS) - 1
_FAILED: Final = (TaskState.FAILED, TaskState.TIMED_OUT, TaskState.CRASHED, TaskState.UNKNOWN)
#: By code: transitions that an error belongs to.
_ENDS_BADLY: Final = tuple(
    rule.target in (*_FAILED, TaskState.RETRYING) or (rule.source, rule.reason) == (TaskState.READY, Reason.RESULT_LOST)
    for rule in RULES
)

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
        maker: Maker,
    ) -> None:
        self.program = program
        self._work = maker.work
        self._suspects, self._is_mistake = maker.suspects, maker.is_mistake
        self._unreported: Reports = {}  # failures of maps and workflows, until the transitions that they belong to
        self._followups: list[m.Event] = []  # answers to commands of the step under way
        self.store_fault: StoreError | None = None  # it ended the run, which can be resumed
        self.failures: dict[int, Failure] = {}
        self.measured = Measured(program.plan.size)
        self.notes: list[Note] = []
        self.noted = 0  # notes that came, those not kept included
        self.resizes: deque[Resized] = deque(maxlen=RESIZES_KEPT)
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
        self._memory = beginning.memory
        self._values: list[Any] = [None] * program.plan.size
        for element, value in beginning.values.items():
            self._values[element] = value
        self._timer: asyncio.TimerHandle | None = None
        self._grace: float | None = None
        self._stepping = False  # the first step of an eager task runs inside ours, and may ask us to cancel
        self._loop = asyncio.get_running_loop()
        self._places = Places(program, dispatcher, remote=bool(beginning.values) or self._memory is not None)
        self.token = dispatcher.enlist(self)
        try:
            limits = [dispatcher.limit(spec, self.token) for spec in program.limits]
        except BaseException:  # two runs do not agree on one: this one will never be
            dispatcher.dismiss(self.token)
            raise
        self.scheduler = Scheduler(
            program.plan,
            [dispatcher.lane(lane) for lane in program.lanes],
            token=self.token,
            jitter=random.Random().random,
            limits=limits,
            recall=self._memory.recall if self._memory is not None else None,
        )
        self.roster = Roster(program, self.scheduler)
        self.growth = Growth(program, self.scheduler, self._values, self.roster)
        self.growth.remote = self._places.remote
        if self._memory is not None:
            self._memory.attach(self.scheduler, self.growth)
        self._size = program.plan.size  # elements below are nodes of the program
        #: nodes with more to them than arguments and a value
        self._curious = frozenset({*program.choices, *program.raw_missing})
        self.info = RunInfo(
            id=id,
            name=name,
            workflow=program.workflow,
            names=self.roster.names,
            kinds=self.roster.kinds,
            executors=self.roster.executors,
            upstreams=self.roster.upstreams,
            wall_ns=time.time_ns(),
            mono_ns=monotonic_ns(),
            params=program.params,
        )
        self.stretched: frozenset[str] = frozenset()
        self.ended_ns = NEVER
        if keeper is not None and lookups is not None:
            from flowlane.runtime.gate import Gate  # not at the top: most runs are not kept, and workers never are

            assert recorder is not None
            self._gate = Gate(self, id, recorder, keeper, lookups)
        self.losses = Losses(self, self._values)
        self._fetching = Fetching(self, self._places, self._values)
        self._jobs = Jobs(self, self._values, self._places, context, self._curious, self.token)
        self._puller = Puller(self, context)
        self._grafts = Grafts(self, maker, dispatcher, self._places, self._gate, self._memory, self.token)
        self._outcomes = Outcomes(self, self._values, self._places, self._gate, self._grafts.mistake)
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
        self.stretched = self._places.stretched()
        self._places.open()
        began = self._beginning
        for element, failure in began.unknown.items():
            self.failures[element] = failure
        self.step([m.RunStarted(began.restored, began.cached, tuple(began.unknown), began.skipped, began.chosen)], {})

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
            self.step([m.CancelRequested()], {})

    def drain(self) -> None:
        """Begin nothing new; what runs may end. No effect on a run that has ended."""
        if self._stepping:
            self._loop.call_soon(self.drain)
        elif self.scheduler.finished is None and self.error is None:
            self.step([m.DrainRequested()], {})
            self._fetching.drain()
            if self._gate is not None:
                self._gate.drain()

    def cancel_elements(self, elements: Sequence[int]) -> None:
        """Stop these elements, and what they have become. No effect on what has ended."""
        if self._stepping:
            self._loop.call_soon(self.cancel_elements, elements)
        elif self.scheduler.finished is None and self.error is None:
            self.step([m.CancelTasks(elements)], {})

    def fail(self, error: BaseException) -> None:
        """End the run at once because the engine cannot go on with it (an executor would not open, say)."""
        if self.error is not None or self.ended_ns != NEVER:
            return
        self.error = error
        try:
            if self.scheduler.finished is None:
                # twice: nothing tidies up, because nobody would hear of it
                step = self.scheduler.handle([m.CancelRequested(), m.CancelRequested()], monotonic_ns())
                self._record(step.transitions, {})
                self._carry_out(step.commands)
                self._let_go()
        finally:
            if self.ended_ns == NEVER:
                self._end()

    def _let_go(self) -> None:
        """Nobody waits for what is still out; its slots go back to the lanes, which other runs share."""
        scheduler, now = self.scheduler, monotonic_ns()
        attempts = [(element, scheduler.attempt(element)) for element in range(scheduler.size)]
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
        if self._dispatcher.adapting.any:
            self._sample(reports)
        events: list[m.Event] = []
        scheduler, values = self.scheduler, self._values
        recorded: Reports = {}
        keep, measured, gate = self._heard, self.measured, self._gate
        if self._places.far:
            reports = [report for report in reports if self._fetching.told(*_of_ref(report.ref), report)]
        size, work, curious, suspects = self._size, self._work, self._curious, self._suspects
        low = high = first = 0  # the elements of one block, which are of maps
        casts: tuple[Cast, ...] = ()
        for report in reports:
            element = (report.ref >> ATTEMPT_BITS) & _ELEMENT_MASK
            attempt = report.ref & _ATTEMPT_MASK
            kind = id(type(report.value))  # pyright: ignore[reportUnknownArgumentType] - truly any
            if report.kind is SUCCEEDED and kind in suspects and self._is_mistake(report.value):
                events.append(self._outcomes.mistaken(element, attempt, report))
            elif report.kind is SUCCEEDED:
                cast: Cast | None = None
                if element >= size:
                    if not low <= element < high:
                        block = scheduler.block(element)
                        if block.chain is not None:
                            low, high, first = block.start, block.start + block.count, block.first
                            casts = self.growth.casts(block)
                    if low <= element < high:
                        cast = casts[(element - low) % len(casts)]
                    plain = cast is not None and not cast.filters
                else:
                    plain = element not in curious
                if not plain or type(report.value) in work:
                    if type(report.value) in work and scheduler.awaits(element, attempt):
                        if events:
                            self.step(events, recorded)
                            events, recorded = [], {}
                        self._returned_work(element, attempt, report)
                        continue
                    events.append(self._outcomes.succeeded(element, attempt, report))
                    if keep:
                        if report.output is not None:
                            report = self._printed(report)  # noqa: PLW2901
                        recorded[element, attempt] = report
                    continue
                if scheduler.awaits(element, attempt):
                    values[element] = report.value
                    if cast is not None and cast.pulls:
                        cast.used(first + (element - low) // len(casts))
                    asked = scheduler.asked(element)
                    if gate is not None:
                        report.value = gate.encoded(element, attempt, report.value)
                    if attempt > 1:  # an earlier attempt's error keeps its frames alive, and with them the arguments
                        self.failures.pop(element, None)
                        measured.workers.pop(element, None)
                        measured.returned.pop(element, None)
                        measured.take(element, report)
                    elif report.cpu >= 0:
                        measured.take(element, report)
                    if asked is Reason.ATTEMPT_TIMEOUT or asked is Reason.TOTAL_TIMEOUT:
                        # it may still count as in time; if not, this is what there is to say about it
                        report.failure = self.failures[element] = overdue(self.scheduler.policy(element), asked, None)
                if keep and gate is None:
                    report.value = None  # the record must not keep it alive
                events.append(Succeeded(element, attempt, report.started, report.ended))
            elif report.kind is NOTED:
                if events:  # what came before it is told before it, and may have ended its attempt
                    self.step(events, recorded)
                    events, recorded = [], {}
                if scheduler.awaits(element, attempt):
                    self.note(element, attempt, report)
                continue
            else:
                events.append(self._outcomes.event(report, element, attempt))
            if keep:
                if report.output is not None:
                    report = self._printed(report)  # noqa: PLW2901 - the same one, but for what nobody would get to
                recorded[element, attempt] = report
        if events:
            self.step(events, recorded)

    def _sample(self, reports: Sequence[Report]) -> None:
        """Tell adaptive lanes and limits how the attempts went that have ended: before their slots are given back."""
        scheduler, adapting = self.scheduler, self._dispatcher.adapting
        for report in reports:
            if report.kind is STARTED or report.kind is NOTED or report.started == NEVER:
                continue
            element, attempt = (report.ref >> ATTEMPT_BITS) & _ELEMENT_MASK, report.ref & _ATTEMPT_MASK
            if not scheduler.awaits(element, attempt):
                continue
            asked = scheduler.asked(element)
            late = asked is Reason.ATTEMPT_TIMEOUT or asked is Reason.TOTAL_TIMEOUT
            if asked is not None and not late:  # somebody's wish says nothing of load
                continue
            word = report.failure.ancestry[:1] if report.failure is not None else ()
            ok = not late and (report.kind is SUCCEEDED or word == (_SKIP,))
            adapting.sample(scheduler.holds(element), max(0, report.ended - report.started), ok)
        adapting.decide()

    def resized(self, change: Resized) -> None:
        """A lane or a limit that adapts has other slots, perhaps one of this run's."""
        own = self._places.names if change.kind == "lane" else self._places.limits
        if change.name not in own or self.ended_ns != NEVER:
            return
        self.resizes.append(change)
        report = Report(0, NOTED, ended=change.decision.at, value=change, note=change.change.text)
        if self._recorded:
            self._journal.note(self.info.id, NOBODY, 0, report)
        if self._on_step is not None:
            self._on_step([], {(NOBODY, 0): report})

    def note_once(self, element: int, attempt: int, text: str) -> None:
        """Tell something that holds for all attempts of a task, with the first."""
        about = (self.roster.tasks[element], text)
        if about not in self._told:
            self._told.add(about)
            self.note(element, attempt, Report(0, NOTED, note=text))

    # ── what the gate and the fetching call ───────────────────────────────────────────────────────────────────────

    def wanted_here(self, element: int) -> bool:
        """Whether the success of an element means more than its value, which has to be looked at for that."""
        if self.growth.choices(element):
            return True
        block = self.scheduler.block(element)
        return block.chain is not None and self.growth.cast(element, block)[1].filters

    def opened_here(self, element: int) -> bool:
        """Whether its arguments are looked into here: to find them in the cache, or to make several of one."""
        if self._gate is not None and self._gate.is_cached(element):
            return True
        block = self.scheduler.block(element)
        return block.chain is not None and self.growth.cast(element, block)[1].star

    def keeps(self, element: int, attempt: int) -> Callable[[RemoteValue], object] | None:
        """What to do with its result in a thread, before it is taken; None for nothing."""
        return self._gate.keeps(element, attempt) if self._gate is not None else None

    def copy_of(self, value: RemoteValue) -> RemoteValue | None:
        """The same value in the store, if it is there."""
        return self._gate.copy_of(value) if self._gate is not None else None

    def filled(self, element: int) -> tuple[Sequence[Any], dict[str, Any]]:
        """The arguments of an element, every value at hand. Raises what fetching one raises."""
        if element < self._size and element not in self._curious:
            return fill_arguments_at(None, self.program.arguments[element], self._values)
        args, kwargs = self.growth.arguments(element, None)
        return args, dict(kwargs)

    def found(self, element: int, attempt: int, value: Any, stored: object) -> None:
        """An attempt need not begin: its `value` is there, and `stored` is what the store has to know of it."""
        self._values[element] = value
        if element >= self._size:
            self.growth.used_up(element)
        report = Report(0, SUCCEEDED, NEVER, monotonic_ns(), value=stored)
        try:
            chosen = self._outcomes.chosen(element, value)
        except Exception as error:  # noqa: BLE001 - user code compares the value
            self.refuse(element, attempt, undecidable(self.roster.names[element], error))
            return
        self.step([m.Cached(element, attempt, report.ended, chosen)], {(element, attempt): report})

    def never_began(self, attempts: Sequence[tuple[int, int]]) -> None:
        """Of these (element, attempt), which no executor has, those that are out end as they are: they never began."""
        now = monotonic_ns()
        reports = [
            Report(make_ref(self.token, element, attempt), INTERRUPTED, NEVER, now, value=NOT_BEGUN)
            for element, attempt in attempts
            if self.scheduler.awaits(element, attempt)
        ]
        if reports:
            self._dispatcher.answer(reports)

    def later(self, function: Callable[..., object], *args: Any) -> None:
        """Call `function` on the loop's thread, unless the run has ended by then. Any thread."""
        try:
            self._loop.call_soon_threadsafe(self.if_running, function, *args)
        except RuntimeError:  # the loop is closed, and the run with it
            return

    def if_running(self, function: Callable[..., object], *args: Any) -> None:
        """Call `function` unless the run has ended. The loop's thread."""
        if self.ended_ns == NEVER:
            function(*args)

    def _printed(self, report: Report) -> Report:
        """The report as it is recorded: with its output only where a sink will take it away soon."""
        output = report.output
        if self._recorded and output and self._journal.admit(self.info.id, len(output)):
            return report
        return replace(report, output=None)

    def note(self, element: int, attempt: int, report: Report) -> None:
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
        self.step([m.SlotAvailable()], {})

    def retryable(self, element: int, failure: Failure | None) -> bool:
        """Whether its retry policy would try again after this failure."""
        return self._outcomes.retryable(element, failure)

    # ── what comes into being ─────────────────────────────────────────────────────────────────────────────────────

    def _returned_work(self, element: int, attempt: int, report: Report) -> None:
        work, report.value = report.value, None
        self._outcomes.take(element, attempt, report)
        try:
            made = self._grafts.compiled(element, work)
        except Exception as error:  # noqa: BLE001 - a workflow's body is user code
            report.kind = FAILED
            report.failure = Failure.of(error)
            self.step([self._outcomes.event(report, element, attempt)], {(element, attempt): report})
            return
        self.measured.returned[element] = report.ended
        self._grafts.returned(element, attempt, made, work, report)

    def _gather(self, element: int, asked: bool) -> None:
        """Make the value of an element that has become others, and tell what is chosen by it where somebody asks."""
        self._values[element] = self.growth.gather(element)
        if not asked:
            return
        if self._places.far:
            self._fetching.when_here([element], partial(self._choose, element))
        else:
            self._choose(element)

    def _choose(self, element: int) -> None:
        try:
            self.follow_up([m.Gathered(element, self._outcomes.chosen(element, self._values[element]))])
        except Exception as error:  # noqa: BLE001 - user code is behind the truth and the equality of values
            self.blame(element, Failure.of(undecidable(self.roster.names[element], error)))
            self.follow_up([m.Gathered(element, failed=True)])

    # ── one turn ──────────────────────────────────────────────────────────────────────────────────────────────────

    def step(self, events: Sequence[m.Event], reports: Reports) -> None:
        """One turn, and those that its own answers ask for. The loop's thread, and never from within a turn: see `follow_up`."""
        self._turn(events, reports)
        while (
            self._followups
        ):  # one after the other: a map may be answered some items at a time, without anything to wait for
            events, self._followups = self._followups, []
            if self.scheduler.finished is None:
                self._turn(events, {})

    def _turn(self, events: Sequence[m.Event], reports: Reports) -> None:
        at = monotonic_ns()
        self._stepping = True
        try:
            step = self.scheduler.handle(events, at)
            if self.scheduler.size > len(self._values):
                self._grow()
            if self._memory is not None:
                self._remember(self._memory)
            if step.transitions and self._heard:
                if self._unreported:
                    reports = self._with_unreported(step.transitions, reports)
                self._record(step.transitions, reports)
            if step.commands:
                self._carry_out(step.commands)
        except InvalidTransition as error:  # an executor broke its protocol: keep what is right, then end the run
            self._record(error.step.transitions, reports)
            self._carry_out(error.step.commands)
            self._fail_soon(error)
            if error.unhandled:
                self._turn(error.unhandled, reports)
        except Exception as error:  # noqa: BLE001 - a bug of ours, or a plug-in that raises where it must not: no silent hang
            self._fail_soon(error)
        finally:
            self._stepping = False

    def follow_up(self, events: Sequence[m.Event]) -> None:
        """Take answers to commands: after the turn under way, or in one of their own."""
        if self._stepping:
            self._followups += events
        elif self.scheduler.finished is None:
            self.step(events, {})

    def blame(self, element: int, failure: Failure) -> None:
        """An element that is a map or a workflow fails, once what it has become has ended, of what no executor reports."""
        self.failures[element] = failure
        report = Report(0, FAILED, NEVER, monotonic_ns(), failure=failure)
        self._unreported[element, self.scheduler.attempt(element)] = report

    def _with_unreported(self, transitions: Sequence[Transition], reports: Reports) -> Reports:
        told = {row[:2] for row in transitions if row[:2] in self._unreported and _ENDS_BADLY[row[2]]}
        return {**reports, **{key: self._unreported.pop(key) for key in told}} if told else reports

    def _grow(self) -> None:
        """There are more elements."""
        size = self.scheduler.size
        self._values.extend([None] * (size - len(self._values)))
        self.measured.grow(size)
        if self._gate is not None:
            self._gate.grown()

    def _remember(self, memory: Memory) -> None:
        """Take over what an earlier session had finished of that which has come into being."""
        recalled = memory.take()
        self.failures.update(recalled.failures)
        for element, value in recalled.values.items():
            self._values[element] = value
        for element in recalled.done:
            self.growth.used_up(element)

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
                    go: Sequence[int] = command.elements
                    if self._memory is not None:
                        go = self._grafts.launch(go)
                    if self._places.far:
                        go = self._fetching.launch(command.lane, go)
                    if go:
                        self.go(command.lane, go)
                except Exception as error:  # noqa: BLE001 - a plug-in's; the commands behind it may be for other runs
                    self._fail_soon(error)
            elif isinstance(command, Release):
                for element in command.elements:
                    self._values[element] = None
                for element in command.items:
                    self.growth.used_up(element)
                for container in command.containers:
                    self._puller.ended(container)
                    self.growth.ended(container)
            elif isinstance(command, m.SetTimer):
                self._set_timer(command.at)
            elif isinstance(command, m.Interrupt):
                attempt = self.scheduler.attempt
                elements: Sequence[int] = command.elements
                if self._places.far:
                    elements = self._fetching.take_back(elements)
                if self._gate is not None:
                    elements = self._gate.take_back(elements)
                refs = [make_ref(self.token, element, attempt(element)) for element in elements]
                # Whatever a job returns after its timeout cannot change the verdict: to wait for one that was not even told
                # would only keep everybody else waiting. Cancelled ones may still count.
                late = command.reason in (Reason.ATTEMPT_TIMEOUT, Reason.TOTAL_TIMEOUT)
                grace = 0.0 if late and self._places.deaf[command.lane] else self._grace
                if refs:
                    self._dispatcher.interrupt(self._places.names[command.lane], refs, grace)
            elif isinstance(command, m.Wake):
                self._dispatcher.wake(command.tokens)
            elif isinstance(command, m.Gather):
                self._gather(command.element, command.asked)
            elif isinstance(command, m.Pull):
                pull = partial(self._puller.pull, command.element, command.count)
                if self._places.far:
                    self._fetching.when_here(self.growth.opens(command.element), pull)
                else:
                    pull()
            elif isinstance(command, m.Graft):
                if self._places.far:
                    reads = self.scheduler.reads(command.element)
                    self._fetching.when_here(reads, partial(self._begin_graft, command.element))
                else:
                    self._grafts.begin(command.element)
            else:
                self._end()

    def _begin_graft(self, element: int) -> None:
        if self.scheduler.awaits(element, self.scheduler.attempt(element)):  # it may have been stopped meanwhile
            self._grafts.begin(element)

    def go(self, lane: int, elements: Sequence[int]) -> None:
        """Let launched elements of a lane begin, whose values are where they must be."""
        if self._gate is not None:
            elements = self._gate.launch(lane, list(elements))
        if elements:
            self.submit(lane, elements)

    def submit(self, lane: int, elements: Sequence[int]) -> None:
        """Hand launched elements of a lane to its executor."""
        jobs = self._jobs.of(lane, elements)
        if jobs:
            self._dispatcher.submit(self._places.names[lane], jobs)

    def refuse(self, element: int, attempt: int, error: Exception) -> None:
        """An attempt has no arguments: it fails before it begins, like one whose arguments cannot travel."""
        failure = Failure.of(unreadable(self.roster.names[element], error).with_traceback(None))
        ref = make_ref(self.token, element, attempt)
        self._dispatcher.answer((Report(ref, FAILED, NEVER, monotonic_ns(), failure=failure),))

    def _set_timer(self, at: int) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(max(0.0, (at - monotonic_ns()) / 1e9), self._fire)

    def _fire(self) -> None:
        self._timer = None
        if self.scheduler.finished is None:
            self.step([m.TimerFired()], {})

    def _end(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._bring_result()

    def _bring_result(self) -> None:
        if self._places.far and self.state is RunState.SUCCEEDED:
            far = self._fetching.far(self.program.plan.pinned)
            if far:
                self._fetching.bring(far, self._result_brought)
                return
        self._conclude()

    def _result_brought(self) -> None:
        """What of the result was elsewhere is here, or is known to be lost there."""
        if self.losses.recover(self.program.plan.pinned):
            self._bring_result()
        else:
            self._conclude()

    def _conclude(self) -> None:
        if self._places.remote and self.state is RunState.SUCCEEDED:
            self._fetch_result()
        self._fetching.close()
        self._puller.close()
        self.ended_ns = monotonic_ns()
        self._dispatcher.dismiss(self.token)
        for element, failure in self._out_of_time():
            self.failures[element] = failure
        self._on_finish()

    def _fetch_result(self) -> None:
        """Have the run's result here. A value of it that is lost fails the run: its tasks have succeeded, and it has not."""
        values = self._values
        for element in self.program.plan.pinned:
            try:
                try:
                    values[element] = local(values[element], None)
                except LostResult:
                    if not self.losses.recover([element]):
                        raise
                    values[element] = local(values[element], None)
            except Exception as error:  # noqa: BLE001 - lost, or its loading raised: user code
                self.error = lost_result(self.program.names[element], error)
                return

    def _out_of_time(self) -> list[tuple[int, Failure]]:
        """Failures of what ran out of time while no attempt of it was out, so that no report told of it."""
        scheduler = self.scheduler
        if not (scheduler.has_total or scheduler.has_deadlines):
            return []
        found: list[tuple[int, Failure]] = []
        for element in range(scheduler.size):
            failure = self.failures.get(element)
            if scheduler.state(element) is not TaskState.TIMED_OUT or getattr(failure, "type", None) == "TimeoutError":
                continue
            if scheduler.is_late(element):
                found.append((element, past_deadline(scheduler.plan_of(element)[0].deadline)))
            else:
                found.append((element, overdue(self.scheduler.policy(element), Reason.TOTAL_TIMEOUT, failure)))
        return found

    # ── for its record ────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def abandoned(self) -> int:
        """Attempts that were given up and may still be running."""
        return self._outcomes.abandoned

    @property
    def slots(self) -> dict[str, int]:
        """Slots of its lanes, by name."""
        return self._places.slots

    @property
    def pickling(self) -> frozenset[str]:
        """The lanes that values are pickled for."""
        return self._places.pickling

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
                    error = f"{self.roster.names[element]}: {failure.line}"
                    break
        told = tally(self.scheduler.states(), self.scheduler.containers(), self.failures)
        if error is None and self.state is RunState.FAILED and told.keys().isdisjoint(_FAILED):
            error = f"the run was not over by its deadline of {self.program.plan.deadline / 1e9:g} s"
        counts = {str(state): count for state, count in told.items()}
        return RunOutcome(state=str(self.state), ended=self.ended_ns, counts=counts, error=error)


def _of_ref(ref: int) -> tuple[int, int]:
    """The element and the attempt of a job."""
    return (ref >> ATTEMPT_BITS) & _ELEMENT_MASK, ref & _ATTEMPT_MASK
