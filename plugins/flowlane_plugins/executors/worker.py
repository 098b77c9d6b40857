"""What a worker process runs: one function per job that a pool carries here, and the settling-in before the first.

Whatever a task does with values or exceptions ends as a plain tuple of ints and bytes, so it cannot harm the pool that
carries the tuple home. What kills the process itself does: that is the parent's to notice.

Imported in every worker, so it must stay light: no asyncio, networkx, pydantic, click or rich, and cloudpickle only
where something travels by value. The contextvars of the process that submitted do not reach a worker; it sees only
``run``, ``task`` and ``attempt``, which `flowlane.runtime.context` binds for logs. Each job has a context of its own.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from contextvars import copy_context
from os import getpid
from time import monotonic_ns, process_time_ns
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from flowlane.loader import load_for, marked
from flowlane.runtime.context import bind
from flowlane_plugins.executors import transport

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["NOT_MEASURED", "RAISED", "REFUSED", "RETURNED", "Outcome", "initialize", "perform", "ready"]

RETURNED: Final = 0
RAISED: Final = 1  # the function raised, or its result cannot travel
REFUSED: Final = 2  # it never began: the function is not found here, or an argument does not load

NOT_MEASURED: Final = -1

#: (what became of it, started, ended: monotonic ns, CPU ns of the whole process in between, pid, result or failure)
Outcome: TypeAlias = "tuple[int, int, int, int, int, bytes]"

# Process-wide on purpose: a function that travels by value keeps its globals between the jobs of a run, as an imported
# one does. Bounded, because a long-lived engine sends a new header for every run.
_headers: dict[bytes, tuple[Callable[..., Any], str, str]] = {}
_HEADERS_KEPT: Final = 1_000
_NEEDED: Final = "a module that the task or an argument needs"


def perform(
    header: bytes, payload: bytes, task: str, attempt: int, files: transport.Files = (), cores: int = 1
) -> Outcome:
    """Run one job and say what became of it. Never raises, SystemExit and KeyboardInterrupt of the task included.

    `header` and `payload` are transport's, `task` and `attempt` are for logs, `files` must be loaded for the payload; libraries
    are let use so many `cores`, where that is more than one.
    """
    if cores > 1:
        from flowlane_plugins.workers.threadpools import threads

        with threads(cores):
            return perform(header, payload, task, attempt, files)
    try:
        with marked(_NEEDED):  # unpickling imports modules too, and none of them may start a run
            known = _headers.get(header)
            if known is None:
                if len(_headers) >= _HEADERS_KEPT:
                    _headers.clear()
                known = _headers[header] = transport.decode_header(header)
            fn, name, run = known
            if files:
                load_for(files)
            args, kwargs = transport.decode_arguments(payload, fn, name)
    except BaseException as error:  # noqa: BLE001 - user code runs while modules and arguments load
        return (REFUSED, NOT_MEASURED, monotonic_ns(), NOT_MEASURED, getpid(), transport.encode_failure(error))
    bind(run, task, attempt)
    context = copy_context()
    cpu = process_time_ns()
    started = monotonic_ns()
    try:
        value = context.run(fn, *args, **kwargs)
    except BaseException as error:  # noqa: BLE001 - SystemExit and GeneratorExit too: a task must not end a worker
        ended = monotonic_ns()
        cpu = process_time_ns() - cpu
        return (RAISED, started, ended, cpu, getpid(), transport.encode_failure(error))
    ended = monotonic_ns()
    cpu = process_time_ns() - cpu
    try:
        return (RETURNED, started, ended, cpu, getpid(), transport.encode_result(value, name))
    except BaseException as error:  # noqa: BLE001 - user code runs while a value is pickled; our frames say nothing
        failure = transport.encode_failure(error.with_traceback(None))
        return (RAISED, started, ended, cpu, getpid(), failure)


def ready() -> int:
    """A job that does nothing: its answer, the pid, says that a worker is up."""
    return getpid()


def initialize() -> None:
    """Settle in, as the first thing in a worker of our own. Never raises: a pool whose initializer does is broken."""
    with contextlib.suppress(ValueError, OSError):
        # Ctrl-C goes to the whole foreground group; only the engine decides what it means.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a host may ignore it, and ignoring is inherited
        if sys.platform != "win32":  # blocked while we were starting; programs that tasks start must not inherit that
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    with contextlib.suppress(Exception):
        _die_with_parent()


def _die_with_parent() -> None:
    """Have the kernel kill this process when the parent's end of a pipe closes, that is when the parent is gone.

    A worker waits on a queue of which it holds both ends, so it would never see its parent die (kill -9) and stay for
    ever. PR_SET_PDEATHSIG is not for us: it fires when the *thread* that started us ends. A signal for input on the
    pipe that multiprocessing keeps open as the parent's sign of life needs no thread here and works while a task
    holds the GIL. Linux only: elsewhere nothing happens.
    """
    if sys.platform != "linux":
        return
    import fcntl
    from multiprocessing import parent_process

    parent = parent_process()
    if parent is None:
        return
    fd = parent.sentinel
    fcntl.fcntl(fd, fcntl.F_SETOWN, getpid())
    fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | os.O_ASYNC)
    if os.getppid() == 1:  # it died before we asked; harmless where the parent truly is process 1, then it lives
        import select

        if select.select([fd], [], [], 0)[0]:
            os.kill(getpid(), signal.SIGKILL)
