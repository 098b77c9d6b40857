"""Worker processes where paths cross: what is taken back, stopped, killed, lost and full at the same time."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import signal
from typing import TYPE_CHECKING, Any

import numpy
import psutil
import pytest

from flowlane.loader import Address, load_file
from flowlane.runtime.ports import CRASHED, INTERRUPTED, NEVER, STARTED, SUCCEEDED, Job, Report, Target
from flowlane_plugins.executors.processes import ProcessesExecutor

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from pathlib import Path
    from types import ModuleType


SOURCE = '''
import gc, io, os, resource, signal, socket, sys, time, threading
import numpy

HELD = []

def nothing(*_):
    return None

def pid(*_):
    return os.getpid()

def nap(seconds, *_):
    time.sleep(seconds)
    return seconds

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

def die_once(marker, then=0.0):
    if not os.path.exists(marker):
        open(marker, "w").close()
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(then)
    return time.monotonic()

def now(*_):
    return time.monotonic()

def scrawl(marker):
    """Writes to whatever descriptor it finds, as a confused C library might."""
    with open(marker, "a") as file:
        file.write("x")
    for fd in range(3, 64):
        try:
            os.write(fd, b"\\x41" * 4096)
        except OSError:
            pass
    time.sleep(0.1)

def reuse_descriptors(*_):
    """A daemoniser's closerange, and sockets of its own afterwards."""
    os.closerange(3, 64)
    HELD.extend(socket.socketpair() for _ in range(10))

def eat_descriptors(*_):
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    try:
        while True:
            HELD.append(os.open("/dev/null", os.O_RDONLY))
    except OSError:
        pass

def fork_and_return_late(size):
    child = os.fork()
    if child == 0:
        time.sleep(0.3)
    return numpy.full(size, float(child != 0))

def total(array, *_):
    return float(array.sum())

def full(size, value):
    return numpy.full(size, float(value))

def nap_and_total(seconds, array):
    time.sleep(seconds)
    return float(array.sum())

def tidy(marker, begun):
    try:
        open(begun, "w").close()
        time.sleep(20)
    finally:
        time.sleep(0.4)
        open(marker, "w").close()

def tidy_or_not(marker="", begun=""):
    if begun:
        tidy(marker, begun)

def swallow(*_):
    try:
        time.sleep(20)
    except BaseException:
        pass
    return "went on"

def alarm(*_):
    signal.setitimer(signal.ITIMER_REAL, 0.2)

def lose_stdout(*_):
    sys.stdout = io.StringIO()
    sys.stdout.close()

def say(text):
    print(text)
    return text

def ignore_sigterm(*_):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)

def lower_limits(*_):
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))

class Sleepy:
    """Takes its time to load, and does not let itself be stopped."""
    def __init__(self, pid): self.pid = pid
    def __reduce__(self): return (_sleepy, (self.pid,))

def _sleepy(pid):
    if os.getpid() != pid:
        end = time.monotonic() + 20
        while time.monotonic() < end:
            try:
                time.sleep(20)
            except BaseException:
                pass

class Stuck:
    """Hangs while it loads, but lets itself be stopped."""
    def __init__(self, pid): self.pid = pid
    def __reduce__(self): return (_stuck, (self.pid,))

def _stuck(pid):
    if os.getpid() != pid:
        time.sleep(20)
