"""run, arun and Engine: how programs start workflows.

An Engine owns lanes, executors and sinks; runs started on it share them. It lives on one event loop: the host's
(``async with``), or one of its own in a daemon thread (``with``). `run` and `arun` are an Engine for one run.

Nothing here installs a signal handler, configures logging or prints. A host hears of runs through sinks it gives, through
the stdlib logger "flowlane", and through ``handle.events()``.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import sys
import threading
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypedDict, TypeVar, Unpack, overload

from flowlane.core.states import RunState
from flowlane.declare.compile import compile_workflow
from flowlane.declare.workflow import Bound, Workflow, WorkflowDefinition, as_bound
from flowlane.errors import EngineClosed, UsageError
from flowlane.results import RunResult
from flowlane.runtime.dispatcher import Dispatcher
from flowlane.runtime.events import History, run_finished, run_started
from flowlane.runtime.journal import Journal
from flowlane.runtime.naming import new_id, new_name
from flowlane.runtime.registry import Registry, make_sink
from flowlane.runtime.runner import Runner

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine, Generator, Mapping, Sequence
    from types import TracebackType

    from flowlane.core.messages import Transition
    from flowlane.declare.workflow import OnFailure
    from flowlane.program import Program
    from flowlane.runtime.ports import Executor, Report, RunOutcome, Sink

__all__ = ["Engine", "RunHandle", "RunOptions", "RunResult", "StartOptions", "arun", "run"]

P = ParamSpec("P")
R = TypeVar("R")

# Executors that size themselves by an option `slots`; for any other the lane alone keeps to the number.
_SIZED = ("asyncio", "processes", "threads")

#: Seconds that a task told to stop has before it is given up. Long enough to close a connection, short enough to wait for.
GRACE = 5.0

class StartOptions(TypedDict, total=False):
    """Options of one run on an engine: `routes` win over the engine's and the tasks' own, `on_failure` over the workflow's."""

    routes: Mapping[str, str] | None
    on_failure: OnFailure | None


class RunOptions(StartOptions, total=False):
    """Options of `run` and `arun`: raise unless the run succeeds (`check`, default True), and all that Engine takes."""

    check: bool
    slots: Mapping[str, int] | None
    executors: Mapping[str, Executor] | None
    sinks: Sequence[Sink]
    options: Mapping[str, Mapping[str, Any]] | None
    grace: float


class RunHandle(Generic[R]):
    """A run under way. ``await handle`` gives its RunResult, or raises RunFailed or RunCancelled.

    Cancelling who waits does not cancel the run. All methods may be called from any thread.
    """

    def __init__(self, engine: Engine, program: Program, *, keep_history: bool) -> None:
        self.id = new_id()
        self.name = new_name()
        self.workflow = program.workflow
        self._engine = engine
        self._program = program
        self._runner: Runner | None = None
        # Set running at once: a waiter that is cancelled must not be able to cancel it.
        self._future: concurrent.futures.Future[RunResult[R]] = concurrent.futures.Future()
        self._future.set_running_or_notify_cancel()
        self._steps: list[tuple[list[Transition], dict[tuple[int, int], Report]]] | None = [] if keep_history else None
        self._readers: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []
        self._outcome: RunOutcome | None = None

    @property
    def state(self) -> RunState:
        """Running until the result is there."""
        return self._future.result().state if self._future.done() and self._ok() else RunState.RUNNING

    def _ok(self) -> bool:
        return self._future.exception() is None

    def __await__(self) -> Generator[Any, None, RunResult[R]]:
        return self._checked().__await__()

    async def _checked(self) -> RunResult[R]:
        return (await self.wait()).check()

    async def wait(self) -> RunResult[R]:
        """The result, whatever the state: a failed run does not raise here."""
        return await asyncio.wrap_future(self._future)

    def result(self, timeout: float | None = None) -> RunResult[R]:
        """Block until the run has ended and return its result; for code that is not async.

        Raises RunFailed or RunCancelled as ``await handle`` does, TimeoutError after `timeout` seconds (the run goes on),
        and UsageError on the engine's own loop, which it would block for ever.
        """
        if not self._future.done() and self._engine.on_loop():
            raise UsageError(
                "handle.result() would block the event loop that the run needs", hint="use `await handle` instead"
            )
        return self._future.result(timeout).check()

    def cancel(self) -> None:
        """Stop the run: what runs is interrupted, nothing begins. Returns at once; no effect after the end."""
        self._engine.call(self._cancel)

    def drain(self) -> None:
        """Let what runs end and begin nothing new; the run then is `interrupted`. Returns at once."""
        self._engine.call(self._drain)

    def _cancel(self) -> None:
        if self._runner is not None:
            self._runner.cancel()

    def _drain(self) -> None:
        if self._runner is not None:
            self._runner.drain()

    async def events(self) -> AsyncIterator[dict[str, Any]]:
        """Every event of the run from the first, as dictionaries of the documented schema (docs/events.md), then the end.

        Any number of readers at any time, on any event loop; each goes through the run's own record at its own pace, so a
        slow reader loses nothing and holds up nobody.
        """
        if self._steps is None:
            raise UsageError("this run keeps no history", hint="start it with Engine.start")
        wake = asyncio.Event()
        reader = (asyncio.get_running_loop(), wake)
        self._readers.append(reader)
        try:
            while self._runner is None and not self._future.done():
                await wake.wait()
                wake.clear()
            if self._runner is None:
                return
            info = self._runner.info
            history = History(info)
            yield run_started(info)
            position = 0
            while True:
                while position < len(self._steps):
                    transitions, reports = self._steps[position]
                    position += 1
                    for event in history.chunk(transitions, reports).events():
                        yield event
                if self._outcome is not None:
                    yield run_finished(info, self._outcome)
                    return
                await wake.wait()
                wake.clear()
        finally:
            self._readers.remove(reader)

    def _record(self, transitions: list[Transition], reports: dict[tuple[int, int], Report]) -> None:
        assert self._steps is not None
        self._steps.append((transitions, reports))
        if self._readers:
            self._wake_readers()

    def _wake_readers(self) -> None:
        for loop, wake in list(self._readers):
            try:
                loop.call_soon_threadsafe(wake.set)
            except RuntimeError:  # the reader's loop is closed: nobody reads there any more
                continue

    def __repr__(self) -> str:
        return f"<RunHandle {self.name} ({self.id}) of {self.workflow!r}: {self.state}>"


