"""How a task becomes a graph: work that it returned, a workflow whose turn has come, or what an earlier session made of it.

The engine compiles the work; the executors that it needs are opened, however long that takes; then the run's growth, its keeper
and the scheduler are told, in this order, because the scheduler may launch its first task at once. Whatever goes wrong on the
way is user code's, and fails the task. Belongs to the loop's thread.
"""

from __future__ import annotations

import asyncio
from time import monotonic_ns
from typing import TYPE_CHECKING, Any, Final, Protocol

from flowlane.core import messages as m
from flowlane.errors import Failure
from flowlane.runtime.failures import place_of, placed, too_deep
from flowlane.runtime.losses import is_loss
from flowlane.runtime.ports import NEVER, Report

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from flowlane.core.scheduler import Scheduler
    from flowlane.errors import FlowError
    from flowlane.program import Program
    from flowlane.runtime.beginning import Memory, Work
    from flowlane.runtime.dispatcher import Dispatcher
    from flowlane.runtime.gate import Gate
    from flowlane.runtime.growth import Growth
    from flowlane.runtime.losses import Losses
    from flowlane.runtime.places import Places
    from flowlane.runtime.roster import Roster
    from flowlane.storage.blob import Payload

__all__ = ["Grafts", "Maker"]

#: How deep work may go on returning more work, unless its task says otherwise: a loop without an end must not eat the machine.
MAX_DEPTH: Final = 100

Reports = dict[tuple[int, int], Report]


class Maker(Protocol):
    """Compiles what comes into being while a run goes on: the engine, as far as a run knows it."""

    @property
    def work(self) -> tuple[type, ...]:
        """The types of results that are not values, but more work."""
        ...

    @property
    def suspects(self) -> frozenset[int]:
        """The ids of the types of results that may be neither values nor work; `work` is not among them."""
        ...

    def is_mistake(self, value: Any) -> bool:
        """Whether a result whose type is suspect is neither. Must be quick."""
        ...

    def mistake(self, task: str, function: Any, value: Any) -> FlowError:
        """What to say of one that is."""
        ...

    def of_work(self, work: Any, program: Program) -> Program:
        """The program of work that a task of `program` returned. Raises DefinitionError."""
        ...

    def of_definition(
        self, definition: Any, args: Sequence[Any], kwargs: Mapping[str, Any], program: Program
    ) -> Program:
        """The program of a workflow of `program` whose turn has come. Raises DefinitionError, and what its body raises."""
        ...


class Run(Protocol):
    """The runner, as far as its grafts know it."""

    scheduler: Scheduler
    growth: Growth
    roster: Roster
    losses: Losses

    def blame(self, element: int, failure: Failure) -> None: ...

    def step(self, events: Sequence[m.Event], reports: Reports) -> None: ...

    def retryable(self, element: int, failure: Failure) -> bool: ...

    def fail(self, error: BaseException) -> None: ...

    def if_running(self, function: Callable[..., object], *args: Any) -> None: ...


