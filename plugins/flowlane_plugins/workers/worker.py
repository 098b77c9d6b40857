"""The life of a worker process, from its fork to its `_exit`.

`live` is called once, in the fresh child, and never returns. It settles in, then runs jobs from the page's ring until it
is told to end, the engine is gone, or a task has done something to this process that the next task must not meet
(`guard`). What one job is, `attempt` knows.

What the engine reads when this process dies is always right: a job's number stands in the page *before* anything of it
is touched, its result *before* the next number. A result is written to the ring at once; the byte that makes the engine
look is sent when a frame is done, or before the next job when the oldest untold result has waited for `_TELL` ns. So a
task may close our descriptors: its result stands in the page, and the end of this process is told by others.

Stopping: the engine writes a job's number into the STOP cell and sends SIGTERM; if that job's body is running,
`TaskStopped` is raised in it, so ``finally`` blocks and context managers get their chance. The process ends after that
job. A task that does not listen is killed when its grace is over."""

from __future__ import annotations

import contextlib
import os
import resource
import socket
import sys
import time
from time import monotonic_ns, process_time_ns
from typing import TYPE_CHECKING, Any, Final, NoReturn

from flowlane.errors import TransportError
from flowlane_plugins.executors import transport
from flowlane_plugins.workers.attempt import SHORT, Attempts, Unfit
from flowlane_plugins.workers.chunks import Store
from flowlane_plugins.workers.guard import Guard, TaskStopped
from flowlane_plugins.workers.mappings import Arenas
from flowlane_plugins.workers.page import IDLE, LIMIT, PHASE, PID, POLLING, SKIP_FROM, SKIP_TO, STARTED, WATCHED, Page
from flowlane_plugins.workers.protocol import receive
from flowlane_plugins.workers.records import ARENA_FORMAT, DROP, EXIT, FORGET, FREE, FUNCTION, JOBS, RAISED, WAKE
from flowlane_plugins.workers.settling import settle

if TYPE_CHECKING:
    from collections.abc import Sequence

    from flowlane_plugins.workers.chunks import ChunkRef

__all__ = ["live"]

NEVER: Final = -1

# ns of looking for the next frame before blocking, while the engine does the same for our answers: to wake somebody costs 20 to
# 60 µs, and more in a virtual machine
_SPIN: Final = 100_000
_TELL: Final = 300_000  # ns that a result may wait for the frame's other jobs before the engine is told
_LONG: Final = 1_000_000  # ns from which a job is worth a look at its memory
_RETRY: Final = 0.0005  # s between looks for room in a full ring
_PEAK: Final = 1024 if sys.platform != "darwin" else 1  # ru_maxrss is in KiB, on macOS in bytes


def live(socket_fd: int, page_fd: int, output_fd: int, wid: int) -> NoReturn:
    """Be worker `wid` until the end. Called in a process of its own, in its only thread."""
    status = 1
    try:
        settle(output_fd)
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


