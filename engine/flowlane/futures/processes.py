"""A pool of worker processes: flowlane's `processes` executor behind ``concurrent.futures``.

A call waits here until a worker can have it soon (the executor's `appetite`), and can be cancelled so long; then its future
is running, as in the standard library. Arguments are pickled at that moment, on the driver's thread, where results are
unpickled and callbacks run, too.

A function of an importable module goes by its address, which is cached and costs a worker nothing after the first
call. Everything else (lambdas, bound methods, partials, functions of a script) is pickled for each call, like an argument:
so it is as it was when it was submitted, and nothing here keeps it alive.
"""

from __future__ import annotations

import contextlib
import secrets
import sys
import weakref
from concurrent.futures import BrokenExecutor, Executor
from concurrent.futures.process import BrokenProcessPool
from types import BuiltinFunctionType, FunctionType
from typing import TYPE_CHECKING, Any, Final, ParamSpec, TypeVar

from flowlane.errors import TransportError
from flowlane.futures import remote
from flowlane.futures.call import Call, begin, fail, succeed
from flowlane.futures.driver import RUN, Driver, usable_cores
from flowlane.futures.outcome import raised_by, undelivered
from flowlane.loader import Address, address_of
from flowlane.runtime.ports import SUCCEEDED, Job, RemoteValue, Target

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from concurrent.futures import Future
    from multiprocessing.context import BaseContext
    from typing import BinaryIO

    from flowlane.runtime import ports
    from flowlane.runtime.ports import Report

__all__ = ["ProcessPoolExecutor"]

P = ParamSpec("P")
T = TypeVar("T")

_METHODS: Final = ("fork", "forkserver", "spawn")
_TARGETS_KEPT: Final = 1_000  # functions whose address is known; module-level ones only, which live on anyway
_MANAGERS: Final = "multiprocessing.managers"
_BROKEN: Final = "A process initializer failed, the process pool is not usable anymore"


class ProcessPoolExecutor(Executor):
    """A pool of processes that takes the place of ``concurrent.futures.ProcessPoolExecutor``.

    max_workers          processes; None: the cores this process may use
    mp_context           a context of multiprocessing, or the name of a start method. "spawn" starts each worker as a new
                         interpreter; anything else, None too, forks them from a small process that flowlane starts,
                         never from this one. No start method imports the main script again
    initializer          called with `initargs` in each worker before its first call; when it raises, the pool is broken:
                         all its futures raise BrokenProcessPool, and so does `submit`
    max_tasks_per_child  a worker is replaced when it has run so many calls; None: never

    Nothing is started before the first `submit`. Raises ValueError and TypeError for what the standard library's pool
    refuses, in its words.
    """

    def __init__(
        self,
        max_workers: int | None = None,
        mp_context: BaseContext | str | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
        *,
        max_tasks_per_child: int | None = None,
    ) -> None:
        if max_workers is None:
            max_workers = usable_cores()
        if max_workers <= 0:
            raise ValueError("max_workers must be greater than 0")
        method = _start_method(mp_context)
        if initializer is not None and not callable(initializer):
            raise TypeError("initializer must be a callable")
        options: dict[str, Any] = {"slots": max_workers}
        if method == "spawn":
            options["start_method"] = "spawn"
        if max_tasks_per_child is not None:
            options["max_tasks"] = _tasks(max_tasks_per_child, method)
        self._max_workers = max_workers  # private, and yet read by a good many libraries
        self._driver = _ProcessDriver(options, initializer, tuple(initargs))
        weakref.finalize(self, self._driver.finish).atexit = False

    @property
    def _broken(self) -> str | bool:
        return self._driver.broken or False

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Have ``fn(*args, **kwargs)`` called in a worker process; its future. Any thread; never blocks.

        Raises RuntimeError after `shutdown`, BrokenProcessPool when an initializer has failed or no worker can be had.
        """
        call = Call(fn, args, kwargs)
        future = call.future
        self._driver.take(call)
        return future

    def map(
        self, fn: Callable[..., T], *iterables: Iterable[Any], timeout: float | None = None, chunksize: int = 1
    ) -> Iterator[T]:
        """``map(fn, *iterables)``, all submitted at once; results in order. `timeout`: seconds from now for all of them.

        `chunksize` is only checked: how many calls travel together follows from how long they are measured to take.
        Raises ValueError for a `chunksize` below 1; the iterator raises TimeoutError, and what a call raised.
        """
        if chunksize < 1:
            raise ValueError("chunksize must be >= 1.")
        return super().map(fn, *iterables, timeout=timeout)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take nothing more; `wait` for what was submitted, or `cancel_futures` that have not begun. As often as you like.

        With `wait`, all worker processes are gone when it returns. Raises RuntimeError in a callback of a future.
        """
        self._driver.shut(cancel=cancel_futures)
        if wait:
            self._driver.join()


def _start_method(context: BaseContext | str | None) -> str | None:
    if context is None:
        return None
    method = context if isinstance(context, str) else context.get_start_method(allow_none=False)
    if method not in _METHODS:
        raise ValueError(f"cannot find context for {method!r}")
    return method


