"""The Engine: lanes, executors and sinks, and the runs that share them.

What runs are kept with (stores, descriptions, fingerprints) is imported where it is used: an engine without a store pays
nothing.

It lives on one event loop: the host's (``async with``), or one of its own in a daemon thread (``with``). Nothing here installs
a signal handler, configures logging or prints. A host hears of runs through sinks it gives, through the stdlib logger
"flowlane", and through ``handle.events()``.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import os
import threading
import time
from typing import TYPE_CHECKING, Any, Final, ParamSpec, TypeVar, Unpack, overload

from flowlane.compiling import CompileOptions, Compiler, slots_of
from flowlane.conclusion import Conclusion
from flowlane.declare.workflow import Bound, Workflow, WorkflowDefinition, as_bound
from flowlane.errors import EngineClosed, RunExists, SettingsError, UsageError
from flowlane.given import check_executors, check_grace, check_options, check_routes, check_sinks, check_slots
from flowlane.handle import LiveRun, RunHandle
from flowlane.loader import refuse_while_importing
from flowlane.making import Making
from flowlane.runtime.beginning import NOTHING_DONE
from flowlane.runtime.dispatcher import Dispatcher
from flowlane.runtime.journal import Journal
from flowlane.runtime.naming import id_of_key
from flowlane.runtime.registry import Registry, make_sink, make_store
from flowlane.runtime.runner import Runner

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from types import TracebackType
    from typing import Self

    from flowlane.archive import Archive, ResumeOptions
    from flowlane.declare.limits import Adaptive, Limit
    from flowlane.declare.workflow import OnFailure
    from flowlane.program import Program
    from flowlane.runtime.beginning import Beginning
    from flowlane.runtime.ports import Executor, Sink
    from flowlane.storage.port import Store, StoredRun

__all__ = ["GRACE", "Engine", "StartOptions", "own_options"]

P = ParamSpec("P")
R = TypeVar("R")

# Executors that size themselves by an option `slots`; for any other the lane alone keeps to the number.
_SIZED: Final = ("asyncio", "processes", "threads")

#: Seconds that a task told to stop has before it is given up: long enough to close a connection, short enough to wait.
GRACE: Final = 5.0

# Seconds that closing may block the loop for the journal's thread, which as a rule ends within a millisecond.
_AT_ONCE: Final = 0.02


class StartOptions(CompileOptions, total=False):
    """Options of one run on an engine.

    routes        what runs where: wins over the engine's routes and the tasks' own word
    on_failure, max_failures, deadline, retry_budget  win over the workflow's, see `workflow`
    limits        Limits by name: win over the engine's, and over those that tasks bring along
    only          run these tasks alone: names, or patterns with ``*`` and ``?``. The value is then {name: value} of those of them
                  that no other waits for
    start_at      run these and what depends on them
    until         run these and what they depend on; with `start_at`, what lies between
    key           a text of yours, of which there is one run and no more: with a store as long as that run is in it, in whatever
                  process, without one as long as the engine lives. A second start raises RunExists. None is no key
    """

    key: str | None


class Engine:
    """Runs workflows. Use it as ``async with Engine(...)`` on your loop, or as ``with Engine(...)`` with a loop of its own.

    routes     what runs where: keys ``io``, ``io.async``, ``io.sync``, ``cpu``, ``*`` or a task's name → executor name
    executors  name → instance of an Executor (docs/writing-an-executor.md), beside those installed
    slots      executor name → how many jobs at a time; an Adaptive for one that waits, and measures no appetite of its own
    sinks      who hears every transition (docs/events.md)
    options    executor name → keywords for its constructor
    grace      seconds that a task told to stop has before it is given up; one whose timeout has passed on ``processes`` has that
               executor's own: options={"processes": {"grace": 2.0}}
    limits     Limits that tasks may name, see `Limit`; they win over those that tasks bring along
    store      where runs are kept, so that they can be resumed: a path (of an SQLite file, made if need be) or a Store; None
               keeps nothing. One that was given as a Store is not closed with the engine

    Leaving the block waits for its runs; leaving it by an exception cancels them first. What is not of the kind that is asked
    for is told at once: SettingsError. Wrong names and numbers are told by `start`, before anything begins: RouteError,
    SettingsError.
    """

    def __init__(
        self,
        *,
        routes: Mapping[str, str] | None = None,
        executors: Mapping[str, Executor] | None = None,
        slots: Mapping[str, int | Adaptive] | None = None,
        sinks: Sequence[Sink] = (),
        options: Mapping[str, Mapping[str, Any]] | None = None,
        grace: float = GRACE,
        limits: Sequence[Limit] = (),
        store: Store | str | os.PathLike[str] | None = None,
    ) -> None:
        check_routes(routes)
        check_executors(executors)
        check_slots(slots)
        check_sinks(sinks)
        check_options(options)
        check_grace(grace)
        given = dict(executors or {})
        keywords = {name: dict(own) for name, own in (options or {}).items()}
        numbers, adaptive = slots_of(slots or {})
        for name, number in numbers.items():
            if name in _SIZED and name not in given:
                keywords.setdefault(name, {})["slots"] = number
        self._registry = Registry(given, keywords)
        self._compiler = Compiler(
            self._registry,
            routes=routes or {},
            limits=limits,
            slots=numbers,
            adaptive=adaptive,
            options=tuple(options or {}),
        )
        self._dispatcher = Dispatcher(self._registry, numbers, grace, adaptive)
        self._journal = Journal([*sinks, make_sink("logging")])
        self._archive = self._made_archive(store)
        self._recorder = self._archive.recorder(self._journal) if self._archive is not None else None
        self._making = Making(self._compiler.compile_added)
        self._keys: dict[str, object] = {}  # ids of runs that were started by a key; a store remembers them by itself
        self._loop: asyncio.AbstractEventLoop | None = None
        self._loop_thread = 0
        self._pid = 0  # of the process that entered it: a fork of that has neither our threads nor our executors
        self._thread: threading.Thread | None = None
        self._running: set[LiveRun] = set()
        self._openings: set[asyncio.Task[None]] = set()
        self._closed = False

    # ── life ──────────────────────────────────────────────────────────────────────────────────────────────────────

    async def __aenter__(self) -> Self:
        self._attach()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        if os.getpid() == self._pid:
            await self._close(cancel=error is not None)

    def __enter__(self) -> Self:
        if self._loop is not None:
            raise UsageError("this engine has been entered already", hint="make a new Engine for each `with` block")
        ready = threading.Event()
        self._thread = threading.Thread(target=self._serve, args=(ready,), name="flowlane-engine", daemon=True)
        self._thread.start()
        ready.wait()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        assert self._loop is not None
        assert self._thread is not None
        if os.getpid() != self._pid:
            return
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
        with (
            asyncio.Runner() as runner
        ):  # ends as asyncio.run does: tasks and async generators that user code left are closed
            loop = runner.get_loop()
            loop.call_soon(self._attach)
            loop.call_soon(ready.set)
            loop.run_forever()
        for run in list(self._running):  # started by another thread, too late for this loop to see
            if self._archive is not None:
                self._archive.give_up(run)
            run.future.set_exception(_closed())

    def _attach(self) -> None:
        if self._loop is not None:
            raise UsageError("this engine has been entered already", hint="make a new Engine for each `with` block")
        self._loop = asyncio.get_running_loop()
        self._loop_thread = threading.get_ident()
        self._pid = os.getpid()
        self._dispatcher.attach()

    async def _close(self, *, cancel: bool) -> None:
        try:
            if cancel:
                await self._cancel_all()
            await self._all_ended()
        except asyncio.CancelledError:
            await self._cancel_all()
            await self._all_ended()
            raise
        finally:
            self._closed = True
            try:
                await self._dispatcher.close()
            finally:
                await self._close_journal()
                if self._archive is not None:
                    self._archive.close()

    async def _close_journal(self) -> None:
        """End the journal's thread. A sink that blocks is left behind after the grace period: logging holds up nobody."""
        journal = self._recorder or self._journal
        journal.close(timeout=_AT_ONCE)
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._dispatcher.grace
        while journal.writing and loop.time() < deadline:  # noqa: ASYNC110 - a thread that cannot tell the loop
            await asyncio.sleep(_AT_ONCE)

    def wait_for_sinks(self, patience: float) -> bool:
        """Once the engine is closed: wait until its sinks have got everything, however long that takes while they get on.

        False when they have not, and got nothing for `patience` seconds. Blocks; not on a running loop.
        """
        journal, recorder = self._journal, self._recorder
        seen, since = -1, time.monotonic()
        while journal.writing or (recorder is not None and recorder.writing):
            delivered = journal.delivered + (recorder.delivered if recorder is not None else 0)
            if delivered != seen:
                seen, since = delivered, time.monotonic()
            elif time.monotonic() - since > patience:
                return False
            time.sleep(_AT_ONCE)
        return True

    async def _all_ended(self) -> None:
        while running := list(self._running):  # a list, in one go: other threads may start runs meanwhile
            await asyncio.wait([asyncio.wrap_future(run.future) for run in running])

    async def _cancel_all(self) -> None:
        for run in list(self._running):
            run.cancel()

    # ── runs ──────────────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def runs(self) -> dict[str, RunHandle[Any]]:
        """The runs under way, by id, as they are at this instant. Any thread.

        A run that has ended is not among them: who wants its result keeps the handle that `start` gave.
        """
        return {run.id: self._handle(run) for run in list(self._running)}  # a list, in one go: as above

    @property
    def store(self) -> Store:
        """The store that runs are kept in, open, to look into it: ``engine.store.find(id).state``. Any thread; its calls block.

        Raises UsageError when the engine has none, EngineClosed before and after its block, StoreError.
        """
        if self._archive is None:
            raise UsageError("this engine has no store", hint="Engine(store=...)")
        self._check_open()
        return self._archive.store

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

        With a store the run is recorded here, before anything begins: that waits for the disk, and for another process that
        is writing to the same store (30 seconds at most). Raises StoreError when it cannot be done, and RunExists, before
        anything begins, when there is a run of that `key` already, whatever its parameters and whatever became of it.
        """
        options: dict[str, Any] = {}
        if isinstance(target, (Bound, Workflow)):
            options, kwargs = own_options(kwargs, StartOptions)
        bound: Bound[Any] = as_bound(target, args, kwargs)
        key = options.pop("key", None)
        program = self.compile(bound, **options)
        return self.launch(program, keep_history=True, origin=self.origin(bound), key=key)

    def resume(
        self,
        run: str,
        target: WorkflowDefinition[Any, Any] | Bound[Any] | Workflow | None = None,
        /,
        *,
        routes: Mapping[str, str] | None = None,
        on_failure: OnFailure | None = None,
        **how: Unpack[ResumeOptions],
    ) -> RunHandle[Any]:
        """Go on with a stored run, on its own parameters: what had succeeded is kept, the rest runs. Returns at once.

        run             its name, its id or the beginning of that, or "last"
        target          the workflow, where the run does not say where it is (a program made it, its file was moved)
        how             see ResumeOptions

        Raises UsageError without a store, UnknownRun, RunLocked, WorkflowChanged, StoreError (ResultDamaged where what the run
        was asked to do is not what its owner stored), and what compiling raises.
        Loading and compiling happen here, in the caller's thread. Any thread.
        """
        if not isinstance(run, str):  # pyright: ignore[reportUnnecessaryIsInstance] - said to whoever has no checker
            raise UsageError(
                f"a run is resumed by its name or its id, not by {run!r}", hint='engine.resume("last"), or handle.id'
            )
        _check_resume_options(how)
        if self._archive is None:
            raise UsageError("this engine has no store to resume from", hint="Engine(store=...)")
        self._check_open()
        from flowlane.origin import find_again, origin_of
        from flowlane.resume import asked_of, part_of_run, sealed_origin, with_parameters

        store = self._archive.store
        stored = store.find(run)
        if target is None:
            target = find_again(stored, asked_of(stored, store).origin)
        bound = with_parameters(target, stored, store)
        part: Any = part_of_run(stored, store)
        program = self.compile(bound, routes=routes, on_failure=on_failure, **part)
        return self.relaunch(
            program, stored, origin_of(bound) or sealed_origin(stored, store), keep_history=True, **how
        )

    def compile(self, bound: Bound[Any], **options: Unpack[CompileOptions]) -> Program:
        """Build and check a workflow for this engine, starting nothing. Raises DefinitionError. Any thread."""
        return self._compiler.compile(bound, **options)

    def origin(self, bound: Bound[Any]) -> str:
        """What `launch` is told of where `bound` is; "" without a store, where nobody asks."""
        if self._archive is None:
            return ""
        from flowlane.origin import origin_of

        return origin_of(bound)

    def launch(
        self, program: Program, *, keep_history: bool, origin: str = "", key: str | None = None
    ) -> RunHandle[Any]:
        """Start a compiled workflow. Its events can be read only with `keep_history`, which costs about 0.5 kB a task.

        `origin` says where a resume finds the workflow, see ``flowlane.origin``; `key` see StartOptions. Raises StoreError when
        it cannot be stored, RunExists.
        """
        self._check_open()
        run = LiveRun(program.workflow, keep_history=keep_history, id=None if key is None else _id_of(key))
        if self._archive is not None:
            try:
                self._archive.begin(run, program, origin)
            except RunExists as error:
                raise (error if key is None else _started_before(key, run.id)) from None
        elif key is not None:
            mine = object()
            if self._keys.setdefault(run.id, mine) is not mine:  # in one go: any thread
                raise _started_before(key, run.id)
        try:
            return self._go(run, program, NOTHING_DONE)
        except BaseException:
            self._keys.pop(run.id, None)
            raise

    def relaunch(
        self,
        program: Program,
        stored: StoredRun,
        origin: str,
        *,
        keep_history: bool,
        **how: Unpack[ResumeOptions],
    ) -> RunHandle[Any]:
        """`resume` with its workflow compiled. The engine has a store."""
        self._check_open()
        assert self._archive is not None
        run, beginning = self._archive.go_on(program, stored, origin, keep_history=keep_history, **how)
        return self._go(run, program, beginning)

    def _made_archive(self, store: Store | str | os.PathLike[str] | None) -> Archive | None:
        if store is None:
            return None
        from flowlane.archive import Archive

        if isinstance(store, (str, os.PathLike)):
            path = os.fspath(store)
            if not path or os.path.isdir(path):
                raise SettingsError(
                    f"the store {path!r} is {'a folder' if path else 'no path'}",
                    hint=f"name a file in it: {os.path.join(path or '.flow', 'flow.db')!r}",
                )
        elif not hasattr(store, "begin"):
            raise SettingsError(
                f"{store!r} is neither a path nor a store",
                hint='Engine(store=".flow/flow.db"), or an object like SqliteStore',
            )
        own = isinstance(store, (str, os.PathLike))
        made: Store = make_store("sqlite", path=os.fspath(store)) if isinstance(store, (str, os.PathLike)) else store
        return Archive(made, own=own, call=self.call)

    def _check_open(self) -> None:
        refuse_while_importing("a run")
        if self._loop is None:
            raise EngineClosed("the engine is not open", hint="use it as `with Engine() as engine:` or `async with`")
        if os.getpid() != self._pid:
            raise EngineClosed(
                "this engine belongs to the process that entered it, and this one is a fork of that",
                hint="make an Engine of its own here, after the fork",
            )
        if self._closed or self._loop.is_closed():  # the latter when nobody has left our block
            raise _closed()

    def _go(self, run: LiveRun, program: Program, beginning: Beginning) -> RunHandle[Any]:
        context = contextvars.copy_context()
        self._running.add(run)
        try:
            launch = self._launch if self.on_loop() else self._launch_for_another
            if not self.call(launch, run, program, context, beginning):
                raise _closed()
        except BaseException:
            self._running.discard(run)
            if self._archive is not None:
                self._archive.give_up(run)
            raise
        return self._handle(run)

    def _handle(self, run: LiveRun) -> RunHandle[Any]:
        return RunHandle(run, self.call, self.on_loop, own_thread=self._thread is not None)

    def _launch(
        self, run: LiveRun, program: Program, context: contextvars.Context, beginning: Beginning = NOTHING_DONE
    ) -> None:
        try:
            runner = run.runner = Runner(
                program,
                id=run.id,
                name=run.name,
                dispatcher=self._dispatcher,
                journal=self._journal,
                context=context,
                on_step=run.record if run.steps is not None and run.keeper is None else None,
                on_finish=lambda: self._ended(run),
                keeper=run.keeper,
                recorder=self._recorder,
                lookups=self._archive.lookups if self._archive is not None else None,
                beginning=beginning,
                maker=self._making,
            )
        except BaseException as error:
            self._running.discard(run)
            self._keys.pop(run.id, None)
            if self._archive is not None:
                self._archive.give_up(run)
            run.future.set_exception(error)
            run.wake_readers()
            raise
        run.info = runner.info
        run.wake_readers()
        lanes = program.lanes
        if beginning.restored or beginning.cached:  # what has nothing left to run is not started for it
            done = {*beginning.restored, *beginning.cached, *beginning.skipped}
            left = {lane for element, lane in enumerate(program.plan.lane) if element not in done}
            lanes = tuple([name for lane, name in enumerate(lanes) if lane in left])
        if self._dispatcher.is_open(lanes):
            runner.begin()
        else:
            assert self._loop is not None
            opening = self._loop.create_task(self._open(runner, lanes))
            self._openings.add(opening)
            opening.add_done_callback(self._openings.discard)

    def _launch_for_another(
        self, run: LiveRun, program: Program, context: contextvars.Context, beginning: Beginning
    ) -> None:
        """`_launch` for another thread, to which the run's future tells what was wrong; the loop need not hear of it as well."""
        with contextlib.suppress(Exception):
            self._launch(run, program, context, beginning)

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

    def _ended(self, run: LiveRun) -> None:
        """A run's last task has ended: let store and sinks have everything, then tell who waits."""
        assert self._loop is not None
        Conclusion(
            run,
            notes=self._journal.notes,
            grace=self._dispatcher.grace,
            loop=self._loop,
            call=self.call,
            on_told=lambda: self._running.discard(run),
        ).after(self._journal if run.keeper is None else self._recorder)

    def on_loop(self) -> bool:
        """Whether the caller is on the thread of the engine's loop, and that is open."""
        return threading.get_ident() == self._loop_thread and self._loop is not None and not self._loop.is_closed()

    def call(self, function: Callable[..., object], *args: Any) -> bool:
        """Call `function` on the loop's thread: now when there, soon otherwise. False, and no call, once the loop is closed."""
        if self._loop is None:
            return False
        if self.on_loop():
            function(*args)
        else:
            try:
                self._loop.call_soon_threadsafe(function, *args)
            except RuntimeError:
                return False
        return True


