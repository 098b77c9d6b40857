"""From one thread to another without a lock: rows of history, and words about them, in order and in chunks.

The journal and the recorder are each a mailbox with something behind it. One thread at a time, the loop's as a rule, calls
`append` and `put`; a daemon thread of the mailbox's own groups what has come into chunks of one stream each (at most
`chunk_rows`, or what came within `linger` seconds; a step is never cut) and calls its owner: `take` with rows, `control` with
a word. Per stream the order of both is kept. What these two raise is their own affair to catch: it would end the thread.

How the two threads meet: each counter has one writer (`appended` who appends, `consumed` the mailbox's thread). Who appends
*appends, counts, then* tests `_wake_at`; the thread *clears the bell, sets* `_wake_at`, *then* looks at the queue and the count.
Whichever comes second sees the other, so no wake-up is lost. Likewise a word that is urgent is appended before it is called
so, and the thread forgets that there was one before it reads the queue: either it reads the word, or it is still in a hurry.
"""

from __future__ import annotations

import threading
from collections import deque
from typing import TYPE_CHECKING, Final, Generic, TypeVar, cast

if TYPE_CHECKING:
    from collections.abc import Callable

    from flowlane.core.messages import Transition
    from flowlane.runtime.ports import Report

__all__ = ["CHUNK_ROWS", "LINGER", "Mailbox", "Reports", "Stream"]

#: Rows in a chunk. Fewer cost more wake-ups and write calls, and cut the larger steps of busy runs in two. More gain
#: nothing and hold the GIL, and with it the loop, for longer at a stretch than the 1 ms that these take as JSON lines.
CHUNK_ROWS: Final = 1_000
#: Seconds a row may wait for company. Shorter wakes the thread more often; people do not see 10 ms.
LINGER: Final = 0.010

_NOW: Final = 0  # for _wake_at: any append rings
_NOT: Final = 1 << 62  # no append rings

Reports = dict[tuple[int, int], "Report"]


class Stream:
    """Whose rows they are, one for each run: owners derive from it. What is here belongs to the mailbox's thread."""

    __slots__ = ("reports", "rows")

    def __init__(self) -> None:
        self.rows: list[Transition] = []
        self.reports: Reports = {}


S = TypeVar("S", bound=Stream)
W = TypeVar("W")


def _never() -> None:
    return None


class Mailbox(Generic[S, W]):
    """Starts nothing by itself.

    name        of the thread
    take        gets rows of a stream and the reports that belong to them; they are its own from then on
    control     gets a word, after all rows that came before it
    attend      is called between chunks, and while there are none; returns in how many seconds it wants to be called again,
                at the latest, or None when that may be left to the next chunk
    ended       is called when nothing more will come
    """

    __slots__ = (
        "_attend",
        "_bell",
        "_chunk_rows",
        "_control",
        "_ended",
        "_linger",
        "_name",
        "_queue",
        "_take",
        "_thread",
        "_urgent",
        "_wake_at",
        "appended",
        "closing",
        "consumed",
    )

    def __init__(
        self,
        name: str,
        take: Callable[[S, list[Transition], Reports], object],
        control: Callable[[S, W], object],
        *,
        attend: Callable[[], float | None] = _never,
        ended: Callable[[], object] = _never,
        chunk_rows: int = CHUNK_ROWS,
        linger: float = LINGER,
    ) -> None:
        self._name = name
        self._take = take
        self._control = control
        self._attend = attend
        self._ended = ended
        self._chunk_rows = chunk_rows
        self._linger = linger
        self._queue: deque[tuple[S, list[Transition] | None, Reports | W]] = deque()
        self._bell = threading.Event()
        self._thread: threading.Thread | None = None
        self._wake_at = _NOT
        self._urgent = False
        self.closing = False
        self.appended = 0  # rows
        self.consumed = 0  # rows that `take` has returned from

    # ── who appends ───────────────────────────────────────────────────────────────────────────────────────────────

    def start(self) -> None:
        """Start the thread, unless it was started already. Raises RuntimeError when there is none to be had."""
        if self._thread is None:
            thread = threading.Thread(target=self._work, name=self._name, daemon=True)
            thread.start()
            self._thread = thread

    def append(self, stream: S, rows: list[Transition], reports: Reports) -> None:
        """Hand over the rows of one step, at least one. Never blocks, and wakes nobody who did not ask for it."""
        self._queue.append((stream, rows, reports))
        self.appended = appended = self.appended + len(rows)
        if appended >= self._wake_at:
            self._wake_at = _NOT
            self._bell.set()

    def put(self, stream: S, word: W, *, urgent: bool = False) -> None:
        """Hand over a word; with `urgent`, neither it nor the rows before it wait for company. Never blocks."""
        self._queue.append((stream, None, word))
        if urgent:
            self._urgent = True
        self._ring()

    def close(self, timeout: float | None = None) -> None:
        """Have what is left handled, end the thread and wait for it, at most `timeout` seconds. Idempotent.

        Nothing may be handed over afterwards. From the mailbox's own thread it does not wait.
        """
        self.closing = True
        self._ring()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout)

    @property
    def started(self) -> bool:
        """Whether there is or was a thread."""
        return self._thread is not None

    @property
    def alive(self) -> bool:
        """Whether the thread is there. Any thread."""
        return self._thread is not None and self._thread.is_alive()

    def _ring(self) -> None:
        self._wake_at = _NOT
        self._bell.set()

    # ── the thread ────────────────────────────────────────────────────────────────────────────────────────────────

    def _work(self) -> None:
        bell, queue = self._bell, self._queue
        while True:
            pause = self._attend()
            bell.clear()
            self._wake_at = _NOW
            if not queue and not self.closing:
                while not bell.wait(pause):
                    pause = self._attend()
                bell.clear()
            # Something has come. Unless somebody waits for it, let more come: one chunk of 1,000 rows costs a fraction
            # of 1,000 chunks of one, and holds up the loop once.
            self._wake_at = wake_at = self.consumed + self._chunk_rows
            if self.appended < wake_at and not self._urgent and not self.closing:
                bell.wait(self._linger)
            self._wake_at = _NOT
            self._urgent = False
            self._drain()
            if self.closing and not queue:
                self._ended()
                return

    def _drain(self) -> None:
        """Hand on what is in the queue now."""
        queue, most = self._queue, self._chunk_rows
        filled: dict[S, None] = {}
        for _ in range(len(queue)):
            stream, rows, what = queue.popleft()
            if rows is None:
                self._flush(stream)
                self._control(stream, cast("W", what))
                continue
            if len(stream.rows) + len(rows) > most:
                self._flush(stream)
            stream.rows += rows
            stream.reports.update(cast("Reports", what))
            filled[stream] = None
        for stream in filled:
            self._flush(stream)

    def _flush(self, stream: S) -> None:
        rows, reports = stream.rows, stream.reports
        if rows:
            stream.rows, stream.reports = [], {}
            self._take(stream, rows, reports)
            self.consumed += len(rows)
