"""What a worker's tasks print: one file for the worker's life, read by the engine job by job.

Descriptors 1 and 2 of the worker are one file opened for appending, so everything is in it, in order: Python's prints, C code's,
those of programs that a task starts, and the dump of a segfault. The worker notes how long the file is when a job ends; what was
appended since the job before belongs to this one. The engine alone cuts the file, when nobody writes or too much was written.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from typing import Final

from flowlane_plugins.workers.page import make_file

__all__ = ["Output"]

_TIDY: Final = 1 << 20  # bytes read already that an idle worker's file may keep
_FLOOD: Final = 64 << 20  # bytes that one job may have in the file at a time


class Output:
    """The engine's end. `limit` bytes are kept of what one job prints, the first and the last half."""

    __slots__ = ("_head", "_left_out", "_limit", "_tail", "fd", "read")

    def __init__(self, limit: int) -> None:
        self.fd = make_file("flowlane-output", 0)
        fcntl.fcntl(self.fd, fcntl.F_SETFL, fcntl.fcntl(self.fd, fcntl.F_GETFL) | os.O_APPEND)
        self._limit = limit
        self.read = 0
        self._head = self._tail = b""  # of the running job, from before the file was cut
        self._left_out = 0

    def take(self, end: int) -> str | None:
        """What was printed up to `end`, a length of the file as the worker saw it; None when nothing was."""
        if end <= self.read and not self._head:
            if end >= 0 and end < self.read and os.fstat(self.fd).st_size < self.read:
                self.read = end  # cut by somebody else (a task that truncates its own standard output)
            return None
        self._keep(end)
        head, tail, left_out = self._head, self._tail, self._left_out
        self._head = self._tail = b""
        self._left_out = 0
        text = head.decode("utf-8", "backslashreplace")
        if left_out:
            text += f"\n… {left_out} bytes left out …\n"
        return (text + tail.decode("utf-8", "backslashreplace")) or None

    def rest(self) -> str | None:
        """What was printed up to now: of a worker that has died."""
        return self.take(os.fstat(self.fd).st_size)

    def relieve(self, *, idle: bool) -> None:
        """Cut the file if it has grown long. `idle`: nothing runs, so that all of it has been read."""
        if idle and self.read <= _TIDY:  # nearly always, and without asking the system
            return
        size = os.fstat(self.fd).st_size
        if idle and size == self.read:
            os.ftruncate(self.fd, 0)
            self.read = 0
        elif not idle and size - self.read > _FLOOD:
            self._keep(size)
            os.ftruncate(self.fd, 0)
            self.read = 0

    def _keep(self, end: int) -> None:
        """Read on to `end`, keeping the first and the last half of the limit."""
        half = self._limit // 2
        start = self.read
        if not self._head or len(self._head) < half:
            more = os.pread(self.fd, min(half - len(self._head), max(0, end - start)), start)
            self._head += more
            start += len(more)
        unread = max(0, end - start)
        last = os.pread(self.fd, min(half, unread), max(start, end - half))
        tail = (self._tail + last)[-half:] if half else b""
        self._left_out += len(self._tail) + unread - len(tail)
        self._tail = tail
        self.read = end

    def close(self) -> None:
        with contextlib.suppress(OSError):
            os.close(self.fd)
