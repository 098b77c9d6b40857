"""What the attempts of one run told beside their outcome: CPU time, memory, bytes, pickling time, and what they printed.

Owned by the run's loop thread while the run goes on, read by anybody afterwards. One column of 8 bytes an element a
measure, made when the first value for it comes: a run on executors that measure nothing holds nothing. Each element's
entry is that of its latest attempt.
"""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING, Final

from flowlane.runtime.ports import NEVER

if TYPE_CHECKING:
    from flowlane.runtime.ports import Report

__all__ = ["OUTPUT_KEPT", "Measured", "at"]

#: Characters of output that a run keeps for its result. Sinks get all of it.
OUTPUT_KEPT: Final = 16 << 20


class Measured:
    """Columns by element; empty until something was measured, NEVER where an element's latest attempt was not.

    outputs  element → what its latest attempt printed, where that was captured
    dropped  attempts whose output is not kept, because there was too much before
    workers  element → who ran its latest attempt, for those that did not succeed
    returned element → when its attempt ended (ns), for those that returned work: they end later, with that
    """

    __slots__ = (
        "_left",
        "_size",
        "bytes_in",
        "bytes_out",
        "cpu",
        "dropped",
        "outputs",
        "pickling",
        "returned",
        "rss",
        "workers",
    )

    def __init__(self, size: int) -> None:
        self._size = size
        self._left = OUTPUT_KEPT
        self.cpu = array("q")  # ns
        self.rss = array("q")  # bytes
        self.bytes_in = array("q")
        self.bytes_out = array("q")
        self.pickling = array("q")  # ns
        self.outputs: dict[int, str] = {}
        self.dropped = 0
        self.workers: dict[int, str] = {}
        self.returned: dict[int, int] = {}

    def take(self, element: int, report: Report) -> None:
        """Keep what the final report of an element's latest attempt says, in the place of the attempt before."""
        if report.cpu >= 0 or self.cpu:
            (self.cpu or self._column("cpu"))[element] = report.cpu
        if report.rss >= 0 or self.rss:
            (self.rss or self._column("rss"))[element] = report.rss
        if report.bytes_in >= 0 or self.bytes_in:
            (self.bytes_in or self._column("bytes_in"))[element] = report.bytes_in
        if report.bytes_out >= 0 or self.bytes_out:
            (self.bytes_out or self._column("bytes_out"))[element] = report.bytes_out
        if report.pickling >= 0 or self.pickling:
            (self.pickling or self._column("pickling"))[element] = report.pickling
        if report.output or self.outputs:
            self._print(element, report.output or "")

    def grow(self, size: int) -> None:
        """There are so many elements now."""
        never = array("q", [NEVER]) * (size - self._size)
        for column in (self.cpu, self.rss, self.bytes_in, self.bytes_out, self.pickling):
            if column:
                column.extend(never)
        self._size = size

    def _column(self, name: str) -> array[int]:
        column = array("q", [NEVER]) * self._size
        setattr(self, name, column)
        return column

    def _print(self, element: int, text: str) -> None:
        before = self.outputs.pop(element, None)
        if before is not None:
            self._left += len(before)
        if not text:
            return
        if len(text) > self._left:
            self.dropped += 1
            return
        self._left -= len(text)
        self.outputs[element] = text


def at(column: array[int], element: int) -> int | None:
    """An element's entry, None where there is none."""
    value = column[element] if column else NEVER
    return None if value == NEVER else value