class Engine:
    """Runs workflows. Use it as ``async with Engine(...)`` on your loop, or as ``with Engine(...)`` with a loop of its own.

    routes     what runs where: keys ``io``, ``io.async``, ``io.sync``, ``cpu``, ``*`` or a task's name → executor name
    executors  name → instance of an Executor (docs/writing-an-executor.md), beside those installed
    slots      executor name → how many jobs at a time
    sinks      who hears every transition (docs/events.md)
    options    executor name → keywords for its constructor
    grace      seconds that a task told to stop has before it is given up

    Leaving the block waits for its runs; leaving it by an exception cancels them first. Wrong names and numbers are told
    by `start`, before anything begins: RouteError, SettingsError.
    """

    def __init__(
        self,
        *,
        routes: Mapping[str, str] | None = None,
        executors: Mapping[str, Executor] | None = None,
        slots: Mapping[str, int] | None = None,
        sinks: Sequence[Sink] = (),
        options: Mapping[str, Mapping[str, Any]] | None = None,
        grace: float = GRACE,
    ) -> None:
        given = dict(executors or {})
        keywords = {name: dict(own) for name, own in (options or {}).items()}
        for name, number in (slots or {}).items():
            if name in _SIZED and name not in given:
                keywords.setdefault(name, {})["slots"] = number
        self._routes = dict(routes or {})
        self._slots = dict(slots or {})
        self._registry = Registry(given, keywords)
        self._dispatcher = Dispatcher(self._registry, self._slots, grace)
        self._journal = Journal([*sinks, make_sink("logging")])
        self._compiling = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._loop_thread = 0
        self._thread: threading.Thread | None = None
        self._running: set[RunHandle[Any]] = set()
        self._openings: set[asyncio.Task[None]] = set()
        self._closed = False

    # ── life ──────────────────────────────────────────────────────────────────────────────────────────────────────

    async def __aenter__(self) -> Engine:
        self._attach()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self._close(cancel=error is not None)

    def __enter__(self) -> Engine:
        if self._loop is not None:
            raise UsageError("this engine has been entered already", hint="make a new Engine for each `with` block")
        ready = threading.Event()
        self._thread = threading.Thread(target=self._serve, args=(ready,), name="flowlane-engine", daemon=True)
        self._thread.start()
        ready.wait()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        assert self._loop is not None and self._thread is not None
        closing = asyncio.run_coroutine_threadsafe(self._close(cancel=error is not None), self._loop)
        try:
            try:
                closing.result()
            except KeyboardInterrupt:  # somebody at the terminal will not wait for the runs
                asyncio.run_coroutine_threadsafe(self._cancel_all(), self._loop).result()
                closing.result()
                raise
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()

    def _serve(self, ready: threading.Event) -> None:
        """The engine's own thread, when it was entered by plain ``with``."""
        loop = asyncio.new_event_loop()
        asyncio.set_event_loop(loop)
        try:
            loop.call_soon(self._attach)
            loop.call_soon(ready.set)
            loop.run_forever()
        finally:
            asyncio.set_event_loop(None)
            loop.close()

    def _attach(self) -> None:
        if self._loop is not None:
            raise UsageError("this engine has been entered already", hint="make a new Engine for each `with` block")
        self._loop = asyncio.get_running_loop()
        self._loop_thread = threading.get_ident()
        self._dispatcher.attach()

    async def _close(self, *, cancel: bool) -> None:
        try:
            if cancel:
                await self._cancel_all()
            while self._running:
                await asyncio.wait([asyncio.wrap_future(handle._future) for handle in self._running])  # pyright: ignore[reportPrivateUsage]
        except asyncio.CancelledError:
            await self._cancel_all()
            while self._running:
                await asyncio.wait([asyncio.wrap_future(handle._future) for handle in self._running])  # pyright: ignore[reportPrivateUsage]
            raise
        finally:
            self._closed = True
            try:
                await self._dispatcher.close()
            finally:
                self._journal.close()

    async def _cancel_all(self) -> None:
        for handle in list(self._running):
            handle._cancel()  # pyright: ignore[reportPrivateUsage]

    # ── runs ──────────────────────────────────────────────────────────────────────────────────────────────────────

    @overload
    def start(self, target: WorkflowDefinition[P, R], /, *args: P.args, **kwargs: P.kwargs) -> RunHandle[R]: ...
    @overload
    def start(self, target: Bound[R], /, **options: Unpack[StartOptions]) -> RunHandle[R]: ...
    @overload
    def start(self, target: Workflow, /, **options: Unpack[StartOptions]) -> RunHandle[dict[str, Any]]: ...
    def start(self, target: Any, /, *args: Any, **kwargs: Any) -> RunHandle[Any]:
        """Check, compile and start a workflow; returns at once. Raises DefinitionError before anything starts.

        The workflow's body runs here, in the caller's thread. Give either a definition and its parameters, or one that is
        bound (or a Workflow) and the run's options. Any thread, while the engine is open.
        """
        options: dict[str, Any] = {}
        if isinstance(target, (Bound, Workflow)):
            options, kwargs = _split(kwargs, StartOptions)
        program = self.compile(as_bound(target, args, kwargs), **options)
        return self.launch(program, keep_history=True)

    def compile(
        self, bound: Bound[Any], *, routes: Mapping[str, str] | None = None, on_failure: OnFailure | None = None
    ) -> Program:
        """Build and check a workflow for this engine, starting nothing. Raises DefinitionError."""
        workflow = bound.build()
        with self._compiling:
            for name in self._slots:
                self._registry.capabilities(name)
            return compile_workflow(
                workflow,
                capabilities=self._registry.capabilities,
                routes=routes or {},
                defaults=self._routes,
                on_failure=on_failure,
            )

    def launch(self, program: Program, *, keep_history: bool) -> RunHandle[Any]:
        """Start a compiled workflow. Its events can be read only with `keep_history`, which costs about 0.5 kB a task."""
        if self._loop is None:
            raise EngineClosed("the engine is not open", hint="use it as `with Engine() as engine:` or `async with`")
        if self._closed:
            raise EngineClosed("the engine is closed", hint="start runs inside its `with` block")
        handle: RunHandle[Any] = RunHandle(self, program, keep_history=keep_history)
        context = contextvars.copy_context()
        self._running.add(handle)
        self.call(self._launch, handle, program, context)
        return handle

    def _launch(self, handle: RunHandle[Any], program: Program, context: contextvars.Context) -> None:
        try:
            runner = Runner(
                program,
                id=handle.id,
                name=handle.name,
                dispatcher=self._dispatcher,
                journal=self._journal,
                context=context,
                on_step=handle._record if handle._steps is not None else None,  # pyright: ignore[reportPrivateUsage]
                on_finish=lambda: self._ended(handle),
            )
        except BaseException as error:
            self._running.discard(handle)
            handle._future.set_exception(error)  # pyright: ignore[reportPrivateUsage]
            raise
        handle._runner = runner  # pyright: ignore[reportPrivateUsage]
        handle._wake_readers()  # pyright: ignore[reportPrivateUsage]
        if self._dispatcher.is_open(program.lanes):
            runner.begin()
        else:
            assert self._loop is not None
            opening = self._loop.create_task(self._open(runner, program.lanes))
            self._openings.add(opening)
            opening.add_done_callback(self._openings.discard)

    async def _open(self, runner: Runner, lanes: Sequence[str]) -> None:
        try:
            await self._dispatcher.open(lanes)
        except BaseException as error:
            runner.fail(error)
            if isinstance(error, asyncio.CancelledError):
                raise
        else:
            if runner.scheduler.finished is None:
                runner.begin()

    def _ended(self, handle: RunHandle[Any]) -> None:
        """A run's last task has ended: let the sinks have everything, then tell who waits."""
        runner = handle._runner  # pyright: ignore[reportPrivateUsage]
        assert runner is not None
        outcome = runner.outcome()
        delivered = self._journal.finish(handle.id, outcome)

        def tell() -> None:
            notes = self._journal.notes(handle.id)
            if runner.abandoned:
                notes.insert(0, f"{runner.abandoned} attempts did not stop when told to and were abandoned")
            if runner.scheduler.late:
                notes.append(f"{runner.scheduler.late} late reports were ignored")
            handle._outcome = outcome  # pyright: ignore[reportPrivateUsage]
            self._running.discard(handle)
            handle._future.set_result(RunResult(runner, notes))  # pyright: ignore[reportPrivateUsage]
            handle._wake_readers()  # pyright: ignore[reportPrivateUsage]

        if delivered.done():
            tell()
        else:
            delivered.add_done_callback(lambda _: self.call(tell))

    def on_loop(self) -> bool:
        """Whether the caller is on the thread of the engine's loop."""
        return threading.get_ident() == self._loop_thread

    def call(self, function: Any, *args: Any) -> None:
        """Call `function` on the loop's thread: now when there, soon otherwise. Nothing happens once the loop is closed."""
        if self._loop is None:
            return
        if self.on_loop():
            function(*args)
        else:
            try:
                self._loop.call_soon_threadsafe(function, *args)
            except RuntimeError:
                return


