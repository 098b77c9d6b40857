"""The handle of a run under way: what a caller holds while the engine works.

`LiveRun` is what engine and handle know of a run together; it belongs to the engine's loop. `RunHandle` is the caller's view of
it, good from any thread.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from flowlane.core.states import RunState
from flowlane.errors import EngineClosed, UsageError
from flowlane.runtime.events import History, run_finished, run_started
from flowlane.runtime.naming import new_id, new_name
from flowlane.runtime.ports import NOTED

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Generator, Sequence

    from flowlane.core.messages import Transition
    from flowlane.results import RunResult
    from flowlane.runtime.keeper import Keeper
    from flowlane.runtime.ports import Report, RunInfo, RunOutcome
    from flowlane.runtime.runner import Runner

__all__ = ["LiveRun", "RunHandle"]

R = TypeVar("R")


class LiveRun:
    """A run between start and result.

    runner   from the moment the run reaches the loop to its end
    info     set with the runner, and kept
    future   gets the RunResult; set running at once, so that a waiter that is cancelled cannot cancel it
    steps    the run's history as it comes, or None when nobody can ask for it
    outcome  set with the result
    """

    def __init__(self, workflow: str, *, keep_history: bool, id: str | None = None, name: str | None = None) -> None:
        self.id = id or new_id()
        self.name = name or new_name()
        self.keeper: Keeper | None = None  # of a run that is stored
        self.workflow = workflow
        self.runner: Runner | None = None
        self.info: RunInfo | None = None
        self.outcome: RunOutcome | None = None
        self.future: concurrent.futures.Future[RunResult[Any]] = concurrent.futures.Future()
        self.future.set_running_or_notify_cancel()
        self.steps: list[tuple[list[Transition], dict[tuple[int, int], Report]]] | None = [] if keep_history else None
        self.readers: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []

    def record(self, transitions: list[Transition], reports: dict[tuple[int, int], Report]) -> None:
        """Keep a step of history and tell the readers. On the loop's thread, or of a run that is stored on the journal's."""
        if self.steps is not None:
            if any(report.output for report in reports.values()):  # a reader of this may come late, or never
                reports = {key: replace(each, output=None) if each.output else each for key, each in reports.items()}
            self.steps.append((transitions, reports))
            if self.readers:
                self.wake_readers()

    def wake_readers(self) -> None:
        for loop, wake in list(self.readers):
            try:
                loop.call_soon_threadsafe(wake.set)
            except RuntimeError:  # the reader's loop is closed: nobody reads there any more
                continue

    def cancel(self, grace: float | None = None) -> None:
        if self.runner is not None:
            self.runner.cancel(grace)

    def drain(self) -> None:
        if self.runner is not None:
            self.runner.drain()

    def cancel_elements(self, elements: Sequence[int]) -> None:
        if self.runner is not None:
            self.runner.cancel_elements(elements)


def _nothing() -> None:
    """Asks an engine's loop whether it is there."""


def _no_loop_here() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return True
    return False


