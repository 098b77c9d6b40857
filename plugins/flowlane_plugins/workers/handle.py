"""The engine's side of one worker process, and of the jobs that are out. Data and reading; what follows from it is the pool's.

A *flight* is a job on its way. A worker gets flights in *frames*, numbered through its life; `flights` holds those it has not
answered, in order, and it answers in order. So the flight at the left is the one that runs, or will run next.
"""

from __future__ import annotations

import os
import socket
from collections import deque
from typing import TYPE_CHECKING, Any, Final

from flowlane_plugins.workers.output import Output
from flowlane_plugins.workers.page import (
    BODY,
    ENCODING,
    FLOOR,
    IDLE,
    NO_LIMIT,
    PHASE,
    PHASES,
    SINCE,
    SKIP_TO,
    STARTED,
    Page,
)
from flowlane_plugins.workers.protocol import receive
from flowlane_plugins.workers.records import ARENA_FORMAT, WAKE
from flowlane_plugins.workers.resident import resident

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Sequence

    from flowlane.runtime.ports import Job
    from flowlane_plugins.workers.cargo import Call
    from flowlane_plugins.workers.functions import Function

__all__ = ["CANCELLED", "EXCEEDED", "OVERDUE", "Flight", "WorkerHandle"]

NEVER: Final = -1

_READ: Final = 4096  # bytes at a time: single bytes as a rule, and what is left is read in the next turn

# Why a flight was told to stop.
OVERDUE: Final = 1  # its timeout has passed, which is ours to enforce
CANCELLED: Final = 2  # the engine asked
EXCEEDED: Final = 3  # it has taken more memory than it may


class Flight:
    """A job that is out."""

    __slots__ = (
        "alone",
        "asked",
        "call",
        "deaths",
        "function",
        "grace",
        "job",
        "kill",
        "number",
        "peak",
        "since",
        "told",
        "worker",
    )

    def __init__(self, job: Job, function: Function) -> None:
        self.job = job
        self.function = function
        self.call: Call | None = None  # encoded when it is first sent
        self.worker: WorkerHandle | None = None
        self.number = -1  # in its worker
        self.told = False  # STARTED was reported
        self.alone = False  # its task has killed a worker: it runs in a fresh one, with nothing beside it
        self.deaths = 0  # of workers in which it was first
        self.asked = 0  # to stop: why
        self.grace = 0.0
        self.since = NEVER  # when what has taken too long began
        self.peak = 0  # bytes, where its memory is limited: by how much its worker has grown
        self.kill: asyncio.TimerHandle | None = None  # at the end of its grace