# ── one run ───────────────────────────────────────────────────────────────────────────────────────────────────────


@overload
def run(target: WorkflowDefinition[P, R], /, *args: P.args, **kwargs: P.kwargs) -> RunResult[R]: ...
@overload
def run(target: Bound[R], /, **options: Unpack[RunOptions]) -> RunResult[R]: ...
@overload
def run(target: Workflow, /, **options: Unpack[RunOptions]) -> RunResult[dict[str, Any]]: ...
def run(target: Any, /, *args: Any, **kwargs: Any) -> RunResult[Any]:
    """Run a workflow to its end and return its RunResult; blocks. Raises RunFailed (unless ``check=False``).

    ``run(etl, urls=[...])`` takes the workflow's parameters; ``run(etl.bind(urls=[...]), check=False, ...)`` the run's
    options: `check`, `routes`, `on_failure`, and all that Engine takes.

    In the main thread Ctrl-C cancels the run, as with ``asyncio.run``. Raises UsageError inside a running event loop.
    """
    _check_place()
    engine, program, check = _prepare(target, args, kwargs)
    with asyncio.Runner() as runner:
        return runner.run(_one_run(engine, program, check))


@overload
def arun(
    target: WorkflowDefinition[P, R], /, *args: P.args, **kwargs: P.kwargs
) -> Coroutine[Any, Any, RunResult[R]]: ...
@overload
def arun(target: Bound[R], /, **options: Unpack[RunOptions]) -> Coroutine[Any, Any, RunResult[R]]: ...
@overload
def arun(target: Workflow, /, **options: Unpack[RunOptions]) -> Coroutine[Any, Any, RunResult[dict[str, Any]]]: ...
async def arun(target: Any, /, *args: Any, **kwargs: Any) -> RunResult[Any]:
    """`run` for code that is async: same forms, same errors. Cancelling it cancels the run."""
    engine, program, check = _prepare(target, args, kwargs)
    return await _one_run(engine, program, check)


