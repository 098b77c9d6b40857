"""The watchdog: a thread that sees when a step of some Task keeps an event loop from turning, and says whose, while it lasts.

It looks several times within the threshold. Each time that it finds the loop at work it sends it a *ping*, a callback that only
says "turned". A loop that is idle is left asleep; one that is at work answers at the end of its turn; one that is held does
not answer. So there is no timer on the loop, no work per job, and no doubt about idleness: whatever kind of loop it is, only
a missing answer counts. A hold is charged to a Task only when every look since saw that same Task current: a turn of
many short steps is nobody's fault.

What time does not count. When this thread itself wakes late, everybody may have stood still: the process was stopped, the
machine suspended or overloaded. Such a gap is taken out of the account, unless the loop's thread was on the CPU during it
(a clock of the kernel's tells). Then it was in a call that keeps the interpreter's lock, so that nobody else could run,
and that is a hold like any other, told when it is over. A gap in which another thread computed is told as what it is.

Threads: `begin`, `over` and the ping's answer run on the loop's thread, all else on the watchdog's own. They share plain
attributes and `holds`, a deque, each step on them atomic. The thread exists while there are jobs and a moment longer.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from asyncio.base_events import BaseEventLoop
from collections import deque
from dataclasses import dataclass
from time import monotonic_ns
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from flowlane_plugins.executors import whereabouts

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

__all__ = ["Hold", "Suspect", "Watchdog"]

_LOOKS: Final = 6  # within the threshold; what lasts a sixth longer than it is noticed while it lasts, for certain
_STRANGERS_PACE: Final = 1_000_000_000  # ns between two complaints about what is none of ours
_RUN_ONCE: Final = getattr(BaseEventLoop, "_run_once").__code__  # noqa: B009 - what waits and calls back in asyncio's own loops
_NEVER: Final = -1


class Suspect(NamedTuple):
    """Whose Task it is. `ref` is None for one that belongs to no job that is out; `excused`: its blocking is no news."""

    name: str
    ref: int | None = None
    excused: bool = False


@dataclass(slots=True)
class Hold:
    """A hold that was told while it lasted. `until` is NEVER as long as its Task was current at every look."""

    ref: int
    since: int
    where: str
    until: int = _NEVER

    @property
    def note(self) -> str:
        return f"held the event loop for {whereabouts.lasting(self.until - self.since)}{self.where}"


class Watchdog:
    """Watches the running loop; made on its thread.

    after   seconds that one step may take
    whose   whose Task that is, None for nobody's we know; asked on the watchdog's thread
    out     whether jobs are out; likewise
    freed   called on the loop, from a plain callback, when `holds` may have some that are over
    """

    def __init__(
        self,
        after: float,
        *,
        whose: Callable[[asyncio.Task[Any]], Suspect | None],
        out: Callable[[], bool],
        freed: Callable[[], None],
    ) -> None:
        self.holds: deque[Hold] = deque()  # told, not reported yet
        self._loop = asyncio.get_running_loop()
        self._ident = threading.get_ident()
        self._after = int(after * 1e9)
        self._pause = after / _LOOKS
        self._whose = whose
        self._out = out
        self._freed = freed
        # The kernel's clock of this very thread. Its number stays valid to ask for when the thread has ended, unlike its ident.
        clock: Any = getattr(time, "pthread_getcpuclockid", None)
        self._clock: int | None = clock(self._ident) if clock is not None else None
        self._logger = logging.getLogger("flowlane.engine")
        self._stop = threading.Event()
        self._starting = threading.Lock()
        self.thread: threading.Thread | None = None  # None: nobody watches
        # the ping: one at a time
        self._unanswered = False
        self._row = 0  # since when it is unanswered, without what was told
        # the Task that was current at the latest look, and since which look
        self._task: asyncio.Task[Any] | None = None
        self._since = 0
        self._told = False
        self._strangers_at = -_STRANGERS_PACE

    # ── on the loop's thread ──────────────────────────────────────────────────────────────────────────────────────

    def begin(self) -> None:
        """Start watching. To be called when `thread` is None and jobs are about to begin, so that `out` is true already."""
        with self._starting:
            if self.thread is not None:
                return
            thread = threading.Thread(target=self._watch, args=(monotonic_ns(),), name="flowlane-watchdog", daemon=True)
            self.thread = thread
        try:
            thread.start()
        except RuntimeError:  # the system has no thread for us: nothing depends on being watched
            self.thread = None

    def _answer(self) -> None:
        self._unanswered = False
        if self.holds:
            self._freed()

    def over(self) -> list[Hold]:
        """The holds that were told and are over, which on the loop, outside any Task's step, is all of them."""
        now = monotonic_ns()
        holds = [self.holds.popleft() for _ in range(len(self.holds))]
        for hold in holds:
            if hold.until == _NEVER:
                hold.until = now
        return holds

    async def close(self) -> None:
        """End the thread; waits for it a moment only, since it may be inside somebody's log handler."""
        self._stop.set()
        pause = 0.0005
        while self.thread is not None and pause < 0.1:
            await asyncio.sleep(pause)
            pause *= 2

    # ── in the watchdog's thread ──────────────────────────────────────────────────────────────────────────────────

    def _watch(self, before: int) -> None:
        pause_ns = int(self._pause * 1e9)
        quiet = 0  # looks in a row that found no job
        on_cpu, all_cpu = self._on_cpu(), time.process_time_ns()
        while not self._stop.wait(self._pause):
            now, on_cpu_now, all_cpu_now = monotonic_ns(), self._on_cpu(), time.process_time_ns()
            if not self._out():
                quiet += 1  # not at once: jobs come in bursts, and a thread costs 0.1 ms to start
                if quiet > _LOOKS and self._ended():
                    return
            elif not self._look(now, now - before - pause_ns, on_cpu_now - on_cpu, all_cpu_now - all_cpu):
                break
            else:
                quiet = 0
            before, on_cpu, all_cpu = monotonic_ns(), self._on_cpu(), time.process_time_ns()
        self.thread = self._task = None

    def _ended(self) -> bool:
        """Say that this thread is ending; False when jobs came that had counted on it meanwhile."""
        me, self._task = self.thread, None
        self.thread = None
        if not self._out():
            return True
        with self._starting:
            if self.thread is not None:
                return True  # it was seen in time that another is needed
            self.thread = me
            return False

    def _on_cpu(self) -> int:
        if self._clock is not None:
            try:
                return time.clock_gettime_ns(self._clock)
            except OSError:  # the loop's thread has ended
                self._clock = None
        return 0

    def _look(self, now: int, late: int, on_cpu: int, all_cpu: int) -> bool:
        """One look at the loop. False when the loop is closed."""
        stood_still = late > self._after // _LOOKS
        kept_us_out = stood_still and on_cpu > late // 2
        if stood_still and not kept_us_out:
            self._row += late
            self._since += late
            if late >= self._after and all_cpu > late // 2:
                self._tell_stranger(
                    now,
                    f"no Python code ran for {whereabouts.lasting(late)}: a call in another thread than the event loop's kept "
                    "the interpreter's lock",
                )
        task = asyncio.current_task(self._loop)  # may be asked from any thread
        before = now - late if stood_still else now
        began = before if kept_us_out else now  # who is current after such a gap was most likely the one that made it
        if self._unanswered:
            if task is not self._task:
                self._changed(task, before, began)
        elif task is not None or not self._asleep():
            self._changed(task, before, began)
            self._row = began
            self._unanswered = True
            if not self._call_soon(self._answer):
                return False
        else:
            self._changed(None, before, now)
            if kept_us_out and late >= self._after:
                self._tell_stranger(
                    now,
                    f"the event loop stood still for {whereabouts.lasting(late)}, in a call that kept the interpreter's lock",
                )
            return True
        if self._told:
            return True
        if now - self._since >= self._after:
            self._tell(task, now, past=kept_us_out)
        elif now - self._row >= 2 * self._after:
            lasted, self._row = whereabouts.lasting(now - self._row), now
            self._tell_stranger(now, f"the event loop has not turned for {lasted}: many short steps in a row")
        return True

    def _call_soon(self, callback: Callable[[], None]) -> bool:
        try:
            self._loop.call_soon_threadsafe(callback)
        except RuntimeError:  # closed
            return False
        return True

    def _changed(self, task: asyncio.Task[Any] | None, before: int, now: int) -> None:
        """Another Task is current, or the loop has turned: what went on ended at `before`, what goes on began at `now`."""
        for hold in tuple(self.holds):  # in one go: the loop takes them out meanwhile
            if hold.until == _NEVER:
                hold.until = before
        if self._told:
            self._row = now
        self._task, self._since, self._told = task, now, False

    def _asleep(self) -> bool:
        """Whether asyncio's own loop waits for something to happen. Of another kind of loop nobody knows: it is asked."""
        frame = whereabouts.innermost(self._ident)
        return (
            frame is not None
            and frame.f_code.co_name in ("select", "_poll")
            and frame.f_back is not None
            and frame.f_back.f_code is _RUN_ONCE
        )

    def _tell(self, task: asyncio.Task[Any] | None, now: int, *, past: bool) -> None:
        """Tell of the step that goes on, or of one in the `past`, that told nobody before it was over."""
        frames = self._frames(task)
        place = whereabouts.of_frames(frames)
        debugged = whereabouts.at_debugger(frames)
        del frames
        suspect = self._whose(task) if task is not None else None
        over = not self._unanswered or asyncio.current_task(self._loop) is not task
        if over and not past:
            return  # all that may have been of something else
        self._told = True
        if debugged:
            return
        where = f" at {place}" if place is not None else ""
        lasted = whereabouts.lasting(now - self._since)
        if suspect is None:
            who = "a callback" if task is None else f"'{task.get_name()}'"
            if not over:
                who += ", which is not a task of this run"
            self._tell_stranger(now, f"the event loop has been held for {lasted}{where} by {who}")
        elif not suspect.excused:
            if suspect.ref is not None:
                self.holds.append(Hold(suspect.ref, self._since, where))
                if not self._unanswered:  # over just now: no answer will come that finds it
                    self._changed(None, now, now)
                    self._call_soon(self._freed)
            self._logger.warning(
                "task '%s' has held the event loop for %s%s: nothing else on it runs meanwhile (hint: await something "
                "asynchronous there, or make it a plain `def`, which runs in a thread)",
                suspect.name,
                lasted,
                where,
            )

    def _tell_stranger(self, now: int, what: str) -> None:
        if now - self._strangers_at >= _STRANGERS_PACE:
            self._strangers_at = now
            self._logger.warning("%s", what)

    def _frames(self, task: asyncio.Task[Any] | None) -> list[FrameType]:
        """What runs on the loop's thread within the step of `task` (or within a callback), innermost first."""
        last = getattr(task.get_coro(), "cr_frame", None) if task is not None else None
        frames: list[FrameType] = []
        frame = whereabouts.innermost(self._ident)
        while frame is not None and frame.f_code is not _RUN_ONCE:
            frames.append(frame)
            if frame is last:
                break
            frame = frame.f_back
        return frames
