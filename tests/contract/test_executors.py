"""What every executor promises, whatever stands behind it. See ``flowlane.runtime.ports``."""

from __future__ import annotations

import asyncio
import contextvars
import os
import threading
from typing import TYPE_CHECKING

import pytest

from flowlane.runtime.context import bind
from flowlane.runtime.ports import ABANDONED, FAILED, INTERRUPTED, NEVER, SUCCEEDED, Executor

if TYPE_CHECKING:
    from .conftest import Lane


async def test_is_an_executor_with_truthful_capabilities(lane: Lane) -> None:
    assert isinstance(lane.executor, Executor)
    capabilities = lane.executor.capabilities
    assert capabilities.accepts
    assert capabilities.accepts <= {"sync", "async"}
    assert capabilities.default_slots >= 1
    assert capabilities.hard_kill == (lane.name == "processes")
    pid = await lane.one("where_am_i")
    assert capabilities.pickles == (pid.value != os.getpid())


async def test_calls_with_the_arguments_and_reports_the_value(lane: Lane) -> None:
    report = await lane.one("add", 1, 2, 3, scale=10)
    assert (report.kind, report.value, report.failure) == (SUCCEEDED, 60, None)
    assert 0 < report.started <= report.ended
    assert report.worker


async def test_answers_every_job_of_many_exactly_once(lane: Lane) -> None:
    reports = await lane.run(*[lane.job("add", n, n) for n in range(200)])
    assert [report.value for report in reports] == [2 * n for n in range(200)]
    # the fixture checks that there was one final report each


async def test_an_exception_is_a_failure_with_its_whole_story(lane: Lane) -> None:
    report = await lane.one("reject", "bad row 118")
    failure = report.failure
    assert report.kind == FAILED
    assert failure is not None
    assert failure.type == "Rejected"
    assert failure.message == "bad row 118"
    assert failure.notes == ("a note", "caused by KeyError: 'the cause'")
    assert failure.ancestry[:3] == ("_flow_contract_cases.Rejected", "ValueError", "Exception")
    assert failure.matches((ValueError,))
    assert not failure.matches((OSError,))
    assert failure.where is not None
    assert "cases.py:" in failure.where
    assert failure.where.endswith("in reject")
    assert "KeyError: 'the cause'" in failure.traceback
    assert "cases.py" in failure.traceback
    assert "flowlane_plugins" not in failure.traceback
    assert isinstance(failure.exception, lane.cases.Rejected)
    assert 0 < report.started <= report.ended


@pytest.mark.parametrize("name", ["SystemExit", "KeyboardInterrupt", "GeneratorExit"])
async def test_a_task_that_wants_to_leave_fails_alone(lane: Lane, name: str) -> None:
    report = await lane.one("leave", name)
    assert report.kind == FAILED
    assert report.failure is not None
    assert (report.failure.type, report.failure.message) == (name, "7")
    assert (await lane.one("add", 1)).value == 1


async def test_tells_of_the_start_of_a_long_job_before_its_end(lane: Lane) -> None:
    await lane.one("add", 1)  # a worker is up
    job = lane.job("nap", 0.3)
    lane.executor.submit([job])
    if not (lane.name == "inline" and not lane.takes_coroutines):
        await lane.until(lambda: lane.starts(job.ref))
        assert lane.finals(job.ref) == []
        assert lane.starts(job.ref)[0].started > 0
    await lane.until(lambda: lane.finals(job.ref))
    (report,) = lane.finals(job.ref)
    assert report.kind == SUCCEEDED
    assert report.started <= report.ended
    assert lane.starts(job.ref)[0].started <= report.ended


async def test_interrupting_a_running_job_is_answered_and_leaves_the_executor_usable(lane: Lane) -> None:
    await lane.one("add", 1)
    job = lane.job("nap", 0.6)
    lane.executor.submit([job])
    await lane.until(lambda: lane.starts(job.ref))
    lane.executor.interrupt([job.ref], 0.05)
    await lane.until(lambda: lane.finals(job.ref))
    assert lane.finals(job.ref)[0].kind in (INTERRUPTED, ABANDONED)
    assert (await lane.one("add", 2)).value == 2


