"""Runs an executor port for a pool: one daemon thread with an event loop of its own, from the first submit to the end.

Who touches what:

- `_pending` holds every call that nobody has begun or given up: ref → call. Whoever pops a call owns its future: the side
  that begins it, a shutdown that cancels, or the end of a broken pool. A dict's pop is atomic, so nobody needs a lock.
- `_queue` (refs to hand over) and `_reports` (answers to settle) are filled by any thread and emptied on the loop. One
  wake-up of the loop is on its way at a time, however many are added: `_woken` says so, and is cleared *before* the
  loop looks.
- `_lock` orders `take` against closing and breaking: a call that was taken is always run, cancelled or failed.
- `_outstanding` and whatever a subclass keeps of jobs that are out belong to the loop thread.

The thread refers to the driver, never to the pool. So a pool that nobody holds any more is collected, and its finalizer
calls `finish`. That may happen in the middle of anything, in any thread, which is why `finish` takes no lock.

At interpreter exit, as with the standard library's pools, work that was submitted is still done: `_python_exit` waits for
the threads of all drivers. A process that was forked from this one has no such threads; there, a pool refuses.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
from collections import deque
from typing import TYPE_CHECKING, Any, Final

from flowlane.futures.call import begin, fail
from flowlane.loader import refuse_while_importing
from flowlane.runtime.ports import NOTED, STARTED
from flowlane.runtime.registry import BUILTIN, load_attribute

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop, Event
    from collections.abc import Callable, Mapping, Sequence
    from concurrent.futures import BrokenExecutor

    from flowlane.futures.call import Call
    from flowlane.runtime.ports import Executor, Job, Report

__all__ = ["RUN", "Driver", "usable_cores"]

RUN: Final = "futures"  # what stands in logs of a worker where a run's id would
_SHUT: Final = "cannot schedule new futures after shutdown"
_EXITING: Final = "cannot schedule new futures after interpreter shutdown"
_CLOSE_GRACE: Final = 1.0  # nothing is out any more when an executor is closed, unless the pool is broken


class Driver:
    """Drives the built-in executor `name`, made with `options`. Starts nothing until the first `take`.

    Subclasses say how a call becomes a job (`_job`), how many jobs may go out now (`_room`) and what a report means
    (`_settle`), all on the loop thread. `broken_class` is what the futures of a broken pool raise.
    """

    def __init__(self, name: str, options: Mapping[str, Any], broken_class: type[BrokenExecutor]) -> None:
        self._name = name
        self._options = options
        self._broken_class = broken_class
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._refs = itertools.count(1)
        self._pending: dict[int, Call] = {}
        self._queue: deque[int] = deque()
        self._reports: deque[Report] = deque()
        self._woken = False
        self._closed: str | None = None  # why nothing more is taken
        self._finishing = False
        self._outstanding = 0
        self._thread: threading.Thread | None = None
        self._loop: AbstractEventLoop | None = None
        self._executor: Executor | None = None
        self._ended: Event | None = None
        self.broken: str | None = None

    # ── in any thread ─────────────────────────────────────────────────────────────────────────────────────────────

    def take(self, call: Call) -> None:
        """Take a call. Raises the broken class or RuntimeError when the pool is broken or shut down."""
        if self._process != os.getpid():  # before the lock: another thread may have held it at the fork
            raise RuntimeError(f"this pool belongs to process {self._process}, which this process was forked from")
        with self._lock:
            if self.broken is not None:
                raise self._broken_class(self.broken)
            if self._closed is not None or _exiting:
                raise RuntimeError(self._closed or _EXITING)
            if self._thread is None:
                refuse_while_importing("a pool")
                self._start()
            ref = next(self._refs)
            self._pending[ref] = call
            self._queue.append(ref)
            if not self._woken:
                self._wake()

    def shut(self, *, cancel: bool, exiting: bool = False) -> None:
        """Take nothing more, and end when all that was taken is done; `cancel` what has not begun."""
        if self._process != os.getpid():
            return
        with self._lock:
            if self._closed is None:
                self._closed = _EXITING if exiting else _SHUT
        if cancel:
            # A free worker would have begun these: how fast threads and processes start is to make no difference.
            for call in self._unbegun(spared=self._free()):
                call.future.cancel()
                begin(call.future)  # tells those who wait for it
        self.finish()

    def finish(self) -> None:
        """End when all that was taken is done. Takes no lock and does not wait: it may run inside a garbage collection."""
        self._finishing = True
        if self._process == os.getpid():
            self._wake()

    def join(self) -> None:
        """Wait until the driver's thread has ended. Raises RuntimeError in that thread itself."""
        thread = self._thread
        if thread is not None and self._process == os.getpid():
            thread.join()

    def _start(self) -> None:
        thread = threading.Thread(target=self._run, name=f"flowlane-pool-{self._name}", daemon=True)
        _serving[self] = thread
        try:
            thread.start()
        except BaseException:
            del _serving[self]
            raise
        self._thread = thread

    def _wake(self) -> None:
        loop = self._loop
        if loop is None:  # the thread is still starting, and looks when it has started
            return
        self._woken = True
        with contextlib.suppress(RuntimeError):  # the loop is closed: there is nothing left to do
            loop.call_soon_threadsafe(self._drain)

    def _deliver(self, reports: Sequence[Report]) -> None:
        self._reports.extend(reports)
        if not self._woken:
            self._wake()

    def _unbegun(self, spared: int = 0) -> list[Call]:
        """Pop, and so own, the calls that nobody has begun, in the order of their submits, but for the first few."""
        calls = [self._pending.pop(ref, None) for ref in list(self._pending)[spared:]]
        return [call for call in calls if call is not None]

    def _break(self, text: str, cause: BaseException | None = None) -> None:
        """Fail all that has not begun, and take nothing more. Any thread, more than once."""
        with self._lock:
            first = self.broken is None
            if first:
                self.broken = text
        for call in self._unbegun():
            if begin(call.future):
                fail(call.future, self._broken_error(cause))
        if first:
            self._wake()

    def _broken_error(self, cause: BaseException | None) -> BrokenExecutor:
        error = self._broken_class(self.broken)
        error.__cause__ = cause
        return error

    # ── in the driver's thread ────────────────────────────────────────────────────────────────────────────────────

    def _run(self) -> None:
        import asyncio

        cause: BaseException | None = None
        try:
            asyncio.run(self._serve())
        except BaseException as error:  # noqa: BLE001 - no loop, or a defect of ours: nobody may wait for ever
            cause = error.with_traceback(None)
        finally:
            if cause is not None:
                self._break(f"the pool came to an end: {type(cause).__name__}: {cause}", cause)
                self._lose(cause)
            self._release()
            _serving.pop(self, None)

    async def _serve(self) -> None:
        import asyncio

        self._ended = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        executor: Executor = load_attribute(BUILTIN[self._name])(**self._options)
        await executor.open(self._deliver)
        try:
            self._executor = executor
            self._drain()
            await self._ended.wait()
        finally:
            await executor.close(_CLOSE_GRACE if self.broken is None else 0.0)
            self._executor = None

    def _drain(self) -> None:
        self._woken = False
        executor = self._executor
        if executor is None or self._ended is None:
            return
        while self._reports:
            report = self._reports.popleft()
            if report.kind not in (STARTED, NOTED):
                self._outstanding -= 1
                self._settle(report)
        if self._queue and self.broken is None:
            try:
                self._hand_over(executor)
            except Exception as error:  # noqa: BLE001 - an initializer that cannot travel, an executor that refuses
                self._break(f"the pool can take no calls: {type(error).__name__}: {error}", error)
                self._lose(error)
        if self._at_end():
            self._ended.set()

    def _hand_over(self, executor: Executor) -> None:
        jobs: list[Job] = []
        room = self._room(executor)
        while self._queue and len(jobs) < room:
            job = self._job(self._queue.popleft())
            if job is not None:
                jobs.append(job)
        if jobs:
            executor.submit(jobs)
            self._outstanding += len(jobs)

    def _at_end(self) -> bool:
        if self._outstanding:
            return False
        return self.broken is not None or (self._finishing and not self._queue)

    # ── what a pool of one kind does its own way ──────────────────────────────────────────────────────────────────

    def _free(self) -> int:
        """How many workers have nothing to do just now. Any thread."""
        raise NotImplementedError

    def _room(self, executor: Executor) -> int:
        """How many more jobs may go out now."""
        raise NotImplementedError

    def _job(self, ref: int) -> Job | None:
        """The job for a ref, or None when its call was cancelled."""
        raise NotImplementedError

    def _settle(self, report: Report) -> None:
        """A job has ended, one way or another."""
        raise NotImplementedError

    def _lose(self, cause: BaseException) -> None:
        """The pool has come to grief: fail what is out."""

    def _release(self) -> None:
        """The thread ends: free what workers may have needed."""


# ── the end of the interpreter ────────────────────────────────────────────────────────────────────────────────────

#: Drivers whose thread lives. Process-wide, because only so can the end of the interpreter wait for them.
_serving: dict[Driver, threading.Thread] = {}
_exiting = False


def _python_exit() -> None:
    global _exiting
    _exiting = True
    while _serving:
        for driver, thread in list(_serving.items()):
            driver.shut(cancel=False, exiting=True)
            thread.join()
            _serving.pop(driver, None)


# Not atexit: that comes after the interpreter has waited for threads, and from 3.12 on, no thread can be started then.
# The standard library's pools, and loky's, use the same hook.
try:
    _private: Any = threading
    _register: Callable[[Callable[[], None]], object] = _private._register_atexit
except AttributeError:
    import atexit

    _register = atexit.register
try:
    _register(_python_exit)
except RuntimeError:  # imported while the interpreter ends
    _exiting = True
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_serving.clear)


def usable_cores() -> int:
    """The cores this process may run on, as ``os.process_cpu_count`` of 3.13 tells."""
    count: Callable[[], int | None] | None = getattr(os, "process_cpu_count", None)
    if count is not None:
        return count() or 1
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0)) or 1
    return os.cpu_count() or 1
