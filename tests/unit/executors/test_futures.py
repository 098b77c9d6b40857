"""FuturesExecutor over pools that do exactly what a test tells them to; no process is started here."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import BrokenExecutor, Executor, Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from flowlane.errors import EngineClosed, SettingsError, UsageError
from flowlane.runtime.ports import ABANDONED, CRASHED, FAILED, INTERRUPTED, NEVER, STARTED, SUCCEEDED
from flowlane_plugins.executors.futures import FuturesExecutor
from flowlane_plugins.executors.postmortem import MAIN_GUARD, deaths, ending, sentence

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

    from flowlane.runtime.ports import Job

    from .conftest import Inbox


class PuppetPool(Executor):
    """Keeps calls until it is told to run them. Breaks when told to."""

    def __init__(self) -> None:
        self.calls: list[tuple[Future[Any], Any, tuple[Any, ...]]] = []
        self.error: Exception | None = None
        self.closed = False

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        assert not kwargs
        if self.error is not None:
            raise self.error
        future: Future[Any] = Future()
        self.calls.append((future, fn, args))
        return future

    def begin(self, index: int = 0) -> None:
        self.calls[index][0].set_running_or_notify_cancel()

    def end(self, index: int = 0) -> None:
        future, fn, args = self.calls.pop(index)
        future.set_result(fn(*args))

    def break_down(self) -> None:
        self.error = BrokenExecutor("broken")
        for future, _, _ in self.calls:
            future.set_exception(self.error)
        self.calls.clear()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        self.closed = wait and cancel_futures


async def opened(inbox: Inbox, *, pickles: bool = False, **options: Any) -> tuple[PuppetPool, FuturesExecutor]:
    pool = PuppetPool()
    executor = FuturesExecutor(pool, pickles=pickles, slots=4, **options)
    await executor.open(inbox.deliver)
    return pool, executor


async def test_a_job_that_was_not_begun_is_taken_back(
    inbox: Inbox, job: Callable[..., Job], shapes: ModuleType
) -> None:
    pool, executor = await opened(inbox)
    one = job(shapes.add, 1, 2)
    executor.submit([one])
    executor.interrupt([one.ref], 60)
    (report,) = await inbox.finals(one)
    assert (report.kind, report.started) == (INTERRUPTED, NEVER)
    assert pool.calls[0][0].cancelled()
    await executor.close(0)


async def test_a_job_with_cores_tells_libraries_in_its_worker(
    inbox: Inbox, job: Callable[..., Job], shapes: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    pool, executor = await opened(inbox, pickles=True)
    pool.end()  # its sign of life
    jobs = [job(shapes.said_threads) for _ in range(3)]
    jobs[1].cores = 2
    executor.submit(jobs)
    for _ in jobs:
        pool.end()
    assert [report.value for report in await inbox.finals(*jobs)] == ["3", "2", "3"]
    await executor.close(0)


async def test_a_running_job_is_given_up_at_once_and_its_late_outcome_dropped(
    inbox: Inbox, job: Callable[..., Job], shapes: ModuleType
) -> None:
    pool, executor = await opened(inbox)
    one = job(shapes.add, 1, 2)
    executor.submit([one])
    pool.begin()
    await inbox.begun(one)
    executor.interrupt([one.ref], 60)
    (report,) = await inbox.finals(one)
    assert report.kind == ABANDONED
    assert 0 < report.started <= report.ended
    pool.end()
    await asyncio.sleep(0.02)
    assert [r.kind for r in inbox.reports] == [STARTED, ABANDONED]
    await executor.close(0)


async def test_started_is_told_of_running_jobs_only_and_once(
    inbox: Inbox, job: Callable[..., Job], shapes: ModuleType
) -> None:
    pool, executor = await opened(inbox)
    first, second = job(shapes.add, 1, 2), job(shapes.add, 3, 4)
    executor.submit([first, second])
    pool.begin(0)
    await inbox.begun(first)
    await asyncio.sleep(0.1)
    assert [r.ref for r in inbox.reports] == [first.ref]
    pool.begin(1)
    await inbox.begun(second)
    pool.end(), pool.end()
    for report in await inbox.finals(first, second):
        started = next(r for r in inbox.reports if r.ref == report.ref).started
        assert report.ended >= started
    await executor.close(0)


async def test_nothing_is_told_of_a_start_before_a_worker_process_has_answered(
    inbox: Inbox, job: Callable[..., Job], shapes: ModuleType
) -> None:
    pool, executor = await opened(inbox, pickles=True)
    one = job(shapes.add, 1, 2)
    executor.submit([one])
    pool.begin(1)  # 0 is the greeting: "running" may only mean that it is on its way to a worker that is starting
    await asyncio.sleep(0.1)
    assert inbox.reports == []
    pool.begin(0), pool.end(0)
    await inbox.begun(one)
    pool.end()
    assert (await inbox.finals(one))[0].value == 3
    await executor.close(0)


async def test_a_broken_pool_crashes_what_is_in_it_and_whatever_comes_later(
    inbox: Inbox, job: Callable[..., Job], shapes: ModuleType
) -> None:
    pool, executor = await opened(inbox, pickles=True)
    pool.begin(), pool.end()
    first, second, third = (job(shapes.add, n, n) for n in range(3))
    executor.submit([first, second])
    pool.break_down()
    executor.submit([third])
    reports = await inbox.finals(first, second, third)
    assert [r.kind for r in reports] == [CRASHED] * 3
    assert [r.started == NEVER for r in reports] == [False, False, True]
    for report in reports:
        assert report.failure is not None
        assert report.failure.type == "WorkerCrashed"
        assert report.failure.ancestry[0] == "flowlane.errors.WorkerCrashed"
        assert report.failure.message.startswith("add#1 was lost: a worker process of its pool died")
    await executor.close(0)


async def test_a_pool_that_never_answered_hints_at_the_guard(
    inbox: Inbox, job: Callable[..., Job], shapes: ModuleType
) -> None:
    pool, executor = await opened(inbox, pickles=True)
    one = job(shapes.add, 1, 2)
    executor.submit([one])
    pool.break_down()
    (report,) = await inbox.finals(one)
    assert (report.kind, report.started) == (CRASHED, NEVER)
    assert report.failure is not None
    assert report.failure.message == "add#1 was lost: a worker process of its pool died before any answered"
    assert report.failure.notes == (f"hint: {MAIN_GUARD}",)
    assert '`if __name__ == "__main__":`' in MAIN_GUARD
    assert "`flow run" in MAIN_GUARD
    await executor.close(0)


async def test_a_pool_that_was_shut_down_under_us_says_so(
    inbox: Inbox, job: Callable[..., Job], shapes: ModuleType
) -> None:
    pool = ThreadPoolExecutor(1)
    executor = FuturesExecutor(pool)
    await executor.open(inbox.deliver)
    pool.shutdown()
    one = job(shapes.add, 1, 2)
    executor.submit([one])
    (report,) = await inbox.finals(one)
    assert report.kind == CRASHED
    assert report.failure is not None
    assert "after shutdown" in report.failure.message
    assert "must stay open" not in report.failure.message
    assert report.failure.notes == ("hint: a pool given to the engine must stay open until the engine is closed",)
    await executor.close(0)


async def test_an_outcome_that_is_not_ours_is_the_pools_failure(
    inbox: Inbox, job: Callable[..., Job], shapes: ModuleType
) -> None:
    pool, executor = await opened(inbox, pickles=True)
    one = job(shapes.add, 1, 2)
    executor.submit([one])
    pool.calls[1][0].set_exception(OSError("the carrier lost it"))
    (report,) = await inbox.finals(one)
    assert report.kind == CRASHED
    assert report.failure is not None
    assert "OSError: the carrier lost it" in report.failure.message
    await executor.close(0)


async def test_closing_leaves_a_pool_of_the_hosts_alone_and_shuts_down_its_own(inbox: Inbox) -> None:
    for own in (False, True):
        pool, executor = await opened(inbox, own=own)
        await executor.close(0)
        assert pool.closed is own


async def test_a_closed_executor_takes_nothing(inbox: Inbox, job: Callable[..., Job], shapes: ModuleType) -> None:
    _, executor = await opened(inbox)
    await executor.close(0)
    await executor.close(0)
    with pytest.raises(EngineClosed):
        executor.submit([job(shapes.add, 1, 2)])


def test_slots_come_from_the_pool_unless_given() -> None:
    with ThreadPoolExecutor(3) as pool:
        assert FuturesExecutor(pool).capabilities.default_slots == 3
        assert FuturesExecutor(pool, slots=2).capabilities.default_slots == 2
        with pytest.raises(SettingsError, match="slots must be at least 1, not -1"):
            FuturesExecutor(pool, slots=-1)
        with pytest.raises(SettingsError, match="slots must be at least 1, not 0"):
            FuturesExecutor(pool, slots=0)


def test_a_pool_of_an_unknown_kind_must_say_what_it_is() -> None:
    with pytest.raises(SettingsError, match=r"PuppetPool are other processes\n  hint: say so: .*pickles=True"):
        FuturesExecutor(PuppetPool())
    assert FuturesExecutor(PuppetPool(), pickles=True).capabilities.pickles
    assert not FuturesExecutor(PuppetPool(), pickles=False).capabilities.pickles
    with pytest.raises(SettingsError, match=r"takes a concurrent\.futures\.Executor, not str"):
        FuturesExecutor("threads")  # type: ignore[arg-type]


async def test_a_worker_that_is_importing_its_parents_script_may_not_start_a_workflow(
    inbox: Inbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    import multiprocessing.process

    monkeypatch.setattr(multiprocessing.process.current_process(), "_inheriting", True, raising=False)
    with pytest.raises(UsageError, match=r"if __name__ == \"__main__\""):
        await FuturesExecutor(PuppetPool(), pickles=True).open(inbox.deliver)


async def test_threads_share_values_and_measure_their_own_time(
    inbox: Inbox, job: Callable[..., Job], shapes: ModuleType
) -> None:
    executor = FuturesExecutor(ThreadPoolExecutor(2, thread_name_prefix="mine"), own=True)
    await executor.open(inbox.deliver)
    lock = threading.Lock()
    one = job(shapes.call, lambda x: x, lock)
    executor.submit([one])
    (report,) = await inbox.finals(one)
    assert report.value is lock
    assert report.worker.startswith("mine")
    assert report.cpu >= 0
    await executor.close(1)


async def test_a_batch_with_one_refused_job_runs_the_others(
    inbox: Inbox, job: Callable[..., Job], shapes: ModuleType
) -> None:
    pool, executor = await opened(inbox, pickles=True)
    pool.begin(), pool.end()
    jobs = [job(shapes.add, 1, 2), job(shapes.take, threading.Lock()), job(shapes.add, 3, 4)]
    executor.submit(jobs)
    assert len(pool.calls) == 2
    pool.end(), pool.end()
    assert [r.kind for r in await inbox.finals(*jobs)] == [SUCCEEDED, FAILED, SUCCEEDED]
    await executor.close(0)


# ── words ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_end_of_a_worker_in_words() -> None:
    assert ending(3) == "exited with code 3"
    assert ending(-11) == "was killed by SIGSEGV"
    assert ending(-100) == "was killed by signal 100"
    assert sentence([(7, -9)], answered=True) == "worker process 7 was killed by SIGKILL"
    assert sentence([], answered=False) == "a worker process of its pool died before any answered"
    assert deaths(object()) == []
    assert "flow run" in MAIN_GUARD