class RunHandle(Generic[R]):
    """A run under way. ``await handle`` gives its RunResult, or raises RunFailed or RunCancelled.

    Cancelling who waits does not cancel the run. All methods may be called from any thread.
    """

    def __init__(
        self,
        run: LiveRun,
        call: Callable[[Callable[[], None]], bool],
        on_loop: Callable[[], bool],
        *,
        own_thread: bool = False,
    ) -> None:
        """Made by an Engine. `call` runs a function on its loop, False when that is closed; `on_loop` tells whether the caller is
        there; `own_thread` that the loop has a thread of its own, as in code that is not async.
        """
        self.id = run.id
        self.name = run.name
        self.workflow = run.workflow
        self._run = run
        self._future = run.future
        self._call = call
        self._on_loop = on_loop
        self._own_thread = own_thread

    @property
    def state(self) -> RunState:
        """`running` until the result is there."""
        if not self._future.done():
            return RunState.RUNNING
        return RunState.FAILED if self._future.exception() is not None else self._future.result().state

    def __await__(self) -> Generator[Any, None, RunResult[R]]:
        return self._checked().__await__()

    async def _checked(self) -> RunResult[R]:
        return (await self._ended()).check()

    def wait(self) -> Coroutine[Any, Any, RunResult[R]]:
        """``await handle.wait()`` gives the result, whatever the state: a failed run does not raise here.

        Raises EngineClosed when the run can never end, because the engine's loop was closed without leaving the engine's block;
        and at once, before there is anything to await, UsageError in code that is not async (no event loop runs in the caller's
        thread, and the engine was entered by plain ``with``).
        """
        if self._own_thread and _no_loop_here():
            raise UsageError(
                "handle.wait() is for async code, and no event loop runs here that could await it",
                hint="handle.result() blocks until the run has ended; the RunFailed that it raises has the result as `.result`",
            )
        return self._ended()

    async def _ended(self) -> RunResult[R]:
        self._check_alive()
        return await asyncio.wrap_future(self._future)

    def result(self, timeout: float | None = None) -> RunResult[R]:
        """Block until the run has ended and return its result; for code that is not async.

        Raises RunFailed or RunCancelled as ``await handle`` does, TimeoutError after `timeout` seconds (the run goes on),
        UsageError on the engine's own loop, which it would block for ever, and EngineClosed as `wait` does.
        """
        if not self._future.done() and self._on_loop():
            raise UsageError(
                "handle.result() would block the event loop that the run needs", hint="use `await handle` instead"
            )
        self._check_alive()
        return self._future.result(timeout).check()

    def _check_alive(self) -> None:
        if not self._future.done() and not self._call(_nothing) and not self._future.done():
            raise EngineClosed(
                f"run {self.name} of '{self.workflow}' did not end before the event loop of its engine was closed",
                hint="leave the engine's `async with` block before the loop ends",
            )

    def cancel(self, grace: float | None = None) -> None:
        """Stop the run: what runs is interrupted, nothing begins. Returns at once; no effect after the end.

        A task that does not stop within `grace` seconds (default: the engine's) is given up.
        """
        self._call(lambda: self._run.cancel(grace))

    def cancel_tasks(self, *names: str) -> None:
        """Stop some tasks, and what they have become: what runs is interrupted, what has not begun does not.

        Each of `names` is a task's ("fetch", "fetch[7]"; a map's is all its elements), or a pattern in which ``*`` stands for
        any text and ``?`` for a character ("sub/*"). What depends on them ends as after a failure; the run goes on, and does
        not fail by it. Returns at once, but for a run that has only just been started, which another thread waits for to get to
        the engine's loop; no effect on what has ended. Raises UnknownName for a name that nothing has.
        """
        if self._run.runner is None and not self._future.done() and not self._on_loop():
            begun = threading.Event()
            while self._call(begun.set) and not begun.wait(1.0):  # False when the loop is closed
                pass
        runner = self._run.runner
        if runner is None:
            return
        elements = runner.roster.matching(names)
        self._call(lambda: self._run.cancel_elements(elements))

    def drain(self) -> None:
        """Let what runs end and begin nothing new; the run then is `interrupted`. Returns at once."""
        self._call(self._run.drain)

    async def events(self) -> AsyncIterator[dict[str, Any]]:
        """Every event of the run from the first, as dictionaries of the documented schema (docs/events.md), then the end.

        Any number of readers at any time, on any event loop; each goes through the run's own record at its own pace, so a
        slow reader loses nothing and holds up nobody. Raises EngineClosed as `wait` does, after the last event that there is.
        """
        run = self._run
        if run.steps is None:
            raise UsageError("this run keeps no history", hint="start it with Engine.start")
        wake = asyncio.Event()
        reader = (asyncio.get_running_loop(), wake)
        run.readers.append(reader)
        try:
            while run.info is None and not run.future.done():
                await wake.wait()
                wake.clear()
            info = run.info
            if info is None:
                return
            history = History(info)
            yield run_started(info)
            position = 0
            while True:
                outcome = run.outcome  # before the steps: on another thread the last of them may come in between
                while position < len(run.steps):
                    transitions, reports = run.steps[position]
                    position += 1
                    if not transitions:
                        for (element, attempt), report in reports.items():
                            if report.kind is NOTED:
                                for event in history.noted(element, attempt, report).events():
                                    yield event
                        continue
                    for event in history.chunk(transitions, reports).events():
                        yield event
                if outcome is not None:
                    yield run_finished(info, outcome)
                    return
                if run.outcome is not None:
                    continue
                self._check_alive()
                await wake.wait()
                wake.clear()
        finally:
            run.readers.remove(reader)

    def __repr__(self) -> str:
        return f"<RunHandle {self.name} ({self.id}) of {self.workflow!r}: {self.state}>"
