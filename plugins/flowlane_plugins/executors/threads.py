"""The `threads` executor: our own daemon threads, fed through one deque, answering through one outbox.

Why not ThreadPoolExecutor: its threads are joined at interpreter exit, so one stuck call hangs the program; it wakes a
thread for every job; and each answer costs a future and a wake-up of the loop.

State, reached from the loop thread and the workers, each step of it one atomic container operation. One lock, `_order`, is held
for an instant where two steps belong together. It is never held while the loop's thread delivers: that may carry out the next
steps of a run then and there, the first step of somebody's coroutine among them.

- `_jobs`: submitted, not begun. A worker takes from the left.
- `_running`: ref → (start, the worker's number, task). Whoever pops an entry owns the job's outcome: the worker when the call
  returns, or the loop when it gives the job up.
- `_out`: refs whose outcome nobody owns yet. One that is neither in `_jobs` nor in `_running` is just between the two.
- `_outbox`: reports not handed over yet. A worker that has more jobs at hand leaves its report there and goes on; the one
  that finds no more hands over everything. Thus a burst of short jobs costs one wake-up of the loop. While the loop tells of
  starts (`_telling`), reports stay there until it has: an end is never told before its start.
- `_asleep`: workers about to block on `_wake`. A worker adds itself *first*, then looks at `_jobs` once more, then blocks;
  so a submit either is seen by that look or sees the sleeper.
- `_lost`: threads whose job was given up. A thread cannot be killed. A job told to stop has the grace period to return by
  itself; then it is ABANDONED, and where its thread stands is told. The thread no longer counts, a new one may take its
  place, and it ends by itself if the call ever returns. While too many are lost, no new job begins: it is told who they are.

A submit wakes one worker. A tick of the loop, a millisecond later, sees how far it got and wakes or starts as many more as
there are jobs left: short jobs never pay for 32 threads, and blocking ones wait a millisecond at most. The same tick hands
over what lies in the outbox and tells STARTED of jobs that have been running for a while.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections import Counter, deque
from time import monotonic_ns, thread_time_ns
from typing import TYPE_CHECKING, Final

from flowlane.errors import Failure, FlowError
from flowlane.runtime.ports import (
    ABANDONED,
    FAILED,
    INTERRUPTED,
    NEVER,
    NOTED,
    STARTED,
    SUCCEEDED,
    Capabilities,
    Report,
)
from flowlane_plugins.executors import whereabouts
from flowlane_plugins.executors.patience import Patience
from flowlane_plugins.executors.plain import plain

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from flowlane.runtime.ports import Job

__all__ = ["ThreadsExecutor"]

# The first look after a submit, and the pace of looking while jobs wait or run untold: long enough for a hundred short
# jobs to end in between, short enough that nobody notices.
_TICK = 0.001
_LATER_TICK = 0.004

_SPARE: Final = 4  # lost threads for each slot, unless told otherwise: some hundred idle stacks, and far from any limit
_CULPRITS: Final = 4  # told of in one message


class ThreadsExecutor:
    """Runs plain functions that wait (files, sockets, databases).

    slots          how many at a time (default 32)
    max_abandoned  while so many threads run jobs that were given up, new jobs fail at once (default four times the slots)
    """

    def __init__(self, slots: int | None = None, max_abandoned: int | None = None) -> None:
        self._slots = slots or 32
        self._max_lost = self._slots * _SPARE if max_abandoned is None else max_abandoned
        if self._max_lost < 1:
            raise ValueError(f"max_abandoned must be at least 1, not {max_abandoned!r}")
        self.capabilities = Capabilities(accepts=frozenset({"sync"}), default_slots=self._slots, interruptible=False)
        self._jobs: deque[Job] = deque()
        self._running: dict[int, tuple[int, int, str]] = {}
        self._out: set[int] = set()
        self._told: set[int] = set()  # refs whose STARTED was told; loop thread only
        self._outbox: deque[Report] = deque()
        self._order = threading.Lock()
        self._telling = self._withheld = False
        self._asleep: set[int] = set()
        self._wake: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._threads: dict[int, threading.Thread] = {}
        self._lost: dict[int, str] = {}  # number of the thread → the task whose attempt it runs
        self._started = 0
        self._ticking = False

    @property
    def abandoned(self) -> int:
        """How many jobs were given up and still run, each in a thread that nobody counts on any more. Any thread."""
        return len(self._lost)

    async def open(self, deliver: Callable[[Sequence[Report]], None]) -> None:
        self._deliver = deliver
        self._loop = asyncio.get_running_loop()
        self._patience = Patience(self._loop, self._give_up)
        self._ticking = False  # a tick that an earlier loop was closed under never came

    def submit(self, jobs: Sequence[Job]) -> None:
        if len(self._lost) >= self._max_lost:
            self._refuse([job.ref for job in jobs], self._too_many_lost())
            return
        self._out.update([job.ref for job in jobs])
        self._jobs.extend(jobs)
        if self._asleep:
            self._wake.put(True)
        elif not self._threads:
            self._start_thread()
        if not self._ticking:
            self._ticking = True
            self._loop.call_later(_TICK, self._tick)

    def _start_thread(self) -> None:
        self._started += 1
        number = self._started
        thread = threading.Thread(target=self._work, args=(number,), name=f"flowlane-thread-{number}", daemon=True)
        self._threads[number] = thread
        try:
            thread.start()
        except RuntimeError as error:  # the system has no thread for us: those there are carry on
            del self._threads[number]
            if len(self._threads) == len(self._lost):  # there is none that could
                refs = [self._jobs.popleft().ref for _ in range(len(self._jobs))]
                self._out.difference_update(refs)
                self._refuse(refs, error)

    def _refuse(self, refs: Sequence[int], error: Exception) -> None:
        """Nobody can run these."""
        now, failure = monotonic_ns(), Failure.of(error.with_traceback(None))
        self._deliver([Report(ref, FAILED, NEVER, now, failure=failure) for ref in refs])

    def _too_many_lost(self) -> FlowError:
        lost = self._lost.copy()
        stand = Counter([f"{task}{self._where(number)}" for number, task in lost.items()])
        told = [f"{what} ({count} times)" if count > 1 else what for what, count in stand.most_common(_CULPRITS)]
        if len(stand) > _CULPRITS:
            told.append("…")
        return FlowError(
            f"no thread for it: {len(lost)} threads still run attempts that were given up: {'; '.join(told)}",
            hint="give blocking calls a timeout of their own; `max_abandoned` of the threads executor says how many may hang",
        )

    def _where(self, number: int) -> str:
        """`` at file:line in function``, where a thread stands in a task's code; empty when it does not any more."""
        thread = self._threads.get(number)
        place = whereabouts.of_thread(thread.ident, ThreadsExecutor._work.__code__) if thread is not None else None
        return f" at {place}" if place is not None else ""

    # ── in the worker threads ─────────────────────────────────────────────────────────────────────────────────────

    def _work(self, number: int) -> None:
        jobs, running, outbox, asleep = self._jobs, self._running, self._outbox, self._asleep
        worker = f"thread-{number}"
        while True:
            try:
                job = jobs.popleft()
            except IndexError:
                self._hand_over()
                asleep.add(number)
                told_to_end = not jobs and not self._wake.get()
                asleep.discard(number)
                if told_to_end:
                    break
                continue
            ref = job.ref
            before = thread_time_ns()
            started = monotonic_ns()
            running[ref] = (started, number, job.task)
            context, target = job.context, job.target
            try:
                if context is None:
                    value = plain(target, target.fn(*job.args, **job.kwargs))
                else:
                    value = plain(target, context.run(target.fn, *job.args, **job.kwargs))
                report = Report(ref, SUCCEEDED, started, monotonic_ns(), value, None, worker)
                value = None
            except BaseException as error:  # noqa: BLE001 - SystemExit and KeyboardInterrupt too: a task must not end a worker
                report = Report(ref, FAILED, started, monotonic_ns(), None, Failure.of(error), worker)
            report.cpu = thread_time_ns() - before
            # While this thread sleeps, it must not keep the arguments alive, nor what the task left in its context.
            del job, context, target
            with self._order:
                owned = running.pop(ref, None) is not None
                if owned:
                    self._out.discard(ref)
                    outbox.append(report)
                else:
                    self._lost.pop(number, None)
            if not owned:
                break  # given up: another thread has this one's place
            del report
        self._threads.pop(number, None)

    def _hand_over(self) -> None:
        """Deliver what lies in the outbox, unless the loop is about to. A worker."""
        if self._outbox:
            # Delivering from here only leaves a message for the loop. The lock keeps the loop from telling of starts meanwhile.
            with self._order:
                if self._telling:
                    self._withheld = True
                elif reports := self._taken():
                    self._deliver(reports)

    def _taken(self) -> list[Report]:
        outbox = self._outbox
        return [outbox.popleft() for _ in range(len(outbox))]

    # ── on the loop ───────────────────────────────────────────────────────────────────────────────────────────────

    def _tick(self) -> None:
        waiting = len(self._jobs)
        if waiting:
            sleepers = len(self._asleep)
            for _ in range(min(waiting, sleepers)):
                self._wake.put(True)
            room = self._slots - (len(self._threads) - len(self._lost))
            for _ in range(min(waiting - sleepers, room)):
                self._start_thread()
        self._tell()
        if self._jobs or self._outbox:
            self._loop.call_later(_TICK, self._tick)
        elif waiting or len(self._out) > len(self._told):
            self._loop.call_later(_LATER_TICK, self._tick)
        else:
            self._ticking = False

    def _tell(self) -> None:
        """Deliver what lies in the outbox, then the starts of jobs that go on."""
        with self._order:
            self._telling = True
            reports = self._taken()
            running = self._running.copy()
        told = self._told
        if told:
            told.intersection_update(running)
        for ref, (started, number, _) in running.items():
            if ref not in told:
                told.add(ref)
                reports.append(Report(ref, STARTED, started, worker=f"thread-{number}"))
        try:
            if reports:
                self._deliver(reports)
        finally:
            with self._order:
                self._telling, withheld, self._withheld = False, self._withheld, False
            if withheld:
                self._loop.call_soon(self._tell)

    def interrupt(self, refs: Sequence[int], grace: float) -> None:
        """Take back what is queued; what runs may return within the grace, for nothing could make it stop."""
        self._take_back(refs)
        self._patience.ask([ref for ref in refs if ref in self._out], grace)

    def _take_back(self, refs: Sequence[int]) -> None:
        queued = {job.ref: job for job in self._jobs.copy()}
        now = monotonic_ns()
        answers: list[Report] = []
        for ref in refs:
            job = queued.get(ref)
            if job is not None:
                try:
                    self._jobs.remove(job)
                except ValueError:
                    continue  # a worker has just taken it
                self._out.discard(ref)
                answers.append(Report(ref, INTERRUPTED, NEVER, now))
        if answers:
            self._deliver(answers)

    def _give_up(self, refs: Sequence[int]) -> None:
        """Answer for jobs that run. One that a worker has taken and not begun yet is asked about again a moment later."""
        answers: list[Report] = []
        between: list[int] = []
        for ref in refs:
            with self._order:  # the worker must not find its job gone before it counts as lost
                entry = self._running.pop(ref, None)
                if entry is not None:
                    self._lost[entry[1]] = entry[2]
                    self._out.discard(ref)
            if entry is None:
                if ref in self._out:
                    between.append(ref)
                continue
            started, number, _ = entry
            now, worker = monotonic_ns(), f"thread-{number}"
            note = f"did not return and was given up; its thread goes on{self._where(number)}"
            answers.append(Report(ref, NOTED, started, now, worker=worker, note=note))
            answers.append(Report(ref, ABANDONED, started, now, worker=worker))
        if between:
            self._patience.ask(between, _TICK)
        if answers:
            self._deliver(answers)

    async def close(self, grace: float) -> None:
        self._take_back([job.ref for job in self._jobs.copy()])
        deadline = self._loop.time() + grace
        while self._out and self._loop.time() < deadline:  # noqa: ASYNC110 - threads end without telling the loop
            await asyncio.sleep(_LATER_TICK)
        while self._out:
            self._give_up(list(self._out))
            await asyncio.sleep(_TICK)
        self._patience.stop()
        for _ in range(len(self._threads)):
            self._wake.put(False)
        # What is idle ends at once; what was given up may never end, and daemon threads do not hold up the exit.
        pause = _TICK
        while any(number not in self._lost for number in list(self._threads)):
            await asyncio.sleep(pause)
            pause = min(pause * 2, 0.05)
        self._tell()
