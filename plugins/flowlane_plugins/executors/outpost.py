"""What runs on a worker of somebody's cluster: one call of a task, whose outcome is a small record and a result that stays.

Dask and Ray call `perform`, in whatever thread they like, several at a time if they like. Whatever the task does with values and
exceptions ends as a record of plain data, so neither of them ever sees a task fail, and neither has a reason to try again.

A long call is told to have begun: a thread of this process (`_Herald`) looks every few milliseconds which calls go on.
A call can be taken back before it begins (`withdraw`): whether it had begun is answered by this process, under one lock,
so it is never guessed. Nothing can stop a Python thread, so a call that has begun goes on.

The contextvars of the engine's process do not get here; ``run``, ``task`` and ``attempt`` are bound for logs.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from contextvars import copy_context
from itertools import islice
from time import monotonic_ns
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias

from flowlane.loader import load_for, marked
from flowlane.runtime.context import bind
from flowlane_plugins.executors import kept, transport
from flowlane_plugins.executors.clocks import machine
from flowlane_plugins.executors.pickling import may_be_work

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from flowlane_plugins.executors.kept import Kept

__all__ = [
    "RAISED",
    "REFUSED",
    "RETURNED",
    "STARTED",
    "STOPPED",
    "WITHDRAWN",
    "Call",
    "Record",
    "perform",
    "stopped",
    "withdraw",
]

RETURNED: Final = 0
RAISED: Final = 1  # the function raised, or its result cannot travel
REFUSED: Final = 2  # it never began: the function is not found here, or an argument does not load
WITHDRAWN: Final = 3  # it never began: it was taken back
STARTED: Final = 4  # not an outcome: it has begun, and goes on
STOPPED: Final = 5  # it was interrupted, somewhere between its begin and the answer

NEVER: Final = -1

#: (ref, one of the above, started, ended, sent: ns of this machine's clock, machine, worker, CPU ns, peak memory,
#: bytes of the result, ns of pickling, failure as bytes or None, a small result as (pickle, files) or None). Plain data:
#: msgpack carries it, in this order.
Record: TypeAlias = "Sequence[Any]"

_TELL_AFTER: Final = 0.02  # seconds that a call may take before it is told that it has begun
_FAILURE_MAX: Final = 1 << 18  # bytes; an exception object that is larger stays behind, its description does not
_REMEMBERED: Final = 600.0  # seconds that a call that was taken back is remembered, and at least one that has ended
_HEADERS_KEPT: Final = 1_000
_NEEDED: Final = "a module that the task or an argument needs"


class Call(NamedTuple):
    """One attempt of a task. `header` and `payload` are transport's, `files` must be loaded for the payload.

    lane  the executor's own name: `ref` is unique in it. `task` and `attempt` are for logs.
    """

    lane: str
    ref: int
    header: bytes
    payload: bytes
    task: str
    attempt: int
    files: transport.Files = ()


def perform(
    call: Call,
    inputs: Sequence[Kept],
    worker: str,
    tell: Callable[[Record], object],
    cpu: Callable[[], int] = time.thread_time_ns,
) -> tuple[Record, Kept | None]:
    """Run one call, with `inputs` for the references in its payload. The record of how it went, and its result if that stays.

    `worker` is this worker's name for people. `tell` is given a STARTED record when the call takes long, from another
    thread. `cpu` is the clock that counts for the call. Never raises.
    """
    lane, ref, header, payload, task, attempt, files = call
    began = monotonic_ns()
    key = (lane, ref)
    if not _calls.begin(key):
        return _record(ref, WITHDRAWN, NEVER, worker), None
    try:
        try:
            with marked(_NEEDED):  # unpickling imports modules too, and none of them may start a run
                fn, name, run = _function(header)
                if files:
                    load_for(files)
                args, kwargs = kept.decoded(payload, inputs, fn, name)
        except BaseException as error:  # noqa: BLE001 - user code runs while modules and arguments load
            return _record(ref, REFUSED, NEVER, worker, failure=_failure(error)), None
        context = copy_context()
        context.run(bind, run, task, attempt)
        used = cpu()
        started = monotonic_ns()
        _herald.add(key, lambda: tell(_record(ref, STARTED, started, worker)))
        try:
            value = context.run(fn, *args, **kwargs)
        except BaseException as error:  # noqa: BLE001 - SystemExit and GeneratorExit too: a task must not end a worker
            ended = monotonic_ns()
            return _record(
                ref, RAISED, started, worker, ended, cpu() - used, pickling=started - began, failure=_failure(error)
            ), None
        finally:
            _herald.remove(key)
        ended = monotonic_ns()
        used = cpu() - used
        try:
            result = kept.keep(value, name)
        except BaseException as error:  # noqa: BLE001 - user code runs while a value is pickled; our frames say nothing
            failure = _failure(error.with_traceback(None))
            return _record(ref, RAISED, started, worker, ended, used, failure=failure), None
        pickling = started - began + monotonic_ns() - ended
        carried = result.nbytes <= kept.CARRIED_MAX or may_be_work(
            result.stream
        )  # the engine has to see what work it is
        if result.buffers or not carried:
            return _record(ref, RETURNED, started, worker, ended, used, result.nbytes, pickling), result
        small = (bytes(result.stream), result.files)
        return _record(ref, RETURNED, started, worker, ended, used, result.nbytes, pickling, small=small), None
    finally:
        _calls.end(key)


def stopped(call: Call, worker: str, since: int) -> Record:
    """The record of a call that was interrupted outside of the task's own code. `since` is when its arguments were here."""
    return _record(call.ref, STOPPED, since, worker)


