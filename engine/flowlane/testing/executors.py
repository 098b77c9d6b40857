"""What every executor promises, as tests that anybody can run over theirs.

In a test module::

    class TestMyExecutor(ExecutorContract):
        @pytest.fixture
        def make(self):
            return lambda: MyExecutor()

`make` gives a function that makes an executor. It is opened on a loop of the test's own, driven without an engine, and closed
at the end; no plug-in of pytest is needed. What the tests ask follows what the executor claims: one with ``pickles`` must
refuse what cannot travel, and tell where in it the culprit sits; one with ``hard_kill`` must stop what does not want to.
See ``flowlane.runtime.ports`` for the promises themselves, and the class's attributes for what a subclass may say of itself.

The jobs are functions of a file that is loaded by path, as a workflow file is (``flowlane.testing.jobs``): workers that have no
file of that path cannot run them.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import itertools
import os
import threading
import time
from functools import partial
from pathlib import Path
from time import monotonic_ns
from typing import TYPE_CHECKING, Any, ClassVar, Concatenate, Final, ParamSpec, TypeVar, cast

import psutil  # type: ignore[import-untyped]
import pytest

from flowlane.loader import address_of, load_file
from flowlane.runtime.context import bind
from flowlane.runtime.ports import (
    ABANDONED,
    CRASHED,
    FAILED,
    INTERRUPTED,
    NEVER,
    NOTED,
    STARTED,
    SUCCEEDED,
    Executor,
    Job,
    RemoteValue,
    Report,
    Target,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator, Sequence
    from types import ModuleType

__all__ = ["ExecutorContract", "Lane", "children", "left_over"]

P = ParamSpec("P")
S = TypeVar("S", bound="ExecutorContract")

_MODULE: Final = "_flow_contract_jobs"
_SHAPES: Final = ("two arguments", "speechless", "holds a lock", "local class", "group", "explosive", "long", "lone")


@functools.cache
def _jobs() -> ModuleType:
    return load_file(Path(__file__).with_name("jobs.py"), _MODULE)


def children() -> set[int]:
    """Child processes of this one, the resource trackers of multiprocessing and loky left out."""
    found: set[int] = set()
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if child.status() != psutil.STATUS_ZOMBIE and not any("resource_tracker" in a for a in child.cmdline()):
                found.add(child.pid)
    return found


def left_over(threads: set[int | None], processes: set[int], patience: float = 20.0) -> list[str]:
    """What is there now and was not before, after waiting for it to go."""
    deadline = time.monotonic() + patience
    while True:
        left = [f"thread {t.name}" for t in threading.enumerate() if t.ident not in threads]
        left += [f"process {pid}" for pid in children() - processes]
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(0.01)


class Lane:
    """One executor on a loop, and what it said. Keeps at most as many jobs in it as it has slots, as the scheduler does."""

    def __init__(self, executor: Executor, jobs: ModuleType, runner: asyncio.Runner) -> None:
        self.executor = executor
        self.jobs = jobs
        self.runner = runner
        self.reports: list[Report] = []
        self.opened = False
        self._refs = itertools.count(1)
        self._loop: asyncio.AbstractEventLoop
        self._news: asyncio.Event

    async def open(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._news = asyncio.Event()
        await self.executor.open(self.deliver)

    async def close(self) -> None:
        await self.executor.close(1.0)

    def deliver(self, reports: Sequence[Report]) -> None:
        self.reports.extend(reports)
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._news.set)

    @property
    def can(self) -> Any:
        """The executor's capabilities."""
        return self.executor.capabilities

    @property
    def takes_coroutines(self) -> bool:
        return "async" in self.can.accepts

    def job(self, name: str, *args: Any, **kwargs: Any) -> Job:
        """A job of `flowlane.testing.jobs`: the coroutine of that name, for executors that take them."""
        fn = getattr(self.jobs, f"{name}_async" if self.takes_coroutines else name)
        return self.job_of(fn, name, *args, **kwargs)

    def job_of(self, fn: Callable[..., Any], name: str, *args: Any, **kwargs: Any) -> Job:
        """A job of any function; one without an address travels by value."""
        target = Target(name, fn, self.takes_coroutines, address_of(fn))
        return Job(next(self._refs), target, args, kwargs, run="run-1", task=f"{name}#1", attempt=3)

    def finals(self, ref: int) -> list[Report]:
        return [r for r in list(self.reports) if r.ref == ref and r.kind not in (STARTED, NOTED)]

    def starts(self, ref: int) -> list[Report]:
        return [r for r in list(self.reports) if r.ref == ref and r.kind == STARTED]

    def _any_final(self, refs: Sequence[int]) -> bool:
        return any(self.finals(ref) for ref in refs)

    async def until(self, true: Callable[[], object], patience: float = 20.0) -> None:
        """Wait until `true()`, which is asked after each delivery."""
        async with asyncio.timeout(patience):
            while not true():
                self._news.clear()
                if not true():
                    await self._news.wait()

    async def run(self, *jobs: Job) -> list[Report]:
        """Run jobs, as many at a time as there are slots; their final reports, in order of the jobs."""
        waiting = list(jobs)[::-1]
        out: list[int] = []
        while waiting or out:
            room = self.can.default_slots - len(out)
            batch = [waiting.pop() for _ in range(min(room, len(waiting)))]
            if batch:
                self.executor.submit(batch)
                out += [job.ref for job in batch]
            await self.until(partial(self._any_final, tuple(out)))
            out = [ref for ref in out if not self.finals(ref)]
        return [self.finals(job.ref)[0] for job in jobs]

    async def one(self, name: str, *args: Any, **kwargs: Any) -> Report:
        return (await self.run(self.job(name, *args, **kwargs)))[0]

    async def begun(self, job: Job) -> None:
        """Hand over a job and wait until it is told to have begun."""
        self.executor.submit([job])
        await self.until(lambda: self.starts(job.ref))

    async def ended(self, job: Job) -> Report:
        await self.until(lambda: self.finals(job.ref))
        return self.finals(job.ref)[0]

    @staticmethod
    def value(report: Report) -> Any:
        """What a report brings, fetched where it stayed away."""
        return report.value.fetch() if isinstance(report.value, RemoteValue) else report.value