class WorkerHandle:
    """One worker: its page, its end of the socket, what it was given and has not answered.

    Raises OSError when the system has no descriptors or memory left.
    """

    __slots__ = (
        "_data",
        "_fds",
        "_page_fd",
        "_theirs",
        "arenas",
        "broken",
        "closed",
        "deadline",
        "deaf",
        "ending",
        "flights",
        "frames",
        "functions",
        "given",
        "given_at",
        "hold",
        "later",
        "limit",
        "name",
        "output",
        "page",
        "pid",
        "sock",
        "unsent",
        "wid",
        "withdrawal",
    )

    def __init__(self, wid: int, output_limit: int) -> None:
        self.wid = wid
        self.pid = 0  # until it is born
        self.name = ""
        self.flights: deque[Flight] = deque()
        self.frames: deque[int] = deque()  # the last number of each frame that is out
        self.functions: set[int] = set()
        self.arenas: list[tuple[int, int, int]] = []  # (id, fd, size) received and not taken over yet
        self.later: deque[tuple[Any, ...]] = deque()  # records for which its ring had no room
        self.unsent: deque[tuple[int, int, int]] = deque()  # arenas for which its socket had no room
        self.given = 0  # jobs so far: the next one's number
        self.given_at = 0  # when the last frame was given, ns
        self.ending = False  # it gets no more
        self.hold = False  # it gets no more before it has answered all: jobs were taken back
        self.limit = NO_LIMIT  # as in its page
        self.broken = False  # what it has written is no answer
        self.deaf = False  # its end of the socket is closed, or a descriptor was lost on the way
        self.closed = False
        self.deadline: tuple[int, asyncio.TimerHandle] | None = None  # of the flight with this number
        self.withdrawal: asyncio.TimerHandle | None = None
        self._data = b""
        self._fds: list[int] = []
        self.output = Output(output_limit)
        try:
            self.page, self._page_fd = Page.make()
        except BaseException:
            self.output.close()
            raise
        try:
            self.sock, self._theirs = socket.socketpair()
        except BaseException:
            self.output.close()
            self.page.close()
            os.close(self._page_fd)
            raise
        self.sock.setblocking(False)

    @property
    def fds(self) -> tuple[int, int, int]:
        """What the worker is born with: its end of the socket, the page, the output file. Until `handed_over`."""
        return self._theirs.fileno(), self._page_fd, self.output.fd

    def handed_over(self) -> None:
        """The worker has its own copies (or never will): while we held them, its socket would never end."""
        self._theirs.close()
        if self._page_fd >= 0:
            os.close(self._page_fd)
            self._page_fd = -1

    def born(self, pid: int) -> None:
        self.pid = pid
        self.name = f"pid {pid}"

    def let_go(self) -> bool:
        """End the hold, if it may end now; whether there was one and it has.

        It lasts until the worker has passed over the jobs that were taken back: what it is to skip is one stretch of
        numbers, which the next taking back writes anew.
        """
        cells = self.page.cells
        if not self.hold or self.flights or self.limit != NO_LIMIT or cells[STARTED] < cells[SKIP_TO] - 1:
            return False
        self.hold = False
        return True

    @property
    def idle(self) -> bool:
        return not self.flights

    # ── what it is doing ──────────────────────────────────────────────────────────────────────────────────────────

    def running(self) -> tuple[Flight, int] | None:
        """The flight it has begun and not answered, and since when (ns) it is loading or in its body; None if there is none."""
        if not self.flights:
            return None
        cells, flight = self.page.cells, self.flights[0]
        if cells[STARTED] != flight.number or cells[PHASE] == IDLE:
            return None
        since = cells[SINCE]
        return (flight, since) if cells[STARTED] == flight.number else None

    def grown(self) -> int:
        """Bytes that it holds more than before the job it runs, where the memory of that is limited."""
        return max(0, resident(self.pid) - self.page.cells[FLOOR])

    def running_of(self, flight: Flight) -> bool:
        """Whether it had begun `flight`, as its page says."""
        cells = self.page.cells
        return bool(cells[STARTED] == flight.number and cells[PHASE] != IDLE)

    def begun(self) -> int:
        """When the body of the job begun last began; NEVER while it is loading."""
        cells = self.page.cells
        return cells[SINCE] if cells[PHASE] in (BODY, ENCODING) else NEVER

    @property
    def phase(self) -> str:
        phase = self.page.cells[PHASE]
        return PHASES[phase] if 0 <= phase < len(PHASES) else ""  # a task has written into the page

    # ── the socket ────────────────────────────────────────────────────────────────────────────────────────────────

    def wake(self) -> None:
        """Make it look. Never blocks: when there is no room for the byte, enough others are on the way."""
        try:  # rather than `suppress`, which takes as long as the rest
            self.sock.send(WAKE)
        except OSError:
            pass

    def send_later(self) -> bool:
        """Put the records that wait into its ring; False while there is no room for all."""
        later = self.later
        while later:
            if not self.page.jobs.put(later[0]):
                return False
            later.popleft()
        return True

    def send_arenas(self, arenas: Sequence[tuple[int, int, int]] = ()) -> bool:
        """Send descriptors of arenas, those first that are still to be sent. False when there is no room for all now."""
        for arena, fd, size in arenas:
            if self.unsent or not self._send_arena(arena, fd, size):
                self.unsent.append((arena, os.dup(fd), size))  # ours: by then that one may be closed
        while self.unsent and self._send_arena(*self.unsent[0]):
            os.close(self.unsent.popleft()[1])
        return not self.unsent

    def _send_arena(self, arena: int, fd: int, size: int) -> bool:
        try:
            socket.send_fds(self.sock, [ARENA_FORMAT.pack(b"A", arena, size)], [fd])
        except BlockingIOError:
            return False
        except OSError:
            pass  # it is gone; its exit will be told
        return True

    def receive(self) -> bool:
        """Take what the worker has sent. False when its end is closed, which need not mean that it is dead."""
        try:
            data, fds = receive(self.sock, _READ, 64)
        except (BlockingIOError, InterruptedError):
            return True
        except OSError:
            return False
        if not data:
            return False
        if fds or self._data or data.strip(WAKE):
            self._understand(data, fds)
        return True

    def _understand(self, data: bytes, fds: list[int]) -> None:
        self._fds += fds
        data = self._data + data
        while data:
            if data[:1] == WAKE:
                data = data.lstrip(WAKE)
            elif data[:1] == b"A" and len(data) >= ARENA_FORMAT.size:
                _, arena, size = ARENA_FORMAT.unpack_from(data)
                data = data[ARENA_FORMAT.size :]
                if self._fds:
                    self.arenas.append((arena, self._fds.pop(0), size))
                else:
                    self.deaf = True  # we had no descriptor left to receive it: what it makes cannot be read here
            elif data[:1] == b"A":
                break
            else:  # a task has written to our socket
                data = data[1:]
        self._data = data

    # ── the end ───────────────────────────────────────────────────────────────────────────────────────────────────

    def close(self) -> None:
        """Free everything of it that is ours. It is dead, or will never be born."""
        self.closed = True
        for timer in (self.withdrawal, self.deadline and self.deadline[1]):
            if timer is not None:
                timer.cancel()
        self.withdrawal = self.deadline = None
        for _, fd, _ in (*self.arenas, *self.unsent):
            os.close(fd)
        for fd in self._fds:
            os.close(fd)
        self.arenas, self._fds = [], []
        self.unsent.clear()
        self.sock.close()
        self.handed_over()
        self.page.close()
        self.output.close()

    def __repr__(self) -> str:
        return f"<worker {self.wid}, pid {self.pid}, {len(self.flights)} jobs>"
