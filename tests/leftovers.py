"""What a test may leave behind, and must not: processes, threads, descriptors, shared memory of this process's tree. Linux."""

from __future__ import annotations

import contextlib
import gc
import os
import threading
import time
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    from collections.abc import Generator


@contextlib.contextmanager
def nothing_left() -> Generator[None]:
    """Fail unless all that was there after the block was there before it."""
    threads, processes = {t.ident for t in threading.enumerate()}, children()
    fds, shm = descriptors(), shared_memory()
    yield
    assert left_over(threads, processes, fds, shm) == []


def children() -> set[int]:
    """Processes below this one, the resource trackers of multiprocessing and loky left out."""
    found: set[int] = set()
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if not any("resource_tracker" in word for word in child.cmdline()):
                found.add(child.pid)
    return found


def descriptors() -> dict[str, str]:
    """Open descriptors of this process → what they are."""
    found: dict[str, str] = {}
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            found[fd] = os.readlink(f"/proc/self/fd/{fd}")
    return {fd: what for fd, what in found.items() if "/proc/" not in what}


def shared_memory() -> set[str]:
    """What of ours has a name there: nothing ever should. (Other programs use it too, so only our names count.)"""
    return {name for name in os.listdir("/dev/shm") if "flowlane" in name} if os.path.isdir("/dev/shm") else set()


def left_over(
    threads: set[int | None], processes: set[int], fds: dict[str, str], shm: set[str], patience: float = 20.0
) -> list[str]:
    """What is there now and was not before, after waiting for it to go."""
    deadline = time.monotonic() + patience
    while True:
        gc.collect()
        left = [f"thread {t.name}" for t in threading.enumerate() if t.ident not in threads]
        left += [f"process {pid}" for pid in children() - processes]
        left += [f"descriptor {fd} {what}" for fd, what in descriptors().items() if fds.get(fd) != what]
        left += [f"shared memory {name}" for name in shared_memory() - shm]
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(0.02)
