"""A pool of threads: flowlane's `threads` executor behind ``concurrent.futures``.

A call is begun, and its future set, by the worker thread itself, as in the standard library: ``Future.cancel`` works until
that very moment, callbacks run in the worker thread, and a result need not pass through the driver's loop. So everything
goes out at once, and what the loop hears back only tells it how many calls are still out.

The initializer runs in a thread before its first call, which is also when the thread gets its name.
"""

from __future__ import annotations

import itertools
import threading
import weakref
from concurrent.futures import BrokenExecutor, Executor
from concurrent.futures.thread import BrokenThreadPool
from typing import TYPE_CHECKING, Any, Final, ParamSpec, TypeVar

from flowlane.futures.call import LOGGER, Call, begin, fail, succeed
from flowlane.futures.driver import RUN, Driver, usable_cores
from flowlane.runtime.ports import FAILED, Job, Target

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future

    from flowlane.runtime import ports
    from flowlane.runtime.ports import Report

__all__ = ["ThreadPoolExecutor"]

P = ParamSpec("P")
T = TypeVar("T")

_BURST: Final = 1_000  # calls handed over in one go: the executor's own ticks must have their turn in between
_BROKEN: Final = "A thread initializer failed, the thread pool is not usable anymore"  # the standard library's words
_counter = itertools.count()


class ThreadPoolExecutor(Executor):
    """A pool of threads that takes the place of ``concurrent.futures.ThreadPoolExecutor``.

    max_workers         threads at most; None: the cores this process may use plus 4, at most 32
    thread_name_prefix  threads are called ``<prefix>_0``, ``<prefix>_1``, …
    initializer         called with `initargs` in each thread before its first call; when it raises, the pool is broken:
                        every future that has not begun raises BrokenThreadPool, and so does `submit`

    Nothing is started before the first `submit`. Raises ValueError for `max_workers` below 1 and TypeError for an
    initializer that cannot be called.
    """

    def __init__(
        self,
        max_workers: int | None = None,
        thread_name_prefix: str = "",
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
    ) -> None:
        if max_workers is None:
            max_workers = min(32, usable_cores() + 4)
        if max_workers <= 0:
            raise ValueError("max_workers must be greater than 0")
        if initializer is not None and not callable(initializer):
            raise TypeError("initializer must be a callable")
        self._max_workers = max_workers  # private, and yet read by a good many libraries
        prefix = thread_name_prefix or f"ThreadPoolExecutor-{next(_counter)}"
        self._driver = _ThreadDriver(max_workers, prefix, initializer, tuple(initargs))
        weakref.finalize(self, self._driver.finish).atexit = False

    @property
    def _broken(self) -> str | bool:
        return self._driver.broken or False

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Have ``fn(*args, **kwargs)`` called in a thread; its future. Any thread; never blocks.

        Raises RuntimeError after `shutdown`, BrokenThreadPool when an initializer has failed.
        """
        call = Call(fn, args, kwargs)
        future = call.future
        self._driver.take(call)
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take nothing more; `wait` for what was submitted, or `cancel_futures` that have not begun. As often as you like.

        Raises RuntimeError when a call of this very pool waits for it.
        """
        self._driver.shut(cancel=cancel_futures)
        if wait:
            self._driver.join()


class _ThreadDriver(Driver):
    def __init__(
        self, workers: int, prefix: str, initializer: Callable[..., object] | None, initargs: tuple[Any, ...]
    ) -> None:
        super().__init__("threads", {"slots": workers}, BrokenThreadPool)
        self._workers = workers
        self._running: set[int] = set()
        self._prefix = prefix
        self._initializer = initializer
        self._initargs = initargs
        self._numbers = itertools.count()
        self._mine = threading.local()  # .ready: whether this thread's initializer succeeded; unset in other threads
        self._target = Target("call", self._perform, is_async=False, address=None)

    def join(self) -> None:
        if hasattr(self._mine, "ready"):
            raise RuntimeError("cannot join current thread")  # it would wait for itself
        super().join()

    def _free(self) -> int:
        return max(self._workers - len(self._running), 0)

    def _room(self, executor: ports.Executor) -> int:  # noqa: ARG002 - it queues by itself
        if len(self._queue) > _BURST:
            self._wake()
        return _BURST

    def _job(self, ref: int) -> Job:
        return Job(ref, self._target, (ref,), {}, RUN, "call", 1)

    def _settle(self, report: Report) -> None:
        # `_perform` raises nothing, so this call never had a thread: the system has none left, or the interpreter is
        # about to end, when 3.12 starts none. This thread can do it.
        if report.kind is FAILED:
            self._perform(report.ref)

    # ── in the worker threads ─────────────────────────────────────────────────────────────────────────────────────

    def _perform(self, ref: int) -> None:
        """Run one call. Never raises."""
        ready: bool | None = getattr(self._mine, "ready", None)
        if ready is None:
            ready = self._settle_in()
        call = self._pending.pop(ref, None)
        if call is None or not begin(call.future):
            return
        if not ready:  # taken before the pool was found broken
            fail(call.future, BrokenThreadPool(_BROKEN))
            return
        self._running.add(ref)
        try:
            value = call.fn(*call.args, **call.kwargs)
        except BaseException as error:  # noqa: BLE001 - SystemExit too: a call must not end a worker
            self._running.discard(ref)
            fail(call.future, error)
            del call  # else the error's traceback leads to this frame, and this frame to the error
        else:
            self._running.discard(ref)
            succeed(call.future, value)

    def _settle_in(self) -> bool:
        ready = True
        threading.current_thread().name = f"{self._prefix}_{next(self._numbers)}"
        if self._initializer is not None:
            try:
                self._initializer(*self._initargs)
            except BaseException as error:  # noqa: BLE001 - whatever it is, this thread is not fit for use
                LOGGER.critical("Exception in initializer:", exc_info=True)
                ready = False
                self._break(_BROKEN, error)
        self._mine.ready = ready
        return ready

    def _broken_error(self, cause: BaseException | None) -> BrokenExecutor:  # noqa: ARG002 - it was logged
        return BrokenThreadPool(self.broken)