def withdraw(lane: str, refs: Iterable[int]) -> list[int]:
    """Take calls back. The refs of those that have begun here; none of the others will ever begin in this process."""
    return [ref for ref in refs if not _calls.withdraw((lane, ref))]


def _record(
    ref: int,
    what: int,
    started: int,
    worker: str,
    ended: int = NEVER,
    cpu: int = NEVER,
    nbytes: int = NEVER,
    pickling: int = NEVER,
    failure: bytes | None = None,
    small: tuple[bytes, transport.Files] | None = None,
) -> Record:
    now = monotonic_ns()
    ended = now if ended == NEVER else ended
    return (ref, what, started, ended, now, _machine(), worker, cpu, _peak(), nbytes, pickling, failure, small)


def _peak() -> int:
    """Peak memory of this process so far, bytes."""
    if sys.platform == "win32":
        return NEVER
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


_name: str | None = None


def _machine() -> str:
    global _name
    if _name is None:
        _name = machine()
    return _name


def _failure(error: BaseException) -> bytes:
    payload = transport.encode_failure(error)
    return payload if len(payload) <= _FAILURE_MAX else transport.encode_failure(error, alone=True)


# Process-wide on purpose: a function that travels by value keeps its globals between the jobs of a run, as an imported
# one does. Bounded, because a worker outlives many runs.
_headers: dict[bytes, tuple[Callable[..., Any], str, str]] = {}
_loading = threading.RLock()  # two threads must not make two functions of one; reentrant, as loading may run anything


def _function(header: bytes) -> tuple[Callable[..., Any], str, str]:
    known = _headers.get(header)
    if known is None:
        with _loading:
            known = _headers.get(header)
            if known is None:
                if len(_headers) >= _HEADERS_KEPT:
                    _headers.clear()
                known = _headers[header] = transport.decode_header(header)
    return known


class _Calls:
    """Which calls have begun in this process, and which must not begin."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: set[tuple[str, int]] = set()
        self._ended = _Memory()  # the word of their end may still be on its way
        self._withdrawn = _Memory()

    def begin(self, key: tuple[str, int]) -> bool:
        with self._lock:
            if key in self._withdrawn.keys:
                return False
            self._running.add(key)
            return True

    def end(self, key: tuple[str, int]) -> None:
        with self._lock:
            if key in self._running:
                self._running.discard(key)
                self._ended.add(key)

    def withdraw(self, key: tuple[str, int]) -> bool:
        """See that a call does not begin. False when it has."""
        with self._lock:
            if key in self._running or key in self._ended.keys:
                return False
            self._withdrawn.add(key)
            return True


class _Memory:
    """Calls of the last minutes."""

    def __init__(self) -> None:
        self.keys: dict[tuple[str, int], float] = {}  # → when, in the order of that

    def add(self, key: tuple[str, int]) -> None:
        now = time.monotonic()
        self.keys[key] = now
        for old in list(islice(self.keys, 2)):  # two go for one that comes: it shrinks as fast as it grew
            if now - self.keys[old] > _REMEMBERED:
                del self.keys[old]


class _Herald:
    """Tells of calls that have begun and take long. Its thread sleeps while there are none."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._calls: dict[tuple[str, int], tuple[float, Callable[[], object]]] = {}
        self._some = threading.Event()
        self._pid = 0

    def add(self, key: tuple[str, int], tell: Callable[[], object]) -> None:
        with self._lock:
            self._calls[key] = time.monotonic(), tell
            if self._pid != os.getpid():  # the first call here, or in a child that was forked
                self._pid = os.getpid()
                threading.Thread(target=self._watch, name="flowlane-herald", daemon=True).start()
        self._some.set()

    def remove(self, key: tuple[str, int]) -> None:
        """Nothing is told of the call after this."""
        with self._lock:
            self._calls.pop(key, None)
            if not self._calls:
                self._some.clear()

    def _watch(self) -> None:
        while True:
            self._some.wait()
            time.sleep(_TELL_AFTER / 2)
            with self._lock:  # held while telling: so that an outcome cannot overtake the word that it has begun
                since = time.monotonic() - _TELL_AFTER
                for key in [key for key, (began, _) in self._calls.items() if began <= since]:
                    _, tell = self._calls.pop(key)
                    try:
                        tell()
                    except Exception:  # noqa: BLE001, S112 - the cluster is gone: then nobody waits for the word
                        continue
                if not self._calls:
                    self._some.clear()


_calls = _Calls()
_herald = _Herald()