class Worker:
    """One worker's loop and what it knows. `run` returns the exit status."""

    def __init__(self, sock: socket.socket, page: Page, output_fd: int, wid: int) -> None:
        self._sock = sock
        self._identity = _identity(sock)
        self._jobs = page.jobs
        self._results = page.results
        self._cells = page.cells
        self._cells[PID] = os.getpid()
        self._output_fd = output_fd
        self._store = Store(wid)
        self._arenas = Arenas(self._store, self._arriving)
        self._guard = Guard(self._cells, output_fd, self._shed)
        self._attempts = Attempts(self._cells, self._guard, self._store, self._arenas, self._announce)
        self._data = b""  # received, not understood yet
        self._fds: list[int] = []
        self._untold = 0  # when the oldest result was written that the engine was not told of; 0: there is none
        self._told_rss = 0
        self._cpu_read = self._cpu_read_at = 0

    # ── the loop ──────────────────────────────────────────────────────────────────────────────────────────────────

    def run(self) -> int:
        try:
            self._work()
        except TaskStopped:
            return 0  # it came when the job had failed already: the engine knows that it asked for its end
        except Unfit as reason:
            print(f"this worker ends: {reason}", file=sys.stderr)  # noqa: T201 - it is told if no worker can do it
            return 1
        finally:
            if self._untold and self._connected():
                self._tell()
        return 0

    def _work(self) -> None:
        jobs, attempts = self._jobs, self._attempts
        while True:
            record = jobs.get()
            if record is None:
                if not self._wait():
                    return
                continue
            jobs.commit()
            kind = record[0]
            if kind == JOBS:
                if not self._frame(record[1], record[2]):
                    return
            elif kind == FUNCTION:
                attempts.introduce(record[1], record[2])
            elif kind == FREE:
                for ref in record[1]:
                    self._store.free(ref)
            elif kind == DROP:
                for arena in record[1]:
                    self._arenas.drop(arena)
            elif kind == FORGET:
                for fid in record[1]:
                    attempts.forget(fid)
            elif kind == EXIT:
                return

    def _wait(self) -> bool:
        """Until the engine has written something; False when it is gone.

        Looking without sleeping pays where nobody else wants the core: when the engine waits for us alone. Otherwise the core is
        needed at once by the engine, which is to see what we have told it, or by another worker.
        """
        if POLLING and self._cells[WATCHED]:
            jobs, end = self._jobs, monotonic_ns() + _SPIN
            while monotonic_ns() < end:
                if jobs.news:
                    return True
                os.sched_yield()  # whoever is to write it may be waiting for this very core
        return self._hear()

    def _hear(self) -> bool:
        """Block for the engine's next word. False when it is gone, or a task has closed the socket.

        Raises Unfit when the descriptor of an arena did not come with its word: there was no number left for it here.
        """
        if not self._connected():
            return False  # what has its number now may be a stranger's
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
                if not self._fds:
                    raise Unfit("a task has left no descriptors for the values of others")
                self._arenas.add(arena, self._fds.pop(0), size)
            else:
                break
        self._data = data
        return True

    def _connected(self) -> bool:
        """Whether our socket is still ours. A task may have closed it, and opened something else."""
        return self._identity == _identity(self._sock)

    def _frame(self, first: int, jobs: Sequence[Any]) -> bool:
        """Run the jobs of a frame; False when this process must end."""
        cells, guard, make = self._cells, self._guard, self._attempts.make
        streams, stdout, stderr = guard.streams, guard.stdout, guard.stderr
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
            try:
                status, started, ended, pickling, payload, refs = make(job)
            except Unfit:
                cells[PHASE] = IDLE
                cells[STARTED] = number - 1  # another worker begins it
                raise
            if streams.get("stdout") is not stdout or streams.get("stderr") is not stderr:
                guard.restore_streams()
            # The result must be in the ring before anything else of ours is asked for: a task may have closed our descriptors.
            cpu = self._cpu(started, ended)
            more = self._more(started, ended, refs)
            printed = self._output_end()
            record = (number, status, started, ended, cpu, pickling, printed, payload)
            self._write((*record, more) if more else record)
            cells[PHASE] = IDLE
            if guard.spoiled or printed == NEVER:
                return False
            if guard.touched:
                guard.tidy()
        self._tell()
        return True

    def _cpu(self, started: int, ended: int) -> int:
        """CPU time of a job of this frame, in ns.

        Reading it is a system call of 0.6 µs, so that of very short jobs is taken to be their time. The reading at a longer
        job's start is an estimate, unless its arguments took long to load: since the last reading this process was busy.
        """
        if started == NEVER:
            return NEVER
        took = ended - started
        if took < SHORT:
            return took
        since, until = self._attempts.cpu_since, self._attempts.cpu_until
        before = self._cpu_read + started - self._cpu_read_at if since == NEVER else since
        self._cpu_read, self._cpu_read_at = process_time_ns(), monotonic_ns()
        return max(0, (self._cpu_read if until == NEVER else until) - before)

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

    # ── descriptors ───────────────────────────────────────────────────────────────────────────────────────────────

    def _arriving(self, arena: int) -> bool:
        """Wait for the descriptor of `arena`, which was sent before the job that needs it."""
        while not self._arenas.known(arena):
            if not self._hear():
                raise Unfit("a task has closed its socket, or the engine is gone")
        return True

    def _announce(self) -> None:
        """Send the engine descriptors of arenas that are new. Raises TransportError when there is no way to it any more."""
        for arena, fd, size in self._store.new_arenas():
            if not self._connected():
                self._guard.spoiled = True
                raise TransportError(
                    "its result cannot be handed over: the socket of its worker process was closed",
                    hint="a task (this one, or one before it in that process) has closed descriptors that were not its own",
                )
            socket.send_fds(self._sock, [ARENA_FORMAT.pack(b"A", arena, size)], [fd])

    def _shed(self) -> None:
        """In a child that a task forked: it must neither read our jobs nor answer them, nor write into our chunks."""
        with contextlib.suppress(OSError):
            null = os.open(os.devnull, os.O_RDWR)
            os.dup2(null, self._sock.fileno())
            os.close(null)
        with contextlib.suppress(OSError):
            self._store.close()


def _identity(sock: socket.socket) -> tuple[int, int] | None:
    try:
        found = os.fstat(sock.fileno())
    except OSError:
        return None
    return found.st_dev, found.st_ino
