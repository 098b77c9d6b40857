"""The `asyncio` executor: each job is one asyncio Task on the engine's own loop, under the job's own context.

Interrupting is ``Task.cancel()``; a job that swallows it is given up after the grace period: it is reported ABANDONED, its
late outcome is dropped, and it is taken out of asyncio's books so that nobody's loop waits for it at exit.

Reports leave in one go, from a plain callback of the loop, the *flush*. After a submit it runs right behind the first steps of
the new Tasks, because callbacks run in the order they were scheduled: a job that has ended by then costs no further turn of the
loop and no STARTED. From Python 3.12 on, the first step is taken at once (``eager_start``), as a real Task, so that a job that
never waits needs no turn at all.

A job belongs to whoever takes it out of `_since`: its own coroutine when it ends, or `_give_up`.
"""

from __future__ import annotations

import asyncio
import sys
from asyncio import CancelledError
from functools import partial
from time import monotonic_ns
from typing import TYPE_CHECKING, Any

from flowlane.errors import Failure
from flowlane.runtime.ports import ABANDONED, FAILED, INTERRUPTED, NEVER, STARTED, SUCCEEDED, Capabilities, Report
from flowlane_plugins.executors.plain import plain

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from flowlane.runtime.ports import Job

__all__ = ["AsyncioExecutor"]

_WORKER = "loop"

# Deliveries in one turn of the loop: with eager tasks of a few µs each, about a millisecond.
_BURST = 100


class AsyncioExecutor:
    """Runs coroutine functions. `slots`: how many at a time (default 64)."""

    accepts = frozenset({"async"})
    default_slots = 64

    def __init__(self, slots: int | None = None) -> None:
        self.capabilities = Capabilities(accepts=self.accepts, default_slots=slots or self.default_slots)
        self._tasks: dict[int, asyncio.Task[None]] = {}  # strong: the loop itself keeps only weak references
        self._since: dict[int, int] = {}  # ref → when its coroutine began
        self._asked: set[int] = set()
        self._given_up: set[asyncio.Task[None]] = set()
        self._new: list[int] = []  # submitted, STARTED not considered yet
        self._outbox: list[Report] = []
        self._flushing = False  # a flush is scheduled

    async def open(self, deliver: Callable[[Sequence[Report]], None]) -> None:
        self._deliver = deliver
        self._loop = asyncio.get_running_loop()
        options: dict[str, Any] = {"eager_start": True} if sys.version_info >= (3, 12) else {}
        make: Any = asyncio.Task
        self._make: Any = partial(make, loop=self._loop, **options)

    def submit(self, jobs: Sequence[Job]) -> None:
        tasks, attempt, new = self._tasks, self._attempt, self._new
        # Without a factory of the host's: what create_task does then, without its checks, which cost 0.4 µs a task.
        make: Any = self._make if self._loop.get_task_factory() is None else self._loop.create_task
        for job in jobs:
            task = make(attempt(job), name=job.task, context=job.context)
            if not task.done():
                tasks[job.ref] = task
                new.append(job.ref)
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
                self._asked.discard(ref)
            self._outbox.append(report)
            self._schedule_flush()

    def _flush(self) -> None:
        """Deliver what has ended, and STARTED of what was submitted lately and has not.

        Delivering may submit, and eager tasks may have ended when that returns: go on with those, but not for ever, since
        nothing else on the loop runs meanwhile.
        """
        for _ in range(_BURST):
            reports, self._outbox = self._outbox, []
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
        self._flushing = False
        if self._outbox or self._new:
            self._schedule_flush()

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
            self._asked.add(ref)
            task.cancel()
            asked.append(ref)
        if asked:
            self._loop.call_later(grace, self._give_up, asked)

    def _give_up(self, refs: Sequence[int]) -> None:
        for ref in refs:
            task = self._tasks.pop(ref, None)
            if task is None:
                continue
            since = self._since.pop(ref)
            self._asked.discard(ref)
            self._given_up.add(task)
            task.add_done_callback(self._given_up.discard)
            # asyncio.run() cancels and then waits for every task it knows, without a limit; this one would hang it.
            asyncio._unregister_task(task)  # pyright: ignore[reportPrivateUsage]  # documented: "Extending asyncio"
            setattr(task, "_log_destroy_pending", False)  # noqa: B010  # told as ABANDONED, no second complaint
            self._deliver((Report(ref, ABANDONED, since, monotonic_ns(), worker=_WORKER),))

    async def close(self, grace: float) -> None:
        left = list(self._tasks)
        self.interrupt(left, grace)
        tasks = [self._tasks[ref] for ref in left if ref in self._tasks]
        if tasks:
            await asyncio.wait(tasks, timeout=grace)
            self._give_up(left)
