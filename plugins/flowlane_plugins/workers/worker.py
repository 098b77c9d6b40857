"""The life of a worker process, from its fork to its `_exit`.

`live` is called once, in the fresh child, and never returns. It settles in (standard streams onto the output file,
random numbers reseeded, signals), then runs jobs from the page's ring until it is told to end, the engine is gone, or a
task has done something to this process that the next task must not meet.

What the engine reads when this process dies is always right: a job's number stands in the page *before* anything of it
is touched, its result *before* the next number. A result is written to the ring at once; the byte that makes the engine
look is sent when a frame is done, or before the next job when the oldest untold result has waited for `_TELL` ns.

Whatever a task does with values or exceptions ends as a tuple of ints and bytes. It may close descriptors (the result
still stands in the page), fork and return (the child ends here, silently), or change the directory (the next job does
not see it).

Stopping: the engine writes a job's number into the STOP cell and sends SIGTERM; if that job's body is running,
`TaskStopped` is raised in it, so ``finally`` blocks and context managers get their chance, and the process ends
afterwards, because nobody knows what the exception tore apart. A task that does not listen is killed when its grace is
over."""

from __future__ import annotations

import contextlib
import gc
import os
import random
import resource
import signal
import socket
import sys
import time
from contextvars import copy_context
from time import monotonic_ns, process_time_ns
from typing import TYPE_CHECKING, Any, Final, NoReturn

from flowlane.errors import TransportError
from flowlane.loader import marked
from flowlane.runtime.context import bind
from flowlane_plugins.executors import pickling, transport
from flowlane_plugins.workers.cargo import decode_call, encode_value
from flowlane_plugins.workers.chunks import Store
from flowlane_plugins.workers.mappings import Arenas
from flowlane_plugins.workers.page import (
    BODY,
    ENCODING,
    IDLE,
    LIMIT,
    LOADING,
    PHASE,
    PID,
    POLLING,
    SINCE,
    SKIP_FROM,
    SKIP_TO,
    STARTED,
    STOP,
    Page,
)
from flowlane_plugins.workers.protocol import receive
from flowlane_plugins.workers.records import (
    ARENA_FORMAT,
    DROP,
    EXIT,
    FORGET,
    FREE,
    FUNCTION,
    JOBS,
    RAISED,
    REFUSED,
    RETURNED,
    STOPPED,
    WAKE,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import FrameType

    from flowlane_plugins.workers.chunks import ChunkRef

__all__ = ["TaskStopped", "live"]

NEVER: Final = -1

# ns of looking for the next frame before blocking: to wake somebody costs 20 to 60 µs, and more in a virtual machine
_SPIN: Final = 100_000
_TELL: Final = 300_000  # ns that a result may wait for the frame's other jobs before the engine is told
_SHORT: Final = 100_000  # ns up to which a job's CPU time is not asked for
_LONG: Final = 1_000_000  # ns from which a job is worth a look at its memory
_M_TRIM_THRESHOLD: Final = -1  # as in malloc.h
_M_MMAP_THRESHOLD: Final = -3
_MAPPED_APART: Final = 32 << 20  # bytes from which a block is mapped and unmapped by itself; glibc allows no more
_KEPT_FREE: Final = 64 << 20  # bytes of free memory at the heap's end that are kept
_RETRY: Final = 0.0005  # s between looks for room in a full ring
_PEAK: Final = 1024 if sys.platform != "darwin" else 1  # ru_maxrss is in KiB, on macOS in bytes
_NEEDED: Final = "a module that the task or an argument needs"

Known = tuple["Callable[..., Any]", str, str]  # a function, the name of its task, the id of its run


class TaskStopped(pickling.Stopped):
    """Raised in a task that is told to stop: its timeout has passed, or it was cancelled."""


def live(socket_fd: int, page_fd: int, output_fd: int, wid: int) -> NoReturn:
    """Be worker `wid` until the end. Called in a process of its own, in its only thread."""
    status = 1
    try:
        _settle(output_fd)
        worker = Worker(socket.socket(fileno=socket_fd), Page(page_fd), output_fd, wid)
        os.close(page_fd)
        status = worker.run()
    except BaseException:  # noqa: BLE001 - a bug of ours, or a task that broke what we stand on: the output file is all that is left
        import traceback

        with contextlib.suppress(BaseException):
            traceback.print_exc()
    finally:
        with contextlib.suppress(BaseException):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def _settle(output_fd: int) -> None:
    with contextlib.suppress(OSError):
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        os.close(null)
    os.dup2(output_fd, 1)
    os.dup2(output_fd, 2)
    # Unbuffered: what a task printed must be in the file when it dies. Anything can be printed: the file is ours to decode.
    for name, fd in (("stdout", 1), ("stderr", 2)):
        stream = open(fd, "w", encoding="utf-8", errors="backslashreplace", closefd=False, buffering=1)  # noqa: SIM115
        stream.reconfigure(write_through=True)
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    with contextlib.suppress(Exception):
        import faulthandler

        faulthandler.enable(2)  # where a segfault happened, at the end of the task's output
    random.seed()  # workers are forks of one process: without this they would all draw the same numbers
    numpy_random: Any = sys.modules.get("numpy.random")
    if numpy_random is not None:
        with contextlib.suppress(Exception):
            numpy_random.seed()
    _keep_freed_memory()
    gc.enable()


def _keep_freed_memory() -> None:
    """Have glibc keep what arrays free, for the next ones, instead of returning it to the system at once.

    Otherwise each array of more than 128 KiB comes from fresh pages, and their faults cost several times what computing on
    them does (measured: 360 against 33 µs for ``a + 1`` on 1 MB). Elsewhere than with glibc nothing happens.
    """
    with contextlib.suppress(Exception):
        import ctypes

        mallopt: Any = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_THRESHOLD, _MAPPED_APART)
        mallopt(_M_TRIM_THRESHOLD, _KEPT_FREE)


