"""The `threads` executor: our own daemon threads, fed through one deque, answering through one outbox.

Why not ThreadPoolExecutor: its threads are joined at interpreter exit, so one stuck call hangs the program; it wakes a
thread for every job; and each answer costs a future and a wake-up of the loop.

State, reached from the loop thread and the workers, each step of it one atomic container operation. One lock, `_order`, is held
for an instant where two steps belong together: so that a job's end is never told before its start.

- `_jobs`: submitted, not begun. A worker takes from the left.
- `_running`: ref → (start, worker). Whoever pops an entry owns the job's outcome: the worker when the call returns, or the loop
  when it gives the job up. A thread cannot be killed, so a job told to stop while it runs is ABANDONED at once: its thread no
  longer counts, a new one may take its place, and it ends by itself if the call ever returns.
- `_out`: refs whose outcome nobody owns yet. One that is neither in `_jobs` nor in `_running` is just between the two.
- `_outbox`: reports not handed over yet. A worker that has more jobs at hand leaves its report there and goes on; the one
  that finds no more hands over everything. Thus a burst of short jobs costs one wake-up of the loop.
- `_asleep`: workers about to block on `_wake`. A worker adds itself *first*, then looks at `_jobs` once more, then blocks;
  so a submit either is seen by that look or sees the sleeper.

A submit wakes one worker. A tick of the loop, a millisecond later, sees how far it got and wakes or starts as many more as
there are jobs left: short jobs never pay for 32 threads, and blocking ones wait a millisecond at most. The same tick hands
over what lies in the outbox and tells STARTED of jobs that have been running for a while.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections import deque
from time import monotonic_ns, thread_time_ns
from typing import TYPE_CHECKING

from flowlane.errors import Failure
from flowlane.runtime.ports import ABANDONED, FAILED, INTERRUPTED, NEVER, STARTED, SUCCEEDED, Capabilities, Report
from flowlane_plugins.executors.plain import plain

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from flowlane.runtime.ports import Job

__all__ = ["ThreadsExecutor"]

# The first look after a submit, and the pace of looking while jobs wait or run untold: long enough for a hundred short
# jobs to end in between, short enough that nobody notices.
_TICK = 0.001
_LATER_TICK = 0.004


class ThreadsExecutor:
    """Runs plain functions that wait (files, sockets, databases). `slots`: how many at a time (default 32)."""

    def __init__(self, slots: int | None = None) -> None:
        self._slots = slots or 32
        self.capabilities = Capabilities(accepts=frozenset({"sync"}), default_slots=self._slots)
        self._jobs: deque[Job] = deque()
        self._running: dict[int, tuple[int, str]] = {}
        self._out: set[int] = set()
        self._told: set[int] = set()  # refs whose STARTED was told; loop thread only
        self._outbox: deque[Report] = deque()
        self._order = threading.Lock()
        self._asleep: set[int] = set()
        self._wake: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._threads: dict[int, threading.Thread] = {}
        self._lost: set[int] = set()  # numbers of threads whose job was given up
        self._started = 0
        self._ticking = False

    async def open(self, deliver: Callable[[Sequence[Report]], None]) -> None:
        self._deliver = deliver
        self._loop = asyncio.get_running_loop()
        self._ticking = False  # a tick that an earlier loop was closed under never came

    def submit(self, jobs: Sequence[Job]) -> None:
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
                self._refuse(error)

    def _refuse(self, error: RuntimeError) -> None:
        """Nobody can run what is queued."""
        now, failure = monotonic_ns(), Failure.of(error.with_traceback(None))
        refused = [self._jobs.popleft().ref for _ in range(len(self._jobs))]
        self._out.difference_update(refused)
        self._deliver([Report(ref, FAILED, NEVER, now, failure=failure) for ref in refused])

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
            running[ref] = (started, worker)
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
            if not owned:
                self._lost.discard(number)
                break  # given up: another thread has this one's place
            del report
        self._threads.pop(number, None)

    def _hand_over(self) -> None:
        """Deliver what lies in the outbox. Any thread."""
        outbox = self._outbox
        if outbox:
            with self._order:
                reports = [outbox.popleft() for _ in range(len(outbox))]
                if reports:
                    self._deliver(reports)

    # ── on the loop ───────────────────────────────────────────────────────────────────────────────────────────────

    def _tick(self) -> None:
        self._hand_over()
        waiting = len(self._jobs)
        if waiting:
            sleepers = len(self._asleep)
            for _ in range(min(waiting, sleepers)):
                self._wake.put(True)
            room = self._slots - (len(self._threads) - len(self._lost))
            for _ in range(min(waiting - sleepers, room)):
                self._start_thread()
        with self._order:
            running = self._running.copy()
            if self._told:
                self._told.intersection_update(running)
            fresh = [(ref, since) for ref, since in running.items() if ref not in self._told]
            if fresh:
                self._told.update([ref for ref, _ in fresh])
                self._deliver([Report(ref, STARTED, started, worker=worker) for ref, (started, worker) in fresh])
        if self._jobs or self._outbox:
            self._loop.call_later(_TICK, self._tick)
        elif waiting or len(self._out) > len(self._told):
            self._loop.call_later(_LATER_TICK, self._tick)
        else:
            self._ticking = False

    def interrupt(self, refs: Sequence[int], grace: float) -> None:
        """Take back what is queued; give up what runs, at once: no grace period would make a thread listen."""
        between = self._stop(refs)
        if between:  # a worker has taken it and not told yet; on a busy machine that may last
            self._loop.call_later(_TICK, self.interrupt, between, grace)

    def _stop(self, refs: Sequence[int]) -> list[int]:
        """Answer for each of `refs` that is queued or running; returns those that are neither and not answered yet."""
        now = monotonic_ns()
        answers: list[Report] = []
        between: list[int] = []
        queued = {job.ref: job for job in self._jobs.copy()}
        for ref in refs:
            job = queued.get(ref)
            if job is not None:
                try:
                    self._jobs.remove(job)
                except ValueError:
                    pass  # a worker has just taken it
                else:
                    self._out.discard(ref)
                    answers.append(Report(ref, INTERRUPTED, NEVER, now))
                    continue
            since = self._running.pop(ref, None)
            if since is None:
                if ref in self._out:
                    between.append(ref)
                continue
            self._out.discard(ref)
            started, worker = since
            self._lost.add(int(worker.removeprefix("thread-")))
            answers.append(Report(ref, ABANDONED, started, now, worker=worker))
        if answers:
            self._deliver(answers)
        return between

    async def close(self, grace: float) -> None:
        self._stop([job.ref for job in self._jobs.copy()])
        deadline = self._loop.time() + grace
        while self._out and self._loop.time() < deadline:  # noqa: ASYNC110 - threads end without telling the loop
            await asyncio.sleep(_LATER_TICK)
        while self._stop(list(self._out)):  # noqa: ASYNC110 - likewise
            await asyncio.sleep(_TICK)
        for _ in range(len(self._threads)):
            self._wake.put(False)
        # What is idle ends at once; what was given up may never end, and daemon threads do not hold up the exit.
        pause = _TICK
        while any(number not in self._lost for number in list(self._threads)):
            await asyncio.sleep(pause)
            pause = min(pause * 2, 0.05)
        self._hand_over()
