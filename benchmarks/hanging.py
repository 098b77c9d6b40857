"""Tasks that never return, in the ways that are hardest to end. Each says first who it is and when it began.

The diary is the tasks' own: ``number pid monotonic_ns``, a line each, in a file opened with O_APPEND. A measurement so
never has to believe the engine about when something began or which process it was in.
"""

from __future__ import annotations

import os
import re
import signal
import time
from collections import deque
from itertools import repeat
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["HANGING", "Begun", "note", "read"]


class Begun(NamedTuple):
    """A line of the diary."""

    number: int
    pid: int
    mono_ns: int


def note(diary: str, number: int) -> None:
    """Write down that task `number` begins, here and now."""
    line = f"{number} {os.getpid()} {time.monotonic_ns()}\n"
    fd = os.open(diary, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(fd, line.encode())
    finally:
        os.close(fd)


def read(diary: str) -> list[Begun]:
    """All lines so far."""
    try:
        with open(diary, encoding="ascii") as file:
            return [Begun(*map(int, line.split())) for line in file]
    except FileNotFoundError:
        return []


def spin_in_c(diary: str, number: int) -> None:
    """A regular expression that backtracks for ages: C code that never lets the GIL go, and looks for signals at times."""
    note(diary, number)
    re.match(r"(a+)+$", "a" * 64 + "b")


def endless_c(diary: str, number: int) -> None:
    """C code that never looks for signals: what Python would do about SIGTERM is never done."""
    note(diary, number)
    deque(repeat(0), maxlen=0)


def sleep(diary: str, number: int) -> None:
    """Blocked in a system call."""
    note(diary, number)
    time.sleep(3600)


def stopped(diary: str, number: int) -> None:
    """Its whole process is stopped: SIGTERM stays pending, only SIGKILL gets through."""
    note(diary, number)
    os.kill(os.getpid(), signal.SIGSTOP)
    time.sleep(3600)


def deaf(diary: str, number: int) -> None:
    """Ignores SIGTERM, and computes."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    note(diary, number)
    re.match(r"(a+)+$", "a" * 64 + "b")


HANGING: Final[dict[str, Callable[[str, int], None]]] = {
    "spin in C": spin_in_c,
    "endless C": endless_c,
    "sleep": sleep,
    "stopped": stopped,
    "deaf": deaf,
}