class Worker:
    """One worker's loop and what it knows. `run` returns the exit status."""

    def __init__(self, sock: socket.socket, page: Page, output_fd: int, wid: int) -> None:
        self._sock = sock
        self._jobs = page.jobs
        self._results = page.results
        self._cells = page.cells
        self._cells[PID] = os.getpid()
        self._output_fd = output_fd
        self._functions: dict[int, Known | bytes] = {}
        self._store = Store(wid)
        self._arenas = Arenas(self._store, self._arriving)
        self._data = b""  # received, not understood yet
        self._fds: list[int] = []
        self._untold = 0  # when the oldest result was written that the engine was not told of; 0: there is none
        self._told_rss = 0
        self._cpu_read = self._cpu_read_at = 0
        self._stopped = NEVER  # the job for which SIGTERM came last
        self._forked = False
        self._moved = False  # the working directory was changed
        self._home = os.open(".", os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        os.register_at_fork(
            before=self._before_fork, after_in_child=self._in_fork, after_in_parent=self._listen_to_sigterm
        )
        self._listen_to_sigterm()
        self._watch_directory()

    # ── the loop ──────────────────────────────────────────────────────────────────────────────────────────────────

    def run(self) -> int:
        jobs = self._jobs
        while True:
            record = jobs.get()
            if record is None:
                if not self._wait():
                    return 0
                continue
            jobs.commit()
            kind = record[0]
            if kind == JOBS:
                if not self._frame(record[1], record[2]):
                    return 0
            elif kind == FUNCTION:
                self._functions[record[1]] = record[2]
            elif kind == FREE:
                for ref in record[1]:
                    self._store.free(ref)
            elif kind == DROP:
                for arena in record[1]:
                    self._arenas.drop(arena)
            elif kind == FORGET:
                for fid in record[1]:
                    self._functions.pop(fid, None)
            elif kind == EXIT:
                return 0

    def _wait(self) -> bool:
        """Until the engine has written something; False when it is gone."""
        if POLLING:
            jobs, end = self._jobs, monotonic_ns() + _SPIN
            while monotonic_ns() < end:
                if jobs.news:
                    return True
                os.sched_yield()  # whoever is to write it may be waiting for this very core
        return self._hear()

    def _hear(self) -> bool:
        """Block for the engine's next word. False when it is gone, or a task has closed the socket."""
        try:
            data, fds = receive(self._sock, 4096, 16)
        except OSError:
            return False
        if not data:
            return False
        self._fds += fds
        data = self._data + data
        while data:
            if data[:1] == WAKE:
                data = data.lstrip(WAKE)
            elif len(data) >= ARENA_FORMAT.size:
                _, arena, size = ARENA_FORMAT.unpack_from(data)
                data = data[ARENA_FORMAT.size :]
                self._arenas.add(arena, self._fds.pop(0), size)
            else:
                break
        self._data = data
        return True

    def _frame(self, first: int, jobs: Sequence[Any]) -> bool:
        """Run the jobs of a frame; False when this process must end."""
        cells = self._cells
        self._cpu_read, self._cpu_read_at = process_time_ns(), monotonic_ns()
        for number, job in enumerate(jobs, first):
            if self._untold and monotonic_ns() - self._untold > _TELL:
                self._tell()
            cells[STARTED] = number  # first say so, then look whether it may be: see the engine's taking back
            while number >= cells[LIMIT]:
                cells[STARTED] = number - 1
                self._tell()
                if not self._hear():
                    return False
                cells[STARTED] = number
            if cells[SKIP_FROM] <= number < cells[SKIP_TO]:
                continue
            status, started, ended, pickling, payload, refs = self._attempt(job)
            if self._forked:
                os._exit(0)  # a task forked and returned in the child as well: this is the child
            # The result must be in the ring before anything else of ours is asked for: a task may have closed our descriptors.
            cpu = self._cpu(started, ended)
            more = self._more(started, ended, refs)
            record = (number, status, started, ended, cpu, pickling, self._output_end(), payload)
            self._write((*record, more) if more else record)
            cells[PHASE] = IDLE
            if status == STOPPED:
                self._tell()
                return False
            if self._moved:
                self._move_back()
        self._tell()
        return True

    def _cpu(self, started: int, ended: int) -> int:
        """CPU time of a job of this frame, in ns.

        Reading it is a system call of 0.6 µs, so that of very short jobs is taken to be their time. Since the last reading
        this process was busy, which gives the reading at a longer job's start.
        """
        if started == NEVER:
            return NEVER
        took = ended - started
        if took < _SHORT:
            return took
        before = self._cpu_read + started - self._cpu_read_at
        self._cpu_read, self._cpu_read_at = process_time_ns(), monotonic_ns()
        return max(0, self._cpu_read - before)

    def _more(self, started: int, ended: int, refs: Sequence[ChunkRef]) -> tuple[Any, ...] | None:
        peak = 0
        if ended - started > _LONG:
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _PEAK
        held: Sequence[ChunkRef] = ()
        released: Sequence[ChunkRef] = ()
        if self._arenas.busy:
            held, released = self._arenas.release()
        if refs or held or released or peak > self._told_rss:
            self._told_rss = max(peak, self._told_rss)
            return (self._told_rss, tuple(refs), tuple(held), tuple(released))
        return None

    def _output_end(self) -> int:
        try:
            return os.lseek(self._output_fd, 0, os.SEEK_END)
        except OSError:
            return NEVER  # a task closed it

    def _write(self, record: tuple[Any, ...]) -> None:
        """Put a result into the ring, waiting for room if need be: the engine may be busy, and is never gone unnoticed."""
        try:
            while not self._results.put(record):
                self._tell()
                time.sleep(_RETRY)
        except ValueError:  # it refers to more chunks than a record has room for, in `more`
            more: Any = record[-1]
            for ref in more[1]:
                self._store.free(ref)
            error = TransportError("its result has too many large parts", hint="join them, or return fewer at a time")
            self._write((record[0], RAISED, *record[2:7], transport.encode_failure(error)))
            return
        if not self._untold:
            self._untold = monotonic_ns()

    def _tell(self) -> None:
        self._untold = 0
        try:
            self._sock.send(WAKE, socket.MSG_DONTWAIT)
        except OSError:
            pass  # so many wake-ups are on the way that there is no room for another; or the engine is gone, which `_hear` finds

    # ── one job ───────────────────────────────────────────────────────────────────────────────────────────────────

    def _attempt(self, job: Any) -> tuple[int, int, int, int, Any, Sequence[ChunkRef]]:
        """Run one job: (status, started, ended, pickling, payload, refs). Keeps no reference to anything of the task's."""
        try:
            return self._perform(job)
        except TaskStopped:
            return (STOPPED, self._cells[SINCE], monotonic_ns(), NEVER, b"", ())
        except BaseException as error:  # noqa: BLE001 - e.g. no memory for a result's chunk: the task's failure, not ours
            now = monotonic_ns()
            return (RAISED, self._cells[SINCE], now, NEVER, *self._bounded(transport.encode_failure(error)))

    def _perform(self, job: Any) -> tuple[int, int, int, int, Any, Sequence[ChunkRef]]:
        cells = self._cells
        cells[SINCE] = monotonic_ns()
        cells[PHASE] = LOADING
        fid, task, attempt, payload, *files = job
        try:
            known = self._functions[fid]
            if type(known) is not tuple:
                with marked(_NEEDED):  # it imports modules, and none of them may start a run
                    known = self._functions[fid] = transport.decode_header(self._whole(known))
            fn, name, run = known
            if files:
                with marked(_NEEDED):
                    transport.load_files(files[0])
            began = monotonic_ns()
            args, kwargs = decode_call(payload, fn, name, self._arenas)
        except TaskStopped:
            raise
        except BaseException as error:  # noqa: BLE001 - user code runs while modules and arguments load
            return (REFUSED, NEVER, monotonic_ns(), NEVER, *self._bounded(transport.encode_failure(error)))
        bind(run, task, attempt)
        context = copy_context()
        started = cells[SINCE] = monotonic_ns()
        try:
            cells[PHASE] = BODY
            value = context.run(fn, *args, **kwargs)
            cells[PHASE] = ENCODING
        except TaskStopped:
            raise
        except BaseException as error:  # noqa: BLE001 - SystemExit and GeneratorExit too: a task must not end a worker
            cells[PHASE] = ENCODING
            ended = monotonic_ns()
            return (RAISED, started, ended, started - began, *self._bounded(transport.encode_failure(error)))
        ended = monotonic_ns()
        try:
            payload, refs = encode_value(value, name, self._store)
        except BaseException as error:  # noqa: BLE001 - user code runs while a value is pickled; our frames say nothing
            failure = transport.encode_failure(error.with_traceback(None))
            return (RAISED, started, ended, NEVER, *self._bounded(failure))
        if refs:
            self._announce()
        return (RETURNED, started, ended, started - began + monotonic_ns() - ended, payload, refs)

    def _whole(self, payload: Any) -> bytes:
        """A payload's bytes, wherever they lie."""
        return payload if isinstance(payload, bytes) else self._arenas.read(payload)

    def _bounded(self, failure: bytes) -> tuple[Any, Sequence[ChunkRef]]:
        """A failure's payload and its chunks: a long one (a message may hold a document) does not fit into the ring."""
        if len(failure) <= pickling.INLINE_MAX:
            return failure, ()
        ref = self._store.put(failure)
        self._announce()
        return ref, (ref,)

    def _arriving(self, arena: int) -> bool:
        """Wait for the descriptor of `arena`, which was sent before the job that needs it; False when it will not come."""
        while not self._arenas.known(arena):
            if not self._hear():
                return False
        return True

    def _announce(self) -> None:
        """Send the engine descriptors of arenas that are new. They precede the result that lies in them."""
        for arena, fd, size in self._store.new_arenas():
            socket.send_fds(self._sock, [ARENA_FORMAT.pack(b"A", arena, size)], [fd])

    # ── what tasks do to a process ────────────────────────────────────────────────────────────────────────────────

    def _listen_to_sigterm(self) -> None:
        with contextlib.suppress(ValueError):  # a task forks in a thread of its own
            signal.signal(signal.SIGTERM, self._on_sigterm)

    def _before_fork(self) -> None:
        """A child is no worker and must die of SIGTERM, from its first moment: one sent to it while it still had our handler
        would be forgotten, because Python drops what is pending after a fork. (Seen: a nested pool that never ended.)"""
        with contextlib.suppress(ValueError):
            signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def _on_sigterm(self, signum: int, frame: FrameType | None) -> None:  # noqa: ARG002 - the signature of handlers
        cells = self._cells
        stop = cells[STOP]
        if self._forked or stop in (NEVER, self._stopped):  # not from the engine: do what a process does
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGTERM)
            return
        self._stopped = stop  # the engine asks once for each job
        if stop == cells[STARTED] and cells[PHASE] in (LOADING, BODY):
            raise TaskStopped
        # else that job has ended meanwhile

    def _in_fork(self) -> None:
        """In a child that a task forked: it must neither read our jobs nor answer them."""
        self._forked = True
        with contextlib.suppress(OSError):
            null = os.open(os.devnull, os.O_RDWR)
            os.dup2(null, self._sock.fileno())
            os.close(null)

    def _watch_directory(self) -> None:
        # Asking for the directory after each job would cost 1 µs; these are the only ways to change it from Python.
        changed = self

        def watched(change: Callable[..., None]) -> Callable[..., None]:
            def chdir(path: Any) -> None:
                change(path)
                changed._moved = True

            return chdir

        os.chdir = watched(os.chdir)
        if hasattr(os, "fchdir"):
            self._fchdir = os.fchdir
            os.fchdir = watched(os.fchdir)

    def _move_back(self) -> None:
        self._moved = False
        with contextlib.suppress(OSError):
            self._fchdir(self._home)
