"""Tasks in threads against real faults. Numbers in brackets are rows of the fault matrix.

A test that asks for something within a time asks for it long before the fault itself would end.
"""

from __future__ import annotations

import asyncio
import re
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from flowlane import Engine, RunFailed, Workflow, run, task
from flowlane.core.states import TaskState
from flowlane.runtime.ports import ABANDONED, FAILED, INTERRUPTED, NEVER, STARTED, SUCCEEDED, Report
from flowlane_plugins.executors.threads import ThreadsExecutor

from .threads_and_loops import Heard, ends, opened, start_script

if TYPE_CHECKING:
    from collections.abc import Sequence

HERE = Path(__file__).name


def stuck(release: threading.Event) -> str:
    release.wait(60)
    return "in the end"


def nothing() -> None: ...


def where(fn: Any, line: int) -> str:
    """How the place is told, as a pattern."""
    return rf"at \S*{HERE}:{fn.__code__.co_firstlineno + line} in {fn.__name__} \(threading.Event.wait\)"


# ── leaving [17] ──────────────────────────────────────────────────────────────────────────────────────────────────


@task.io
def leaves(name: str) -> None:
    raise {"SystemExit": SystemExit, "KeyboardInterrupt": KeyboardInterrupt, "GeneratorExit": GeneratorExit}[name](7)


@task.io
def stays() -> int:
    return 1


@pytest.mark.parametrize("name", ["SystemExit", "KeyboardInterrupt", "GeneratorExit"])
def test_a_call_that_wants_to_leave_fails_alone(name: str) -> None:
    """Red when `_work` catches Exception only: the thread ends, and its task never does."""
    workflow = Workflow("w")
    for _ in range(3):
        workflow.add(leaves.bind(name))
    workflow.add(stays.bind())
    result = run(workflow, check=False, slots={"threads": 1})
    assert result.counts[TaskState.FAILED] == 3
    assert {(failure.type, failure.message) for failure in result.failures.values()} == {(name, "7")}
    assert result.tasks["stays"].state is TaskState.SUCCEEDED


# ── calls that do not return [20] ─────────────────────────────────────────────────────────────────────────────────


def test_a_thread_that_does_not_return_is_given_up_and_its_slot_replaced() -> None:
    """Red when a lost thread keeps counting: with one slot, the others never run."""
    release = threading.Event()
    workflow = Workflow("w")
    workflow.add(task.io(timeout=0.05)(stuck).bind(release))
    for _ in range(5):
        workflow.add(stays.bind())
    with Engine(slots={"threads": 1}, grace=0.05) as engine:
        handle = engine.start(workflow)
        with pytest.raises(RunFailed) as caught:
            handle.result(timeout=30)
    result = caught.value.result
    release.set()
    assert result.tasks["stuck"].state is TaskState.TIMED_OUT
    assert result.counts[TaskState.SUCCEEDED] == 5
    assert any("abandoned" in note for note in result.notes)


def test_what_was_given_up_is_told_with_its_place_and_counted_until_it_returns() -> None:
    release = threading.Event()

    async def main() -> None:
        executor = ThreadsExecutor(2)
        async with opened(executor) as heard:
            job = heard.job(stuck, release)
            executor.submit([job])
            await heard.started(job)
            executor.interrupt([job.ref], 0.05)
            assert (await heard.final(job)).kind == ABANDONED
            (note,) = heard.notes(job)
            assert re.fullmatch(rf"did not return and was given up; its thread goes on {where(stuck, 1)}", note)
            assert executor.abandoned == 1
            release.set()
            await heard.until(lambda: executor.abandoned == 0)
            assert (await heard.final(job)).kind == ABANDONED, "its late outcome is nobody's"

    asyncio.run(main())


EXIT = """
    import threading, time
    from flowlane import run, task, workflow
    if {off}:
        threading.Thread.daemon = property(lambda self: False, lambda self, value: None)
        init = threading.Thread.__init__
        def not_daemon(self, *args, **kwargs):
            init(self, *args, **(kwargs | dict(daemon=None)))
        threading.Thread.__init__ = not_daemon

    @task.io(timeout=0.05)
    def stuck():
        time.sleep(60)

    @workflow
    def w():
        stuck()

    result = run(w.bind(), check=False, grace=0.05)
    print(result.tasks["stuck"].state, flush=True)
"""


