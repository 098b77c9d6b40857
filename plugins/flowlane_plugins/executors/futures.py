"""The `futures` executor: adapts any ``concurrent.futures.Executor``, of threads or of processes.

Rules:

- A job is one ``pool.submit``; its completion comes through ``add_done_callback``, in whatever thread the pool runs it.
- Where the pool's workers are other processes, `transport` encodes the job here and its outcome there, and the pool
  carries bytes only. contextvars do not get there, except ``run``, ``task`` and ``attempt`` for logs.
- `_flights` holds what is out: ref → flight. Whoever pops a flight owns its final report: the completion, in any
  thread, or the loop when it gives a job up. A dict's pop is atomic, and a late outcome finds nothing and is dropped.
- `_telling` is held while a final report or a STARTED is handed over, and for nothing else: without it, a job that
  ends in another thread just while the loop looks at it could be told as started after its end.
- Everything else is touched on the loop thread only.

A pool cannot be asked when a job began. Short jobs need no STARTED (their outcome carries the time that the worker
measured); for longer ones one timer looks at ``future.running()``, which may be early by what the pool queues ahead.

`standin` is built on this class; the methods it replaces are listed under "what a pool of our own does otherwise".
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from concurrent.futures import BrokenExecutor, CancelledError
from functools import partial
from time import monotonic_ns, thread_time_ns
from typing import TYPE_CHECKING, Any, Final

from flowlane.errors import EngineClosed, Failure, SettingsError, WorkerCrashed
from flowlane.loader import refuse_while_importing
from flowlane.runtime.ports import (
    ABANDONED,
    CRASHED,
    FAILED,
    INTERRUPTED,
    NEVER,
    STARTED,
    SUCCEEDED,
    Capabilities,
    Report,
)
from flowlane_plugins.executors import transport, worker
from flowlane_plugins.executors.plain import plain
from flowlane_plugins.executors.postmortem import MAIN_GUARD, deaths, sentence

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from concurrent.futures import Executor, Future

    from flowlane.runtime.ports import Job, Target

__all__ = ["Flight", "FuturesExecutor", "broken_or", "ended_within", "usable_cores"]

# When to look for jobs that began but were not told: often enough for a person watching, rarely enough to cost nothing.
_FIRST_LOOK: Final = 0.005
_LAST_PACE: Final = 0.050
_HEADERS_KEPT: Final = 1_000  # encoded once for all jobs of a task in a run


class Flight:
    """A job that is out."""

    __slots__ = ("began", "future", "name", "pool", "ref", "submitted", "task")

    def __init__(self, job: Job) -> None:
        self.ref = job.ref
        self.task = job.task
        self.name = job.target.name
        self.submitted = monotonic_ns()
        self.began = NEVER  # as told by STARTED
        self.pool: Executor | None = None
        self.future: Future[Any] | None = None  # None while it waits for a pool


class FuturesExecutor:
    """Runs plain functions on a ``concurrent.futures.Executor``.

    pool     the pool; the engine that uses it keeps at most `slots` jobs in it
    pickles  whether its workers are other processes; None finds out for the pools of the standard library and of loky
    slots    jobs at a time; None takes the pool's own number of workers
    own      whether `close` shuts the pool down; a pool of the host's is left as it is

    A pool that is broken, or was shut down under us, reports CRASHED for every further job: it is not ours to replace.
    A job that was given up (ABANDONED) goes on and keeps its worker until it ends. Raises SettingsError for a pool of a
    kind we cannot tell, and for a number of slots below 1.
    """

    #: What to try when workers die before they have answered once.
    hint_for_start: str = MAIN_GUARD

    def __init__(
        self, pool: Executor, *, pickles: bool | None = None, slots: int | None = None, own: bool = False
    ) -> None:
        if not callable(getattr(pool, "submit", None)):
            raise SettingsError(
                f"executor 'futures' takes a concurrent.futures.Executor, not {type(pool).__name__}",
                hint="executors={'futures': FuturesExecutor(ThreadPoolExecutor(8))}",
            )
        workers: int | None = getattr(pool, "_max_workers", None)
        self._prepare(_pickles(pool) if pickles is None else pickles, workers if slots is None else slots)
        self._given = pool
        self._own = own

    def _prepare(self, pickles: bool, slots: int | None) -> None:
        slots = usable_cores() if slots is None else slots
        if slots < 1:
            raise SettingsError(f"slots must be at least 1, not {slots}")
        self._slots = slots
        self.capabilities = Capabilities(
            accepts=frozenset({"sync"}), default_slots=slots, pickles=pickles, interruptible=False
        )
        self._flights: dict[int, Flight] = {}
        self._headers: dict[tuple[int, str], tuple[Target, bytes]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._pace = _FIRST_LOOK
        self._telling = threading.RLock()  # reentrant: a pool may complete a job inside `submit`
        self._deliver: Callable[[Sequence[Report]], None] | None = None
        self._pool: Executor | None = None
        self._answered: set[Executor] = set()  # pools of which a worker has answered
        self._drained: asyncio.Event | None = None
        self._crash: tuple[Executor | None, str, str | None] = (None, "", None)  # pool, what is known of its end, hint

    # ── the protocol ──────────────────────────────────────────────────────────────────────────────────────────────

    async def open(self, deliver: Callable[[Sequence[Report]], None]) -> None:
        """Get ready. Raises UsageError in a worker process that is still importing its parent's script."""
        if self.capabilities.pickles:
            refuse_while_importing("a workflow")
        self._deliver = deliver
        self._loop = asyncio.get_running_loop()
        self._drained = None
        self._start()

    def submit(self, jobs: Sequence[Job]) -> None:
        """Take jobs. Arguments for other processes are pickled here and now. Raises EngineClosed when not open."""
        if self._deliver is None or self._drained is not None:
            raise EngineClosed("this executor is not open")
        pickles = self.capabilities.pickles
        for job in jobs:
            flight = Flight(job)
            try:
                call = self._encoded(job) if pickles else (_call_here, job)
            except Exception as error:  # noqa: BLE001 - an argument that cannot travel fails its own job only
                failure = Failure.of(error.with_traceback(None))
                self._deliver((Report(job.ref, FAILED, NEVER, monotonic_ns(), failure=failure),))
                continue
            self._flights[job.ref] = flight
            self._send(flight, call)
        if self._timer is None or self._pace > _FIRST_LOOK:
            self._look_in(_FIRST_LOOK)

    def interrupt(self, refs: Sequence[int], grace: float) -> None:  # noqa: ARG002 - see below
        """Take back what has not begun, give up the rest at once: no grace would make a running call of a pool listen."""
        begun = self._take_back(refs)
        if begun:
            self._give_up(begun)

    async def close(self, grace: float) -> None:
        """Take back what has not begun, wait up to `grace` seconds for the rest, give up what is left by then."""
        if self._deliver is None:
            return
        self._drained = asyncio.Event()
        self._take_back(list(self._flights))
        if self._flights:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._drained.wait(), grace)
        self._give_up(list(self._flights))
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        await self._stop()
        self._deliver = None
        self._pool = None
        self._answered.clear()
        self._headers.clear()
        self._crash = (None, "", None)

    # ── what a pool of our own does otherwise ─────────────────────────────────────────────────────────────────────

    def _start(self) -> None:
        self._pool = self._given
        if not self.capabilities.pickles:
            self._answered.add(self._pool)
            return
        # A first sign of life tells a worker that is up from one that is still starting, or never will.
        with contextlib.suppress(BrokenExecutor, RuntimeError):
            self._pool.submit(worker.ready).add_done_callback(partial(self._greeted, self._pool))

    async def _stop(self) -> None:
        if self._own and self._pool is not None:
            pool = self._pool
            await ended_within(0.5, partial(_shut_down, pool))

    def _send(self, flight: Flight, call: Sequence[Any]) -> None:
        """Hand a job to the pool. Loop thread."""
        assert self._pool is not None
        self._hand_to(self._pool, flight, call)

    def _unsend(self, flight: Flight) -> None:
        """Forget a job that still waits for a pool; here none ever does. Loop thread."""

    def _rejected(self, flight: Flight, call: Sequence[Any], error: Exception) -> None:  # noqa: ARG002 - for `standin`
        """The pool would not take a job. Loop thread."""
        self._land(flight, self._crashed(flight, error))

    def _pool_lost(self, pool: Executor) -> None:
        """`pool` broke. Any thread, possibly once for each job."""

    def _given_up(self, flights: Sequence[Flight]) -> None:
        """These jobs go on, and nobody waits for them. Loop thread."""

    def _landed(self, flight: Flight) -> None:
        """A job's outcome was reported. Any thread."""

    # ── there and back ────────────────────────────────────────────────────────────────────────────────────────────

    def _encoded(self, job: Job) -> tuple[Any, ...]:
        target = job.target
        known = self._headers.get((id(target), job.run))
        if known is None:
            if len(self._headers) >= _HEADERS_KEPT:
                self._headers.clear()
            known = (target, transport.encode_header(target, job.run))  # holds the target: an id may be reused
            self._headers[id(target), job.run] = known
        payload = transport.encode_arguments(target, job.args, job.kwargs)
        files = transport.files_in(payload)
        if files or job.cores > 1:
            return (worker.perform, known[1], payload, job.task, job.attempt, files, job.cores)
        return (worker.perform, known[1], payload, job.task, job.attempt)

    def _hand_to(self, pool: Executor, flight: Flight, call: Sequence[Any]) -> None:
        flight.pool = pool
        try:
            flight.future = future = pool.submit(*call)
        except Exception as error:  # noqa: BLE001 - broken, shut down, or no process could be started
            self._rejected(flight, call, broken_or(error, pool))
        else:
            future.add_done_callback(partial(self._done, flight))

    def _done(self, flight: Flight, future: Future[Any]) -> None:
        """The pool is done with a job. Any thread, also from inside `submit` and `interrupt`."""
        if flight.ref not in self._flights:
            return  # given up: not even unpickled
        try:
            outcome = future.result()
        except CancelledError:
            report = Report(flight.ref, INTERRUPTED, NEVER, monotonic_ns())
        except BaseException as error:  # noqa: BLE001 - the wrapper never raises, so it is the pool that failed
            report = self._crashed(flight, error)
        else:
            report = outcome if isinstance(outcome, Report) else _report(flight, outcome)
        self._land(flight, report)

    def _land(self, flight: Flight, report: Report) -> None:
        with self._telling:
            if self._flights.pop(flight.ref, None) is None:
                return
            if flight.began > report.ended:  # its start was told while its outcome was on the way
                report.ended = flight.began
            deliver = self._deliver
            if deliver is not None:
                deliver((report,))
        self._landed(flight)
        drained = self._drained
        if drained is not None and not self._flights:
            with contextlib.suppress(RuntimeError):  # the loop is gone, and with it whoever waited
                self._loop.call_soon_threadsafe(drained.set)

    def _greeted(self, pool: Executor, future: Future[Any]) -> None:
        if not future.cancelled() and future.exception() is None:
            self._answered.add(pool)

    def _crashed(self, flight: Flight, error: BaseException) -> Report:
        pool = flight.pool
        broken = isinstance(error, BrokenExecutor)
        known, what, hint = self._crash
        if pool is None or known is not pool:
            # The first to hear of it asks; later the pool will have ended its other workers, and they say nothing.
            what, hint = self._inquest(pool, error)
            self._crash = (pool, what, hint)
            if pool is not None and broken:
                self._pool_lost(pool)
        began = flight.began
        if began == NEVER and broken and flight.future is not None and pool in self._answered:
            began = flight.submitted  # it may have begun at any time since: to say "never" might be wrong
        crash = WorkerCrashed(f"{flight.task} was lost: {what}", hint=hint)
        return Report(flight.ref, CRASHED, began, monotonic_ns(), failure=Failure.of(crash))

    def _inquest(self, pool: Executor | None, error: BaseException) -> tuple[str, str | None]:
        """What is known of the end of `pool`, as a clause, and a hint."""
        if not isinstance(error, BrokenExecutor):
            hint = None
            if "shutdown" in str(error):
                hint = "a pool given to the engine must stay open until the engine is closed"
            return f"its pool takes no job ({type(error).__name__}: {error})", hint
        ended = deaths(pool)
        answered = pool in self._answered
        hint = None
        if any(code == -9 for _, code in ended):
            hint = "a SIGKILL that nobody sent comes from the kernel, out of memory: use less at a time, or fewer slots"
        elif not answered and not any(code is not None and code < 0 for _, code in ended):
            hint = self.hint_for_start
        what = sentence(ended, answered=answered)
        inside = [flight.task for flight in list(self._flights.values()) if flight.pool is pool]
        if answered and len(inside) > 1:  # the pool cannot tell which of them did it, and loses them all
            what += f" (in its pool: {', '.join(inside[:4])}{', …' if len(inside) > 4 else ''})"
        return what, hint

    # ── what a loop's timer does ──────────────────────────────────────────────────────────────────────────────────

    def _look_in(self, delay: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._pace = delay
        self._timer = self._loop.call_later(delay, self._look)

    def _look(self) -> None:
        self._timer = None
        untold = [flight for flight in list(self._flights.values()) if flight.began == NEVER]
        if not untold or self._deliver is None:
            return
        begun: list[Flight] = []
        for flight in untold:
            future = flight.future
            if future is not None and flight.pool in self._answered and future.running():
                begun.append(flight)
        if begun:
            with self._telling:
                now = monotonic_ns()
                reports: list[Report] = []
                for flight in begun:
                    if flight.ref in self._flights:
                        flight.began = now
                        reports.append(Report(flight.ref, STARTED, now))
                self._deliver(reports)
        if len(begun) < len(untold):
            self._look_in(min(self._pace * 2, _LAST_PACE))

    def _take_back(self, refs: Sequence[int]) -> list[int]:
        """Cancel what has not begun; the refs of what has."""
        begun: list[int] = []
        for ref in refs:
            flight = self._flights.get(ref)
            if flight is None:
                continue  # its report is on the way
            if flight.future is None:
                self._unsend(flight)
                self._land(flight, Report(ref, INTERRUPTED, NEVER, monotonic_ns()))
            elif not flight.future.cancel():
                begun.append(ref)
        return begun

    def _give_up(self, refs: Sequence[int]) -> None:
        now = monotonic_ns()
        lost: list[Flight] = []
        for ref in refs:
            flight = self._flights.pop(ref, None)
            if flight is not None:
                lost.append(flight)
        if lost and self._deliver is not None:
            self._deliver([Report(flight.ref, ABANDONED, flight.began, now) for flight in lost])
        if lost:
            self._given_up(lost)


def broken_or(error: Exception, pool: Executor) -> Exception:
    """`error` of a submit; as BrokenExecutor when the pool was breaking at that moment.

    The standard library's pool then closes the pipe that submit wakes it by ("OSError: handle is closed").
    """
    if isinstance(error, OSError) and getattr(pool, "_broken", False):
        return BrokenExecutor(str(error))
    return error


def usable_cores() -> int:
    """The cores this process may run on (its affinity, where the system tells)."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0)) or 1
    return os.cpu_count() or 1


async def ended_within(seconds: float, action: Callable[[], object]) -> bool:
    """Run a blocking `action` in a daemon thread of its own; whether it ended in time. It goes on when it did not.

    Not ``asyncio.to_thread``: that would leave the loop's default threads behind, and be waited for at exit.
    """
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()

    def act() -> None:
        try:
            action()
        finally:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(ended.set)

    thread = threading.Thread(target=act, name="flowlane-close", daemon=True)
    thread.start()
    try:
        await asyncio.wait_for(ended.wait(), seconds)
    except TimeoutError:
        return False
    thread.join()
    return True


def _shut_down(pool: Executor) -> None:
    try:
        pool.shutdown(wait=True, cancel_futures=True)
    except TypeError:  # loky's has no such keyword; there is nothing left to cancel
        pool.shutdown(wait=True)


def _call_here(job: Job) -> Report:
    """Run a job in a thread of this process. Never raises."""
    name = threading.current_thread().name
    cpu = thread_time_ns()
    started = monotonic_ns()
    try:
        call, context = job.target.fn, job.context
        value = call(*job.args, **job.kwargs) if context is None else context.run(call, *job.args, **job.kwargs)
        value = plain(job.target, value)
    except BaseException as error:  # noqa: BLE001 - SystemExit too: a task must not end a worker
        report = Report(job.ref, FAILED, started, monotonic_ns(), None, Failure.of(error), name)
    else:
        report = Report(job.ref, SUCCEEDED, started, monotonic_ns(), value, None, name)
    report.cpu = thread_time_ns() - cpu
    return report


def _report(flight: Flight, outcome: worker.Outcome) -> Report:
    what, started, ended, cpu, pid, payload = outcome
    by = f"pid {pid}"
    if what == worker.RETURNED:
        try:
            value = transport.decode_result(payload, flight.name)
        except BaseException as error:  # noqa: BLE001 - user code runs while a value loads
            failure = Failure.of(error.with_traceback(None))
            return Report(flight.ref, FAILED, started, ended, None, failure, by, cpu)
        return Report(flight.ref, SUCCEEDED, started, ended, value, None, by, cpu)
    if what == worker.REFUSED:
        started = flight.began  # NEVER, unless it was told already
    return Report(flight.ref, FAILED, started, ended, None, transport.decode_failure(payload), by, cpu)


def _pickles(pool: Executor) -> bool:
    """Whether the workers of `pool` are other processes. Raises SettingsError when that cannot be told."""
    for cls in type(pool).__mro__:
        if cls.__name__ == "ThreadPoolExecutor":
            return False
        if cls.__name__ == "ProcessPoolExecutor":  # the standard library's, loky's, joblib's
            return True
    raise SettingsError(
        f"cannot tell whether the workers of {type(pool).__module__}.{type(pool).__qualname__} are other processes",
        hint="say so: FuturesExecutor(pool, pickles=True), or pickles=False for threads of this process",
    )