class Grafts:
    """See the module's text. `gate` is there where the run is kept, `memory` where it goes on."""

    def __init__(
        self,
        run: Run,
        maker: Maker,
        dispatcher: Dispatcher,
        places: Places,
        gate: Gate | None,
        memory: Memory | None,
        token: int,
    ) -> None:
        self._run = run
        self._maker = maker
        self._dispatcher = dispatcher
        self._places = places
        self._gate = gate
        self._memory = memory
        self._token = token
        self._loop = asyncio.get_running_loop()
        self._openings: set[asyncio.Task[None]] = set()  # a loop keeps its tasks by weak references only

    def compiled(self, element: int, work: Any) -> Program:
        """The program of work that an element returned. Raises what the engine and user code raise."""
        program, node = self._run.growth.declared(element)
        try:
            made = self._maker.of_work(work, program)
        except Exception as error:
            placed(error, place_of(program.targets[node]))
            raise
        self._check_depth(element)
        return made

    def mistake(self, element: int, value: Any) -> Failure:
        """What an attempt fails with that returned neither a value nor work."""
        target = self._run.growth.target(element)
        return Failure.of(self._maker.mistake(target.name, target.fn, value))

    def returned(self, element: int, attempt: int, made: Program, work: Any, report: Report) -> None:
        """An attempt has returned `work`, which was compiled to `made`."""
        payload = self._gate.packed_work(element, work) if self._gate is not None else None
        self._graft(element, attempt, made, report.started, report.ended, {(element, attempt): report}, payload)

    def begin(self, element: int) -> None:
        """The turn of an element has come that is a workflow."""
        run = self._run
        attempt = run.scheduler.attempt(element)
        untold: Reports = {}
        try:
            program, node = run.growth.declared(element)
            args, kwargs = run.growth.arguments(element, None)
            self._check_depth(element)
            made = self._maker.of_definition(program.definitions[node], args, kwargs, program)
        except Exception as error:  # noqa: BLE001 - a workflow's body is user code
            program, node = run.growth.declared(element)
            call = program.maps.get(node)
            failure = Failure.of(placed(error, call.where if call is not None else place_of(program.targets[node])))
            event: m.Event = m.Failed(element, attempt, NEVER, monotonic_ns(), run.retryable(element, failure))
            if is_loss(failure):
                event, failure, _ = run.losses.of(element, failure)
            run.blame(element, failure)
            self._loop.call_soon(run.if_running, run.step, [event], untold)
            return
        self._loop.call_soon(run.if_running, self._graft, element, attempt, made, NEVER, NEVER, untold)

    def launch(self, elements: Sequence[int]) -> Sequence[int]:
        """Of elements that were launched, those that have to run. The others had returned more work in an earlier session."""
        memory = self._memory
        if memory is None:
            return elements
        go: list[int] = []
        for element in elements:
            found = memory.work(element) if self._run.scheduler.attempt(element) == 1 else None
            if found is None:
                go.append(element)
            else:
                self._loop.call_soon(self._run.if_running, self._go_on_with, element, found)
        return go

    def _go_on_with(self, element: int, found: Work) -> None:
        try:
            program, _ = self._run.growth.declared(element)
            made = self._maker.of_work(found.work, program)
        except Exception as error:  # noqa: BLE001 - a workflow's body is user code
            self._run.blame(element, Failure.of(error))
            self._run.step([m.Failed(element, 1, NEVER, monotonic_ns())], {})
            return
        self._graft(element, 1, made, NEVER, NEVER, {}, found.payload)

    def _check_depth(self, element: int) -> None:
        growth = self._run.growth
        program, node = growth.declared(element)
        limit = program.max_depth.get(node, MAX_DEPTH)
        if growth.depth(element) >= limit:
            raise too_deep(program.targets[node], limit)

    def _graft(
        self,
        element: int,
        attempt: int,
        made: Program,
        started: int,
        ended: int,
        reports: Reports,
        work: Payload | None = None,
    ) -> None:
        """Let an element become a program's graph, once the executors that it needs are open. `work` is for the store."""
        run = self._run
        if not run.scheduler.may_become(
            element, attempt
        ):  # it was stopped: nobody must count on tasks that will never be
            if run.scheduler.awaits(element, attempt):
                run.step([m.Grafted(element, attempt, made.plan, started, ended)], reports)
            return
        if not self._dispatcher.is_open(made.lanes):
            opening = self._loop.create_task(self._dispatcher.open(made.lanes))
            self._openings.add(opening)

            def opened(task: asyncio.Task[None]) -> None:
                self._openings.discard(task)
                if task.cancelled() or task.exception() is not None:
                    error = task.exception() if not task.cancelled() else asyncio.CancelledError()
                    run.fail(error or asyncio.CancelledError())
                else:
                    run.if_running(self._graft, element, attempt, made, started, ended, reports, work)

            opening.add_done_callback(opened)
            return
        plan = self._places.fitted(made, run.scheduler, self._token)
        start = run.scheduler.size
        run.growth.remote = self._places.remote
        run.growth.grafted(start, made)
        if self._gate is not None:
            self._gate.grafted(start, made, work)
        if self._memory is not None:
            self._memory.grafted(start, element, made)
        run.step([m.Grafted(element, attempt, plan, started, ended)], reports)