def _prepare(target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Engine, Program, bool]:
    own: dict[str, Any] = {}
    if isinstance(target, (Bound, Workflow)):
        own, kwargs = _split(kwargs, RunOptions)
    bound: Bound[Any] = as_bound(target, args, kwargs)
    check = own.pop("check", True)
    routes, on_failure = own.pop("routes", None), own.pop("on_failure", None)
    engine = Engine(**own)
    return engine, engine.compile(bound, routes=routes, on_failure=on_failure), check


async def _one_run(engine: Engine, program: Program, check: bool) -> RunResult[Any]:
    async with engine:
        result: RunResult[Any] = await engine.launch(program, keep_history=False).wait()
    return result.check() if check else result


def _split(kwargs: dict[str, Any], options: type) -> tuple[dict[str, Any], dict[str, Any]]:
    """Our options, and the rest (which as_bound will refuse by name)."""
    names = options.__annotations__
    own = {name: value for name, value in kwargs.items() if name in names}
    return own, {name: value for name, value in kwargs.items() if name not in names}


def _check_place() -> None:
    """Refuse to run where it cannot work: inside an event loop, or while a worker process imports the main script."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        pass
    else:
        raise UsageError("run() was called inside a running event loop", hint="use `await arun(...)` there")
    process = sys.modules.get("multiprocessing.process")
    if process is not None and getattr(process.current_process(), "_inheriting", False):
        raise UsageError(
            "run() was called while a worker process imported your script, so each worker would start the run again",
            hint='put the call under `if __name__ == "__main__":`, or start the file with `flow run`',
        )