def _on_loop(
    test: Callable[Concatenate[S, Lane, P], Coroutine[Any, Any, None]],
) -> Callable[Concatenate[S, Lane, P], None]:
    """A test that is a coroutine, run on the loop of its lane."""

    def run(self: S, lane: Lane, *args: P.args, **kwargs: P.kwargs) -> None:
        lane.runner.run(test(self, lane, *args, **kwargs))

    functools.update_wrapper(run, test)  # pytest reads the names of the fixtures from it, and gives them by keyword
    return cast("Callable[Concatenate[S, Lane, P], None]", run)


class ExecutorContract:
    """Override `make`. Each test has an executor of its own, opened before and closed after.

    reopens      it can be opened again after it was closed
    shared       what stands behind it is the tests' own and outlives it: threads and processes are not counted
    mortal       a worker may die without harm to what is shared: the test of that runs
    survives     after a worker has died the executor takes jobs as before
    """

    reopens: ClassVar[bool] = True
    shared: ClassVar[bool] = False
    mortal: ClassVar[bool] = True
    survives: ClassVar[bool] = True

    @pytest.fixture
    def make(self) -> Callable[[], Executor]:
        raise NotImplementedError("override the fixture `make`: it gives a function that makes an executor")

    @pytest.fixture
    def lane(self, make: Callable[[], Executor]) -> Iterator[Lane]:
        """The executor under test, open; what it has said is checked at the end."""
        threads, processes = {t.ident for t in threading.enumerate()}, children()
        with asyncio.Runner() as runner:
            lane = Lane(make(), _jobs(), runner)
            runner.run(lane.open())
            try:
                yield lane
            finally:
                runner.run(lane.close())
        for ref in {report.ref for report in lane.reports}:
            told = [report.kind for report in lane.reports if report.ref == ref]
            assert told[-1] != NOTED, f"a note on {ref} after its end"
            kinds = [kind for kind in told if kind != NOTED]
            assert kinds.count(STARTED) <= 1, f"STARTED twice for {ref}"
            assert len(kinds) - kinds.count(STARTED) == 1, f"not exactly one final report for {ref}: {kinds}"
            assert STARTED not in kinds[1:], f"STARTED after the end of {ref}"
        lane.reports.clear()
        if not self.shared:
            assert left_over(threads, processes) == []

    # ── what it claims ────────────────────────────────────────────────────────────────────────────────────────────

    @_on_loop
    async def test_is_an_executor_with_truthful_capabilities(self, lane: Lane) -> None:
        assert isinstance(lane.executor, Executor)
        can = lane.can
        assert can.accepts
        assert can.accepts <= {"sync", "async"}
        assert can.default_slots >= 1
        report = await lane.one("where_am_i")
        assert can.pickles == (lane.value(report) != os.getpid())
        assert can.remote_values or not isinstance(report.value, RemoteValue)
        assert getattr(lane.executor, "appetite", can.default_slots) >= 1

    # ── values ────────────────────────────────────────────────────────────────────────────────────────────────────

    @_on_loop
    async def test_calls_with_the_arguments_and_reports_the_value(self, lane: Lane) -> None:
        before = monotonic_ns()
        report = await lane.one("add", 1, 2, 3, scale=10)
        assert (report.kind, lane.value(report), report.failure) == (SUCCEEDED, 60, None)
        assert before <= report.started <= report.ended <= monotonic_ns(), "times are those of this process's clock"
        assert report.worker

    @_on_loop
    async def test_answers_every_job_of_many_exactly_once(self, lane: Lane) -> None:
        reports = await lane.run(*[lane.job("add", n, n) for n in range(200)])
        assert [lane.value(report) for report in reports] == [2 * n for n in range(200)]
        # the fixture checks that there was one final report each

    @_on_loop
    async def test_a_batch_has_an_answer_for_each_of_its_jobs(self, lane: Lane) -> None:
        lane.executor.submit([])
        width = lane.can.default_slots
        batch = [lane.job("reject" if n % 3 == 1 else "echo", str(n)) for n in range(width)]
        lane.executor.submit(batch)
        for n, job in enumerate(batch):
            report = await lane.ended(job)
            assert report.kind == (FAILED if n % 3 == 1 else SUCCEEDED)
            if report.kind == SUCCEEDED:
                assert lane.value(report) == str(n)

    @_on_loop
    async def test_large_values_come_back_as_they_were(self, lane: Lane) -> None:
        big = bytes(range(256)) * (1 << 14)  # 4 MiB
        report = await lane.one("echo", {"deep": [big, bytearray(big)]})
        assert lane.value(report) == {"deep": [big, bytearray(big)]}
        assert report.bytes_in == NEVER or len(big) < report.bytes_in < 3 * len(big)

    @_on_loop
    async def test_a_result_may_be_an_argument_wherever_it_stands(self, lane: Lane) -> None:
        first, second = await lane.run(lane.job("echo", "x" * 1000), lane.job("echo", b"y" * 500_000))
        both = {"all": [first.value, second.value], "one": [first.value]}
        report = await lane.one("pick", both, second.value)
        assert lane.value(report) == 1000 + 500_000 + 1000 + 500_000
        if lane.can.remote_values:
            for value in (first.value, second.value):
                if isinstance(value, RemoteValue):
                    assert value.home is lane.executor
                    assert value.nbytes >= 0
                    assert value.fetch() is value.fetch(), "fetched once, then kept"

    @_on_loop
    async def test_where_values_are_pickled_a_job_may_change_what_it_gets(self, lane: Lane) -> None:
        if not lane.can.pickles:
            pytest.skip("values are shared by reference within a process: read-only by convention")
        made = await lane.one("echo", [1, 2, 3])
        reports = await lane.run(*[lane.job("spoil", made.value) for _ in range(4)])
        assert [lane.value(report) for report in reports] == [4, 4, 4, 4]
        assert lane.value(made) == [1, 2, 3]

    @_on_loop
    async def test_a_function_without_an_address_runs_too(self, lane: Lane) -> None:
        factor = 7

        def times(n: int) -> int:
            return n * factor

        async def times_async(n: int) -> int:
            return n * factor

        (report,) = await lane.run(lane.job_of(times_async if lane.takes_coroutines else times, "times", 6))
        assert lane.value(report) == 42

    # ── errors ────────────────────────────────────────────────────────────────────────────────────────────────────

    @_on_loop
    async def test_an_exception_is_a_failure_with_its_whole_story(self, lane: Lane) -> None:
        report = await lane.one("reject", "bad row 118")
        failure = report.failure
        assert report.kind == FAILED
        assert failure is not None
        assert failure.type == "Rejected"
        assert failure.message == "bad row 118"
        assert failure.notes == ("a note", "caused by KeyError: 'the cause'")
        assert failure.ancestry[:3] == (f"{_MODULE}.Rejected", "ValueError", "Exception")
        assert failure.matches((ValueError,))
        assert not failure.matches((OSError,))
        assert failure.where is not None
        assert "jobs.py:" in failure.where
        assert failure.where.endswith("in reject")
        assert "KeyError: 'the cause'" in failure.traceback
        assert "jobs.py" in failure.traceback
        assert "flowlane_plugins" not in failure.traceback
        assert isinstance(failure.exception, lane.jobs.Rejected)
        assert 0 < report.started <= report.ended

    @_on_loop
    async def test_exceptions_of_every_shape_are_told(self, lane: Lane) -> None:
        reports = await lane.run(*[lane.job("awkward", shape) for shape in _SHAPES])
        told = {shape: report.failure for shape, report in zip(_SHAPES, reports, strict=True)}
        assert {report.kind for report in reports} == {FAILED}
        types = {shape: failure.type.rpartition(".")[2] for shape, failure in told.items() if failure is not None}
        assert types == {
            "two arguments": "TwoArguments",
            "speechless": "Speechless",
            "holds a lock": "Rejected",
            "local class": "Local",
            "group": "ExceptionGroup",
            "explosive": "Rejected",
            "long": "Rejected",
            "lone": "Rejected",
        }
        assert [failure.message[:20] for failure in told.values() if failure is not None and failure.message] != []
        assert lane.value(await lane.one("add", 1)) == 1

    @pytest.mark.parametrize("name", ["SystemExit", "KeyboardInterrupt", "GeneratorExit"])
    @_on_loop
    async def test_a_task_that_wants_to_leave_fails_alone(self, lane: Lane, name: str) -> None:
        report = await lane.one("leave", name)
        assert report.kind == FAILED
        assert report.failure is not None
        assert (report.failure.type, report.failure.message) == (name, "7")
        assert lane.value(await lane.one("add", 1)) == 1

    @_on_loop
    async def test_an_argument_that_cannot_travel_fails_its_own_job_only(self, lane: Lane) -> None:
        jobs = [lane.job("add", 1), lane.job("echo", {"deep": [threading.Lock()]}), lane.job("add", 2)]
        reports = await lane.run(*jobs)
        assert [lane.value(report) for report in reports[::2]] == [1, 2]
        awkward = reports[1]
        if lane.can.pickles:
            assert (awkward.kind, awkward.started) == (FAILED, NEVER)
            assert awkward.failure is not None
            assert awkward.failure.type == "TransportError"
            assert awkward.failure.ancestry[0] == "flowlane.errors.TransportError"
            assert "echo(value) ['deep'][0] cannot travel" in awkward.failure.message
            assert "hint" not in awkward.failure.message
            (note,) = awkward.failure.notes
            assert note.startswith("hint: make it inside the task")
        else:
            assert awkward.kind == SUCCEEDED
            assert awkward.value is jobs[1].args[0], "values are shared by reference within a process"

    @_on_loop
    async def test_a_result_that_cannot_travel_fails_its_own_job_only(self, lane: Lane) -> None:
        report = await lane.one("unpicklable")
        if lane.can.pickles:
            assert report.kind == FAILED
            assert report.failure is not None
            assert report.failure.type == "TransportError"
            assert "unpicklable ['lock'] cannot travel" in report.failure.message
        else:
            assert report.kind == SUCCEEDED
        assert lane.value(await lane.one("add", 1)) == 1

    @_on_loop
    async def test_a_value_that_does_not_load_harms_who_needs_it_alone(self, lane: Lane) -> None:
        made = await lane.one("explosive")
        if not lane.can.pickles:
            assert made.kind == SUCCEEDED
            return
        if made.kind == SUCCEEDED:  # it stayed where it is: who reads it finds out
            assert isinstance(made.value, RemoteValue)
            report = await lane.one("length", made.value)
            assert report.kind == FAILED
            assert report.failure is not None
            assert "explosive" in report.failure.message
            assert "it goes off" in report.failure.message
            with pytest.raises(Exception, match="it goes off"):
                made.value.fetch()
        else:
            assert made.kind == FAILED
            assert made.failure is not None
            assert "it goes off" in made.failure.message
        assert lane.value(await lane.one("add", 1)) == 1

    # ── beginning and ending ──────────────────────────────────────────────────────────────────────────────────────

    @_on_loop
    async def test_tells_of_the_start_of_a_long_job_before_its_end(self, lane: Lane) -> None:
        await lane.one("add", 1)  # a worker is up
        job = lane.job("nap", 0.3)
        await lane.begun(job)
        assert lane.finals(job.ref) == []
        assert lane.starts(job.ref)[0].started > 0
        report = await lane.ended(job)
        assert report.kind == SUCCEEDED
        assert report.started <= report.ended
        assert lane.starts(job.ref)[0].started <= report.ended

    @_on_loop
    async def test_interrupting_a_running_job_is_answered_and_leaves_the_executor_usable(self, lane: Lane) -> None:
        await lane.one("add", 1)
        job = lane.job("nap", 0.6)
        await lane.begun(job)
        lane.executor.interrupt([job.ref], 0.05)
        assert (await lane.ended(job)).kind in (INTERRUPTED, ABANDONED)
        assert lane.value(await lane.one("add", 2)) == 2

    @_on_loop
    async def test_a_job_that_does_not_stop_is_killed_or_given_up(self, lane: Lane) -> None:
        await lane.one("add", 1)
        job = lane.job("stubborn", 0.6)
        await lane.begun(job)
        lane.executor.interrupt([job.ref], 0.05)
        report = await lane.ended(job)
        assert report.kind == (INTERRUPTED if lane.can.hard_kill else ABANDONED)
        assert report.ended - report.started < 600_000_000 or not lane.can.hard_kill
        await asyncio.sleep(0.7)  # its late outcome must not be told: the fixture counts
        assert len(lane.finals(job.ref)) == 1

    @_on_loop
    async def test_with_hard_kill_it_keeps_timeouts_itself(self, lane: Lane) -> None:
        if not lane.can.hard_kill:
            pytest.skip("timeouts are the engine's")
        await lane.one("add", 1)
        job = lane.job("nap", 30)
        job.timeout = 0.1
        lane.executor.submit([job])
        report = await lane.ended(job)
        assert report.kind == INTERRUPTED
        assert report.started != NEVER
        assert lane.value(await lane.one("add", 2)) == 2

    @_on_loop
    async def test_what_is_told_not_to_have_begun_has_not(self, lane: Lane, tmp_path: Path) -> None:
        await lane.one("add", 1)
        marks = [tmp_path / str(n) for n in range(lane.can.default_slots)]
        batch = [lane.job("leave_mark", str(mark), 0.1) for mark in marks]
        lane.executor.submit(batch)
        lane.executor.interrupt([job.ref for job in batch], 5.0)
        reports = [await lane.ended(job) for job in batch]
        await lane.one("add", 2)  # a job behind them: what would begin late has begun by now
        for mark, report in zip(marks, reports, strict=True):
            if report.started == NEVER and report.kind == INTERRUPTED:
                assert not mark.exists()
            elif report.kind == SUCCEEDED:
                assert mark.read_text().count("\n") == 1

    @_on_loop
    async def test_interrupting_what_is_over_or_unknown_does_nothing(self, lane: Lane) -> None:
        job = lane.job("add", 1)
        await lane.run(job)
        lane.executor.interrupt([job.ref, 10**9], 0.0)
        await asyncio.sleep(0.05)
        assert len(lane.reports) == 1 + len(lane.starts(job.ref))

    @_on_loop
    async def test_closing_answers_what_is_still_out(self, lane: Lane) -> None:
        await lane.one("add", 1)
        batch = [lane.job("nap", 0.8) for _ in range(lane.can.default_slots)]
        await lane.begun(batch[0])
        lane.executor.submit(batch[1:])
        await lane.executor.close(0.05)
        for job in batch:
            assert [report.kind in (INTERRUPTED, ABANDONED) for report in lane.finals(job.ref)] == [True]

    @_on_loop
    async def test_closing_waits_for_what_ends_within_the_grace(self, lane: Lane) -> None:
        if lane.takes_coroutines:
            pytest.skip("a coroutine is cancelled at once: it can be")
        await lane.one("add", 1)
        job = lane.job("nap", 0.2)
        await lane.begun(job)
        await lane.executor.close(10)
        assert [report.kind for report in lane.finals(job.ref)] == [SUCCEEDED]

    @_on_loop
    async def test_closing_an_executor_that_never_ran_anything(self, lane: Lane) -> None:
        await lane.executor.close(0.0)
        assert lane.reports == []

    @_on_loop
    async def test_can_be_opened_again_after_closing(self, lane: Lane) -> None:
        if not self.reopens:
            pytest.skip("it cannot: engines make their executors afresh")
        assert lane.value(await lane.one("add", 1)) == 1
        await lane.executor.close(0.5)
        await lane.executor.open(lane.deliver)
        assert lane.value(await lane.one("add", 2)) == 2

    @_on_loop
    async def test_a_worker_that_dies_costs_its_job_one_attempt(self, lane: Lane, tmp_path: Path) -> None:
        if not (lane.can.pickles and self.mortal):
            pytest.skip("its workers live in this process, or are shared with other tests")
        await lane.one("add", 1)
        mark = tmp_path / "mark"
        (report,) = await lane.run(lane.job_of(lane.jobs.die, "die", str(mark)))
        assert report.kind == CRASHED
        assert report.failure is not None
        assert report.failure.type == "WorkerCrashed"
        assert "die#1" in report.failure.message
        if self.survives:
            assert lane.value(await lane.one("add", 2)) == 2
        assert mark.read_text().count("\n") == 1, "whether to try again is the engine's word alone"

    # ── surroundings ──────────────────────────────────────────────────────────────────────────────────────────────

    @_on_loop
    async def test_a_task_finds_its_run_task_and_attempt_for_its_logs(self, lane: Lane) -> None:
        job = lane.job("whoami")
        if not lane.can.pickles:  # there the engine binds them in the job's context; elsewhere the worker does
            job.context = contextvars.copy_context()
            job.context.run(bind, job.run, job.task, job.attempt)
        (report,) = await lane.run(job)
        assert lane.value(report) == ("run-1", "whoami#1", 3)

    @_on_loop
    async def test_context_variables_reach_tasks_of_this_process_and_do_not_leak_back(self, lane: Lane) -> None:
        def coloured() -> contextvars.Context:
            lane.jobs.COLOUR.set("blue")
            return contextvars.copy_context()

        jobs = [lane.job("colour"), lane.job("colour")]
        for job in jobs:
            job.context = contextvars.copy_context().run(coloured)
        first, second = await lane.run(*jobs)
        expected = "none" if lane.can.pickles else "blue"
        assert (lane.value(first), lane.value(second)) == (expected, expected)
        assert lane.jobs.COLOUR.get() == "none"
