"""The shared page of one worker: some cells that both sides read at any time, and two queues of records.

The engine makes it, maps it, and hands the worker its descriptor. Each cell has one writer:

    by the engine   JOBS_HEAD, RESULTS_TAIL, LIMIT, SKIP_FROM, SKIP_TO, STOP, WATCHED
    by the worker   JOBS_TAIL, RESULTS_HEAD, STARTED, SINCE, PHASE, PID, FLOOR

A *ring* is a queue with one producer and one consumer. Records are written first and published after, by storing the
new head; so what stands between tail and head is whole, even when the producer was killed in the middle of the next
record. That is why results survive the worker that wrote them. Head and tail count bytes from the start of time and
only grow.

No lock is shared and nobody ever waits for the other side here. Stores of one process are seen in order by the other
(x86 guarantees it; elsewhere each hand-over is followed by a system call on both sides, and nobody polls: see
`POLLING`).

Records are `marshal` data: both sides are the same interpreter, and nothing else encodes small tuples as fast.
"""

from __future__ import annotations

import mmap
import os
import platform
import sys
import tempfile
from marshal import dumps, loads
from typing import Any, Final

__all__ = [
    "BODY",
    "ENCODING",
    "FLOOR",
    "IDLE",
    "LIMIT",
    "LOADING",
    "NO_LIMIT",
    "PHASE",
    "PHASES",
    "PID",
    "POLLING",
    "RECORD_MAX",
    "SINCE",
    "SKIP_FROM",
    "SKIP_TO",
    "STARTED",
    "STOP",
    "WATCHED",
    "Page",
    "Ring",
    "make_file",
]

# Cells, by index.
JOBS_HEAD: Final = 0
JOBS_TAIL: Final = 1
RESULTS_HEAD: Final = 2
RESULTS_TAIL: Final = 3
STARTED: Final = 4  # number of the job begun last
SINCE: Final = 5  # when its phase LOADING, then BODY, began (monotonic ns, one clock for all processes)
PHASE: Final = 6
LIMIT: Final = 7  # the worker begins no job with this number or a higher one
SKIP_FROM: Final = 8  # jobs taken back: the worker drops SKIP_FROM <= number < SKIP_TO
SKIP_TO: Final = 9
STOP: Final = 10  # SIGTERM is meant for the job with this number
PID: Final = 11  # the worker's
WATCHED: Final = 12  # whether the engine looks for its answers without going to sleep
FLOOR: Final = 13  # bytes that the worker held before the latest job whose memory is limited

IDLE: Final = 0
LOADING: Final = 1  # its function and arguments: the body has not begun
BODY: Final = 2
ENCODING: Final = 3  # its result
PHASES: Final = ("idle", "loading", "body", "encoding")

NO_LIMIT: Final = 2**62

#: Whether a side may look for news without a system call: only where the processor keeps stores in order.
POLLING: Final = platform.machine().lower() in ("x86_64", "amd64", "i686", "i386")

_CELLS: Final = 4096  # bytes
_JOBS: Final = 1 << 20
_RESULTS: Final = 1 << 20
_SIZE: Final = _CELLS + _JOBS + _RESULTS

#: Bytes of the longest record: with it and the rest of the last lap skipped, it fits into an empty ring.
RECORD_MAX: Final = (1 << 19) - 16


class Ring:
    """One queue in the page. An instance is used for one end: `put` by the producer, `get` by the consumer."""

    __slots__ = ("_bytes", "_cells", "_head", "_size", "_tail", "_words", "position")

    def __init__(self, cells: memoryview, head: int, tail: int, area: memoryview) -> None:
        self._cells = cells
        self._head = head
        self._tail = tail
        self._bytes = area
        self._words = area.cast("q")
        self._size = len(area)
        self.position = 0  # of this end: a page is used by two ends, once

    def put(self, record: Any) -> bool:
        """Append `record` (marshallable). False when there is no room now; raises ValueError when there never is."""
        data = dumps(record)
        length = len(data)
        size, position = self._size, self.position
        offset = position % size
        needed = (length + 15) & -8  # its length, itself, up to the next word
        rest = size - offset
        skipped = rest if rest < needed else 0
        if length > RECORD_MAX:
            raise ValueError(f"a record of {length} bytes is longer than {RECORD_MAX}")
        if position + skipped + needed - self._cells[self._tail] > size:
            return False
        if skipped:
            self._words[offset >> 3] = -1
            position += skipped
            offset = 0
        self._words[offset >> 3] = length
        self._bytes[offset + 8 : offset + 8 + length] = data
        self.position = self._cells[self._head] = position + needed
        return True

    def get(self) -> Any:
        """The next record, or None when there is none. Its room is given back by `commit`.

        Raises ValueError, EOFError or TypeError when what stands there is no record (somebody wrote into the page).
        """
        position = self.position
        if self._cells[self._head] == position:
            return None
        offset = position % self._size
        length = self._words[offset >> 3]
        if length < 0:
            position += self._size - offset
            offset = 0
            length = self._words[0]
        if not 0 < length <= RECORD_MAX:
            raise ValueError(f"a record of {length} bytes")
        record = loads(self._bytes[offset + 8 : offset + 8 + length])  # noqa: S302 - by our other half, in memory that only it has
        self.position = position + ((length + 15) & -8)
        return record

    def commit(self) -> None:
        """Give back the room of what was read."""
        self._cells[self._tail] = self.position

    @property
    def news(self) -> bool:
        """Whether `get` would find something."""
        return bool(self._cells[self._head] != self.position)

    def release(self) -> None:
        self._words.release()
        self._bytes.release()


class Page:
    """One side's mapping of a page. `fd` stays the caller's; the mapping does not need it any more."""

    __slots__ = ("_map", "_whole", "cells", "jobs", "results")

    def __init__(self, fd: int) -> None:
        self._map = mmap.mmap(fd, _SIZE)
        self._whole = memoryview(self._map)
        cells = self.cells = self._whole[:_CELLS].cast("q")
        jobs, results = self._whole[_CELLS : _CELLS + _JOBS], self._whole[_CELLS + _JOBS :]
        self.jobs = Ring(cells, JOBS_HEAD, JOBS_TAIL, jobs)
        self.results = Ring(cells, RESULTS_HEAD, RESULTS_TAIL, results)

    @classmethod
    def make(cls) -> tuple[Page, int]:
        """A fresh page, and a descriptor of it for the worker. Raises OSError."""
        fd = make_file("flowlane-page", _SIZE)
        try:
            page = cls(fd)
        except BaseException:
            os.close(fd)
            raise
        page.cells[STARTED] = -1
        page.cells[STOP] = -1
        page.cells[LIMIT] = NO_LIMIT
        return page, fd

    def close(self) -> None:
        """Unmap. Nothing of it may be used afterwards."""
        self.jobs.release()
        self.results.release()
        self.cells.release()
        self._whole.release()
        self._map.close()


def make_file(name: str, size: int) -> int:
    """The descriptor of a file without a name, `size` bytes of zeros, that goes when its last descriptor does.

    In memory where the system can (`memfd_create`), else in the folder for temporary files. Raises OSError.
    """
    if sys.platform == "linux" and hasattr(os, "memfd_create"):
        fd = os.memfd_create(name, os.MFD_CLOEXEC)
    else:
        fd, path = tempfile.mkstemp(prefix=f"{name}-")
        os.unlink(path)
    try:
        os.ftruncate(fd, size)
    except BaseException:
        os.close(fd)
        raise
    return fd
