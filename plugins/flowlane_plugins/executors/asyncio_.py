"""The `asyncio` executor: each job is one asyncio Task on the engine's own loop, under the job's own context.

Interrupting is ``Task.cancel()``, once: a second cancel would break off the clean-up that the first began, so asking again
only shortens the grace. A job that has not stopped when its grace is over is given up: it is reported ABANDONED, and where
it waits; its late outcome is dropped, and it is taken out of asyncio's books, with the Tasks it made, so that nobody's loop
waits for them at exit.

Reports leave in one go, from a plain callback of the loop, the *flush*. After a submit it runs right behind the first steps of
the new Tasks, because callbacks run in the order they were scheduled: a job that has ended by then costs no further turn of the
loop and no STARTED. From Python 3.12 on, the first step is taken at once (``eager_start``), as a real Task, so that a job that
never waits needs no turn at all.

A job belongs to whoever takes it out of `_since`: its own coroutine when it ends, or `_give_up`. Both run on the loop's
thread; the watchdog's only looks.
"""

from __future__ import annotations

import asyncio
import sys
from asyncio import CancelledError
from functools import partial
from time import monotonic_ns
from typing import TYPE_CHECKING, Any

from flowlane.errors import Failure
from flowlane.runtime.context import ATTEMPT, RUN, TASK
from flowlane.runtime.ports import (
    ABANDONED,
    FAILED,
    INTERRUPTED,
    NEVER,
    NOTED,
    STARTED,
    SUCCEEDED,
    Capabilities,
    Report,
)
from flowlane_plugins.executors import whereabouts
from flowlane_plugins.executors.patience import Patience
from flowlane_plugins.executors.plain import plain
from flowlane_plugins.executors.watchdog import Suspect, Watchdog

if TYPE_CHECKING:
    import contextvars
    from collections.abc import Callable, Sequence, Sized

    from flowlane.runtime.ports import Job

__all__ = ["AsyncioExecutor"]

_WORKER = "loop"

# How long deliveries may follow each other within one turn of the loop, ns, counted from the first outcome in it.
_BURST = 2_000_000