async def test_a_job_that_does_not_stop_is_given_up(lane: Lane) -> None:
    await lane.one("add", 1)
    job = lane.job("stubborn", 0.6)
    lane.executor.submit([job])
    await lane.until(lambda: lane.starts(job.ref))
    lane.executor.interrupt([job.ref], 0.05)
    await lane.until(lambda: lane.finals(job.ref))
    killed = lane.executor.capabilities.hard_kill
    assert lane.finals(job.ref)[0].kind == (INTERRUPTED if killed else ABANDONED)
    await asyncio.sleep(0.7)  # its late outcome must not be told: the fixture counts
    assert len(lane.finals(job.ref)) == 1


async def test_interrupting_what_is_over_or_unknown_does_nothing(lane: Lane) -> None:
    job = lane.job("add", 1)
    await lane.run(job)
    lane.executor.interrupt([job.ref, 10**9], 0.0)
    await asyncio.sleep(0.05)
    assert len(lane.reports) == 1 + len(lane.starts(job.ref))


async def test_closing_answers_what_is_still_out(lane: Lane) -> None:
    await lane.one("add", 1)
    job = lane.job("nap", 0.8)
    lane.executor.submit([job])
    await lane.until(lambda: lane.starts(job.ref))
    await lane.executor.close(0.05)
    assert [report.kind in (INTERRUPTED, ABANDONED) for report in lane.finals(job.ref)] == [True]


async def test_closing_waits_for_what_ends_within_the_grace(lane: Lane) -> None:
    if lane.takes_coroutines:
        pytest.skip("a coroutine is cancelled at once: it can be")
    await lane.one("add", 1)
    job = lane.job("nap", 0.2)
    lane.executor.submit([job])
    await lane.until(lambda: lane.starts(job.ref))
    await lane.executor.close(10)
    assert [report.kind for report in lane.finals(job.ref)] == [SUCCEEDED]


async def test_closing_an_executor_that_never_ran_anything(lane: Lane) -> None:
    await lane.executor.close(0.0)
    assert lane.reports == []


async def test_a_task_finds_its_run_task_and_attempt_for_its_logs(lane: Lane) -> None:
    job = lane.job("whoami")
    if (
        not lane.executor.capabilities.pickles
    ):  # there the engine binds them in the job's context; elsewhere the worker does
        job.context = contextvars.copy_context()
        job.context.run(bind, job.run, job.task, job.attempt)
    (report,) = await lane.run(job)
    assert report.value == ("run-1", "whoami#1", 3)


async def test_context_variables_reach_tasks_of_this_process_and_do_not_leak_back(lane: Lane) -> None:
    def coloured() -> contextvars.Context:
        lane.cases.COLOUR.set("blue")
        return contextvars.copy_context()

    jobs = [lane.job("colour"), lane.job("colour")]
    for job in jobs:
        job.context = contextvars.copy_context().run(coloured)
    first, second = await lane.run(*jobs)
    expected = "none" if lane.executor.capabilities.pickles else "blue"
    assert (first.value, second.value) == (expected, expected)
    assert lane.cases.COLOUR.get() == "none"


async def test_an_argument_that_cannot_travel_fails_its_own_job_only(lane: Lane) -> None:
    jobs = [lane.job("add", 1), lane.job("echo", {"deep": [threading.Lock()]}), lane.job("add", 2)]
    reports = await lane.run(*jobs)
    assert [report.value for report in reports[::2]] == [1, 2]
    awkward = reports[1]
    if lane.executor.capabilities.pickles:
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


async def test_can_be_opened_again_after_closing(lane: Lane) -> None:
    if lane.name == "threads":
        pytest.skip("its own threads are gone; engines make their executors afresh")
    assert (await lane.one("add", 1)).value == 1
    await lane.executor.close(0.5)
    await lane.executor.open(lane.deliver)
    assert (await lane.one("add", 2)).value == 2
