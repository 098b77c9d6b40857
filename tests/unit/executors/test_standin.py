"""StandInExecutor over real worker processes: what they survive, what they do not, and what is left of them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import psutil
import pytest

from flowlane.errors import SettingsError
from flowlane.runtime.ports import ABANDONED, CRASHED, FAILED, INTERRUPTED, NEVER, STARTED, SUCCEEDED
from flowlane_plugins.executors.futures import usable_cores
from flowlane_plugins.executors.postmortem import MAIN_GUARD
from flowlane_plugins.executors.standin import StandInExecutor

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path
    from types import ModuleType

    from flowlane.runtime.ports import Job

    from .conftest import Inbox


@contextlib.asynccontextmanager
async def opened(inbox: Inbox, slots: int = 2, grace: float = 0.0) -> AsyncIterator[StandInExecutor]:
    executor = StandInExecutor(slots)
    await executor.open(inbox.deliver)
    try:
        yield executor
    finally:
        before = time.monotonic()
        await executor.close(grace)
        # Not a measurement: the promise is grace + about 1 s, and a hang here would be the whole test's timeout.
        assert time.monotonic() - before < grace + 20


# ── what tasks do with values and exceptions cannot break the pool ────────────────────────────────────────────────


@pytest.mark.usefixtures("nothing_left")
async def test_the_corpus_of_awkward_tasks_harms_no_neighbour(
    inbox: Inbox, job: Callable[..., Job], shapes: ModuleType
) -> None:
    awkward = [job(shapes.throw, name) for name in shapes.EXCEPTIONS]
    awkward += [job(shapes.make, name) for name in shapes.VALUES]
    awkward += [job(shapes.take, shapes.make(name)) for name in shapes.VALUES]
    neighbours = [job(shapes.add, n, n) for n in range(len(awkward))]
    async with opened(inbox) as executor:
        first = job(shapes.pid)
        executor.submit([first])
        await inbox.finals(first)
        for bad, good in zip(awkward, neighbours, strict=True):
            executor.submit([bad, good])
            await inbox.finals(bad, good)
        pids = [job(shapes.pid) for _ in range(8)]
        executor.submit(pids)
        workers = {r.value for r in await inbox.finals(*pids)}
        assert [r.value for r in await inbox.finals(*neighbours)] == [2 * n for n in range(len(neighbours))]
        assert {r.kind for r in await inbox.finals(*awkward)} == {FAILED}
        (report,) = await inbox.finals(first)
        seen = {int(r.worker.removeprefix("pid ")) for r in inbox.reports if r.worker.startswith("pid ")}
        assert workers | {report.value} <= seen
        assert len(seen) == 2, "no worker was ever replaced"


@pytest.mark.usefixtures("nothing_left")
async def test_functions_of_files_modules_and_closures_all_run(
    inbox: Inbox, job: Callable[..., Job], shapes: ModuleType
) -> None:
    factor = 3

    def scaled(n: int) -> int:
        return n * factor

    jobs = [job(shapes.add, 1, 2), job(os.path.basename, "a/b"), job(scaled, 5), job(shapes.take, shapes.Holder(1))]
    async with opened(inbox) as executor:
        executor.submit(jobs)
        assert [r.value for r in await inbox.finals(*jobs)] == [3, "b", 15, "taken"]


@pytest.mark.usefixtures("nothing_left")
async def test_values_of_a_file_reach_workers_that_have_not_loaded_it(
    inbox: Inbox, job: Callable[..., Job], shapes: ModuleType
) -> None:
    one = job(repr, shapes.Holder(shapes.Pair(1, 2)))  # the function is a builtin: only the value needs the file
    async with opened(inbox) as executor:
        executor.submit([one])
        assert (await inbox.finals(one))[0].value == "Holder(parts=Pair(left=1, right=2))"


@pytest.mark.usefixtures("nothing_left")
async def test_workers_are_light_and_see_our_path(
    inbox: Inbox, job: Callable[..., Job], shapes: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    jobs = [job(shapes.modules), job(shapes.path)]
    async with opened(inbox, slots=1) as executor:
        executor.submit(jobs)
        modules, path = [r.value for r in await inbox.finals(*jobs)]
    heavy = {"asyncio", "networkx", "pydantic", "click", "rich", "structlog", "cloudpickle", "pytest", "psutil"}
    assert not heavy & set(modules)
    assert str(tmp_path) in path


@pytest.mark.usefixtures("nothing_left")
async def test_ctrl_c_does_not_reach_a_worker(inbox: Inbox, job: Callable[..., Job], shapes: ModuleType) -> None:
    one = job(shapes.interrupted_by_keyboard)
    async with opened(inbox, slots=1) as executor:
        executor.submit([one])
        assert (await inbox.finals(one))[0].value == "still here"


# ── workers that die ──────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("case", "argument", "words", "hint"),
    [
        ("leave_for_good", 3, "exited with code 3", None),
        ("leave_for_good", 0, "exited with code 0", None),
        ("be_killed", signal.SIGSEGV, "was killed by SIGSEGV", None),
        ("be_killed", signal.SIGKILL, "was killed by SIGKILL", "hint: a SIGKILL that nobody sent "),
    ],
)
@pytest.mark.usefixtures("nothing_left")
async def test_a_dead_worker_is_told_with_how_it_ended_and_replaced(
    inbox: Inbox, job: Callable[..., Job], shapes: ModuleType, case: str, argument: int, words: str, hint: str | None
) -> None:
    async with opened(inbox) as executor:
        for _ in range(2):
            fatal, after = job(getattr(shapes, case), argument), job(shapes.add, 1, 2)
            executor.submit([fatal])
            (report,) = await inbox.finals(fatal)
            assert report.kind == CRASHED
            assert report.failure is not None
            assert report.failure.type == "WorkerCrashed"
            assert report.failure.ancestry[0] == "flowlane.errors.WorkerCrashed"
            assert report.failure.message.startswith(f"{case}#1 was lost: worker process ")
            assert report.failure.message.endswith(words)
            assert [note[: len(hint or note)] for note in report.failure.notes] == ([hint] if hint else [])
            executor.submit([after])
            assert (await inbox.finals(after))[0].value == 3


@pytest.mark.usefixtures("nothing_left")
async def test_whoever_is_lost_with_a_worker_is_told_who_was_there(
    inbox: Inbox, job: Callable[..., Job], shapes: ModuleType
) -> None:
    async with opened(inbox) as executor:
        neighbour, fatal = job(shapes.nap, 30), job(shapes.leave_for_good, 3)
        executor.submit([neighbour])
        await inbox.begun(neighbour)
        executor.submit([fatal])
        for report in await inbox.finals(neighbour, fatal):
            assert report.kind == CRASHED
            assert report.started > 0
            assert report.failure is not None
            assert "exited with code 3 (in its pool: nap#1, leave_for_good#1)" in report.failure.message


@pytest.mark.usefixtures("nothing_left")
async def test_jobs_submitted_while_the_pool_is_replaced_are_run(
    inbox: Inbox, job: Callable[..., Job], shapes: ModuleType
) -> None:
    async with opened(inbox) as executor:
        for _ in range(3):
            fatal = job(shapes.be_killed, signal.SIGKILL)
            executor.submit([fatal])
            (report,) = await inbox.finals(fatal)
            assert report.kind == CRASHED
            later = [job(shapes.add, n, n) for n in range(4)]  # at this moment the pool may refuse, or there is none
            executor.submit(later)
            assert [r.value for r in await inbox.finals(*later)] == [0, 2, 4, 6]


@pytest.mark.usefixtures("nothing_left")
async def test_workers_that_cannot_start_are_told_and_not_started_for_ever(
    inbox: Inbox, job: Callable[..., Job], shapes: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    import multiprocessing.spawn
    from multiprocessing import resource_tracker

    resource_tracker.ensure_running()  # it starts by the same name, and is not what shall fail
    monkeypatch.setattr(multiprocessing.spawn, "_python_exe", b"/bin/false")
    one, two = job(shapes.add, 1, 2), job(shapes.add, 1, 2)
    # One slot: 3.11's pool walks its table of processes without a lock when one of them has died, while the next is
    # being started (mended in 3.12), and workers that die within a millisecond hit that moment.
    async with opened(inbox, slots=1) as executor:
        executor.submit([one])
        (report,) = await inbox.finals(one)
        assert (report.kind, report.started) == (CRASHED, NEVER)
        assert report.failure is not None
        assert "before any answered" in report.failure.message
        monkeypatch.undo()
        executor.submit([two])
        reports = await inbox.finals(two)
        assert reports[0].kind in (CRASHED, SUCCEEDED)
        three = job(shapes.add, 1, 2)
        executor.submit([three])
        assert (await inbox.finals(three))[0].kind == SUCCEEDED


# ── jobs that do not stop ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.usefixtures("nothing_left")
async def test_an_abandoned_job_keeps_no_slot_and_its_process_is_ended(
    inbox: Inbox, job: Callable[..., Job], shapes: ModuleType
) -> None:
    async with opened(inbox, slots=1) as executor:
        hung = job(shapes.nap_in_c, 60)
        before = {child.pid for child in psutil.Process().children()}
        executor.submit([hung])
        await inbox.begun(hung)
        old = {child.pid for child in psutil.Process().children()} - before
        executor.interrupt([hung.ref], 0.01)
        assert (await inbox.finals(hung))[0].kind == ABANDONED
        after = job(shapes.pid)
        executor.submit([after])
        (report,) = await inbox.finals(after)
        assert report.kind == SUCCEEDED
        assert report.value not in old
        async with asyncio.timeout(10):
            while any(
                child.pid in old and "spawn_main" in str(child.cmdline()) for child in psutil.Process().children()
            ):
                await asyncio.sleep(0.02)


@pytest.mark.usefixtures("nothing_left")
async def test_the_neighbour_of_an_abandoned_job_still_ends_well(
    inbox: Inbox, job: Callable[..., Job], shapes: ModuleType
) -> None:
    async with opened(inbox) as executor:
        hung, neighbour = job(shapes.nap_in_c, 60), job(shapes.nap, 0.3)
        executor.submit([hung, neighbour])
        await inbox.begun(hung, neighbour)
        executor.interrupt([hung.ref], 0.0)
        reports = await inbox.finals(hung, neighbour)
        assert [r.kind for r in reports] == [ABANDONED, SUCCEEDED]


@pytest.mark.parametrize("case", ["nap", "nap_in_c", "deaf_nap"])
@pytest.mark.usefixtures("nothing_left")
async def test_closing_ends_what_hangs(inbox: Inbox, job: Callable[..., Job], shapes: ModuleType, case: str) -> None:
    async with opened(inbox, grace=0.05) as executor:
        hung = job(getattr(shapes, case), 60)
        executor.submit([hung])
        await inbox.begun(hung)
        await asyncio.sleep(0.05)
    assert [r.kind for r in inbox.reports] == [STARTED, ABANDONED]


@pytest.mark.usefixtures("nothing_left")
async def test_closing_at_once_after_opening(inbox: Inbox, job: Callable[..., Job], shapes: ModuleType) -> None:
    one = job(shapes.nap, 5)
    async with opened(inbox) as executor:
        executor.submit([one])
    (report,) = await inbox.finals(one)
    assert (report.kind, report.started) == (INTERRUPTED, NEVER)


@pytest.mark.usefixtures("nothing_left")
async def test_a_job_that_waits_for_the_first_pool_can_be_taken_back(
    inbox: Inbox, job: Callable[..., Job], shapes: ModuleType
) -> None:
    one, two = job(shapes.add, 1, 2), job(shapes.add, 3, 4)
    async with opened(inbox) as executor:
        executor.submit([one, two])
        executor.interrupt([one.ref], 60)
        reports = await inbox.finals(one, two)
    assert [(r.kind, r.value) for r in reports] == [(INTERRUPTED, None), (SUCCEEDED, 7)]


# ── whole programs ────────────────────────────────────────────────────────────────────────────────────────────────

PROGRAM = """
import asyncio, os, sys, time
from flowlane.loader import address_of
from flowlane.runtime.ports import Job, Target
from flowlane_plugins.executors.{module} import {executor}
print("script", flush=True)