def _check_resume_options(how: Mapping[str, Any]) -> None:
    """Raise UsageError for an option that `resume` does not have, or a text where a list of texts belongs."""
    from flowlane.archive import PlanOptions, ResumeOptions

    known = [*PlanOptions.__annotations__, *ResumeOptions.__annotations__]
    for name, value in how.items():
        if name not in known:
            import difflib

            close = (
                "restart" if name in ("from_", "start") else next(iter(difflib.get_close_matches(name, known, 1)), None)
            )
            raise UsageError(
                f"resume has no option '{name}'; its options: {', '.join(dict.fromkeys(known))}",
                hint=f"did you mean '{close}'?" if close else None,
            )
        if name in ("restart", "rerun") and isinstance(value, str):
            raise UsageError(f"{name} is a list of tasks' names, not {value!r}", hint=f"{name}=[{value!r}]")


def _id_of(key: object) -> str:
    if not isinstance(key, str) or not key:
        raise UsageError(
            f"the key of a run is a text that is not empty, not {key!r}", hint="leave it out to start anew"
        )
    return id_of_key(key)


def _started_before(key: str, id: str) -> RunExists:
    return RunExists(
        f"a run was started with the key {key!r} before",
        id=id,
        hint="its id is in error.id: engine.runs has it while it is under way, engine.store.find(id) tells what became of it,"
        " engine.resume(id) goes on with it",
    )


def _closed() -> EngineClosed:
    return EngineClosed("the engine is closed", hint="start runs inside its `with` block")


def own_options(kwargs: dict[str, Any], options: type) -> tuple[dict[str, Any], dict[str, Any]]:
    """Keywords that are ours, by the TypedDict `options`, and the rest (which as_bound refuses by name)."""
    names = options.__annotations__
    own = {name: value for name, value in kwargs.items() if name in names}
    return own, {name: value for name, value in kwargs.items() if name not in names}