@pytest.mark.parametrize("off", [False, True])
def test_a_stuck_thread_does_not_hold_up_the_exit(tmp_path: Path, off: bool) -> None:
    """Switched off, with threads that are no daemons, the program ends when the task does."""
    told = ends(start_script(tmp_path, EXIT.format(off=off)), within=4 if off else 30)
    assert told == (None if off else "timed_out\n")


@pytest.mark.parametrize("bounded", [True, False])
def test_threads_that_hang_are_bounded_and_the_next_job_is_told_who_they_are(bounded: bool) -> None:
    """Without the bound, each hanging job costs one more thread."""
    release = threading.Event()

    async def main() -> None:
        executor = ThreadsExecutor(1, max_abandoned=2 if bounded else 1000)
        async with opened(executor) as heard:
            for _ in range(2):
                job = heard.job(stuck, release, name="etl")
                executor.submit([job])
                await heard.started(job)
                executor.interrupt([job.ref], 0)
                assert (await heard.final(job)).kind == ABANDONED
            job = heard.job(stuck, release)
            executor.submit([job])
            if bounded:
                report = await heard.final(job)
                assert (report.kind, report.started) == (FAILED, NEVER)
                assert report.failure is not None
                culprits = rf"2 threads still run attempts that were given up: etl {where(stuck, 1)} \(2 times\)"
                assert re.fullmatch(rf"no thread for it: {culprits}", report.failure.message)
                assert "give blocking calls a timeout of their own" in report.failure.notes[0]
            else:
                await heard.started(job)
                assert threads() == 3
            release.set()
            await heard.until(lambda: executor.abandoned == 0)
            job = heard.job(nothing)
            executor.submit([job])
            assert (await heard.final(job)).kind == SUCCEEDED, "they have returned, so there is room again"

    asyncio.run(main())


def threads() -> int:
    return sum(thread.name.startswith("flowlane-thread-") for thread in threading.enumerate())


def test_a_bound_that_is_none() -> None:
    with pytest.raises(ValueError, match="max_abandoned must be at least 1, not 0"):
        ThreadsExecutor(max_abandoned=0)


def test_a_thread_that_is_given_up_while_it_returns_is_counted_right() -> None:
    """Red when a job is taken from its worker before the thread counts as lost: it then stays lost for ever."""
    release = threading.Event()

    class Slow(dict[int, str]):
        def __setitem__(self, number: int, task: str) -> None:
            release.set()
            time.sleep(0.05)
            super().__setitem__(number, task)

    async def main() -> None:
        executor = ThreadsExecutor(1)
        executor._lost = Slow()
        async with opened(executor) as heard:
            job = heard.job(stuck, release)
            executor.submit([job])
            await heard.started(job)
            executor.interrupt([job.ref], 0)
            assert (await heard.final(job)).kind == ABANDONED
            await heard.until(lambda: executor.abandoned == 0)

    asyncio.run(main())


# ── the grace ─────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("grace", "kind"), [(20.0, SUCCEEDED), (0.0, ABANDONED)])
def test_a_call_that_returns_within_the_grace_has_an_outcome(grace: float, kind: int) -> None:
    """With no grace it is given up, whatever it would have returned."""
    release = threading.Event()

    async def main() -> None:
        executor = ThreadsExecutor(1)
        async with opened(executor) as heard:
            job, waiting = heard.job(stuck, release), heard.job(nothing)
            executor.submit([job, waiting])
            await heard.started(job)
            executor.interrupt([job.ref, waiting.ref], grace)
            assert (await heard.final(waiting)).kind == INTERRUPTED, "what has not begun needs no grace"
            await asyncio.sleep(0.05)
            release.set()
            report = await heard.final(job)
            assert (report.kind, report.value) == (kind, "in the end" if kind == SUCCEEDED else None)

    asyncio.run(main())


