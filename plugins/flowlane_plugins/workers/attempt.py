"""One job in a worker: its function and arguments, its body, its result. Whatever a task does with values or exceptions ends
as a tuple of ints and bytes."""

from __future__ import annotations

import errno
from contextvars import copy_context
from os import getpid
from time import monotonic_ns, process_time_ns
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from flowlane.loader import load_for, marked
from flowlane.runtime.context import bind
from flowlane_plugins.executors import pickling, transport
from flowlane_plugins.workers.cargo import decode_call, encode_value
from flowlane_plugins.workers.guard import TaskStopped
from flowlane_plugins.workers.page import BODY, ENCODING, FLOOR, LOADING, PHASE, SINCE, STARTED
from flowlane_plugins.workers.records import RAISED, REFUSED, RETURNED, STOPPED

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from flowlane_plugins.workers.chunks import ChunkRef, Store
    from flowlane_plugins.workers.guard import Guard
    from flowlane_plugins.workers.mappings import Arenas

__all__ = ["SHORT", "Attempts", "Outcome", "Unfit"]

NEVER: Final = -1
#: ns up to which a job's CPU time is not asked for.
SHORT: Final = 100_000
_LONG_LOADING: Final = 200_000  # ns of loading arguments from which the CPU clock is read before the body
_NEEDED: Final = "a module that the task or an argument needs"
_NEEDS: Final = 5  # where (cores, memory) stand in a job

#: status, started, ended, pickling (see `records`), payload, chunks of the payload
Outcome: TypeAlias = "tuple[int, int, int, int, Any, Sequence[ChunkRef]]"


class Unfit(pickling.Stopped):
    """This process cannot do the job, for want of a descriptor that others would have: the job has not begun."""


class Attempts:
    """Does jobs, one at a time.

    cpu_since, cpu_until  ns of CPU time of this process when the latest body began and ended; NEVER where that was not asked for
    announce  sends the engine descriptors of arenas of `store` that are new; they must precede the result that lies in them
    """

    def __init__(
        self, cells: memoryview, guard: Guard, store: Store, arenas: Arenas, announce: Callable[[], None]
    ) -> None:
        self.functions: dict[int, tuple[Callable[..., Any], str, str]] = {}  # fid → function, its task's name, its run
        self.cpu_since = self.cpu_until = NEVER
        self._headers: dict[int, bytes | ChunkRef] = {}  # fid → of those that were not called yet
        self._cells = cells
        self._guard = guard
        self._store = store
        self._arenas = arenas
        self._announce = announce

    def introduce(self, fid: int, header: bytes | ChunkRef) -> None:
        """Know a function, which is loaded when it is first called."""
        self._headers[fid] = header

    def forget(self, fid: int) -> None:
        self._headers.pop(fid, None)
        self.functions.pop(fid, None)

    def make(self, job: Any) -> Outcome:
        """Do one job. Keeps no reference to anything of the task's.

        Raises Unfit, and does not come back in a child that the task has forked.
        """
        if len(job) <= _NEEDS:
            return self._outcome(job)
        cores, memory = job[_NEEDS]
        if memory:
            from flowlane_plugins.workers.resident import resident

            self._cells[FLOOR] = resident(getpid())  # before the phase, which the engine looks at first
        if cores == 1:
            return self._outcome(job)
        from flowlane_plugins.workers.threadpools import threads

        with threads(cores):  # from before its modules are loaded: they may bring libraries along
            return self._outcome(job)

    def _outcome(self, job: Any) -> Outcome:
        try:
            return self._perform(job)
        except TaskStopped as error:
            if self._guard.forked:
                self._guard.leave(error)
            self._guard.spoiled = True  # also where a task has raised it itself
            return (STOPPED, self._cells[SINCE], monotonic_ns(), NEVER, b"", ())
        except Unfit as error:
            if self._guard.forked:
                self._guard.leave(error)
            raise
        except BaseException as error:  # noqa: BLE001 - e.g. no memory for a result's chunk: the task's failure, not ours
            now = monotonic_ns()
            return (RAISED, self._cells[SINCE], now, NEVER, *self._bounded(transport.encode_failure(error)))

    def _perform(self, job: Any) -> Outcome:
        cells, guard = self._cells, self._guard
        cells[SINCE] = monotonic_ns()
        cells[PHASE] = LOADING
        fid, task, attempt, payload, *more = job
        try:
            known = self.functions.get(fid)
            if known is None:
                known = self._load(fid)
            fn, name, run = known
            if more and more[0]:
                with marked(_NEEDED):
                    load_for(more[0])
            began = monotonic_ns()
            args, kwargs = decode_call(payload, fn, name, self._arenas)
        except pickling.Stopped:
            raise
        except BaseException as error:  # user code runs while modules and arguments load
            if guard.forked:
                guard.leave(error)
            if _starved(error) and cells[STARTED] > 0:
                raise Unfit("a task before has left no descriptors") from error
            return (REFUSED, NEVER, monotonic_ns(), NEVER, *self._bounded(transport.encode_failure(error)))
        if guard.forked:
            guard.leave()
        bind(run, task, attempt)
        context = copy_context()
        since = cells[SINCE]
        started = cells[SINCE] = monotonic_ns()
        self.cpu_since = process_time_ns() if started - since > _LONG_LOADING else NEVER
        self.cpu_until = NEVER
        try:
            cells[PHASE] = BODY
            value = context.run(fn, *args, **kwargs)
            if guard.forked:
                guard.leave()
            cells[PHASE] = ENCODING
        except TaskStopped:
            raise
        except BaseException as error:  # noqa: BLE001 - SystemExit and GeneratorExit too: a task must not end a worker
            if guard.forked:
                guard.leave(error)
            cells[PHASE] = ENCODING
            ended = self._ended(started)
            return (RAISED, started, ended, started - began, *self._bounded(transport.encode_failure(error)))
        ended = self._ended(started)
        try:
            payload, refs = encode_value(value, name, self._store)
        except BaseException as error:  # noqa: BLE001 - user code runs while a value is pickled; our frames say nothing
            if guard.forked:
                guard.leave(error)
            failure = transport.encode_failure(error.with_traceback(None))
            return (RAISED, started, ended, NEVER, *self._bounded(failure))
        if guard.forked:
            guard.leave()
        if refs:
            self._announce()
        return (RETURNED, started, ended, started - began + monotonic_ns() - ended, payload, refs)

    def _ended(self, started: int) -> int:
        """The end of a body. Of all but the shortest the CPU clock is read now, before its result is encoded."""
        ended = monotonic_ns()
        if ended - started >= SHORT:
            self.cpu_until = process_time_ns()
        return ended

    def _load(self, fid: int) -> tuple[Callable[..., Any], str, str]:
        """The function known as `fid`. When it cannot be loaded its header stays, for the next job to fail as well."""
        header = self._headers[fid]
        with marked(_NEEDED):  # it imports modules, and none of them may start a run
            whole = header if isinstance(header, bytes) else self._arenas.read(header)
            known = self.functions[fid] = transport.decode_header(whole)
        del self._headers[fid]
        return known

    def _bounded(self, failure: bytes) -> tuple[Any, Sequence[ChunkRef]]:
        """A failure's payload and its chunks: a long one (a message may hold a document) does not fit into the ring."""
        if len(failure) <= pickling.INLINE_MAX:
            return failure, ()
        ref = self._store.put(failure)
        self._announce()
        return ref, (ref,)


def _starved(error: BaseException) -> bool:
    """Whether `error` says that this process has no descriptors left."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno == errno.EMFILE:
            return True
        cause = cause.__cause__
    return False