def _tasks(number: int, method: str | None) -> int:
    if not isinstance(number, int):  # pyright: ignore[reportUnnecessaryIsInstance] - users need not check types
        raise TypeError("max_tasks_per_child must be an integer")
    if number <= 0:
        raise ValueError("max_tasks_per_child must be >= 1")
    if method == "fork":  # it could work here; a program that relies on it would not run elsewhere
        raise ValueError(
            "max_tasks_per_child is incompatible with the 'fork' multiprocessing start method; supply a different mp_context."
        )
    return number


class _ProcessDriver(Driver):
    def __init__(
        self, options: dict[str, Any], initializer: Callable[..., object] | None, initargs: tuple[Any, ...]
    ) -> None:
        super().__init__("processes", options, BrokenProcessPool)
        self._slots: int = options["slots"]
        self._initializer = initializer
        self._initargs = initargs  # kept for the descriptors in it, which workers may still have to open
        self._packed: remote.Packed | None = None
        self._file: BinaryIO | None = None
        self._targets: dict[Callable[..., Any], Target] = {}
        self._out: dict[int, Future[Any]] = {}

    def _free(self) -> int:
        return max(self._slots - len(self._out), 0)

    def _room(self, executor: ports.Executor) -> int:
        appetite: int = getattr(executor, "appetite", self._slots)
        return max(appetite, 1) - self._outstanding

    # ── a call goes out ───────────────────────────────────────────────────────────────────────────────────────────

    def _job(self, ref: int) -> Job | None:
        call = self._pending.pop(ref, None)
        if call is None or not begin(call.future):
            return None
        self._out[ref] = call.future
        fn, args, kwargs = call.fn, call.args, call.kwargs
        key = remote.Key() if _MANAGERS in sys.modules else None
        target: Target | None = None
        if self._initializer is not None:
            packed = self._packed
            if packed is None:
                packed = self._packed = self._pack(self._initializer)
            target, args, kwargs = _named(fn, remote.call_prepared), (key, packed, fn, args, kwargs), {}
        elif key is None:
            target = self._target(fn)
        if target is None:
            target, args, kwargs = _named(fn, remote.call), (key, fn, args, kwargs), {}
        return Job(ref, target, args, kwargs, RUN, target.name, 1)

    def _target(self, fn: Callable[..., Any]) -> Target | None:
        """How to name `fn` to a worker, or None when it must travel as a value."""
        if not isinstance(fn, (FunctionType, BuiltinFunctionType)):
            return None
        known = self._targets.get(fn)
        if known is None:
            address = address_of(fn)
            if address is None:
                return None
            if len(self._targets) >= _TARGETS_KEPT:
                self._targets.clear()
            known = self._targets[fn] = Target(fn.__name__, fn, is_async=False, address=address)
        return known

    def _pack(self, initializer: Callable[..., object]) -> remote.Packed:
        packed, self._file = remote.pack(secrets.token_hex(8), initializer, self._initargs)
        return packed

    # ── a report comes back ───────────────────────────────────────────────────────────────────────────────────────

    def _settle(self, report: Report) -> None:
        if report.output:
            _print(report.output)
        future = self._out.pop(report.ref, None)
        if future is None:
            return
        if report.kind is not SUCCEEDED:
            error = raised_by(report)
            if isinstance(error, remote.InitializerFailed):
                fail(future, self._broken_by(error))
            else:
                fail(future, error)
            return
        value, report.value = report.value, None  # the report must not keep it alive
        if isinstance(value, RemoteValue):
            try:
                value = value.fetch()
            except Exception as error:  # noqa: BLE001 - it was lost with its worker, or does not unpickle
                fail(future, undelivered(error) if isinstance(error, TransportError) else error)
                return
        succeed(future, value)

    def _broken_by(self, error: remote.InitializerFailed) -> BrokenExecutor:
        self._break(_BROKEN, error)
        self._lose(error)
        return self._broken_error(error)

    def _at_end(self) -> bool:
        # a broken pool does not wait for what is still out: its futures have failed, and closing ends the workers
        return self.broken is not None or super()._at_end()

    def _lose(self, cause: BaseException) -> None:
        while self._out:
            _, future = self._out.popitem()
            fail(future, self._broken_error(cause))

    def _release(self) -> None:
        self._initializer, self._initargs, self._packed = None, (), None
        if self._file is not None:
            self._file.close()
            self._file = None


def _print(text: str) -> None:
    """What a call printed. The executor captures it; from a plain pool, people expect it on the terminal."""
    stream = sys.stdout
    if stream is not None:  # pyright: ignore[reportUnnecessaryComparison] - None under pythonw
        with contextlib.suppress(OSError, ValueError):  # closed, or nobody reads any more
            stream.write(text)
            stream.flush()


_ADDRESSES: Final = {
    remote.call: Address(remote.__name__, "call", None),
    remote.call_prepared: Address(remote.__name__, "call_prepared", None),
}


def _named(fn: Callable[..., Any], through: Callable[..., Any]) -> Target:
    """`through`, under the name of the function that it will call."""
    name: Any = getattr(fn, "__name__", None)
    return Target(
        name if isinstance(name, str) else type(fn).__name__, through, is_async=False, address=_ADDRESSES[through]
    )