@pytest.mark.parametrize("graces", [(1000.0, 0.05), (0.05, 1000.0)])
def test_of_two_graces_the_one_that_ends_first_holds(graces: tuple[float, float]) -> None:
    """Red when each `interrupt` has a timer of its own that the first alone decides, or the last."""
    release = threading.Event()

    async def main() -> None:
        executor = ThreadsExecutor(1)
        async with opened(executor) as heard:
            job = heard.job(stuck, release)
            executor.submit([job])
            await heard.started(job)
            for grace in graces:
                executor.interrupt([job.ref], grace)
            assert (await heard.final(job)).kind == ABANDONED
            release.set()

    asyncio.run(main())


def test_a_cancelled_run_keeps_what_returns_within_its_grace() -> None:
    began = threading.Event()

    @task.io
    def short() -> int:
        began.set()
        time.sleep(0.1)
        return 1

    workflow = Workflow("w")
    workflow.add(short.bind())
    with Engine() as engine:
        handle = engine.start(workflow)
        assert began.wait(20)
        handle.cancel(grace=20)
    assert handle.state == "succeeded"


def test_closing_gives_up_what_does_not_return() -> None:
    release = threading.Event()

    async def main() -> None:
        executor, heard = ThreadsExecutor(1), Heard()
        await executor.open(heard.deliver)
        job = heard.job(stuck, release)
        executor.submit([job])
        await heard.started(job)
        executor.interrupt([job.ref], 1000)
        await executor.close(0.05)
        assert (await heard.final(job)).kind == ABANDONED

    asyncio.run(main())
    release.set()


# ── starts, ends, and what the loop does between them ─────────────────────────────────────────────────────────────


def test_nothing_of_anybody_else_runs_under_the_lock() -> None:
    """The loop's deliveries carry out a run's next steps then and there, coroutines' first steps among them.

    Red when `_tell` delivers inside its ``with``.
    """
    release, held = threading.Event(), list[bool]()

    async def main() -> None:
        executor, heard = ThreadsExecutor(1), Heard()
        loop_thread = threading.get_ident()

        def deliver(reports: Sequence[Report]) -> None:
            if threading.get_ident() == loop_thread:
                held.append(executor._order.locked())
            heard.deliver(reports)

        await executor.open(deliver)
        job = heard.job(stuck, release)
        executor.submit([job])
        await heard.started(job)
        executor.interrupt([job.ref], 0)
        await heard.final(job)
        release.set()
        await executor.close(0.1)

    asyncio.run(main())
    assert held != []
    assert not any(held)


def test_an_end_is_not_told_before_its_start() -> None:
    """The job ends while the loop is telling of its start. Red when a worker hands over regardless of `_telling`."""
    release, order = threading.Event(), list[int]()

    async def main() -> None:
        executor, heard = ThreadsExecutor(1), Heard()

        def deliver(reports: Sequence[Report]) -> None:
            for report in reports:
                if report.kind == STARTED:
                    release.set()
                    deadline = time.monotonic() + 20
                    while not (executor._outbox and executor._asleep) and time.monotonic() < deadline:
                        time.sleep(0.001)  # the worker has ended the job, and gone to sleep
                order.append(report.kind)
            heard.deliver(reports)

        await executor.open(deliver)
        job = heard.job(stuck, release)
        executor.submit([job])
        assert (await heard.final(job)).kind == SUCCEEDED
        await executor.close(1)

    asyncio.run(main())
    assert order == [STARTED, SUCCEEDED]


def test_starts_and_ends_keep_their_order_under_load() -> None:
    pace = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)

    async def main() -> None:
        executor = ThreadsExecutor(8)
        async with opened(executor) as heard:
            for _ in range(20):
                jobs = [heard.job(time.sleep, 0.0005 * (n % 7)) for n in range(8)]
                executor.submit(jobs)
                for job in jobs:
                    assert (await heard.final(job)).kind == SUCCEEDED
        assert len([report for report in heard.reports if report.kind == SUCCEEDED]) == 160

    try:
        asyncio.run(main())
    finally:
        sys.setswitchinterval(pace)