class Row:
    def __init__(self, n): self.n = n

def double(row): return Row(row.n * 2)
def nap(row): print("pid", os.getpid(), flush=True); time.sleep(60)

async def main():
    executor = {make}
    done = asyncio.get_running_loop().create_future()
    def deliver(reports):
        for r in reports:
            if r.kind: done.get_loop().call_soon_threadsafe(done.set_result, r)
    await executor.open(deliver)
    target = Target("{fn}", {fn}, False, address_of({fn}))
    executor.submit([Job(1, target, (Row(21),), {{}}, "run", "{fn}", 1)])
    report = await done
    await executor.close(1)
    print(report.kind.name, type(report.value) is Row and report.value.n, report.failure and report.failure.message)
    print(*(report.failure.notes if report.failure else ()))

{start}
"""


def program(tmp_path: Path, **parts: str) -> list[str]:
    file = tmp_path / "script.py"
    file.write_text(PROGRAM.format(**parts))
    return [sys.executable, "-W", "error", str(file)]


OURS = {"module": "standin", "executor": "StandInExecutor", "make": "StandInExecutor(1)"}
THEIRS = {
    "module": "futures",
    "executor": "FuturesExecutor",
    "make": "FuturesExecutor(__import__('concurrent.futures').futures.ProcessPoolExecutor(1, "
    "mp_context=__import__('multiprocessing').get_context('spawn')), own=True)",
}


def test_a_plain_script_needs_no_guard_and_is_not_run_again_in_workers(tmp_path: Path) -> None:
    ran = subprocess.run(
        program(tmp_path, **OURS, fn="double", start="asyncio.run(main())"),
        check=False,
        capture_output=True,
        text=True,
        timeout=50,
    )
    assert (ran.returncode, ran.stdout.split("\n")) == (0, ["script", "SUCCEEDED 42 None", "", ""]), ran.stderr
    assert ran.stderr == ""


def test_an_unguarded_script_over_a_pool_of_its_own_is_told_about_the_guard(tmp_path: Path) -> None:
    ran = subprocess.run(
        program(tmp_path, **THEIRS, fn="double", start="asyncio.run(main())"),
        check=False,
        capture_output=True,
        text=True,
        timeout=50,
    )
    assert "CRASHED" in ran.stdout
    *_, told, note = ran.stdout.splitlines()
    assert told.startswith("CRASHED ")
    assert told.endswith("before any answered")
    assert note == f"hint: {MAIN_GUARD}"
    assert "CRASHED" not in ran.stdout.split("script")[1], "only the script itself went on, not its copies in workers"


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a worker does not hear of its parent's death")
def test_workers_die_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    with subprocess.Popen(
        program(tmp_path, **OURS, fn="nap", start="asyncio.run(main())"), stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        try:
            lines = [parent.stdout.readline() for _ in range(2)]
            worker = psutil.Process(int(lines[1].split()[1]))
            assert worker.is_running()
        finally:
            parent.kill()
            parent.wait()
        _, alive = psutil.wait_procs([worker], timeout=10)
        assert alive == []


# ── settings ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_capabilities_and_settings() -> None:
    capabilities = StandInExecutor().capabilities
    assert capabilities.default_slots == usable_cores() >= 1
    assert capabilities.accepts == {"sync"}
    assert capabilities.pickles
    assert not capabilities.hard_kill
    assert not capabilities.remote_values
    with pytest.raises(SettingsError, match="slots must be at least 1, not 0"):
        StandInExecutor(0)
    with pytest.raises(SettingsError, match="must be spawn, forkserver or fork, not 'thread'"):
        StandInExecutor(1, "thread")  # type: ignore[arg-type]


@pytest.mark.usefixtures("nothing_left")
async def test_the_fork_method_works_too(inbox: Inbox, job: Callable[..., Job], shapes: ModuleType) -> None:
    if sys.version_info >= (3, 12):
        pytest.skip("from 3.12 on, forking a process that has threads is warned about")
    executor = StandInExecutor(1, "fork")
    await executor.open(inbox.deliver)
    one = job(shapes.add, 1, 2)
    executor.submit([one])
    assert (await inbox.finals(one))[0].value == 3
    await executor.close(1)
