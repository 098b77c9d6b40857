"""What is told of workers that have died: the report of the job that had begun, and of jobs for which no worker can be had."""

from __future__ import annotations

import signal
import sys
from functools import partial
from time import monotonic_ns
from typing import TYPE_CHECKING, Final

from flowlane.errors import Failure, MemoryExceeded, PoisonTask, WorkerCrashed
from flowlane.runtime.ports import CRASHED, NEVER, Report
from flowlane_plugins.executors.postmortem import REAPED_BY_HOST, ending

if TYPE_CHECKING:
    from collections.abc import Callable

    from flowlane.runtime.ports import Job

__all__ = ["crashed", "exceeded", "last_words", "no_start", "no_worker", "stillborn"]

_FAULTS: Final = {
    signal.SIGSEGV,
    signal.SIGBUS,
    signal.SIGABRT,
    signal.SIGFPE,
    signal.SIGILL,
    signal.SIGTRAP,
    signal.SIGSYS,
}
_TAIL: Final = 1_000  # characters

_PLACES: Final = {
    "loading": "while its function and arguments were loading; its body had not begun",
    "body": "while it ran",
    "encoding": "while its result was being pickled; its body had ended",
}


def crashed(job: Job, pid: int, status: int, *, phase: str, begun: int, max_rss: int, poison: bool) -> Report:
    """The report of `job`, whose worker died in `phase`. `status` as a process's exit code, `max_rss` in bytes."""
    memory = f" (peak memory {max_rss / 2**20:.0f} MB)" if max_rss > 0 else ""
    message = f"{job.task} was lost: worker process {pid} {ending(status)} {_PLACES.get(phase, '')}{memory}"
    hint = _hint(status)
    if poison:
        message += "; its worker before had died too, so it is not tried again"
        error: WorkerCrashed = PoisonTask(message, hint=hint)
    else:
        error = WorkerCrashed(message, hint=hint)
    return Report(job.ref, CRASHED, begun, monotonic_ns(), failure=Failure.of(error), rss=max_rss or NEVER)


def exceeded(job: Job, pid: int, peak: int, *, begun: int, max_rss: int) -> Report:
    """The report of `job`, whose worker was killed when it had grown by `peak` bytes, more than the job may take."""
    error = MemoryExceeded(
        f"{job.task} took {peak / 1e6:,.0f} MB of memory and may take {job.memory / 1e6:,.0f} MB:"
        f" worker process {pid} was killed",
        limit=job.memory,
        peak=peak,
        hint="give it more, memory=..., or have it work on less at a time",
    )
    return Report(job.ref, CRASHED, begun, monotonic_ns(), failure=Failure.of(error), rss=max_rss or NEVER)


def last_words(output: str | None) -> str | None:
    """What a dead worker's task had printed; of the dump of a crash in native code, the task's own frames only."""
    if output is None or "(most recent call first):" not in output:
        return output
    lines = output.splitlines(keepends=True)
    while lines and lines[-1].startswith("  File ") and ("flowlane_plugins" in lines[-1] or '"<string>"' in lines[-1]):
        lines.pop()
    return "".join(lines)


def _hint(status: int) -> str:
    if status == REAPED_BY_HOST:
        return "this program ignores SIGCHLD, or waits for every child that ends, and so took the news"
    if status >= 0:
        return "it called os._exit, or a library did; raise an exception instead"
    number = -status
    if number == signal.SIGKILL:
        return "a SIGKILL that nobody sent comes from the kernel, out of memory: use less at a time, or fewer slots"
    if number in _FAULTS:
        return "native code crashed: the task's output ends with the Python line that called it"
    return "something outside this run sent the signal"


def no_worker(reason: str, hint: str | None = None) -> Callable[[Job], Report]:
    """Makes the reports of jobs for which there will be no worker."""
    return partial(_no_worker, reason, hint)


def no_start() -> str:
    """The hint where children die while they start."""
    return (
        f"can {sys.executable} start at all in this environment? try: python -c 'import flowlane'; in a program that embeds"
        " Python, set sys.executable to a Python that has its packages"
    )


def stillborn(pid: int, status: int, output: str | None) -> Callable[[Job], Report]:
    """The same, where workers die before they have done anything."""
    said = f": {output[-_TAIL:].strip()}" if output else ""
    return no_worker(
        f"worker processes die before their first job, the last one ({pid}) {ending(status)}{said}",
        no_start(),
    )


def _no_worker(reason: str, hint: str | None, job: Job) -> Report:
    error = WorkerCrashed(f"{job.task} has no worker: {reason}", hint=hint)
    return Report(job.ref, CRASHED, NEVER, monotonic_ns(), failure=Failure.of(error))
