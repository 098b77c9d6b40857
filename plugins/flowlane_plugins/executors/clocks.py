"""Times that workers on other machines measured, told by the clock of this one.

Every time of ours is ``time.monotonic_ns()``, which counts from when a machine was started: it means nothing on another. Two
things are known of each message from a worker. It was sent before it came here, and the job it speaks of was begun after
it was sent from here. Each message narrows the difference of the two clocks down from both sides, by what it took to
travel; the smallest difference that the messages allow is taken, so times err to the late side, by the quickest way from
that worker to here. A worker on this machine (same boot) has this machine's clock, and nothing is guessed.

Used by the thread that takes a cluster's messages.
"""

from __future__ import annotations

import socket
from typing import Final

__all__ = ["Clocks", "machine"]

_FORGOTTEN: Final = 1_000  # machines; a cluster that grows and shrinks meets many


def machine() -> str:
    """A name for this machine since it was started: processes that tell the same one share a clock."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return file.read().strip()
    except OSError:  # not Linux: then the host's name tells other machines from this one, if not other boots
        return socket.gethostname()


class Clocks:
    """What is known of other machines' clocks."""

    def __init__(self) -> None:
        self._here = machine()
        self._bounds: dict[str, tuple[int, int]] = {}  # machine → least and greatest of (our clock - its clock)

    def shift(self, host: str, *, submitted: int, started: int, sent: int, received: int) -> int:
        """What to add to times of the machine `host` to have them in ours, in ns.

        `submitted` and `received` are ours; `started` (after `submitted`) and `sent` (before `received`) are its own.
        """
        if host == self._here:
            return 0
        low, high = self._bounds.get(host, (submitted - started, received - sent))
        low, high = max(low, submitted - started), min(high, received - sent)
        if low > high:  # a clock drifts, or the machine slept: what was known before is no longer so
            low, high = submitted - started, received - sent
        if len(self._bounds) >= _FORGOTTEN:
            self._bounds.clear()
        self._bounds[host] = low, high
        return high