class AsyncioExecutor:
    """Runs coroutine functions.

    slots          how many at a time (default 64)
    blocked_after  seconds after which a step that keeps the loop from turning is told, with task and line, while it does; None
                   for never
    """

    accepts = frozenset({"async"})
    default_slots = 64

    def __init__(self, slots: int | None = None, blocked_after: float | None = 0.25) -> None:
        if blocked_after is not None and not blocked_after > 0:
            raise ValueError(
                f"blocked_after is in seconds, more than 0, or None for no watchdog; not {blocked_after!r}"
            )
        self.capabilities = Capabilities(accepts=self.accepts, default_slots=slots or self.default_slots)
        self._blocked_after = blocked_after
        self._watchdog: Watchdog | None = None
        self._holds: Sized = ()
        self._tasks: dict[int, asyncio.Task[None]] = {}  # strong: the loop itself keeps only weak references
        self._since: dict[int, int] = {}  # ref → when its coroutine began
        self._given_up: set[asyncio.Task[Any]] = set()
        self._new: list[int] = []  # submitted, STARTED not considered yet
        self._outbox: list[Report] = []
        self._flushing = False  # a flush is scheduled
        self._submitting = False

    @property
    def abandoned(self) -> int:
        """How many jobs were given up and have not ended yet. Any thread."""
        return sum(_job_of(task)[0] is not None for task in tuple(self._given_up))

    async def open(self, deliver: Callable[[Sequence[Report]], None]) -> None:
        self._deliver = deliver
        self._loop = asyncio.get_running_loop()
        self._patience = Patience(self._loop, self._give_up)
        self._asked = self._patience.asked
        if self._blocked_after is not None:
            self._watchdog = Watchdog(self._blocked_after, whose=self._whose, out=self._out, freed=self._freed)
            self._holds = self._watchdog.holds
        options: dict[str, Any] = {"eager_start": True} if sys.version_info >= (3, 12) else {}
        make: Any = asyncio.Task
        self._make: Any = partial(make, loop=self._loop, **options)

    def submit(self, jobs: Sequence[Job]) -> None:
        self._submitting = (
            True  # before the look at the watchdog: it says that it is ending, then looks for jobs once more
        )
        watchdog = self._watchdog
        if watchdog is not None and watchdog.thread is None:
            watchdog.begin()
        tasks, attempt, new = self._tasks, self._attempt, self._new
        # Without a factory of the host's: what create_task does then, without its checks, which cost 0.4 µs a task.
        make: Any = self._make if self._loop.get_task_factory() is None else self._loop.create_task
        for job in jobs:
            task = make(attempt(job), name=job.task, context=job.context)
            if not task.done():
                tasks[job.ref] = task
                new.append(job.ref)
        self._submitting = False
        self._schedule_flush()

    def _schedule_flush(self) -> None:
        if not self._flushing:
            self._flushing = True
            self._loop.call_soon(self._flush)

    async def _attempt(self, job: Job) -> None:
        ref = job.ref
        started = monotonic_ns()
        self._since[ref] = started
        try:
            outcome = job.target.fn(*job.args, **job.kwargs)
            value = await outcome if job.target.is_async else plain(job.target, outcome)
            report = Report(ref, SUCCEEDED, started, monotonic_ns(), value, None, _WORKER)
        except CancelledError as error:
            if ref in self._asked:
                report = Report(ref, INTERRUPTED, started, monotonic_ns(), worker=_WORKER)
            else:  # somebody else's cancel is an error like any other
                report = Report(ref, FAILED, started, monotonic_ns(), None, Failure.of(error), _WORKER)
        except BaseException as error:  # noqa: BLE001 - SystemExit and KeyboardInterrupt too: a task must not end the engine
            report = Report(ref, FAILED, started, monotonic_ns(), None, Failure.of(error), _WORKER)
        if self._since.pop(ref, None) is not None:  # else: given up meanwhile
            self._tasks.pop(ref, None)
            if self._asked:
                self._asked.pop(ref, None)
            self._outbox.append(report)
            self._schedule_flush()

    def _flush(self) -> None:
        """Deliver what has ended, and STARTED of what was submitted lately and has not.

        Delivering may submit, and eager tasks may have ended when that returns: go on with those, but not for ever, since
        nothing else on the loop runs meanwhile.
        """
        until = NEVER
        while True:
            reports, self._outbox = self._outbox, []
            if (
                self._watchdog is not None and self._watchdog.holds
            ):  # before the end of the job, when it has ended since
                reports = [*self._noted({report.ref for report in reports}), *reports]
            if self._new:
                since, tasks = self._since, self._tasks
                new, self._new = self._new, []
                for ref in new:
                    if ref in since:
                        reports.append(Report(ref, STARTED, since[ref], worker=_WORKER))
                    elif ref in tasks:  # it has not taken its first step yet
                        self._new.append(ref)
            if reports:
                self._deliver(reports)
            if not self._outbox:
                break
            latest = self._outbox[-1].ended
            if until == NEVER:
                until = latest + _BURST
            elif latest > until:
                break
        self._flushing = False
        if self._outbox or self._new:
            self._schedule_flush()

    # ── what holds the loop ───────────────────────────────────────────────────────────────────────────────────────

    def _out(self) -> bool:
        """Whether there is anything to watch. Any thread."""
        return bool(self._submitting or self._since or self._tasks)

    def _whose(self, task: asyncio.Task[Any]) -> Suspect | None:
        """The job that `task` belongs to, be it its own or one that its code made. Any thread."""
        job, executor = _job_of(task)
        if job is not None:
            # Another executor's: `inline`, say, where a call holds up the loop because somebody chose that.
            return Suspect(job.task, job.ref, excused=executor is not self)
        context = _context_of(task)
        name = context.get(TASK) if context is not None else None
        if context is None or name is None:
            return None
        for own in tuple(self._tasks.values()):
            job, _ = _job_of(own)
            if job is not None and _is_of(context, job):
                return Suspect(job.task, job.ref)
        return Suspect(name)  # its job has ended, and it has not

    def _freed(self) -> None:
        """The loop turns again: tell how long it had not. Plain callback."""
        noted = self._noted({report.ref for report in self._outbox})
        if noted:
            self._deliver(noted)

    def _noted(self, ending: set[int]) -> list[Report]:
        """Reports of holds that are over, for jobs that are out or whose end, in `ending`, is delivered next."""
        assert self._watchdog is not None
        return [
            Report(hold.ref, NOTED, self._since.get(hold.ref, NEVER), hold.until, worker=_WORKER, note=hold.note)
            for hold in self._watchdog.over()
            if hold.ref in self._since or hold.ref in ending
        ]

    # ── stopping ──────────────────────────────────────────────────────────────────────────────────────────────────

    def interrupt(self, refs: Sequence[int], grace: float) -> None:
        asked: list[int] = []
        for ref in refs:
            task = self._tasks.get(ref)
            if task is None:
                continue  # its report is on the way
            if ref not in self._since:  # a Task cancelled before its first step never enters our code
                del self._tasks[ref]
                task.cancel()
                self._deliver((Report(ref, INTERRUPTED, NEVER, monotonic_ns(), worker=_WORKER),))
                continue
            asked.append(ref)
            if ref not in self._asked:
                task.cancel()
        self._patience.ask(asked, grace)

    def _give_up(self, refs: Sequence[int]) -> None:
        for ref in refs:
            task = self._tasks.pop(ref, None)
            if task is None:
                continue
            since = self._since.pop(ref)
            self._asked.pop(ref, None)
            place = whereabouts.of_coroutine(task)
            where = f" at {place}" if place is not None else ""
            for each in self._family(task):
                self._given_up.add(each)
                each.add_done_callback(self._given_up.discard)
                # asyncio.run() cancels and then waits for every task it knows, without a limit; this one would hang it.
                asyncio._unregister_task(each)  # pyright: ignore[reportPrivateUsage]  # documented: "Extending asyncio"
                setattr(each, "_log_destroy_pending", False)  # noqa: B010  # told as ABANDONED, no second complaint
            now, note = monotonic_ns(), f"was cancelled, did not stop, and was given up{where}"
            self._deliver(
                (
                    Report(ref, NOTED, since, now, worker=_WORKER, note=note),
                    Report(ref, ABANDONED, since, now, worker=_WORKER),
                )
            )

    def _family(self, task: asyncio.Task[Any]) -> list[asyncio.Task[Any]]:
        """`task` and the Tasks that its code made: the one that does not listen may be any of them."""
        job, _ = _job_of(task)
        if job is None or job.context is None:
            return [task]
        family = [task]
        for other in asyncio.all_tasks(self._loop):
            context = _context_of(other) if other is not task else None
            if context is not None and _is_of(context, job):
                family.append(other)
        return family

    async def close(self, grace: float) -> None:
        left = list(self._tasks)
        self.interrupt(left, grace)
        tasks = [self._tasks[ref] for ref in left if ref in self._tasks]
        if tasks:
            await asyncio.wait(tasks, timeout=grace)
            self._give_up(left)
        self._patience.stop()
        if self._watchdog is not None:
            await self._watchdog.close()
            self._watchdog, self._holds = None, ()


_ATTEMPT = AsyncioExecutor._attempt.__code__  # pyright: ignore[reportPrivateUsage]


def _job_of(task: asyncio.Task[Any]) -> tuple[Job | None, object]:
    """The job whose own Task this is, and its executor, read from the coroutine: for so rare a question nothing is kept."""
    coroutine: Any = task.get_coro()
    frame = getattr(coroutine, "cr_frame", None)  # None once it has ended
    if frame is None or coroutine.cr_code is not _ATTEMPT:
        return None, None
    return frame.f_locals.get("job"), frame.f_locals.get("self")


def _context_of(task: asyncio.Task[Any]) -> contextvars.Context | None:
    if sys.version_info >= (3, 12):
        return task.get_context()
    # Before, a Task told nobody. Whoever awaits it, gathers it or groups it left a callback, and the context that goes with it.
    callbacks: list[tuple[Any, contextvars.Context]] = getattr(task, "_callbacks", None) or []
    return callbacks[0][1] if callbacks else None


def _is_of(context: contextvars.Context, job: Job) -> bool:
    return (context.get(RUN), context.get(TASK), context.get(ATTEMPT)) == (job.run, job.task, job.attempt)