'''


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    path = tmp_path_factory.mktemp("crossing") / "crossing.py"
    path.write_text(SOURCE)
    return load_file(path, "_flow_crossing")


class Bench:
    """A pool without an engine: jobs in, reports out."""

    def __init__(self, source: ModuleType, **options: Any) -> None:
        self.source = source
        self.executor = ProcessesExecutor(**options)
        self.reports: list[Report] = []
        self._refs = 0
        self._news = asyncio.Event()
        self._targets: dict[str, Target] = {}

    @property
    def pool(self) -> Any:
        return self.executor._pool

    def deliver(self, reports: Sequence[Report]) -> None:
        self.reports += reports
        self._news.set()

    def job(
        self, name: str, *args: Any, timeout: float | None = None, task: str = "", attempt: int = 1, run: str = "r"
    ) -> Job:
        target = self._targets.get(name)
        if target is None:
            address = Address("_flow_crossing", name, self.source.__file__)
            target = self._targets[name] = Target(name, getattr(self.source, name), False, address)
        self._refs += 1
        return Job(self._refs, target, args, {}, run, task or f"{name}#{self._refs}", attempt, timeout)

    def submit(self, name: str, *args: Any, **options: Any) -> int:
        job = self.job(name, *args, **options)
        self.executor.submit([job])
        return job.ref

    def finals(self, ref: int) -> list[Report]:
        return [report for report in self.reports if report.ref == ref and report.kind is not STARTED]

    async def final(self, ref: int, within: float = 30.0) -> Report:
        async with asyncio.timeout(within):
            while not self.finals(ref):
                self._news.clear()
                await self._news.wait()
        (report,) = self.finals(ref)
        return report

    async def call(self, name: str, *args: Any, within: float = 30.0, **options: Any) -> Report:
        return await self.final(self.submit(name, *args, **options), within)


@contextlib.asynccontextmanager
async def bench(source: ModuleType, grace: float = 0.2, **options: Any) -> AsyncIterator[Bench]:
    made = Bench(source, **options)
    await made.executor.open(made.deliver)
    try:
        yield made
    finally:
        await made.executor.close(grace)


def value(report: Report) -> Any:
    assert report.kind is SUCCEEDED, report
    return report.value.fetch() if hasattr(report.value, "fetch") else report.value


# ── nobody left to answer ─────────────────────────────────────────────────────────────────────────────────────────


async def test_a_worker_for_one_that_was_cancelled_before_it_began_is_not_lost(source: ModuleType) -> None:
    async with bench(source, slots=1) as b:
        assert (await b.call("die", task="t")).kind is CRASHED
        # freeze births, so that the second attempt is on its way to a fresh worker and has not begun
        os.kill(b.pool._nest.pid, signal.SIGSTOP)
        try:
            again = b.submit("nap", 0.0, task="t", attempt=2)
            b.executor.interrupt([again], 1.0)
            await asyncio.sleep(0.05)
        finally:
            os.kill(b.pool._nest.pid, signal.SIGCONT)
        assert (await b.final(again)).kind is INTERRUPTED
        assert (await b.call("nothing")).kind is SUCCEEDED


async def test_a_long_payload_beside_a_chunk_does_not_burst_a_frame(source: ModuleType) -> None:
    async with bench(source, slots=1) as b:
        await b.call("nothing")
        args = [("x" * 50_000 + str(n), numpy.zeros(10_000)) for n in range(100)]
        jobs = [b.job("nothing", text, array) for text, array in args]
        b.executor.submit(jobs)
        for job in jobs:
            assert (await b.final(job.ref)).kind is SUCCEEDED


async def test_long_names_do_not_burst_a_frame(source: ModuleType) -> None:
    async with bench(source, slots=1) as b:
        await b.call("nothing")
        jobs = [b.job("nothing", task="n" * 10_000 + str(n)) for n in range(200)]
        b.executor.submit(jobs)
        for job in jobs:
            assert (await b.final(job.ref)).kind is SUCCEEDED


async def test_more_freed_chunks_than_fit_into_a_record_are_told_in_parts(source: ModuleType) -> None:
    async with bench(source, slots=1) as b:
        await b.call("nothing")
        (worker,) = b.pool._workers.values()
        while b.pool._ticking is not None:  # nobody looks at the worker any more
            await asyncio.sleep(0.01)
        os.kill(worker.pid, signal.SIGSTOP)  # so that it reads none of it before the job comes
        try:
            b.pool._book._drops[worker.wid] = list(range(1 << 40, (1 << 40) + 100_000))
            b.pool._free()
            assert worker.later, "they fill the ring"
            ref = b.submit("nothing")
        finally:
            os.kill(worker.pid, signal.SIGCONT)
        assert (await b.final(ref)).kind is SUCCEEDED


async def test_a_task_that_scrawls_over_all_descriptors_is_charged(source: ModuleType, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    async with bench(source, slots=1) as b:
        await b.call("nothing")
        report = await b.call("scrawl", str(marker))
        assert report.kind in (CRASHED, SUCCEEDED)
        assert marker.read_text() == "x"
        assert (await b.call("nothing")).kind is SUCCEEDED


async def test_a_worker_whose_socket_has_ended_gets_no_more_jobs(source: ModuleType) -> None:
    async with bench(source, slots=1) as b:
        assert (await b.call("reuse_descriptors")).kind is SUCCEEDED
        await asyncio.sleep(0.1)
        assert (await b.call("nothing")).kind is SUCCEEDED


async def test_a_descriptor_that_did_not_reach_the_engine_is_told_and_hangs_nobody(source: ModuleType) -> None:
    async with bench(source, slots=2) as b:
        for ref in [b.submit("nap", 0.1), b.submit("nap", 0.1)]:
            await b.final(ref)
        eaten: list[int] = []
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/proc/self/fd"))) + 8, hard))
        try:
            with contextlib.suppress(OSError):
                while True:
                    eaten.append(os.open(os.devnull, os.O_RDONLY))
            made = await b.call("full", 100_000, 1)
        finally:
            for fd in eaten:
                os.close(fd)
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        b.submit("nap", 1.0)  # keeps the one that made it
        if made.kind is SUCCEEDED:
            await b.call("total", made.value)  # whatever it says, it says something
        again = await b.call("full", 100_000, 2)
        assert value(again)[0] == 2.0


async def test_a_descriptor_that_did_not_reach_the_worker_hangs_nobody(source: ModuleType) -> None:
    async with bench(source, slots=1) as b:
        await b.call("nap", 0.0)
        await b.call("eat_descriptors")
        array = numpy.ones(100_000)
        # the descriptor comes while the worker is busy, so the first job that needs it has to wait for it
        jobs = [b.job("nap", 0.006), b.job("total", array), b.job("total", array)]
        b.executor.submit(jobs)
        reports = [await b.final(job.ref) for job in jobs[1:]]
        assert [report.failure for report in reports] == [None, None]


async def test_a_nursery_that_cannot_be_replaced_at_once_is_replaced_later(
    source: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flowlane_plugins.workers import nest

    launch, refused = nest.launch, []

    def refuse_once(*args: Any) -> Any:
        if not refused:
            refused.append(1)
            raise BlockingIOError(11, "Resource temporarily unavailable")
        return launch(*args)

    async with bench(source, slots=1) as b:
        await b.call("nothing")
        monkeypatch.setattr(nest, "launch", refuse_once)
        os.kill(b.pool._nest.pid, signal.SIGKILL)
        while b.pool._nest is not None:
            await asyncio.sleep(0.01)
        assert (await b.call("nothing")).kind is SUCCEEDED
        assert refused


async def test_nurseries_killed_over_a_long_life_cost_nobody(source: ModuleType) -> None:
    async with bench(source, slots=1) as b:
        for _ in range(6):
            assert (await b.call("nothing")).kind is SUCCEEDED
            ref = b.submit("nap", 0.15)
            await asyncio.sleep(0.05)
            os.kill(b.pool._nest.pid, signal.SIGKILL)
            assert (await b.final(ref)).kind is SUCCEEDED


async def test_a_nursery_that_cannot_start_is_not_tried_for_ever(
    source: ModuleType, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from flowlane_plugins.workers import nest

    started: list[int] = []
    launch = nest.launch

    def broken(title: str, entry: str, *rest: Any) -> Any:
        started.append(1)
        return launch(title, "flowlane_plugins.nowhere:main", *rest)

    monkeypatch.setattr(nest, "launch", broken)
    async with bench(source, slots=1) as b:
        report = await b.call("nothing")
        assert report.kind is CRASHED
        assert "nowhere" in str(report.failure), "it does not say why"
        before = len(started)
        await asyncio.sleep(1.0)
        assert len(started) - before <= 1, "nobody asks for a worker"
    assert capfd.readouterr().err.count("Traceback") <= 1


# ── values ────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_what_a_forked_child_returns_is_not_written_over_its_parents_result(source: ModuleType) -> None:
    async with bench(source, slots=1) as b:
        await b.call("full", 100_000, 3)  # now it has an arena, which the child inherits
        made = await b.call("fork_and_return_late", 100_000)
        await asyncio.sleep(0.6)
        assert (await b.call("total", made.value)).value == 100_000.0


def _shared() -> int:
    """Bytes of the arenas of this process's tree."""
    seen: dict[int, int] = {}
    for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
        with contextlib.suppress(OSError, psutil.NoSuchProcess):
            for fd in os.listdir(f"/proc/{process.pid}/fd"):
                path = f"/proc/{process.pid}/fd/{fd}"
                with contextlib.suppress(OSError):
                    if "flowlane-arena" in os.readlink(path):
                        info = os.stat(path)
                        seen[info.st_ino] = info.st_blocks * 512
    return sum(seen.values())


async def test_memory_of_values_dropped_while_nothing_runs_is_given_back(source: ModuleType) -> None:
    size = 12_500_000  # 100 MB
    async with bench(source, slots=1) as b:
        made = [(await b.call("full", size, n)).value for n in range(6)]
        assert _shared() > 500e6
        await asyncio.sleep(0.3)
        b.reports.clear()
        made.clear()
        await asyncio.sleep(1.0)
        assert _shared() < 300e6


async def test_a_function_may_carry_much_with_it(source: ModuleType) -> None:
    text = "x" * 100_000
    target = Target("local", lambda: len(text), False, None)
    async with bench(source, slots=1) as b:
        for ref in (101, 102):
            b.executor.submit([Job(ref, target, (), {}, "r", "local", 1)])
            report = await b.final(ref)
            assert report.kind is SUCCEEDED, report.failure
            assert report.value == len(text)


async def test_functions_of_runs_that_have_ended_do_not_pile_up(source: ModuleType) -> None:
    async with bench(source, slots=1) as b:
        for number in range(12):
            ballast = numpy.full(1_250_000, float(number))  # 10 MB
            target = Target("local", lambda data=ballast: float(data[0]), False, None)
            b._refs += 1
            b.executor.submit([Job(b._refs, target, (), {}, f"run {number}", "local", 1)])
            await b.final(b._refs)
            del target, ballast
        await asyncio.sleep(0.2)
        assert _shared() < 80e6


# ── stopping ──────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_asking_again_does_not_break_off_the_clean_up(source: ModuleType, tmp_path: Path) -> None:
    marker, begun = tmp_path / "clean", tmp_path / "begun"
    async with bench(source, slots=1) as b:
        ref = b.submit("tidy", str(marker), str(begun))
        while not begun.exists():
            await asyncio.sleep(0.01)
        b.executor.interrupt([ref], 3.0)
        await asyncio.sleep(0.1)
        b.executor.interrupt([ref], 2.0)
        assert (await b.final(ref)).kind is INTERRUPTED
        assert marker.exists()


async def test_asking_once_does_not_break_off_the_clean_up_either(source: ModuleType, tmp_path: Path) -> None:
    marker, begun = tmp_path / "clean", tmp_path / "begun"
    async with bench(source, slots=1) as b:
        for _ in range(3):
            await b.call("tidy_or_not")
        jobs = [b.job("tidy_or_not", str(marker), str(begun)), *[b.job("tidy_or_not") for _ in range(5)]]
        b.executor.submit(jobs)
        while not begun.exists():
            await asyncio.sleep(0)
        b.executor.interrupt([jobs[0].ref], 3.0)  # the others are in its frame
        assert (await b.final(jobs[0].ref)).kind is INTERRUPTED
        assert marker.exists()
        for job in jobs[1:]:
            assert (await b.final(job.ref)).kind is SUCCEEDED


@pytest.mark.parametrize("how", ["Sleepy", "Stuck"])
async def test_a_timeout_while_arguments_load_is_a_timeout(source: ModuleType, how: str) -> None:
    async with bench(source, slots=1, grace=0.1) as b:
        await b.call("nothing")
        report = await b.call("nothing", getattr(source, how)(os.getpid()), timeout=0.1)
        assert report.kind is INTERRUPTED
        assert report.started != NEVER, "the runner takes an end without a start for a job taken back"


async def test_a_deadline_is_kept_behind_a_job_that_has_settled(source: ModuleType) -> None:
    late: list[float] = []
    async with bench(source, slots=1, grace=0.0) as b:
        await b.call("nap", 0.06)
        for _ in range(5):
            first = b.job("nap", 0.18)
            second = b.job("nap", 5.0, timeout=0.005)
            b.executor.submit([first, second])
            report = await b.final(second.ref)
            assert report.kind is INTERRUPTED
            late.append((report.ended - report.started) / 1e9 - 0.005)
    assert sorted(late)[len(late) // 2] < 0.02, late


async def test_a_task_that_swallows_the_stop_ends_its_worker_all_the_same(source: ModuleType) -> None:
    async with bench(source, slots=1, grace=1.0) as b:
        before = (await b.call("pid")).value
        report = await b.call("swallow", timeout=0.1)
        assert report.kind is INTERRUPTED
        assert (await b.call("pid")).value != before


async def test_what_was_stopped_while_the_nursery_died_still_timed_out(source: ModuleType, tmp_path: Path) -> None:
    async with bench(source, slots=1, grace=5.0) as b:
        ref = b.submit("tidy", str(tmp_path / "marker"), str(tmp_path / "begun"), timeout=0.1)
        await asyncio.sleep(0.25)  # it cleans up
        os.kill(b.pool._nest.pid, signal.SIGKILL)
        report = await b.final(ref)
        assert report.kind is INTERRUPTED
        assert report.started != NEVER


# ── fairness ──────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_second_attempt_does_not_wait_for_the_end_of_the_queue(source: ModuleType, tmp_path: Path) -> None:
    async with bench(source, slots=1) as b:
        await b.call("die_once", str(tmp_path / "a"), task="t")
        for _ in range(3):  # the next worker is there, and its jobs are known to be short
            await b.call("nap", 0.001)
        jobs = [b.job("nap", 0.001) for _ in range(1_000)]
        b.executor.submit(jobs)
        again = b.submit("now", task="t", attempt=2)
        await b.final(again)
        left = sum(not b.finals(job.ref) for job in jobs)
        assert left > 900, f"{left} were left of 1,000"


async def test_a_second_attempt_does_not_wait_for_another_ones(source: ModuleType, tmp_path: Path) -> None:
    async with bench(source, slots=2) as b:
        await b.call("die", task="t")
        await b.call("die", task="u")
        slow = b.submit("nap", 50, task="t", attempt=2)
        await asyncio.sleep(0.1)
        await b.call("pid")  # the other worker is there now, and not fresh any more
        await b.call("pid", task="u", attempt=2)
        assert not b.finals(slow)
        b.executor.interrupt([slow], 0.0)


# ── what a task leaves behind ─────────────────────────────────────────────────────────────────────────────────────


async def test_an_alarm_that_a_task_has_set_hits_nobody_else(source: ModuleType) -> None:
    async with bench(source, slots=1) as b:
        await b.call("alarm")
        assert (await b.call("nap", 0.4)).kind is SUCCEEDED


async def test_a_stdout_that_a_task_has_replaced_hits_nobody_else(source: ModuleType) -> None:
    async with bench(source, slots=1) as b:
        await b.call("lose_stdout")
        report = await b.call("say", "hello")
        assert report.kind is SUCCEEDED, report.failure
        assert report.output == "hello\n"


async def test_limits_that_a_task_has_lowered_hit_nobody_else(source: ModuleType) -> None:
    async with bench(source, slots=1) as b:
        await b.call("lower_limits")
        assert (await b.call("full", 100_000, 1)).kind is SUCCEEDED
